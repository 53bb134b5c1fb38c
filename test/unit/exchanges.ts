// Requests as tests write them, and replies as tests read them.

import { expect } from 'vitest';
import type { EngineReply, EngineRequest, Header } from '../scenario.ts';

export type Json = Record<string, any>;

export function post(path: string, body: unknown, headers: Header[] = []): EngineRequest {
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return { method: 'POST', path, headers: [['content-type', 'application/json'], ...headers], body: bytes };
}

export function text(reply: EngineReply): string {
  return Buffer.concat(reply.chunks).toString();
}

export function json(reply: EngineReply): Json {
  return JSON.parse(text(reply));
}

export function ok(reply: EngineReply): Json {
  expect(reply.fault).toBeUndefined();
  expect(reply.status, text(reply)).toBe(200);
  return json(reply);
}

/** The parsed events of a stream, without the `[DONE]` at its end. */
export function eventsOf(reply: EngineReply): Json[] {
  expect(reply.status, text(reply)).toBe(200);
  const events = text(reply).split('\n\n');
  expect(events.splice(-2)).toEqual(['data: [DONE]', '']);
  return events.map((event) => JSON.parse(event.replace(/^data: /, '')));
}

/** `body` with sampling parameters at the place where its endpoint has them. */
export function withSampling(body: Json, params: Json): Json {
  return 'sampling_params' in body
    ? { ...body, sampling_params: { ...body['sampling_params'], ...params } }
    : { ...body, ...params };
}

/** The `kv_transfer_params` that ask a NIXL prefill engine for its blocks. */
export const NIXL_PREFILL = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};
