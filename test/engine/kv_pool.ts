// The blocks of an engine's KV cache, and what their slots hold. The number of a slot is block x
// block size + offset. Rows are kept per slot, as vLLM 0.30
// (vllm/model_executor/layers/fused_moe/routed_experts_capturer.py, `RoutedExpertsManager`) and
// SGLang 0.5.23 (sglang/srt/state_capturer/base.py) keep them: the row of a slot is written when
// its token is forwarded on this engine, and at no other time.

import { PrefixCache } from './prefix_cache.ts';
import { FOREIGN_PREFIX, derive, type RowData, type Router, type Rows } from './router.ts';

export interface PoolOptions {
  /** Tokens per block. */
  blockSize: number;
  /** Number of blocks. A request that needs more blocks than are free gets them nonetheless. */
  capacity: number;
  /**
   * New blocks hold plausible but wrong rows, as if all blocks had been used before, instead of
   * zeros.
   */
  stale: boolean;
}

export class KvPool {
  readonly blockSize: number;
  readonly #cache = new PrefixCache();
  readonly #free = new FreeQueue();
  /** By block: how many requests use it. Block 0 is vLLM's null block, which no request gets. */
  readonly #users = [1];
  /** By slot: the KV, represented by the router's state after the slot's token. */
  #kv = new Int32Array(0);
  /** By slot: whether its token was forwarded on this engine since the block was last allocated. */
  #captured = new Uint8Array(0);
  #rows: Rows;

  constructor(
    private readonly router: Router,
    private readonly options: PoolOptions,
  ) {
    this.blockSize = options.blockSize;
    this.#rows = router.allocate(0);
  }

  /**
   * Takes the cached blocks of a prefix: at most the first `most` of `hashes`, up to the first hash
   * that is not cached.
   */
  hit(hashes: readonly number[], most: number): number[] {
    const found: number[] = [];
    while (found.length < most && found.length < hashes.length) {
      const block = this.#cache.find(hashes[found.length]!);
      if (block === undefined) break;
      if (this.#users[block]!++ === 0) this.#free.remove(block);
      found.push(block);
    }
    return found;
  }

  /**
   * Takes `count` blocks: first blocks that were never used, then those that have been free for the
   * longest time, which are evicted from the cache (vllm/v1/core/kv_cache_utils.py,
   * `FreeKVCacheBlockQueue`). The slots keep their old content.
   */
  allocate(count: number): number[] {
    return Array.from({ length: count }, () => {
      const unused = this.#users.length <= this.options.capacity;
      const block = (unused ? undefined : this.#free.take()) ?? this.#add();
      this.#cache.evict(block);
      this.#users[block] = 1;
      this.#captured.fill(0, block * this.blockSize, (block + 1) * this.blockSize);
      return block;
    });
  }

  /**
   * Enters `blocks` into the cache under `hashes`. If one list is longer than the other, its
   * surplus is ignored.
   */
  cache(hashes: readonly number[], blocks: readonly number[]): void {
    const full = Math.min(hashes.length, blocks.length);
    for (let i = 0; i < full; i++) this.#cache.add(hashes[i]!, blocks[i]!);
  }

  /**
   * Gives blocks back. The last block is queued first and so reused first, because the hash of a
   * block depends on all blocks before it.
   */
  release(blocks: readonly number[]): void {
    for (let i = blocks.length - 1; i >= 0; i--) {
      const block = blocks[i]!;
      if (--this.#users[block]! === 0) this.#free.put(block);
    }
  }

  kv(slot: number): number {
    return this.#kv[slot]!;
  }

  /** KV that another engine computed arrives in a slot. The slot's row does not change. */
  load(slot: number, state: number): void {
    this.#kv[slot] = state;
  }

  /** A token is forwarded into a slot: its KV and its row are written. */
  forward(slot: number, state: number): void {
    this.#kv[slot] = state;
    this.#captured[slot] = 1;
    this.router.fill(this.#rows, slot, state);
  }

  /**
   * Whether the tokens from `from` up to but not including `to` were all forwarded on this engine.
   */
  captured(blocks: readonly number[], from: number, to: number): boolean {
    for (let i = from; i < to; i++) if (!this.#captured[slotOf(blocks, this.blockSize, i)]) return false;
    return true;
  }

  /** The rows of the tokens from `from` up to but not including `to`, whatever their slots hold. */
  read(blocks: readonly number[], from: number, to: number): Rows {
    const { rowLength } = this.router;
    const rows = this.router.allocate(to - from);
    for (let i = from; i < to;) {
      const count = Math.min(this.blockSize - (i % this.blockSize), to - i);
      const slot = slotOf(blocks, this.blockSize, i);
      rows.data.set(
        this.#rows.data.subarray(slot * rowLength, (slot + count) * rowLength),
        (i - from) * rowLength,
      );
      i += count;
    }
    return rows;
  }

  /** Adds a new block and returns its number. */
  #add(): number {
    const block = this.#users.push(0) - 1;
    const slots = (block + 1) * this.blockSize;
    if (slots > this.#kv.length) this.#grow(slots);
    if (this.options.stale) {
      for (let slot = slots - this.blockSize; slot < slots; slot++) {
        this.router.fill(this.#rows, slot, derive(FOREIGN_PREFIX, slot));
      }
    }
    return block;
  }

  #grow(slots: number): void {
    const length = Math.max(slots, 2 * this.#kv.length);
    const rows = this.router.allocate(length);
    rows.data.set(this.#rows.data as RowData & ArrayLike<number>);
    this.#rows = rows;
    this.#kv = grown(this.#kv, new Int32Array(length));
    this.#captured = grown(this.#captured, new Uint8Array(length));
  }
}

/** The slot of the `i`-th token of a sequence. */
export function slotOf(blocks: readonly number[], blockSize: number, i: number): number {
  return blocks[Math.floor(i / blockSize)]! * blockSize + (i % blockSize);
}

function grown<T extends Int32Array | Uint8Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/**
 * The free blocks in the order in which they were given back. The queue is a linked list because a
 * block that is hit in the cache leaves it from the middle.
 */
class FreeQueue {
  /** By block. Block 0, which is never free, stands for both ends of the list. */
  readonly #next: number[] = [0];
  readonly #before: number[] = [0];

  put(block: number): void {
    const last = this.#before[0]!;
    this.#link(last, block);
    this.#link(block, 0);
  }

  take(): number | undefined {
    const first = this.#next[0]!;
    if (first === 0) return undefined;
    this.remove(first);
    return first;
  }

  remove(block: number): void {
    this.#link(this.#before[block]!, this.#next[block]!);
  }

  #link(before: number, next: number): void {
    this.#next[before] = next;
    this.#before[next] = before;
  }
}
