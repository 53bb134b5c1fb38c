// A leg that fails: what the client gets, how often prefill is asked, and that nothing of the
// failure reaches decode.

import { gzipSync } from 'node:zlib';
import { expect } from 'vitest';
import type { Engine, EngineReply, Header, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  encoded,
  expectError,
  expectLength,
  expectOutcome,
  expectSalted,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  jsonOf,
  PARAMS,
  post,
  prefillBody,
  PROMPT,
  quoted,
  reply,
  REQUEST,
} from './messages.ts';

const FAILURES = 'routed_experts.prefill_failures';
const MERGED = { 'routed_experts.spliced_bytes': 30 };

interface Failing {
  name: string;
  prefill: Engine | 'down';
  /** The failure as the error's message names it. */
  text: string;
  /**
   * With `retries: 2`: the number of calls that the filter sees fail, and the number of requests
   * that reach the engine.
   */
  calls: number;
  reached: number;
  status?: 502 | 504;
  config?: Record<string, unknown>;
  prefillConfig?: Record<string, unknown>;
}

const failing = (
  name: string,
  text: string,
  prefill: Engine | 'down',
  more: Partial<Failing> = {},
): Failing => ({
  name,
  text,
  prefill,
  calls: 3,
  reached: 3,
  ...more,
});

/** Envoy itself retries, so the filter sees one failed call. */
const RETRIED = { calls: 1 };
/** Neither Envoy nor the filter retries. */
const ONCE = { calls: 1, reached: 1 };

const fault = (of: EngineReply['fault']): Engine => answering(GOOD_PREFILL, { fault: of });
const status = (code: number, body = '{"error":{}}'): Engine => answering(body, { status: code });

const UNAVAILABLE = 'no connection, or status 502 or 503';
const RESET = 'connection reset, or reply too large';
const UNREADABLE = 'the reply is not JSON';
const TOO_LARGE = 'the prompt rows exceed max_capture_bytes';

const FAILING: Failing[] = [
  failing('prefill is down', UNAVAILABLE, 'down', { calls: 1, reached: 0 }),
  failing('no such cluster', 'no healthy host', 'down', {
    calls: 1,
    reached: 0,
    prefillConfig: { cluster: 'nowhere' },
  }),
  failing('prefill resets', UNAVAILABLE, fault('reset'), RETRIED),
  failing(
    'prefill resets inside its reply',
    RESET,
    answering(GOOD_PREFILL, { fault: 'reset_body', pieces: [Buffer.from(GOOD_PREFILL).subarray(0, 100)] }),
  ),
  failing('prefill is silent', 'timeout', fault('stall'), {
    ...ONCE,
    status: 504,
    prefillConfig: { timeout_ms: 80 },
  }),
  failing(
    'prefill falls silent',
    'timeout',
    answering(GOOD_PREFILL, { fault: 'stall_body', pieces: [Buffer.from(GOOD_PREFILL).subarray(0, 100)] }),
    { ...ONCE, status: 504, prefillConfig: { timeout_ms: 400 } },
  ),
  failing('500', 'error status', status(500)),
  failing('501', 'error status', status(501)),
  failing('502', UNAVAILABLE, status(502), RETRIED),
  failing('503', UNAVAILABLE, status(503), RETRIED),
  failing('504', 'timeout', status(504), { ...RETRIED, status: 504 }),
  failing('302', 'error status', answering('', { status: 302, headers: [['location', '/elsewhere']] })),
  failing('not JSON', UNREADABLE, answering('<html>busy</html>')),
  failing('an empty reply', UNREADABLE, answering('')),
  failing('a list', UNREADABLE, answering('[]')),
  failing('a reply that is cut', UNREADABLE, answering(GOOD_PREFILL.slice(0, -1))),
  failing('a reply cut inside its rows', UNREADABLE, answering(GOOD_PREFILL.slice(0, 250))),
  failing('text behind the reply', UNREADABLE, answering(`${GOOD_PREFILL}x`)),
  failing(
    'a compressed reply',
    UNREADABLE,
    answering(gzipSync(GOOD_PREFILL), { headers: [['content-encoding', 'gzip']] }),
  ),
  failing(
    'parameters of more than a megabyte',
    UNREADABLE,
    answering(GOOD_PREFILL.replace(PARAMS, `{"x":"${'y'.repeat(1 << 20)}"}`)),
  ),
  failing('rows over max_capture_bytes', TOO_LARGE, answering(GOOD_PREFILL), {
    ...ONCE,
    config: { max_capture_bytes: 10, max_parked_bytes: 10 },
  }),
  failing(
    'rows and values over max_capture_bytes together',
    TOO_LARGE,
    // The rows take 40 characters of base64, and the logprobs take more than the remaining 40
    // bytes.
    answering(GOOD_PREFILL.replace('"text":"x"', `"text":"x","prompt_logprobs":[${'0,'.repeat(20)}0]`)),
    { ...ONCE, config: { max_capture_bytes: 80 } },
  ),
  failing(
    'no length of the prompt, for a tail',
    'the reply does not tell the length of the prompt',
    answering(prefillBody(null, null)),
    { ...ONCE, config: { decode_rows: 'tail' } },
  ),
];

