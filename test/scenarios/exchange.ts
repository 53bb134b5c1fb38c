// How bodies and heads travel: held, released and streamed, in any pieces, with trailers; and which
// headers reach which engine.

import { expect } from 'vitest';
import type { ClientRequest, Header, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  COMPLETIONS,
  FULL,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  PROMPT,
  REQUEST,
  REQUEST_ID,
  TAIL,
  Watch,
  answering,
  cut,
  decodeBody,
  encoded,
  expectError,
  expectLength,
  expectOutcome,
  jsonOf,
  merged,
  post,
  prefillBody,
  quoted,
  rowBytes,
  type ArraySpec,
} from './messages.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const SPLICED = { 'routed_experts.spliced_bytes': 30 };
const MERGED = 'merged; rows=5; choices=1';

function scenarioOf(name: string, more: Partial<Scenario>, config: Record<string, unknown> = {}): Scenario {
  return {
    name,
    config,
    client: post(REQUEST),
    prefill: answering(GOOD_PREFILL),
    decode: answering(GOOD_DECODE),
    ...more,
  };
}

interface Body {
  name: string;
  body: string;
  out: string;
  prefill?: string;
  config?: Record<string, unknown>;
  outcome?: string;
  counters?: Record<string, number>;
  request?: string;
}

const quotedFull = quoted(encoded(FULL));
const out = quoted(merged(PROMPT, FULL));
const LONG_PROMPT: ArraySpec = { rows: 3001, from: 9 };
const LONG_FULL: ArraySpec = { rows: 3004, from: 77 };
const LONG_TAIL: ArraySpec = { rows: 3, from: 31 };
const longTailOut = encoded({ rows: 3004 }, Buffer.concat([rowBytes(LONG_PROMPT), rowBytes(LONG_TAIL)]));
const tailOut = encoded({ rows: 7 }, Buffer.concat([rowBytes(PROMPT), rowBytes(TAIL)]));
const text = 'y \\"routed_experts\\":\\"k05VTVBZ '.repeat(100);

const BODIES: Body[] = [
  {
    name: 'a long text before the array',
    body: decodeBody([quotedFull], { before: text }),
    out: decodeBody([out], { before: text }),
    config: { hold_bytes: 100, max_hold_bytes: 10_000 },
  },
  {
    name: 'a long array',
    body: decodeBody([quoted(encoded(LONG_FULL))], { promptTokens: 3001, completionTokens: 4 }),
    out: decodeBody([quoted(merged(LONG_PROMPT, LONG_FULL))], { promptTokens: 3001, completionTokens: 4 }),
    prefill: prefillBody(quoted(encoded(LONG_PROMPT)), 3001),
    config: { hold_bytes: 200 },
    outcome: 'merged; rows=3001; choices=1',
    counters: { 'routed_experts.spliced_bytes': 18_006 },
  },
  {
    name: 'a long array of which decode returns the tail',
    body: decodeBody([quoted(encoded(LONG_TAIL))], { promptTokens: 3001, completionTokens: 4 }),
    out: decodeBody([quoted(longTailOut)], { promptTokens: 3001, completionTokens: 4 }),
    prefill: prefillBody(quoted(encoded(LONG_PROMPT)), 3001),
    config: { hold_bytes: 200, decode_rows: 'tail' },
    outcome: 'merged; rows=3001; choices=1',
    counters: { 'routed_experts.spliced_bytes': 18_006 },
  },
  {
    name: 'three choices',
    body: decodeBody([quotedFull, quotedFull, quotedFull]),
    out: decodeBody([out, out, out]),
    config: { hold_bytes: 0 },
    outcome: 'merged; rows=5; choices=3',
    counters: { 'routed_experts.spliced_bytes': 90 },
    request: '{"prompt":"a","n":3}',
  },
  {
    name: 'three tails',
    body: decodeBody([quoted(encoded(TAIL)), quoted(encoded(TAIL)), quoted(encoded(TAIL))]),
    out: decodeBody([quoted(tailOut), quoted(tailOut), quoted(tailOut)]),
    config: { decode_rows: 'tail' },
    outcome: 'merged; rows=5; choices=3',
    counters: { 'routed_experts.spliced_bytes': 90 },
    request: '{"prompt":"a","n":3}',
  },
  {
    name: 'white space, the array first, usage before choices',
    body: `\n{ "usage" : {"prompt_tokens":5, "completion_tokens":3} , "choices" : [ { "routed_experts" : ${quotedFull} , "index" : 0 } ] }\n `,
    out: `\n{ "usage" : {"prompt_tokens":5, "completion_tokens":3} , "choices" : [ { "routed_experts" : ${out} , "index" : 0 } ] }\n `,
  },
  {
    name: 'an escaped key',
    body: GOOD_DECODE.replace('routed_experts', 'routed\\u005Fexperts'),
    out: GOOD_MERGED.replace('routed_experts', 'routed\\u005Fexperts'),
  },
  {
    name: 'the key elsewhere',
    body: GOOD_DECODE.replace('"usage"', '"x":{"routed_experts":"AAAA"},"usage"'),
    out: GOOD_MERGED.replace('"usage"', '"x":{"routed_experts":"AAAA"},"usage"'),
  },
  {
    name: 'no usage',
    body: GOOD_DECODE.replace(/"usage":\{[^}]*\}/, '"usage":null'),
    out: GOOD_MERGED.replace(/"usage":\{[^}]*\}/, '"usage":null'),
  },
];

