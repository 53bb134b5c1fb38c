// Both legs at once: which leg answers first, and what a leg that fails does to the other.

import { gzipSync } from 'node:zlib';
import { expect } from 'vitest';
import type { Engine, EngineReply, Header, Protocol, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  cachedDecode,
  cut,
  decodeBody,
  encoded,
  Event,
  expectError,
  expectLength,
  expectOutcome,
  FULL,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  jsonOf,
  merged,
  NO_ARRAY,
  post,
  prefillBody,
  PROMPT,
  quoted,
  reply,
  type ReplyOptions,
  REQUEST,
  Watch,
} from './messages.ts';

export const PROTOCOLS: Protocol[] = ['http1', 'http2'];
export const MERGED = 'merged; rows=5; choices=1';
export const SPLICED = { 'routed_experts.spliced_bytes': 30 };
export const FAILED = { 'routed_experts.prefill_failures': 1 };
const CONFIG = { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } };

/**
 * What the filter gets first: prefill's reply, decode's head and first piece, or all of decode's
 * response.
 */
export type First = 'prefill' | 'piece' | 'end';
export const FIRST: First[] = ['prefill', 'piece', 'end'];
export const NAMES: Record<First, string> = {
  prefill: 'prefill first',
  piece: 'decode’s first piece first',
  end: 'all of decode first',
};

interface Legs {
  prefill: EngineReply | 'silent';
  decode: EngineReply;
  /** What prefill's reply waits for in addition. */
  until?: () => Promise<unknown>;
}

/** Creates two engines whose replies arrive in the given order. */
export function legs(first: First, of: Legs): { prefill: Engine; decode: Engine } {
  const asked = new Event();
  const prefillRead = new Event();
  const decodeRead = new Event();
  const pieces = of.decode.chunks.length;
  const wanted = first === 'end' ? pieces + 1 : 1;
  return {
    prefill: async () => {
      asked.happen();
      if (first !== 'prefill') await decodeRead.happened;
      await of.until?.();
      if (of.prefill === 'silent') return { status: 0, headers: [], chunks: [], fault: 'stall' };
      const { chunks, fault, status } = of.prefill;
      // A reply that breaks off is never read to its end, and Envoy retries a 503 without telling
      // the filter.
      if (fault || status === 503) prefillRead.happen();
      return {
        ...of.prefill,
        read: (read) => void (read === chunks.length + 1 && prefillRead.happen()),
      };
    },
    decode: async () => {
      // The filter starts the prefill call before it releases decode's request. Decode must not
      // answer earlier.
      await asked.happened;
      if (first === 'prefill') await prefillRead.happened;
      const { before } = of.decode;
      return {
        ...of.decode,
        before: (i) => (first === 'piece' && i === 1 ? prefillRead.happened : undefined) ?? before?.(i),
        read: (read) => void (read === wanted && decodeRead.happen()),
      };
    },
  };
}

function scenarioOf(
  first: First,
  of: Legs,
  config: Record<string, unknown> = {},
  more: Partial<Scenario> = {},
): Scenario {
  return {
    name: 'racing',
    config: { ...CONFIG, ...config },
    client: post(REQUEST),
    ...legs(first, of),
    ...more,
  };
}

const prefillReply = (body: string | Buffer = GOOD_PREFILL, options?: ReplyOptions) => reply(body, options);
/** A decode reply in at least two pieces. */
export const decodeReply = (body: string | Buffer = GOOD_DECODE, options: ReplyOptions = {}) =>
  reply(body, { pieces: Math.ceil(Buffer.byteLength(body) / 2), ...options });

// ---- both answer

const LONG = 'x'.repeat(100_000);
const HUGE = 'y'.repeat(20_000_000);

interface Body {
  name: string;
  decode: string;
  out: string;
  pieces?: number;
  config?: Record<string, unknown>;
  firsts?: First[];
}

const array = quoted(encoded(FULL));
const right = quoted(merged(PROMPT, FULL));

