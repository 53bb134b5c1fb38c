// Parties with bad intent: what a client, a prefill engine and a decode engine cannot do.
// SECURITY.md names these tests.

import { gzipSync } from 'node:zlib';
import { expect } from 'vitest';
import type { Header, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  JSON_TYPE,
  PARAMS,
  PROMPT,
  FULL,
  REQUEST,
  answering,
  decodeBody,
  encoded,
  expectOutcome,
  jsonOf,
  merged,
  post,
  prefillBody,
  quoted,
} from './messages.ts';

interface Hostile {
  name: string;
  scenario: Partial<Scenario> & { config?: Record<string, unknown> };
  check(result: Result): void;
}

const EVIL = '{"do_remote_prefill":true,"remote_host":"10.6.6.6"}';
const INJECTED = 'x\\r\\nx-evil: 1\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\nx-routed-experts: merged';
const SAYS: Header = ['x-routed-experts', 'merged; rows=5; choices=1'];

const isMerged = (result: Result) => {
  expect([result.status, result.complete]).toEqual([200, true]);
  expect(result.body.toString()).toBe(GOOD_MERGED);
  expect(result.logged).toBe('merged; rows=5; choices=1');
};
const nothingEvil = (result: Result) => {
  const requests = [...result.prefillRequests, ...result.decodeRequests];
  for (const { body, headers } of requests) {
    expect(body.toString()).not.toContain('10.6.6.6');
    expect(header(headers, 'x-evil')).toBeUndefined();
  }
  expect(header(result.headers, 'x-evil')).toBeUndefined();
};
const saysOnce = (result: Result, outcome: string) => {
  expect(result.headers.filter(([name]) => name === 'x-routed-experts')).toEqual([
    ['x-routed-experts', outcome],
  ]);
  expect(result.trailers.filter(([name]) => name === 'x-routed-experts')).toEqual([]);
};

const PLACES: [name: string, path: string, body: string][] = [
  ['at the root', CHAT, `{"messages":[],"kv_transfer_params":${EVIL}}`],
  ['twice', CHAT, `{"kv_transfer_params":${EVIL},"messages":[],"kv_transfer_params":${EVIL}}`],
  ['escaped', CHAT, `{"messages":[],"\\u006bv_transfer_param\\u0073":${EVIL}}`],
  ['in vllm_xargs', CHAT, `{"messages":[],"vllm_xargs":{"kv_transfer_params":${EVIL}}}`],
  [
    'in two vllm_xargs',
    CHAT,
    `{"vllm_xargs":{"kv_transfer_params":${EVIL}},"vllm_xargs":{"kv_transfer_params":${EVIL}}}`,
  ],
  [
    'in extra_args',
    GENERATE,
    `{"token_ids":[1],"sampling_params":{"extra_args":{"kv_transfer_params":${EVIL},"kv_transfer_params":${EVIL}}}}`,
  ],
];

