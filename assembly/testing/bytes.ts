// Memory: what Node allocates for its own bytes, the arena, the count of held bytes, and the
// output.

import { allocate, deallocate, vmBytes as bytesOfVm } from '../bytes/arena';
import { heldBytes as held, Block } from '../bytes/block';
import { output } from './shared';

/** Memory for bytes that Node writes; Node calls `free`. */
export function alloc(len: usize): usize {
  return heap.alloc(max<usize>(len, 1));
}

export function free(ptr: usize): void {
  heap.free(ptr);
}

/** Bytes in live blocks: 0 when nothing leaks. */
export function heldBytes(): f64 {
  return <f64>held();
}

export function arenaAlloc(len: usize): usize {
  return allocate(len);
}

export function arenaFree(ptr: usize): void {
  deallocate(ptr);
}

export function vmBytes(): f64 {
  return <f64>bytesOfVm();
}

/** A block without memory that counts against the VM's budget. */
let ballast: Block | null = null;

/**
 * Counts `len` bytes against the VM's budget, so that a test sees what happens when memory is
 * short.
 */
export function holdBallast(len: usize): void {
  ballast = Block.adopt(0, len);
}

export function dropBallast(): void {
  const block = ballast;
  if (block !== null) block.free();
  ballast = null;
}

/**
 * Address of the bytes that were written since the last `clearOutput`; valid until the next call
 * that writes.
 */
export function outputPtr(): usize {
  return output.ptr;
}

export function outputLen(): usize {
  return output.len;
}

export function clearOutput(): void {
  output.len = 0;
}
