// Walks the rows of one array while its base64 characters come. It looks for rows of zeros and for
// sentinels in all rows, and gives the rows of a sample to the examination. A row is only copied if
// two pieces share it, or if it may be the last one of an array whose length is not known.
//
//   characters  |......|......|......|......|......|       6 bits each
//   rows            [         row         )[    row ...    begin 0, 2 or 4 bits into a character
//   probe                 [ 8 chars )                      if not all zero, the row is not, either

import { Block, fits } from '../bytes/block';
import { Reader } from '../bytes/rope';
import { lanes } from '../bytes/vector';
import { valueOf } from './base64';
import { Examination, Leg, RowCheck } from './examination';
import { Dtype, itemSize } from './npy';
import { Reason } from './reason';

/** How many rows of a sample are between the first and the last one. */
const SPREAD: u64 = 64;

/** The characters whose bits are all 0 and all 1, and eight of each. */
const ZERO: u8 = 0x41;
const ONES: u8 = 0x2f;
const ZEROS_8: u64 = 0x4141414141414141;
const ONES_8: u64 = 0x2f2f2f2f2f2f2f2f;
/** In this many bits eight whole characters lie, whatever the lead. */
const PROBE_BITS: usize = 53;
/** Bytes of room behind the characters of a row, which vectors may read. */
const SLACK: usize = 16;

/** Which rows of one array are examined, by their index in the array. */
@final
class Sample {
  /** The next row to examine. */
  next: u64 = 0;
  private check: RowCheck = RowCheck.Off;
  private rows: i64 = 0;
  /** How many rows have been passed. */
  private turn: u64 = 0;

  /** An array of `rows` rows begins; -1: not known, and the last row is not in the sample. */
  begin(check: RowCheck, rows: i64): void {
    this.check = check;
    this.rows = rows;
    this.turn = 0;
    this.next = check == RowCheck.Off ? u64.MAX_VALUE : 0;
  }

  /** Moves `next` to the next row of the sample. */
  advance(): void {
    const last = <u64>(this.rows - 1);
    if (this.check == RowCheck.All || (this.rows >= 0 && last <= SPREAD + 1)) this.next++;
    else if (this.rows < 0) {
      // The distance of the rows doubles as more of them come. However many there are, 64 to 128 of
      // them are then at even distances.
      let distance: u64 = 1;
      while (this.next + 1 >= distance * SPREAD * 2) distance *= 2;
      this.next = this.next - (this.next % distance) + distance;
    } else this.next = ++this.turn > SPREAD + 1 ? u64.MAX_VALUE : (this.turn * last) / (SPREAD + 1);
  }
}

/** A copy of the characters of one row. */
@final
class Carry {
  /** Where the characters are, and how many of them. */
  chars: usize = 0;
  len: usize = 0;
  /** How many bits into the first one the row begins. */
  lead: i32 = 0;
  private block: Block | null = null;

  /** Empties the copy and makes room for `room` characters. Returns false when memory is short. */
  begin(room: usize, lead: i32): bool {
    let block = this.block;
    if (block === null || block.len < room) {
      this.free();
      if (!fits(room)) return false;
      block = Block.alloc(room);
      this.block = block;
    }
    this.chars = block.ptr;
    this.len = 0;
    this.lead = lead;
    return true;
  }

  add(ptr: usize, len: usize): void {
    memory.copy(this.chars + this.len, ptr, len);
    this.len += len;
  }

  free(): void {
    const block = this.block;
    if (block !== null) block.free();
    this.block = null;
  }
}


@final
export class RowReader extends Reader {
  /**
   * The first fault: `Sentinel`, `Experts` (of which the examination knows the place) or `Memory`.
   * Nothing is read after it.
   */
  reason: Reason = Reason.None;

  private examination: Examination | null = null;
  private leg: Leg = Leg.Prefill;
  private dtype: Dtype = Dtype.None;
  private layers: u64 = 0;
  private topK: u64 = 0;
  private firstRow: i64 = 0;
  /** Whether rows of zeros, and sentinels, are faults. */
  private zeros: bool = false;
  private sentinels: bool = false;
  private sample: Sample = new Sample();
  /** How many rows are read: as many as the array has, or all where that is not known. */
  private limit: u64 = 0;

  private rowBits: usize = 0;
  /** Index of the row that comes next, or that is open: some of its characters have been read. */
  private row: u64 = 0;
  /** Bits from the next character to the start of that row; below 0 where it is open. */
  private at: i64 = 0;
  /** Bits from the start of a row to its probe. */
  private probe: usize = 0;

  /** Of the open row: whether all bits are 0, whether all are 1, whether it is being copied. */
  private allZero: bool = false;
  private allOnes: bool = false;
  private carried: bool = false;
  private carry: Carry = new Carry();
  /**
   * Where the number of rows is not known: the last whole row so far and its index, if it has not
   * been examined; -1: it has been.
   */
  private last: Carry = new Carry();
  private lastRow: i64 = -1;

