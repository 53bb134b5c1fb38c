// Clients that leave, and requests that are larger than Envoy holds: each exchange ends in one
// outcome, and afterwards the filter holds nothing.

import { setImmediate } from 'node:timers/promises';
import { expect } from 'vitest';
import type { Protocol, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  CHAT,
  COMPLETIONS,
  cut,
  decodeBody,
  encoded,
  expectOutcome,
  FULL,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  HANDSHAKES,
  NO_ARRAY,
  PARAMS,
  post,
  prefillBody,
  PROMPT,
  quoted,
  reply,
  REQUEST,
  Watch,
} from './messages.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];

/** A scenario whose client leaves when `reach` is called. */
function leaving(
  make: (reach: () => void, watch: Watch) => Partial<Scenario>,
  config: Record<string, unknown> = {},
): Scenario {
  let reach = () => {};
  const leave = new Promise<void>((resolve) => (reach = resolve));
  const watch = new Watch();
  return {
    name: 'leaving',
    config,
    client: post(REQUEST),
    prefill: answering(GOOD_PREFILL),
    decode: answering(GOOD_DECODE),
    leave,
    onBody: watch.onBody,
    ...make(reach, watch),
  };
}

/** An engine that sends only the first bytes of its body and then stalls. */
const silent = (reach: () => void, body: string, bytes: number) => () => {
  reach();
  return reply(body, {
    pieces: [Buffer.from(body).subarray(0, bytes)],
    fault: bytes === 0 ? 'stall' : 'stall_body',
  });
};

interface Stage {
  name: string;
  scenario(): Scenario;
  /** The number of requests that reached prefill and decode. */
  legs: [number, number];
}

const stages: Stage[] = [
  {
    name: 'before prefill answers',
    scenario: () =>
      leaving((reach) => ({ prefill: silent(reach, '', 0) }), {
        prefill: { timeout_ms: 300, retries: 2 },
      }),
    legs: [1, 0],
  },
  {
    name: 'inside prefill’s reply',
    scenario: () =>
      leaving((reach) => ({ prefill: silent(reach, GOOD_PREFILL, 100) }), {
        prefill: { timeout_ms: 300 },
      }),
    legs: [1, 0],
  },
  {
    name: 'before decode answers',
    scenario: () => leaving((reach) => ({ decode: silent(reach, '', 0) })),
    legs: [1, 1],
  },
  {
    name: 'while the response is held',
    scenario: () => leaving((reach) => ({ decode: silent(reach, GOOD_DECODE, 300) })),
    legs: [1, 1],
  },
  {
    name: 'while the response is streamed',
    scenario: () =>
      leaving(
        (reach, watch) => {
          void watch.seen(1).then(reach);
          return {
            decode: answering(GOOD_DECODE, {
              pieces: [Buffer.from(GOOD_DECODE).subarray(0, 300)],
              fault: 'stall_body',
            }),
          };
        },
        { hold_bytes: 0 },
      ),
    legs: [1, 1],
  },
  {
    name: 'inside a stream of events',
    scenario: () =>
      leaving((reach, watch) => {
        void watch.seen(1).then(reach);
        return {
          client: post('{"messages":[],"stream":true}', { path: CHAT }),
          decode: answering('data: {}\n\n', {
            headers: [['content-type', 'text/event-stream']],
            contentLength: null,
            fault: 'stall_body',
          }),
        };
      }),
    legs: [1, 1],
  },
  {
    name: 'inside a stream of events that is spliced',
    scenario: () =>
      leaving((reach, watch) => {
        void watch.seen(1).then(reach);
        const event = `data: {"choices":[{"routed_experts":"${encoded(FULL).slice(0, 100)}`;
        return {
          client: post('{"token_ids":[1],"sampling_params":{},"stream":true}', { path: GENERATE }),
          decode: answering(`data: {}\n\n${event}`, {
            headers: [['content-type', 'text/event-stream']],
            contentLength: null,
            fault: 'stall_body',
          }),
        };
      }),
    legs: [1, 1],
  },
  {
    name: 'while the endpoint is looked up',
    scenario: () =>
      leaving(
        (reach) => ({
          client: { ...post(REQUEST), headers: [...post(REQUEST).headers, ['x-to', '{prefill:0}']] },
          prefill: [silent(reach, '', 0)],
        }),
        {
          prefill: {
            ...{ endpoint_header: 'x-to', allowed_endpoints: ['{prefill:0}'], timeout_ms: 300 },
            cluster_type: 'dynamic_forward_proxy',
          },
        },
      ),
    // The one request is the look-up `GET /health`, not a leg.
    legs: [1, 0],
  },
  ...HANDSHAKES.map((handshake, i): Stage => ({
    name: `while ranks are asked for, ${handshake}`,
    scenario: () =>
      leaving((reach) => ({ bootstrap: silent(reach, '', 0) }), {
        ...{ connector: 'mooncake', handshake },
        prefill: { bootstrap_host: '127.0.0.1', bootstrap_port: 39_998 + i, timeout_ms: 300 },
      }),
    legs: [0, 0],
  })),
  {
    name: 'before prefill answers, its head gone on',
    scenario: () =>
      leaving((reach) => ({ prefill: silent(reach, '', 0) }), {
        headers: 'pass',
        prefill: { timeout_ms: 300 },
      }),
    legs: [1, 0],
  },
  {
    name: 'when decode serves the request alone',
    scenario: () =>
      leaving((reach) => ({ client: post('{"prompt":["a","b"]}'), decode: silent(reach, '', 0) })),
    legs: [0, 1],
  },
];

