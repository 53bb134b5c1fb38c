// The tail of decode's array in format A: the characters behind those that prefill's rows replace.
// They carry rows that decode forwarded itself. The rows are read as they pass, and leave as they
// came, at another bit position, or in a wider dtype. The first character may share its bits with
// prefill's last row.

import { Block, fits } from '../../bytes/block';
import { stranger } from '../array_head';
import { inAlphabet, joined, mix, shiftLeft } from '../base64';
import { Examination, Leg } from '../examination';
import { Dtype, NpyHeader } from '../npy';
import { Reason } from '../reason';
import { RowReader } from '../row_reader';
import { RowChars } from '../rows';
import { Widener } from '../widen';
import { Site } from './format';

const PADDING = memory.data<u8>([0x3d, 0x3d]);
/** The character whose bits are all 0. */
const ZERO: u8 = 0x41;

const enum Way {
  /** As it came, but for bits of prefill's last row in the first character. */
  Kept,
  /** Every character is written anew, at a bit position that may be another one. */
  Moved,
  /** Every character is written anew, in a wider dtype. */
  Widened,
}


@final
export class NpyTail {
  /** Characters that have not been read yet, without padding. */
  left: u64 = 0;

  private way: Way = Way.Kept;
  /** Reads decode's own rows; those before the seam are not read. */
  private readonly reader: RowReader = new RowReader();
  private reading: bool = false;

  /** How many bits of the next character are prefill's, and the character that has them. */
  private mixCount: i32 = 0;
  private mixWith: u8 = 0;
  /** By how many bits (0, 2, 4) the rows move to the left, and the character that came last. */
  private shift: i32 = 0;
  private carry: u8 = 0;
  /** Whether no character has come, and the first one only gives bits to the second. */
  private awaitsCarry: bool = false;
  private readonly widener: Widener = new Widener();
  /** Characters, and signs of padding behind them, that are still to be written. */
  private outLeft: u64 = 0;
  private outPadding: u64 = 0;

  /** Whether all characters are written anew, and with them the padding. */
  get isRewritten(): bool {
    return this.way >= Way.Moved;
  }

  /** An array begins whose header is known: `chars` characters follow, without padding. */
  begin(chars: u64): void {
    this.left = chars;
    this.way = Way.Kept;
    this.mixCount = 0;
    this.awaitsCarry = false;
    this.reading = false;
  }

  /**
   * `rows` rows are read, the first of them that of token `firstRow`; they begin `lead` (0, 2, 4)
   * bits into the next character. Where the header's last character has bits of them, it lies at
   * `shared`; else that is 0.
   */
  examine(site: Site, header: NpyHeader, lead: i32, firstRow: u64, rows: u64, shared: usize): void {
    beginRows(this.reader, site.examination, Leg.Decode, header, lead, firstRow, rows);
    this.reading = true;
    if (shared != 0) this.reader.push(shared, 1);
  }

  /**
   * The `bits` bits of prefill's rows in their last character, which is the one at `at` of `chars`,
   * go into the first character of the tail. False when memory is short.
   */
  mixAt(chars: RowChars, at: u64, bits: i32): bool {
    this.mixCount = bits;
    if (bits == 0) return true;
    if (chars.fetch(at, 1) == 0) return false;
    this.mixWith = load<u8>(chars.ptr);
    return true;
  }

  /** The first `bits` bits of `char` go into the first character of the tail. */
  mixBits(char: u8, bits: i32): void {
    this.mixWith = char;
    this.mixCount = bits;
  }

  /** All characters are written anew: `chars` of them behind prefill's, and `padding` signs. */
  rewrite(chars: u64, padding: u64): void {
    this.outLeft = chars;
    this.outPadding = padding;
  }

  /**
   * Decode's rows, which begin `inLead` bits into their first character, are widened from `from` to
   * `to`, and written `outLead` bits into theirs. `shared`: as for `examine`.
   */
  widen(from: Dtype, to: Dtype, inLead: i32, outLead: i32, shared: usize): void {
    this.way = Way.Widened;
    const before = outLead > 0 ? this.mixWith : ZERO;
    this.mixCount = 0;
    this.widener.begin(from, to, inLead, outLead, before);
    // Its bits of the first row are no whole byte: nothing is written yet.
    if (shared != 0) this.widener.push(shared, 1);
  }

  /**
   * Decode's rows, of which there are `rows`, move from `inLead` to `outLead` bits. `shared` is the
   * header's last character, and `at` the offset in the body behind it.
   */
  move(site: Site, at: u64, inLead: i32, outLead: i32, shared: u8, rows: u64): void {
    this.way = Way.Moved;
    const by = inLead - outLead;
    this.shift = by < 0 ? by + 6 : by;
    // A move to the right begins with zero bits, one to the left with the shared character.
    this.carry = by > 0 ? shared : ZERO;
    if (rows == 0 || inLead == 0 || by > 0) return;
    // Without a move, or with one to the right, the shared character makes the first of the tail.
    const block = Block.alloc(1);
    store<u8>(block.ptr, by == 0 ? shared : joined(this.carry, shared, this.shift));
    this.carry = shared;
    this.mixFirst(block.ptr);
    this.outLeft--;
    site.rope.replaceOwned(at, 0, block, 1);
  }

