// Takes what prefill's reply brings out of Envoy's buffer. Rows are copied once: into the VM's
// memory, or through it to the parking.

import { bufferBytes } from '../../abi/host';
import { BufferKind } from '../../abi/types';
import { Ascii } from '../../bytes/ascii';
import { Block, fits } from '../../bytes/block';
import { lanes } from '../../bytes/vector';
import { alphabetEnd } from '../../routing/base64';
import { Examination } from '../../routing/examination';
import { Wanted } from '../../routing/formats/format';
import { PromptCheck } from '../../routing/formats/prompt_value';
import { PrefillReply, Span } from '../../routing/prefill_reply';
import { Format, Kind, PrefillValue, Prompt } from '../../routing/prompt';
import { Reason } from '../../routing/reason';
import { HeldChars, ParkedChars, RowChars } from '../../routing/rows';
import { Room } from './room';

/** How many bytes of a reply are read first. As a rule the rows begin in them. */
const FIRST_WINDOW: u32 = 16 << 10;
const WINDOW: u32 = 256 << 10;
/**
 * How many characters of rows are read at a time when their number is not known: whole quanta of
 * base64.
 */
const PIECE: u64 = (512 << 10) - ((512 << 10) % 12);
/** The same where the rows are few, as in each element of a batch. */
const FEW: u64 = 8 << 10;
/** Longer token details are not taken: prefill's may go into every event of a stream. */
const MAX_DETAILS_BYTES: u64 = 4 << 10;
/**
 * The parameters of an engine are some hundred bytes. A reply with more than this is not one of an
 * engine.
 */
const MAX_PARAMS_BYTES: u64 = 1 << 20;
const LENGTH = new Ascii('"length"');
// The finish reason that vLLM's chat API gives in place of `length` when its tool parser has found
// a call.
const TOOL_CALLS = new Ascii('"tool_calls"');
const QUOTE: u8 = 0x22;

/** What a good reply of prefill's brings. */
@final
export class Captured {
  readonly prompt: Prompt = new Prompt();
  /** `kv_transfer_params`, as it came (owned); null when there is none. */
  params: Block | null = null;
  /**
   * Whether the reply ended at its cap of one token. `finish_reason` is `length` then, or
   * `tool_calls`, which hides `length`.
   */
  capped: bool = false;

  /** Gives back the parameters. Called when decode's leg has been written with them. */
  freeParams(): void {
    const params = this.params;
    if (params !== null) params.free();
    this.params = null;
  }

  free(): void {
    this.prompt.free();
    this.freeParams();
  }
}

export const enum Capture {
  Ok,
  /** The reply is not JSON, or not a document that a reply can be. */
  Unreadable,
  /** The rows do not fit into what may be kept. */
  TooLarge,
}

/**
 * Reads the answer to the prefill leg, of `size` bytes. `lists`: whether it may be a list of
 * elements. `start`: the first token whose row was asked for.
 */
export function capture(
  size: u32,
  lists: bool,
  start: u64,
  examination: Examination,
  room: Room,
  into: Captured,
): Capture {
  const reply = new PrefillReply(size, start, examination);
  const result = read(reply, size, lists, examination, room, into);
  reply.free();
  if (result == Capture.Ok && into.prompt.routing.came) {
    // A fault that decode's rows can't excuse is found now, while nothing of the response has left.
    const reason = examination.judge(true);
    if (reason != Reason.None) into.prompt.routing.refuse(reason);
  }
  if (result != Capture.Ok) into.free();
  return result;
}

function read(
  reply: PrefillReply,
  size: u32,
  lists: bool,
  examination: Examination,
  room: Room,
  into: Captured,
): Capture {
  let length = FIRST_WINDOW;
  while (reply.offset < size) {
    const window = bufferBytes(BufferKind.CallResponseBody, <u32>reply.offset, length);
    if (window === null || window.len == 0) return Capture.Unreadable;
    let json = reply.push(window.ptr, window.len);
    for (let wanted = reply.wanted; json && wanted !== null; wanted = reply.wanted) {
      const taken = readRows(reply, wanted, size, room);
      if (taken != Capture.Ok) {
        window.free();
        return taken;
      }
      json = reply.resume();
    }
    window.free();
    if (!json) return Capture.Unreadable;
    length = WINDOW;
  }
  if (!reply.finish() || (reply.list && !lists)) return Capture.Unreadable;
  reply.giveRows(into.prompt);
  const params = reply.params;
  if (params.len > MAX_PARAMS_BYTES) return Capture.Unreadable;
  if (params.len > 0) {
    into.params = bufferBytes(BufferKind.CallResponseBody, <u32>params.start, <u32>params.len);
  }
  into.capped = isCapped(reply.finishReason);
  return readValues(reply, room, examination, into.prompt);
}

