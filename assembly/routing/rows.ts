// The prompt rows that prefill returned, kept as the base64 characters they came in.

import { Block, fits } from '../bytes/block';
import { Source } from '../bytes/rope';
import { carriers, joined, leadOf, shiftLeft } from './base64';
import { Examination, Leg } from './examination';
import { Dtype, NpyHeader, itemSize } from './npy';
import { Reason } from './reason';
import { RowReader } from './row_reader';
import { WIDEN_CHUNK, Widener } from './widen';

/** A place outside the VM's memory for pieces of rows. */
export abstract class Parking {
  /** Stores a copy of `len` bytes at `ptr`; returns its slot, -1 when there is no room. */
  abstract store(ptr: usize, len: usize): i32;

  /** The piece in a slot (owned); null when it is lost. */
  abstract load(slot: i32): Block | null;

  /** Empties a slot of `len` bytes. */
  abstract drop(slot: i32, len: usize): void;
}

/** Characters of rows, in pieces of one length (the last may be shorter), in memory or parked. */
export abstract class RowChars extends Source {
  /** The first and the last of them. */
  first: u8 = 0;
  last: u8 = 0;
  length: u64 = 0;

  /** Adds a piece, which is taken over; false when there is no room. */
  add(piece: Block): bool {
    const first = load<u8>(piece.ptr);
    const last = load<u8>(piece.end - 1);
    const len = piece.len;
    if (!this.keep(piece)) return false;
    if (this.length == 0) this.first = first;
    this.last = last;
    this.length += len;
    return true;
  }

  protected abstract keep(piece: Block): bool;
  /** Whether they take the VM's memory; else the parking's. */
  abstract get held(): bool;
  abstract free(): void;
}


@final
export class HeldChars extends RowChars {
  private pieces: Block[] = [];

  constructor(private pieceLen: u64) {
    super();
  }

  get held(): bool {
    return true;
  }

  protected keep(piece: Block): bool {
    this.pieces.push(piece);
    return true;
  }

  fetch(offset: u64, len: u64): u64 {
    const piece = this.pieces[<i32>(offset / this.pieceLen)];
    const skip = offset % this.pieceLen;
    this.ptr = piece.ptr + <usize>skip;
    return min(len, <u64>piece.len - skip);
  }

  free(): void {
    for (let i = 0; i < this.pieces.length; i++) this.pieces[i].free();
    this.pieces.length = 0;
  }
}


@final
export class ParkedChars extends RowChars {
  private slots: i32[] = [];
  /** The piece that was fetched last. */
  private current: Block | null = null;
  private currentPiece: i32 = -1;

  constructor(
    private parking: Parking,
    private pieceLen: u64,
  ) {
    super();
  }

  get held(): bool {
    return false;
  }

  protected keep(piece: Block): bool {
    const slot = this.parking.store(piece.ptr, piece.len);
    piece.free();
    if (slot < 0) return false;
    this.slots.push(slot);
    return true;
  }

  fetch(offset: u64, len: u64): u64 {
    const piece = <i32>(offset / this.pieceLen);
    if (piece != this.currentPiece) {
      this.forget();
      if (!fits(this.pieceLen)) return 0;
      this.current = this.parking.load(this.slots[piece]);
      this.currentPiece = piece;
    }
    const block = this.current;
    const skip = offset % this.pieceLen;
    if (block === null || block.len <= skip) return 0;
    this.ptr = block.ptr + <usize>skip;
    return min(len, <u64>block.len - skip);
  }

  free(): void {
    this.forget();
    for (let i = 0; i < this.slots.length; i++) {
      this.parking.drop(this.slots[i], <usize>min(this.pieceLen, this.length - <u64>i * this.pieceLen));
    }
    this.slots.length = 0;
  }

  private forget(): void {
    const block = this.current;
    if (block !== null) block.free();
    this.current = null;
    this.currentPiece = -1;
  }
}

/** A part of other characters, which are borrowed. */
@final
export class SliceChars extends RowChars {
  constructor(
    private whole: RowChars,
    private from: u64,
    length: u64,
  ) {
    super();
    this.length = length;
  }

  get held(): bool {
    return false;
  }

  protected keep(piece: Block): bool {
    return false;
  }

