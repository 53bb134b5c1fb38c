// The test module in Node: bytes go in and out, and its objects are driven as the filter drives
// them.

import { readFileSync } from 'node:fs';
import { instantiateSync } from '@assemblyscript/loader';
import { afterEach, expect } from 'vitest';
import { Reason } from '../../assembly/routing/reason.ts';

export { Reason };

// These enums are numbered as in the AssemblyScript sources, from which TypeScript cannot import
// them.
export enum Event {
  More,
  Value,
  ValueEnd,
  Done,
  Failed,
}
export enum Dtype {
  None,
  U1,
  U2,
  I2,
  I4,
}
export enum Form {
  Unknown,
  Full,
  Tail,
}
export enum Treatment {
  Merge,
  Null,
  MergeOrNull,
}
export enum Api {
  None,
  Completions,
  Chat,
  Generate,
  Native,
}
export enum Unfit {
  No,
  NotObject,
  TooDeep,
  NotUtf8,
  SeveralPrompts,
  SeveralChoices,
  PromptLogprobs,
  NoOutput,
  PromptStart,
  Duplicate,
  TooMany,
  Truncated,
  Beams,
  Samples,
}

type Numeric = (...args: number[]) => number;
type Exports = Record<string, Numeric> & {
  scannerInteger(): bigint;
  carriers(bytes: bigint): bigint;
  encodedLength(bytes: bigint): bigint;
  leadOf(offset: bigint): number;
};

const file = readFileSync(new URL('../../build/test.wasm', import.meta.url));
const instance = instantiateSync<Exports>(file);
export const wasm = instance.exports as unknown as Exports;
const memory = instance.exports.memory!;

let room = 0;
let scratch = 0;

/**
 * Copies bytes to the module's memory, where they stay until the next `lend`. Returns their
 * address.
 */
export function lend(bytes: Uint8Array): number {
  if (bytes.length > room) {
    if (scratch !== 0) wasm['free']!(scratch);
    room = Math.max(4096, bytes.length * 2);
    scratch = wasm['alloc']!(room) >>> 0;
  }
  new Uint8Array(memory.buffer, scratch, bytes.length).set(bytes);
  return scratch;
}

/** Returns a copy of bytes in the module's memory. */
export function peek(ptr: number, len: number): Buffer {
  return Buffer.from(new Uint8Array(memory.buffer, ptr >>> 0, len).slice().buffer);
}

/** Returns a view of the module's memory, valid until the next call into the module. */
export function view(ptr: number, len: number): Uint8Array {
  return new Uint8Array(memory.buffer, ptr >>> 0, len);
}

/** What the module has written since the last `takeOutput`. */
export function takeOutput(): Buffer {
  const out = peek(wasm['outputPtr']!(), wasm['outputLen']!());
  wasm['clearOutput']!();
  return out;
}

/** Frees what a test case has left, and fails if anything is still held then. */
export function expectNothingHeld(): void {
  wasm['responseFree']!();
  wasm['replyFree']!();
  wasm['freeRows']!();
  expect(wasm['heldBytes']!()).toBe(0);
  expect(wasm['parkedPieces']!()).toBe(0);
}

/** Makes every test of a file check for leaks. */
export function checkLeaks(): void {
  afterEach(expectNothingHeld);
}

// ---- prefill's reply

export interface Reply {
  json: boolean;
  reason: Reason;
  promptTokens: number;
  kv: string;
  /** The rows have been kept for the responses that follow. */
  rows: boolean;
}

export interface ReplyOptions {
  /** Lengths of the windows in turn. The last length holds for all further windows. */
  windows?: readonly number[];
  /** Index of the first token whose row the client asks for. */
  start?: number;
  /** The same for prefill. Default: the client's. */
  asked?: number;
  /** Rows are parked in pieces of this many quanta of base64, which have 4 characters each. */
  park?: number;
}

