// The prompt rows of prefill's reply, kept as the base64 characters in which they came: in the VM's
// memory, or parked outside of it. They can be had at another bit position and in a wider dtype.

import { Block, fits } from '../bytes/block';
import { Source } from '../bytes/rope';
import { carriers, joined, leadOf, shiftLeft } from './base64';
import { Examination, Leg } from './examination';
import { Dtype, NpyHeader, itemSize } from './npy';
import { Reason } from './reason';
import { RowReader } from './row_reader';
import { WIDEN_CHUNK, Widener } from './widen';

/** A place outside of the VM's memory for pieces of rows. */
export abstract class Parking {
  /** Stores a copy of `len` bytes at `ptr`. Returns its slot; -1 when there is no room. */
  abstract store(ptr: usize, len: usize): i32;

  /** A copy of the piece in a slot (the caller's); null when the piece is lost. */
  abstract load(slot: i32): Block | null;

  /** Empties a slot, which has `len` bytes. */
  abstract drop(slot: i32, len: usize): void;
}

/** Characters of rows, in pieces of one length of which the last may be shorter. */
export abstract class RowChars extends Source {
  /** The first and the last character, and how many there are. */
  first: u8 = 0;
  last: u8 = 0;
  length: u64 = 0;

  /** Adds a piece, which is taken over. Returns false when there is no room. */
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
  /** Whether the characters take the VM's memory. */
  abstract get held(): bool;
  abstract free(): void;
}

/** Characters in the VM's memory. */
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

/** Characters in a parking. One piece at a time is in the VM's memory. */
@final
export class ParkedChars extends RowChars {
  private slots: i32[] = [];
  /** The piece that was fetched last (owned), and its index. */
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

  /** Looks at the first character. False when it is lost. */
  begin(): bool {
    if (this.fetch(0, 1) == 0) return false;
    this.first = load<u8>(this.ptr);
    return true;
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

/** Room for the characters that were fetched last: all `WideChars` share it. */
let wideText: usize = 0;
/** Room for a chunk that is widened to four times its length, and what was left over before it. */
const WIDE_TEXT_BYTES: usize = WIDEN_CHUNK * 4 + 256;

/** Rows in a wider dtype. They are widened whenever they are fetched, and take no memory. */
@final
export class WideChars extends RowChars {
  private readonly widener: Widener = new Widener();

  /**
   * The rows begin `from` bits into the characters of `narrow` (borrowed), which are in `dtype`,
   * and `lead` bits into these, where they have `bytes` bytes in the dtype `to`.
   */
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
    // Widening begins with the last id that begins in this character or before it.
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
 * Prompt rows of prefill's, of shape (rows, layers, top_k), for the tokens from `start` on. They
 * begin `lead` (0, 2, 4) bits into the first character; the last one may carry other bits behind
 * them.
 */
@final
export class PromptRows {
  /** Whether prefill's object names its dtype as a .npy header does, and not by NumPy's name. */
  coded: bool = false;

  /** By lead / 2: the rows (owned) at that bit position, made when an array needs it. */
  private aligned: StaticArray<RowChars | null> = [null, null, null];
  /** The rows in wider dtypes, made when an array of decode's needs them. */
  private wide: WideChars[] = [];

  /** Takes over `chars`, which are all of the base64 alphabet. */
  constructor(
    chars: RowChars,
    readonly lead: i32,
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

  /** No rows, of an array that would begin with token `start`. */
  static none(start: u64): PromptRows {
    return new PromptRows(new HeldChars(1), 0, start, 0, Dtype.I4, 0, 0, 0);
  }

  /**
   * Takes over the characters of an array with this header, from `firstCarrier(header)` on. `start`
   * is the first token that has a row.
   */
  static ofNpy(header: NpyHeader, chars: RowChars, start: u64): PromptRows {
    const lead = leadOf(header.size);
    const rowBytes = header.rowBytes;
    return new PromptRows(
      chars,
      lead,
      start,
      header.rows,
      header.dtype,
      header.layers,
      header.topK,
      rowBytes,
    );
  }

  /** Bytes of all rows. */
  get bytes(): u64 {
    return this.rows * this.rowBytes;
  }

  /** The token behind the last one that has a row. */
  get end(): u64 {
    return this.start + this.rows;
  }

  /** Bytes that the rows take of the VM's memory. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < 3; i++) {
      const chars = this.aligned[i];
      if (chars !== null && chars.held) sum += chars.length;
    }
    return sum;
  }

  /** Bytes that the rows take of the parking. */
  get parkedBytes(): u64 {
    const chars = this.aligned[this.lead >> 1]!;
    return chars.held ? 0 : chars.length;
  }

  /** The rows, `lead` bits into the first character (borrowed); null when memory is short. */
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

  /** The same in `dtype`, which is their own or a wider one. The format must tell the shape. */
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

  /**
   * The rows behind the first `skipped`, in `dtype`, so that they begin `lead` bits into the first
   * character (borrowed). The format must tell the shape if rows are skipped.
   */
  from(skipped: u64, dtype: Dtype, lead: i32): RowChars | null {
    if (skipped == 0) return this.inDtype(dtype, lead);
    const bits = skipped * this.layers * this.topK * itemSize(dtype) * 8;
    // Of the positions at which all rows can be had, this is the one where the first row that is
    // not skipped begins at the position asked for.
    const whole = <i32>((<u64>lead + 6 - (bits % 6)) % 6);
    const chars = this.inDtype(dtype, whole);
    if (chars === null) return null;
    const at = (<u64>whole + bits) / 6;
    const rest = new SliceChars(chars, at, chars.length - at);
    return rest.begin() ? rest : null;
  }

  /** Has a `RowReader` read the rows. Returns what is wrong with them. */
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

  /** The rows as they came (borrowed), which begin `lead` bits into the first character. */
  get chars(): RowChars {
    return this.aligned[this.lead >> 1]!;
  }

  /** Frees what has been made of the rows for arrays. */
  freeCopies(): void {
    this.wide.length = 0;
    for (let i = 0; i < 3; i++) if (i != this.lead >> 1) this.freeAt(i);
  }

  private freeAt(i: i32): void {
    const chars = this.aligned[i];
    if (chars !== null) chars.free();
    this.aligned[i] = null;
  }

  free(): void {
    this.freeCopies();
    this.freeAt(this.lead >> 1);
  }
}

/**
 * Copies bytes that begin `from` bits into the characters of `source`, so that they begin `to` bits
 * into those of [target, end), which they fill. Returns false when some of them are lost.
 */
export function move(source: RowChars, from: i32, target: usize, end: usize, to: i32): bool {
  const by = from - to;
  const shift = by > 0 ? by : by + 6;
  // Before and behind the bytes there are zero bits.
  let before: u8 = 0x41;
  let dst = target;
  for (let offset: u64 = 0; offset < source.length && dst < end;) {
    // In a move to the left every character is made of two.
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

/** Offset, in the string of an array, of the first character that carries bits of its rows. */
export function firstCarrier(header: NpyHeader): u64 {
  return (header.size * 8) / 6;
}

/** How many characters carry bits of the array's rows. */
export function rowCarriers(header: NpyHeader): u64 {
  return carriers(header.fileBytes) - firstCarrier(header);
}