const BODIES: Body[] = [
  { name: 'a small body', decode: GOOD_DECODE, out: GOOD_MERGED },
  { name: 'a body in many pieces', decode: GOOD_DECODE, out: GOOD_MERGED, pieces: 10 },
  {
    name: 'a body over what is written from outside',
    decode: decodeBody([array], { before: LONG }),
    out: decodeBody([right], { before: LONG }),
    pieces: 9000,
  },
  {
    name: 'a body in one piece over Envoy’s buffer limit',
    decode: decodeBody([array], { before: LONG }),
    out: decodeBody([right], { before: LONG }),
    pieces: 1 << 20,
    firsts: ['prefill', 'end'],
  },
  {
    name: 'a body over hold_bytes',
    decode: decodeBody([array], { before: LONG }),
    out: decodeBody([right], { before: LONG }),
    pieces: 9000,
    config: { hold_bytes: 0 },
  },
  {
    name: 'a body of 20 MB, over every limit of Envoy’s',
    decode: decodeBody([array], { before: HUGE }),
    out: decodeBody([right], { before: HUGE }),
    pieces: 1_000_000,
    config: { max_hold_bytes: 64 << 20 },
    firsts: ['piece', 'end'],
  },
];

const both: Case[] = BODIES.flatMap((of) =>
  (of.firsts ?? FIRST).flatMap((first) =>
    PROTOCOLS.flatMap((protocol) =>
      [true, false].map((length): Case => ({
        name: `${of.name}, ${NAMES[first]}, ${length ? 'a' : 'no'} length, ${protocol}`,
        cutDecidesHead: true,
        scenario: () =>
          scenarioOf(
            first,
            {
              prefill: prefillReply(),
              decode: decodeReply(of.decode, {
                ...(of.pieces ? { pieces: of.pieces } : {}),
                ...(length ? {} : { contentLength: null }),
                headers: [['x-engine', 'd']],
              }),
            },
            of.config,
            { downstream: protocol, upstream: protocol },
          ),
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          // The bodies are compared as a boolean, because a printed difference of megabytes helps
          // nobody.
          expect(result.body.equals(Buffer.from(of.out))).toBe(true);
          expect(result.headers).toContainEqual(['x-engine', 'd']);
          expect(result.headers).toContainEqual(['content-type', 'application/json']);
          const announced = header(result.headers, 'content-length');
          if (announced !== undefined) expect(announced).toBe(String(result.body.length));
          expect(header(result.headers, 'x-routed-experts')).toMatch(/^merged; rows=5/);
          expectOutcome(result, MERGED, SPLICED);
        },
      })),
    ),
  ),
);

/** The members of both legs, as the connector writes them. */
const members: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `both legs have the same room, and nothing of the client’s, ${protocol}`,
  scenario: () =>
    scenarioOf(
      'prefill',
      { prefill: prefillReply(), decode: decodeReply() },
      {},
      {
        client: post(
          '{"bootstrap_room":1,"prompt":"a","stream":true,"bootstrap_host":"evil","bootstrap_room":2,"bootstrap_pair_key":"x"}',
        ),
        downstream: protocol,
        upstream: protocol,
      },
    ),
  // Rooms are random.
  only: { host: protocol === 'http1' ? 'envoy' : 'emulator', because: 'rooms differ between runs' },
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    const [prefill] = result.prefillRequests;
    const [decode] = result.decodeRequests;
    const room = /"bootstrap_room":(\d+)/;
    const rooms = [prefill!, decode!].map(({ body }) => room.exec(body.toString())![1]!);
    expect(rooms[0]).toBe(rooms[1]);
    expect(BigInt(rooms[0]!) < 1n << 63n).toBe(true);
    for (const request of [prefill!, decode!]) {
      const { bootstrap_room, ...rest } = jsonOf(request);
      expect(typeof bootstrap_room).toBe('number');
      expect(rest).toMatchObject({ prompt: 'a', bootstrap_host: '127.0.0.1', bootstrap_port: 8998 });
      expect(Object.keys(rest).sort()).toEqual(['bootstrap_host', 'bootstrap_port', 'prompt', 'stream']);
      expect(request.body.toString().match(/bootstrap_room/g)).toHaveLength(1);
    }
    expect([jsonOf(prefill!)['stream'], jsonOf(decode!)['stream']]).toEqual([false, true]);
    expect(header(decode!.headers, 'accept-encoding')).toBeUndefined();
    expect(header(prefill!.headers, 'x-request-id')).toBe(header(decode!.headers, 'x-request-id'));
  },
}));

