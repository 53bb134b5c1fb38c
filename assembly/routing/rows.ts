// The prompt rows that prefill returned, kept as the base64 characters they came in.

import { Block, fits } from '../bytes/block';
import { Source } from '../bytes/rope';
import { carriers, inAlphabet, joined, leadOf, shiftLeft, valueOf } from './base64';
import { Dtype, NpyHeader } from './npy';
import { Reason } from './reason';

/** A place outside the VM's memory for pieces of rows. */
export abstract class Parking {
  /** Stores a copy of `len` bytes at `ptr`; returns its slot, -1 when there is no room. */
  abstract store(ptr: usize, len: usize): i32;

  /** The piece in a slot (owned); null when it is lost. */
  abstract load(slot: i32): Block | null;

  /** Empties a slot of `len` bytes. */
  abstract drop(slot: i32, len: usize): void;
}

/** Characters of rows, in pieces of one length (the last may be shorter), in memory or parked. */
export abstract class RowChars extends Source {
  /** The first and the last of them. */
  first: u8 = 0;
  last: u8 = 0;
  length: u64 = 0;

  /** Adds a piece, which is taken over; false when there is no room. */
  add(piece: Block): bool {
    const first = load<u8>(piece.ptr);
    const last = load<u8>(piece.end - 1);
    const len = piece.len;
    if (!this.keep(piece)) return false;
    if (this.length == 0) this.first = first;
    this.last = last;
    this.length += len;
    return true;
  }

  protected abstract keep(piece: Block): bool;
  /** Whether they take the VM's memory; else the parking's. */
  abstract get held(): bool;
  abstract free(): void;
}


@final
export class HeldChars extends RowChars {
  private pieces: Block[] = [];

  constructor(private pieceLen: u64) {
    super();
  }

  get held(): bool {
    return true;
  }

  protected keep(piece: Block): bool {
    this.pieces.push(piece);
    return true;
  }

  fetch(offset: u64, len: u64): u64 {
    const piece = this.pieces[<i32>(offset / this.pieceLen)];
    const skip = offset % this.pieceLen;
    this.ptr = piece.ptr + <usize>skip;
    return min(len, <u64>piece.len - skip);
  }

  free(): void {
    for (let i = 0; i < this.pieces.length; i++) this.pieces[i].free();
    this.pieces.length = 0;
  }
}


@final
export class ParkedChars extends RowChars {
  private slots: i32[] = [];
  /** The piece that was fetched last. */
  private current: Block | null = null;
  private currentPiece: i32 = -1;

  constructor(
    private parking: Parking,
    private pieceLen: u64,
  ) {
    super();
  }

  get held(): bool {
    return false;
  }

  protected keep(piece: Block): bool {
    const slot = this.parking.store(piece.ptr, piece.len);
    piece.free();
    if (slot < 0) return false;
    this.slots.push(slot);
    return true;
  }

  fetch(offset: u64, len: u64): u64 {
    const piece = <i32>(offset / this.pieceLen);
    if (piece != this.currentPiece) {
      this.forget();
      if (!fits(this.pieceLen)) return 0;
      this.current = this.parking.load(this.slots[piece]);
      this.currentPiece = piece;
    }
    const block = this.current;
    const skip = offset % this.pieceLen;
    if (block === null || block.len <= skip) return 0;
    this.ptr = block.ptr + <usize>skip;
    return min(len, <u64>block.len - skip);
  }

  free(): void {
    this.forget();
    for (let i = 0; i < this.slots.length; i++) {
      this.parking.drop(this.slots[i], <usize>min(this.pieceLen, this.length - <u64>i * this.pieceLen));
    }
    this.slots.length = 0;
  }

  private forget(): void {
    const block = this.current;
    if (block !== null) block.free();
    this.current = null;
    this.currentPiece = -1;
  }
}

/** A part of other characters, which are borrowed. */
@final
export class SliceChars extends RowChars {
  constructor(
    private whole: RowChars,
    private from: u64,
    length: u64,
  ) {
    super();
    this.length = length;
  }

  get held(): bool {
    return false;
  }

  protected keep(piece: Block): bool {
    return false;
  }

  fetch(offset: u64, len: u64): u64 {
    const got = this.whole.fetch(this.from + offset, len);
    this.ptr = this.whole.ptr;
    return got;
  }

  free(): void {}
}

/**
 * Prompt rows of prefill, of shape (rows, layers, top_k), for the tokens from `start` on. The first character may carry
 * `lead` bits of something else before them, the last one anything behind.
 */
@final
export class PromptRows {
  rows: u64 = 0;
  /** First token that has a row. */
  start: u64 = 0;
  dtype: Dtype = Dtype.None;
  /** 0 where the format does not tell. */
  layers: u64 = 0;
  topK: u64 = 0;
  rowBytes: u64 = 0;

  /** By lead / 2: the same rows at another bit position, made when an array needs it. */
  private aligned: StaticArray<RowChars | null> = [null, null, null];

  /** Takes over `chars`, which have been checked. */
  constructor(
    chars: RowChars,
    private lead: i32,
  ) {
    this.aligned[lead >> 1] = chars;
  }

  /** Takes over the characters of an array with this header, from `firstCarrier(header)` on. */
  static ofNpy(header: NpyHeader, chars: RowChars): PromptRows {
    const rows = new PromptRows(chars, leadOf(header.size));
    rows.rows = header.rows;
    rows.dtype = header.dtype;
    rows.layers = header.layers;
    rows.topK = header.topK;
    rows.rowBytes = header.rowBytes;
    return rows;
  }

  /** Bytes of all rows. */
  get bytes(): u64 {
    return this.rows * this.rowBytes;
  }