const PIECES: (number | undefined)[] = [undefined, 1, 13, 500];

const bodies: Case[] = BODIES.flatMap((of) =>
  PIECES.filter((pieces) => pieces !== 1 || of.body.length < 6000).flatMap((pieces) =>
    [true, false].flatMap((length) =>
      PROTOCOLS.filter((protocol) => protocol === 'http1' || pieces === 13).map((protocol): Case => ({
        name: `${of.name}, pieces of ${pieces ?? 'all'}, ${length ? 'a' : 'no'} length, ${protocol}`,
        cutDecidesHead: true,
        scenario: () =>
          scenarioOf(
            of.name,
            {
              ...(of.request === undefined ? {} : { client: post(of.request) }),
              prefill: answering(of.prefill ?? GOOD_PREFILL),
              decode: answering(of.body, {
                ...(pieces === undefined ? {} : { pieces }),
                ...(length ? {} : { contentLength: null }),
              }),
              downstream: protocol,
              upstream: protocol,
            },
            of.config,
          ),
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(of.out);
          expectLength(result, length);
          expectOutcome(result, of.outcome ?? MERGED, of.counters ?? SPLICED);
          expect(result.logged!.startsWith(header(result.headers, 'x-routed-experts')!)).toBe(true);
        },
      })),
    ),
  ),
);

/**
 * The head leaves with the first piece that contains the array's header, before the engine writes
 * the rest.
 */
const streamed: Case[] = PROTOCOLS.flatMap((protocol) =>
  ['full', 'tail'].map((form): Case => {
    const of = BODIES[form === 'full' ? 1 : 2]!;
    return {
      name: `what is over hold_bytes leaves while decode still writes, ${form}, ${protocol}`,
      scenario: () => {
        const watch = new Watch();
        const body = Buffer.from(of.body);
        const first = form === 'full' ? 1000 : 262;
        return scenarioOf(
          'streamed',
          {
            prefill: answering(of.prefill!),
            decode: answering(body, {
              pieces: [body.subarray(0, first), ...cut(body.subarray(first), 3000)],
              before: (i) => (i === 1 ? watch.seen(form === 'full' ? 900 : 20_000) : undefined),
            }),
            onBody: watch.onBody,
            downstream: protocol,
            upstream: protocol,
          },
          of.config,
        );
      },
      check(result) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(of.out);
        // There is one choice, so the length is known from the header of its array.
        expectLength(result, true);
        expect(header(result.headers, 'x-routed-experts')).toBe('merged; rows=3001');
        expectOutcome(result, of.outcome!, of.counters);
      },
    };
  }),
);

