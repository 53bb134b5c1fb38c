// Event streams, which pass as they come and are not held; arrays in them are spliced on the way.
// vLLM sends arrays only in streams of /inference/v1/generate.

import { expect } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import type { EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  COMPLETIONS,
  FULL,
  GENERATE,
  GOOD_PREFILL,
  PROMPT,
  TAIL,
  Watch,
  answering,
  cut,
  encoded,
  expectOutcome,
  jsonOf,
  merged,
  post,
  reply,
  rowBytes,
  type ReplyOptions,
} from './messages.ts';
import { usedDeployment } from './used.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const EVENTS: ReplyOptions = {
  headers: [['content-type', 'text/event-stream; charset=utf-8']],
  contentLength: null,
};

const stream = (body: string, options: ReplyOptions = {}) => answering(body, { ...EVENTS, ...options });

const event = (text: string) => `data: ${text}\n\n`;
const token = (i: number, rows: string | null = null, index = 0) =>
  event(
    `{"request_id":"r","choices":[{"index":${index},"token_ids":[${i}],"routed_experts":${rows === null ? 'null' : `"${rows}"`}}]}`,
  );
const DONE = event('[DONE]');

const STREAM_REQUEST = '{"prompt":"a","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}';
const GENERATE_REQUEST = '{"token_ids":[1,2,3,4,5],"sampling_params":{"max_tokens":3},"stream":true}';

function scenarioOf(name: string, more: Partial<Scenario>, config: Record<string, unknown> = {}): Scenario {
  return {
    name,
    config,
    client: post(GENERATE_REQUEST, { path: GENERATE }),
    prefill: answering(GOOD_PREFILL),
    decode: stream(''),
    ...more,
  };
}

const CHUNKS = ['one', 'two "routed_experts":"k05VTVBZ', 'three'].map((text, i) =>
  event(
    `{"id":"x","choices":[{"index":0,"delta":{"content":${JSON.stringify(text)}},"finish_reason":${i === 2 ? '"stop"' : 'null'}}]}`,
  ),
);

/** Each event reaches the client before the engine writes the next one. */
const passing: Case[] = [CHAT, COMPLETIONS].flatMap((path) =>
  PROTOCOLS.flatMap((protocol) =>
    [true, false].map((tail): Case => {
      const events = [...CHUNKS, DONE].map((text) => Buffer.from(text));
      const body = Buffer.concat(events);
      return {
        name: `${path} passes event by event, ${tail ? 'tail' : 'full'}, ${protocol}`,
        scenario: () => {
          const watch = new Watch();
          const upTo = (i: number) => events.slice(0, i).reduce((sum, { length }) => sum + length, 0);
          return scenarioOf(
            'passing',
            {
              client: post(STREAM_REQUEST, { path }),
              decode: stream('', {
                pieces: events,
                before: (i) => (i > 0 ? watch.seen(upTo(i)) : undefined),
              }),
              onBody: watch.onBody,
              downstream: protocol,
              upstream: protocol,
            },
            { decode_rows: tail ? 'tail' : 'full' },
          );
        },
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(result.body).toEqual(body);
          expect(header(result.headers, 'content-length')).toBeUndefined();
          expect(header(result.headers, 'content-type')).toBe('text/event-stream; charset=utf-8');
          // The head left before the filter could know that no array would come.
          expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
          expectOutcome(result, 'absent');
          // Prefill's reply is not a stream, and decode's is as the client asked.
          const prefilled = jsonOf(result.prefillRequests[0]!);
          expect(prefilled).toMatchObject({ stream: false, max_tokens: 1 });
          expect('stream_options' in prefilled).toBe(false);
          expect(jsonOf(result.decodeRequests[0]!)).toMatchObject({
            stream: true,
            stream_options: { include_usage: true },
          });
        },
      };
    }),
  ),
);

