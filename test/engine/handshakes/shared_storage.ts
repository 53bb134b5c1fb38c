// The handshake of a KV store that all engines share: decode finds what prefill has stored there,
// and what decode itself has stored there.

import { saltOf, type Call } from '../call.ts';
import type { Fleet } from '../fleet.ts';
import { blockSizeOf, type EngineOptions } from '../options.ts';
import { createStore, type Store, type Stored } from '../store.ts';
import type { Agreement, Handshake } from './handshake.ts';

export class SharedStorage implements Handshake {
  readonly #store: Store;
  /**
   * Whether this engine reads from the store. LMCache's prefill only writes to it
   * (lmcache/integration/vllm/vllm_v1_adapter.py, `get_num_new_matched_tokens`).
   */
  readonly #loads: boolean;

  constructor(options: EngineOptions, fleet: Fleet) {
    const name = options.store ?? 'example';
    this.#store = createStore(name, fleet, blockSizeOf(options));
    this.#loads = options.role === 'decode' || name === 'example';
  }

  begin(call: Call): Agreement {
    const requests = call.prompts.map(({ tokens }, p): Stored => ({
      tokens,
      salt: saltOf(call, p),
      params: call.kvTransferParams,
    }));
    const found = requests.map((request) => (this.#loads ? this.#store.lookup(request) : 0));
    return {
      external: (p) => ({ loaded: found[p]! }),
      end: () => {
        for (const request of requests) this.#store.save(request);
        return null;
      },
    };
  }
}
