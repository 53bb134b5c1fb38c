// The prefill leg: the call that carries it, and what its reply brings.

import { bufferBytes, header, httpCall, randomBytes } from '../abi/host';
import { PairReader, PairWriter } from '../abi/pairs';
import { BufferKind, Status } from '../abi/types';
import { Ascii, startsWithIgnoreCase } from '../bytes/ascii';
import { Block, fits } from '../bytes/block';
import { PrefillReply } from '../routing/prefill_reply';
import { Reason } from '../routing/reason';
import { HeldChars, ParkedChars, PromptRows, RowChars, RowsCheck, rowsInPiece } from '../routing/rows';
import { Room } from './room';
import { ENVOY_PREFIX, REQUEST_ID, isOneHop } from './names';

/** First read of a reply: as a rule the rows start in it. */
const FIRST_WINDOW: u32 = 16 << 10;
const WINDOW: u32 = 256 << 10;
/** About the size of a piece of rows. */
const PIECE: u64 = 512 << 10;
/** An engine's parameters are some hundred bytes; more is not one. */
const MAX_PARAMS_BYTES: u64 = 1 << 20;

const UUID_BYTES: usize = 36;

/**
 * Starts the call with the headers of the client's request. All blocks are borrowed; `id` is the request's id where the
 * client's request had none, else null.
 */
export function startPrefill(
  cluster: Ascii,
  headers: Block,
  body: Block,
  id: Block | null,
  timeoutMs: u32,
): Status {
  const writer = new PairWriter();
  const reader = new PairReader(headers);
  while (reader.next()) {
    // Envoy's own headers choose endpoints, retries and timeouts: a client must not, for this leg.
    if (startsWithIgnoreCase(reader.namePtr, reader.nameLen, ENVOY_PREFIX)) continue;
    if (isOneHop(reader.namePtr, reader.nameLen)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  if (id !== null) writer.add(REQUEST_ID.ptr, REQUEST_ID.len, id.ptr, id.len);
  const pairs = writer.build();
  const status = httpCall(cluster, pairs, body, timeoutMs);
  pairs.free();
  return status;
}

/** A random UUID (RFC 9562, version 4) for a request that has no id, as text. */
export function newRequestId(): Block {
  const id = Block.alloc(UUID_BYTES);
  const random = Block.alloc(16);
  randomBytes(random.ptr, 16);
  store<u8>(random.ptr, (load<u8>(random.ptr, 6) & 0x0f) | 0x40, 6);
  store<u8>(random.ptr, (load<u8>(random.ptr, 8) & 0x3f) | 0x80, 8);
  let at = id.ptr;
  for (let i: usize = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) store<u8>(at++, 0x2d);
    const byte = load<u8>(random.ptr + i);
    store<u8>(at++, hexDigit(byte >> 4));
    store<u8>(at++, hexDigit(byte & 15));
  }
  random.free();
  return id;
}

function hexDigit(value: u8): u8 {
  return value < 10 ? 0x30 + value : 0x57 + value;
}

/** What a good reply brings. */
@final
export class Captured {
  /** Prefill's rows (owned); null when there are none to use, and then `missing` says why. */
  rows: PromptRows | null = null;
  missing: Reason = Reason.Missing;
  /** `kv_transfer_params` as it came (owned); null when there is none. */
  params: Block | null = null;
  /** Tokens of the prompt as `usage` or the rows say; -1 when neither does. */
  promptTokens: i64 = -1;

  free(): void {
    const rows = this.rows;
    if (rows !== null) rows.free();
    this.rows = null;
    const params = this.params;
    if (params !== null) params.free();
    this.params = null;
  }
}

export const enum Capture {
  Ok,
  /** The reply is not a JSON object. */
  Unreadable,
  /** The rows do not fit into what may be held. */
  TooLarge,
}

/** Reads the call's answer of `size` bytes; the rows are copied once, and go where there is room. */
export function capture(size: u32, room: Room, into: Captured): Capture {
  const reply = new PrefillReply(size);
  const result = read(reply, size, room, into);
  reply.free();
  if (result != Capture.Ok) into.free();
  return result;
}

function read(reply: PrefillReply, size: u32, room: Room, into: Captured): Capture {
  let length = FIRST_WINDOW;
  while (reply.offset < size) {
    const window = bufferBytes(BufferKind.CallResponseBody, <u32>reply.offset, length);
    if (window === null || window.len == 0) return Capture.Unreadable;
    let json = reply.push(window.ptr, window.len);
    if (json && reply.wantsRows) {
      const taken = readRows(reply, room);
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
  if (!reply.finish()) return Capture.Unreadable;
  const rows = reply.giveRows();
  into.rows = rows;
  into.promptTokens = reply.promptTokens;
  if (rows === null && reply.reason != Reason.None) into.missing = reply.reason;
  const paramsLen = reply.kvEnd - reply.kvStart;
  if (paramsLen > MAX_PARAMS_BYTES) return Capture.Unreadable;
  if (paramsLen > 0) {
    into.params = bufferBytes(BufferKind.CallResponseBody, <u32>reply.kvStart, <u32>paramsLen);
  }
  return Capture.Ok;
}

/** Copies the rows piece by piece into memory, or through it to the parking. */
function readRows(reply: PrefillReply, room: Room): Capture {
  const header = reply.header;
  const check = new RowsCheck(header);
  const rowsInFull = rowsInPiece(header, PIECE);
  const pieceLen = (rowsInFull * header.rowBytes * 8) / 6;
  let chars: RowChars;
  if (room.takes(reply.rowsLen)) chars = new HeldChars(pieceLen);
  else if (room.parks(reply.rowsLen) && fits(2 * pieceLen)) chars = new ParkedChars(room.parking, pieceLen);
  else return Capture.TooLarge;
  let reason = Reason.None;
  let rows = header.rows;
  for (let at: u64 = 0; at < reply.rowsLen; at += pieceLen) {
    const len = min(pieceLen, reply.rowsLen - at);
    const more: u64 = check.signed && at + len < reply.rowsLen ? 1 : 0;
    const piece = bufferBytes(BufferKind.CallResponseBody, <u32>(reply.rowsAt + at), <u32>(len + more));
    if (piece === null || <u64>piece.len != len + more) {
      if (piece !== null) piece.free();
      chars.free();
      return Capture.Unreadable;
    }
    // Checked while it is in the processor's cache.
    if (reason == Reason.None) reason = check.check(piece.ptr, piece.end, min(rows, rowsInFull));
    rows -= min(rows, rowsInFull);
    piece.truncate(<usize>len);
    if (!chars.add(piece)) {
      chars.free();
      return Capture.TooLarge;
    }
  }
  reply.takeRows(chars, reason);
  return Capture.Ok;
}
