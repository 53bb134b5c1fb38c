// Puts rows into a wider dtype, so that the rows of both legs have the same one, as NumPy promotes
// dtypes (numpy.result_type). The legs' dtypes differ where engines choose the dtype by the largest
// id in an array.
//
//   characters, `from` ──▶ bytes ──▶ ids of `to` ──▶ characters at another bit position

import { charOf, decode, encode, valueOf } from './base64';
import { Reader } from '../bytes/rope';
import { Dtype, itemSize } from './npy';

/** The narrowest dtype that has all values of both. */
export function commonDtype(a: Dtype, b: Dtype): Dtype {
  if (a == b || b == Dtype.U1) return a;
  return a == Dtype.U1 ? b : Dtype.I4;
}

/** How many characters are widened at a time; four are three bytes. */
export const WIDEN_CHUNK: usize = 4096;
/**
 * Room for the bytes of such a chunk, two bytes that were left over before it, and a vector behind
 * them; and room for the same as ids of 32 bits.
 */
const NARROW = memory.data(3136, 16);
const WIDE = memory.data(12416, 16);

/**
 * Widens the ids of rows piece by piece, from characters to characters. The rows begin some bits
 * into the first character that is pushed, and some bits into the first one that is written. It
 * holds no memory.
 */
@final
export class Widener extends Reader {
  /** The address where the next character is written. */
  out: usize = 0;

  private from: Dtype = Dtype.None;
  private to: Dtype = Dtype.None;
  /** Bits that are no whole byte yet. Below 0: as many bits to come are not of the rows. */
  private inBits: u32 = 0;
  private inHave: i32 = 0;
  /** The first byte of an id whose second byte has not come; -1: none. */
  private half: i32 = -1;
  /** Bits that are to be written and are no whole character yet. */
  private outBits: u32 = 0;
  private outHave: i32 = 0;

  /**
   * Rows begin that are widened from `from` to `to`. They begin `inLead` (0, 2, 4) bits into the
   * first character to come, and are written behind the first `outLead` (0, 2, 4) bits of the
   * character `before`.
   */
  begin(from: Dtype, to: Dtype, inLead: i32, outLead: i32, before: u8): void {
    this.from = from;
    this.to = to;
    this.inBits = 0;
    this.inHave = -inLead;
    this.half = -1;
    this.outBits = (<u32>valueOf(before)) >> (6 - outLead);
    this.outHave = outLead;
  }

  /** How many characters `push` will write for the next `chars` characters. */
  lengthOf(chars: u64): u64 {
    const bits = <i64>this.inHave + <i64>chars * 6;
    const bytes = max<i64>(bits, 0) / 8 + (this.half >= 0 ? 1 : 0);
    const ids = <u64>bytes / itemSize(this.from);
    return (<u64>this.outHave + ids * itemSize(this.to) * 8) / 6;
  }

  /** Reads the next `len` characters at `ptr` (borrowed), and writes what they become. */
  push(ptr: usize, len: usize): void {
    const end = ptr + len;
    while (ptr < end) {
      const next = min(ptr + WIDEN_CHUNK, end);
      this.widen(ptr, next);
      ptr = next;
    }
  }

  /** All characters have been pushed: writes the bits that are left, with zeros behind them. */
  end(): void {
    if (this.outHave > 0) store<u8>(this.out++, charOf((this.outBits << (6 - this.outHave)) & 0x3f));
    this.outHave = 0;
  }

  private widen(ptr: usize, end: usize): void {
    let to: usize = NARROW;
    if (this.half >= 0) store<u8>(to++, <u8>this.half);
    while (ptr < end && this.inHave != 0) to = this.read(ptr++, to);
    const whole = (end - ptr) & ~3;
    to += decode(ptr, whole, to);
    ptr += whole;
    while (ptr < end) to = this.read(ptr++, to);
    const size = <usize>itemSize(this.from);
    const ids = (to - NARROW) / size;
    this.half = ids * size < to - NARROW ? <i32>load<u8>(to - 1) : -1;
    widenIds(ids, this.from, this.to);
    this.write(WIDE, WIDE + ids * <usize>itemSize(this.to));
  }

  /** Reads a character; a byte that is whole now goes to `to`. Returns the end of the bytes. */
  private read(ptr: usize, to: usize): usize {
    this.inBits = (this.inBits << 6) | (<u32>valueOf(load<u8>(ptr)));
    this.inHave += 6;
    if (this.inHave < 8) return to;
    this.inHave -= 8;
    store<u8>(to, <u8>(this.inBits >> this.inHave));
    return to + 1;
  }

  /** Writes the bytes in [ptr, end) as characters. */
  private write(ptr: usize, end: usize): void {
    while (ptr < end && this.outHave != 0) this.put(load<u8>(ptr++));
    const whole = ((end - ptr) / 3) * 3;
    this.out = encode(ptr, whole, this.out);
    ptr += whole;
    while (ptr < end) this.put(load<u8>(ptr++));
  }

  private put(byte: u8): void {
    this.outBits = (this.outBits << 8) | byte;
    this.outHave += 8;
    while (this.outHave >= 6) {
      this.outHave -= 6;
      store<u8>(this.out++, charOf((this.outBits >> this.outHave) & 0x3f));
    }
  }
}

/** Widens `n` ids from `NARROW` into `WIDE`. Signed ones keep their sign. */
function widenIds(n: usize, from: Dtype, to: Dtype): void {
  if (from == Dtype.U1 && to != Dtype.I4) {
    for (let i: usize = 0; i < n; i += 16) {
      const ids = v128.load(NARROW + i);
      v128.store(WIDE + i * 2, i16x8.extend_low_i8x16_u(ids));
      v128.store(WIDE + i * 2, i16x8.extend_high_i8x16_u(ids), 16);
    }
  } else if (from == Dtype.U1) {
    for (let i: usize = 0; i < n; i += 8) {
      const ids = i16x8.extend_low_i8x16_u(v128.load64_zero(NARROW + i));
      v128.store(WIDE + i * 4, i32x4.extend_low_i16x8_u(ids));
      v128.store(WIDE + i * 4, i32x4.extend_high_i16x8_u(ids), 16);
    }
  } else {
    const signed = from == Dtype.I2;
    for (let i: usize = 0; i < n; i += 8) {
      const ids = v128.load(NARROW + i * 2);
      const low = signed ? i32x4.extend_low_i16x8_s(ids) : i32x4.extend_low_i16x8_u(ids);
      const high = signed ? i32x4.extend_high_i16x8_s(ids) : i32x4.extend_high_i16x8_u(ids);
      v128.store(WIDE + i * 4, low);
      v128.store(WIDE + i * 4, high, 16);
    }
  }
}
