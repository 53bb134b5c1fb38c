// Inputs without bounds: deep, wide or long. The filter gives each a clear answer in bounded time
// and memory, and the VM survives.

import { expect } from 'vitest';
import type { Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import {
  FULL,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  PARAMS,
  PROMPT,
  REQUEST,
  TAIL,
  answering,
  cut,
  decodeBody,
  encoded,
  expectError,
  expectOutcome,
  merged,
  post,
  prefillBody,
  quoted,
  rowBytes,
} from './messages.ts';

const MANY = 100_000;
const MIB = 1 << 20;
/**
 * The time limit of one exchange on a machine that also does other work. Work that is quadratic in
 * the input would take minutes.
 */
const SECONDS = 20;

interface Bound {
  name: string;
  scenario: () => Partial<Scenario> & { config?: Record<string, unknown> };
  check(result: Result): void;
}

const list = (n: number, item: (i: number) => string) =>
  Array.from({ length: n }, (_, i) => item(i)).join(',');
const deep = (open: string, close: string, n: number) => open.repeat(n) + '1' + close.repeat(n);

const local = (result: Result) => {
  expect([result.status, result.complete]).toEqual([200, true]);
  expect(result.body.toString()).toBe(GOOD_DECODE);
  expect(result.logged).toBe('local');
};
const isMerged = (result: Result) => {
  expect([result.status, result.complete]).toEqual([200, true]);
  expect(result.body.toString()).toBe(GOOD_MERGED);
  expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
};
const bad = (text: string) => (result: Result) => {
  expect([result.status, result.complete]).toEqual([400, true]);
  expectError(result, 400, 'BadRequestError', text);
  expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual([0, 0]);
  expectOutcome(result, 'rejected');
};
const refused = (reason: string) => (result: Result) => {
  // The values are compared one by one, because a failed match prints the whole result, whatever
  // its size.
  expect([result.status, result.complete]).toEqual([502, true]);
  expectOutcome(result, `rejected; reason=${reason}`);
};

const TOO_DEEP = 'the request body is nested too deep';
const TOO_MANY = 'the request body has too many members of the same name';

const requests: Bound[] = [
  {
    name: 'a request of nested objects',
    scenario: () => ({ client: post(deep('{"a":', '}', MANY)) }),
    check: bad(TOO_DEEP),
  },
  {
    name: 'a request of nested lists',
    scenario: () => ({ client: post(`{"prompt":${deep('[', ']', MANY)}}`) }),
    check: bad(TOO_DEEP),
  },
  {
    name: 'a request of many keys',
    scenario: () => ({ client: post(`{${list(MANY, (i) => `"k${i}":${i}`)}}`) }),
    check: isMerged,
  },
  {
    name: 'a request with two keys, many times each',
    scenario: () => ({
      client: post(`{${list(MANY, () => '"n":1')},${list(MANY, () => '"min_tokens":1')}}`),
    }),
    check: bad(TOO_MANY),
  },
  {
    name: 'a request with many objects that hold parameters',
    scenario: () => ({ client: post(`{${list(MANY, () => `"vllm_xargs":{"kv_transfer_params":{}}`)}}`) }),
    check: bad(TOO_MANY),
  },
  {
    name: 'a prompt of 100 MB',
    scenario: () => ({ client: post(`{"prompt":"${'x'.repeat(100 * MIB)}"}`) }),
    check: isMerged,
  },
  {
    name: 'a prompt of many tokens',
    scenario: () => ({
      client: post(`{"token_ids":[${list(20 * MANY, (i) => String(i % 100_000))}],"sampling_params":{}}`, {
        path: GENERATE,
      }),
    }),
    check: isMerged,
  },
];

const n = (choices: number) => post(`{"prompt":"x","max_tokens":3,"n":${choices}}`);
const tailDecode = (choices: number) =>
  decodeBody(Array.from({ length: choices }, () => quoted(encoded(TAIL))));
const tailMerged = quoted(encoded({ rows: 7 }, Buffer.concat([rowBytes(PROMPT), rowBytes(TAIL)])));
/**
 * A reply of SGLang for several prompts. `rows` are those of 20 tokens, with 2 layers and 3 experts
 * each.
 */
const batch = (prompts: number, rows: string) =>
  `[${Array(prompts).fill(`{"meta_info":{"prompt_tokens":20,"completion_tokens":1,"routed_experts":"${rows}"}}`).join(',')}]`;
const ROWS = Buffer.alloc(480, 9).toString('base64');
const OTHER_ROWS = Buffer.alloc(480, 1).toString('base64');
const sglang = (prompts: number): Partial<Scenario> => ({
  config: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
  client: post(`{"text":[${Array(prompts).fill('"a"').join(',')}]}`, { path: '/generate' }),
});
/** The largest number of prompts that one request may have. */
const MOST_PROMPTS = 4096;

/** The largest number of choices that one vLLM request may have. */
const MOST_CHOICES = 16_384;

const responses: Bound[] = [
  {
    name: 'a decode response of nested lists',
    scenario: () => ({ decode: answering(`{"a":${deep('[', ']', MANY)}}`) }),
    check: refused('json'),
  },
  {
    name: 'a decode response of many keys',
    scenario: () => ({
      decode: answering(GOOD_DECODE.replace('{', `{${list(MANY, (i) => `"k${i}":${i}`)},`)),
    }),
    check: (result) =>
      expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 }),
  },
  {
    name: 'many choices, all without routing',
    scenario: () => ({ client: n(MANY), decode: answering(decodeBody(Array(MANY).fill('null'))) }),
    check: (result) => expectOutcome(result, 'absent'),
  },
  {
    name: 'as many choices as vLLM gives',
    scenario: () => ({
      client: n(MOST_CHOICES),
      decode: answering(decodeBody(Array(MOST_CHOICES).fill(quoted(encoded(FULL))))),
    }),
    check: (result) => {
      const right = decodeBody(Array(MOST_CHOICES).fill(quoted(merged(PROMPT, FULL))));
      expect(result.body.equals(Buffer.from(right))).toBe(true);
      expectOutcome(result, `merged; rows=5; choices=${MOST_CHOICES}`, {
        'routed_experts.spliced_bytes': 30 * MOST_CHOICES,
      });
    },
  },
  {
    name: 'as many tails as vLLM gives',
    scenario: () => ({
      config: { decode_rows: 'tail' },
      client: n(MOST_CHOICES),
      decode: answering(tailDecode(MOST_CHOICES)),
    }),
    check: (result) => {
      const right = decodeBody(Array(MOST_CHOICES).fill(tailMerged));
      expect(result.body.equals(Buffer.from(right))).toBe(true);
    },
  },
  {
    name: 'more choices than that',
    scenario: () => ({
      client: n(MANY),
      decode: answering(decodeBody(Array(MANY).fill(quoted(encoded(FULL))))),
      config: { max_hold_bytes: 64 * MIB, hold_bytes: 64 * MIB },
    }),
    check: refused('memory'),
  },
  {
    name: 'choices that nobody asked for, each to get prefill’s values',
    scenario: () => ({
      client: post('{"prompt":"x","prompt_logprobs":1}'),
      prefill: answering(
        GOOD_PREFILL.replace('"text":"x"', `"text":"x","prompt_logprobs":[${list(MANY, () => '0')}]`),
      ),
      decode: answering(`{"choices":[${list(MANY, () => '{}')}]}`),
    }),
    check: refused('choices'),
  },
  {
    name: 'events that nobody asked for, each to get prefill’s values',
    scenario: () => ({
      client: post('{"prompt":"x","stream":true}'),
      prefill: answering(
        `{"prompt_routed_experts":[${list(MANY, () => '[[1]]')}],"choices":[],"usage":{"prompt_tokens":${MANY}},"kv_transfer_params":${PARAMS}}`,
      ),
      decode: answering('data: {"prompt_routed_experts":null}\n\n'.repeat(1000), {
        headers: [['content-type', 'text/event-stream']],
        contentLength: null,
      }),
    }),
    check: (result) => {
      expect([result.status, result.complete]).toEqual([200, false]);
      expectOutcome(result, 'rejected; reason=choices');
    },
  },
  {
    name: 'many arrays that become null',
    scenario: () => ({
      config: { on_unmergeable: 'null', max_hold_bytes: 64 * MIB, hold_bytes: 64 * MIB },
      decode: answering(decodeBody(Array(MANY).fill('[]'))),
    }),
    check: refused('memory'),
  },
  {
    name: 'a text of 100 MB before the array',
    scenario: () => ({
      decode: answering('', {
        contentLength: null,
        pieces: cut(
          Buffer.from(decodeBody([quoted(encoded(FULL))], { before: 'y'.repeat(100 * MIB) })),
          MIB / 2,
        ),
      }),
    }),
    check: refused('hold'),
  },
  {
    name: 'a response of many small pieces',
    scenario: () => ({
      decode: answering('', {
        contentLength: null,
        pieces: cut(Buffer.from(decodeBody([quoted(encoded(FULL))], { before: 'y'.repeat(20_000) })), 1),
      }),
    }),
    check: (result) =>
      expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 }),
  },
];

