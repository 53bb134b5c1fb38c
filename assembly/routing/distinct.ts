// Which layers of one row do not name as many experts as they have places. Time is linear in the row's bytes, whatever
// its shape.

import { Block, fits } from '../bytes/block';
import { Dtype, itemSize } from './npy';

/** By the low 16 bits of an id: the number of the layer in which it occurred last. Shared by all rows of the VM. */
const SEEN = memory.data(131072, 8);
let number: u32 = 0;

/** Up to so many ids of 32 bits are compared with each other, more are sorted. */
const FEW: usize = 64;
const DIGITS = memory.data(1024, 4);


@final
export class Distinct {
  /** Of the layer that `next` returned: whether all its ids are 0; else one occurs twice. */
  zero: bool = false;
  /** Memory is short: not all layers were looked at. */
  short: bool = false;

  private dtype: Dtype = Dtype.None;
  private layers: usize = 0;
  private topK: usize = 0;
  private at: usize = 0;
  private layer: usize = 0;
  private sorting: Block | null = null;

  /** Looks at a row of `layers` x `topK` ids at `bytes` (borrowed up to the last `next`). */
  begin(bytes: usize, dtype: Dtype, layers: usize, topK: usize): void {
    this.at = bytes;
    this.dtype = dtype;
    this.layers = layers;
    this.topK = topK;
    this.layer = 0;
    this.short = false;
  }

  /** The next layer whose ids do not all differ; -1 when there is none. */
  next(): i64 {
    const size = this.topK * <usize>itemSize(this.dtype);
    while (this.layer < this.layers) {
      const at = this.at;
      const layer = this.layer++;
      this.at = at + size;
      this.zero = isZero(at, size);
      if (this.zero || this.repeats(at)) return <i64>layer;
      if (this.short) return -1;
    }
    return -1;
  }

  /** Index of the first of `n` ids that is negative, or not below `experts`; -1 when there is none. */
  firstAbove(bytes: usize, dtype: Dtype, n: usize, experts: u64): i64 {
    for (let i: usize = 0; i < n; i++) {
      const id =
        dtype == Dtype.U1
          ? <i64>load<u8>(bytes + i)
          : dtype == Dtype.U2
            ? <i64>load<u16>(bytes + i * 2)
            : dtype == Dtype.I2
              ? <i64>load<i16>(bytes + i * 2)
              : <i64>load<i32>(bytes + i * 4);
      if (id < 0 || <u64>id >= experts) return <i64>i;
    }
    return -1;
  }

  free(): void {
    const sorting = this.sorting;
    if (sorting !== null) sorting.free();
    this.sorting = null;
  }

  /** Whether some id of the layer at `at` occurs twice. */
  private repeats(at: usize): bool {
    if (++number == 65536) {
      memory.fill(SEEN, 0, 131072);
      number = 1;
    }
    const mark = <u16>number;
    const n = this.topK;
    if (this.dtype == Dtype.U1) {
      for (const end = at + n; at < end; at++) {
        const seen = SEEN + 2 * <usize>load<u8>(at);
        if (load<u16>(seen) == mark) return true;
        store<u16>(seen, mark);
      }
      return false;
    }
    if (this.dtype != Dtype.I4) {
      for (const end = at + n * 2; at < end; at += 2) {
        const seen = SEEN + 2 * <usize>load<u16>(at);
        if (load<u16>(seen) == mark) return true;
        store<u16>(seen, mark);
      }
      return false;
    }
    let wide = false;
    for (let i: usize = 0; i < n; i++) {
      const id = load<u32>(at + i * 4);
      const seen = SEEN + 2 * <usize>(id & 0xffff);
      wide = wide || id > 0xffff;
      // Ids that differ in their high bits only are not the same.
      if (load<u16>(seen) == mark) {
        if (!wide) return true;
        return n <= FEW ? pairEquals(at, n) : this.sortedRepeats(at, n);
      }
      store<u16>(seen, mark);
    }
    return false;
  }

  /** As `repeats`, for ids of 32 bits. */
  private sortedRepeats(at: usize, n: usize): bool {
    const size = n * 4;
    let block = this.sorting;
    if (block === null || block.len < size * 2) {
      this.free();
      if (!fits(size * 2)) {
        this.short = true;
        return false;
      }
      block = Block.alloc(size * 2);
      this.sorting = block;
    }
    let from = block.ptr;
    let to = from + size;
    memory.copy(from, at, size);
    for (let shift: u32 = 0; shift < 32; shift += 8) {
      sortByDigit(from, to, n, shift);
      const sorted = to;
      to = from;
      from = sorted;
    }
    for (let i: usize = 1; i < n; i++)
      if (load<u32>(from + i * 4) == load<u32>(from + i * 4 - 4)) return true;
    return false;
  }
}

/** One step of a radix sort (stable): `n` numbers from `from` to `to`, by the 8 bits above `shift`. */
function sortByDigit(from: usize, to: usize, n: usize, shift: u32): void {
  memory.fill(DIGITS, 0, 1024);
  const end = from + n * 4;
  for (let at = from; at < end; at += 4) {
    const count = DIGITS + 4 * <usize>((load<u32>(at) >> shift) & 0xff);
    store<u32>(count, load<u32>(count) + 1);
  }
  let place: u32 = 0;
  for (let count = DIGITS; count < DIGITS + 1024; count += 4) {
    const here = load<u32>(count);
    store<u32>(count, place);
    place += here;
  }
  for (let at = from; at < end; at += 4) {
    const value = load<u32>(at);
    const next = DIGITS + 4 * <usize>((value >> shift) & 0xff);
    const index = load<u32>(next);
    store<u32>(to + 4 * <usize>index, value);
    store<u32>(next, index + 1);
  }
}

function pairEquals(at: usize, n: usize): bool {
  for (let i: usize = 1; i < n; i++) {
    const id = load<u32>(at + i * 4);
    for (let j: usize = 0; j < i; j++) if (load<u32>(at + j * 4) == id) return true;
  }
  return false;
}

/** Whether all of the `len` bytes at `ptr` are 0. */
export function isZero(ptr: usize, len: usize): bool {
  const end = ptr + len;
  for (; ptr + 8 <= end; ptr += 8) if (load<u64>(ptr) != 0) return false;
  for (; ptr < end; ptr++) if (load<u8>(ptr) != 0) return false;
  return true;
}