  /**
   * An array begins. Its rows have `rowBytes` bytes each and begin `lead` (0, 2, 4) bits into the
   * first character that will be pushed; the first of them is that of token `firstRow`. `layers`
   * and `topK` are 0 where the format does not tell them, and `rows` is -1 where their number is
   * not known yet. `sentinels`: a row of -1 is a fault, whatever the examination checks.
   */
  begin(
    examination: Examination,
    leg: Leg,
    dtype: Dtype,
    layers: u64,
    topK: u64,
    rowBytes: u64,
    lead: i32,
    firstRow: i64,
    rows: i64,
    sentinels: bool,
  ): void {
    const model = examination.model;
    if ((layers == 0 || topK == 0) && model !== null) {
      layers = model.layers;
      topK = model.topK;
    }
    // Where the row is not as long as its shape says, nothing can be told but whether it is zero.
    if (layers * topK * itemSize(dtype) != rowBytes) layers = topK = 0;
    this.examination = examination;
    this.leg = leg;
    this.dtype = dtype;
    this.layers = layers;
    this.topK = topK;
    this.firstRow = firstRow;
    this.zeros = examination.refusesZeros(topK);
    this.sentinels = sentinels && (dtype == Dtype.I2 || dtype == Dtype.I4);
    this.sample.begin(examination.examines(layers, topK) ? examination.check : RowCheck.Off, rows);
    this.limit = rows < 0 ? u64.MAX_VALUE : <u64>rows;
    if (rowBytes == 0) this.limit = 0;
    this.rowBits = <usize>rowBytes * 8;
    this.row = 0;
    this.at = lead;
    this.probe = 0;
    this.lastRow = -1;
    this.reason = Reason.None;
  }

  /** Reads the next `len` characters at `ptr` (borrowed), all of the alphabet. See `reason`. */
  push(ptr: usize, len: usize): void {
    if (this.reason == Reason.None && this.row != this.limit && len > 0) this.read(ptr, len);
  }

  private read(ptr: usize, len: usize): void {
    const bits = <i64>len * 6;
    const size = <i64>this.rowBits;
    if (this.at < 0) {
      const end = this.at + size;
      if (!this.goOn(ptr, <usize>min(end, bits))) return;
      if (end > bits) {
        this.at -= bits;
        return;
      }
      if (!this.close()) return;
      this.at = end;
      this.row++;
    }
    if (this.at < bits) {
      const whole = min(<u64>((bits - this.at) / size), this.limit - this.row);
      if (whole > 0 && !this.readWhole(ptr, whole)) return;
      if (this.at < bits && this.row < this.limit && !this.open(ptr, len)) return;
    }
    this.at -= bits;
  }

  /** All characters have been pushed: examines a last row that waits for that. Returns `reason`. */
  end(): Reason {
    if (this.reason == Reason.None && this.lastRow >= 0) {
      this.examine(<u64>this.lastRow, this.last.chars, this.last.lead);
      this.lastRow = -1;
    }
    return this.reason;
  }

  /** Frees its memory. `begin` may follow. */
  free(): void {
    this.carry.free();
    this.last.free();
    this.limit = this.row = 0;
    this.lastRow = -1;
    this.examination = null;
  }

  /** Reads `n` whole rows, which begin at bit `at` of the characters at `ptr`. False on a fault. */
  private readWhole(ptr: usize, n: u64): bool {
    const end = this.row + n;
    let examined = false;
    while (this.row < end) {
      const next = this.sample.next;
      examined = next < end;
      const rows = (examined ? next + 1 : end) - this.row;
      if ((this.zeros || this.sentinels) && !this.scan(ptr, rows)) return false;
      this.row += rows;
      this.at += <i64>(rows * this.rowBits);
      if (!examined) break;
      const start = this.at - <i64>this.rowBits;
      if (!this.examine(next, ptr + <usize>(start / 6), <i32>(start % 6))) return false;
      this.sample.advance();
    }
    if (this.limit != u64.MAX_VALUE || this.sample.next == u64.MAX_VALUE) return true;
    this.lastRow = -1;
    if (examined) return true;
    const start = this.at - <i64>this.rowBits;
    const lead = <i32>(start % 6);
    if (!this.last.begin(this.rowChars, lead)) return this.fail(Reason.Memory);
    this.last.add(ptr + <usize>(start / 6), (<usize>lead + this.rowBits + 5) / 6);
    this.lastRow = <i64>this.row - 1;
    return true;
  }

  /** Looks for rows of zeros and sentinels among the next `n` rows. False on a fault. */
  private scan(ptr: usize, n: u64): bool {
    const size = this.rowBits;
    if (size < PROBE_BITS) {
      for (let i: u64 = 0, at = <u64>this.at; i < n; i++, at += size) {
        const row = ptr + <usize>(at / 6);
        const lead = <i32>(at % 6);
        if (this.zeros && unlike(row, lead, size, ZERO) < 0) return this.zeroRow(this.row + i);
        if (this.sentinels && unlike(row, lead, size, ONES) < 0) return this.fail(Reason.Sentinel);
      }
      return true;
    }
    const step = size / 6;
    const rest = size % 6;
    // The first whole character of the probe; it moves from row to row.
    let from = <u64>this.at + this.probe + 5;
    let at = ptr + <usize>(from / 6);
    let lead = <usize>(from % 6);
    for (let i: u64 = 0; i < n; i++) {
      const probed = load<u64>(at);
      if (probed == ZEROS_8 || probed == ONES_8) {
        if (!this.look(ptr, i, probed == ZEROS_8)) return false;
        from = <u64>this.at + i * size + this.probe + 5;
        at = ptr + <usize>(from / 6);
        lead = <usize>(from % 6);
      }
      at += step;
      lead += rest;
      if (lead >= 6) {
        lead -= 6;
        at++;
      }
    }
    return true;
  }

