// The `usage` member of a reply: how many tokens it reports.

import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import type { CachedTokens } from '../options.ts';

/** The counts that every engine reports. */
export function countsOf(call: Call, choices: readonly Choice[]) {
  const prompt = call.prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const completion = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return { prompt_tokens: prompt, total_tokens: prompt + completion, completion_tokens: completion };
}

/**
 * `prompt_tokens_details`; null if the engine was not started to report them, or does not know
 * them.
 */
export function detailsOf(
  call: Call,
  choices: readonly Choice[],
  options: CachedTokens | undefined,
): { cached_tokens: number } | null {
  if (!options) return null;
  const cached = call.sglang ? cachedOfAll(call, choices) : cachedOfOne(call, choices);
  return cached === null || (cached === 0 && options.zero === 'null') ? null : { cached_tokens: cached };
}

/**
 * SGLang reports the sum over all prompts, each with the number of its first choice
 * (sglang/srt/entrypoints/openai/usage_processor.py).
 */
function cachedOfAll(call: Call, choices: readonly Choice[]): number | null {
  const perPrompt = choices.filter((_, i) => i % call.n === 0).map(({ of }) => of.cached);
  return perPrompt.reduce((a, b) => (a === null || b === null ? null : a + b), 0);
}

/**
 * vLLM reports one number only: that of the choice of the last prompt that finished last
 * (`last_final_res.num_cached_tokens`), or in a stream that of the first result.
 */
function cachedOfOne(call: Call, choices: readonly Choice[]): number | null {
  return choices.at(call.stream ? 0 : -1)!.of.cached;
}
