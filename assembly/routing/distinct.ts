// Finds the layers of a row in which some expert's id occurs twice. The time is linear in the row's
// bytes, whatever its shape and its ids.
//
// The low bytes of the ids decide nearly always. A vector holds the low bytes of as many whole
// layers as fit. It is compared with itself while every layer is turned by 1, 2, … up to half of
// top_k places, so that each id meets every other id of its layer:
//
//     places   0 1 2 3 4 5 6 7 | 0 1 2 3 4 5 6 7      two layers of 8
//     by 3     3 4 5 6 7 0 1 2 | 3 4 5 6 7 0 1 2
//
// A layer in which two low bytes are alike is a suspect: its ids are then looked at one by one.

import { Block, fits } from '../bytes/block';
import { Dtype, itemSize } from './npy';

/** How many bytes behind a row, and behind its low bytes, may be read and overwritten. */
export const SLACK: usize = 64;

/** The most ids of a layer that a vector compares. */
const MAX_PLACES: usize = 16;
/**
 * A vector for each number of places to turn by, less 1: where each lane's byte comes from. The
 * vector behind them marks the lanes that are in use.
 */
const TURNS = memory.data(128 + 16, 16);
const IN_USE: usize = TURNS + 128;
/** The top_k for which these vectors have been made. */
let turnsFor: usize = 0;

/** How many vectors are compared at once, and room for the indices of the layers in them. */
const MAX_VECTORS: usize = 64;
const SUSPECTS = memory.data(2048, 4);

/** Masks for the low byte of each lane of 16 and of 32 bits. */
const LOW_OF_16 = memory.data<u16>([255, 255, 255, 255, 255, 255, 255, 255]);
const LOW_OF_32 = memory.data<u32>([255, 255, 255, 255]);

/**
 * By the low 16 bits of an id: the number of the layer in which these occurred last. Layers are
 * numbered across all rows in the VM, so that nothing needs to be cleared for the next one.
 */
const SEEN_BYTES = 131072;
const SEEN = memory.data(SEEN_BYTES, 8);
let number: u32 = 0;

/** Up to this many ids of 32 bits are compared with each other; more of them are sorted. */
const FEW: usize = 64;
const COUNTS_BYTES = 1024;
const COUNTS = memory.data(COUNTS_BYTES, 4);

/** Bytes that `Distinct` needs for a row of `n` ids. It may change those behind the ids. */
export function roomFor(dtype: Dtype, n: usize): usize {
  return dtype == Dtype.U1 ? n + SLACK : n * <usize>itemSize(dtype) + SLACK + n + SLACK;
}


@final
export class Distinct {
  /** Whether all ids of the layer that `next` returned are 0; if not, one of them occurs twice. */
  zero: bool = false;
  /** Whether memory was short, so that not all layers were looked at. */
  short: bool = false;

  private ids: usize = 0;
  private dtype: Dtype = Dtype.None;
  private layers: usize = 0;
  private topK: usize = 0;
  /** The next layer to look at, where no vectors are compared. */
  private layer: usize = 0;
  /** The low bytes of the ids; 0: no vectors are compared. */
  private low: usize = 0;
  /**
   * Layers before `compared` have been compared. Of the suspects among them, those in SUSPECTS from
   * `suspect` up to `suspects` are still to be looked at.
   */
  private compared: usize = 0;
  private suspect: usize = 0;
  private suspects: usize = 0;
  private sorting: Block | null = null;

  /** A row of `layers` x `topK` ids, in the room of `roomFor` (borrowed up to the last `next`). */
  begin(ids: usize, dtype: Dtype, layers: usize, topK: usize): void {
    this.ids = ids;
    this.dtype = dtype;
    this.layers = layers;
    this.topK = topK;
    this.layer = this.compared = this.suspect = this.suspects = 0;
    this.short = false;
    this.low = 0;
    if (topK > MAX_PLACES || layers < MAX_PLACES / topK) return;
    if (turnsFor != topK) makeTurns(topK);
    this.low = dtype == Dtype.U1 ? ids : lowBytes(ids, dtype, layers * topK);
  }

  /** The next layer whose ids do not all differ; -1 when there is none. */
  next(): i64 {
    const size = this.topK * <usize>itemSize(this.dtype);
    while (this.low == 0 ? this.layer < this.layers : this.suspect < this.suspects || this.compare()) {
      const layer = this.low == 0 ? this.layer++ : <usize>load<u32>(SUSPECTS + 4 * this.suspect++);
      const at = this.ids + layer * size;
      this.zero = isZero(at, size);
      if (this.zero || this.repeats(at)) return <i64>layer;
      if (this.short) return -1;
    }
    return -1;
  }

  free(): void {
    const sorting = this.sorting;
    if (sorting !== null) sorting.free();
    this.sorting = null;
  }