/** The simulated engine's stream, cut anywhere. */
const simulated: Case[] = [1, 2].flatMap((n) =>
  (['full', 'tail'] as const).flatMap((form) =>
    [undefined, 1, 7, 64, 1000].flatMap((chunkBytes) =>
      PROTOCOLS.filter((protocol) => chunkBytes === 7 || protocol === 'http1').map((protocol): Case => {
        const prompt = 300;
        const request = JSON.stringify({
          token_ids: Array.from({ length: prompt }, (_, i) => 3 + (i % 400)),
          sampling_params: { max_tokens: 6, n, ...(n > 1 ? { temperature: 1 } : {}) },
          stream: true,
          stream_options: { include_usage: true },
        });
        const shared = {
          version: form === 'tail' ? ('0.32' as const) : ('0.30' as const),
          model: { layers: 3, topK: 2, experts: 300, dtype: '<u2' as const },
        };
        let sent: EngineReply | undefined;
        return {
          name: `generate, n=${n}, ${form}, pieces of ${chunkBytes ?? 'an event'}, ${protocol}`,
          scenario: () => {
            const { prefill, decode } = usedDeployment(GENERATE, request, shared, {
              decode: chunkBytes === undefined ? {} : { chunkBytes },
            }).engines;
            return scenarioOf(
              'simulated',
              {
                client: post(request, { path: GENERATE }),
                prefill,
                decode: async (received) => (sent = await decode(received)),
                downstream: protocol,
                upstream: protocol,
              },
              { decode_rows: form },
            );
          },
          check(result) {
            expect(result).toMatchObject({ status: 200, complete: true });
            const oracle = createEngine({ ...shared, role: 'oracle' });
            const { chunks } = oracle({
              method: 'POST',
              path: GENERATE,
              headers: [['content-type', 'application/json']],
              body: Buffer.from(request),
            });
            const right = arrays(Buffer.concat(chunks).toString());
            expect(right).toHaveLength(n);
            let at = 0;
            const expected = Buffer.concat(sent!.chunks)
              .toString()
              .replace(ARRAY, () => right[at++]!);
            expect(result.body.toString()).toBe(expected);
            expect(decodeNpy(Buffer.from(right[0]!.slice(18, -1), 'base64')).shape).toEqual([
              prompt + 5,
              3,
              2,
            ]);
            expectOutcome(result, `merged; rows=${prompt}; choices=${n}`, {
              'routed_experts.spliced_bytes': prompt * 12 * n,
            });
          },
        };
      }),
    ),
  ),
);

const ARRAY = /"routed_experts":"[^"]*"/g;
const arrays = (text: string) => text.match(ARRAY) ?? [];

const GOOD = token(1) + token(2) + token(3, encoded(FULL)) + DONE;
const GOOD_OUT = token(1) + token(2) + token(3, merged(PROMPT, FULL)) + DONE;
const SPLICED = { 'routed_experts.spliced_bytes': 30 };

interface Written {
  name: string;
  body: string;
  out: string;
  outcome?: string;
  config?: Record<string, unknown>;
  counters?: Record<string, number>;
  reply?: ReplyOptions;
  request?: string;
}

const TAIL_OUT = encoded({ rows: 7 }, Buffer.concat([rowBytes(PROMPT), rowBytes(TAIL)]));

/** Event streams as other software may write them. */
const WRITTEN: Written[] = [
  { name: 'CRLF', body: GOOD.replaceAll('\n', '\r\n'), out: GOOD_OUT.replaceAll('\n', '\r\n') },
  { name: 'CR', body: GOOD.replaceAll('\n', '\r'), out: GOOD_OUT.replaceAll('\n', '\r') },
  { name: 'no space', body: GOOD.replaceAll('data: ', 'data:'), out: GOOD_OUT.replaceAll('data: ', 'data:') },
  {
    name: 'comments, names and ids',
    body: `: ping\n\n${GOOD.replaceAll('data: {', 'event: e\nid: 1\ndata: {')}`,
    out: `: ping\n\n${GOOD_OUT.replaceAll('data: {', 'event: e\nid: 1\ndata: {')}`,
  },
  { name: 'no end', body: GOOD.slice(0, -DONE.length), out: GOOD_OUT.slice(0, -DONE.length) },
  { name: 'no empty line at the end', body: GOOD.slice(0, -1), out: GOOD_OUT.slice(0, -1) },
  {
    name: 'a length',
    body: GOOD,
    out: GOOD_OUT,
    reply: { headers: [['content-type', 'text/event-stream']], contentLength: Buffer.byteLength(GOOD) },
  },
  {
    name: 'a length, of a tail',
    body: token(1) + token(2) + token(3, encoded(TAIL)) + DONE,
    out: token(1) + token(2) + token(3, TAIL_OUT) + DONE,
    config: { decode_rows: 'tail' },
    reply: {
      headers: [['content-type', 'text/event-stream']],
      contentLength: Buffer.byteLength(token(1) + token(2) + token(3, encoded(TAIL)) + DONE),
    },
  },
  {
    name: 'no routing',
    body: token(1) + token(2) + DONE,
    out: token(1) + token(2) + DONE,
    outcome: 'absent',
    counters: {},
  },
  { name: 'an empty stream', body: DONE, out: DONE, outcome: 'absent', counters: {} },
  {
    name: 'Content-Type in capitals',
    body: GOOD,
    out: GOOD_OUT,
    reply: { headers: [['content-type', 'Text/Event-Stream']], contentLength: null },
  },
];

