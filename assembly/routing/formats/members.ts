// The members of an object that holds rows: `data`, `shape`, `start` and `dtype`, in any order.

import { Scanner } from '../../json/scanner';
import { Dtype, dtypeCode, itemSize, MAX_DIMENSION, MAX_ROW_BYTES } from '../npy';
import { Place } from '../places';
import { Reason } from '../reason';
import { PromptRows, RowChars } from '../rows';
import { Progress } from './format';
import { Run } from './run';

/** The longest name of a dtype that is read. */
const NAME_BYTES: usize = 8;
/** The length of a dtype's code in a .npy header. NumPy's names are longer. */
const CODE_BYTES: usize = 3;
/** What of a member is read here, and not by the scanner. */
const enum Reading {
  Nothing,
  /** Characters of `data`. */
  Data,
  /** The name of the dtype. */
  Name,
}

/** What the members of such an object say, while they come. */
@final
export class Members {
  /** Why the object can't be used. */
  reason: Reason = Reason.None;
  /** What the members say; -1: they have not said it. */
  dtype: Dtype = Dtype.U1;
  start: i64 = 0;
  rows: i64 = -1;
  layers: i64 = -1;
  topK: i64 = -1;
  /**
   * Offsets in the document: of the characters of `data`, and of the first number of `shape`, the
   * number of `start` and the value of `dtype`. 0: it has none.
   */
  dataAt: u64 = 0;
  rowsAt: u64 = 0;
  rowsEnd: u64 = 0;
  startAt: u64 = 0;
  startEnd: u64 = 0;
  dtypeAt: u64 = 0;
  dtypeEnd: u64 = 0;
  /** Whether the dtype is named as in a .npy header. False where it is not `named`. */
  coded: bool = false;
  /** The characters of `data`. */
  readonly run: Run = new Run();

  private reading: Reading = Reading.Nothing;
  /** The members that have come: bit p is set for the place p. */
  private seen: i32 = 0;
  /** The name of the dtype: its memory (owned), and its length so far. */
  private name: usize = 0;
  private nameLen: usize = 0;

  /** An object begins. */
  begin(): void {
    this.reason = Reason.None;
    this.dtype = Dtype.U1;
    this.start = 0;
    this.rows = this.layers = this.topK = -1;
    this.rowsAt = this.startAt = this.dtypeAt = 0;
    this.coded = false;
    this.seen = 0;
    this.nameLen = 0;
    this.run.begin();
  }

  /** Whether the object names its dtype. */
  get named(): bool {
    return this.nameLen > 0;
  }

  /** Whether `read` reads `data`. */
  get inData(): bool {
    return this.reading == Reading.Data;
  }

  /** A member, or an element of one, begins. True: `read` comes next. */
  onValue(scanner: Scanner, place: Place): bool {
    this.reading = this.readingOf(scanner, place);
    return this.reading != Reading.Nothing;
  }

  /** Reads the string that was entered. `Done`: the scanner goes on, also where it was refused. */
  read(scanner: Scanner): Progress {
    const data = this.inData;
    const progress = data ? this.run.read(scanner) : this.readName(scanner);
    if (progress != Progress.Refused) return progress;
    this.refuse(data ? Reason.Base64 : Reason.Dtype);
    return Progress.Done;
  }

  /** What of the member that begins is read here. A string that is has been entered. */
  private readingOf(scanner: Scanner, place: Place): Reading {
    if (place == Place.Dimension) {
      if (scanner.index == 0) this.rowsAt = scanner.offset;
      return Reading.Nothing;
    }
    // Lists inside of the object: only members of its own count.
    if (place == Place.Row || place == Place.Layer) return Reading.Nothing;
    const bit = 1 << (<i32>place);
    if ((this.seen & bit) != 0) this.refuse(Reason.Duplicate);
    this.seen |= bit;
    const first = scanner.first;
    if (place == Place.Start) this.startAt = scanner.offset;
    if (place == Place.Dtype) this.dtypeAt = scanner.offset;
    if (place == Place.Shape && first != 0x5b) this.refuse(Reason.Shape);
    if (this.reason != Reason.None) return Reading.Nothing;
    if (place == Place.Data) {
      if (first != 0x22) {
        this.refuse(Reason.Format);
        return Reading.Nothing;
      }
      scanner.enterString();
      this.dataAt = scanner.offset;
      return Reading.Data;
    }
    if (place != Place.Dtype || first == 0x6e) return Reading.Nothing;
    if (first != 0x22) {
      this.refuse(Reason.Dtype);
      return Reading.Nothing;
    }
    scanner.enterString();
    if (this.name == 0) this.name = heap.alloc(NAME_BYTES);
    this.nameLen = 0;
    return Reading.Name;
  }

