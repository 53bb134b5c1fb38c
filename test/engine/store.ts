// KV stores that the engines of a deployment share. What is the key of an entry decides whether a request can be kept from it.

import type { Fleet, KvParams } from './fleet.ts';
import type { StoreName } from './options.ts';
import { BlockHashes } from './prefix_cache.ts';

/** What a request brings to the store. */
export interface Stored {
  tokens: readonly number[];
  salt: string;
  params: KvParams | null;
}

export interface Store {
  /** How many tokens, from the first on, the store has KV of; never the whole prompt. */
  lookup(request: Stored): number;
  save(request: Stored): void;
}

export function createStore(name: StoreName, fleet: Fleet, blockSize: number): Store {
  return name === 'example' ? new Example(fleet, blockSize) : new Lmcache(fleet, blockSize, name);
}

/**
 * vLLM's ExampleConnector (vllm/distributed/kv_transfer/kv_connector/v1/example_connector.py): an entry is a whole prompt but for its
 * last block, found by its token ids alone. Nothing in a request keeps it from being found.
 */
class Example implements Store {
  constructor(
    private readonly fleet: Fleet,
    private readonly blockSize: number,
  ) {}

  lookup({ tokens }: Stored): number {
    const aligned = this.#aligned(tokens);
    return this.fleet.stored.has(this.#key(tokens, aligned)) ? aligned : 0;
  }

  save({ tokens }: Stored): void {
    this.fleet.stored.add(this.#key(tokens, this.#aligned(tokens)));
  }

  /** `align_to_block_size(len(token_ids) - 1)` rounds down from one token less. */
  #aligned(tokens: readonly number[]): number {
    return Math.max(Math.floor((tokens.length - 2) / this.blockSize) * this.blockSize, 0);
  }

  #key(tokens: readonly number[], aligned: number): string {
    const hashes = new BlockHashes(this.blockSize, '').extend(tokens.slice(0, aligned));
    return `example ${aligned} ${hashes.list.at(-1) ?? ''}`;
  }
}

/**
 * LMCache 0.5.6: an entry is a chunk, found by its tokens, those before them, and every `lmcache.tag.` of the request's
 * `kv_transfer_params` (lmcache/utils.py, `CacheEngineKey`); with the multiprocess connector by `cache_salt` and no tags
 * (lmcache/v1/distributed/api.py, `ObjectKey`).
 */
class Lmcache implements Store {
  constructor(
    private readonly fleet: Fleet,
    private readonly blockSize: number,
    private readonly name: 'lmcache' | 'lmcache_mp',
  ) {}

  lookup(request: Stored): number {
    const keys = this.#keys(request);
    let hit = 0;
    while (hit < keys.length && this.fleet.stored.has(keys[hit]!)) hit++;
    return Math.min(hit * this.blockSize, request.tokens.length - 1);
  }

  save(request: Stored): void {
    if (this.name === 'lmcache' && request.params?.['lmcache.skip_save'] === true) return;
    for (const key of this.#keys(request)) this.fleet.stored.add(key);
  }

  #keys({ tokens, salt, params }: Stored): string[] {
    const tags = Object.entries(params ?? {}).filter(([key]) => key.startsWith('lmcache.tag.'));
    const named = this.name === 'lmcache_mp' ? salt : tags.map(([key, value]) => `${key}%${value}`).join('@');
    return new BlockHashes(this.blockSize, named).extend(tokens).list.map((hash) => `${this.name} ${hash}`);
  }
}