  fetch(offset: u64, len: u64): u64 {
    const got = this.whole.fetch(this.from + offset, len);
    this.ptr = this.whole.ptr;
    return got;
  }

  free(): void {}
}

/** What `WideChars` fetched last, of all of them; allocated when it is needed. */
let wideText: usize = 0;
/** A chunk four times as wide, and what was left before it. */
const WIDE_TEXT_BYTES: usize = WIDEN_CHUNK * 4 + 256;

/** Rows (borrowed) in a wider dtype, made anew whenever they are fetched: they take no memory. */
@final
export class WideChars extends RowChars {
  private readonly widener: Widener = new Widener();

  /** The rows begin `from` bits into `narrow`, and `lead` bits into these; `bytes` is what they have in `to`. */
  constructor(
    private narrow: RowChars,
    private from: i32,
    private dtype: Dtype,
    readonly to: Dtype,
    readonly lead: i32,
    bytes: u64,
  ) {
    super();
    this.length = (bytes * 8 + lead + 5) / 6;
  }

  get held(): bool {
    return false;
  }

  protected keep(piece: Block): bool {
    return false;
  }

  fetch(offset: u64, len: u64): u64 {
    if (wideText == 0) wideText = heap.alloc(WIDE_TEXT_BYTES);
    const widener = this.widener;
    const narrow = this.narrow;
    const lead = <u64>this.lead;
    // From the last id on that begins with this character, or before it.
    const bits = itemSize(this.to) * 8;
    const id = offset * 6 > lead ? (offset * 6 - lead) / bits : 0;
    const begins = lead + id * bits;
    const source = <u64>this.from + id * itemSize(this.dtype) * 8;
    widener.begin(this.dtype, this.to, <i32>(source % 6), <i32>(begins % 6), 0x41);
    widener.out = wideText;
    this.ptr = wideText + <usize>(offset - begins / 6);
    const most = min<u64>(offset - begins / 6 + len + 8, WIDEN_CHUNK);
    for (let at = source / 6; widener.out <= this.ptr;) {
      if (at >= narrow.length) {
        widener.end();
        break;
      }
      const got = narrow.fetch(at, min(most, narrow.length - at));
      if (got == 0) return 0;
      widener.push(narrow.ptr, <usize>got);
      at += got;
    }
    return widener.out > this.ptr ? min(len, <u64>(widener.out - this.ptr)) : 0;
  }

  free(): void {}
}

/**
 * Prompt rows of prefill, of shape (rows, layers, top_k), for the tokens from `start` on. The first character may carry
 * `lead` bits of something else before them, the last one anything behind.
 */
@final
export class PromptRows {
  /** Of an object: its dtype is named as in a .npy header, not as NumPy names it. */
  coded: bool = false;

  /** By lead / 2: the same rows at another bit position, made when an array needs it. */
  private aligned: StaticArray<RowChars | null> = [null, null, null];
  /** The same rows in wider dtypes, as arrays needed them. */
  private wide: WideChars[] = [];

  /** Takes over `chars`, which are of the alphabet. */
  constructor(
    chars: RowChars,
    private lead: i32,
    /** The first token that has a row. */
    readonly start: u64,
    /** How many rows there are. */
    readonly rows: u64,
    readonly dtype: Dtype,
    /** 0 where the format does not tell. */
    readonly layers: u64,
    readonly topK: u64,
    readonly rowBytes: u64,
  ) {
    this.aligned[lead >> 1] = chars;
  }

  /** No rows, of what begins with token `start`. */
  static none(start: u64): PromptRows {
    return new PromptRows(new HeldChars(1), 0, start, 0, Dtype.I4, 0, 0, 0);
  }

  /** Takes over the characters of an array with this header, from `firstCarrier(header)` on. */
  static ofNpy(header: NpyHeader, chars: RowChars): PromptRows {
    const lead = leadOf(header.size);
    const rowBytes = header.rowBytes;
    return new PromptRows(chars, lead, 0, header.rows, header.dtype, header.layers, header.topK, rowBytes);
  }

  /** Bytes of all rows. */
  get bytes(): u64 {
    return this.rows * this.rowBytes;
  }

  /** Token behind the last one that has a row. */
  get end(): u64 {
    return this.start + this.rows;
  }

