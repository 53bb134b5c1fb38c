// Base64 (RFC 4648, section 4) by characters: check, decode, encode, and move payload to another bit position.
// A character carries 6 bits, so a payload byte starts 0, 2 or 4 bits into a character: its `lead`.

/** Bits before the payload in the character where byte `offset` of the data begins: 0, 2 or 4. */
@inline
export function leadOf(offset: u64): i32 {
  return 2 * <i32>(offset % 3);
}

/** Characters of a base64 text of `bytes` bytes, padding included. */
@inline
export function encodedLength(bytes: u64): u64 {
  return ((bytes + 2) / 3) * 4;
}

/** Characters that carry bits of the first `bytes` bytes: the text without its padding. */
@inline
export function carriers(bytes: u64): u64 {
  return (bytes * 8 + 5) / 6;
}

// The class of a character from its two nibbles: a bit common to both tables marks a character outside the alphabet.
//   high nibble   2: '+' '/'   3: digits   4, 6: letters from A/a   5, 7: letters from P/p   others: none
// prettier-ignore
@inline
function lowClasses(): v128 {
  return i8x16(0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1a, 0x1b, 0x1b, 0x1b, 0x1a);
}

// prettier-ignore
@inline
function highClasses(): v128 {
  return i8x16(0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x10);
}

/** Nonzero lanes where `chars` is outside the alphabet. */
@inline
function strangers(chars: v128, lows: v128, highs: v128): v128 {
  const low = i8x16.swizzle(lows, v128.and(chars, i8x16.splat(0x0f)));
  const high = i8x16.swizzle(highs, i8x16.shr_u(chars, 4));
  return v128.and(low, high);
}

/** Values 0 to 63 of 16 characters of the alphabet. */
// prettier-ignore
@inline
function valuesOf(chars: v128): v128 {
  // What to add, by high nibble; '/' shares its nibble with '+' and is moved to the free place 1.
  const roll = i8x16(0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0);
  const slash = i8x16.eq(chars, i8x16.splat(0x2f));
  return i8x16.add(chars, i8x16.swizzle(roll, i8x16.add(i8x16.shr_u(chars, 4), slash)));
}

/** Characters of 16 values 0 to 63. */
// prettier-ignore
@inline
function charsOf(values: v128): v128 {
  // What to add, by class: 0 lower case, 1 to 10 digits, 11 '+', 12 '/', 13 upper case.
  const shift = i8x16(71, -4, -4, -4, -4, -4, -4, -4, -4, -4, -4, -19, -16, 65, 0, 0);
  const upper = v128.and(i8x16.lt_s(values, i8x16.splat(26)), i8x16.splat(13));
  const classes = v128.or(i8x16.sub_sat_u(values, i8x16.splat(51)), upper);
  return i8x16.add(values, i8x16.swizzle(shift, classes));
}

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
  const lows = lowClasses();
  const highs = highClasses();
  let bad = i64x2.splat(0);
  while (ptr + 64 <= end) {
    const a = strangers(v128.load(ptr), lows, highs);
    const b = strangers(v128.load(ptr, 16), lows, highs);
    const c = strangers(v128.load(ptr, 32), lows, highs);
    const d = strangers(v128.load(ptr, 48), lows, highs);
    bad = v128.or(bad, v128.or(v128.or(a, b), v128.or(c, d)));
    ptr += 64;
  }
  while (ptr + 16 <= end) {
    bad = v128.or(bad, strangers(v128.load(ptr), lows, highs));
    ptr += 16;
  }
  if (v128.any_true(bad)) return false;
  for (; ptr < end; ptr++) if (valueOf(load<u8>(ptr)) < 0) return false;
  return true;
}

/** `top` bits of the first character, the rest from the second; both in the alphabet. */
export function mix(first: u8, second: u8, top: i32): u8 {
  const keep = 0x3f & ~(0x3f >> top);
  return charOf((valueOf(first) & keep) | (valueOf(second) & ~keep & 0x3f));
}

/**
 * Moves payload by bits: dst[i] = low bits of src[i] above high bits of src[i + 1], `by` (2 or 4) bits to the left.
 * Reads n + 1 characters of the alphabet at `src`, writes n at `dst`; the two do not overlap.
 */
export function shiftLeft(dst: usize, src: usize, n: usize, by: i32): void {
  const mask = i8x16.splat(0x3f);
  const back = 6 - by;
  let i: usize = 0;
  if (n > 32) {
    let here = valuesOf(v128.load(src));
    for (; i + 32 <= n; i += 16) {
      const after = valuesOf(v128.load(src + i + 16));
      // The values one place further on.
      const next = i8x16.shuffle(here, after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
      const high = v128.and(i8x16.shl(here, by), mask);
      v128.store(dst + i, charsOf(v128.or(high, i8x16.shr_u(next, back))));
      here = after;
    }
  }
  for (; i < n; i++) store<u8>(dst + i, joined(load<u8>(src + i), load<u8>(src + i + 1), by));
}

/** The character that follows from two neighbours when the payload moves `by` bits to the left. */
export function joined(here: u8, next: u8, by: i32): u8 {
  return charOf(((valueOf(here) << by) & 0x3f) | (valueOf(next) >> (6 - by)));
}

/** Decodes `chars` characters of the alphabet at `src` to `dst`; returns the number of whole bytes. */
export function decode(src: usize, chars: usize, dst: usize): usize {
  let bits: u32 = 0;
  let have = 0;
  const start = dst;
  for (const end = src + chars; src < end; src++) {
    bits = (bits << 6) | (<u32>valueOf(load<u8>(src)));
    have += 6;
    if (have >= 8) {
      have -= 8;
      store<u8>(dst++, <u8>(bits >> have));
    }
  }
  return dst - start;
}

/** Encodes `len` bytes at `src` to `dst` without padding, a last partial character with zero bits; returns the end. */
export function encode(src: usize, len: usize, dst: usize): usize {
  let bits: u32 = 0;
  let have = 0;
  for (const end = src + len; src < end; src++) {
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
