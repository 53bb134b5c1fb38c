// Arrays that do not have the rows of their tokens, in every place where a reply counts tokens; and
// handshakes that did not take place, which only prefill's counts show.

import { expect } from 'vitest';
import type { ClientRequest, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  COMPLETIONS,
  GENERATE,
  PARAMS,
  Watch,
  answering,
  cut,
  expectError,
  expectOutcome,
  post,
} from './messages.ts';
import { inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';

const PROMPT = 9;
const P = rowsOf(0, PROMPT);
const STALE = rowsOf(0, PROMPT, 1);

const usageOf = (prompt: number, completion: number | string) =>
  `{"prompt_tokens":${prompt},"completion_tokens":${completion}}`;

interface Choice {
  /** The generated rows. */
  rows: Rows;
  /** The number of elements of `token_ids`, if the reply has them. */
  ids?: number;
  /** Whether `token_ids` stand behind the array. */
  late?: boolean;
}

const ids = (n: number) => JSON.stringify(Array.from({ length: n }, (_, i) => i + 1));

const choiceOf = ({ rows, ids: n, late }: Choice, i: number, write: Write, prompt: Rows) => {
  const array = `"routed_experts":${write([...prompt, ...rows], prompt.length === 0 ? PROMPT : 0)}`;
  const tokens = n === undefined ? [] : [`"token_ids":${ids(n)}`];
  const members = late ? [array, ...tokens] : [...tokens, array];
  return `{"index":${i},"text":"x",${members.join(',')}}`;
};

interface Spec {
  name: string;
  choices: Choice[];
  /** `completion_tokens` in `usage`; without it the reply has no `usage`. */
  completion?: number;
  write?: Write;
  /** Whether decode returns the generated rows only. */
  tail?: boolean;
  config?: Record<string, unknown>;
  /** The prompt rows of decode's array, if there are more than the prompt has tokens. */
  prompt?: Rows;
  wrong?: boolean;
  large?: boolean;
}

const client = (n: number): ClientRequest =>
  post(JSON.stringify({ prompt: 'one two', max_tokens: 20, ...(n > 1 ? { n, temperature: 1 } : {}) }));

const bodyOf = ({ choices, completion, write = inNpy() }: Spec, prompt: Rows) =>
  `{"choices":[${choices.map((choice, i) => choiceOf(choice, i, write, prompt)).join(',')}]` +
  `${completion === undefined ? '' : `,"usage":${usageOf(PROMPT, completion)}`}}`;

const prefillBody = (write: Write, finish = 'length', params: string | null = PARAMS) =>
  `{"choices":[{"index":0,"text":"x","finish_reason":"${finish}","routed_experts":${write(P)}}],` +
  `"usage":${usageOf(PROMPT, 1)}${params === null ? '' : `,"kv_transfer_params":${params}`}}`;

function caseOf(of: Spec): Case[] {
  const { name, choices, write = inNpy(), tail, config, prompt, wrong } = of;
  const scenario = (): Scenario => ({
    name,
    config: { ...(tail ? { decode_rows: 'tail' } : {}), ...config },
    client: client(choices.length),
    prefill: answering(prefillBody(write)),
    decode: answering(bodyOf(of, prompt ?? (tail ? [] : STALE))),
  });
  const check = (result: Result): void => {
    if (wrong) {
      expectOutcome(result, 'rejected; reason=rows');
      const text = 'the decode array does not have the rows that were asked for';
      return expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${text}`);
    }
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(bodyOf(of, P));
    expectOutcome(
      result,
      `merged; rows=${PROMPT}; choices=${choices.length}`,
      Object.fromEntries(Object.entries(result.counters).filter(([key]) => /spliced/.test(key))),
    );
  };
  // If a body is larger than hold_bytes, a part of it has left when the counts come.
  const watch = () => new Watch();
  const late: Case = {
    name: `${name}, when some has left`,
    scenario() {
      const seen = watch();
      const body = Buffer.from(bodyOf(of, STALE));
      return {
        ...scenario(),
        config: { ...config, hold_bytes: 0 },
        onBody: seen.onBody,
        decode: answering(body, {
          pieces: [body.subarray(0, 400), ...cut(body.subarray(400), 100)],
          before: (i) => (i === 1 ? seen.seen(1) : undefined),
        }),
      };
    },
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: false });
      expect(result.logged).toBe('rejected; reason=rows');
    },
    cutDecidesHead: true,
  };
  return [{ name, scenario, check }, ...(of.large ? [late] : [])];
}

const generated = (n: number) => rowsOf(PROMPT, PROMPT + n);
const one = (rows: number, more: Partial<Choice> = {}): Choice[] => [{ rows: generated(rows), ...more }];

const SPECS: Spec[] = [
  { name: 'usage and rows agree', choices: one(8), completion: 9 },
  { name: 'five rows too few', choices: one(3), completion: 9, wrong: true, large: true },
  { name: 'one row too many', choices: one(9), completion: 9, wrong: true, large: true },
  { name: 'twice the rows', choices: one(17 + 8), completion: 9, wrong: true },
  {
    name: 'a tail, as long as the prompt, though all rows were asked for',
    choices: one(12),
    prompt: [],
    completion: 13,
    wrong: true,
  },
  { name: 'no counts', choices: one(3) },
  { name: 'token_ids and rows agree', choices: one(8, { ids: 9 }) },
  { name: 'token_ids before too few rows', choices: one(3, { ids: 9 }), wrong: true },
  {
    name: 'token_ids behind too few rows',
    choices: one(3, { ids: 9, late: true }),
    wrong: true,
    large: true,
  },
  { name: 'two choices of other lengths', choices: [...one(8), ...one(2)], completion: 12 },
  {
    name: 'two choices, one of them short',
    choices: [...one(8), ...one(1)],
    completion: 12,
    wrong: true,
    large: true,
  },
  {
    name: 'two choices that make up for each other, by usage alone',
    choices: [...one(7), ...one(3)],
    completion: 12,
  },
  {
    name: 'two choices that make up for each other, by token_ids',
    choices: [...one(7, { ids: 9 }), ...one(3, { ids: 3 })],
    completion: 12,
    wrong: true,
  },
  { name: 'one token', choices: one(0), completion: 1 },
  { name: 'no token', choices: one(0), completion: 0 },
  { name: 'B: too few', write: inObject(), choices: one(3), completion: 9, wrong: true },
  { name: 'B: right', write: inObject(), choices: one(8), completion: 9 },
  { name: 'a tail: right', tail: true, choices: one(8), completion: 9 },
  { name: 'a tail: too few', tail: true, choices: one(5), completion: 9, wrong: true },
];

// In a stream, the tokens are spread over all events, and the array is in the last event of its
// choice.
const event = (data: string) => `data: ${data}\n\n`;
const piece = (n: number, index = 0) => event(`{"choices":[{"index":${index},"token_ids":${ids(n)}}]}`);
const last = (n: number, rows: Rows, index = 0) =>
  event(`{"choices":[{"index":${index},"token_ids":${ids(n)},"routed_experts":${inNpy()(rows)}}]}`);
const total = (n: number) => event(`{"choices":[],"usage":${usageOf(PROMPT, n)}}`);
const DONE = event('[DONE]');

interface Stream {
  name: string;
  events: (prompt: Rows) => string;
  choices?: number;
  wrong?: boolean;
}

const STREAMS: Stream[] = [
  {
    name: 'tokens of all events',
    events: (p) => piece(4) + piece(3) + last(2, [...p, ...generated(8)]) + total(9) + DONE,
  },
  {
    name: 'too few rows for the tokens of all events',
    events: (p) => piece(4) + piece(3) + last(2, [...p, ...generated(7)]) + DONE,
    wrong: true,
  },
  {
    name: 'an event that tells no tokens',
    events: (p) => event('{"choices":[{"index":0,"text":"x"}]}') + last(2, [...p, ...generated(8)]) + DONE,
  },
  {
    name: 'usage at the end, too few rows',
    events: (p) =>
      event(`{"choices":[{"index":0,"routed_experts":${inNpy()([...p, ...generated(7)])}}]}`) +
      total(9) +
      DONE,
    wrong: true,
  },
  {
    name: 'two choices, their events in turn',
    choices: 2,
    events: (p) =>
      piece(4) +
      piece(2, 1) +
      last(1, [...p, ...generated(2)], 1) +
      last(2, [...p, ...generated(5)]) +
      total(9) +
      DONE,
  },
  {
    name: 'two choices, the second short',
    choices: 2,
    events: (p) =>
      piece(4) + piece(2, 1) + last(1, [...p, ...generated(1)], 1) + last(2, [...p, ...generated(5)]) + DONE,
    wrong: true,
  },
];

const streamCase = ({ name, events, choices = 1, wrong }: Stream): Case => ({
  name: `stream: ${name}`,
  scenario: () => ({
    name,
    client: post(
      JSON.stringify({ token_ids: [1, 2], stream: true, sampling_params: { max_tokens: 20, n: choices } }),
      {
        path: GENERATE,
      },
    ),
    prefill: answering(prefillBody(inNpy())),
    decode: answering(events(STALE), {
      headers: [['content-type', 'text/event-stream']],
      contentLength: null,
    }),
  }),
  check(result) {
    if (wrong) {
      expect(result.complete).toBe(false);
      expect(result.logged).toBe('rejected; reason=rows');
      return;
    }
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(events(P));
    expect(result.logged).toBe(`merged; rows=${PROMPT}; choices=${choices}`);
  },
});

// Format C counts the generated rows apart from the prompt rows.
const splitBody = (prompt: Rows, rows: number, tokens: number) =>
  `{"prompt_routed_experts":${inLists(prompt)},"choices":[{"index":0,"routed_experts":${inLists(generated(rows))}}],"usage":${usageOf(PROMPT, tokens)}}`;
const splitCase = (rows: number, tokens: number): Case => ({
  name: `C: ${rows} generated rows for ${tokens} tokens`,
  scenario: () => ({
    name: 'C',
    client: client(1),
    prefill: answering(
      `{"prompt_routed_experts":${inLists(P)},"choices":[{"index":0,"finish_reason":"length","routed_experts":[]}],"usage":${usageOf(PROMPT, 1)},"kv_transfer_params":${PARAMS}}`,
    ),
    decode: answering(splitBody(STALE, rows, tokens)),
  }),
  check(result) {
    if (rows !== tokens - 1) return expectOutcome(result, 'rejected; reason=rows');
    expect(result.body.toString()).toBe(splitBody(P, rows, tokens));
    expect(result.logged).toBe(`merged; rows=${PROMPT}; choices=1`);
  },
});

// ---- handshakes

const HANDSHAKE =
  'prefill reached its cap of one token and returned no kv_transfer_params: its engine does not run the connector that ' +
  'the setting connector: nixl is for';

interface Shake {
  name: string;
  finish: string;
  params: string | null;
  path: string;
  policy: 'decode' | 'reject';
  refused: boolean;
}

const SHAKES: Shake[] = [
  ...[COMPLETIONS, CHAT].flatMap((path) =>
    (['decode', 'reject'] as const).flatMap((policy) =>
      [null, 'null', '{}', '[]', '"x"'].map((params) => ({
        name: `length, parameters ${params}`,
        finish: 'length',
        params,
        path,
        policy,
        refused: true,
      })),
    ),
  ),
  {
    name: 'tool_calls, which hide it',
    finish: 'tool_calls',
    params: null,
    path: CHAT,
    policy: 'decode',
    refused: true,
  },
  { name: 'stop', finish: 'stop', params: null, path: COMPLETIONS, policy: 'decode', refused: false },
  {
    name: 'stop, failures are refused',
    finish: 'stop',
    params: 'null',
    path: COMPLETIONS,
    policy: 'reject',
    refused: false,
  },
  { name: 'abort', finish: 'abort', params: null, path: COMPLETIONS, policy: 'decode', refused: false },
];

const shakeCase = ({ name, finish, params, path, policy, refused }: Shake): Case => ({
  name: `no handshake: ${name}, ${path}, ${policy}`,
  scenario: () => ({
    name,
    config: { on_prefill_failure: policy, prefill: { retries: 0 } },
    client: post('{"prompt":"a","messages":[],"max_tokens":20}', { path }),
    prefill: answering(prefillBody(inNpy(), finish, params)),
    decode: answering(bodyOf({ name, choices: one(8), completion: 9 }, P)),
  }),
  check(result) {
    expect(result.prefillRequests).toHaveLength(1);
    if (refused) {
      expect(result.decodeRequests).toHaveLength(0);
      expectOutcome(result, 'rejected');
      return expectError(result, 502, 'BadGatewayError', HANDSHAKE);
    }
    expectOutcome(result, 'local');
    expect(header(result.headers, 'x-routed-experts')).toBe('local');
    expect(result.decodeRequests[0]!.body.toString()).toMatch(/^{"cache_salt":"[0-9a-f-]{36}",/);
  },
});

export const counts: Suite = {
  name: 'counts that add up',
  cases: [
    ...SPECS.flatMap(caseOf),
    ...STREAMS.map(streamCase),
    splitCase(8, 9),
    splitCase(7, 9),
    splitCase(9, 9),
    splitCase(0, 1),
    ...SHAKES.map(shakeCase),
  ],
};
