// The KV stores that the engines of a deployment share. The key of an entry decides whether a
// request can be kept from finding it.

import type { Fleet, KvParams } from './fleet.ts';
import type { StoreName } from './options.ts';
import { BlockHashes } from './prefix_cache.ts';

/** What a request looks up or saves. */
export interface Stored {
  tokens: readonly number[];
  salt: string;
  params: KvParams | null;
}

export interface Store {
  /** The number of tokens, from the first on, whose KV the store has; never the whole prompt. */
  lookup(request: Stored): number;
  save(request: Stored): void;
}

export function createStore(name: StoreName, fleet: Fleet, blockSize: number): Store {
  return name === 'example' ? new Example(fleet, blockSize) : new Lmcache(fleet, blockSize, name);
}

/**
 * vLLM's ExampleConnector (vllm/distributed/kv_transfer/kv_connector/v1/example_connector.py): an
 * entry is a whole prompt without its last block, and its key is its token ids alone. So nothing in
 * a request can keep it from finding an entry.
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

  /**
   * `align_to_block_size(len(token_ids) - 1)` in vLLM subtracts one more token before it rounds
   * down.
   */
  #aligned(tokens: readonly number[]): number {
    return Math.max(Math.floor((tokens.length - 2) / this.blockSize) * this.blockSize, 0);
  }

  #key(tokens: readonly number[], aligned: number): string {
    const hashes = new BlockHashes(this.blockSize, '').extend(tokens.slice(0, aligned));
    return `example ${aligned} ${hashes.list.at(-1) ?? ''}`;
  }
}

/**
 * LMCache 0.5.6: an entry is a chunk. Its key is its tokens, the tokens before them, and every
 * `lmcache.tag.` of the request's `kv_transfer_params` (lmcache/utils.py, `CacheEngineKey`). With
 * the multiprocess connector, the key has `cache_salt` instead of the tags
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