const detailed = (body: string, details: string) =>
  body.replace('"completion_tokens"', `"prompt_tokens_details":${details},"completion_tokens"`);

const replies: Bound[] = [
  {
    name: 'a prefill reply of nested lists',
    scenario: () => ({ prefill: answering(`{"a":${deep('[', ']', MANY)}}`) }),
    check: local,
  },
  {
    name: 'a prefill reply of many choices',
    scenario: () => ({
      prefill: answering(
        decodeBody(Array(MANY).fill('null')).replace(
          '"kv_transfer_params":null',
          `"kv_transfer_params":${PARAMS}`,
        ),
      ),
    }),
    check: refused('missing'),
  },
  {
    name: 'a prefill reply to as many prompts as a batch has',
    scenario: () => ({
      ...sglang(MOST_PROMPTS),
      prefill: answering(batch(MOST_PROMPTS, ROWS)),
      decode: answering(batch(MOST_PROMPTS, OTHER_ROWS)),
    }),
    check: (result) => {
      expect(result.body.equals(Buffer.from(batch(MOST_PROMPTS, ROWS)))).toBe(true);
      expect(result.logged).toBe(`merged; rows=${20 * MOST_PROMPTS}; choices=${MOST_PROMPTS}`);
    },
  },
  {
    name: 'a prefill reply to more prompts than that',
    scenario: () => ({
      ...sglang(2),
      prefill: answering(batch(MANY / 4, ROWS)),
      decode: answering(batch(2, OTHER_ROWS)),
    }),
    check: refused('choices'),
  },
  {
    name: 'a prefill reply with parameters of 20 MB',
    scenario: () => ({ prefill: answering(GOOD_PREFILL.replace(PARAMS, `{"a":"${'x'.repeat(20 * MIB)}"}`)) }),
    check: local,
  },
  {
    name: 'a prefill reply with details of counts of 1 MB',
    scenario: () => ({
      prefill: answering(detailed(GOOD_PREFILL, `{"cached_tokens":4,"a":"${'x'.repeat(MIB)}"}`)),
      decode: answering(detailed(GOOD_DECODE, 'null')),
    }),
    check(result) {
      expect([result.status, result.complete]).toEqual([200, true]);
      expect(result.body.toString()).toBe(detailed(GOOD_MERGED, 'null'));
    },
  },
  {
    name: 'a prefill reply whose header announces more than there is',
    scenario: () => ({
      prefill: answering(
        prefillBody(
          quoted(encoded({ ...PROMPT, headerText: (text) => text.replace('(5,', '(2000000000,') })),
          2_000_000_000,
        ),
      ),
    }),
    check: refused('size'),
  },
];

const one = ({ name, scenario, check }: Bound): Case => {
  let started = 0;
  return {
    name,
    scenario: () => {
      const { config, ...more } = scenario();
      started = Date.now();
      return {
        name,
        config: { prefill: { retries: 0 }, ...config },
        client: post(REQUEST),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
        ...more,
      };
    },
    check(result) {
      expect(Date.now() - started).toBeLessThan(SECONDS * 1000);
      check(result);
    },
  };
};

export const bounds: Suite = {
  name: 'input without measure',
  limits: { bufferLimit: 256 * MIB },
  cases: [...requests, ...responses, ...replies].map((of) => ({
    ...one(of),
    cutDecidesHead: true,
    random: /"bootstrap_room":(\d+|\[[\d,]+\])/g,
  })),
};
