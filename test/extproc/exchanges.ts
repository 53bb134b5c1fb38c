/** Requests through a picker, and what their answers must be. */

import { expect } from 'vitest';
import type { SequentialOptions } from '../engine/engine.ts';
import type { Protocol } from '../scenario.ts';
import {
  COMPLETIONS,
  deploy,
  GENERATE,
  oracle,
  type Answer,
  type Deployment,
  type Layout,
} from './deployment.ts';

/** Rows of 384 bytes, as those of a model of 48 layers with top_k 8 are. */
const MODEL = { layers: 48, topK: 8, experts: 128 };

export type DecodeRows = 'full' | 'tail';

/** Engines that can do what is asked of decode. */
export const enginesFor = (rows: DecodeRows): Partial<SequentialOptions> => ({
  model: MODEL,
  ...(rows === 'full' ? {} : { version: '0.32', connector: 'shared_storage' }),
});

/** The configuration for these engines. */
export const configFor = (rows: DecodeRows): Layout['config'] =>
  rows === 'full' ? {} : { decode_rows: 'tail', connector: 'shared_storage' };

export const deployFor = (rows: DecodeRows, layout: Partial<Layout> = {}): Promise<Deployment> =>
  deploy(enginesFor(rows), { ...layout, config: { ...configFor(rows), ...layout.config } });

export interface Spec {
  tokens: number;
  form: 'whole' | 'events';
  downstream: Protocol;
}

export const nameOf = ({ tokens, form, downstream }: Spec): string =>
  `${tokens} tokens, ${form === 'whole' ? 'a body' : 'events'}, ${downstream}`;

const GENERATED = 5;

function requestOf({ tokens, form }: Spec): [path: string, body: object] {
  const ids = Array.from({ length: tokens }, (_, i) => 3 + ((i * 31 + (i >> 8)) % 500));
  return form === 'whole'
    ? [COMPLETIONS, { prompt: ids, max_tokens: GENERATED }]
    : [GENERATE, { token_ids: ids, sampling_params: { max_tokens: GENERATED }, stream: true }];
}

export const ask = (deployment: Deployment, spec: Spec): Promise<Answer> =>
  deployment.send(...requestOf(spec), spec.downstream);

/** The choices of a body, or of all events of a stream. */
function choicesOf(body: Buffer): string {
  const text = body.toString('latin1');
  const documents = text.startsWith('data:') ? text.split('\n\n').map((event) => event.slice(6)) : [text];
  return documents
    .filter((document) => document.startsWith('{'))
    .map((document) => JSON.stringify((JSON.parse(document) as { choices: object }).choices))
    .join();
}

/** Whether the client has what the oracle would have sent. */
export const equalsOracle = (rows: DecodeRows, spec: Spec, answer: Answer): boolean =>
  choicesOf(answer.body) === choicesOf(oracle(enginesFor(rows), ...requestOf(spec)));

/** What fits into the picker's messages together with a piece that Envoy reads of decode's. */
export const TOGETHER: Partial<Layout> = { filters: 'together', config: { max_piece_bytes: 3 << 20 } };

/** Whether the rows of a prompt are more than that, where decode is not asked for them. */
export const isTooLarge = (rows: DecodeRows, { tokens }: Spec): boolean =>
  rows === 'tail' && (tokens * MODEL.layers * MODEL.topK * 4) / 3 > 3 << 20;

export function expectRefused(answer: Answer): void {
  expect([answer.status, answer.complete]).toEqual([502, true]);
  expect(answer.outcome).toBe('rejected; reason=piece');
  expect(answer.body.toString()).toContain('routed_experts can not be merged');
}

export function expectRight(rows: DecodeRows, spec: Spec, answer: Answer): void {
  expect(answer.status, answer.body.toString('latin1', 0, 500)).toBe(200);
  expect(answer.complete).toBe(true);
  // Nobody can read a difference of megabytes.
  expect(equalsOracle(rows, spec, answer)).toBe(true);
}