/** Reads a reply as `assembly/filter/rows/capture.ts` does, and keeps its rows. */
export function readReply(body: Uint8Array, options: ReplyOptions = {}): Reply {
  const { windows = [body.length], park } = options;
  wasm['freeRows']!();
  const start = options.start ?? 0;
  wasm['replyStart']!(body.length, options.asked ?? start, start);
  let json = true;
  for (let i = 0; json && wasm['replyOffset']!() < body.length; i++) {
    const at = wasm['replyOffset']!();
    const len = windows[Math.min(i, windows.length - 1)]!;
    const window = body.subarray(at, at + len);
    // Rows are lent in memory of their own, because the window is still in use.
    const ptr = wasm['alloc']!(window.length) >>> 0;
    view(ptr, window.length).set(window);
    json = wasm['replyPush']!(ptr, window.length) !== 0;
    while (json && wasm['replyWantsRows']!()) {
      const from = wasm['replyRowsAt']!();
      const rows = body.subarray(from, from + (wasm['replyRowsLen']!() || body.length));
      json =
        park === undefined
          ? wasm['replyTakeRows']!(lend(rows), rows.length) !== 0
          : wasm['replyParkRows']!(lend(rows), rows.length, park) !== 0;
    }
    wasm['free']!(ptr);
  }
  json = json && wasm['replyFinish']!() !== 0;
  const reason: Reason = json ? wasm['replyGive']!(lend(body)) : Reason.None;
  const reply: Reply = {
    json,
    // A reply without rows is no failure here.
    reason: reason === Reason.Missing ? Reason.None : reason,
    promptTokens: wasm['replyPromptTokens']!(),
    kv: Buffer.from(body.subarray(wasm['replyKvStart']!(), wasm['replyKvEnd']!())).toString(),
    rows: json && wasm['hasRows']!() !== 0,
  };
  wasm['replyFree']!();
  return reply;
}

// ---- decode's response

export interface ResponseOptions {
  tail?: boolean;
  choices?: number;
  maxTokens?: number;
  missing?: Reason;
  treatment?: Treatment;
  events?: boolean;
  /** Lengths of the pieces in turn. The last length holds for all further pieces. */
  pieces?: readonly number[];
  /**
   * Number of bytes that are held before anything is released: `Infinity` until the end, 0 until
   * the first array is planned.
   */
  hold?: number;
  /** Pieces that are replaced as a whole are not read. */
  unread?: boolean;
  /** The response ends after this many bytes. */
  until?: number;
}

export interface Response {
  reason: Reason;
  nulled: Reason;
  /** All bytes that were released. */
  body: Buffer;
  /** Bytes had been released before the failure. */
  committed: boolean;
  complete: boolean;
  choices: number;
  growth: number;
  /** Number of bytes that passed without being read. */
  passed: number;
  /** The largest number of bytes of the body that was held. */
  mostHeld: number;
}

/**
 * Reads a response with the rows that `readReply` kept, as `assembly/filter/phases/hold.ts` and
 * `stream.ts` do.
 */
export function readResponse(body: Uint8Array, options: ResponseOptions = {}): Response {
  const { tail = false, choices = 1, maxTokens = -1, missing = Reason.Missing, events = false } = options;
  const { treatment = Treatment.Merge, pieces = [body.length], hold = Infinity, unread = true } = options;
  const end = Math.min(options.until ?? Infinity, body.length);
  wasm['clearOutput']!();
  wasm['responseStart']!(+tail, choices, maxTokens, missing, treatment, Form.Unknown, +events);
  let committed = events;
  let passed = 0;
  let mostHeld = 0;
  let again = Form.Unknown;
  const failed = () => wasm['responseReason']!() !== Reason.None;
  for (let at = 0, i = 0; at < end && !failed(); i++) {
    const piece = body.subarray(at, Math.min(end, at + pieces[Math.min(i, pieces.length - 1)]!));
    at += piece.length;
    let skip = 0;
    if (committed && unread) {
      skip = wasm['responseUnread']!(piece.length);
      if (skip > 0) expect(wasm['responsePass']!(skip)).toBe(1);
      passed += skip;
    }
    if (skip < piece.length) wasm['responsePush']!(lend(piece.subarray(skip)), piece.length - skip);
    mostHeld = Math.max(mostHeld, wasm['responseHeld']!());
    again = wasm['responseAgainForm']!();
    if (again !== Form.Unknown) {
      if (committed) break;
      wasm['responseAgain']!(again, treatment);
    }
    if (failed()) break;
    const ready = wasm['responsePlanned']!() !== 0 && wasm['responseDecided']!() !== 0;
    if (ready && wasm['responseHeld']!() > hold) committed = true;
    if (committed) wasm['responseRelease']!();
  }
  const early = committed;
  if (!failed() && (events || wasm['responseComplete']!() !== 0)) {
    wasm['responseRelease']!();
    committed = true;
  }
  const response: Response = {
    reason: wasm['responseReason']!(),
    nulled: wasm['responseNulled']!(),
    body: takeOutput(),
    committed: early,
    complete: (events ? wasm['responseBetweenDocuments']!() : wasm['responseComplete']!()) !== 0,
    choices: wasm['responseChoices']!(),
    growth: wasm['responseGrowth']!(),
    passed,
    mostHeld,
  };
  wasm['responseFree']!();
  return response;
}
