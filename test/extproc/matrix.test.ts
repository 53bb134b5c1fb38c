// The filter behind an endpoint picker that refuses messages above 4 MiB, in the shipped example
// and in one listener with the picker: every layout, length and protocol.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Protocol } from '../scenario.ts';
import type { Deployment, Layout } from './deployment.ts';
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
} from './exchanges.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const SPECS = [30, 3000, 7000, 20_000, 40_000].flatMap((tokens) =>
  (['whole', 'events'] as const).flatMap((form) =>
    PROTOCOLS.map((downstream): Spec => ({ tokens, form, downstream })),
  ),
);

type Row = Pick<Layout, 'prefill' | 'upstream'> & { rows: DecodeRows; headers: 'hold' | 'pass' };

const LAYOUTS = (['full', 'tail'] as const).flatMap((rows) =>
  (['hold', 'pass'] as const).flatMap((headers) =>
    (['named', 'fixed'] as const).flatMap((prefill) =>
      PROTOCOLS.map((upstream): Row => ({ rows, headers, prefill, upstream })),
    ),
  ),
);

describe.each(LAYOUTS)(
  'decode_rows: $rows, headers: $headers, prefill $prefill, engines with $upstream',
  ({ rows, headers, ...layout }) => {
    let deployment: Deployment;
    beforeAll(async () => {
      deployment = await deployFor(rows, { ...layout, config: { headers } });
    });
    afterAll(() => deployment?.close());

    test.each(SPECS.map((spec) => [nameOf(spec), spec] as const))('%s', async (_, spec) => {
      const { picker, prefill } = deployment;
      const before = prefill.requests.length;
      picker.largest = 0;
      const answer = await ask(deployment, spec);
      expectRight(rows, spec, answer);
      if (answer.outcome !== undefined) expect(answer.outcome).toMatch(/^merged; rows=/);
      expect(picker.largest).toBeLessThanOrEqual(1 << 20);
      expect(prefill.requests.length).toBe(before + 1);
    });
  },
);

const ONE_LISTENER = LAYOUTS.filter(({ prefill }) => prefill === 'named');

describe.each(ONE_LISTENER)(
  'in one listener, decode_rows: $rows, headers: $headers, engines with $upstream',
  ({ rows, headers, ...layout }) => {
    let deployment: Deployment;
    beforeAll(async () => {
      const config = { ...TOGETHER.config, headers };
      deployment = await deployFor(rows, { ...TOGETHER, ...layout, config });
    });
    afterAll(() => deployment?.close());

    test.each(SPECS.map((spec) => [nameOf(spec), spec] as const))('%s', async (_, spec) => {
      const answer = await ask(deployment, spec);
      if (isTooLarge(rows, spec)) expectRefused(answer);
      else expectRight(rows, spec, answer);
    });
  },
);
