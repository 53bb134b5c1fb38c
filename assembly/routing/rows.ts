// The prompt rows that prefill returned, kept as the base64 characters they came in.

import { Block, fits } from '../bytes/block';
import { carriers, inAlphabet, leadOf, shiftLeft, valueOf } from './base64';
import { Dtype, NpyHeader } from './npy';
import { Reason } from './reason';

/**
 * Rows of shape (rows, layers, top_k). `chars` holds exactly the characters that carry bits of them; the first of these
 * may carry `lead` bits of something else before, the last one anything behind.
 */
@final
export class PromptRows {
  /** By lead / 2: the same rows at another bit position, made when an array needs it. */
  private aligned: StaticArray<Block | null> = [null, null, null];
  /** Bytes of all rows. */
  readonly bytes: u64;
  readonly dtype: Dtype;
  readonly rows: u64;
  readonly layers: u64;
  readonly topK: u64;
  private lead: i32;

  /** Takes over `chars`: characters `charsAt(header)` and on of the array with this header, not yet checked. */
  constructor(header: NpyHeader, chars: Block) {
    this.bytes = header.rows * header.rowBytes;
    this.dtype = header.dtype;
    this.rows = header.rows;
    this.layers = header.layers;
    this.topK = header.topK;
    this.lead = leadOf(header.size);
    this.aligned[this.lead >> 1] = chars;
  }

  /** Bytes of one row. */
  get rowBytes(): u64 {
    return this.bytes / this.rows;
  }

  /** Characters held, for memory accounting. */
  get heldChars(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < 3; i++) {
      const block = this.aligned[i];
      if (block !== null) sum += block.len;
    }
    return sum;
  }

  /** Whether the characters are base64 and no row is a sentinel. Asked once, before any use. */
  check(): Reason {
    const chars = this.original();
    if (!inAlphabet(chars.ptr, chars.end)) return Reason.Base64;
    const signed = this.dtype == Dtype.I2 || this.dtype == Dtype.I4;
    return signed && this.hasSentinel(chars.ptr) ? Reason.Sentinel : Reason.None;
  }

  /** The characters with the rows starting `lead` bits into the first one (borrowed); null when memory is short. */
  at(lead: i32): Block | null {
    const known = this.aligned[lead >> 1];
    if (known !== null) return known;
    const source = this.original();
    const len = <usize>((this.bytes * 8 + lead + 5) / 6);
    // One character of zero bits before and behind the source stands for what lies outside the payload.
    if (!fits(<u64>len + source.len + 2)) return null;
    const padded = Block.alloc(source.len + 2);
    store<u8>(padded.ptr, 0x41);
    memory.copy(padded.ptr + 1, source.ptr, source.len);
    store<u8>(padded.ptr + 1 + source.len, 0x41);
    const moved = Block.alloc(len);
    const by = this.lead - lead;
    if (by > 0) shiftLeft(moved.ptr, padded.ptr + 1, len, by);
    else shiftLeft(moved.ptr, padded.ptr, len, 6 + by);
    padded.free();
    this.aligned[lead >> 1] = moved;
    return moved;
  }

  free(): void {
    for (let i = 0; i < 3; i++) {
      const block = this.aligned[i];
      if (block !== null) block.free();
      this.aligned[i] = null;
    }
  }

  private original(): Block {
    return this.aligned[this.lead >> 1]!;
  }

  /** Whether all entries of some row are -1: every byte of it is 0xff, so every character inside it is `/`. */
  private hasSentinel(chars: usize): bool {
    const bits = this.rowBytes * 8;
    for (let row: u64 = 0, from: u64 = this.lead; row < this.rows; row++, from += bits) {
      if (allOnes(chars, from, from + bits)) return true;
    }
    return false;
  }
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
