// Integers and booleans as Pydantic reads them in its lax mode, in which vLLM's request classes are
// validated: it also takes 4.0, "4" and true for integers, and "yes" and 1.0 for booleans
// (docs.pydantic.dev, "Conversion Table"). test/fixtures/vllm_requests has what vLLM 0.30 said of
// every spelling that is told apart here.

import { Ascii, equalsIgnoreCase } from '../bytes/ascii';
import { Member } from './request_body';

/** What a value is read as. */
export const enum Reading {
  /** The value is an integer, or a boolean, and is in `laxValue`. */
  Fine,
  Null,
  /** The value is neither null nor of the type that was asked for. */
  Wrong,
  /** The value is spelled in a way that is not read here: with escapes, or very many digits. */
  Unsure,
}

/** The last value that was `Fine`. Booleans are 0 or 1; integers are clamped to `MOST`. */
export let laxValue: i64 = 0;

/** No cap and no count of an engine is as large. Ten times as much fits into 64 bits. */
export const MOST: i64 = 1 << 58;
/** Longer spellings of numbers are not read. Pydantic itself takes up to 4300 digits. */
const LONGEST: usize = 64;
/**
 * A decimal fraction of so many significant digits is no integer as a double either, and an integer
 * of so many digits is the same number as a double.
 */
const EXACT_DIGITS: i32 = 15;

const POINT: u8 = 0x2e;
const UNDERSCORE: u8 = 0x5f;

const TRUE: Ascii[] = [
  new Ascii('true'),
  new Ascii('t'),
  new Ascii('yes'),
  new Ascii('y'),
  new Ascii('on'),
  new Ascii('1'),
];
const FALSE: Ascii[] = [
  new Ascii('false'),
  new Ascii('f'),
  new Ascii('no'),
  new Ascii('n'),
  new Ascii('off'),
  new Ascii('0'),
];

/** Reads a member of the body at `body` as an integer. */
export function readInteger(member: Member, body: usize): Reading {
  const ptr = body + <usize>member.valueStart;
  const end = body + <usize>member.valueEnd;
  switch (member.first) {
    case 0x22:
      return readText(ptr + 1, end - 1);
    case 0x5b:
    case 0x7b:
      return Reading.Wrong;
    default:
      return readScalar(ptr, end);
  }
}

/** Reads a member of the body at `body` as a boolean. */
export function readBoolean(member: Member, body: usize): Reading {
  if (member.first != 0x22) {
    const reading = readInteger(member, body);
    // Of numbers only those are booleans that equal 0 or 1.
    return reading == Reading.Fine && laxValue != 0 && laxValue != 1 ? Reading.Wrong : reading;
  }
  const ptr = body + <usize>member.valueStart + 1;
  const len = <usize>(member.valueEnd - member.valueStart) - 2;
  if (hasEscape(ptr, ptr + len)) return Reading.Unsure;
  for (let i = 0; i < TRUE.length; i++) if (equalsIgnoreCase(ptr, len, TRUE[i])) return fine(1);
  for (let i = 0; i < FALSE.length; i++) if (equalsIgnoreCase(ptr, len, FALSE[i])) return fine(0);
  return Reading.Wrong;
}

function fine(value: i64): Reading {
  laxValue = value;
  return Reading.Fine;
}

/** Reads a literal or a number of JSON. */
function readScalar(ptr: usize, end: usize): Reading {
  const first = load<u8>(ptr);
  if (first == 0x6e) return Reading.Null;
  if (first == 0x74) return fine(1);
  if (first == 0x66) return fine(0);
  const minus = first == 0x2d;
  if (minus) ptr++;
  // What is left are NaN, Infinity, which Python's `json` takes for numbers, and numbers.
  if (!isDigit(ptr)) return Reading.Wrong;
  if (digitsEnd(ptr, end) == end) return wholeNumber(ptr, end, minus);
  return end - ptr > LONGEST ? Reading.Unsure : readDouble(ptr, end, minus);
}

