// Unmanaged memory for the bytes of bodies: who owns it, and how much of it this VM holds. What the
// bytes mean is not known here.

import { allocate, deallocate } from './arena';

/** Bytes of live blocks, spare ones included, over all exchanges of this VM. */
let held: usize = 0;

/** Bytes of bodies that this VM holds now; 0 after the last exchange has ended. */
export function heldBytes(): usize {
  return held;
}

/**
 * A piece of unmanaged memory with exactly one owner, who calls `free`. Everybody else borrows it,
 * and must not use its address after that.
 */
@final
export class Block {
  /** Bytes behind the first `len` that belong to the block and hold nothing yet. */
  spare: usize = 0;

  private constructor(
    public ptr: usize,
    public len: usize,
  ) {}

  /**
   * A new block of `len` bytes, not cleared. The caller has asked `fits` first: a VM that runs out
   * of memory traps.
   */
  static alloc(len: usize): Block {
    held += len;
    return new Block(allocate(len), len);
  }

  /** A new block without bytes, of which `len` are spare. */
  static room(len: usize): Block {
    const block = Block.alloc(len);
    block.spare = len;
    block.len = 0;
    return block;
  }

  /**
   * Takes over memory that the host allocated through our `malloc`; `ptr` is 0 when it returned
   * nothing.
   */
  static adopt(ptr: usize, len: usize): Block {
    held += len;
    return new Block(ptr, len);
  }

  /**
   * Makes the first `n` spare bytes part of the block, for the caller to fill; returns their
   * address.
   */
  extend(n: usize): usize {
    const at = this.end;
    this.len += n;
    this.spare -= n;
    return at;
  }

  /** Makes the last `n` bytes of the block spare. */
  shrink(n: usize): void {
    this.len -= n;
    this.spare += n;
  }

  get end(): usize {
    return this.ptr + this.len;
  }

  /**
   * Keeps the first `len` bytes. The others are no longer counted, although their memory is given
   * back only with the block.
   */
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
 * Bytes that one VM may hold in blocks. Envoy gives a VM at most 1 GiB of memory
 * (proxy-wasm-cpp-host, `limits.h`); the rest is for fragmentation, for what the host hands over,
 * and for the managed heap.
 */
export const VM_BUDGET: usize = 768 << 20;

/**
 * Whether `len` more bytes may be held. To be asked before every allocation whose size a client or
 * an engine decides.
 */
export function fits(len: u64): bool {
  return <u64>held + len <= <u64>VM_BUDGET;
}