function scenarioOf(
  of: Pick<Failing, 'name' | 'prefill' | 'config' | 'prefillConfig'>,
  config: Record<string, unknown>,
  more: Partial<Scenario> = {},
): Scenario {
  return {
    name: of.name,
    config: { ...of.config, ...config, prefill: { retries: 2, ...of.prefillConfig } },
    client: post(REQUEST),
    prefill: of.prefill,
    decode: answering(GOOD_DECODE),
    ...more,
  };
}

/**
 * Decode serves the request alone: its request has a salt and no other change, and the response is
 * unchanged.
 */
function expectLocal(result: Result, request: string | Buffer, failures: number): void {
  expect(result).toMatchObject({ status: 200, complete: true });
  expect(result.body.toString()).toBe(GOOD_DECODE);
  expect(result.decodeRequests).toHaveLength(1);
  expectSalted(result.decodeRequests[0]!, request);
  expect(header(result.headers, 'x-routed-experts')).toBe('local');
  expectOutcome(result, 'local', failures > 0 ? { [FAILURES]: failures } : {});
}

const PROTOCOLS: Protocol[] = ['http1', 'http2'];

const prefillFailures: Case[] = FAILING.flatMap((of) => {
  const { calls, reached } = of;
  return [
    ...PROTOCOLS.map((protocol): Case => ({
      name: `${of.name}: decode, ${protocol}`,
      scenario: () =>
        scenarioOf(of, { on_prefill_failure: 'decode' }, { downstream: protocol, upstream: protocol }),
      check(result) {
        // The retries of Envoy and the tries of the filter together reach the engine this often.
        expect(result.prefillRequests).toHaveLength(reached);
        expectLocal(result, REQUEST, calls);
      },
    })),
    {
      name: `${of.name}: reject`,
      scenario: () => scenarioOf(of, { on_prefill_failure: 'reject' }),
      check(result) {
        const code = of.status ?? 502;
        const type = code === 504 ? 'GatewayTimeoutError' : 'BadGatewayError';
        expectError(result, code, type, `prefill failed: ${of.text}`);
        expectLength(result, true);
        expect(result.prefillRequests).toHaveLength(reached);
        expect(result.decodeRequests).toEqual([]);
        expect(header(result.headers, 'x-routed-experts')).toBe('rejected');
        expectOutcome(result, 'rejected', { [FAILURES]: calls });
      },
    },
    {
      name: `${of.name}, then it answers`,
      scenario: () => {
        let tries = 0;
        const { prefill } = of;
        const recovering: Engine | 'down' =
          prefill === 'down' ? 'down' : (request) => (++tries < 3 ? prefill(request) : reply(GOOD_PREFILL));
        return scenarioOf({ ...of, prefill: recovering }, { on_prefill_failure: 'reject' });
      },
      check(result) {
        if (reached < 3) {
          expect(result.status).toBe(of.status ?? 502);
          expect(result.prefillRequests).toHaveLength(reached);
          return;
        }
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(GOOD_MERGED);
        expect(result.prefillRequests).toHaveLength(3);
        // Each try sends the same request.
        const [first, ...others] = result.prefillRequests.map(({ body }) => body.toString());
        expect(others).toEqual([first, first]);
        const failures: Record<string, number> = calls === 1 ? {} : { [FAILURES]: 2 };
        expectOutcome(result, 'merged; rows=5; choices=1', { ...MERGED, ...failures });
      },
    },
  ];
});

/** Replies without parameters: there is nothing to pull, but nothing has failed. */
const noParams: Case[] = ['null', '[]', '"x"', undefined].map((value): Case => {
  const member = `,"kv_transfer_params":${PARAMS}`;
  const body = GOOD_PREFILL.replace(member, value === undefined ? '' : `,"kv_transfer_params":${value}`);
  return {
    name: `kv_transfer_params: ${value}`,
    scenario: () => scenarioOf({ name: 'no parameters', prefill: answering(body) }, {}),
    check(result) {
      expect(result.prefillRequests).toHaveLength(1);
      expectLocal(result, REQUEST, 0);
    },
  };
});

