// Rows as nested lists of numbers, [[[expert, …], …], …]. Each row is collected and handed to the
// examination. That the lists are nested like this is checked by whoever reads the document around
// them.

import { Block, fits } from '../bytes/block';
import { Examination, Leg } from './examination';
import { Dtype } from './npy';
import { Reason } from './reason';

/** Bytes of the first room for a row. It grows by doubling. */
const FIRST_ROOM: usize = 4096;


@final
export class RowLists {
  reason: Reason = Reason.None;
  /** How many rows of the value have ended. */
  rows: u64 = 0;

  /** The ids of the row that is being read, as int32 (owned), and how many there are. */
  private ids: Block | null = null;
  private count: usize = 0;
  /** Layers of that row so far, and ids of the last of them. */
  private layers: u64 = 0;
  private topK: u64 = 0;
  /** Ids and layers of the first row: every other row must have as many. */
  private idsOfRow: usize = 0;
  private layersOfRow: u64 = 0;

  /** For `push`: how many brackets are open, and the number that is being read; -1: none. */
  private depth: i32 = 0;
  private number: i64 = -1;

  /** The rows of `leg` go to `examination` (borrowed). */
  constructor(
    private examination: Examination,
    private leg: Leg,
  ) {}

  /** A value begins. */
  begin(): void {
    this.rows = 0;
    this.layersOfRow = 0;
    this.beginRow();
    this.depth = 0;
    this.number = -1;
    this.reason = Reason.None;
  }

  /** An expert has ended. An `id` below 0 stands for a value that is no plain integer. */
  expert(id: i64): void {
    const room = this.room();
    if (room == 0) return;
    store<i32>(room, <i32>min<i64>(id, i32.MAX_VALUE));
    this.count++;
  }

  /** A layer of `topK` experts has ended. */
  endLayer(topK: u64): void {
    this.layers++;
    this.topK = topK;
  }

  /** A row has ended. Its layers must be of one length, and its shape that of the first row. */
  endRow(): void {
    const ids = this.ids;
    if (this.layersOfRow == 0) {
      this.layersOfRow = this.layers;
      this.idsOfRow = this.count;
      this.refuse(this.examination.misfits(this.layers, this.topK));
    }
    const even = this.layers * this.topK == <u64>this.count;
    if (this.layers == 0 || !even || this.layers != this.layersOfRow || this.count != this.idsOfRow) {
      this.refuse(Reason.Shape);
    }
    if (ids !== null && this.reason == Reason.None) {
      this.reason = this.examination.examineRow(
        this.leg,
        this.rows,
        ids.ptr,
        Dtype.I4,
        this.layers,
        this.topK,
      );
    }
    this.rows++;
    this.beginRow();
  }

  /** Reads a piece of a value, which has nothing but brackets, commas, digits and white space. */
  push(ptr: usize, len: usize): void {
    for (const end = ptr + len; ptr < end; ptr++) {
      const c = load<u8>(ptr);
      if (c - 0x30 < 10) {
        // A longer number is no expert: it stays above all ids that there can be.
        this.number = min<i64>(max<i64>(this.number, 0) * 10 + (c - 0x30), 1 << 40);
        continue;
      }
      if (this.number >= 0) {
        this.expert(this.number);
        this.number = -1;
        this.topK++;
      }
      if (c == 0x5b) {
        this.depth++;
        if (this.depth == 3) this.topK = 0;
      } else if (c == 0x5d) {
        if (this.depth == 3) this.endLayer(this.topK);
        else if (this.depth == 2) this.endRow();
        this.depth--;
      }
    }
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }

  free(): void {
    const ids = this.ids;
    if (ids !== null) ids.free();
    this.ids = null;
  }

  private beginRow(): void {
    this.count = 0;
    this.layers = this.topK = 0;
  }

  /** The address for the next id; 0 when memory is short. */
  private room(): usize {
    const at = this.count * 4;
    let ids = this.ids;
    if (ids === null || at + 4 > ids.len) {
      const room = ids === null ? FIRST_ROOM : ids.len * 2;
      if (!fits(room)) {
        this.refuse(Reason.Memory);
        return 0;
      }
      const larger = Block.alloc(room);
      if (ids !== null) {
        memory.copy(larger.ptr, ids.ptr, at);
        ids.free();
      }
      this.ids = ids = larger;
    }
    return ids.ptr + at;
  }
}
