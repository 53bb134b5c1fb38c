// Simulated log probabilities in the shapes of the OpenAI endpoints. The numbers depend only on the
// tokens before.

import type { Call, Prompt } from '../call.ts';
import type { Choice } from '../compute.ts';
import * as router from '../router.ts';
import { decode } from '../tokenizer.ts';

interface Candidate {
  id: number;
  logprob: number;
  rank: number;
}

/** The chosen token, followed by `top` alternatives. */
function candidates(state: number, id: number, top: number): Candidate[] {
  const logprobs = Array.from({ length: top + 1 }, (_, k) => -(1 + (router.derive(state, k) % 8000)) / 1024);
  logprobs.sort((a, b) => b - a);
  const others = Array.from({ length: top }, (_, k) => ({
    id: FIRST_ALTERNATIVE + ((router.derive(state, 100) + k) % 500),
    logprob: logprobs[k]!,
    rank: k + 1,
  }));
  return [{ id, logprob: logprobs[top]!, rank: top + 1 }, ...others.filter((other) => other.id !== id)];
}

const FIRST_ALTERNATIVE = 10;

export function promptLogprobsOf(call: Call, { tokens }: Prompt): unknown[] | null {
  if (call.promptLogprobs === null) return null;
  const top = Math.max(call.promptLogprobs, 0);
  const states = router.prefixStates(tokens);
  return tokens.map((token, i) => {
    if (i === 0) return null;
    return new Map(
      candidates(states[i - 1]!, token, top).map(({ id, logprob, rank }) => [
        id,
        { logprob, rank, decoded_token: decode([id]) },
      ]),
    );
  });
}

export function chatLogprobs(call: Call, choice: Choice, from: number, to: number): object | null {
  if (call.logprobs === null) return null;
  // `/inference/v1/generate` has no texts, and names each token by its id. prime-rl's client
  // refuses other names (renderers/client.py, `_parse_completion_logprobs`).
  const shown = call.endpoint === 'generate' ? shownById : shownAsText;
  const content = choice.tokens.slice(from, to).map((token, i) => {
    const top = candidates(choice.states[from + i]!, token, Math.max(call.logprobs!, 0));
    const [own, ...others] = top.map(shown);
    return { ...own!, top_logprobs: call.logprobs! > 0 ? [own!, ...others].slice(0, call.logprobs!) : [] };
  });
  return { content };
}

const shownAsText = ({ id, logprob }: Candidate) => shown(decode([id]), logprob);
const shownById = ({ id, logprob }: Candidate) => shown(`token_id:${id}`, logprob);

function shown(token: string, logprob: number): object {
  return { token, logprob, bytes: [...Buffer.from(token)] };
}

/** The log probability of each generated token: its value, the token's id, and no text. */
export function outputLogprobs({ tokens, states }: Choice): [number, number, null][] {
  return tokens.map((token, i) => [candidates(states[i]!, token, 0)[0]!.logprob, token, null]);
}

export function completionLogprobs(call: Call, choice: Choice): object | null {
  if (call.logprobs === null) return null;
  const top = Math.max(call.logprobs, 0);
  const { tokens: promptTokens } = choice.of.prompt;
  const prompt = call.echo ? promptTokens : [];
  const generated = call.maxTokens === 0 ? [] : choice.tokens;
  const states = [...(call.echo ? router.prefixStates(promptTokens) : []), ...choice.states];
  const ids = [...prompt, ...generated];
  const tokens = ids.map((id) => decode([id]));
  const chosen = ids.map((id, i) => (call.echo && i === 0 ? null : candidates(states[i]!, id, top)));
  let offset = 0;
  return {
    text_offset: tokens.map((token) => (offset += token.length) - token.length),
    token_logprobs: chosen.map((list) => list?.[0]!.logprob ?? null),
    tokens,
    top_logprobs: chosen.map(
      (list) => list && new Map(list.map(({ id, logprob }) => [decode([id]), logprob])),
    ),
  };
}