const written: Case[] = WRITTEN.flatMap((of) =>
  [undefined, 1, 5].map((pieces): Case => ({
    name: `generate, ${of.name}, pieces of ${pieces ?? 'all'}`,
    scenario: () =>
      scenarioOf(
        of.name,
        { decode: stream(of.body, { ...of.reply, ...(pieces === undefined ? {} : { pieces }) }) },
        of.config,
      ),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(of.out);
      expectOutcome(result, of.outcome ?? 'merged; rows=5; choices=1', of.counters ?? SPLICED);
    },
  })),
);

interface Unmergeable {
  name: string;
  reason: string;
  body: string;
}

const tokens = token(1) + token(2);
/** The head and the first events have left when the array comes. */
const UNMERGEABLE: Unmergeable[] = [
  { name: 'other layers', reason: 'layers', body: tokens + token(3, encoded({ ...FULL, layers: 3 })) + DONE },
  {
    name: 'fewer rows than the prompt',
    reason: 'rows',
    body: tokens + token(3, encoded({ ...FULL, rows: 3 })) + DONE,
  },
  { name: 'another magic', reason: 'magic', body: tokens + token(3, `A${encoded(FULL).slice(1)}`) + DONE },
];
const BROKEN: Unmergeable[] = [
  { name: 'an event that is cut', reason: 'json', body: tokens + token(3, encoded(FULL)).slice(0, -5) },
  { name: 'an event that is no JSON', reason: 'json', body: tokens + event('{"choices":[}') + DONE },
];

function checkUnmergeable(of: Unmergeable, policy: string, result: Result): void {
  if (policy === 'reject') {
    expect(result).toMatchObject({ status: 200, complete: false });
    expect(result.body.toString()).not.toContain('[DONE]');
    return expectOutcome(result, `rejected; reason=${of.reason}`);
  }
  expect(result).toMatchObject({ status: 200, complete: true });
  const out = policy === 'null' ? of.body.replace(ARRAY, '"routed_experts":null') : of.body;
  expect(result.body.toString()).toBe(out);
  expectOutcome(result, `unmerged; reason=${of.reason}`);
}

const policies: Case[] = UNMERGEABLE.flatMap((of) =>
  ['reject', 'null', 'forward'].flatMap((policy) =>
    [undefined, 3].map((pieces): Case => ({
      name: `generate, ${of.name}, pieces of ${pieces ?? 'all'}: ${policy}`,
      scenario: () => {
        const watch = new Watch();
        const body = Buffer.from(of.body);
        const rest = body.subarray(tokens.length);
        return scenarioOf(
          of.name,
          {
            onBody: watch.onBody,
            decode: stream('', {
              pieces: [
                body.subarray(0, tokens.length),
                ...(pieces === undefined ? [rest] : cut(rest, pieces)),
              ],
              before: (i) => (i === 1 ? watch.seen(tokens.length) : undefined),
            }),
          },
          { on_unmergeable: policy },
        );
      },
      check: (result) => checkUnmergeable(of, policy, result),
    })),
  ),
);

const cutOff: Case[] = BROKEN.flatMap((of) =>
  ['reject', 'null', 'a length'].map((policy): Case => ({
    name: `generate, ${of.name}: ${policy}`,
    scenario: () =>
      policy === 'a length'
        ? scenarioOf(of.name, { decode: stream(of.body, { contentLength: Buffer.byteLength(of.body) }) })
        : scenarioOf(of.name, { decode: stream(of.body) }, { on_unmergeable: policy }),
    check(result) {
      expect(result.complete).toBe(false);
      expect(result.body.toString()).not.toContain('[DONE]');
      expectOutcome(result, `rejected; reason=${of.reason}`);
    },
  })),
);

const local: Case = {
  name: 'generate, decode alone: the stream is as it came',
  scenario: () => scenarioOf('local', { prefill: 'down', decode: stream(GOOD) }),
  check(result) {
    expect(result.body.toString()).toBe(GOOD);
    // The head left before the arrays were read.
    expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
    expect(header(result.trailers, 'x-routed-experts')).toBe('local');
    expectOutcome(result, 'local', { 'routed_experts.prefill_failures': 1 });
  },
};

const reset: Case = {
  name: 'chat, decode resets inside its stream',
  scenario: () => {
    const watch = new Watch();
    return scenarioOf('reset', {
      client: post(STREAM_REQUEST, { path: CHAT }),
      decode: () => ({ ...reply(CHUNKS[0]!, { ...EVENTS }), fault: 'reset_body' as const }),
      onBody: watch.onBody,
    });
  },
  check(result) {
    expect(result).toMatchObject({ status: 200, complete: false });
    expect(result.body.toString()).toBe(CHUNKS[0]);
    expectOutcome(result, 'aborted');
  },
};

export const streams: Suite = {
  name: 'event streams',
  cases: [...passing, ...simulated, ...written, ...policies, ...cutOff, local, reset],
};
