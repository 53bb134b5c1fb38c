// Runs the simulated model on a call: the tokens it generates, and the experts that every token visited.

import type { Call, Prompt } from './call.ts';
import type { EngineOptions } from './options.ts';
import { PrefixCache } from './prefix_cache.ts';
import * as router from './router.ts';
import type { MoeModel, Rows } from './router.ts';
import { EOS } from './tokenizer.ts';

/** How a prompt's KV came to be here. */
export interface PromptState {
  prompt: Prompt;
  /** Null: forwarded here. Otherwise at most the last prompt token was, on top of these tokens' KV. */
  remote: readonly number[] | null;
  /** Not even the last prompt token was forwarded: the first generated one came with the KV. */
  complete: boolean;
  /** Prompt tokens that were not computed for this call; null: not known. */
  cached: number | null;
  /** The router's state behind the last prompt token. */
  end: number;
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

/** Tokens of an answer that no cap ends. */
const NATURAL_LENGTH = 24;
const UNKNOWN_EXPERT = -1;

export class ModelRunner {
  readonly #router: router.Router;
  readonly #cache: PrefixCache;

  constructor(
    readonly model: MoeModel,
    readonly maxModelLen: number,
    blockSize: number,
    private readonly options: EngineOptions,
  ) {
    this.#router = new router.Router(model);
    this.#cache = new PrefixCache(blockSize);
  }

  restart(): void {
    this.#cache.clear();
  }

  /** `prompt` on top of the KV of `remote`; its own where that is null. */
  prefill(prompt: Prompt, remote: readonly number[] | null, complete = false): PromptState {
    const { tokens } = prompt;
    const known = Math.min(tokens.length - 1, remote?.length ?? Infinity);
    const base = router.prefixStates((remote ?? tokens).slice(0, known)).at(-1) ?? router.EMPTY_PREFIX;
    const hits = this.#cache.add(tokens);
    const cached = remote ? this.#cachedRemotely(tokens.length) : hits;
    const end = router.step(base, tokens.at(-1)!);
    return { prompt, remote, complete: complete && remote !== null, cached, end };
  }

  #cachedRemotely(promptTokens: number): number | null {
    const { remote = 'all but one' } = this.options.cachedTokens ?? {};
    if (remote === 'null') return null;
    return remote === 'all' ? promptTokens : promptTokens - 1;
  }

  /** The `choice`-th answer to a prompt, `index` of the reply. */
  generate(call: Call, of: PromptState, index: number, choice: number): Choice {
    const { eosAfter = Infinity } = this.options;
    const cap = call.maxTokens === null ? Infinity : Math.max(call.maxTokens, 1);
    const room = this.maxModelLen - of.prompt.tokens.length;
    const natural = call.maxTokens === null ? Math.min(eosAfter, NATURAL_LENGTH) : eosAfter;
    const eosAt = call.ignoreEos ? Infinity : Math.max(natural, call.minTokens + 1);
    const length = Math.min(cap, room, eosAt);
    const tokens: number[] = [];
    const states = new Int32Array(length);
    let state = of.end;
    for (let t = 0; t < length; t++) {
      tokens.push(t + 1 === eosAt ? EOS : router.nextToken(state, choice));
      states[t] = state = router.step(state, tokens[t]!);
    }
    const captures = this.options.capture !== false && call.returnRoutedExperts;
    const routing = captures ? this.#capture(call, of, states) : null;
    return { index, of, tokens, states, finish: length === eosAt ? 'stop' : 'length', routing };
  }

  /** Rows of all tokens but the last, which nobody has forwarded. */
  #capture(call: Call, of: PromptState, states: Int32Array): Routing {
    const promptTokens = of.prompt.tokens.length;
    const rows = this.#router.allocate(promptTokens + states.length - 1);
    this.#fillPrompt(rows, of);
    for (let t = 0; t < states.length - 1; t++) this.#router.fill(rows, promptTokens + t, states[t]!);
    const { rowLength } = this.#router;
    for (const row of this.options.unknownRows ?? []) {
      rows.data.fill(UNKNOWN_EXPERT, row * rowLength, (row + 1) * rowLength);
    }
    const start = call.routedExpertsPromptStart;
    return { rows: this.#router.slice(rows, start), start, promptTokens, remote: of.remote !== null };
  }

  #fillPrompt(rows: Rows, { prompt: { tokens }, remote, complete, end }: PromptState): void {
    if (!remote || this.options.promptRows === 'stale') {
      const origin = remote ? router.FOREIGN_PREFIX : router.EMPTY_PREFIX;
      const states = router.prefixStates(tokens, origin);
      for (let i = 0; i < states.length; i++) this.#router.fill(rows, i, states[i]!);
    }
    if (!complete) this.#router.fill(rows, tokens.length - 1, end);
  }
}