const left: Case[] = stages.flatMap((stage) =>
  PROTOCOLS.flatMap((protocol): Case[] => [
    {
      name: `${stage.name}, ${protocol}`,
      scenario: () => ({ ...stage.scenario(), downstream: protocol, upstream: protocol }),
      check(result) {
        expect(result.complete).toBe(false);
        expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual(stage.legs);
        if (stage.name.includes('looked up')) expect(result.prefillRequests[0]!.path).toBe('/health');
        expectOutcome(result, 'aborted');
      },
    },
    {
      name: `the next request is served: ${stage.name}, ${protocol}`,
      scenario: () => ({
        name: 'next',
        client: post(REQUEST),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
        downstream: protocol,
        upstream: protocol,
      }),
      check(result) {
        expect(result.body.toString()).toBe(GOOD_MERGED);
        expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
      },
    },
  ]),
);

/** Envoy cannot cancel the call, so prefill's reply comes after the client has left. */
const late: Case = {
  name: 'prefill answers a client that has left',
  only: {
    host: 'emulator',
    because: 'what Envoy notices first, the answer or the leaving, depends on timing',
  },
  scenario: () =>
    leaving((reach) => ({
      prefill: async () => {
        reach();
        // After two turns of the event loop the emulator has noticed that the client left.
        await setImmediate();
        await setImmediate();
        return reply(GOOD_PREFILL);
      },
    })),
  check(result) {
    expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual([1, 0]);
    expectOutcome(result, 'aborted');
  },
};

/** On Envoy, the request that follows releases the late reply. */
let letGo = () => {};
const only = { host: 'envoy' as const, because: 'the emulator ends an exchange with its last answer' };
const lateOnEnvoy: Case[] = [
  {
    name: 'a client leaves, and prefill will answer later',
    only,
    scenario: () =>
      leaving((reach) => ({
        prefill: () => {
          reach();
          return new Promise((resolve) => (letGo = () => resolve(reply(GOOD_PREFILL))));
        },
      })),
    check(result) {
      expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual([1, 0]);
      expectOutcome(result, 'aborted');
    },
  },
  {
    name: 'the late answer meets another exchange',
    only,
    scenario: () => ({
      name: 'next',
      client: post(REQUEST),
      prefill: () => {
        letGo();
        return reply(GOOD_PREFILL);
      },
      decode: answering(GOOD_DECODE),
    }),
    check(result) {
      expect(result.body.toString()).toBe(GOOD_MERGED);
      expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
    },
  },
];

export const leavers: Suite = { name: 'a client that leaves', cases: [...left, late, ...lateOnEnvoy] };

const LIMIT = 16_384;
const filled = (bytes: number, rest = '') => `{"prompt":"${'x'.repeat(bytes - 13 - rest.length)}"${rest}}`;

interface Sized {
  name: string;
  body: string;
  path?: string;
  prefill?: string;
  /** Null means that Envoy refuses the request with 413. */
  outcome: string | null;
  legs: [number, number];
}

const longParams = `{"remote_request_id":"${'r'.repeat(LIMIT)}"}`;

