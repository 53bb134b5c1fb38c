// The header of a .npy file, read and written as NumPy does (numpy/lib/_format_impl.py; NEP 1).

import { readDecimal, writeDecimal } from '../bytes/ascii';
import { Reason } from './reason';

/** Bytes that tell how long the header is: magic, version, and the length in its longer form. */
export const PREFIX_BYTES: usize = 12;
/** NumPy refuses longer headers too (`max_header_size`). */
export const MAX_HEADER_BYTES: usize = 10000;
/** Room for the header that `writeHeader` makes. */
export const WRITTEN_HEADER_BYTES: usize = 256;

/** Digits that NumPy leaves room for, so that the first dimension can grow in place. */
const GROWTH_AXIS_MAX_DIGITS: usize = 21;
const ALIGN: usize = 64;
/** No engine counts so far; keeps products of dimensions inside 64 bits. */
export const MAX_DIMENSION: i64 = 1 << 31;
export const MAX_ROW_BYTES: u64 = 1 << 20;

const MAGIC = memory.data<u8>([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59]);

export const enum Dtype {
  None,
  U1,
  U2,
  I2,
  I4,
}


@inline
export function itemSize(dtype: Dtype): u64 {
  return dtype == Dtype.U1 ? 1 : dtype == Dtype.I4 ? 4 : 2;
}

/** What a routed-experts array announces: shape (rows, layers, top_k), C order. */
@final
export class NpyHeader {
  /** Bytes before the first row. */
  size: u64 = 0;
  dtype: Dtype = Dtype.None;
  rows: u64 = 0;
  layers: u64 = 0;
  topK: u64 = 0;

  /** Bytes of one row. */
  get rowBytes(): u64 {
    return this.layers * this.topK * itemSize(this.dtype);
  }

  /** Bytes of the whole file. */
  get fileBytes(): u64 {
    return this.size + this.rows * this.rowBytes;
  }
}

/** Length of the whole header from its first `PREFIX_BYTES` bytes into `header.size`. */
export function readPrefix(ptr: usize, header: NpyHeader): Reason {
  if (memory.compare(ptr, MAGIC, 6) != 0) return Reason.Magic;
  const major = load<u8>(ptr, 6);
  if (major < 1 || major > 3 || load<u8>(ptr, 7) != 0) return Reason.Version;
  header.size = major == 1 ? 10 + <u64>load<u16>(ptr, 8) : 12 + <u64>load<u32>(ptr, 8);
  return header.size > MAX_HEADER_BYTES || header.size < PREFIX_BYTES ? Reason.Header : Reason.None;
}

/** Reads the dictionary of a header whose `size` is known; `ptr` borrowed, `header.size` bytes. */
export function readHeader(ptr: usize, header: NpyHeader): Reason {
  const end = ptr + <usize>header.size;
  let at = space(ptr + (load<u8>(ptr, 6) == 1 ? 10 : 12), end);
  if (byteAt(at, end) != 0x7b) return Reason.Header;
  at = space(at + 1, end);
  let seenDescr = false;
  let seenOrder = false;
  let seenShape = false;
  let reason = Reason.None;
  while (byteAt(at, end) != 0x7d) {
    const keyEnd = quotedEnd(at, end);
    if (keyEnd == 0) return Reason.Header;
    const key = at + 1;
    const keyLen = keyEnd - 1 - key;
    at = space(keyEnd, end);
    if (byteAt(at, end) != 0x3a) return Reason.Header;
    at = space(at + 1, end);
    if (is(key, keyLen, 'descr') && !seenDescr) {
      seenDescr = true;
      const descrEnd = quotedEnd(at, end);
      // A structured dtype is a list: nothing that an engine sends as routing.
      if (descrEnd == 0) return byteAt(at, end) == 0x5b ? Reason.Dtype : Reason.Header;
      header.dtype = dtypeOf(at + 1, descrEnd - 2 - at);
      if (header.dtype == Dtype.None) reason = Reason.Dtype;
      at = descrEnd;
    } else if (is(key, keyLen, 'fortran_order') && !seenOrder) {
      seenOrder = true;
      if (at + 4 <= end && is(at, 4, 'True')) {
        if (reason == Reason.None) reason = Reason.Order;
        at += 4;
      } else if (at + 5 <= end && is(at, 5, 'False')) at += 5;
      else return Reason.Header;
    } else if (is(key, keyLen, 'shape') && !seenShape) {
      seenShape = true;
      if (byteAt(at, end) != 0x28) return Reason.Header;
      at = space(at + 1, end);
      let dimensions = 0;
      while (byteAt(at, end) != 0x29) {
        const digits = at;
        while (byteAt(at, end) - 0x30 <= 9) at++;
        const value = readDecimal(digits, at - digits);
        // Python has no integers with a zero before other digits.
        if (value < 0 || (at - digits > 1 && load<u8>(digits) == 0x30)) return Reason.Header;
        if (dimensions == 0) header.rows = value;
        else if (dimensions == 1) header.layers = value;
        else if (dimensions == 2) header.topK = value;
        dimensions++;
        if (value > MAX_DIMENSION && reason == Reason.None) reason = Reason.Shape;
        at = space(at, end);
        if (byteAt(at, end) == 0x2c) at = space(at + 1, end);
        else if (byteAt(at, end) != 0x29) return Reason.Header;
      }
      at++;
      if (reason == Reason.None && (dimensions != 3 || header.layers == 0 || header.topK == 0)) {
        reason = Reason.Shape;
      }
    } else return Reason.Header;
    at = space(at, end);
    if (byteAt(at, end) == 0x2c) at = space(at + 1, end);
    else if (byteAt(at, end) != 0x7d) return Reason.Header;
  }
  if (!seenDescr || !seenOrder || !seenShape || space(at + 1, end) != end) return Reason.Header;
  if (reason == Reason.None) {
    const slots = header.layers * header.topK;
    if (slots > MAX_ROW_BYTES || slots * itemSize(header.dtype) > MAX_ROW_BYTES) reason = Reason.Shape;
  }
  return reason;
}

