// Lists of unsigned integers such as token ids, 16 bytes at a time: the prompt is the longest thing
// in a request.

import { lanes } from '../bytes/vector';

/** What a run that `numbersEnd` has passed ends with. */
export const enum Last {
  /** A comma, or the space behind one: a value must follow. */
  Comma,
  /** A digit of a number that may go on. */
  Digit,
  /** A zero that begins a number, and so is all of it: no digit may follow. */
  Zero,
}

/** What the run of the last `numbersEnd` ends with. */
export let numbersLast: Last = Last.Comma;
/** Commas in the run of the last `numbersEnd`. */
export let numbersCommas: i32 = 0;

/**
 * Passes integers and commas from `ptr` on, where a value must come; one space may follow a comma.
 * Returns where it has stopped: a multiple of 16 bytes behind `ptr`, before the first 16 bytes in
 * which there is anything else, right or wrong.
 */
export function numbersEnd(ptr: usize, end: usize): usize {
  const zero = lanes(0x30);
  const ten = lanes(10);
  const comma = lanes(0x2c);
  const space = lanes(0x20);
  // 1 when the last byte before `ptr` is a digit, a comma, a zero that begins a number.
  let digitBefore: i32 = 0;
  let commaBefore: i32 = 1;
  let zeroBefore: i32 = 0;
  let count = 0;
  for (; ptr + 16 <= end; ptr += 16) {
    const bytes = v128.load(ptr);
    const digits = i8x16.bitmask(i8x16.lt_u(i8x16.sub(bytes, zero), ten));
    const commas = i8x16.bitmask(i8x16.eq(bytes, comma));
    const spaces = i8x16.bitmask(i8x16.eq(bytes, space));
    if ((digits | commas | spaces) != 0xffff) break;
    const afterDigit = (digits << 1) | digitBefore;
    const afterComma = (commas << 1) | commaBefore;
    // A zero that begins a number is all of it (RFC 8259, section 6).
    const leading = i8x16.bitmask(i8x16.eq(bytes, zero)) & ~afterDigit;
    const afterZero = (leading << 1) | zeroBefore;
    if (((commas & ~afterDigit) | (spaces & ~afterComma) | (digits & afterZero)) & 0xffff) break;
    count += popcnt(commas);
    digitBefore = (digits >> 15) & 1;
    commaBefore = (commas >> 15) & 1;
    zeroBefore = (leading >> 15) & 1;
  }
  numbersCommas = count;
  numbersLast = digitBefore == 0 ? Last.Comma : zeroBefore != 0 ? Last.Zero : Last.Digit;
  return ptr;
}
