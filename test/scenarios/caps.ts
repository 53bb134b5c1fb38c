// What caps the output is a member of the request, and each API has its own: `/v1/completions` knows no
// `max_completion_tokens`, and its engines ignore one.

import { expect } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import type { Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { CHAT, COMPLETIONS, expectOutcome, jsonOf, post } from './messages.ts';

interface Spec {
  name: string;
  path: string;
  /** Members that cap the output. */
  caps: Record<string, unknown>;
  /** Tokens that the engine generates. */
  tokens: number;
  /** The caps that prefill is sent; decode gets the client's. */
  prefill: Record<string, unknown>;
}

const PROMPT_TOKENS = [5, 40];
/** vLLM's own cap of a completion that says nothing. */
const DEFAULT = 16;

const SPECS: Spec[] = [
  // Too low a cap takes a tail for a full array, too high a one leaves open which of both it is.
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
    const fleet = new Fleet();
    return {
      name,
      config: { connector: shared.connector, decode_rows: form },
      client: post(request, { path }),
      prefill: createEngine({ ...shared, role: 'prefill', fleet }),
      decode: createEngine({ ...shared, role: 'decode', fleet, promptRows: 'stale' }),
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
    // As the client wrote it, where it is no member that the engine knows.
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
