// Where the plain part of a JSON string ends, 64 bytes at a time.

import { lanes } from '../bytes/vector';

/**
 * Address of the first byte in [ptr, end) that is a quote, a backslash or a control character, none
 * of which stands for itself in a string (RFC 8259, section 7); `end` when there is none.
 */
export function plainEnd(ptr: usize, end: usize): usize {
  const quote = lanes(0x22);
  const backslash = lanes(0x5c);
  const space = lanes(0x20);
  while (ptr + 64 <= end) {
    const a = v128.load(ptr);
    const b = v128.load(ptr, 16);
    const c = v128.load(ptr, 32);
    const d = v128.load(ptr, 48);
    const hitA = v128.or(v128.or(i8x16.eq(a, quote), i8x16.eq(a, backslash)), i8x16.lt_u(a, space));
    const hitB = v128.or(v128.or(i8x16.eq(b, quote), i8x16.eq(b, backslash)), i8x16.lt_u(b, space));
    const hitC = v128.or(v128.or(i8x16.eq(c, quote), i8x16.eq(c, backslash)), i8x16.lt_u(c, space));
    const hitD = v128.or(v128.or(i8x16.eq(d, quote), i8x16.eq(d, backslash)), i8x16.lt_u(d, space));
    if (v128.any_true(v128.or(v128.or(hitA, hitB), v128.or(hitC, hitD)))) {
      const low = (<u64>i8x16.bitmask(hitA)) | ((<u64>i8x16.bitmask(hitB)) << 16);
      const high = (<u64>i8x16.bitmask(hitC)) | ((<u64>i8x16.bitmask(hitD)) << 16);
      return ptr + <usize>ctz(low | (high << 32));
    }
    ptr += 64;
  }
  while (ptr + 16 <= end) {
    const a = v128.load(ptr);
    const hit = i8x16.bitmask(
      v128.or(v128.or(i8x16.eq(a, quote), i8x16.eq(a, backslash)), i8x16.lt_u(a, space)),
    );
    if (hit) return ptr + <usize>ctz(hit);
    ptr += 16;
  }
  for (; ptr < end; ptr++) {
    const c = load<u8>(ptr);
    if (c == 0x22 || c == 0x5c || c < 0x20) break;
  }
  return ptr;
}
