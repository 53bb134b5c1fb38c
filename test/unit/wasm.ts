// The test module in Node: bytes in and out, and its objects driven as the filter drives them.

import { readFileSync } from 'node:fs';
import { instantiateSync } from '@assemblyscript/loader';
import { afterEach, expect } from 'vitest';
import { Reason } from '../../assembly/routing/reason.ts';

export { Reason };

// As the sources number them, which TypeScript can't read.
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

/** Copies bytes to where the module can read them, until the next `lend`; returns their address. */
export function lend(bytes: Uint8Array): number {
  if (bytes.length > room) {
    if (scratch !== 0) wasm['free']!(scratch);
    room = Math.max(4096, bytes.length * 2);
    scratch = wasm['alloc']!(room) >>> 0;
  }
  new Uint8Array(memory.buffer, scratch, bytes.length).set(bytes);
  return scratch;
}

/** A copy of the module's memory. */
export function peek(ptr: number, len: number): Buffer {
  return Buffer.from(new Uint8Array(memory.buffer, ptr >>> 0, len).slice().buffer);
}

/** A view of the module's memory, until the next call. */
export function view(ptr: number, len: number): Uint8Array {
  return new Uint8Array(memory.buffer, ptr >>> 0, len);
}

/** What has left since the last `takeOutput`. */
export function takeOutput(): Buffer {
  const out = peek(wasm['outputPtr']!(), wasm['outputLen']!());
  wasm['clearOutput']!();
  return out;
}

/** Frees what a case has left behind, and fails it when that is not everything. */
export function expectNothingHeld(): void {
  wasm['responseFree']!();
  wasm['replyFree']!();
  wasm['freeRows']!();
  expect(wasm['heldBytes']!()).toBe(0);
  expect(wasm['parkedPieces']!()).toBe(0);
}

/** Registers the leak check for every test of a file. */
export function checkLeaks(): void {
  afterEach(expectNothingHeld);
}

// ---- prefill's reply

export interface Reply {
  json: boolean;
  reason: Reason;
  promptTokens: number;
  kv: string;
  /** Rows are kept for the responses to come. */
  rows: boolean;
}

export interface ReplyOptions {
  /** Bytes of the windows in turn; the last one for all that follow. */
  windows?: readonly number[];
  /** First token whose row was asked for. */
  start?: number;
  /** Rows are parked in pieces of so many quanta of base64, 4 characters each. */
  park?: number;
}

/** Reads a reply as `filter/capture.ts` does, and keeps its rows. */
export function readReply(body: Uint8Array, options: ReplyOptions = {}): Reply {
  const { windows = [body.length], park } = options;
  wasm['freeRows']!();
  wasm['replyStart']!(body.length, options.start ?? 0);
  let json = true;
  for (let i = 0; json && wasm['replyOffset']!() < body.length; i++) {
    const at = wasm['replyOffset']!();
    const len = windows[Math.min(i, windows.length - 1)]!;
    const window = body.subarray(at, at + len);
    // Rows are lent beside the window, which is still in use.
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
    // Nothing that came is no reason.
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
  /** Lengths of the pieces in turn; the last one for all that follow. */
  pieces?: readonly number[];
  /** Bytes held before anything leaves: `Infinity` until the end, 0 until the first array is planned. */
  hold?: number;
  /** Pieces that are replaced whole are not read. */
  unread?: boolean;
  /** Ends after so many bytes. */
  until?: number;
}

export interface Response {
  reason: Reason;
  nulled: Reason;
  /** All that left. */
  body: Buffer;
  /** Something left before the failure. */
  committed: boolean;
  complete: boolean;
  choices: number;
  growth: number;
  /** Bytes that passed without being read. */
  passed: number;
  /** Most bytes of the body that were held. */
  mostHeld: number;
}

/** Reads a response as `filter/exchange.ts` does, with the rows that `readReply` kept. */
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