/** Neither leg returns rows. */
const without: Case[] = FIRST.flatMap((first) => [
  {
    name: `no routing at all, ${NAMES[first]}`,
    scenario: () =>
      scenarioOf(first, {
        prefill: prefillReply(prefillBody(null)),
        decode: decodeReply(decodeBody(['null'])),
      }),
    check(result) {
      expect(result.body.toString()).toBe(decodeBody(['null']));
      expectLength(result, true);
      expectOutcome(result, 'absent');
    },
  },
  {
    name: `an array that prefill has none for, ${NAMES[first]}`,
    scenario: () => scenarioOf(first, { prefill: prefillReply(prefillBody(null)), decode: decodeReply() }),
    check(result) {
      expect(result.status).toBe(502);
      expectOutcome(result, 'rejected; reason=missing');
    },
  },
  {
    name: `an empty body, ${NAMES[first]}`,
    scenario: () =>
      scenarioOf(first === 'piece' ? 'end' : first, {
        prefill: prefillReply(),
        decode: reply('', { contentLength: null }),
      }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body).toHaveLength(0);
      expectOutcome(result, 'absent');
    },
  },
]);

const BROKEN = decodeBody([quoted(encoded({ ...FULL, layers: 3 }))]);

/** Responses that cannot be merged, before and after prefill's reply. */
const unmergeable: Case[] = FIRST.flatMap((first) =>
  ['reject', 'null', 'forward'].flatMap((policy) =>
    [BROKEN, GOOD_DECODE.slice(0, 300)].map((body, i): Case => ({
      name: `${i === 0 ? 'other layers' : 'a body that is cut'}, ${NAMES[first]}: ${policy}`,
      cutDecidesHead: true,
      scenario: () =>
        scenarioOf(first, { prefill: prefillReply(), decode: decodeReply(body) }, { on_unmergeable: policy }),
      check(result) {
        const reason = i === 0 ? 'layers' : 'json';
        if (policy === 'forward') {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(body);
          return expectOutcome(result, `unmerged; reason=${reason}`);
        }
        if (policy === 'null' && i === 0) {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(decodeBody(['null']));
          return expectOutcome(result, `unmerged; reason=${reason}`);
        }
        expect(result).toMatchObject({ status: 502, complete: true });
        expectOutcome(result, `rejected; reason=${reason}`);
      },
    })),
  ),
);

/** SGLang's own endpoint beside the OpenAI endpoints. It accepts PUT as well as POST. */
const methods: Case[] = [
  ['POST', '/generate', true],
  ['PUT', '/generate', true],
  ['PUT', '/v1/completions', false],
  ['DELETE', '/generate', false],
  ['POST', '/inference/v1/generate', false],
  ['POST', '/v1/generate', false],
].map(([method, path, served]): Case => ({
  name: `${method as string} ${path as string} is ${served ? 'served' : 'left alone'}`,
  scenario: () =>
    scenarioOf(
      'prefill',
      { prefill: prefillReply(), decode: decodeReply() },
      {},
      {
        client: post('{"text":"a"}', { method: method as string, path: path as string }),
        ...(served ? {} : { decode: answering(NO_ARRAY) }),
      },
    ),
  check(result) {
    expect(result.prefillRequests.map(({ method }) => method)).toEqual(served ? [method] : []);
    expect(result.body.toString()).toBe(served ? GOOD_MERGED : NO_ARRAY);
    expectOutcome(result, served ? MERGED : 'local', served ? SPLICED : {});
  },
}));

/** Decode's leg does not fit into Envoy's buffer, and prefill has already been asked. */
const tooLarge: Case = {
  name: 'a request that the members of its leg take over the limit',
  scenario: () =>
    scenarioOf(
      'prefill',
      { prefill: prefillReply(), decode: decodeReply() },
      {},
      {
        client: post(`{"prompt":"${'x'.repeat((64 << 10) - 20)}"}`),
      },
    ),
  check(result) {
    expect(result.status).toBe(413);
    expect([result.prefillRequests.length, result.decodeRequests.length]).toEqual([1, 0]);
    expectOutcome(result, 'absent');
  },
};

// ---- prefill fails

interface Failing {
  name: string;
  prefill: EngineReply | 'silent';
  text: string;
  status?: number;
  config?: Record<string, unknown>;
}

const UNAVAILABLE = 'no connection, or status 502 or 503';
const FAILING: Failing[] = [
  { name: '500', prefill: reply('{}', { status: 500 }), text: 'error status' },
  { name: '503', prefill: reply('{}', { status: 503 }), text: UNAVAILABLE },
  { name: 'a reset', prefill: reply('', { fault: 'reset' }), text: UNAVAILABLE },
  {
    name: 'a reset in the body',
    prefill: reply(GOOD_PREFILL, {
      fault: 'reset_body',
      pieces: [Buffer.from(GOOD_PREFILL).subarray(0, 99)],
    }),
    text: 'connection reset, or reply too large',
  },
  { name: 'not JSON', prefill: reply('<html>'), text: 'the reply is not JSON' },
  { name: 'silence', prefill: 'silent', text: 'timeout', status: 504, config: { timeout_ms: 300 } },
  {
    name: 'rows over max_capture_bytes',
    prefill: reply(GOOD_PREFILL),
    text: 'the prompt rows exceed max_capture_bytes',
  },
];