const parked: Case = {
  name: 'rows over max_capture_bytes are parked, and merged',
  scenario: () => scenarioOf({ name: 'parked', prefill: answering(GOOD_PREFILL) }, { max_capture_bytes: 10 }),
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    expectOutcome(result, 'merged; rows=5; choices=1', MERGED);
  },
};

const sharedStorage: Case = {
  name: 'shared_storage needs no parameters',
  scenario: () =>
    scenarioOf(
      { name: 'shared storage', prefill: answering(GOOD_PREFILL.replace(PARAMS, 'null')) },
      { connector: 'shared_storage' },
    ),
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    expect(jsonOf(result.decodeRequests[0]!)).toEqual(JSON.parse(REQUEST));
    expect('kv_transfer_params' in jsonOf(result.prefillRequests[0]!)).toBe(false);
    expectOutcome(result, 'merged; rows=5; choices=1', MERGED);
  },
};

interface Passed {
  status: number;
  body: string | Buffer;
  headers?: Header[];
}

const NOT_FOUND =
  '{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}';

const PASSED: Passed[] = [
  {
    status: 400,
    body: '{"error":{"message":"bad \\" \\u0000 \u00e9","type":"BadRequestError","param":null,"code":400}}',
  },
  {
    status: 401,
    body: 'no',
    headers: [
      ['content-type', 'text/plain'],
      ['www-authenticate', 'Bearer'],
    ],
  },
  {
    status: 404,
    body: NOT_FOUND,
    headers: [
      ['x-engine', 'a'],
      ['x-engine', 'b'],
    ],
  },
  { status: 413, body: '' },
  { status: 422, body: NOT_FOUND },
  {
    status: 429,
    body: NOT_FOUND,
    headers: [
      ['retry-after', '3'],
      ['x-routed-experts', 'merged'],
    ],
  },
  { status: 400, body: gzipSync(NOT_FOUND), headers: [['content-encoding', 'gzip']] },
  { status: 400, body: Buffer.alloc(300_000, 0x61) },
];

const passed: Case[] = PASSED.flatMap((answer, i) =>
  PROTOCOLS.map((protocol): Case => {
    const { status: code, body, headers = [] } = answer;
    return {
      name: `prefill's ${code} goes to the client (${i}), ${protocol}`,
      scenario: () =>
        scenarioOf(
          { name: 'passed', prefill: answering(body, { status: code, headers }) },
          {},
          { downstream: protocol, upstream: protocol },
        ),
      check(result) {
        expect(result).toMatchObject({ status: code, complete: true });
        expect(result.body).toEqual(Buffer.from(body));
        if (body.length > 0) expectLength(result, true);
        const expected = headers.filter(([name]) => name !== 'x-routed-experts');
        for (const one of expected) expect(result.headers).toContainEqual(one);
        const types = result.headers.filter(([name]) => name === 'content-type');
        // A reply that Envoy sends itself has no content-type if it has no body.
        expect(types).toHaveLength(body.length > 0 ? 1 : 0);
        expect(result.headers.filter(([name]) => name === 'x-routed-experts')).toEqual([
          ['x-routed-experts', 'absent'],
        ]);
        expect(result.prefillRequests).toHaveLength(1);
        expect(result.decodeRequests).toEqual([]);
        expectOutcome(result, 'absent');
      },
    };
  }),
);

const ARRAY_BODY = GOOD_DECODE;

interface DecodeAnswer {
  name: string;
  engine: Engine | 'down';
  check(result: Result): void;
  protocols?: Protocol[];
}

const untouched = (code: number, body: string): DecodeAnswer => ({
  name: `decode's ${code} passes untouched`,
  engine: answering(body, { status: code, headers: [['x-engine', 'd']] }),
  check(result) {
    expect(result).toMatchObject({ status: code, complete: true });
    expect(result.body.toString()).toBe(body);
    expectLength(result, true);
    expect(result.headers).toContainEqual(['x-engine', 'd']);
    expect(header(result.headers, 'x-routed-experts')).toBe('absent');
    expectOutcome(result, 'absent');
  },
});

const lost = (name: string, engine: Engine | 'down', code: number): DecodeAnswer => ({
  name,
  engine,
  check(result) {
    expect(result).toMatchObject({ status: code, complete: true });
    expect(result.body.toString()).toContain('upstream connect error');
    expect(header(result.headers, 'x-routed-experts')).toBe('absent');
    expectOutcome(result, 'absent');
  },
});