  /** Token behind the last one that has a row. */
  get end(): u64 {
    return this.start + this.rows;
  }

  /** Characters that the rows take of the VM's memory, or of the parking. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null && chars.held) sum += chars.length;
    }
    return sum;
  }

  get parkedBytes(): u64 {
    const chars = this.aligned[this.lead >> 1]!;
    return chars.held ? 0 : chars.length;
  }

  /** The characters with the rows starting `lead` bits into the first one (borrowed); null when memory is short. */
  at(lead: i32): RowChars | null {
    const known = this.aligned[lead >> 1];
    if (known !== null) return known;
    const len = <usize>((this.bytes * 8 + lead + 5) / 6);
    if (!fits(len)) return null;
    const moved = Block.alloc(len);
    if (!move(this.aligned[this.lead >> 1]!, this.lead, moved.ptr, moved.end, lead)) {
      moved.free();
      return null;
    }
    const chars = new HeldChars(len);
    chars.add(moved);
    this.aligned[lead >> 1] = chars;
    return chars;
  }

  /** Whether some row is a sentinel: all bits 1. Only of signed integers; `false` also where rows are lost. */
  get hasSentinel(): bool {
    if (this.dtype != Dtype.I2 && this.dtype != Dtype.I4) return false;
    const chars = this.aligned[this.lead >> 1]!;
    for (let row: u64 = 0, from = <u64>this.lead; row < this.rows; row++, from += this.rowBytes * 8) {
      if (allOnesIn(chars, from, from + this.rowBytes * 8)) return true;
    }
    return false;
  }

  free(): void {
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null) chars.free();
      this.aligned[i] = null;
    }
  }
}

/**
 * Moves payload that starts `from` bits into `source` to `to` bits into [target, end), as much as that takes; false when
 * some of it is lost.
 */
export function move(source: RowChars, from: i32, target: usize, end: usize, to: i32): bool {
  const by = from - to;
  const shift = by > 0 ? by : by + 6;
  // What lies before and behind the payload reads as zero bits.
  let before: u8 = 0x41;
  let dst = target;
  for (let offset: u64 = 0; offset < source.length && dst < end;) {
    // A move to the left makes a character of two.
    const most = <u64>(end - dst) + 1;
    const got = <usize>source.fetch(offset, min(source.length - offset, most));
    if (got == 0) return false;
    const src = source.ptr;
    if (offset > 0 || by < 0) store<u8>(dst++, joined(before, load<u8>(src), shift));
    if (dst + got - 1 > end) {
      shiftLeft(dst, src, end - dst, shift);
      return true;
    }
    shiftLeft(dst, src, got - 1, shift);
    dst += got - 1;
    before = load<u8>(src + got - 1);
    offset += got;
  }
  if (dst < end) store<u8>(dst, joined(before, 0x41, shift));
  return true;
}

/**
 * Checks rows before any use: base64, and no sentinel. They come in pieces of whole rows (but for the character that two
 * pieces share) through `check`.
 */
export class RowsCheck {
  /** Whether a row can be a sentinel: its piece then needs the character behind it. */
  readonly signed: bool;
  private rowBits: u64;
  private lead: u64;

  constructor(header: NpyHeader) {
    this.signed = header.dtype == Dtype.I2 || header.dtype == Dtype.I4;
    this.rowBits = header.rowBytes * 8;
    this.lead = leadOf(header.size);
  }

  /** The characters of `rows` rows at [ptr, end). */
  check(ptr: usize, end: usize, rows: u64): Reason {
    if (!inAlphabet(ptr, end)) return stranger(ptr, end);
    if (!this.signed) return Reason.None;
    // Every byte of a sentinel is 0xff, so every character inside it is `/`.
    for (let row: u64 = 0, from = this.lead; row < rows; row++, from += this.rowBits) {
      if (allOnes(ptr, from, from + this.rowBits)) return Reason.Sentinel;
    }
    return Reason.None;
  }
}

/** What the first character outside the alphabet says: a quote ends the string before its rows. */
function stranger(ptr: usize, end: usize): Reason {
  while (ptr < end && valueOf(load<u8>(ptr)) >= 0) ptr++;
  return ptr < end && load<u8>(ptr) == 0x22 ? Reason.Size : Reason.Base64;
}

/** Rows whose characters make a piece of about `size` characters without a shared bit: a multiple of three. */
export function rowsInPiece(header: NpyHeader, size: u64): u64 {
  return max<u64>(size / (header.rowBytes * 4), 1) * 3;
}

/** Whether the bits [from, to) of the characters are all 1. Most rows are decided by their first character. */
function allOnes(chars: usize, from: u64, to: u64): bool {
  while (from < to) {
    const lead = <i32>(from % 6);
    const left = to - from;
    const width = min<i32>(6 - lead, <i32>min<u64>(left, 6));
    const wanted = (((1 << width) - 1) << (6 - lead - width)) & 0x3f;
    if ((valueOf(load<u8>(chars + <usize>(from / 6))) & wanted) != wanted) return false;
    from += width;
  }
  return true;
}

/** As `allOnes`, for characters in pieces. */
function allOnesIn(chars: RowChars, from: u64, to: u64): bool {
  while (from < to) {
    const at = from / 6;
    const until = min(to, (at + 1) * 6);
    if (chars.fetch(at, 1) == 0 || !allOnes(chars.ptr, from - at * 6, until - at * 6)) return false;
    from = until;
  }
  return true;
}

/** Offset in the array's string of the first character that carries bits of its rows. */
export function firstCarrier(header: NpyHeader): u64 {
  return (header.size * 8) / 6;
}

/** Characters that carry bits of the array's rows. */
export function rowCarriers(header: NpyHeader): u64 {
  return carriers(header.fileBytes) - firstCarrier(header);
}