const failing: Case[] = FAILING.flatMap((of) =>
  FIRST.flatMap((first) =>
    ['reject', 'null', 'forward'].flatMap((policy) =>
      PROTOCOLS.map((protocol): Case => ({
        name: `prefill fails: ${of.name}, ${NAMES[first]}: ${policy}, ${protocol}`,
        cutDecidesHead: true,
        scenario: () => {
          const config = {
            on_unmergeable: policy,
            max_capture_bytes: of.name.startsWith('rows') ? 10 : 1 << 20,
            max_parked_bytes: of.name.startsWith('rows') ? 10 : 1 << 20,
            prefill: { ...CONFIG.prefill, retries: 2, ...of.config },
          };
          const silent = of.prefill === 'silent';
          // A silent prefill sends no reply for which decode could wait, so decode answers first
          // and the filter waits for prefill's timeout.
          const order = silent && first === 'prefill' ? 'end' : first;
          return scenarioOf(
            order === 'piece' && silent ? 'end' : order,
            { prefill: of.prefill, decode: decodeReply() },
            config,
            { downstream: protocol, upstream: protocol },
          );
        },
        check(result) {
          // Decode has begun, so the filter does not send the prefill leg again once an engine has
          // seen it.
          expect(result.prefillRequests).toHaveLength(1);
          if (policy === 'reject') {
            const code = of.status ?? 502;
            const type = code === 504 ? 'GatewayTimeoutError' : 'BadGatewayError';
            expectError(result, code, type, `prefill failed: ${of.text}`);
            return expectOutcome(result, 'rejected; reason=prefill', FAILED);
          }
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(policy === 'null' ? decodeBody(['null']) : GOOD_DECODE);
          expectOutcome(result, 'unmerged; reason=prefill', FAILED);
        },
      })),
    ),
  ),
);

/** If decode returns no routing, prefill's failure does not matter. */
const failsWithout: Case = {
  name: 'prefill fails, and decode has no routing: absent',
  scenario: () =>
    scenarioOf(
      'end',
      { prefill: reply('{}', { status: 500 }), decode: decodeReply(decodeBody(['null'])) },
      { on_unmergeable: 'forward' },
    ),
  check(result) {
    expect(result.body.toString()).toBe(decodeBody(['null']));
    expectOutcome(result, 'absent', FAILED);
  },
};

/** The call cannot even start, so decode has not begun. */
const hostless: Case[] = ['decode', 'reject'].map((policy): Case => ({
  name: `no such cluster: ${policy}`,
  scenario: () => ({
    ...scenarioOf('end', { prefill: prefillReply(), decode: reply(GOOD_DECODE) }),
    // SGLang's requests are not salted, so decode must report that nothing was cached.
    decode: answering(cachedDecode(0)),
    config: {
      ...CONFIG,
      on_prefill_failure: policy,
      prefill: { ...CONFIG.prefill, cluster: 'nowhere' },
    },
    client: post('{"prompt":"a","bootstrap_room":1}'),
  }),
  check(result) {
    expect(result.prefillRequests).toEqual([]);
    if (policy === 'reject') {
      expectError(result, 502, 'BadGatewayError', 'prefill failed: no healthy host');
      expect(result.decodeRequests).toEqual([]);
      return expectOutcome(result, 'rejected', FAILED);
    }
    expect(result.body.toString()).toBe(cachedDecode(0));
    expect(jsonOf(result.decodeRequests[0]!)).toEqual({ prompt: 'a' });
    expectOutcome(result, 'local', FAILED);
  },
}));

const down: Case[] = ['reject', 'forward'].map((policy): Case => ({
  name: `prefill is down: ${policy}`,
  scenario: () => ({
    name: 'down',
    config: { ...CONFIG, on_unmergeable: policy, prefill: { ...CONFIG.prefill, retries: 2 } },
    client: post(REQUEST),
    prefill: 'down',
    // The decode engine waits for its prefill before it answers.
    decode: async () => {
      await new Promise((resolve) => setTimeout(resolve, 500));
      return reply(GOOD_DECODE);
    },
  }),
  check(result) {
    if (policy === 'forward') {
      expect(result.body.toString()).toBe(GOOD_DECODE);
      return expectOutcome(result, 'unmerged; reason=prefill', FAILED);
    }
    expectError(result, 502, 'BadGatewayError', `prefill failed: ${UNAVAILABLE}`);
    expectOutcome(result, 'rejected; reason=prefill', FAILED);
  },
}));