const SIZED: Sized[] = [
  {
    name: 'a request near the limit',
    body: filled(LIMIT - 2000),
    outcome: 'merged; rows=5; choices=1',
    legs: [1, 1],
  },
  { name: 'a request over the limit', body: filled(LIMIT + 2000), outcome: null, legs: [0, 0] },
  { name: 'a request far over the limit', body: filled(LIMIT * 20), outcome: null, legs: [0, 0] },
  {
    name: 'a request that decode’s parameters take over the limit',
    body: filled(LIMIT - 2000),
    prefill: GOOD_PREFILL.replace(PARAMS, longParams),
    outcome: null,
    legs: [1, 0],
  },
  {
    name: 'a request over the limit, for a path that is not served',
    body: filled(LIMIT + 2000),
    path: '/v1/embeddings',
    outcome: 'local',
    legs: [0, 1],
  },
];

/**
 * Envoy holds a request until prefill has answered. If the request exceeds the limit, Envoy answers
 * it itself.
 */
const sized: Case[] = SIZED.flatMap((of) =>
  PROTOCOLS.flatMap((protocol) =>
    [undefined, 1000].map((pieces): Case => ({
      name: `${of.name}, pieces of ${pieces ?? 'all'}, ${protocol}`,
      // Envoy cuts the client off while the client writes a body that Envoy no longer reads.
      ...(of.name.includes('far over') && protocol === 'http1'
        ? {
            only: {
              host: 'emulator' as const,
              because: 'what the client still reads of the answer depends on timing',
            },
          }
        : {}),
      scenario: () => ({
        name: of.name,
        client: post(of.body, {
          path: of.path ?? COMPLETIONS,
          ...(pieces === undefined ? {} : { chunks: cut(Buffer.from(of.body), pieces) }),
        }),
        prefill: answering(of.prefill ?? GOOD_PREFILL),
        decode: answering(of.outcome === 'local' ? NO_ARRAY : GOOD_DECODE),
        downstream: protocol,
        upstream: protocol,
      }),
      check(result) {
        // Over HTTP/2 the limit is the stream's window of 16 MiB.
        const outcome = protocol === 'http2' ? (of.outcome ?? 'merged; rows=5; choices=1') : of.outcome;
        const legs = protocol === 'http2' && of.outcome === null ? [1, 1] : of.legs;
        expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual(legs);
        if (outcome === null) {
          expect(result.status).toBe(413);
          expect(header(result.headers, 'x-routed-experts')).toBe('absent');
          return expectOutcome(result, 'absent');
        }
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(outcome === 'local' ? NO_ARRAY : GOOD_MERGED);
        expectOutcome(result, outcome, outcome === 'local' ? {} : { 'routed_experts.spliced_bytes': 30 });
      },
    })),
  ),
);

/** The limits of requests do not apply to responses. */
const responses: Case[] = PROTOCOLS.flatMap((protocol) =>
  [0, 1 << 20].map((hold_bytes): Case => ({
    name: `a response over the limit, hold_bytes ${hold_bytes}, ${protocol}`,
    cutDecidesHead: true,
    scenario: () => ({
      name: 'response',
      config: { hold_bytes },
      client: post(REQUEST),
      prefill: answering(prefillBody(quoted(encoded(PROMPT)))),
      decode: answering(decodeBody([quoted(encoded(FULL))], { before: 'y'.repeat(LIMIT * 20) }), {
        pieces: 5000,
      }),
      downstream: protocol,
      upstream: protocol,
    }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.length).toBeGreaterThan(LIMIT * 20);
      expect(header(result.headers, 'content-length')).toBe(String(result.body.length));
      expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
    },
  })),
);

const WINDOW = 16 << 20;

/**
 * Envoy answers the client inside the call with which the filter writes the decode leg; over HTTP/2
 * it does so when the leg exceeds the stream's window.
 */
const inside: Case[] = ['decode', 'reject'].map((policy): Case => ({
  name: `a request that decode’s parameters take over the window of HTTP/2: ${policy}`,
  scenario: () => ({
    name: 'inside',
    config: { on_prefill_failure: policy },
    client: post(filled(WINDOW - 2000), { path: COMPLETIONS }),
    prefill: answering(GOOD_PREFILL.replace(PARAMS, longParams)),
    decode: answering(GOOD_DECODE),
    downstream: 'http2',
    upstream: 'http2',
  }),
  check(result) {
    expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual([1, 0]);
    expect([result.status, result.complete]).toEqual([413, true]);
    expect(header(result.headers, 'x-routed-experts')).toBe('absent');
    expectOutcome(result, 'absent');
  },
}));

export const bufferLimits: Suite = {
  name: 'bodies around the buffer limit',
  limits: { bufferLimit: LIMIT },
  cases: [...sized, ...inside, ...responses],
};
