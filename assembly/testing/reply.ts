// Prefill's reply: read in windows, its rows taken in pieces, and what it brings
// kept for the responses to come.

import { Block } from '../bytes/block';
import { alphabetEnd } from '../routing/base64';
import { PromptCheck } from '../routing/formats/prompt_value';
import { PrefillReply } from '../routing/prefill_reply';
import { Format, Kind, PrefillValue } from '../routing/prompt';
import { Reason } from '../routing/reason';
import { HeldChars, ParkedChars, Parking, RowChars } from '../routing/rows';
import { copied, exchange } from './shared';

const QUOTE: u8 = 0x22;

let reply: PrefillReply | null = null;

/** Sets whose row the last prompt token gets in the replies that follow: decode's, or prefill's. */
export function keepLastRow(decodes: bool): void {
  exchange.prompt.lastRowOfDecode = decodes;
}

/** Sets whether decode forwards the last prompt token, whose row prefill may then lack. */
export function keepForwarded(forwards: bool): void {
  exchange.prompt.decodeForwardsLast = forwards;
}

/**
 * Begins a reply of `size` bytes; prefill was asked for rows from token `asked` on, and the client
 * asks for those from `start` on.
 */
export function replyStart(size: f64, asked: f64, start: f64): void {
  replyFree();
  reply = new PrefillReply(<u64>size, <u64>asked, exchange.examination);
  exchange.prompt.start = <u64>start;
}

/** Reads the next window; false when the reply is no JSON that a reply can be. */
export function replyPush(ptr: usize, len: usize): bool {
  return reply!.push(ptr, len);
}

export function replyOffset(): f64 {
  return <f64>reply!.offset;
}

/** Whether the reply has stopped at rows, which must be given to it before it reads on. */
export function replyWantsRows(): bool {
  return reply!.wanted !== null;
}

/** Offset in the reply of the rows that it wants. */
export function replyRowsAt(): f64 {
  return <f64>reply!.wanted!.at;
}

/** Characters of the rows that it wants; 0 when they go up to the first byte that is not base64. */
export function replyRowsLen(): f64 {
  return <f64>reply!.wanted!.len;
}

/**
 * Gives the reply a copy of the rows at `ptr` in pieces so short that rows and batches of base64
 * lie across them.
 */
export function replyTakeRows(ptr: usize, len: usize): bool {
  return takeRows(ptr, len, 24, false);
}

/** Gives the reply a copy of the rows in pieces of `pieceLen` characters, a multiple of 4. */
export function replyTakePieces(ptr: usize, len: usize, pieceLen: f64): bool {
  return takeRows(ptr, len, <u64>pieceLen, false);
}

/**
 * Gives the reply rows that are parked in pieces of `quanta` quanta of base64, 4 characters each.
 */
export function replyParkRows(ptr: usize, len: usize, quanta: f64): bool {
  return takeRows(ptr, len, <u64>quanta * 4, true);
}

/**
 * As `readRows` of `filter/capture.ts` does it; false when the reply has turned out not to be JSON.
 */
function takeRows(ptr: usize, len: usize, pieceLen: u64, park: bool): bool {
  const wanted = reply!.wanted!;
  const reader = wanted.reader;
  const most = reader === null ? <u64>(alphabetEnd(ptr, ptr + len) - ptr) : wanted.len;
  let chars: RowChars;
  if (park) chars = new ParkedChars(lot, pieceLen);
  else chars = new HeldChars(pieceLen);
  let reason = Reason.None;
  for (let at: u64 = 0; at < most; at += pieceLen) {
    const piece = copied(ptr + <usize>at, <usize>min(pieceLen, most - at));
    if (reader !== null && reason == Reason.None) {
      const end = alphabetEnd(piece.ptr, piece.end);
      if (end == piece.end) reader.push(piece.ptr, piece.len);
      else reason = load<u8>(end) == QUOTE ? Reason.Size : Reason.Base64;
    }
    if (!chars.add(piece)) {
      chars.free();
      return false;
    }
  }
  if (reader !== null) {
    reader.end();
    if (reason == Reason.None) reason = reader.reason;
  }
  reply!.takeRows(chars, reason);
  return reply!.resume();
}

/** A parking in the managed heap that can lose a piece. */
@final
class Lot extends Parking {
  private pieces: Array<StaticArray<u8> | null> = [];
  used: i32 = 0;
  lost: i32 = -1;

  store(ptr: usize, len: usize): i32 {
    const piece = new StaticArray<u8>(<i32>len);
    memory.copy(changetype<usize>(piece), ptr, len);
    this.used++;
    return this.pieces.push(piece) - 1;
  }

  load(slot: i32): Block | null {
    const piece = this.pieces[slot];
    return piece === null || slot == this.lost ? null : copied(changetype<usize>(piece), piece.length);
  }

  drop(slot: i32, len: usize): void {
    const piece = this.pieces[slot];
    assert(piece !== null && piece.length == <i32>len);
    this.pieces[slot] = null;
    if (--this.used == 0) this.pieces.length = 0;
  }
}

const lot = new Lot();

/** How many pieces are parked. */
export function parkedPieces(): i32 {
  return lot.used;
}

/** Sets the piece that can't be fetched; -1 for none. */
export function loseParked(piece: i32): void {
  lot.lost = piece;
}

export function replyFinish(): bool {
  return reply!.finish();
}

export function replyPromptTokens(): f64 {
  return <f64>exchange.prompt.tokens;
}

/** Offset in the reply of the value of its `kv_transfer_params`. */
export function replyKvStart(): f64 {
  return <f64>reply!.params.start;
}

export function replyKvEnd(): f64 {
  return <f64>reply!.params.end;
}

/**
 * Keeps what the whole reply, which lies at `body`, brings for the responses to come, as
 * `filter/capture.ts` does. Returns why its routing can't be used; `None` when it can.
 */
export function replyGive(body: usize): Reason {
  freeRows();
  const prompt = exchange.prompt;
  reply!.giveRows(prompt);
  for (let kind = 0; kind < Kind.Count; kind++) {
    const span = reply!.span(<Kind>kind);
    if (span === null || (kind == Kind.PromptExperts && prompt.format != Format.Prompt)) continue;
    const text = new HeldChars(7);
    for (let at = span.start; at < span.end; at += 7) {
      text.add(copied(body + <usize>at, <usize>min<u64>(7, span.end - at)));
    }
    prompt.values.push(new PrefillValue(<Kind>kind, span.inChoice, text));
    if (kind != Kind.PromptExperts) continue;
    const check = new PromptCheck(exchange.examination);
    const reason = check.check(text, prompt.tokens, reply!.start);
    check.tell(prompt);
    if (reason == Reason.None) continue;
    prompt.routing.refuse(reason);
    prompt.values.pop();
    text.free();
  }
  return prompt.leading.came ? Reason.None : prompt.routing.missing;
}

/** Whether there is routing for the responses that follow. */
export function hasRows(): bool {
  return exchange.prompt.leading.came;
}

export function replyFree(): void {
  const old = reply;
  if (old !== null) old.free();
  reply = null;
}

/** Frees what replies have left for the responses that follow. */
export function freeRows(): void {
  exchange.prompt.free();
}