const NOT_FOUND = '{"error":{"message":"no such model","type":"NotFoundError","param":"model","code":404}}';

const passed: Case[] = FIRST.flatMap((first) =>
  PROTOCOLS.flatMap((protocol) =>
    ['reject', 'forward'].map((policy): Case => ({
      name: `prefill’s 404 goes to the client, ${NAMES[first]}: ${policy}, ${protocol}`,
      scenario: () =>
        scenarioOf(
          first,
          {
            prefill: reply(NOT_FOUND, { status: 404, headers: [['x-engine', 'p']] }),
            decode: decodeReply(),
          },
          { on_unmergeable: policy },
          { downstream: protocol, upstream: protocol },
        ),
      check(result) {
        expect(result).toMatchObject({ status: 404, complete: true });
        expect(result.body.toString()).toBe(NOT_FOUND);
        expect(result.headers).toContainEqual(['x-engine', 'p']);
        expectOutcome(result, 'absent');
      },
    })),
  ),
);

// ---- decode fails

interface DecodeFails {
  name: string;
  decode: EngineReply;
  status: number;
}

const DECODE_FAILS: DecodeFails[] = [
  { name: '500', decode: reply('{"error":{}}', { status: 500 }), status: 500 },
  { name: '404', decode: reply(NOT_FOUND, { status: 404 }), status: 404 },
  { name: '503 with an array', decode: reply(GOOD_DECODE, { status: 503 }), status: 503 },
];

/**
 * An error of decode passes at once. Nothing waits for prefill's reply, and the filter drops it.
 */
const decodeFails: Case[] = DECODE_FAILS.flatMap((of) =>
  PROTOCOLS.flatMap((protocol) =>
    (['prefill', 'end'] as First[]).map((first): Case => ({
      name: `decode’s ${of.name}, ${NAMES[first]}, ${protocol}`,
      scenario: () => {
        const watch = new Watch();
        // Prefill answers only after the client has received the whole error.
        const until = () => watch.seen(Buffer.concat(of.decode.chunks).length);
        return scenarioOf(
          first,
          { prefill: prefillReply(), decode: of.decode, ...(first === 'end' ? { until } : {}) },
          {},
          { downstream: protocol, upstream: protocol, onBody: watch.onBody },
        );
      },
      check(result) {
        expect(result).toMatchObject({ status: of.status, complete: true });
        expect(result.body).toEqual(Buffer.concat(of.decode.chunks));
        expectOutcome(result, 'absent');
      },
    })),
  ),
);

const decodeGone: Case[] = (['reset', 'down', 'reset_body'] as const).flatMap((fault) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `decode is gone: ${fault}, ${protocol}`,
    scenario: () => {
      const asked = new Event();
      return {
        name: 'gone',
        config: CONFIG,
        client: post(REQUEST),
        // Prefill never answers, and after decode's failure nothing waits for it.
        prefill: () => {
          asked.happen();
          return { status: 0, headers: [], chunks: [], fault: 'stall' };
        },
        decode:
          fault === 'down'
            ? 'down'
            : async () => {
                await asked.happened;
                const first = Buffer.from(GOOD_DECODE).subarray(0, 300);
                return reply(GOOD_DECODE, { fault, ...(fault === 'reset_body' ? { pieces: [first] } : {}) });
              },
        downstream: protocol,
        upstream: protocol,
        ...(fault === 'down' ? {} : {}),
      };
    },
    check(result) {
      if (fault === 'reset_body') {
        expect(result.body.toString()).not.toContain('routed_experts":"');
        expect(result.status === 200 && result.complete).toBe(false);
        return expectOutcome(result, 'aborted');
      }
      expect(result).toMatchObject({ status: 503, complete: true });
      expectOutcome(result, 'absent');
    },
  })),
);

// ---- what is held

const compressed: Case[] = ['reject', 'forward'].map((policy): Case => ({
  name: `a compressed response, all of decode first: ${policy}`,
  scenario: () => {
    const watch = new Watch();
    const body = gzipSync(GOOD_DECODE);
    return scenarioOf(
      'end',
      {
        prefill: prefillReply(),
        decode: reply(body, { headers: [['content-encoding', 'gzip']] }),
        until: () => watch.seen(1),
      },
      { on_unmergeable: policy },
      { onBody: watch.onBody },
    );
  },
  check(result) {
    if (policy === 'reject') {
      expect(result.status).toBe(502);
      return expectOutcome(result, 'rejected; reason=encoding');
    }
    expect(result.body).toEqual(gzipSync(GOOD_DECODE));
    expectOutcome(result, 'unmerged; reason=encoding');
  },
}));