const cutOff = (name: string, engine: Engine): DecodeAnswer => ({
  name,
  engine,
  check(result) {
    // Nothing of the held body has left.
    expect(result.body.toString()).not.toContain('routed_experts":"');
    expect(result.status === 200 && result.complete).toBe(false);
    expectOutcome(result, 'aborted');
  },
});

const DECODE: DecodeAnswer[] = [
  untouched(400, ARRAY_BODY),
  untouched(404, NOT_FOUND),
  untouched(
    500,
    '{"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}',
  ),
  untouched(503, 'busy'),
  untouched(302, 'elsewhere'),
  lost('decode is down', 'down', 503),
  lost('decode resets', answering('', { fault: 'reset' }), 503),
  cutOff(
    'decode resets inside its body',
    answering(GOOD_DECODE, { fault: 'reset_body', pieces: [Buffer.from(GOOD_DECODE).subarray(0, 300)] }),
  ),
  {
    name: 'decode answers 204',
    engine: answering('', { status: 204, contentLength: null }),
    protocols: ['http2'],
    check(result) {
      expect(result).toMatchObject({ status: 204, complete: true });
      expect(result.body).toHaveLength(0);
      expectOutcome(result, 'absent');
    },
  },
  {
    name: 'decode answers with an empty body',
    engine: answering('', { contentLength: 0 }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body).toHaveLength(0);
      expectOutcome(result, 'absent');
    },
  },
  {
    name: 'decode answers with an empty body of no length',
    engine: answering('', { contentLength: null }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body).toHaveLength(0);
      expectOutcome(result, 'absent');
    },
  },
  {
    name: 'decode answers without routing',
    engine: answering(GOOD_DECODE.replace(/"routed_experts":"[^"]*"/, '"routed_experts":null')),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(
        GOOD_DECODE.replace(/"routed_experts":"[^"]*"/, '"routed_experts":null'),
      );
      expectLength(result, true);
      expect(header(result.headers, 'x-routed-experts')).toBe('absent');
      expectOutcome(result, 'absent');
    },
  },
];

const decodeAnswers: Case[] = DECODE.flatMap(({ name, engine, check, protocols = PROTOCOLS }) =>
  protocols.map((protocol): Case => ({
    name: `${name}, ${protocol}`,
    scenario: () =>
      scenarioOf(
        { name, prefill: answering(GOOD_PREFILL) },
        {},
        { decode: engine, downstream: protocol, upstream: protocol },
      ),
    check(result) {
      expect(result.prefillRequests).toHaveLength(1);
      check(result);
    },
  })),
);

/** The retries of Envoy and of the filter together are no more than `retries`. */
const mixed: Case = {
  name: 'failures of all kinds, one after the other',
  scenario: () => {
    let tries = 0;
    const kinds = [503, 500, 502, 500, 503];
    return scenarioOf(
      { name: 'mixed', prefill: (request) => status(kinds[tries++] ?? 500)(request) as EngineReply },
      { on_prefill_failure: 'reject' },
    );
  },
  check(result) {
    expectError(result, 502, 'BadGatewayError', `prefill failed: ${UNAVAILABLE}`);
    // 503 500 | 502 500 | 503: the last call has no retry left for Envoy.
    expect(result.prefillRequests).toHaveLength(5);
    expectOutcome(result, 'rejected', { [FAILURES]: 3 });
  },
};

const never: Case = {
  name: 'retries: 0',
  scenario: () => ({
    ...scenarioOf({ name: 'never', prefill: status(503) }, {}),
    config: { prefill: { retries: 0 } },
  }),
  check(result) {
    expect(result.prefillRequests).toHaveLength(1);
    expectLocal(result, REQUEST, 1);
  },
};

export const failures: Suite = {
  name: 'a leg that fails',
  cases: [...prefillFailures, mixed, never, ...noParams, parked, sharedStorage, ...passed, ...decodeAnswers],
};

const LONG = prefillBody(quoted(encoded({ ...PROMPT, rows: 2000 })), 2000);

/** Envoy buffers the whole reply of the prefill leg, up to a limit. */
export const replyLimit: Suite = {
  name: 'a prefill reply over http.async_response_buffer_limit',
  limits: { asyncResponseLimit: 4096 },
  cases: ['decode', 'reject'].map((policy): Case => ({
    name: policy,
    scenario: () => scenarioOf({ name: policy, prefill: answering(LONG) }, { on_prefill_failure: policy }),
    check(result) {
      expect(result.prefillRequests).toHaveLength(3);
      if (policy === 'decode') return expectLocal(result, REQUEST, 3);
      expectError(result, 502, 'BadGatewayError', `prefill failed: ${RESET}`);
      expectOutcome(result, 'rejected', { [FAILURES]: 3 });
    },
  })),
};
