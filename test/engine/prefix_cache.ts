// Which prompts an engine has the KV of, in full blocks.

import { prefixStates } from './router.ts';

export class PrefixCache {
  readonly #blocks = new Set<string>();

  constructor(private readonly blockSize: number) {}

  /** How many of `tokens` are here already, but for the last one, which is always forwarded; from now on all are. */
  add(tokens: readonly number[]): number {
    const states = prefixStates(tokens);
    let hits = 0;
    for (let end = this.blockSize; end <= tokens.length; end += this.blockSize) {
      const block = `${end} ${states[end - 1]}`;
      // A block's state depends on all tokens before: where it is here, so are those in front of it.
      if (end < tokens.length && this.#blocks.has(block)) hits = end;
      this.#blocks.add(block);
    }
    return hits;
  }

  clear(): void {
    this.#blocks.clear();
  }
}