/**
 * Writes the header that `numpy.save` gives an array of `rows` rows of `dtype` with the layers and top_k of `like`
 * (version 1); `ptr` has room for `WRITTEN_HEADER_BYTES`. Returns its length, a multiple of 64.
 */
export function writeHeader(ptr: usize, like: NpyHeader, dtype: Dtype, rows: u64): usize {
  memory.copy(ptr, MAGIC, 6);
  store<u16>(ptr, 1, 6);
  let at = put(ptr + 10, "{'descr': '");
  at = put(at, dtypeCode(dtype));
  at = put(at, "', 'fortran_order': False, 'shape': (");
  const digits = writeDecimal(rows, at);
  at = put(at + digits, ', ');
  at += writeDecimal(like.layers, at);
  at = put(at, ', ');
  at += writeDecimal(like.topK, at);
  at = put(at, '), }');
  memory.fill(at, 0x20, GROWTH_AXIS_MAX_DIGITS - digits);
  at += GROWTH_AXIS_MAX_DIGITS - digits;
  const pad = ALIGN - ((at + 1 - ptr) % ALIGN);
  memory.fill(at, 0x20, pad);
  at += pad;
  store<u8>(at++, 0x0a);
  store<u16>(ptr, <u16>(at - ptr - 10), 8);
  return at - ptr;
}

/** As a header names it. */
export function dtypeCode(dtype: Dtype): string {
  return dtype == Dtype.U1 ? '|u1' : dtype == Dtype.U2 ? '<u2' : dtype == Dtype.I2 ? '<i2' : '<i4';
}

function dtypeOf(ptr: usize, len: usize): Dtype {
  for (let dtype = Dtype.U1; dtype <= Dtype.I4; dtype++) if (is(ptr, len, dtypeCode(dtype))) return dtype;
  return Dtype.None;
}


@inline
function byteAt(at: usize, end: usize): u8 {
  return at < end ? load<u8>(at) : 0;
}

function space(at: usize, end: usize): usize {
  while (at < end && (load<u8>(at) == 0x20 || load<u8>(at) == 0x0a || load<u8>(at) == 0x09)) at++;
  return at;
}

/** End of the quoted text at `at`, behind its closing quote; 0 when there is none. */
function quotedEnd(at: usize, end: usize): usize {
  const quote = byteAt(at, end);
  if (quote != 0x27 && quote != 0x22) return 0;
  for (at++; at < end && load<u8>(at) != quote; at++) if (load<u8>(at) == 0x5c) return 0;
  return at < end ? at + 1 : 0;
}

function is(ptr: usize, len: usize, text: string): bool {
  if (len != <usize>text.length) return false;
  for (let i = 0; i < text.length; i++) if (load<u8>(ptr + i) != text.charCodeAt(i)) return false;
  return true;
}

function put(ptr: usize, text: string): usize {
  for (let i = 0; i < text.length; i++) store<u8>(ptr + i, <u8>text.charCodeAt(i));
  return ptr + text.length;
}