  onValueEnd(scanner: Scanner, place: Place): void {
    const value = scanner.integer;
    if (place == Place.Dimension) {
      const index = scanner.index;
      if (index == 0) {
        this.rows = value;
        this.rowsEnd = scanner.offset;
      } else if (index == 1) this.layers = value;
      else if (index == 2) this.topK = value;
      if (index > 2 || value < 0 || value > MAX_DIMENSION) this.refuse(Reason.Shape);
    } else if (place == Place.Start) {
      this.startEnd = scanner.offset;
      if (scanner.first == 0x6e) return;
      this.start = value;
      if (value < 0 || value > MAX_DIMENSION) this.refuse(Reason.Rows);
    } else if (place == Place.Dtype) {
      this.dtypeEnd = scanner.offset;
      if (this.nameLen == 0) return;
      this.dtype = dtypeNamed(this.name, this.nameLen);
      this.coded = this.nameLen == CODE_BYTES;
      if (this.dtype == Dtype.None) this.refuse(Reason.Dtype);
    }
  }

  /** Reads the name of the dtype, up to the closing quote. */
  private readName(scanner: Scanner): Progress {
    while (scanner.rest > 0) {
      const c = load<u8>(scanner.cursor);
      if (c == 0x22 && this.nameLen > 0) return Progress.Done;
      if (this.nameLen == NAME_BYTES || c == 0x22 || c == 0x5c || c < 0x20) return Progress.Refused;
      store<u8>(this.name + this.nameLen++, c);
      scanner.skip(1);
    }
    return Progress.More;
  }

  /** The object has ended. Returns what is wrong with it, whatever stands around it. */
  judge(): Reason {
    if (this.reason != Reason.None) return this.reason;
    if ((this.seen & (1 << (<i32>Place.Data))) == 0) return Reason.Format;
    if (this.rows < 0 || this.layers <= 0 || this.topK <= 0) return Reason.Shape;
    const slots = <u64>this.layers * <u64>this.topK;
    if (slots > MAX_ROW_BYTES || this.rowBytes > MAX_ROW_BYTES) return Reason.Shape;
    return this.run.bytes == this.rows * <i64>this.rowBytes ? Reason.None : Reason.Size;
  }

  get rowBytes(): u64 {
    return <u64>this.layers * <u64>this.topK * itemSize(this.dtype);
  }

  /** The rows that the object holds; `chars`, those of `data`, are taken over. After `judge`. */
  rowsOf(chars: RowChars): PromptRows {
    const rows = new PromptRows(
      chars,
      0,
      this.start,
      this.rows,
      this.dtype,
      this.layers,
      this.topK,
      this.rowBytes,
    );
    rows.coded = this.coded;
    return rows;
  }

  refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }

  free(): void {
    if (this.name != 0) heap.free(this.name);
    this.name = 0;
  }
}

/** The dtype of a name: one of NumPy's, or a code of the .npy format. */
function dtypeNamed(ptr: usize, len: usize): Dtype {
  for (let dtype = Dtype.U1; dtype <= Dtype.I4; dtype++) {
    if (is(ptr, len, dtypeName(dtype, false)) || is(ptr, len, dtypeName(dtype, true))) return dtype;
  }
  return Dtype.None;
}

/** The name of a dtype: its code in the .npy format if `coded`, else NumPy's. */
export function dtypeName(dtype: Dtype, coded: bool): string {
  if (coded) return dtypeCode(dtype);
  return dtype == Dtype.U1 ? 'uint8' : dtype == Dtype.U2 ? 'uint16' : dtype == Dtype.I2 ? 'int16' : 'int32';
}

function is(ptr: usize, len: usize, text: string): bool {
  if (len != <usize>text.length) return false;
  for (let i = 0; i < text.length; i++) if (load<u8>(ptr + i) != text.charCodeAt(i)) return false;
  return true;
}
