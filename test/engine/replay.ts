// Captured traffic of real engines: raw HTTP/1 messages read from `test/captures`, and engines that
// repeat them.

import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { split } from './http.ts';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export interface Message {
  /** The first line, without its line end. */
  start: string;
  /** The headers, with names in lower case. */
  headers: Header[];
  /** The body, without chunked framing. */
  body: Buffer;
  /** The pieces of a chunked body; otherwise the body as one piece. */
  chunks: Buffer[];
}

export interface CapturedRequest extends Message {
  method: string;
  path: string;
}

export interface CapturedResponse extends Message {
  status: number;
}

export interface CapturedLeg {
  request: CapturedRequest;
  response: CapturedResponse;
}

export interface Capture {
  name: string;
  prefill: CapturedLeg;
  decode: CapturedLeg;
  oracle: CapturedLeg;
}

const FOLDER = fileURLToPath(new URL('../captures', import.meta.url));

/** Captures of vLLM on the path that hybrid models take: prefill has one row less. */
const HYBRID = /\.asmamba\./;

const names = (): string[] =>
  readdirSync(FOLDER, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name)
    .sort();

const SGLANG = /^sglang/;

/** The names of vLLM's captures but those of hybrid models. */
export const captureNames = (): string[] =>
  names().filter((name) => !HYBRID.test(name) && !SGLANG.test(name));

/** The names of SGLang's captures. */
export const sglangCaptureNames = (): string[] => names().filter((name) => SGLANG.test(name));

/** The names of the captures of hybrid models. */
export const hybridCaptureNames = (): string[] => names().filter((name) => HYBRID.test(name));

/** The exchanges of one captured case: prefill, decode and oracle. */
export function loadCapture(name: string): Capture {
  const leg = (role: string): CapturedLeg => {
    const read = (kind: string) => parseMessage(readFileSync(join(FOLDER, name, `${role}.${kind}.http`)));
    const [request, response] = [read('request'), read('response')];
    const [method, path] = request.start.split(' ') as [string, string];
    return {
      request: { ...request, method, path },
      response: { ...response, status: Number(response.start.split(' ')[1]) },
    };
  };
  return { name, prefill: leg('prefill'), decode: leg('decode'), oracle: leg('oracle') };
}

/** The captured request as an engine receives it. */
export function toEngineRequest({ method, path, headers, body }: CapturedRequest): EngineRequest {
  return { method, path, headers, body };
}

export interface ReplayEngine extends Engine {
  (request: EngineRequest): EngineReply;
  readonly requests: EngineRequest[];
}

/**
 * Creates an engine that answers every request with the captured response, in its own pieces or in
 * pieces of `chunkBytes`.
 */
export function replayEngine(message: CapturedResponse, options: { chunkBytes?: number } = {}): ReplayEngine {
  const requests: EngineRequest[] = [];
  const headers = message.headers.filter(([name]) => name !== 'transfer-encoding');
  const { chunkBytes } = options;
  const chunks = chunkBytes === undefined ? message.chunks : split(message.body, chunkBytes);
  const engine = (request: EngineRequest): EngineReply => {
    requests.push(request);
    return { status: message.status, headers, chunks };
  };
  return Object.assign(engine, { requests });
}

/** Parses one HTTP/1 message with CRLF line ends. */
export function parseMessage(raw: Buffer): Message {
  const end = raw.indexOf('\r\n\r\n');
  if (end < 0) throw new Error('message without a head');
  const [start, ...lines] = raw.toString('latin1', 0, end).split('\r\n') as [string, ...string[]];
  const headers = lines.map((line): Header => {
    const colon = line.indexOf(':');
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
  });
  const rest = raw.subarray(end + 4);
  const value = (name: string) => headers.find(([key]) => key === name)?.[1];
  if (value('transfer-encoding') === 'chunked') {
    // The streams of SGLang were recorded behind a client that had taken the chunks apart.
    const coded = /^[0-9a-f]+\r\n/i.test(rest.toString('latin1', 0, 20));
    const chunks = coded ? dechunk(rest) : eventsOf(rest);
    return { start, headers, body: Buffer.concat(chunks), chunks };
  }
  const length = Number(value('content-length') ?? 0);
  if (rest.length !== length) throw new Error(`body has ${rest.length} bytes, its head says ${length}`);
  return { start, headers, body: rest, chunks: length > 0 ? [rest] : [] };
}

/** Server-sent events, one a chunk, as SGLang writes them. */
function eventsOf(raw: Buffer): Buffer[] {
  const chunks: Buffer[] = [];
  for (let at = 0; at < raw.length;) {
    const end = raw.indexOf('\n\n', at);
    const next = end < 0 ? raw.length : end + 2;
    chunks.push(raw.subarray(at, next));
    at = next;
  }
  return chunks;
}

function dechunk(raw: Buffer): Buffer[] {
  const chunks: Buffer[] = [];
  for (let at = 0; ;) {
    const line = raw.indexOf('\r\n', at);
    const size = parseInt(raw.toString('latin1', at, line), 16);
    if (!(size >= 0)) throw new Error(`chunk size at byte ${at}`);
    if (size === 0) return chunks;
    chunks.push(raw.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
}