/** With several tails, the length is known only when the last one has come. */
const unknownLength: Case = {
  name: 'a response whose length is not known when it leaves has none',
  scenario: () => {
    const watch = new Watch();
    const of = BODIES[4]!;
    const body = Buffer.from(of.body);
    return scenarioOf(
      'unknown length',
      {
        client: post(of.request!),
        decode: answering(body, {
          pieces: [body.subarray(0, 290), body.subarray(290)],
          before: (i) => (i === 1 ? watch.seen(1) : undefined),
        }),
        onBody: watch.onBody,
      },
      { hold_bytes: 0, decode_rows: 'tail' },
    );
  },
  check(result) {
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(BODIES[4]!.out);
    expectLength(result, false);
    expectOutcome(result, 'merged; rows=5; choices=3', { 'routed_experts.spliced_bytes': 90 });
  },
};

const END: Header[] = [['x-end', '1']];

const responseTrailers: Case[] = PROTOCOLS.flatMap((protocol) =>
  [0, 1 << 20].map((hold_bytes): Case => ({
    name: `response trailers, hold_bytes ${hold_bytes}, ${protocol}`,
    cutDecidesHead: true,
    scenario: () =>
      scenarioOf(
        'trailers',
        {
          decode: answering(GOOD_DECODE, { trailers: END, pieces: 100 }),
          downstream: protocol,
          upstream: protocol,
        },
        { hold_bytes },
      ),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true, trailers: END });
      expect(result.body.toString()).toBe(GOOD_MERGED);
      expectOutcome(result, MERGED, SPLICED);
    },
  })),
);

/**
 * The trailers announce the end of this body. The filter holds the body then and cannot give it
 * back from the trailers' callback, so it resets the stream unless the policy is `reject`.
 */
const cutTrailers: Case[] = ['reject', 'null', 'forward'].map((policy): Case => ({
  name: `a body that is cut, with trailers: ${policy}`,
  scenario: () =>
    scenarioOf(
      'trailers',
      {
        decode: answering(GOOD_DECODE.slice(0, 150), { trailers: END }),
        downstream: 'http2',
        upstream: 'http2',
      },
      { on_unmergeable: policy },
    ),
  check(result) {
    if (policy === 'reject') {
      expectError(
        result,
        502,
        'BadGatewayError',
        'routed_experts can not be merged: the decode response is not a complete JSON object',
      );
    } else {
      expect(result.complete).toBe(false);
      expect(result.body).toHaveLength(0);
    }
    expectOutcome(result, 'rejected; reason=json');
  },
}));

const withoutLength = (client: ClientRequest): ClientRequest => ({
  ...client,
  headers: client.headers.filter(([name]) => name !== 'content-length'),
});

const requests: Case[] = PROTOCOLS.flatMap((protocol) =>
  [1, 10, 1000].flatMap((pieces) =>
    [true, false].flatMap((length) =>
      [false, true].map((trailers): Case => ({
        name: `a request in pieces of ${pieces}, ${length ? 'a' : 'no'} length, trailers ${trailers}, ${protocol}`,
        // HTTP/1 allows trailers only after a chunked body, so such a request has no length.
        scenario: () => {
          const client = {
            ...post(REQUEST),
            chunks: cut(Buffer.from(REQUEST), pieces),
            ...(trailers ? { trailers: END } : {}),
          };
          const lengthless = !length || (trailers && protocol === 'http1');
          return scenarioOf('request', {
            client: lengthless ? withoutLength(client) : client,
            downstream: protocol,
            upstream: protocol,
          });
        },
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(GOOD_MERGED);
          expect(jsonOf(result.prefillRequests[0]!)).toMatchObject({ max_tokens: 1, stream: false });
          expect(jsonOf(result.decodeRequests[0]!)).toMatchObject({ max_tokens: 3, prompt: 'one two three' });
          for (const request of [...result.prefillRequests, ...result.decodeRequests]) {
            const announced = header(request.headers, 'content-length');
            if (announced !== undefined) expect(Number(announced)).toBe(request.body.length);
          }
          expectOutcome(result, MERGED, SPLICED);
        },
      })),
    ),
  ),
);