  /**
   * Decode's rows move from `inLead` to `outLead` bits. Rows stand before them whose last bits are
   * those before `inLead`.
   */
  cut(inLead: i32, outLead: i32): void {
    this.way = Way.Moved;
    const by = inLead - outLead;
    this.shift = by < 0 ? by + 6 : by;
    // Whatever moves in front of the rows is mixed over.
    this.carry = ZERO;
    this.awaitsCarry = by > 0;
  }

  /** Reads what the scanner has of the tail; when nothing is `left`, the tail has been written. */
  read(site: Site): Reason {
    const scanner = site.scanner;
    const take = <usize>min<u64>(this.left, scanner.rest);
    const ptr = scanner.cursor;
    if (!inAlphabet(ptr, ptr + take)) return stranger(scanner, take);
    if (this.reading) this.reader.push(ptr, take);
    if (take > 0 && !this.write(site, ptr, take)) return Reason.Memory;
    scanner.skip(take);
    this.left -= take;
    if (this.left == 0 && this.reading) this.reader.end();
    if (this.reading && this.reader.reason != Reason.None) return this.reader.reason;
    if (this.left == 0 && this.isRewritten) this.finish(site);
    return Reason.None;
  }

  /** Removes `n` signs of decode's padding that begin at offset `at` of the body. */
  dropPadding(site: Site, at: u64, n: u64): void {
    if (n > 0) site.rope.replace(at, n, PADDING, 0);
  }

  writePadding(site: Site): void {
    site.rope.replace(site.position, 0, PADDING, this.outPadding);
  }

  free(): void {
    this.reader.free();
  }

  /** Writes `take` characters of the tail. False when memory is short. */
  private write(site: Site, ptr: usize, take: usize): bool {
    const at = site.position;
    if (this.way == Way.Moved) return this.writeMoved(site, at, ptr, take);
    if (this.way == Way.Widened) return this.writeWidened(site, at, ptr, take);
    if (this.mixCount > 0) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, load<u8>(ptr));
      this.mixFirst(mixed.ptr);
      site.rope.replaceOwned(at, 1, mixed, 1);
    }
    return true;
  }

  private writeMoved(site: Site, at: u64, ptr: usize, take: usize): bool {
    if (this.awaitsCarry) {
      this.awaitsCarry = false;
      this.carry = load<u8>(ptr);
      site.rope.replace(at, 1, PADDING, 0);
      return take == 1 || this.writeMoved(site, at + 1, ptr + 1, take - 1);
    }
    if (this.shift == 0 && this.mixCount == 0) {
      this.outLeft -= take;
      return true;
    }
    if (!fits(take)) return false;
    const block = Block.alloc(take);
    const out = block.ptr;
    if (this.shift == 0) memory.copy(out, ptr, take);
    else {
      store<u8>(out, joined(this.carry, load<u8>(ptr), this.shift));
      shiftLeft(out + 1, ptr, take - 1, this.shift);
      this.carry = load<u8>(ptr + take - 1);
    }
    this.mixFirst(out);
    this.outLeft -= take;
    site.rope.replaceOwned(at, take, block, take);
    return true;
  }

  private writeWidened(site: Site, at: u64, ptr: usize, take: usize): bool {
    const len = this.widener.lengthOf(take);
    if (!fits(len)) return false;
    if (len == 0) {
      this.widener.push(ptr, take);
      site.rope.replace(at, take, PADDING, 0);
      return true;
    }
    const block = Block.alloc(<usize>len);
    this.widener.out = block.ptr;
    this.widener.push(ptr, take);
    this.outLeft -= len;
    site.rope.replaceOwned(at, take, block, len);
    return true;
  }

  /** All characters of the tail have come: writes the bits that are left of them. */
  private finish(site: Site): void {
    if (this.outLeft == 0) return;
    const block = Block.alloc(1);
    if (this.way == Way.Widened) {
      this.widener.out = block.ptr;
      this.widener.end();
    } else {
      store<u8>(block.ptr, this.shift == 0 ? ZERO : joined(this.carry, ZERO, this.shift));
      this.mixFirst(block.ptr);
    }
    site.rope.replaceOwned(site.position, 0, block, 1);
    this.outLeft = 0;
  }

  /** Prefill's last bits go into the character at `ptr`, the first one behind its rows. */
  private mixFirst(ptr: usize): void {
    if (this.mixCount > 0) store<u8>(ptr, mix(this.mixWith, load<u8>(ptr), this.mixCount));
    this.mixCount = 0;
  }
}

/** Makes a reader ready for rows under this header, the first of them that of `firstRow`. */
export function beginRows(
  reader: RowReader,
  examination: Examination,
  leg: Leg,
  header: NpyHeader,
  lead: i32,
  firstRow: u64,
  rows: i64,
): void {
  const sentinels = leg == Leg.Prefill;
  reader.begin(
    examination,
    leg,
    header.dtype,
    header.layers,
    header.topK,
    header.rowBytes,
    lead,
    firstRow,
    rows,
    sentinels,
  );
}
