// Runs the simulated model on a call: the tokens it generates, and the rows that the slots of its tokens hold in the end.

import { EngineDeath, saltOf, type Call, type Prompt } from './call.ts';
import { applyFaults } from './faults.ts';
import { KvPool, slotOf } from './kv_pool.ts';
import { versionOf, type EngineOptions } from './options.ts';
import { BlockHashes } from './prefix_cache.ts';
import * as router from './router.ts';
import type { MoeModel, Rows } from './router.ts';
import { EOS } from './tokenizer.ts';

/** KV of a prompt that this engine does not have to compute. */
export type External =
  /** From the engine that has forwarded these tokens, all of them. */
  | { pulled: readonly number[]; complete?: PrefillsAnswer }
  /** From a store: that of the prompt's first `loaded` tokens. */
  | { loaded: number };

/** With the KV comes the first generated token: not even the last prompt token is forwarded here. */
export interface PrefillsAnswer {
  /** Tokens that prefill did not compute either. */
  cached: number;
}

/** A prompt on its way through the engine. */
export interface PromptState {
  prompt: Prompt;
  /** Prompt tokens that were not computed for this choice; null: not known. */
  cached: number | null;
}

/** What was captured of one sequence: the rows of all its tokens from `start` on, but of the last. */
export interface Routing {
  rows: Rows;
  start: number;
  promptTokens: number;
  /** The prompt rows are of no use: another engine has forwarded the prompt. */
  remote: boolean;
}

export interface Choice {
  index: number;
  of: PromptState;
  tokens: number[];
  states: Int32Array;
  finish: 'length' | 'stop';
  routing: Routing | null;
}

/** One choice of one prompt, which the scheduler sees as a request of its own. */
interface Sequence {
  of: PromptState;
  blocks: number[];
  hashes: BlockHashes;
  external: External | null;
  /** The router's state behind the last prompt token. */
  end: number;
}

/** Tokens of an answer that no cap ends. */
const NATURAL_LENGTH = 24;
const UNKNOWN_EXPERT = -1;

export class ModelRunner {
  readonly #router: router.Router;
  #pool: KvPool;

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

  /** The choices of all prompts. `external` tells where the KV of the `p`-th prompt comes from, beside the engine's own cache. */
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

  /** vLLM's engine process ends when it is asked for what only a forward pass over the prompt can tell. */
  #read(call: Call, external: External | null): External | null {
    if (!external || call.promptLogprobs === null || ('loaded' in external && external.loaded === 0)) {
      return external;
    }
    // From 0.31 on nothing is loaded for such a request (vllm/v1/core/sched/scheduler.py, `skip_reading_prefix_cache`).
    if (versionOf(this.options) === '0.32') return null;
    throw new EngineDeath('prompt_logprobs of tokens never forwarded');
  }

  /** Schedules a request: looks its prompt up, takes blocks, and forwards what is left of it. */
  #admit(call: Call, prompt: Prompt, hashes: BlockHashes, external: External | null): Sequence {
    const pool = this.#pool;
    const { tokens } = prompt;
    const last = tokens.length - 1;
    // The last token is always forwarded again, and blocks are hit as a whole.
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
    // A block is found from the moment its forward pass is scheduled, a pulled one when its transfer is done: another choice of the
    // same request hits what is forwarded for the first one, and pulls what that one pulls (`allocate_slots`, `cache_blocks`).
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

  /** The `choice`-th answer to a prompt, `index` of the reply. */
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
    // The last token is not forwarded.
    const forwarded = promptTokens + length - 1;
    blocks.push(...this.#pool.allocate(Math.ceil(forwarded / this.blockSize) - blocks.length));
    for (let t = 0; t < length - 1; t++) {
      this.#pool.forward(slotOf(blocks, this.blockSize, promptTokens + t), states[t]!);
    }
    if (this.#caches) this.#pool.cache(hashes.extend(tokens.slice(0, -1)).list, blocks);
    const captures = this.options.capture !== false && call.returnRoutedExperts;
    const routing = captures ? this.#capture(call, sequence, forwarded) : null;
    return { index, of, tokens, states, finish: length === eosAt ? 'stop' : 'length', routing };
  }

  /** Rows of the tokens that were forwarded, from where they are asked for. */
  #capture(call: Call, { of, blocks, external }: Sequence, forwarded: number): Routing | null {
    const promptTokens = of.prompt.tokens.length;
    const start = call.routedExpertsPromptStart;
    const complete = external !== null && 'pulled' in external && external.complete !== undefined;
    // What prefill has generated is the whole answer: SGLang's decode returns no array at all.
    if (complete && forwarded === promptTokens) return null;
    // 0.32 has rows by block, of those that it forwarded itself (vllm/distributed/aux_output_connector/worker.py).
    if (call.sglang === null && versionOf(this.options) === '0.32') {
      if (!this.#pool.captured(blocks, start, promptTokens)) {
        throw new EngineDeath('routing of tokens never forwarded');
      }
    }
    const rows = this.#pool.read(blocks, start, forwarded);
    const { rowLength } = this.#router;
    for (const row of this.options.unknownRows ?? []) {
      if (row >= start)
        rows.data.fill(UNKNOWN_EXPERT, (row - start) * rowLength, (row - start + 1) * rowLength);
    }
    const remote = external !== null && ('pulled' in external || external.loaded > 0);
    const faulty = applyFaults(rows, this.options.faults, this.model, { start, promptTokens });
    return { rows: faulty, start, promptTokens, remote };
  }
}

/** More than the prompts of a test need, and few enough that a long series of them comes round. */
const DEFAULT_BLOCKS = 1 << 16;