  /** Characters that the rows take of the VM's memory, or of the parking. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null && chars.held) sum += chars.length;
    }
    return sum;
  }

  get parkedBytes(): u64 {
    const chars = this.aligned[this.lead >> 1]!;
    return chars.held ? 0 : chars.length;
  }

  /** The characters with the rows starting `lead` bits into the first one (borrowed); null when memory is short. */
  at(lead: i32): RowChars | null {
    const known = this.aligned[lead >> 1];
    if (known !== null) return known;
    const len = <usize>((this.bytes * 8 + lead + 5) / 6);
    if (!fits(len)) return null;
    const moved = Block.alloc(len);
    if (!move(this.aligned[this.lead >> 1]!, this.lead, moved.ptr, moved.end, lead)) {
      moved.free();
      return null;
    }
    const chars = new HeldChars(len);
    chars.add(moved);
    this.aligned[lead >> 1] = chars;
    return chars;
  }

  /** The same in `dtype`, which is theirs or wider, of formats that tell the shape. */
  inDtype(dtype: Dtype, lead: i32): RowChars | null {
    if (dtype == this.dtype) return this.at(lead);
    const wide = this.wide;
    for (let i = 0; i < wide.length; i++) if (wide[i].to == dtype && wide[i].lead == lead) return wide[i];
    const bytes = this.rows * this.layers * this.topK * itemSize(dtype);
    const narrow = this.aligned[this.lead >> 1]!;
    const chars = new WideChars(narrow, this.lead, this.dtype, dtype, lead, bytes);
    if (chars.fetch(0, 1) == 0) return null;
    chars.first = load<u8>(chars.ptr);
    wide.push(chars);
    return chars;
  }

  /** Has the rows of prefill's reply read, those of the prompt only; returns what is wrong with them. */
  read(examination: Examination): Reason {
    const misfit =
      this.layers > 0
        ? examination.misfits(this.layers, this.topK)
        : examination.misfit(this.rowBytes / itemSize(this.dtype));
    if (misfit != Reason.None) return misfit;
    const reader = new RowReader();
    reader.begin(
      examination,
      Leg.Prefill,
      this.dtype,
      this.layers,
      this.topK,
      this.rowBytes,
      this.lead,
      this.start,
      this.rows,
      true,
    );
    const chars = this.aligned[this.lead >> 1]!;
    const length = (this.bytes * 8 + this.lead + 5) / 6;
    let reason = Reason.None;
    for (let at: u64 = 0; at < length && reason == Reason.None;) {
      const got = chars.fetch(at, length - at);
      if (got == 0) reason = Reason.Memory;
      else reader.push(chars.ptr, <usize>got);
      at += got;
    }
    reader.end();
    if (reason == Reason.None) reason = reader.reason;
    reader.free();
    return reason;
  }

  free(): void {
    this.wide.length = 0;
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null) chars.free();
      this.aligned[i] = null;
    }
  }
}

/**
 * Moves payload that starts `from` bits into `source` to `to` bits into [target, end), as much as that takes; false when
 * some of it is lost.
 */
export function move(source: RowChars, from: i32, target: usize, end: usize, to: i32): bool {
  const by = from - to;
  const shift = by > 0 ? by : by + 6;
  // What lies before and behind the payload reads as zero bits.
  let before: u8 = 0x41;
  let dst = target;
  for (let offset: u64 = 0; offset < source.length && dst < end;) {
    // A move to the left makes a character of two.
    const most = <u64>(end - dst) + 1;
    const got = <usize>source.fetch(offset, min(source.length - offset, most));
    if (got == 0) return false;
    const src = source.ptr;
    if (offset > 0 || by < 0) store<u8>(dst++, joined(before, load<u8>(src), shift));
    if (dst + got - 1 > end) {
      shiftLeft(dst, src, end - dst, shift);
      return true;
    }
    shiftLeft(dst, src, got - 1, shift);
    dst += got - 1;
    before = load<u8>(src + got - 1);
    offset += got;
  }
  if (dst < end) store<u8>(dst, joined(before, 0x41, shift));
  return true;
}

/** Offset in the array's string of the first character that carries bits of its rows. */
export function firstCarrier(header: NpyHeader): u64 {
  return (header.size * 8) / 6;
}

/** Characters that carry bits of the array's rows. */
export function rowCarriers(header: NpyHeader): u64 {
  return carriers(header.fileBytes) - firstCarrier(header);
}
