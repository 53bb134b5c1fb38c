// The conformance suite: the filter passes it, and a router that merges nothing does not.

import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { startRouter } from '../../bench/router.ts';
import { ROOT } from '../../tools/paths.mjs';
import { CASES } from '../../yardstick/conformance/cases.ts';
import { FILTER } from '../../yardstick/conformance/filter.ts';
import { junitOf, markdownOf } from '../../yardstick/conformance/report.ts';
import { runCases, type Outcome, type Router } from '../../yardstick/conformance/run.ts';

const NAIVE: Router = {
  name: 'merges nothing',
  connectors: ['nixl'],
  start: (_, { prefillPort, decodePort }) => {
    const script = join(ROOT, 'test', 'yardstick', 'router.ts');
    const command = `exec '${process.execPath}' --import tsx '${script}' {prefill} {decode} {port}`;
    return startRouter({ name: 'merges nothing', command }, prefillPort, decodePort);
  },
};

test('names of cases are different', () => {
  expect(new Set(CASES.map(({ name }) => name)).size).toBe(CASES.length);
});

test('the filter passes every case', async () => {
  const outcomes = await runCases(FILTER, CASES);
  expect(outcomes.filter(({ passed }) => !passed)).toEqual([]);
  expect(outcomes).toHaveLength(CASES.length);
});

describe('a router that merges nothing', () => {
  const asked = [
    'one completion',
    'chat',
    '48 requests, 16 tokens to 800, at once',
    'prompt_logprobs',
    'decode answers 503',
  ];
  let outcomes: Outcome[] = [];
  const did = (name: string) => outcomes.find((outcome) => outcome.case.name === name)!;
  beforeAll(async () => {
    outcomes = await runCases(
      NAIVE,
      CASES.filter(({ name }) => asked.includes(name)),
    );
  });

  test('fails the plain merge with wrong rows', () => {
    expect(did('one completion')).toMatchObject({ passed: false, did: 'wrong rows: row 0 differs' });
    expect(did('chat').passed).toBe(false);
    expect(did('48 requests, 16 tokens to 800, at once').passed).toBe(false);
  });

  test('kills an engine, which fails it', () => {
    expect(did('prompt_logprobs')).toMatchObject({ passed: false, did: 'the decode engine has died' });
  });

  test('passes where it hands on an error', () => {
    expect(did('decode answers 503')).toMatchObject({ passed: true, did: 'refused' });
  });

  test('is in the table and in the XML, and what it did not run, too', () => {
    const table = markdownOf([{ name: NAIVE.name, outcomes }], CASES);
    expect(table).toMatch(/\| 1 +\| one completion \(nixl\) +\| right +\| \*\*fails\*\*: wrong rows/);
    expect(table).toMatch(/SGLang: both legs at once \(sglang\) \| right \| not run/);
    expect(junitOf([{ name: NAIVE.name, outcomes }])).toContain(
      '<failure message="wrong rows: row 0 differs"',
    );
  });
});
