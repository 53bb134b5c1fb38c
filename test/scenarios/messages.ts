// Requests, replies and arrays for scenarios that are written by hand. They are small, and exact to
// the byte.

import { expect } from 'vitest';
import { npyHeader, type NpyOptions } from '../../yardstick/npy.ts';
import type { ClientRequest, Engine, EngineReply, EngineRequest, Header, Result } from '../scenario.ts';
import { header } from './case.ts';

export interface ArraySpec {
  rows: number;
  layers?: number;
  topK?: number;
  /** The dtype as `.npy` headers name it. */
  dtype?: string;
  /**
   * The first byte; each further byte is computed from it. Arrays with different first bytes differ
   * in every byte.
   */
  from?: number;
  npy?: NpyOptions;
  /** Edits the text of the header. The header's length stays consistent. */
  headerText?: (text: string) => string;
}

export const LAYERS = 2;
export const TOP_K = 3;

/** The bytes of an array's rows. */
export function rowBytes({
  rows,
  layers = LAYERS,
  topK = TOP_K,
  dtype = '|u1',
  from = 1,
}: ArraySpec): Buffer {
  const bytes = rows * layers * topK * (Number(dtype.slice(2)) || 1);
  return Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => (from + i * 7) & 0x7f));
}

/** A `.npy` file. */
export function npyFile(spec: ArraySpec, data: Buffer = rowBytes(spec)): Buffer {
  const { rows, layers = LAYERS, topK = TOP_K, dtype = '|u1', headerText = (text) => text } = spec;
  const head = npyHeader(dtype, [rows, layers, topK], spec.npy);
  const lead = head.indexOf('{');
  const before = head.toString('latin1', lead);
  const edited = headerText(before.trimEnd());
  const text = `${edited.padEnd(before.length - 1)}\n`;
  head.writeUInt16LE(text.length, 8);
  return Buffer.concat([head.subarray(0, lead), Buffer.from(text, 'latin1'), data]);
}

/** The array as engines write it: the file in base64. */
export const encoded = (spec: ArraySpec, data?: Buffer): string => npyFile(spec, data).toString('base64');

/** The array with prefill's rows, followed by decode's remaining rows. */
export function merged(prefill: ArraySpec, decode: ArraySpec): string {
  const rows = rowBytes(prefill);
  return encoded(decode, Buffer.concat([rows, rowBytes(decode).subarray(rows.length)]));
}

const ARRAYS: Record<
  string,
  { new (buffer: ArrayBuffer): ArrayLike<number>; from(ids: number[]): ArrayBufferView }
> = {
  '|u1': Uint8Array,
  '<u2': Uint16Array,
  '<i2': Int16Array,
  '<i4': Int32Array,
};

/** The ids in an array's rows. */
function idsOf(spec: ArraySpec): number[] {
  const bytes = new Uint8Array(rowBytes(spec));
  return Array.from(new ARRAYS[spec.dtype ?? '|u1']!(bytes.buffer));
}

/**
 * Prefill's rows followed by decode's remaining rows (for a tail, by all of decode's rows), as ids
 * of `dtype`.
 */
export function mergedRows(prefill: ArraySpec, decode: ArraySpec, dtype: string, tail = false): Buffer {
  const ids = idsOf(prefill);
  const all = ARRAYS[dtype]!.from([...ids, ...idsOf(decode).slice(tail ? 0 : ids.length)]);
  return Buffer.from(all.buffer, all.byteOffset, all.byteLength);
}

/** The same rows as an array. */
export function mergedIn(prefill: ArraySpec, decode: ArraySpec, dtype: string, tail = false): string {
  const rows = decode.rows + (tail ? prefill.rows : 0);
  return encoded({ ...decode, dtype, rows }, mergedRows(prefill, decode, dtype, tail));
}

export const PARAMS =
  '{"do_remote_prefill":true,"do_remote_decode":false,"remote_request_id":"r-1","remote_block_ids":[[1]]}';
export const REQUEST_ID = 'client-1';

export const JSON_TYPE: Header = ['content-type', 'application/json'];

export interface ReplyOptions {
  status?: number;
  /** Headers beside `content-type` and `content-length`. One with the same name replaces these. */
  headers?: Header[];
  /** `null` means no `content-length`. */
  contentLength?: number | null;
  pieces?: number | Buffer[];
  trailers?: Header[];
  fault?: EngineReply['fault'];
  before?: EngineReply['before'];
}