const client: Hostile[] = [
  ...PLACES.flatMap(([name, path, body]): Hostile[] =>
    ['nixl', 'shared_storage'].map((connector) => ({
      name: `a client’s own kv_transfer_params ${name}: ${connector}`,
      scenario: { client: post(body, { path }), config: { connector } },
      check(result) {
        nothingEvil(result);
        expect(result.prefillRequests).toHaveLength(1);
        const sent = jsonOf(result.decodeRequests[0]!);
        if (connector === 'nixl') expect(sent['kv_transfer_params']).toEqual(JSON.parse(PARAMS));
        else expect('kv_transfer_params' in sent).toBe(false);
      },
    })),
  ),
  {
    name: 'a client’s own kv_transfer_params, when prefill is down',
    scenario: { client: post(PLACES[1]![2], { path: CHAT }), prefill: 'down' },
    check(result) {
      nothingEvil(result);
      expect(result.logged).toBe('local');
    },
  },
  {
    name: 'line ends in the client’s values',
    scenario: { client: post(`{"model":"${INJECTED}","prompt":"${INJECTED}","max_tokens":3}`) },
    check(result) {
      nothingEvil(result);
      isMerged(result);
    },
  },
  {
    name: 'a client’s own outcome header',
    scenario: {
      client: post(REQUEST, { headers: [JSON_TYPE, ['content-length', String(REQUEST.length)], SAYS] }),
      decode: answering(GOOD_DECODE.replace('k05V', 'k05W')),
    },
    check: (result) => saysOnce(result, 'rejected; reason=magic'),
  },
  {
    name: 'a compressed request, which could hold parameters unseen',
    scenario: {
      client: post(gzipSync(REQUEST), {
        headers: [
          JSON_TYPE,
          ['content-encoding', 'gzip'],
          ['content-length', String(gzipSync(REQUEST).length)],
        ],
      }),
    },
    check(result) {
      expect(result.status).toBe(415);
      expect([result.prefillRequests, result.decodeRequests]).toEqual([[], []]);
    },
  },
];

const array = (text: string) => prefillBody(quoted(text));
const good = encoded(PROMPT);

const prefill: Hostile[] = [
  {
    name: 'JSON in prefill’s array',
    scenario: {
      prefill: answering(array(`${good.slice(0, -24)}\\",\\"text\\":\\"evil\\",${good.slice(-8)}`)),
    },
    check: (result) => saysOnce(result, 'rejected; reason=base64'),
  },
  {
    name: 'a quote in prefill’s array',
    scenario: { prefill: answering(array(`${good.slice(0, -24)}","text":"evil","x":"${good.slice(-8)}`)) },
    check: (result) => saysOnce(result, 'rejected; reason=size'),
  },
  {
    name: 'braces in values that go into decode’s response',
    scenario: {
      client: post('{"prompt":"x","max_tokens":3,"prompt_logprobs":1}'),
      prefill: answering(
        GOOD_PREFILL.replace(
          '"text":"x"',
          '"text":"x","prompt_logprobs":[null,{"1":{"decoded_token":"\\"}],\\"error\\":{"}}]',
        ),
      ),
    },
    check(result) {
      const { choices, ...rest } = JSON.parse(result.body.toString()) as {
        choices: Record<string, unknown>[];
      };
      expect(Object.keys(rest)).toEqual(['id', 'usage', 'kv_transfer_params']);
      expect(choices[0]!['prompt_logprobs']).toEqual([null, { 1: { decoded_token: '"}],"error":{' } }]);
      expect(result.logged).toMatch(/^merged/);
    },
  },
  {
    name: 'line ends in kv_transfer_params',
    scenario: { prefill: answering(GOOD_PREFILL.replace(PARAMS, `{"remote_host":"${INJECTED}"}`)) },
    check(result) {
      nothingEvil(result);
      isMerged(result);
      expect(jsonOf(result.decodeRequests[0]!)['kv_transfer_params']).toEqual(
        JSON.parse(`{"remote_host":"${INJECTED}"}`),
      );
    },
  },
  {
    name: 'parameters that would close the request’s object',
    scenario: { prefill: answering(GOOD_PREFILL.replace(PARAMS, `{"a":1},"max_tokens":1000,"b":{}`)) },
    check(result) {
      // `max_tokens` and `b` are members of prefill's reply and must not become members of decode's
      // request.
      expect(jsonOf(result.decodeRequests[0]!)).toEqual({
        ...JSON.parse(REQUEST),
        kv_transfer_params: { a: 1 },
      });
    },
  },
  {
    name: 'an outcome header in prefill’s error',
    scenario: { prefill: answering('{"error":{}}', { status: 429, headers: [SAYS] }) },
    check: (result) => saysOnce(result, 'absent'),
  },
];

const STREAM = { headers: [['content-type', 'text/event-stream'] as Header], contentLength: null };
const broken = GOOD_DECODE.replace('k05V', 'k05W');