/** Copies the rows piece by piece: into the VM's memory, or through it to the parking. */
function readRows(reply: PrefillReply, wanted: Wanted, size: u32, room: Room): Capture {
  const known = wanted.len > 0;
  const most = known ? wanted.len : <u64>size - wanted.at;
  const pieceLen = known ? wanted.pieceLen : most > FEW && endsSoon(wanted.at) ? FEW : PIECE;
  const chars = room.charsFor(most, pieceLen);
  if (chars === null) return Capture.TooLarge;
  const reader = wanted.reader;
  let reason = Reason.None;
  for (let at: u64 = 0; at < most; at += pieceLen) {
    const len = min(pieceLen, most - at);
    let piece = bufferBytes(BufferKind.CallResponseBody, <u32>(wanted.at + at), <u32>len);
    if (piece === null || <u64>piece.len != len) {
      if (piece !== null) piece.free();
      chars.free();
      return Capture.Unreadable;
    }
    // The alphabet is checked and the rows are read while the piece is in the processor's cache.
    const end = alphabetEnd(piece.ptr, piece.end);
    const last = end < piece.end;
    if (reader !== null && reason == Reason.None) {
      if (last) reason = load<u8>(end) == QUOTE ? Reason.Size : Reason.Base64;
      else reader.push(piece.ptr, piece.len);
    } else if (last) piece = cutAt(piece, end);
    if (piece.len == 0) piece.free();
    else if (!chars.add(piece)) {
      chars.free();
      return Capture.TooLarge;
    }
    if (last && !known) break;
  }
  if (reader !== null) {
    reader.end();
    if (reason == Reason.None) reason = reader.reason;
  }
  reply.takeRows(chars, reason);
  return Capture.Ok;
}

/** Whether rows whose number is not known end within the next `FEW` characters. */
function endsSoon(at: u64): bool {
  const few = bufferBytes(BufferKind.CallResponseBody, <u32>at, <u32>FEW);
  if (few === null) return false;
  const ends = alphabetEnd(few.ptr, few.end) < few.end;
  few.free();
  return ends;
}

/**
 * Copies the bytes of a block (taken over) before `end`. A truncated block would go on to take the
 * memory of all its bytes.
 */
function cutAt(block: Block, end: usize): Block {
  const kept = Block.alloc(end - block.ptr);
  memory.copy(kept.ptr, block.ptr, kept.len);
  block.free();
  return kept;
}

function isCapped(reason: Span): bool {
  if (reason.len != LENGTH.len && reason.len != TOOL_CALLS.len) return false;
  const text = bufferBytes(BufferKind.CallResponseBody, <u32>reason.start, <u32>reason.len);
  if (text === null) return false;
  const capped = LENGTH.equals(text.ptr, text.len) || TOOL_CALLS.equals(text.ptr, text.len);
  text.free();
  return capped;
}

/**
 * Copies the values of prefill's reply that decode's response does not have, and checks the prompt
 * rows among them.
 */
function readValues(reply: PrefillReply, room: Room, examination: Examination, prompt: Prompt): Capture {
  for (let kind = 0; kind < Kind.Count; kind++) {
    const span = reply.span(<Kind>kind);
    if (span === null) continue;
    // The rows have been refused, or are in another format: this value is not needed.
    if (kind == Kind.PromptExperts && prompt.format != Format.Prompt) continue;
    if (kind == Kind.TokensDetails && span.len > MAX_DETAILS_BYTES) continue;
    const text = readText(span, room, prompt.heldBytes);
    if (text === null) return Capture.TooLarge;
    prompt.values.push(new PrefillValue(<Kind>kind, span.inChoice, text));
    if (kind != Kind.PromptExperts) continue;
    const check = new PromptCheck(examination);
    const reason = check.check(text, prompt.tokens, reply.start);
    check.tell(prompt);
    if (reason != Reason.None) {
      prompt.routing.refuse(reason);
      prompt.values.pop();
      text.free();
    }
  }
  return Capture.Ok;
}

/**
 * Copies a value. `held`: bytes that this reply has brought, which the room does not count yet.
 * Returns null when there is no room.
 */
function readText(span: Span, room: Room, held: u64): RowChars | null {
  if (!room.takes(held + span.len)) return null;
  const chars = new HeldChars(PIECE);
  for (let at = span.start; at < span.end; at += PIECE) {
    const piece = bufferBytes(BufferKind.CallResponseBody, <u32>at, <u32>min(PIECE, span.end - at));
    if (piece !== null) joinLines(piece.ptr, piece.end);
    if (piece === null || !chars.add(piece)) {
      chars.free();
      return null;
    }
  }
  return chars;
}

/**
 * Makes spaces of the line ends in a JSON value, none of which is inside a string. The document in
 * an event stands on one line.
 */
function joinLines(ptr: usize, end: usize): void {
  const feed = lanes(0x0a);
  const carriage = lanes(0x0d);
  const space = lanes(0x20);
  for (; ptr + 16 <= end; ptr += 16) {
    const bytes = v128.load(ptr);
    const ends = v128.or(i8x16.eq(bytes, feed), i8x16.eq(bytes, carriage));
    if (v128.any_true(ends)) v128.store(ptr, v128.bitselect(space, bytes, ends));
  }
  for (; ptr < end; ptr++) {
    const c = load<u8>(ptr);
    if (c == 0x0a || c == 0x0d) store<u8>(ptr, 0x20);
  }
}
