// llm-d without a mesh: the shipped example behind an endpoint picker that refuses messages above
// 4 MiB. `npm run test:extproc` has more of these.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Deployment } from '../extproc/deployment.ts';
import {
  ask,
  deployFor,
  expectRefused,
  expectRight,
  isTooLarge,
  nameOf,
  TOGETHER,
  type DecodeRows,
  type Spec,
} from '../extproc/exchanges.ts';
import { waitFor } from './wait.ts';

/** Rows of 6 MB, which the picker would refuse in one piece. */
const LONG = 12_000;

const CASES: Record<DecodeRows, Spec[]> = {
  full: [
    { tokens: 30, form: 'whole', downstream: 'http1' },
    { tokens: 30, form: 'events', downstream: 'http2' },
    { tokens: LONG, form: 'whole', downstream: 'http2' },
  ],
  tail: [
    { tokens: LONG, form: 'whole', downstream: 'http1' },
    { tokens: LONG, form: 'events', downstream: 'http1' },
  ],
};

describe.each(['full', 'tail'] as const)('decode_rows: %s', (rows) => {
  let deployment: Deployment;
  beforeAll(async () => {
    deployment = await deployFor(rows);
  });
  afterAll(() => deployment?.close());

  test.each(CASES[rows].map((spec) => [nameOf(spec), spec] as const))('%s', async (_, spec) => {
    const { picker, prefill } = deployment;
    const before = prefill.requests.length;
    picker.largest = 0;
    const answer = await ask(deployment, spec);
    expectRight(rows, spec, answer);
    expect(answer.outcome).toMatch(new RegExp(`^merged; rows=${spec.tokens}\\b`));
    expect(picker.largest).toBeLessThanOrEqual(1 << 20);
    expect(prefill.requests.length).toBe(before + 1);
  });

  test('the access log has the outcome of each', async () => {
    const lines = () => deployment.output().match(/"routed_experts":"merged; [^"]*"/g) ?? [];
    await waitFor(
      'the access log is written',
      async () => lines().length === CASES[rows].length || undefined,
    );
  });

  test('no engine sees the header that names prefill', () => {
    const seen = [...deployment.prefill.requests, ...deployment.decode.requests];
    const names = seen.flatMap(({ headers }) => headers.map(([name]) => name));
    expect(names).not.toContain('x-prefiller-host-port');
  });
});

const SHORT = 3000;

const IN_ONE_LISTENER: Record<DecodeRows, Spec[]> = {
  full: [
    { tokens: LONG, form: 'whole', downstream: 'http1' },
    { tokens: LONG, form: 'events', downstream: 'http1' },
  ],
  tail: [
    { tokens: LONG, form: 'whole', downstream: 'http1' },
    { tokens: LONG, form: 'events', downstream: 'http2' },
    { tokens: SHORT, form: 'events', downstream: 'http1' },
  ],
};

describe.each(['full', 'tail'] as const)('in one listener with max_piece_bytes, decode_rows: %s', (rows) => {
  let deployment: Deployment;
  beforeAll(async () => {
    deployment = await deployFor(rows, TOGETHER);
  });
  afterAll(() => deployment?.close());

  test.each(IN_ONE_LISTENER[rows].map((spec) => [nameOf(spec), spec] as const))('%s', async (_, spec) => {
    const answer = await ask(deployment, spec);
    if (isTooLarge(rows, spec)) expectRefused(answer);
    else expectRight(rows, spec, answer);
  });
});
