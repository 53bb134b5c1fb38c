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

/** Characters of rows, in memory as one block or parked in pieces. */
export abstract class RowChars extends Source {
  /** The first and the last of them. */
  first: u8 = 0;
  last: u8 = 0;
  abstract get length(): u64;
  /** Bytes that they take of the VM's memory, and of the parking. */
  abstract get heldBytes(): u64;
  abstract get parkedBytes(): u64;
  abstract free(): void;
}


@final
export class HeldChars extends RowChars {
  /** Takes over `block`, which is not empty. */
  constructor(readonly block: Block) {
    super();
    this.first = load<u8>(block.ptr);
    this.last = load<u8>(block.end - 1);
  }

  get length(): u64 {
    return this.block.len;
  }

  get heldBytes(): u64 {
    return this.block.len;
  }

  get parkedBytes(): u64 {
    return 0;
  }

  fetch(offset: u64, len: u64): u64 {
    this.ptr = this.block.ptr + <usize>offset;
    return len;
  }

  free(): void {
    this.block.free();
  }
}


@final
export class ParkedChars extends RowChars {
  private slots: i32[] = [];
  private total: u64 = 0;
  /** The piece that was fetched last. */
  private current: Block | null = null;
  private currentPiece: i32 = -1;

  /** All pieces but the last have `pieceLen` characters. */
  constructor(
    private parking: Parking,
    private pieceLen: u64,
  ) {
    super();
  }

  get length(): u64 {
    return this.total;
  }

  get heldBytes(): u64 {
    return 0;
  }

  get parkedBytes(): u64 {
    return this.total;
  }

  /** Parks the next piece (borrowed); false when there is no room. */
  add(ptr: usize, len: usize): bool {
    const slot = this.parking.store(ptr, len);
    if (slot < 0) return false;
    if (this.total == 0) this.first = load<u8>(ptr);
    this.last = load<u8>(ptr + len - 1);
    this.slots.push(slot);
    this.total += len;
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
      this.parking.drop(this.slots[i], <usize>min(this.pieceLen, this.total - <u64>i * this.pieceLen));
    }
    this.slots.length = 0;
    this.total = 0;
  }

  private forget(): void {
    const block = this.current;
    if (block !== null) block.free();
    this.current = null;
    this.currentPiece = -1;
  }
}

/**
 * Rows of shape (rows, layers, top_k). `chars` are exactly the characters that carry bits of them; the first of these
 * may carry `lead` bits of something else before, the last one anything behind.
 */
@final
export class PromptRows {
  /** By lead / 2: the same rows at another bit position, made when an array needs it. */
  private aligned: StaticArray<RowChars | null> = [null, null, null];
  /** Bytes of all rows. */
  readonly bytes: u64;
  readonly dtype: Dtype;
  readonly rows: u64;
  readonly layers: u64;
  readonly topK: u64;
  private lead: i32;

  /** Takes over `chars`, of the array with this header, from `firstCarrier(header)` on; they have been checked. */
  constructor(header: NpyHeader, chars: RowChars) {
    this.bytes = header.rows * header.rowBytes;
    this.dtype = header.dtype;
    this.rows = header.rows;
    this.layers = header.layers;
    this.topK = header.topK;
    this.lead = leadOf(header.size);
    this.aligned[this.lead >> 1] = chars;
  }

  /** Bytes of the VM's memory that the rows take. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null) sum += chars.heldBytes;
    }
    return sum;
  }

  /** Bytes of the parking that the rows take. */
  get parkedBytes(): u64 {
    return this.aligned[this.lead >> 1]!.parkedBytes;
  }

  /**
   * The characters with the rows starting `lead` bits into the first one (borrowed); null when memory is short, or the
   * rows are parked at another position.
   */
  at(lead: i32): RowChars | null {
    const known = this.aligned[lead >> 1];
    if (known !== null) return known;
    const original = this.aligned[this.lead >> 1]!;
    if (original.heldBytes == 0) return null;
    original.fetch(0, original.length);
    const len = <usize>((this.bytes * 8 + lead + 5) / 6);
    if (!fits(len)) return null;
    const moved = Block.alloc(len);
    move(original.ptr, <usize>original.length, this.lead, moved, lead);
    const chars = new HeldChars(moved);
    this.aligned[lead >> 1] = chars;
    return chars;
  }

  free(): void {
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null) chars.free();
      this.aligned[i] = null;
    }
  }
}

/** Moves payload that starts `from` bits into the `len` characters at `src` to `to` bits into `target`. */
function move(src: usize, len: usize, from: i32, target: Block, to: i32): void {
  const by = from - to;
  const shift = by > 0 ? by : by + 6;
  let dst = target.ptr;
  // What lies before and behind the payload reads as zero bits.
  if (by < 0) store<u8>(dst++, joined(0x41, load<u8>(src), shift));
  shiftLeft(dst, src, len - 1, shift);
  dst += len - 1;
  if (dst < target.end) store<u8>(dst, joined(load<u8>(src + len - 1), 0x41, shift));
}

/**
 * Checks rows before any use: base64, and no sentinel. They come in pieces of whole rows (but for the character that two
 * pieces share) through `check`.
 */
export class RowsCheck {
  private signed: bool;
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

/** Offset in the array's string of the first character that carries bits of its rows. */
export function firstCarrier(header: NpyHeader): u64 {
  return (header.size * 8) / 6;
}

/** Characters that carry bits of the array's rows. */
export function rowCarriers(header: NpyHeader): u64 {
  return carriers(header.fileBytes) - firstCarrier(header);
}