  /** Compares layers until there are suspects. False when the rest of the row has none. */
  private compare(): bool {
    const topK = this.topK;
    const together = MAX_PLACES / topK;
    this.suspect = this.suspects = 0;
    while (this.suspects == 0 && this.compared < this.layers) {
      const from = this.compared;
      const vectors = min((this.layers - from) / together, MAX_VECTORS);
      // The last layers, where they do not fill a vector, are compared together with those before
      // them.
      const layer = vectors == 0 ? this.layers - together : from;
      const to = layer + max<usize>(vectors, 1) * together;
      this.suspects = topK <= 8 ? alikeIn8(this.low, layer, to, topK) : alikeIn16(this.low, layer, to, topK);
      while (this.suspect < this.suspects && load<u32>(SUSPECTS + 4 * this.suspect) < <u32>from)
        this.suspect++;
      if (this.suspect == this.suspects) this.suspect = this.suspects = 0;
      this.compared = to;
    }
    return this.suspects > 0;
  }

  /** Whether some id of the layer at `at` occurs twice. */
  private repeats(at: usize): bool {
    if (++number == 65536) {
      memory.fill(SEEN, 0, SEEN_BYTES);
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
      // Two ids with the same low 16 bits may differ in their high ones.
      if (load<u16>(seen) == mark) {
        if (!wide) return true;
        return n <= FEW ? pairEquals(at, n) : this.sortedRepeats(at, n);
      }
      store<u16>(seen, mark);
    }
    return false;
  }

