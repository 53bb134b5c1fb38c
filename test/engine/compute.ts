// Runs the simulated model on a call: generates the tokens, and reads the rows that the KV slots of
// these tokens hold at the end.

import { EngineDeath, saltOf, type Call, type Prompt } from './call.ts';
import { applyFaults } from '../../yardstick/faults.ts';
import { indexerRows } from './indexer.ts';
import { KvPool, slotOf } from './kv_pool.ts';
import { versionOf, type EngineOptions } from './options.ts';
import { BlockHashes } from './prefix_cache.ts';
import * as router from './router.ts';
import type { MoeModel, Rows } from './router.ts';
import { EOS } from './tokenizer.ts';

/** The KV of a prompt that this engine does not compute itself. */
export type External =
  /** KV pulled from the engine that has forwarded all of these tokens. */
  | { pulled: readonly number[]; complete?: PrefillsAnswer }
  /** KV of the prompt's first `loaded` tokens, loaded from a store. */
  | { loaded: number };

/**
 * The first generated token comes with the KV, so the decode engine does not even forward the last
 * prompt token.
 */
export interface PrefillsAnswer {
  /** The number of prompt tokens that the prefill engine found in its cache and did not compute. */
  cached: number;
}

/** A prompt while the engine works on it. */
export interface PromptState {
  prompt: Prompt;
  /**
   * The number of prompt tokens that were not computed for this choice; null if the engine does not
   * know it.
   */
  cached: number | null;
}

/**
 * What was captured of one sequence: the rows of all its tokens from `start` on, except the last
 * token, which is never forwarded.
 */
export interface Routing {
  rows: Rows;
  start: number;
  promptTokens: number;
  /** The prompt rows are invalid because another engine has forwarded the prompt. */
  remote: boolean;
}

export interface Choice {
  index: number;
  of: PromptState;
  tokens: number[];
  states: Int32Array;
  finish: 'length' | 'stop';
  routing: Routing | null;
  /** The values of `indexer_topk`; null where there is none. */
  indexerTopk: Int32Array | null;
}

/** One choice of one prompt; the scheduler treats each of them as a request of its own. */
interface Sequence {
  of: PromptState;
  blocks: number[];
  hashes: BlockHashes;
  external: External | null;
  /** The router's state after the last prompt token. */
  end: number;
}

/** The number of tokens of an answer whose request sets no cap. */
const NATURAL_LENGTH = 24;
const UNKNOWN_EXPERT = -1;

export class ModelRunner {
  readonly #router: router.Router;
  #pool: KvPool;
  #arrays = 0;

  constructor(
    readonly model: MoeModel,
    readonly maxModelLen: number,
    readonly blockSize: number,
    private readonly options: EngineOptions,
  ) {
    this.#router = new router.Router(model);
    this.#pool = this.#newPool();
  }

  restart(): void {
    this.#pool = this.#newPool();
  }

  /**
   * Computes the choices of all prompts. `external` returns where the KV of the `p`-th prompt comes
   * from, apart from the engine's own cache.
   */
  run(call: Call, external: (p: number) => External | null): Choice[] {
    const sequences = call.prompts.flatMap((prompt, p) => {
      const salt = this.options.ignoreSalt ? '' : saltOf(call, p);
      const hashes = new BlockHashes(this.blockSize, salt).extend(prompt.tokens);
      const source = this.#read(call, external(p));
      return Array.from({ length: call.n }, () => this.#admit(call, prompt, hashes.clone(), source));
    });
    try {
      return sequences.map((sequence, i) => this.#generate(call, sequence, i, i % call.n));
    } finally {
      for (const { blocks } of sequences) this.#pool.release(blocks);
    }
  }

  #newPool(): KvPool {
    const { kvBlocks = DEFAULT_BLOCKS, promptRows } = this.options;
    return new KvPool(this.#router, {
      blockSize: this.blockSize,
      capacity: kvBlocks,
      stale: promptRows === 'stale',
    });
  }

