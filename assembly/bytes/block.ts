// Unmanaged memory for body bytes: who owns it and how much of it the VM holds. Knows nothing of what the bytes mean.

import { allocate, deallocate } from './arena';

/** Bytes in live blocks, over all exchanges of this VM. */
let held: usize = 0;

/** Bytes of bodies that this VM holds now; 0 after the last exchange has ended. */
export function heldBytes(): usize {
  return held;
}

/**
 * A piece of unmanaged memory with exactly one owner, who calls `free`. Holders of anything else than the owner's
 * reference only borrow it and must not outlive it.
 */
@final
export class Block {
  /** Bytes behind `len` that are the block's, too. */
  spare: usize = 0;

  private constructor(
    public ptr: usize,
    public len: usize,
  ) {}

  /** A new block of `len` bytes, not cleared. The caller has checked `len` against its budget: running out traps. */
  static alloc(len: usize): Block {
    held += len;
    return new Block(allocate(len), len);
  }

  /** A new block of no bytes, with room for `len`. */
  static room(len: usize): Block {
    const block = Block.alloc(len);
    block.spare = len;
    block.len = 0;
    return block;
  }

  /** Takes over memory that the host allocated through `malloc`; `ptr` is 0 for an empty answer. */
  static adopt(ptr: usize, len: usize): Block {
    held += len;
    return new Block(ptr, len);
  }

  /** Makes `n` of the spare bytes part of the block; returns where they begin. */
  extend(n: usize): usize {
    const at = this.end;
    this.len += n;
    this.spare -= n;
    return at;
  }

  /** Makes the last `n` bytes spare. */
  shrink(n: usize): void {
    this.len -= n;
    this.spare += n;
  }

  get end(): usize {
    return this.ptr + this.len;
  }

  /** Keeps the first `len` bytes. */
  truncate(len: usize): void {
    held -= this.len - len;
    this.len = len;
  }

  /** Gives the memory back. A second call does nothing. */
  free(): void {
    if (this.ptr != 0) deallocate(this.ptr);
    held -= this.len + this.spare;
    this.ptr = 0;
    this.len = this.spare = 0;
  }
}

/**
 * What one VM may hold in blocks. It has 1 GiB for good (cpp-host `limits.h`); the rest is for the allocator's
 * fragmentation, for what the host hands over, and for the managed heap.
 */
export const VM_BUDGET: usize = 768 << 20;

/** Whether `len` more bytes may be held. Ask before every allocation whose size a peer decides. */
export function fits(len: u64): bool {
  return <u64>held + len <= <u64>VM_BUDGET;
}