/** Reads digits. Python's integers may have any size. */
function wholeNumber(ptr: usize, end: usize, minus: bool): Reading {
  let value: i64 = 0;
  for (; ptr < end; ptr++) {
    if (load<u8>(ptr) != UNDERSCORE) value = min<i64>(value * 10 + (load<u8>(ptr) - 0x30), MOST);
  }
  return fine(minus ? -value : value);
}

/**
 * Reads a number with a fraction or an exponent, which Python's `json` makes a double. Pydantic
 * takes a double for an integer if it has no fraction and fits into 64 bits.
 */
function readDouble(ptr: usize, end: usize, minus: bool): Reading {
  let value: i64 = 0;
  let digits = 0;
  // The power of ten that `value` is multiplied by.
  let shift = 0;
  let behind = false;
  for (; ptr < end && (load<u8>(ptr) | 0x20) != 0x65; ptr++) {
    if (load<u8>(ptr) == POINT) {
      behind = true;
      continue;
    }
    const digit = load<u8>(ptr) - 0x30;
    if (behind) shift--;
    if (digits > 0 || digit != 0) digits++;
    if (digits <= EXACT_DIGITS) value = value * 10 + digit;
  }
  if (digits == 0) return fine(0);
  if (digits > EXACT_DIGITS) return Reading.Unsure;
  shift += readExponent(ptr, end);
  for (; shift < 0 && value % 10 == 0; shift++, digits--) value /= 10;
  // Below the smallest double it would be zero.
  if (shift < -300 || digits + shift > EXACT_DIGITS) return Reading.Unsure;
  if (shift < 0) return Reading.Wrong;
  for (; shift > 0; shift--) value *= 10;
  return fine(minus ? -value : value);
}

/** The exponent at `ptr`, clamped to 10000 either way; 0 when there is none. */
function readExponent(ptr: usize, end: usize): i32 {
  if (ptr == end) return 0;
  ptr++;
  const down = load<u8>(ptr) == 0x2d;
  if (!isDigit(ptr)) ptr++;
  let exponent = 0;
  for (; ptr < end; ptr++) exponent = min(exponent * 10 + (load<u8>(ptr) - 0x30), 10000);
  return down ? -exponent : exponent;
}

/**
 * Reads what stands in a string: white space around it, a sign, digits with single underscores
 * between them, and a fraction of zeros.
 */
function readText(ptr: usize, end: usize): Reading {
  if (end - ptr > LONGEST || hasEscape(ptr, end) || !isAscii(ptr, end)) return Reading.Unsure;
  while (ptr < end && load<u8>(ptr) == 0x20) ptr++;
  while (ptr < end && load<u8>(end - 1) == 0x20) end--;
  const minus = ptr < end && load<u8>(ptr) == 0x2d;
  if (minus || (ptr < end && load<u8>(ptr) == 0x2b)) ptr++;
  const start = ptr;
  for (; ptr < end && (isDigit(ptr) || load<u8>(ptr) == UNDERSCORE); ptr++) {
    if (load<u8>(ptr) != UNDERSCORE) continue;
    if (ptr == start || ptr + 1 == end || !isDigit(ptr - 1) || !isDigit(ptr + 1)) return Reading.Wrong;
  }
  const whole = ptr;
  if (whole == start) return Reading.Wrong;
  if (ptr < end) {
    if (load<u8>(ptr++) != POINT || ptr == end) return Reading.Wrong;
    for (; ptr < end; ptr++) if (load<u8>(ptr) != 0x30) return Reading.Wrong;
  }
  return wholeNumber(start, whole, minus);
}

function isDigit(ptr: usize): bool {
  return load<u8>(ptr) - 0x30 < 10;
}

/** Address of the first byte in [ptr, end) that is no digit. */
function digitsEnd(ptr: usize, end: usize): usize {
  while (ptr < end && isDigit(ptr)) ptr++;
  return ptr;
}

function hasEscape(ptr: usize, end: usize): bool {
  for (; ptr < end; ptr++) if (load<u8>(ptr) == 0x5c) return true;
  return false;
}

function isAscii(ptr: usize, end: usize): bool {
  for (; ptr < end; ptr++) if (load<u8>(ptr) >= 0x80) return false;
  return true;
}
