// Lists of unsigned integers, such as token ids, 16 bytes at a time. Prompts are the longest thing a request has.

import { lanes } from '../bytes/vector';

/** What the last byte before the end that `numbersEnd` found was. */
export const enum Last {
  /** A comma, or the space behind one: a value must come. */
  Comma,
  /** A digit of a number that may go on. */
  Digit,
  /** A zero that is the number. */
  Zero,
}

export let numbersLast: Last = Last.Comma;
/** Commas passed. */
export let numbersCommas: i32 = 0;

/**
 * End of a run of integers and commas that starts at `ptr`, where a value must come. One space may follow a comma. The run
 * ends, at a multiple of 16 bytes, before anything else, right or wrong.
 */
export function numbersEnd(ptr: usize, end: usize): usize {
  const zero = lanes(0x30);
  const ten = lanes(10);
  const comma = lanes(0x2c);
  const space = lanes(0x20);
  // Whether the byte before is a digit, a comma, a zero that begins a number.
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
    // A zero that begins a number is all of it.
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
