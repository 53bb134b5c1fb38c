// The header of a .npy file, read and written as NumPy does it (numpy/lib/_format_impl.py; NEP 1).

import { readDecimal, writeDecimal } from '../bytes/ascii';
import { Reason } from './reason';

/** Bytes that tell how long the header is: magic, version, and a length of 2 or 4 bytes. */
export const PREFIX_BYTES: usize = 12;
/** NumPy refuses longer headers, too (`max_header_size`). */
export const MAX_HEADER_BYTES: usize = 10000;
/** Room for the header that `writeHeader` makes. */
export const WRITTEN_HEADER_BYTES: usize = 256;

/** NumPy leaves room for this many digits, so that the first dimension can grow in place. */
const GROWTH_AXIS_MAX_DIGITS: usize = 21;
const ALIGN: usize = 64;
/** The largest dimension that is taken: no engine has more, and products stay in 64 bits. */
export const MAX_DIMENSION: i64 = 1 << 31;
/** The longest row that is taken. */
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

/** What the header of an array says: its dtype, and its shape (rows, layers, top_k) in C order. */
@final
export class NpyHeader {
  /** Bytes of the header itself, before the first row. */
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

/** Reads `header.size` from the first `PREFIX_BYTES` bytes of a header (borrowed). */
export function readPrefix(ptr: usize, header: NpyHeader): Reason {
  if (memory.compare(ptr, MAGIC, 6) != 0) return Reason.Magic;
  const major = load<u8>(ptr, 6);
  if (major < 1 || major > 3 || load<u8>(ptr, 7) != 0) return Reason.Version;
  header.size = major == 1 ? 10 + <u64>load<u16>(ptr, 8) : 12 + <u64>load<u32>(ptr, 8);
  return header.size > MAX_HEADER_BYTES || header.size < PREFIX_BYTES ? Reason.Header : Reason.None;
}

/** Keys of the dictionary, a bit each. */
const enum Key {
  None = 0,
  Descr = 1,
  FortranOrder = 2,
  Shape = 4,
  All = 7,
}

// The reading of one dictionary, within one call of `readHeader`.

/** The text that is left: [at, end). */
let at: usize = 0;
let end: usize = 0;
/** The text between quotes that was passed last. */
let text: usize = 0;
let textLen: usize = 0;

/**
 * Reads the dictionary of a header whose `size` is known into `header`; `ptr` (borrowed) has
 * `header.size` bytes. It takes what Python's `ast.literal_eval`, which NumPy uses, takes for a
 * dictionary of exactly the three keys.
 */
export function readHeader(ptr: usize, header: NpyHeader): Reason {
  end = ptr + <usize>header.size;
  at = ptr + (load<u8>(ptr, 6) == 1 ? 10 : 12);
  if (!passes(0x7b)) return Reason.Header;
  let seen = 0;
  let reason = Reason.None;
  while (peek() != 0x7d) {
    const key = passText() ? keyNamed() : Key.None;
    if (!passes(0x3a) || key == Key.None || (seen & key) != 0) return Reason.Header;
    seen |= key;
    // A structured dtype is a list: nothing that an engine sends as routing.
    if (key == Key.Descr && peek() == 0x5b) return Reason.Dtype;
    const found = readValue(key, header);
    if (found == Reason.Header) return found;
    // Of two things that are wrong, the dtype is told.
    if (found == Reason.Dtype || reason == Reason.None) reason = found;
    if (!passes(0x2c) && peek() != 0x7d) return Reason.Header;
  }
  at++;
  peek();
  if (seen != Key.All || at != end) return Reason.Header;
  if (reason == Reason.None) {
    const slots = header.layers * header.topK;
    if (slots > MAX_ROW_BYTES || slots * itemSize(header.dtype) > MAX_ROW_BYTES) reason = Reason.Shape;
  }
  return reason;
}

function keyNamed(): Key {
  if (is(text, textLen, 'descr')) return Key.Descr;
  if (is(text, textLen, 'fortran_order')) return Key.FortranOrder;
  return is(text, textLen, 'shape') ? Key.Shape : Key.None;
}

/** Reads a value. `Header`: it cannot be read; else what is wrong with it. */
function readValue(key: Key, header: NpyHeader): Reason {
  if (key == Key.Shape) return readShape(header);
  if (key == Key.Descr) {
    if (!passText()) return Reason.Header;
    header.dtype = dtypeOf(text, textLen);
    return header.dtype == Dtype.None ? Reason.Dtype : Reason.None;
  }
  if (passesWord('True')) return Reason.Order;
  return passesWord('False') ? Reason.None : Reason.Header;
}

function readShape(header: NpyHeader): Reason {
  if (!passes(0x28)) return Reason.Header;
  let dimensions = 0;
  let tooLarge = false;
  while (peek() != 0x29) {
    const digits = at;
    while (at < end && load<u8>(at) - 0x30 <= 9) at++;
    const value = readDecimal(digits, at - digits);
    // Python has no integers with a zero before other digits.
    if (value < 0 || (at - digits > 1 && load<u8>(digits) == 0x30)) return Reason.Header;
    if (dimensions == 0) header.rows = value;
    else if (dimensions == 1) header.layers = value;
    else if (dimensions == 2) header.topK = value;
    dimensions++;
    tooLarge = tooLarge || value > MAX_DIMENSION;
    if (!passes(0x2c) && peek() != 0x29) return Reason.Header;
  }
  at++;
  if (tooLarge || dimensions != 3 || header.layers == 0 || header.topK == 0) return Reason.Shape;
  return Reason.None;
}

/**
 * Writes the header that `numpy.save` gives an array of `rows` rows of `dtype` with the layers and
 * top_k of `like` (version 1); `ptr` has room for `WRITTEN_HEADER_BYTES`. Returns its length, a
 * multiple of 64.
 */
export function writeHeader(ptr: usize, like: NpyHeader, dtype: Dtype, rows: u64): usize {
  memory.copy(ptr, MAGIC, 6);
  store<u16>(ptr, 1, 6);
  let to = put(ptr + 10, "{'descr': '");
  to = put(to, dtypeCode(dtype));
  to = put(to, "', 'fortran_order': False, 'shape': (");
  const digits = writeDecimal(rows, to);
  to = put(to + digits, ', ');
  to += writeDecimal(like.layers, to);
  to = put(to, ', ');
  to += writeDecimal(like.topK, to);
  to = put(to, '), }');
  memory.fill(to, 0x20, GROWTH_AXIS_MAX_DIGITS - digits);
  to += GROWTH_AXIS_MAX_DIGITS - digits;
  const pad = ALIGN - ((to + 1 - ptr) % ALIGN);
  memory.fill(to, 0x20, pad);
  to += pad;
  store<u8>(to++, 0x0a);
  store<u16>(ptr, <u16>(to - ptr - 10), 8);
  return to - ptr;
}

/** The name of a dtype in a header. */
export function dtypeCode(dtype: Dtype): string {
  return dtype == Dtype.U1 ? '|u1' : dtype == Dtype.U2 ? '<u2' : dtype == Dtype.I2 ? '<i2' : '<i4';
}

function dtypeOf(ptr: usize, len: usize): Dtype {
  for (let dtype = Dtype.U1; dtype <= Dtype.I4; dtype++) if (is(ptr, len, dtypeCode(dtype))) return dtype;
  return Dtype.None;
}

/** The next byte that is not white space, which is passed; 0 at the end. */
function peek(): u8 {
  for (; at < end; at++) {
    const c = load<u8>(at);
    if (c != 0x20 && c != 0x0a && c != 0x09) return c;
  }
  return 0;
}

/** Passes `char`. False when something else comes. */
function passes(char: u8): bool {
  if (peek() != char) return false;
  at++;
  return true;
}

function passesWord(word: string): bool {
  const len = <usize>word.length;
  peek();
  if (at + len > end || !is(at, len, word)) return false;
  at += len;
  return true;
}

/** Passes a quoted text without escapes: see `text`. False when something else comes. */
function passText(): bool {
  const quote = peek();
  if (quote != 0x27 && quote != 0x22) return false;
  text = ++at;
  while (at < end && load<u8>(at) != quote) if (load<u8>(at++) == 0x5c) return false;
  textLen = at++ - text;
  return at <= end;
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