/** A response that exceeds max_hold_bytes does not wait for prefill. */
const overflow: Case[] = ['reject', 'null', 'forward'].flatMap((policy) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `a response over max_hold_bytes, prefill late: ${policy}, ${protocol}`,
    cutDecidesHead: true,
    scenario: () => {
      const watch = new Watch();
      const made = scenarioOf(
        'prefill',
        {
          prefill: prefillReply(),
          decode: reply(decodeBody([array], { before: LONG }), { pieces: 9000 }),
        },
        { on_unmergeable: policy, hold_bytes: 1000, max_hold_bytes: 20_000 },
        { downstream: protocol, upstream: protocol, onBody: watch.onBody },
      );
      const asked = new Event();
      return {
        ...made,
        prefill: async () => {
          asked.happen();
          await watch.seen(1);
          return prefillReply();
        },
        decode: async () => {
          await asked.happened;
          return reply(decodeBody([array], { before: LONG }), { pieces: 9000 });
        },
      };
    },
    check(result) {
      if (policy === 'reject') {
        expect(result.status).toBe(502);
        return expectOutcome(result, 'rejected; reason=hold');
      }
      expect(result).toMatchObject({ status: 200, complete: true });
      const value = policy === 'null' ? 'null' : array;
      expect(result.body.equals(Buffer.from(decodeBody([value], { before: LONG })))).toBe(true);
      expectOutcome(result, 'unmerged; reason=hold');
    },
  })),
);

const END: Header[] = [['x-end', '1']];

const trailers: Case[] = FIRST.flatMap((first) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `trailers of decode’s, ${NAMES[first]}, ${protocol}`,
    cutDecidesHead: true,
    scenario: () =>
      scenarioOf(
        first,
        { prefill: prefillReply(), decode: decodeReply(GOOD_DECODE, { trailers: END }) },
        {},
        { downstream: protocol, upstream: protocol },
      ),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(GOOD_MERGED);
      // If decode's response has ended, the filter sends a reply of its own in its place, which has
      // no trailers.
      expect(result.trailers).toEqual(first === 'end' ? [] : END);
      expectOutcome(result, MERGED, SPLICED);
    },
  })),
);

// ---- events

const SSE: Header[] = [['content-type', 'text/event-stream']];
const EARLY = 'data: {"choices":[{"index":0,"text":"he"}]}\n\n';
const last = (value: string) => `data: {"choices":[{"index":0,"text":"llo","routed_experts":${value}}]}\n\n`;
const DONE = 'data: [DONE]\n\n';
export const STREAM = [EARLY, last(array), DONE];
export const STREAM_MERGED = [EARLY, last(right), DONE].join('');

export const eventStream = (pieces: string[], more: ReplyOptions = {}) =>
  reply(pieces.join(''), {
    headers: SSE,
    contentLength: null,
    pieces: pieces.map((piece) => Buffer.from(piece)),
    ...more,
  });

const events: Case[] = FIRST.flatMap((first) =>
  PROTOCOLS.flatMap((protocol) => [
    {
      name: `events, ${NAMES[first]}, ${protocol}`,
      scenario: () =>
        scenarioOf(
          first,
          { prefill: prefillReply(), decode: eventStream(STREAM) },
          {},
          {
            downstream: protocol,
            upstream: protocol,
          },
        ),
      check(result) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(STREAM_MERGED);
        expectOutcome(result, MERGED, SPLICED);
      },
    } satisfies Case,
    {
      name: `events in small pieces, ${NAMES[first]}, ${protocol}`,
      scenario: () =>
        scenarioOf(
          first,
          { prefill: prefillReply(), decode: eventStream(cut(Buffer.from(STREAM.join('')), 7).map(String)) },
          {},
          { downstream: protocol, upstream: protocol },
        ),
      check(result) {
        expect(result.body.toString()).toBe(STREAM_MERGED);
        expectOutcome(result, MERGED, SPLICED);
      },
    } satisfies Case,
  ]),
);

/**
 * An event that came before prefill's reply leaves when that reply comes, without waiting for the
 * next event.
 */
