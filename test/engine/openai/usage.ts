// What a reply says of the number of its tokens.

import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import type { CachedTokens } from '../options.ts';

/** The counts that every engine reports. */
export function countsOf(call: Call, choices: readonly Choice[]) {
  const prompt = call.prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const completion = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return { prompt_tokens: prompt, total_tokens: prompt + completion, completion_tokens: completion };
}

/** `prompt_tokens_details`; null where the engine was not started to tell, or does not know. */
export function detailsOf(
  call: Call,
  choices: readonly Choice[],
  options: CachedTokens | undefined,
): { cached_tokens: number } | null {
  if (!options) return null;
  const perPrompt = choices.filter((_, i) => i % call.n === 0).map(({ of }) => of.cached);
  const sum = perPrompt.reduce((a, b) => (a === null || b === null ? null : a + b), 0);
  return sum === null || (sum === 0 && options.zero !== 'object') ? null : { cached_tokens: sum };
}