  /**
   * Returns the external KV that the engine reads. A request for prompt logprobs needs a forward
   * pass over the prompt: vLLM's engine process dies if such a request gets external KV instead.
   */
  #read(call: Call, external: External | null): External | null {
    if (!external || call.promptLogprobs === null || ('loaded' in external && external.loaded === 0)) {
      return external;
    }
    // From 0.31 on, vLLM loads nothing for such a request (vllm/v1/core/sched/scheduler.py,
    // `skip_reading_prefix_cache`).
    if (versionOf(this.options) === '0.32') return null;
    throw new EngineDeath('prompt_logprobs of tokens never forwarded');
  }

  /**
   * Schedules a request: looks its prompt up in the prefix cache, takes blocks, and forwards the
   * remaining tokens.
   */
  #admit(call: Call, prompt: Prompt, hashes: BlockHashes, external: External | null): Sequence {
    const pool = this.#pool;
    const { tokens } = prompt;
    const last = tokens.length - 1;
    // Only full blocks are found in the cache, and the last token is always forwarded again.
    const most = this.#caches && call.promptLogprobs === null ? Math.floor(last / this.blockSize) : 0;
    const hit = pool.hit(hashes.list, most);
    const local = hit.length * this.blockSize;
    const blocks = [...hit, ...pool.allocate(Math.ceil(tokens.length / this.blockSize) - hit.length)];
    const slot = (i: number) => slotOf(blocks, this.blockSize, i);

    let known = local;
    let cached: number | null = local;
    if (external && 'pulled' in external) {
      known = external.complete ? tokens.length : last;
      const states = router.prefixStates(external.pulled);
      for (let i = local; i < known; i++) pool.load(slot(i), states[Math.min(i, states.length - 1)]!);
      cached = external.complete ? external.complete.cached : this.#cachedRemotely(tokens.length);
    } else if (external && external.loaded > local) {
      known = cached = external.loaded;
      const states = router.prefixStates(tokens.slice(0, known));
      for (let i = local; i < known; i++) pool.load(slot(i), states[i]!);
    }
    let state = known > 0 ? pool.kv(slot(known - 1)) : router.EMPTY_PREFIX;
    for (let i = known; i < tokens.length; i++) {
      state = router.step(state, tokens[i]!);
      pool.forward(slot(i), state);
    }
    // A block can be found in the cache from the moment its forward pass is scheduled, but a pulled
    // block only after its transfer is done. So another choice of the same request hits the blocks
    // that are forwarded for the first choice, and pulls again the blocks that the first choice
    // pulls (`allocate_slots`, `cache_blocks`).
    const pulled = external !== null && 'pulled' in external;
    if (this.#caches && !pulled) pool.cache(hashes.list, blocks);
    const { lie } = this.options.cachedTokens ?? {};
    return { of: { prompt, cached: lie ?? cached }, blocks, hashes, external, end: state };
  }

  get #caches(): boolean {
    return this.options.prefixCaching ?? true;
  }

  #cachedRemotely(promptTokens: number): number | null {
    const { remote = 'all but one' } = this.options.cachedTokens ?? {};
    if (remote === 'null') return null;
    return remote === 'all' ? promptTokens : promptTokens - 1;
  }

  /** Generates the `choice`-th answer to a prompt, which is choice `index` of the reply. */
  #generate(call: Call, sequence: Sequence, index: number, choice: number): Choice {
    const { of, blocks, hashes } = sequence;
    const promptTokens = of.prompt.tokens.length;
    const { eosAfter = Infinity } = this.options;
    const cap = call.maxTokens === null ? Infinity : Math.max(call.maxTokens, 1);
    const room = this.maxModelLen - promptTokens;
    const natural = call.maxTokens === null ? Math.min(eosAfter, NATURAL_LENGTH) : eosAfter;
    const eosAt = call.ignoreEos ? Infinity : Math.max(natural, call.minTokens + 1);
    const length = Math.min(cap, room, eosAt);
    const tokens: number[] = [];
    const states = new Int32Array(length);
    let state = sequence.end;
    for (let t = 0; t < length; t++) {
      tokens.push(t + 1 === eosAt ? EOS : router.nextToken(state, choice));
      states[t] = state = router.step(state, tokens[t]!);
    }
    // The last generated token is not forwarded.
    const forwarded = promptTokens + length - 1;
    blocks.push(...this.#pool.allocate(Math.ceil(forwarded / this.blockSize) - blocks.length));
    for (let t = 0; t < length - 1; t++) {
      this.#pool.forward(slotOf(blocks, this.blockSize, promptTokens + t), states[t]!);
    }
    if (this.#caches) this.#pool.cache(hashes.extend(tokens.slice(0, -1)).list, blocks);
    const captures = this.options.capture !== false && call.returnRoutedExperts;
    const routing = captures ? this.#capture(call, sequence, forwarded) : null;
    const indexerTopk = this.#indexerTopk(call, sequence, forwarded);
    const finish = length === eosAt ? 'stop' : 'length';
    return { index, of, tokens, states, finish, routing, indexerTopk };
  }

  /** The rows of all forwarded tokens: no request can ask for fewer. */
  #indexerTopk(call: Call, { of, blocks, external }: Sequence, forwarded: number): Int32Array | null {
    const { indexer, role } = this.options;
    const { sglang, endpoint } = call;
    if (!indexer || !sglang?.returnIndexerTopk) return null;
    if (endpoint !== 'native' && !(endpoint === 'chat' && indexer.inChat)) return null;
    if (role === 'prefill' && !indexer.ofPrefill) return null;
    const complete = external !== null && 'pulled' in external && external.complete !== undefined;
    if (complete && forwarded === of.prompt.tokens.length) return null;
    return indexerRows(this.#pool.read(blocks, 0, forwarded), this.#router.rowLength, indexer);
  }

  /** The rows of the forwarded tokens, from the position on that the call asks for. */
  #capture(call: Call, { of, blocks, external }: Sequence, forwarded: number): Routing | null {
    const promptTokens = of.prompt.tokens.length;
    const start = call.routedExpertsPromptStart;
    const complete = external !== null && 'pulled' in external && external.complete !== undefined;
    // The token that prefill generated is the whole answer. SGLang's decode engine returns no array
    // at all in this case.
    if (complete && forwarded === promptTokens) return null;
    // vLLM 0.32 keeps rows per block, and only those that it captured itself
    // (vllm/distributed/aux_output_connector/worker.py).
    if (call.sglang === null && versionOf(this.options) === '0.32') {
      if (!this.#pool.captured(blocks, start, promptTokens)) {
        throw new EngineDeath('routing of tokens never forwarded');
      }
    }
    // A hybrid model's prefill drops the last token of a prompt that it computes for decode.
    const drops = this.options.hybrid === true && call.kvTransferParams?.['do_remote_decode'] === true;
    // vLLM 0.30 asserts that rows do not begin behind the prompt, which it has shortened by then
    // (vllm/v1/core/sched/scheduler.py).
    if (drops && start > forwarded - 1) throw new EngineDeath('rows from behind the shortened prompt');
    const rows = this.#pool.read(blocks, start, drops ? forwarded - 1 : forwarded);
    const { rowLength } = this.#router;
    for (const row of this.options.unknownRows ?? []) {
      if (row >= start)
        rows.data.fill(UNKNOWN_EXPERT, (row - start) * rowLength, (row - start + 1) * rowLength);
    }
    const remote = external !== null && ('pulled' in external || external.loaded > 0);
    const { faults } = this.options;
    const damaged = ++this.#arrays % (faults?.every ?? 1) === 0;
    const sent = damaged ? applyFaults(rows, faults, this.#router, { start, promptTokens }) : rows;
    return { rows: sent, start, promptTokens, remote };
  }
}

/**
 * More blocks than the prompts of one test need, and few enough that a long series of tests reuses
 * blocks.
 */
const DEFAULT_BLOCKS = 1 << 16;