const prompt: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `the first event is not kept until the second comes, ${protocol}`,
  scenario: () => {
    const watch = new Watch();
    return scenarioOf(
      'piece',
      {
        prefill: prefillReply(),
        decode: eventStream(STREAM, {
          before: (i) => (i === 1 ? watch.seen(EARLY.length) : undefined),
        }),
      },
      {},
      { downstream: protocol, upstream: protocol, onBody: watch.onBody },
    );
  },
  check(result) {
    expect(result.body.toString()).toBe(STREAM_MERGED);
    expectOutcome(result, MERGED, SPLICED);
  },
}));

const manyEvents: Case[] = PROTOCOLS.map((protocol): Case => {
  const event = `data: {"choices":[{"index":0,"text":"${'z'.repeat(1000)}"}]}\n\n`;
  const many = [...Array.from({ length: 400 }, () => event), ...STREAM.slice(1)];
  return {
    name: `events past Envoy’s buffer limit wait, ${protocol}`,
    cutDecidesHead: true,
    scenario: () => {
      // Envoy reads no more of the response than its limit, so prefill answers as soon as Envoy has
      // read some of it.
      const asked = new Event();
      const some = new Event();
      return {
        ...scenarioOf(
          'end',
          { prefill: prefillReply(), decode: eventStream(many) },
          {},
          {
            downstream: protocol,
            upstream: protocol,
          },
        ),
        prefill: async () => {
          asked.happen();
          await some.happened;
          return prefillReply();
        },
        decode: async () => {
          await asked.happened;
          return { ...eventStream(many), read: (pieces) => void (pieces === 20 && some.happen()) };
        },
      };
    },
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      const out = [...many.slice(0, -2), last(right), DONE].join('');
      expect(result.body.equals(Buffer.from(out))).toBe(true);
      expectOutcome(result, MERGED, SPLICED);
    },
  };
});

/** Prefill fails while a stream waits for it, or before the stream has begun. */
const eventsFail: Case[] = FIRST.flatMap((first) =>
  ['reject', 'null', 'forward'].map((policy): Case => ({
    name: `events, and prefill fails, ${NAMES[first]}: ${policy}`,
    scenario: () =>
      scenarioOf(
        first,
        { prefill: reply('{}', { status: 500 }), decode: eventStream(STREAM) },
        { on_unmergeable: policy },
      ),
    check(result) {
      if (policy === 'reject') {
        expectError(result, 502, 'BadGatewayError', 'prefill failed: error status');
        return expectOutcome(result, 'rejected; reason=prefill', FAILED);
      }
      expect(result).toMatchObject({ status: 200, complete: true });
      const out = policy === 'null' ? [EARLY, last('null'), DONE] : STREAM;
      expect(result.body.toString()).toBe(out.join(''));
      expectOutcome(result, 'unmerged; reason=prefill', FAILED);
    },
  })),
);

// ---- a client that leaves

interface Leaving {
  name: string;
  /** `answer` is what prefill answers, if it does. */
  make(leave: () => void, answer: EngineReply): { prefill: Engine; decode: Engine };
}

const STALL: EngineReply = { status: 0, headers: [], chunks: [], fault: 'stall' };
const stopping = (body: EngineReply, leave: () => void): EngineReply => ({
  ...body,
  fault: 'stall_body',
  read: (pieces) => void (pieces === body.chunks.length && leave()),
});

export const LEAVING: Leaving[] = [
  {
    name: 'while both engines are silent',
    make: (leave) => {
      const asked = new Event();
      return {
        prefill: () => (asked.happen(), STALL),
        decode: async () => (await asked.happened, leave(), STALL),
      };
    },
  },
  {
    name: 'while decode’s first piece is held',
    make: (leave) => {
      const asked = new Event();
      return {
        prefill: () => (asked.happen(), STALL),
        decode: async () => {
          await asked.happened;
          return stopping(reply(GOOD_DECODE, { pieces: [Buffer.from(GOOD_DECODE).subarray(0, 300)] }), leave);
        },
      };
    },
  },
  {
    name: 'while all of decode is held',
    make: (leave) => {
      const asked = new Event();
      return {
        prefill: () => (asked.happen(), STALL),
        decode: async () => {
          await asked.happened;
          return { ...reply(GOOD_DECODE), read: (pieces) => void (pieces === 2 && leave()) };
        },
      };
    },
  },
  {
    name: 'while events wait',
    make: (leave) => {
      const asked = new Event();
      return {
        prefill: () => (asked.happen(), STALL),
        decode: async () => (await asked.happened, stopping(eventStream([EARLY]), leave)),
      };
    },
  },
  {
    name: 'when prefill has answered and decode has not',
    make: (leave, of) => {
      const { prefill } = legs('prefill', { prefill: of, decode: reply('') });
      return {
        prefill: async (request) => {
          const answer = await prefill(request);
          return { ...answer, read: (pieces) => void (pieces === answer.chunks.length + 1 && leave()) };
        },
        decode: () => STALL,
      };
    },
  },
];

