// The members of a request that cap its output. Each API has its own: `/v1/completions` has no
// `max_completion_tokens`, and its engines ignore that member.

import { expect } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import type { Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { CHAT, COMPLETIONS, expectOutcome, jsonOf, post } from './messages.ts';
import { usedDeployment } from './used.ts';

interface Spec {
  name: string;
  path: string;
  /** The members that cap the output. */
  caps: Record<string, unknown>;
  /** The number of tokens that the engine generates. */
  tokens: number;
  /** The caps that prefill is sent. Decode gets those of the client. */
  prefill: Record<string, unknown>;
}

const PROMPT_TOKENS = [5, 40];
/** vLLM's cap for a completion whose request sets none. */
const DEFAULT = 16;

const SPECS: Spec[] = [
  // If the filter heeded this member, a low value would make it take a tail for a full array, and a
  // high value would leave open which of the two the array is.
  ...[1, 3, 0, 1000, '2', null].map((cap): Spec => ({
    name: `a completion with max_completion_tokens ${JSON.stringify(cap)}`,
    path: COMPLETIONS,
    caps: { max_completion_tokens: cap },
    tokens: DEFAULT,
    prefill: { max_tokens: 1, max_completion_tokens: cap },
  })),
  {
    name: 'a completion with both',
    path: COMPLETIONS,
    caps: { max_tokens: 9, max_completion_tokens: 2 },
    tokens: 9,
    prefill: { max_tokens: 1, max_completion_tokens: 2 },
  },
  {
    name: 'a chat with max_completion_tokens',
    path: CHAT,
    caps: { max_completion_tokens: 9 },
    tokens: 9,
    prefill: { max_tokens: 1, max_completion_tokens: 1 },
  },
  {
    name: 'a chat with both',
    path: CHAT,
    caps: { max_tokens: 4, max_completion_tokens: 9 },
    tokens: 9,
    prefill: { max_tokens: 1, max_completion_tokens: 1 },
  },
];

const capsOf = ({ max_tokens, max_completion_tokens }: Record<string, unknown>) => ({
  max_tokens,
  max_completion_tokens,
});

const ARRAYS = /"routed_experts":"([^"]*)"/g;
const arraysOf = (body: Buffer) => [...body.toString('latin1').matchAll(ARRAYS)].map(([, text]) => text);

function caseOf(spec: Spec, form: 'full' | 'tail', tokens: number): Case {
  const { path, caps } = spec;
  const request = JSON.stringify({
    ...(path === CHAT
      ? { messages: [{ role: 'user', content: 'x'.repeat(tokens) }] }
      : { prompt: Array.from({ length: tokens }, (_, i) => 3 + i) }),
    ...caps,
    ignore_eos: true,
  });
  const shared = {
    version: form === 'tail' ? ('0.32' as const) : ('0.30' as const),
    connector: form === 'tail' ? ('shared_storage' as const) : ('nixl' as const),
    model: { layers: 2, topK: 2, experts: 8 },
  };
  const name = `${spec.name}, ${form}, ${tokens} tokens`;

  const scenario = (): Scenario => {
    return {
      name,
      config: { connector: shared.connector, decode_rows: form },
      client: post(request, { path }),
      ...usedDeployment(path, request, shared).engines,
    };
  };

  const check = (result: Result): void => {
    expect(result).toMatchObject({ status: 200, complete: true });
    const { chunks } = createEngine({ ...shared, role: 'oracle' })({
      method: 'POST',
      path,
      headers: [['content-type', 'application/json']],
      body: Buffer.from(request),
    });
    const oracle = Buffer.concat(chunks);
    expect(arraysOf(result.body)).toEqual(arraysOf(oracle));
    const { usage } = JSON.parse(oracle.toString()) as { usage: Record<string, number> };
    expect(usage['completion_tokens']).toBe(spec.tokens);
    const rows = usage['prompt_tokens']!;
    expectOutcome(result, `merged; rows=${rows}; choices=1`, { 'routed_experts.spliced_bytes': rows * 4 });
    // A member that the engine does not know stays as the client wrote it.
    expect(capsOf(jsonOf(result.prefillRequests[0]!))).toEqual(capsOf(spec.prefill));
    expect(capsOf(jsonOf(result.decodeRequests[0]!))).toEqual(capsOf(caps));
  };
  return { name, scenario, check };
}

export const caps: Suite = {
  name: 'caps of the output',
  cases: SPECS.flatMap((spec) =>
    (['full', 'tail'] as const).flatMap((form) => PROMPT_TOKENS.map((tokens) => caseOf(spec, form, tokens))),
  ),
};
