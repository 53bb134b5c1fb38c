// vLLM's MooncakeConnector: both legs name the same transfer, and decode asks prefill's bootstrap
// server which engine holds it.

import { ApiError, EngineError, type Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import { sameTokens, type Fleet, type KvParams, type PrefillEngine } from '../fleet.ts';
import { header } from '../http.ts';
import { never, within, type Meeting } from '../meeting.ts';
import { DEFAULT_BOOTSTRAP, type Address, type EngineOptions, type Patience } from '../options.ts';
import type { EngineRequest } from '../../scenario.ts';
import { ALONE, kvError, type Agreement, type Handshake } from './handshake.ts';

const PATIENCE = 480_000;
const TO_DECODE = { do_remote_decode: true, do_remote_prefill: false };
const FROM_PREFILL = { do_remote_decode: false, do_remote_prefill: true };
const WORKER_PORT = 40_000;

export class Mooncake implements Handshake, PrefillEngine {
  engineIds: string[];

  constructor(
    private readonly options: EngineOptions,
    private readonly fleet: Fleet,
  ) {
    this.engineIds = this.#newIds();
    if (options.role === 'prefill') fleet.prefills.add(this);
  }

  get address(): Address {
    return this.options.bootstrap ?? DEFAULT_BOOTSTRAP;
  }

  restart(): void {
    for (const key of this.fleet.kept) {
      if (this.engineIds.some((id) => key.startsWith(keyOf(id, '')))) this.fleet.kept.delete(key);
    }
    this.engineIds = this.#newIds();
  }

  get(path: string): object | null {
    if (path !== '/query' || this.options.role !== 'prefill') return null;
    const worker = (rank: number) => ({ 0: { 0: `tcp://${this.address.host}:${WORKER_PORT + rank}` } });
    return Object.fromEntries(
      this.engineIds.map((engine_id, rank) => [rank, { engine_id, worker_addr: worker(rank) }]),
    );
  }

  begin(call: Call, request: EngineRequest): Agreement | Promise<Agreement> {
    const params = call.kvTransferParams;
    if (!params) return ALONE;
    // The simulated engine refuses parameters that it cannot use. vLLM only logs a warning and
    // never gets the KV; the filter must not rely on that.
    if (this.options.role === 'prefill') return this.#offer(params, call, request);
    return this.#pull(params, call);
  }

  /**
   * vLLM 0.30 has prefill release the blocks of a request that decode has refused, by a request
   * that it aborts at once (`_with_kv_transfer_rejection_cleanup`). When the transfer is done, the
   * scheduler does not find that request, and the engine dies (`assert req_id in self.requests` in
   * vllm/v1/core/sched/scheduler.py).
   */
  refused(params: KvParams, die: () => void): void {
    const { transfer_id: transfer, remote_engine_id: engine } = params;
    if (this.options.role !== 'decode' || this.options.survivesRefusals) return;
    if (params['do_remote_prefill'] !== true || typeof transfer !== 'string') return;
    void this.fleet.meeting(keyOf(String(engine), transfer)).prefill.here.then(die);
  }

  #newIds(): string[] {
    return Array.from({ length: this.options.ranks ?? 1 }, () => this.fleet.uuid());
  }

  #offer(params: KvParams, call: Call, request: EngineRequest): Agreement {
    const { transfer_id } = textsOf(params, TO_DECODE, ['transfer_id']);
    if (call.prompts.length > 1 || call.n > 1) throw kvError('one transfer_id for several requests');
    if (call.maxTokens !== 1) throw kvError('the prefill leg must be capped to one token');
    const rank = this.#rankOf(request);
    const key = keyOf(this.engineIds[rank]!, transfer_id);
    const meeting = this.fleet.meeting(key);
    return {
      ...ALONE,
      end: (choices: readonly Choice[]) => {
        // Prefill keeps the blocks only if the request ended at its cap.
        if (choices[0]!.finish !== 'length') meeting.prefill.leave();
        else if (!meeting.prefill.arrive(call.prompts[0]!.tokens)) {
          throw kvError(`transfer_id ${transfer_id} was used before`);
        } else void this.#keep(key, meeting);
        return null;
      },
    };
  }

  /** Keeps the blocks until a decode engine has pulled them, or for as long as they are kept. */
  async #keep(key: string, meeting: Meeting): Promise<void> {
    this.fleet.kept.add(key);
    const met = await within(meeting.decode.here, this.options.keepsKv ?? this.#patience);
    if (!met) meeting.prefill.leave();
    this.fleet.kept.delete(key);
  }

  #rankOf(request: EngineRequest): number {
    const text = header(request, 'x-data-parallel-rank');
    if (text === undefined) throw new ApiError(400, 'x-data-parallel-rank is missing');
    const rank = /^\d+$/.test(text) ? Number(text) : NaN;
    if (rank < this.engineIds.length) return rank;
    throw new ApiError(400, `data_parallel_rank ${text} is out of range [0, ${this.engineIds.length}).`);
  }

  async #pull(params: KvParams, call: Call): Promise<Agreement> {
    const names = ['transfer_id', 'remote_bootstrap_addr', 'remote_engine_id'] as const;
    const { transfer_id, remote_bootstrap_addr, remote_engine_id } = textsOf(params, FROM_PREFILL, names);
    const address = /^http:\/\/([^/?#@]+):(\d+)$/.exec(remote_bootstrap_addr);
    if (!address) throw kvError('remote_bootstrap_addr must be http://host:port');
    if (call.prompts.length > 1) throw kvError('one transfer_id for several requests');
    const host = address[1]!.replace(/^\[(.*)\]$/, '$1');
    const prefill = this.fleet.prefillAt(host, Number(address[2]));
    if (!prefill?.engineIds.includes(remote_engine_id)) {
      if (this.options.kvLoadFailure === 'wait') await within(never(), this.#patience);
      return this.#loadFailure();
    }
    const { tokens } = call.prompts[0]!;
    const meeting = this.fleet.meeting(keyOf(remote_engine_id, transfer_id));
    const first = meeting.decode.arrive(tokens);
    const met = await within(first ? meeting.prefill.here : never(), this.#patience);
    if (!met || !sameTokens(met, tokens)) {
      meeting.decode.leave();
      return this.#loadFailure();
    }
    return { external: () => ({ pulled: met }) };
  }

  /** What becomes of a request whose KV cannot be loaded; vLLM writes the reason to its log. */
  #loadFailure(): Agreement {
    if (this.options.kvLoadFailure === 'recompute') return ALONE;
    throw new EngineError('Internal server error');
  }

  get #patience(): Patience {
    return this.options.patience ?? PATIENCE;
  }
}

/** The name of a transfer within a fleet. */
const keyOf = (engineId: string, transfer: string) => `transfer ${engineId} ${transfer}`;

/**
 * Reads the members `names`, which must be non-empty strings. The parameters must also have the
 * members of `flags` with these values, and no others.
 */
function textsOf<K extends string>(
  params: KvParams,
  flags: Record<string, boolean>,
  names: readonly K[],
): Record<K, string> {
  for (const [key, value] of Object.entries(flags)) {
    if (params[key] !== value) throw kvError(`${key} must be ${value} on this leg`);
  }
  for (const name of names) {
    const value = params[name];
    if (typeof value !== 'string' || value === '') throw kvError(`${name} must be a text`);
  }
  for (const key of Object.keys(params)) {
    if (!(key in flags) && !names.includes(key as K)) throw kvError(`unknown key ${key}`);
  }
  return params as Record<K, string>;
}
