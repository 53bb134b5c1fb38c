// Memory for bodies, beside the runtime's allocator. The runtime's heap doubles the VM's memory
// whenever it runs short, and a VM gets at most 1 GiB, which never shrinks. The arena grows the
// memory by just the wasm pages that it lacks, and uses again what is freed.
//
//   run         [ size | address of the next free run, if it is free | … ], in pages of the arena
//   size        a multiple of GRAIN
//   free list   in the order of addresses, neighbours joined; the smallest run that fits is taken

const GRAIN: usize = 4 << 10;
const PAGE: usize = 64 << 10;
/**
 * Bytes of a run before its block; they hold the run's size. With 64 of them a block begins at a
 * cache line, where large copies are fastest.
 */
const HEADER: usize = 64;
/** Offset in a free run of the address of the next one. */
const NEXT: usize = 8;
/** Blocks of this size or more come from the arena. One of this size fills its run to the end. */
export const LARGE: usize = (16 << 10) - HEADER;

/** Bit p is set when wasm page p belongs to the arena. There is a bit for each page of 1 GiB. */
const owned: usize = memory.data(2048, 8);
/** Address of the first free run; 0 when there is none. */
let free: usize = 0;

/**
 * The least length of a block that has at least `len` bytes, comes from the arena, and fills its
 * run to the end.
 */
export function roomyLength(len: usize): usize {
  return ((max(len, LARGE) + HEADER + GRAIN - 1) & ~(GRAIN - 1)) - HEADER;
}

/**
 * Unmanaged memory of `size` bytes, for `deallocate` to give back; traps when the VM has no more.
 */
export function allocate(size: usize): usize {
  return size < LARGE ? heap.alloc(max<usize>(size, 1)) : take((size + HEADER + GRAIN - 1) & ~(GRAIN - 1));
}

/** Gives back what `allocate` returned. */
export function deallocate(ptr: usize): void {
  if (isOwned(ptr)) giveBack(ptr - HEADER, load<usize>(ptr - HEADER));
  else heap.free(ptr);
}

/** Bytes of the VM's memory, used or not. They never become fewer. */
export function vmBytes(): u64 {
  return (<u64>memory.size()) << 16;
}

/** Whether an address lies in a wasm page of the arena. */
@inline
function isOwned(ptr: usize): bool {
  return ((load<u8>(owned + (ptr >> 19)) >> (<u8>((ptr >> 16) & 7))) & 1) != 0;
}

/** Takes a run of `size` bytes, a multiple of `GRAIN`; returns the address of its block. */
function take(size: usize): usize {
  let best: usize = 0;
  let beforeBest: usize = 0;
  for (let before: usize = 0, run = free; run != 0; before = run, run = load<usize>(run, NEXT)) {
    const has = load<usize>(run);
    if (has < size || (best != 0 && has >= load<usize>(best))) continue;
    best = run;
    beforeBest = before;
    if (has == size) break;
  }
  if (best == 0) {
    // The host gives no more pages. The runtime's heap may still have the bytes, since it takes
    // twice what it needs.
    if (!grow(size)) return heap.alloc(size - HEADER);
    return take(size);
  }
  const left = load<usize>(best) - size;
  let next = load<usize>(best, NEXT);
  if (left > 0) {
    const rest = best + size;
    store<usize>(rest, left);
    store<usize>(rest, next, NEXT);
    next = rest;
  }
  if (beforeBest == 0) free = next;
  else store<usize>(beforeBest, next, NEXT);
  store<usize>(best, size);
  return best + HEADER;
}

/**
 * Adds pages for a run of `size` bytes, less those of a free run that lies at the end of the
 * memory; false when the VM has no more.
 */
function grow(size: usize): bool {
  const end = (<usize>memory.size()) << 16;
  let last = free;
  if (last != 0) while (load<usize>(last, NEXT) != 0) last = load<usize>(last, NEXT);
  const tail = last != 0 && last + load<usize>(last) == end ? load<usize>(last) : 0;
  const bytes = (size - tail + PAGE - 1) & ~(PAGE - 1);
  if (memory.grow(<i32>(bytes >> 16)) < 0) return false;
  for (let page = end; page < end + bytes; page += PAGE) {
    const at = owned + (page >> 19);
    store<u8>(at, load<u8>(at) | (<u8>((<usize>1) << ((page >> 16) & 7))));
  }
  giveBack(end, bytes);
  return true;
}

/** Puts a run into the free list, joined with the neighbours that are free. */
function giveBack(run: usize, size: usize): void {
  let before: usize = 0;
  let after = free;
  while (after != 0 && after < run) {
    before = after;
    after = load<usize>(after, NEXT);
  }
  if (after != 0 && run + size == after) {
    size += load<usize>(after);
    after = load<usize>(after, NEXT);
  }
  if (before != 0 && before + load<usize>(before) == run) {
    run = before;
    size += load<usize>(before);
  } else if (before == 0) free = run;
  else store<usize>(before, run, NEXT);
  store<usize>(run, size);
  store<usize>(run, after, NEXT);
}