  /** As `repeats`, for many ids of 32 bits: they are sorted by a radix sort. */
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

/** Index of the first of `n` ids that is negative or not below `experts`; -1: there is none. */
export function firstStranger(ids: usize, dtype: Dtype, n: usize, experts: u64): i64 {
  // Read without a sign, a negative id is above all others.
  const limit: u64 =
    dtype == Dtype.U1 ? 1 << 8 : dtype == Dtype.U2 ? 1 << 16 : dtype == Dtype.I2 ? 1 << 15 : 1 << 31;
  experts = min(experts, limit);
  if (dtype != Dtype.I2 && dtype != Dtype.I4 && experts == limit) return -1;
  if (allBelow(ids, dtype, n, <u32>experts)) return -1;
  for (let i: usize = 0; i < n; i++) {
    const id: u32 =
      dtype == Dtype.U1
        ? load<u8>(ids + i)
        : dtype == Dtype.I4
          ? load<u32>(ids + i * 4)
          : load<u16>(ids + i * 2);
    if (id >= <u32>experts) return <i64>i;
  }
  return -1;
}

function makeTurns(topK: usize): void {
  turnsFor = topK;
  const used = (MAX_PLACES / topK) * topK;
  for (let lane: usize = 0; lane < 16; lane++) {
    const place = lane % topK;
    store<u8>(IN_USE + lane, lane < used ? 0xff : 0);
    for (let turn: usize = 1; turn <= 8; turn++) {
      // Where half of top_k is less than 8, the turns that are left over repeat the first one.
      const by = turn <= topK / 2 ? turn : 1;
      store<u8>(TURNS + (turn - 1) * 16 + lane, <u8>(lane - place + ((place + by) % topK)));
    }
  }
}

/** Writes the low bytes of `n` ids behind the ids and returns where they are. */
function lowBytes(ids: usize, dtype: Dtype, n: usize): usize {
  const low = ids + n * <usize>itemSize(dtype) + SLACK;
  const end = low + n;
  let to = low;
  if (dtype == Dtype.I4) {
    const mask = v128.load(LOW_OF_32);
    for (let at = ids; to < end; at += 64) {
      const a = v128.and(v128.load(at), mask);
      const b = v128.and(v128.load(at, 16), mask);
      const c = v128.and(v128.load(at, 32), mask);
      const d = v128.and(v128.load(at, 48), mask);
      v128.store(to, i8x16.narrow_i16x8_u(i16x8.narrow_i32x4_u(a, b), i16x8.narrow_i32x4_u(c, d)));
      to += 16;
    }
    return low;
  }
  const mask = v128.load(LOW_OF_16);
  for (let at = ids; to < end; at += 32) {
    v128.store(to, i8x16.narrow_i16x8_u(v128.and(v128.load(at), mask), v128.and(v128.load(at, 16), mask)));
    to += 16;
  }
  return low;
}

/**
 * Compares the layers from `layer` to `to`, of up to 8 ids each, whose low bytes are at `low` and
 * fill whole vectors. Writes the layers with two equal bytes to SUSPECTS and returns how many these
 * are.
 */
function alikeIn8(low: usize, layer: usize, to: usize, topK: usize): usize {
  const used = v128.load(IN_USE);
  const one = v128.load(TURNS);
  const two = v128.load(TURNS, 16);
  const three = v128.load(TURNS, 32);
  const four = v128.load(TURNS, 48);
  const together = MAX_PLACES / topK;
  const step = together * topK;
  let found: usize = 0;
  for (let at = low + layer * topK; layer < to; layer += together, at += step) {
    const here = v128.load(at);
    const odd = v128.or(i8x16.eq(here, i8x16.swizzle(here, one)), i8x16.eq(here, i8x16.swizzle(here, three)));
    const even = v128.or(i8x16.eq(here, i8x16.swizzle(here, two)), i8x16.eq(here, i8x16.swizzle(here, four)));
    const alike = i8x16.bitmask(v128.and(v128.or(odd, even), used));
    if (alike != 0) found = suspect(found, layer, alike, topK);
  }
  return found;
}

/** As `alikeIn8`, for layers of up to 16 ids. */
function alikeIn16(low: usize, layer: usize, to: usize, topK: usize): usize {
  const used = v128.load(IN_USE);
  const one = v128.load(TURNS);
  const two = v128.load(TURNS, 16);
  const three = v128.load(TURNS, 32);
  const four = v128.load(TURNS, 48);
  const five = v128.load(TURNS, 64);
  const six = v128.load(TURNS, 80);
  const seven = v128.load(TURNS, 96);
  const eight = v128.load(TURNS, 112);
  let found: usize = 0;
  for (let at = low + layer * topK; layer < to; layer++, at += topK) {
    const here = v128.load(at);
    let odd = v128.or(i8x16.eq(here, i8x16.swizzle(here, one)), i8x16.eq(here, i8x16.swizzle(here, three)));
    let even = v128.or(i8x16.eq(here, i8x16.swizzle(here, two)), i8x16.eq(here, i8x16.swizzle(here, four)));
    odd = v128.or(odd, i8x16.eq(here, i8x16.swizzle(here, five)));
    even = v128.or(even, i8x16.eq(here, i8x16.swizzle(here, six)));
    odd = v128.or(odd, i8x16.eq(here, i8x16.swizzle(here, seven)));
    even = v128.or(even, i8x16.eq(here, i8x16.swizzle(here, eight)));
    const alike = i8x16.bitmask(v128.and(v128.or(odd, even), used));
    if (alike != 0) found = suspect(found, layer, alike, topK);
  }
  return found;
}

/** Adds the suspects of a vector that begins with `layer`; `alike` has a bit for each byte. */
function suspect(found: usize, layer: usize, alike: i32, topK: usize): usize {
  const places = (1 << (<i32>topK)) - 1;
  for (; alike != 0; alike >>= <i32>topK, layer++) {
    if ((alike & places) != 0) store<u32>(SUSPECTS + 4 * found++, <u32>layer);
  }
  return found;
}

/** Whether all of `n` ids, read without a sign, are below `limit`, which fits into an id. */
function allBelow(ids: usize, dtype: Dtype, n: usize, limit: u32): bool {
  const end = ids + n * <usize>itemSize(dtype);
  let at = ids;
  let above: v128;
  if (dtype == Dtype.U1) {
    const most = i8x16.splat(<i8>limit);
    above = v128.xor(most, most);
    for (; at + 16 <= end; at += 16) above = v128.or(above, i8x16.ge_u(v128.load(at), most));
    for (; at < end; at++) if (load<u8>(at) >= limit) return false;
  } else if (dtype == Dtype.I4) {
    const most = i32x4.splat(limit);
    above = v128.xor(most, most);
    for (; at + 16 <= end; at += 16) above = v128.or(above, i32x4.ge_u(v128.load(at), most));
    for (; at < end; at += 4) if (load<u32>(at) >= limit) return false;
  } else {
    const most = i16x8.splat(<i16>limit);
    above = v128.xor(most, most);
    for (; at + 16 <= end; at += 16) above = v128.or(above, i16x8.ge_u(v128.load(at), most));
    for (; at < end; at += 2) if (load<u16>(at) >= limit) return false;
  }
  return !v128.any_true(above);
}

/** A step of a stable radix sort: copies `n` numbers, sorted by the 8 bits above `shift`. */
function sortByDigit(from: usize, to: usize, n: usize, shift: u32): void {
  memory.fill(COUNTS, 0, COUNTS_BYTES);
  const end = from + n * 4;
  for (let at = from; at < end; at += 4) {
    const count = COUNTS + 4 * <usize>((load<u32>(at) >> shift) & 0xff);
    store<u32>(count, load<u32>(count) + 1);
  }
  let place: u32 = 0;
  for (let count = COUNTS; count < COUNTS + COUNTS_BYTES; count += 4) {
    const here = load<u32>(count);
    store<u32>(count, place);
    place += here;
  }
  for (let at = from; at < end; at += 4) {
    const value = load<u32>(at);
    const next = COUNTS + 4 * <usize>((value >> shift) & 0xff);
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