const leaving: Case[] = LEAVING.flatMap((of) =>
  PROTOCOLS.flatMap((protocol): Case[] => [
    {
      name: `the client leaves ${of.name}, ${protocol}`,
      scenario: () => {
        const left = new Event();
        return {
          name: 'leaving',
          config: { ...CONFIG, prefill: { ...CONFIG.prefill, timeout_ms: 2000 } },
          client: post(REQUEST),
          ...of.make(left.happen, prefillReply()),
          leave: left.happened,
          downstream: protocol,
          upstream: protocol,
        };
      },
      check(result) {
        expect(result.complete).toBe(false);
        expectOutcome(result, 'aborted');
      },
    },
    {
      name: `the next request is served: ${of.name}, ${protocol}`,
      scenario: () =>
        scenarioOf(
          'prefill',
          { prefill: prefillReply(), decode: decodeReply() },
          {},
          {
            downstream: protocol,
            upstream: protocol,
          },
        ),
      check(result) {
        expect(result.body.toString()).toBe(GOOD_MERGED);
        expectOutcome(result, MERGED, SPLICED);
      },
    },
  ]),
);

/** Rooms and ids of transfers are random, so they differ between runs. */
const randomized = (cases: Case[]): Case[] => cases.map((of) => ({ ...of, random: RANDOM }));
const RANDOM = /"bootstrap_room":\d+|xfer-[0-9a-f-]{36}/g;

export const racing: Suite = {
  name: 'both legs at once',
  limits: { bufferLimit: 64 << 10 },
  cases: randomized([
    ...both,
    ...members,
    ...methods,
    tooLarge,
    ...without,
    ...unmergeable,
    ...failing,
    failsWithout,
    ...hostless,
    ...down,
    ...passed,
    ...decodeFails,
    ...decodeGone,
    ...compressed,
    ...overflow,
    ...trailers,
    ...events,
    ...prompt,
    ...manyEvents,
    ...eventsFail,
    ...leaving,
  ]),
};

/** Ports of bootstrap servers that no exchange has asked before. */
let bootstraps = 40_000;

/**
 * Bodies that the filter puts into Envoy's buffer outside of a body callback, where the buffer has
 * less room than usual.
 */
export const smallLimits: Suite = {
  name: 'both legs at once, a buffer limit of 2 KiB',
  limits: { bufferLimit: 2048 },
  cases: randomized([
    {
      name: 'a request that decode’s leg takes over it, behind an answer of the bootstrap server',
      scenario: () => ({
        name: 'over',
        config: {
          connector: 'mooncake',
          handshake: 'concurrent',
          prefill: { bootstrap_host: '127.0.0.1', bootstrap_port: ++bootstraps },
        },
        client: post(`{"prompt":"${'x'.repeat(2000)}"}`),
        prefill: answering(GOOD_PREFILL),
        bootstrap: answering('{"0":{"engine_id":"a"}}'),
        decode: answering(GOOD_DECODE),
      }),
      check(result) {
        // Envoy sends this reply inside the call with which the filter writes the decode leg.
        expect(result).toMatchObject({ status: 413, complete: true });
        const { bootstrapRequests, prefillRequests, decodeRequests } = result;
        expect([bootstrapRequests, prefillRequests, decodeRequests].map(({ length }) => length)).toEqual([
          1, 1, 0,
        ]);
        expectOutcome(result, 'absent');
      },
    },
    ...FIRST.map((first): Case => ({
      name: `a body over it, ${NAMES[first]}`,
      cutDecidesHead: true,
      scenario: () =>
        scenarioOf(first, {
          prefill: prefillReply(),
          decode: decodeReply(decodeBody([array], { before: LONG.slice(0, 8000) }), { pieces: 1000 }),
        }),
      check(result) {
        if (first === 'end') {
          // The client gets Envoy's own reply and nothing after it.
          expect(result).toMatchObject({ status: 500, complete: true });
          expect(result.body.toString()).toBe('Internal Server Error');
        } else {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body.toString()).toBe(decodeBody([right], { before: LONG.slice(0, 8000) }));
        }
        expectOutcome(result, MERGED, SPLICED);
      },
    })),
  ]),
};
