// vLLM's NixlConnector: prefill hands out the addresses of its blocks, and decode pulls them.

import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import type { Fleet, KvParams } from '../fleet.ts';
import { blockSizeOf, type EngineOptions } from '../options.ts';
import { ALONE, kvError, type Agreement, type Handshake } from './handshake.ts';

const HANDSHAKE_KEYS = new Set([
  ...['do_remote_decode', 'do_remote_prefill', 'remote_engine_id'],
  ...['remote_block_ids', 'remote_host', 'remote_port'],
]);

export class Nixl implements Handshake {
  #engineId: string;
  #blocks = 0;

  constructor(
    private readonly options: EngineOptions,
    private readonly fleet: Fleet,
  ) {
    this.#engineId = fleet.uuid();
  }

  restart(): void {
    this.fleet.forget(this.#engineId);
    this.#engineId = this.fleet.uuid();
  }

  begin(call: Call): Agreement {
    const params = call.kvTransferParams;
    if (!params) return ALONE;
    for (const key of ['do_remote_decode', 'do_remote_prefill']) {
      if (typeof (params[key] ?? false) !== 'boolean') throw kvError(`${key} must be a boolean`);
    }
    const toDecode = params['do_remote_decode'] === true;
    const fromPrefill = params['do_remote_prefill'] === true;
    if (toDecode && fromPrefill) throw kvError('do_remote_decode and do_remote_prefill exclude each other');
    if (fromPrefill) return this.#claim(params, call);
    if (!toDecode) return ALONE;
    if (this.options.role !== 'prefill') throw kvError('do_remote_decode sent to a decode engine');
    for (const [key, value] of Object.entries(params)) {
      if (!HANDSHAKE_KEYS.has(key)) throw kvError(`unknown key ${key}`);
      if (value !== null && typeof value !== 'boolean')
        throw kvError(`${key} must be null on the prefill leg`);
    }
    return { ...ALONE, end: (choices, id) => this.#handOut(call, choices, id) };
  }

  #claim(params: KvParams, call: Call): Agreement {
    if (this.options.role !== 'decode') throw kvError('do_remote_prefill sent to a prefill engine');
    const claimed = this.fleet.claim(params, call.prompts[0]!.tokens);
    if (typeof claimed === 'string') throw kvError(claimed);
    claimed.consumed = true;
    // A batch has only one `kv_transfer_params`, so its other prompts start on the first prompt's
    // KV.
    return { external: () => ({ pulled: claimed.tokens }) };
  }

  #handOut(call: Call, choices: readonly Choice[], id: string): KvParams | null {
    const all = call.prompts.map(({ tokens }, p) => {
      // vLLM keeps the blocks only of a request that ended at its cap.
      if (choices[p * call.n]!.finish !== 'length') return null;
      const suffix = call.endpoint === 'completions' ? `-${p}` : '';
      const blocks = Math.ceil(tokens.length / blockSizeOf(this.options));
      const params: KvParams = {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_block_ids: [Array.from({ length: blocks }, () => (this.#blocks++ % 4096) + 1)],
        remote_engine_id: this.#engineId,
        remote_request_id: `${id}${suffix}-${this.fleet.hex(8)}`,
        remote_host: 'localhost',
        remote_port: 21080,
        tp_size: 1,
        dcp_size: 1,
        pp_size: 1,
        remote_num_tokens: tokens.length,
        remote_blocks_expiry_time: null,
        transfer_mode: 'pull',
        ...this.options.extraKvParams,
      };
      this.fleet.handOut(String(params['remote_request_id']), params, tokens);
      return params;
    });
    return all[0] ?? null;
  }
}