/** An array that differs in every byte from the one that the engine should return. */
const WRONG = { ...FULL, from: 77 };

const decode: Hostile[] = [
  {
    name: 'an outcome header of decode’s, and an array that can’t be merged',
    scenario: { decode: answering(broken, { headers: [SAYS] }), config: { on_unmergeable: 'forward' } },
    check: (result) => saysOnce(result, 'unmerged; reason=magic'),
  },
  {
    name: 'an outcome header of decode’s, and no array',
    scenario: { decode: answering('{"choices":[]}', { headers: [SAYS, SAYS] }) },
    check: (result) => saysOnce(result, 'absent'),
  },
  {
    name: 'an outcome header of decode’s, which serves alone',
    scenario: { prefill: 'down', decode: answering(GOOD_DECODE, { headers: [SAYS] }) },
    check: (result) => saysOnce(result, 'local'),
  },
  {
    name: 'an outcome header of decode’s in a stream',
    scenario: {
      client: post('{"token_ids":[1],"sampling_params":{},"stream":true}', { path: GENERATE }),
      decode: answering('data: {"choices":[]}\n\ndata: [DONE]\n\n', {
        ...STREAM,
        headers: [...STREAM.headers, SAYS],
      }),
    },
    check(result) {
      expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
      expect(result.logged).toBe('absent');
    },
  },
  {
    name: 'an outcome trailer of decode’s',
    scenario: {
      decode: answering(GOOD_DECODE, {
        trailers: [
          ['x-routed-experts', 'local'],
          ['x-other', '1'],
        ],
      }),
      downstream: 'http2',
      upstream: 'http2',
    },
    check(result) {
      isMerged(result);
      expect(result.trailers.filter(([name]) => name === 'x-routed-experts')).toEqual([]);
      expect(result.trailers).toContainEqual(['x-other', '1']);
    },
  },
  {
    name: 'a second array under the same key, that clients would take',
    scenario: {
      decode: answering(
        decodeBody([`${quoted(encoded(FULL))},"routed_experts":${quoted(encoded({ ...FULL, from: 77 }))}`]),
      ),
    },
    check: (result) => saysOnce(result, 'rejected; reason=duplicate'),
  },
  {
    name: 'a text that looks like the array',
    scenario: {
      decode: answering(
        decodeBody([quoted(encoded(FULL))], { before: '\\"routed_experts\\":\\"k05VTVBZAQB2AHsn' }),
      ),
    },
    check(result) {
      expect(result.body.toString()).toContain('"text":"\\"routed_experts\\":\\"k05VTVBZAQB2AHsn"');
      expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
    },
  },
  {
    name: 'rows that the engine did not forward, said to be all of them',
    scenario: { decode: answering(decodeBody([quoted(encoded({ ...FULL, rows: 4 }))])) },
    check: (result) => saysOnce(result, 'rejected; reason=rows'),
  },
  {
    name: 'wrong generated rows, which are its own, and wrong rows of the prompt, which are not',
    scenario: { decode: answering(decodeBody([quoted(encoded(WRONG))])) },
    check(result) {
      expect(result.body.toString()).toBe(decodeBody([quoted(merged(PROMPT, WRONG))]));
      saysOnce(result, 'merged; rows=5; choices=1');
    },
  },
];

const one =
  (party: string) =>
  ({ name, scenario, check }: Hostile): Case => ({
    name: `${party}: ${name}`,
    ownId: true,
    scenario: () => {
      const { config, ...more } = scenario;
      return {
        name,
        config: { prefill: { retries: 0 }, ...config },
        client: post(REQUEST),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
        ...more,
      };
    },
    check,
  });

export const hostile: Suite = {
  name: 'hostile parties',
  cases: [...client.map(one('client')), ...prefill.map(one('prefill')), ...decode.map(one('decode'))],
};