  /**
   * Looks at the whole of the row that is `i` rows on. Its probe has only bits that are 0 (`zero`),
   * or only bits that are 1. False on a fault.
   */
  private look(ptr: usize, i: u64, zero: bool): bool {
    if (!(zero ? this.zeros : this.sentinels)) return true;
    const size = this.rowBits;
    const at = <u64>this.at + i * size;
    const other = unlike(ptr + <usize>(at / 6), <i32>(at % 6), size, zero ? ZERO : ONES);
    if (other < 0) return zero ? this.zeroRow(this.row + i) : this.fail(Reason.Sentinel);
    // Rows are alike: where this one is not zero, the next ones probably are not, either.
    if (zero) this.probe = min(<usize>max(other - 5, 0), size - PROBE_BITS);
    return true;
  }

  /** A row begins at bit `at` of the characters at `ptr`, which end before it. False on a fault. */
  private open(ptr: usize, len: usize): bool {
    const chars = ptr + <usize>(this.at / 6);
    const lead = <i32>(this.at % 6);
    const bits = (ptr + len - chars) * 6 - lead;
    this.allZero = this.zeros && unlike(chars, lead, bits, ZERO) < 0;
    this.allOnes = this.sentinels && unlike(chars, lead, bits, ONES) < 0;
    const next = this.sample.next;
    this.carried = next == this.row || (this.limit == u64.MAX_VALUE && next != u64.MAX_VALUE);
    if (!this.carried) return true;
    if (!this.carry.begin(this.rowChars, lead)) return this.fail(Reason.Memory);
    this.carry.add(chars, ptr + len - chars);
    return true;
  }

  /** The next `bits` bits of the open row are at `ptr`. False on a fault. */
  private goOn(ptr: usize, bits: usize): bool {
    this.allZero = this.allZero && unlike(ptr, 0, bits, ZERO) < 0;
    this.allOnes = this.allOnes && unlike(ptr, 0, bits, ONES) < 0;
    if (this.carried) this.carry.add(ptr, (bits + 5) / 6);
    return true;
  }

  /** The open row is whole. False on a fault. */
  private close(): bool {
    if (this.allZero) return this.zeroRow(this.row);
    if (this.allOnes) return this.fail(Reason.Sentinel);
    if (!this.carried) return true;
    if (this.row == this.sample.next) {
      this.lastRow = -1;
      this.sample.advance();
      return this.examine(this.row, this.carry.chars, this.carry.lead);
    }
    const carry = this.carry;
    this.carry = this.last;
    this.last = carry;
    this.lastRow = <i64>this.row;
    return true;
  }

  private examine(row: u64, chars: usize, lead: i32): bool {
    const token = this.firstRow + <i64>row;
    const reason = this.examination!.examineChars(
      this.leg,
      token,
      chars,
      lead,
      this.dtype,
      this.layers,
      this.topK,
    );
    return reason == Reason.None || this.fail(reason);
  }

  private zeroRow(row: u64): bool {
    return this.fail(this.examination!.zeroRow(this.leg, this.firstRow + <i64>row));
  }

  private fail(reason: Reason): bool {
    this.reason = reason;
    return false;
  }

  /** Room for the characters that have bits of one row. */
  private get rowChars(): usize {
    return this.rowBits / 6 + 2 + SLACK;
  }
}

/**
 * Looks at `bits` bits, which begin `lead` bits into the first of the characters at `chars`, for a
 * character that differs in them from `char`. Returns how many bits behind the first of them that
 * character begins, at least 0; -1 when there is none.
 */
function unlike(chars: usize, lead: i32, bits: usize, char: u8): isize {
  const value = valueOf(char);
  const last = <usize>lead + bits;
  const whole = chars + last / 6;
  let at = chars;
  if (lead > 0) {
    const mask = bits < 6 - lead ? (0x3f >> lead) & ~(0x3f >> (<i32>last)) : 0x3f >> lead;
    if (((valueOf(load<u8>(at)) ^ value) & mask) != 0) return 0;
    if (<usize>lead + bits < 6) return -1;
    at++;
  }
  if (at + 16 <= whole) {
    const same = lanes(char);
    while (at + 16 <= whole && !v128.any_true(v128.xor(v128.load(at), same))) at += 16;
  }
  while (at < whole && load<u8>(at) == char) at++;
  const rest = <i32>(last % 6);
  if (at == whole && (rest == 0 || ((valueOf(load<u8>(at)) ^ value) & 0x3f & ~(0x3f >> rest)) == 0))
    return -1;
  return <isize>((at - chars) * 6) - lead;
}
