// Base64 (RFC 4648, section 4) by characters: they are checked, decoded, encoded, and bytes in them
// are moved to another bit position. A character carries 6 bits, so the bytes begin 0, 2 or 4 bits
// into a character: these bits before them are their `lead`.

import { lanes } from '../bytes/vector';

/** The lead of byte `offset` of the data: bits before it in its first character, 0, 2 or 4. */
@inline
export function leadOf(offset: u64): i32 {
  return 2 * <i32>(offset % 3);
}

/** Characters of a base64 text of `bytes` bytes, padding included. */
@inline
export function encodedLength(bytes: u64): u64 {
  return ((bytes + 2) / 3) * 4;
}

/** How many characters carry bits of the first `bytes` bytes: a text without its padding. */
@inline
export function carriers(bytes: u64): u64 {
  return (bytes * 8 + 5) / 6;
}

// Tables for swizzles. They are in memory so that loops keep them in registers (see
// bytes/vector.ts).

// By the character less '+': 0 for + / and the digits, else 255. The places from 1 to 3 are for , -
// .
// prettier-ignore
const NO_LETTERS = memory.data<u8>([255, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
// By the high nibble of a character: what is added to it for its value. '/' has the nibble of '+',
// and is moved to place 1.
// prettier-ignore
const TO_VALUE = memory.data<i8>([0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0]);
// By the class of a value: what is added to it for its character. 0 is lower case, 1 to 10 are
// digits, 11 is '+', 12 is '/', 13 is upper case.
// prettier-ignore
const TO_CHAR = memory.data<i8>([71, -4, -4, -4, -4, -4, -4, -4, -4, -4, -4, -19, -16, 65, 0, 0]);

// Factors of a dot product, which puts the first of two numbers of 12 bits above the second.
const JOIN_TWELVE = memory.data<u16>([4096, 1, 4096, 1, 4096, 1, 4096, 1]);
// The three bytes of the 24 bits in each lane of 32, from the highest on.
const BIG_ENDIAN = memory.data<u8>([2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, 255, 255, 255, 255]);
// Puts three bytes into each lane of 32 bits, the first one highest: they are four characters'
// bits.
// prettier-ignore
const BYTES_TO_LANES = memory.data<u8>([2, 1, 0, 255, 5, 4, 3, 255, 8, 7, 6, 255, 11, 10, 9, 255]);
// The bits of two characters in each lane of 16 bits.
const PAIRS = memory.data<u16>([0xfff, 0xfff, 0xfff, 0xfff, 0xfff, 0xfff, 0xfff, 0xfff]);

/** Value of one character of the alphabet; -1 for any other. */
export function valueOf(char: u8): i32 {
  if (char - 0x41 < 26) return char - 0x41;
  if (char - 0x61 < 26) return char - 0x61 + 26;
  if (char - 0x30 < 10) return char - 0x30 + 52;
  if (char == 0x2b) return 62;
  return char == 0x2f ? 63 : -1;
}

/** Character of a value 0 to 63. */
export function charOf(value: i32): u8 {
  if (value < 26) return <u8>(0x41 + value);
  if (value < 52) return <u8>(0x61 + value - 26);
  if (value < 62) return <u8>(0x30 + value - 52);
  return value == 62 ? 0x2b : 0x2f;
}

/** Whether all of [ptr, end) is in the alphabet; padding is not. */
export function inAlphabet(ptr: usize, end: usize): bool {
  const fold = lanes(0x20);
  const a = lanes(0x61);
  const z = lanes(25);
  const plus = lanes(0x2b);
  const table = v128.load(NO_LETTERS);
  let bad = v128.xor(fold, fold);
  while (ptr + 64 <= end) {
    const one = strangers(v128.load(ptr), fold, a, z, plus, table);
    const two = strangers(v128.load(ptr, 16), fold, a, z, plus, table);
    const three = strangers(v128.load(ptr, 32), fold, a, z, plus, table);
    const four = strangers(v128.load(ptr, 48), fold, a, z, plus, table);
    bad = v128.or(bad, v128.or(v128.or(one, two), v128.or(three, four)));
    ptr += 64;
  }
  while (ptr + 16 <= end) {
    bad = v128.or(bad, strangers(v128.load(ptr), fold, a, z, plus, table));
    ptr += 16;
  }
  if (v128.any_true(bad)) return false;
  for (; ptr < end; ptr++) if (valueOf(load<u8>(ptr)) < 0) return false;
  return true;
}

const STRIDE: usize = 4096;

/** The first byte in [ptr, end) that is outside the alphabet; `end` where there is none. */
export function alphabetEnd(ptr: usize, end: usize): usize {
  while (ptr < end && inAlphabet(ptr, min(ptr + STRIDE, end))) ptr = min(ptr + STRIDE, end);
  while (ptr < end && inAlphabet(ptr, min(ptr + 64, end))) ptr = min(ptr + 64, end);
  while (ptr < end && valueOf(load<u8>(ptr)) >= 0) ptr++;
  return ptr;
}

/**
 * Lanes of `chars` that are outside the alphabet are not zero: in lower case they are no letter
 * from a to z, and the table does not have them.
 */
// @ts-ignore: decorator
@inline
function strangers(chars: v128, fold: v128, a: v128, z: v128, plus: v128, table: v128): v128 {
  const letter = i8x16.sub_sat_u(i8x16.sub(v128.or(chars, fold), a), z);
  return v128.andnot(letter, i8x16.swizzle(table, i8x16.sub(chars, plus)));
}

/** A character with the highest `top` bits of the first, and the other bits of the second. */
export function mix(first: u8, second: u8, top: i32): u8 {
  const keep = 0x3f & ~(0x3f >> top);
  return charOf((valueOf(first) & keep) | (valueOf(second) & ~keep & 0x3f));
}

/**
 * Moves bytes in characters by `by` (2 or 4) bits to the left: character i of `dst` has the low
 * bits of character i of `src`, above the high bits of the one behind it. Reads n + 1 characters of
 * the alphabet at `src` and writes n at `dst`; the two do not overlap.
 */
export function shiftLeft(dst: usize, src: usize, n: usize, by: i32): void {
  const back = 6 - by;
  let i: usize = 0;
  if (n > 32) {
    const mask = lanes(0x3f);
    const slash = lanes(0x2f);
    const toValue = v128.load(TO_VALUE);
    const toChar = v128.load(TO_CHAR);
    const letters = lanes(26);
    const upper = lanes(13);
    const digits = lanes(51);
    let here = valuesOf(v128.load(src), slash, toValue);
    for (; i + 32 <= n; i += 16) {
      const after = valuesOf(v128.load(src + i + 16), slash, toValue);
      // The values one place further on.
      const next = i8x16.shuffle(here, after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
      const high = v128.and(i8x16.shl(here, by), mask);
      const moved = v128.or(high, i8x16.shr_u(next, back));
      v128.store(dst + i, charsOf(moved, digits, letters, upper, toChar));
      here = after;
    }
  }
  for (; i < n; i++) store<u8>(dst + i, joined(load<u8>(src + i), load<u8>(src + i + 1), by));
}

/** The values, 0 to 63, of 16 characters of the alphabet. */
// @ts-ignore: decorator
@inline
function valuesOf(chars: v128, slash: v128, toValue: v128): v128 {
  const kind = i8x16.add(i8x16.shr_u(chars, 4), i8x16.eq(chars, slash));
  return i8x16.add(chars, i8x16.swizzle(toValue, kind));
}

/** The characters of 16 values, 0 to 63. */
// @ts-ignore: decorator
@inline
function charsOf(values: v128, digits: v128, letters: v128, upper: v128, toChar: v128): v128 {
  const kind = v128.or(i8x16.sub_sat_u(values, digits), v128.and(i8x16.lt_s(values, letters), upper));
  return i8x16.add(values, i8x16.swizzle(toChar, kind));
}

/** What becomes of a character when the bytes move `by` bits to the left; `next` is behind it. */
export function joined(here: u8, next: u8, by: i32): u8 {
  return charOf(((valueOf(here) << by) & 0x3f) | (valueOf(next) >> (6 - by)));
}

/** Decodes `chars` characters of the alphabet at `src` to `dst`. Returns how many bytes. */
export function decode(src: usize, chars: usize, dst: usize): usize {
  const start = dst;
  const end = src + chars;
  if (chars >= 16) {
    const slash = lanes(0x2f);
    const toValue = v128.load(TO_VALUE);
    const twelve = v128.load(JOIN_TWELVE);
    const order = v128.load(BIG_ENDIAN);
    // A vector has 12 bytes and 4 more, which the next one overwrites. The last one is cut.
    for (; src + 32 <= end; src += 16) {
      v128.store(dst, bytesOf(valuesOf(v128.load(src), slash, toValue), twelve, order));
      dst += 12;
    }
    const bytes = bytesOf(valuesOf(v128.load(src), slash, toValue), twelve, order);
    v128.store64_lane(dst, bytes, 0);
    v128.store32_lane(dst, bytes, 2, 8);
    dst += 12;
    src += 16;
  }
  let bits: u32 = 0;
  let have = 0;
  for (; src < end; src++) {
    bits = (bits << 6) | (<u32>valueOf(load<u8>(src)));
    have += 6;
    if (have >= 8) {
      have -= 8;
      store<u8>(dst++, <u8>(bits >> have));
    }
  }
  return dst - start;
}

/** The 12 bytes that 16 values 0 to 63 stand for, in the first lanes. */
// @ts-ignore: decorator
@inline
function bytesOf(values: v128, twelve: v128, order: v128): v128 {
  // First there are 12 bits in each lane of 16, then 24 in each of 32.
  const even = i16x8.shr_u(i16x8.shl(values, 8), 2);
  const pairs = v128.or(even, i16x8.shr_u(values, 8));
  return i8x16.swizzle(i32x4.dot_i16x8_s(pairs, twelve), order);
}

/**
 * Decodes `len` bytes that begin `lead` (0, 2, 4) bits into the first of the characters at `src`,
 * all of the alphabet, to `dst`. Reads no character behind theirs and writes nothing behind `dst +
 * len`.
 */
export function decodeRow(src: usize, lead: i32, dst: usize, len: usize): void {
  const end = dst + len;
  // At most two bytes; from there on four characters are three bytes.
  if (lead == 2 && dst < end) {
    store<u8>(dst++, <u8>((valueOf(load<u8>(src)) << 4) | (valueOf(load<u8>(src, 1)) >> 2)));
    if (dst < end) store<u8>(dst++, <u8>((valueOf(load<u8>(src, 1)) << 6) | valueOf(load<u8>(src, 2))));
    src += 3;
  } else if (lead == 4 && dst < end) {
    store<u8>(dst++, <u8>((valueOf(load<u8>(src)) << 6) | valueOf(load<u8>(src, 1))));
    src += 2;
  }
  decode(src, <usize>carriers(<u64>(end - dst)), dst);
}

/**
 * Encodes `len` bytes at `src` to `dst` without padding, a last partial character with zero bits;
 * returns the end.
 */
export function encode(src: usize, len: usize, dst: usize): usize {
  let bits: u32 = 0;
  let have = 0;
  const end = src + len;
  if (len >= 16) {
    const toLanes = v128.load(BYTES_TO_LANES);
    const pairs = v128.load(PAIRS);
    const mask = lanes(0x3f);
    const toChar = v128.load(TO_CHAR);
    const letters = lanes(26);
    const upper = lanes(13);
    const digits = lanes(51);
    // Sixteen bytes are read, of which twelve become characters.
    for (; src + 16 <= end; src += 12, dst += 16) {
      const four = i8x16.swizzle(v128.load(src), toLanes);
      const two = v128.and(v128.or(i32x4.shr_u(four, 12), i32x4.shl(four, 16)), pairs);
      const values = v128.and(v128.or(i16x8.shr_u(two, 6), i16x8.shl(two, 8)), mask);
      v128.store(dst, charsOf(values, digits, letters, upper, toChar));
    }
  }
  for (; src < end; src++) {
    bits = (bits << 8) | load<u8>(src);
    have += 8;
    while (have >= 6) {
      have -= 6;
      store<u8>(dst++, charOf((bits >> have) & 0x3f));
    }
  }
  if (have > 0) store<u8>(dst++, charOf((bits << (6 - have)) & 0x3f));
  return dst;
}
