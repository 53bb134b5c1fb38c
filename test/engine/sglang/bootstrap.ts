// Reads where the two engines of a request meet: a host, a port and a room for each prompt.

import type { Bootstrap } from '../call.ts';
import { bad, type Json } from '../fields.ts';
import { memberText } from '../json.ts';

const ROOMS = 1n << 63n;

/**
 * Returns null if the request names no room. `text` is the request's body: a room can have more
 * digits than a JavaScript number keeps.
 */
export function parseBootstrap(text: string, json: Json, prompts: number, batch: boolean): Bootstrap | null {
  if ((json['bootstrap_room'] ?? null) === null) return null;
  const rooms = roomsOf(memberText(text, 'bootstrap_room')!, prompts, batch);
  for (const room of rooms) {
    if (room >= ROOMS) throw bad('bootstrap_room must be less than 2^63', 'bootstrap_room');
  }
  return {
    rooms,
    hosts: each(json, 'bootstrap_host', prompts, batch, (host) => typeof host === 'string' && host !== ''),
    ports: each(json, 'bootstrap_port', prompts, batch, isPort),
  };
}

/**
 * The rooms of all prompts. A single room for a batch is the first prompt's; each further prompt
 * has the next number.
 */
function roomsOf(text: string, prompts: number, batch: boolean): bigint[] {
  if (!text.startsWith('[')) {
    const first = roomOf(text);
    return Array.from({ length: prompts }, (_, p) => first + BigInt(p));
  }
  const items = text.slice(1, -1).trim();
  const rooms = items === '' ? [] : items.split(',').map((item) => roomOf(item.trim()));
  if (!batch || rooms.length !== prompts) throw bad('one bootstrap_room per prompt', 'bootstrap_room');
  return rooms;
}

function roomOf(text: string): bigint {
  if (!/^(0|[1-9]\d*)$/.test(text)) throw bad('Input should be a valid integer', 'bootstrap_room');
  return BigInt(text);
}

function isPort(port: unknown): boolean {
  return Number.isInteger(port) && Number(port) > 0 && Number(port) < 65_536;
}

/** A list with one value per prompt; a single value stands for all prompts. */
function each<T>(
  json: Json,
  key: string,
  prompts: number,
  batch: boolean,
  valid: (value: unknown) => boolean,
): T[] {
  const value = json[key];
  const list = Array.isArray(value) ? value : Array.from({ length: prompts }, () => value);
  if (Array.isArray(value) && (!batch || list.length !== prompts)) throw bad(`one ${key} per prompt`, key);
  if (!list.every(valid)) throw bad(`${key} is missing or invalid`, key);
  return list as T[];
}
