// The order in which tokens stream: one token per step, the choices in turn.

import type { Choice } from './compute.ts';
import { Detokenizer } from './tokenizer.ts';

/** One token of one choice: its `t`-th. */
export interface Step {
  choice: Choice;
  t: number;
  last: boolean;
  text: string;
}

export function* stepsOf(choices: readonly Choice[]): Generator<Step> {
  const texts = choices.map(() => new Detokenizer());
  const steps = Math.max(...choices.map(({ tokens }) => tokens.length));
  for (let t = 0; t < steps; t++) {
    for (const choice of choices) {
      const token = choice.tokens[t];
      if (token === undefined) continue;
      const last = t === choice.tokens.length - 1;
      const detokenizer = texts[choice.index]!;
      yield { choice, t, last, text: detokenizer.push(token) + (last ? detokenizer.end() : '') };
    }
  }
}
