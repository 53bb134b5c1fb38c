// vLLM's prefix cache, which knows which blocks hold which tokens. The hash of a block covers its
// own tokens and, through the hash of the block before it, all earlier tokens. `cache_salt` is part
// of the first block's hash and thereby of every hash that follows (vllm/v1/core/kv_cache_utils.py,
// `generate_block_hash_extra_keys`).

/** The hashes of the full blocks of a sequence that grows. */
export class BlockHashes {
  readonly list: number[] = [];
  #high = 0x2545f491;
  #low = 0x811c9dc5;
  #tokens = 0;

  /** `salt` separates sequences with the same tokens that must not share blocks. */
  constructor(
    private readonly blockSize: number,
    salt: string,
  ) {
    for (const byte of Buffer.from(salt)) this.#mix(byte);
  }

  extend(tokens: Iterable<number>): this {
    for (const token of tokens) {
      this.#mix(token);
      if (++this.#tokens % this.blockSize !== 0) continue;
      // A hash has 53 bits, so two sequences of one test do not collide by chance.
      this.list.push((this.#high >>> 0) * 0x20_0000 + (this.#low >>> 11));
    }
    return this;
  }

  clone(): BlockHashes {
    const copy = new BlockHashes(this.blockSize, '');
    for (const hash of this.list) copy.list.push(hash);
    copy.#high = this.#high;
    copy.#low = this.#low;
    copy.#tokens = this.#tokens;
    return copy;
  }

  #mix(value: number): void {
    const k = Math.imul(value + 1, 0xcc9e2d51);
    const high = this.#high ^ Math.imul((k << 15) | (k >>> 17), 0x1b873593);
    this.#high = (Math.imul((high << 13) | (high >>> 19), 5) + 0xe6546b64) | 0;
    this.#low = Math.imul(this.#low ^ (value + 1) ^ (this.#high >>> 7), 0x01000193);
  }
}

/**
 * The cached blocks by hash. Several blocks may hold the same tokens if each was filled before
 * another one could be found.
 */
export class PrefixCache {
  readonly #blocks = new Map<number, number[]>();
  readonly #hashes = new Map<number, number>();

  /** The block with this hash that was added first. */
  find(hash: number): number | undefined {
    return this.#blocks.get(hash)?.[0];
  }

  /** Adds a full block under its hash. A block that is already in the cache keeps its hash. */
  add(hash: number, block: number): void {
    if (this.#hashes.has(block)) return;
    this.#hashes.set(block, hash);
    const same = this.#blocks.get(hash);
    if (same) same.push(block);
    else this.#blocks.set(hash, [block]);
  }

  /** Removes `block`, which is about to hold other tokens. */
  evict(block: number): void {
    const hash = this.#hashes.get(block);
    if (hash === undefined) return;
    this.#hashes.delete(block);
    const others = this.#blocks.get(hash)!.filter((other) => other !== block);
    if (others.length > 0) this.#blocks.set(hash, others);
    else this.#blocks.delete(hash);
  }
}