export function reply(body: string | Buffer, options: ReplyOptions = {}): EngineReply {
  const { status = 200, headers = [], contentLength, pieces, trailers, fault, before } = options;
  const bytes = Buffer.from(body);
  const own: Header[] = [JSON_TYPE];
  if (contentLength !== null && !trailers)
    own.push(['content-length', String(contentLength ?? bytes.length)]);
  const names = new Set(headers.map(([name]) => name));
  return {
    status,
    headers: [...own.filter(([name]) => !names.has(name)), ...headers],
    chunks: Array.isArray(pieces) ? pieces : cut(bytes, pieces ?? (bytes.length || 1)),
    ...(trailers ? { trailers } : {}),
    ...(fault ? { fault } : {}),
    ...(before ? { before } : {}),
  };
}

export const answering =
  (body: string | Buffer, options?: ReplyOptions): Engine =>
  () =>
    reply(body, options);

/** Lets an engine, or a client that leaves, wait for what the client has received. */
export class Watch {
  private bytes = -1;
  private waiting: { bytes: number; resolve: () => void }[] = [];

  readonly onBody = (bytes: number): void => {
    this.bytes = bytes;
    for (const { bytes: wanted, resolve } of this.waiting) if (bytes >= wanted) resolve();
  };

  /** Resolves when the client has received the head (0), or this many bytes of the body. */
  seen(bytes: number): Promise<void> {
    if (this.bytes >= bytes) return Promise.resolve();
    return new Promise((resolve) => this.waiting.push({ bytes, resolve }));
  }
}

/** One-shot event: `happened` resolves when `happen` is called. */
export class Event {
  happen = (): void => undefined;
  readonly happened = new Promise<void>((resolve) => (this.happen = resolve));
}

export function cut(body: Buffer, bytes: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) pieces.push(body.subarray(at, at + bytes));
  return pieces;
}

/** Prefill's reply to a completion. `array` is the JSON text of the value. */
export function prefillBody(array: string | null, promptTokens: number | null = PROMPT.rows): string {
  const usage = promptTokens === null ? 'null' : `{"prompt_tokens":${promptTokens},"completion_tokens":1}`;
  const member = array === null ? '' : `,"routed_experts":${array}`;
  return `{"id":"p","choices":[{"index":0,"text":"x"${member}}],"usage":${usage},"kv_transfer_params":${PARAMS}}`;
}

/**
 * Decode's reply to a completion, with one choice per array. `arrays` are the JSON texts of the
 * values.
 */
export function decodeBody(
  arrays: string[],
  more: { promptTokens?: number; completionTokens?: number; cachedTokens?: number; before?: string } = {},
): string {
  const { promptTokens = PROMPT.rows, completionTokens = arrays.length * 3, before = 'hello' } = more;
  const choices = arrays.map(
    (array, i) => `{"index":${i},"text":"${before}","finish_reason":"length","routed_experts":${array}}`,
  );
  const { cachedTokens } = more;
  const details =
    cachedTokens === undefined ? '' : `,"prompt_tokens_details":{"cached_tokens":${cachedTokens}}`;
  const usage = `{"prompt_tokens":${promptTokens},"completion_tokens":${completionTokens}${details}}`;
  return `{"id":"d","choices":[${choices.join(',')}],"usage":${usage},"kv_transfer_params":null}`;
}

/**
 * The rows that prefill returns, and those that decode returns: all rows, or the two generated rows
 * only.
 */
export const PROMPT: ArraySpec = { rows: 5, from: 100 };
export const FULL: ArraySpec = { rows: 7, from: 3 };
export const TAIL: ArraySpec = { rows: 2, from: 50 };

export const quoted = (text: string) => `"${text}"`;
export const GOOD_PREFILL = prefillBody(quoted(encoded(PROMPT)));
export const GOOD_DECODE = decodeBody([quoted(encoded(FULL))]);
export const GOOD_MERGED = decodeBody([quoted(merged(PROMPT, FULL))]);
/** `GOOD_PREFILL` as vLLM's MooncakeConnector answers: it hands out no parameters. */
export const MOONCAKE_PREFILL = GOOD_PREFILL.replace(
  '"text":"x"',
  '"text":"x","finish_reason":"length"',
).replace(PARAMS, 'null');
/** Both orders of the legs that connector mooncake can send. */
export const HANDSHAKES = ['sequential', 'concurrent'] as const;
export type HandshakeName = (typeof HANDSHAKES)[number];