const HOP: Header[] = [
  ['accept-encoding', 'gzip, br'],
  ['te', 'trailers'],
  ['x-envoy-max-retries', '3'],
  ['x-envoy-retry-on', '5xx'],
  ['x-envoy-upstream-rq-timeout-ms', '1'],
  ['x-envoy-original-dst-host', '127.0.0.1:1'],
];
const HTTP1_HOP: Header[] = [
  ['connection', 'x-hop'],
  ['x-hop', '1'],
  ['keep-alive', 'timeout=5'],
  ['proxy-authorization', 'Basic x'],
];
/** Ranks are each engine's own, so a client's goes to neither. */
const RANK: Header = ['x-data-parallel-rank', '1'];
const END_TO_END: Header[] = [
  ['authorization', 'Bearer secret'],
  ['cookie', 'a=b'],
  ['traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'],
  ['x-tenant', 'one'],
  ['x-tenant', 'two'],
];

const headers: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `headers of the request, ${protocol}`,
  scenario: () =>
    scenarioOf('headers', {
      client: {
        ...post(REQUEST),
        headers: [
          ...post(REQUEST).headers,
          ...HOP,
          ...(protocol === 'http1' ? HTTP1_HOP : []),
          ...END_TO_END,
          RANK,
        ],
      },
      downstream: protocol,
      upstream: protocol,
    }),
  check(result) {
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(GOOD_MERGED);
    const [prefill] = result.prefillRequests as [Result['prefillRequests'][0]];
    const [decode] = result.decodeRequests as [Result['decodeRequests'][0]];
    const names = prefill.headers.map(([name]) => name);
    for (const [name] of [...HOP, ...HTTP1_HOP]) expect(names, name).not.toContain(name);
    expect(header(decode.headers, 'accept-encoding')).toBeUndefined();
    for (const request of [prefill, decode]) {
      const together = request.headers.filter(([name]) => name === 'x-tenant').map(([, value]) => value);
      expect(together.join()).toBe('one,two');
      for (const [name, value] of END_TO_END.filter(([name]) => name !== 'x-tenant')) {
        expect(header(request.headers, name), name).toBe(value);
      }
      expect(header(request.headers, RANK[0])).toBeUndefined();
      expect(header(request.headers, 'content-type')).toBe('application/json');
      expect(header(request.headers, 'x-request-id')).toBe(REQUEST_ID);
      if (protocol === 'http1') expect(header(request.headers, 'host')).toBe('localhost');
    }
  },
}));

const ids: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `both legs have one id when the client sends none, ${protocol}`,
  ownId: true,
  scenario: () => {
    const client = post(REQUEST);
    return scenarioOf('id', {
      client: { ...client, headers: client.headers.filter(([name]) => name !== 'x-request-id') },
      downstream: protocol,
      upstream: protocol,
    });
  },
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    const [prefill, decode] = [result.prefillRequests[0]!, result.decodeRequests[0]!].map((request) =>
      request.headers.filter(([name]) => name === 'x-request-id'),
    ) as [Header[], Header[]];
    expect(prefill).toHaveLength(1);
    expect(decode).toEqual(prefill);
    expect(prefill[0]![1]).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
  },
}));

/** An engine cannot set the outcome header, which only the filter may set. */
const forged: Case = {
  name: 'an outcome header of the engine’s is replaced',
  scenario: () =>
    scenarioOf('forged', {
      decode: answering(GOOD_DECODE, { headers: [['x-routed-experts', 'merged; rows=9']] }),
    }),
  check(result) {
    expect(result.headers.filter(([name]) => name === 'x-routed-experts')).toEqual([
      ['x-routed-experts', MERGED],
    ]);
  },
};

const paths: Case = {
  name: 'paths of the configuration',
  scenario: () =>
    scenarioOf(
      'paths',
      { client: post(REQUEST, { path: `/tenant${COMPLETIONS}` }) },
      { paths: [`/tenant${COMPLETIONS}`] },
    ),
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    expect(result.prefillRequests[0]!.path).toBe(`/tenant${COMPLETIONS}`);
  },
};

export const exchanges: Suite = {
  name: 'bodies and heads on their way',
  cases: [
    ...bodies,
    ...streamed,
    unknownLength,
    ...responseTrailers,
    ...cutTrailers,
    ...requests,
    ...headers,
    ...ids,
    forged,
    paths,
  ],
};
