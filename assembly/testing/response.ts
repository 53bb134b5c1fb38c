// Decode's response: pieces of a body or of a stream of events pushed into a rope, and spliced with
// what the reply has left.

import { Rope } from '../bytes/rope';
import { DecodeResponse, Expected, Form, Treatment } from '../routing/decode_response';
import { EventStream } from '../routing/event_stream';
import { Reason } from '../routing/reason';
import { copied, exchange, output } from './shared';

let expected = new Expected();
let rope: Rope | null = null;
let response: DecodeResponse | null = null;
let events: EventStream | null = null;
/** Bytes of the body that have come so far. */
let received: u64 = 0;

/**
 * Begins a response, which is spliced with what `replyGive` has kept. `tail`: decode was asked for
 * the generated rows only. `missing`: why there is no routing of prefill, where no reply says so.
 * `isEvents`: the body is a stream of events.
 */
export function responseStart(
  tail: bool,
  choices: i32,
  maxTokens: f64,
  missing: Reason,
  treatment: Treatment,
  form: Form,
  isEvents: bool,
): void {
  responseFree();
  expected = new Expected();
  const prompt = exchange.prompt;
  expected.prompt = prompt;
  expected.examination = exchange.examination;
  // No reply was read: the caller says why there is none.
  if (!prompt.leading.came && missing != Reason.None) prompt.routing.missing = missing;
  expected.tail = tail;
  expected.prompts = prompts;
  expected.choices = choices;
  expected.maxTokens = <i64>maxTokens;
  rope = new Rope();
  received = 0;
  const started = new DecodeResponse(expected, rope!, treatment, form, isEvents);
  response = started;
  if (isEvents) events = new EventStream(started);
}

/** How many prompts the requests of the responses that follow have. */
let prompts = 1;

/** Sets how many prompts the requests of the responses that follow have. */
export function expectPrompts(n: i32): void {
  prompts = n;
}

/** Whether pieces that are replaced whole are given back at once. */
let dropReplaced = false;

/**
 * Sets whether pieces that are replaced whole are given back at once, as the filter does where it
 * reads nothing twice.
 */
export function responseSparing(sparing: bool): void {
  dropReplaced = sparing;
}

/** Reads the next piece of the body, of which the rope keeps a copy. */
export function responsePush(ptr: usize, len: usize): void {
  const piece = copied(ptr, len);
  const at = rope!.append(piece, received);
  const stream = events;
  if (stream !== null) stream.push(at, len, received);
  else response!.push(at, len, received);
  if (dropReplaced && stream === null && response!.isReplaced(received)) rope!.discard(len);
  received += len;
}

/**
 * Reads the body again from its begin, in the form that it has turned out to have, as the filter
 * does while it holds all of the body.
 */
export function responseAgain(form: Form, treatment: Treatment): void {
  rope!.clearEdits();
  response!.free();
  const second = new DecodeResponse(expected, rope!, treatment, form, false);
  response = second;
  let offset: u64 = 0;
  for (let i = 0; i < rope!.pieceCount; i++) {
    const piece = rope!.piece(i);
    second.push(piece.ptr, piece.len, offset);
    offset += piece.len;
  }
}

/** Lets the bytes whose edits are settled leave into the output. */
export function responseRelease(): void {
  const stream = events;
  rope!.release(stream !== null ? stream.settled : response!.settled, output);
}

/** Forgets the edits, and lets everything leave as it came. */
export function responseForward(): void {
  rope!.clearEdits();
  rope!.release(received, output);
}

/**
 * How many of the next `len` bytes need not be read, because they are replaced whatever they are.
 */
export function responseUnread(len: f64): f64 {
  const stream = events;
  const ahead = stream !== null ? stream.replacedAhead : response!.replacedAhead;
  return rope!.held == 0 ? <f64>min<u64>(ahead, <u64>len) : 0;
}

/** Lets the next `len` bytes leave without being read. False when the rope can't replace them. */
export function responsePass(len: f64): bool {
  const n = <u64>len;
  if (!rope!.releaseUnread(n, output)) return false;
  const stream = events;
  if (stream !== null) stream.passReplaced(n);
  else response!.passReplaced(n);
  received += n;
  return true;
}

export function responseReason(): Reason {
  return response!.reason;
}

export function responseNulled(): Reason {
  return response!.nulled;
}

export function responsePlanned(): bool {
  return response!.planned;
}

export function responseDecided(): bool {
  return response!.decided;
}

export function responseComplete(): bool {
  return response!.complete;
}

export function responseBetweenDocuments(): bool {
  return response!.betweenDocuments;
}

export function responseChoices(): i32 {
  return response!.choices;
}

export function responseAgainForm(): Form {
  return response!.again;
}

export function responseGrowth(): f64 {
  return <f64>response!.growth;
}

/** Whether bytes of a replacement were lost. */
export function responseBroken(): bool {
  return rope!.broken;
}

export function responseHeld(): f64 {
  return <f64>rope!.held;
}

export function responseFree(): void {
  const oldRope = rope;
  if (oldRope !== null) oldRope.free();
  rope = null;
  const old = response;
  if (old !== null) old.free();
  response = null;
  events = null;
}