/** `GOOD_DECODE` from an engine that reports how many tokens of the prompt came from a cache. */
export const cachedDecode = (cachedTokens: number): string =>
  decodeBody([quoted(encoded(FULL))], { cachedTokens });
/** Decode's reply to two prompts. It counts the tokens of both together. */
export const BATCH_DECODE = decodeBody([quoted(encoded(FULL)), quoted(encoded({ ...FULL, from: 9 }))], {
  promptTokens: 2 * PROMPT.rows,
});

/** A decode reply without routing. */
export const NO_ARRAY = decodeBody(['null']);
export const CACHED_TEXT =
  'decode served the request alone, and does not say that nothing of its prompt came from a cache';

export const COMPLETIONS = '/v1/completions';
export const CHAT = '/v1/chat/completions';
export const GENERATE = '/inference/v1/generate';
export const NATIVE = '/generate';

/** A client's request with this body and its length. */
export function post(body: string | Buffer, more: Partial<ClientRequest> = {}): ClientRequest {
  const bytes = Buffer.from(body);
  return {
    method: 'POST',
    path: COMPLETIONS,
    headers: [JSON_TYPE, ['content-length', String(bytes.length)], ['x-request-id', REQUEST_ID]],
    chunks: bytes.length > 0 ? [bytes] : [],
    ...more,
  };
}

export const REQUEST = '{"model":"m","prompt":"one two three","max_tokens":3}';

export const jsonOf = ({ body }: Pick<EngineRequest, 'body'>) =>
  JSON.parse(body.toString('utf8')) as Record<string, unknown>;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** All salts so far, each with the request that it came in. */
const salts = new Map<string, EngineRequest>();

/**
 * The salt of a request that decode serves alone: a version 4 UUID that no other request has had.
 */
export function saltOf(request: EngineRequest): string {
  const salt = jsonOf(request)['cache_salt'] as string;
  expect(salt).toMatch(UUID);
  expect(request.body.toString().split(salt)).toHaveLength(2);
  expect(salts.get(salt) ?? request).toBe(request);
  salts.set(salt, request);
  return salt;
}

/** The body of such a request without its salt, which is the first member. */
export function withoutSalt(request: EngineRequest): string {
  const text = request.body.toString('utf8');
  const salt = `"cache_salt":"${saltOf(request)}"`;
  const at = text.indexOf(salt);
  expect(text.slice(0, at).trim()).toBe('{');
  const rest = text.slice(at + salt.length);
  return text.slice(0, at) + (rest.startsWith(',') ? rest.slice(1) : rest);
}

/** Checks that decode got the client's bytes with a salt and no other change. */
export function expectSalted(request: EngineRequest, sent: string | Buffer): void {
  expect(withoutSalt(request)).toBe(sent.toString());
  const length = header(request.headers, 'content-length');
  if (length !== undefined) expect(length).toBe(String(request.body.length));
}

/** The counters without those of what decode told of its cache, which `decode_cache.ts` checks. */
export function ofOutcome(counters: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(counters).filter(([name]) => !name.startsWith('routed_experts.decode_')),
  );
}

/** Checks the outcome of an exchange in the access log and in the counters. */
export function expectOutcome(result: Result, outcome: string, counters: Record<string, number> = {}): void {
  const token = outcome.split(';', 1)[0]!;
  const reason = /; reason=(\w+)$/.exec(outcome)?.[1];
  expect(result.logged).toBe(outcome);
  expect(ofOutcome(result.counters)).toEqual({
    [`routed_experts.${token}`]: 1,
    ...(reason ? { [`routed_experts.unmerged.${reason}`]: 1 } : {}),
    ...counters,
  });
}

/** Checks an error that the filter sends itself, in vLLM's shape. */
export function expectError(result: Result, status: number, type: string, message: string): void {
  expect(result).toMatchObject({ status, complete: true });
  expect(header(result.headers, 'content-type')).toBe('application/json');
  expect(JSON.parse(result.body.toString())).toEqual({ error: { message, type, param: null, code: status } });
}

/** Checks that the head tells the length of the body if `announced`, and no length otherwise. */
export function expectLength(result: Result, announced: boolean): void {
  const length = header(result.headers, 'content-length');
  expect(length).toBe(announced ? String(result.body.length) : undefined);
}
