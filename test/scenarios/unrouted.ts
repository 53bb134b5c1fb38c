// Responses without routing on either leg that are longer than what may be held: nothing in them is
// worth waiting for. Other values from prefill's reply are inserted nonetheless.

import { expect } from 'vitest';
import type { Protocol, Result } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  FULL,
  PARAMS,
  Watch,
  answering,
  cut,
  encoded,
  expectError,
  expectOutcome,
  post,
  quoted,
  type ReplyOptions,
} from './messages.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const HOLD = { hold_bytes: 1000, max_hold_bytes: 4000 };
const LOGPROBS = '[null,{"7":{"logprob":-0.5}}]';
const TEXT = 'y'.repeat(50_000);

interface Reply {
  details?: string | undefined;
  /** Further members of the choice. */
  more?: string;
  text?: string;
  usageFirst?: boolean;
}

function body({ details, more = '', text = TEXT, usageFirst = false }: Reply): string {
  const told = details === undefined ? '' : `,"prompt_tokens_details":${details}`;
  const usage = `"usage":{"prompt_tokens":5,"completion_tokens":3${told}}`;
  const choices = `"choices":[{"index":0,"text":"${text}"${more}}]`;
  return `{"id":"d",${usageFirst ? `${usage},${choices}` : `${choices},${usage}`}}`;
}

interface Spec {
  name: string;
  prefill: Reply;
  decode: Reply;
  /** What the client gets. Default: what decode sent. */
  out?: Reply;
  request?: Record<string, unknown>;
}

const CACHED = '{"cached_tokens":2}';
const FEWER = '{"cached_tokens":4}';

const SPECS: Spec[] = [
  {
    name: 'cached_tokens at the end',
    prefill: { details: CACHED },
    decode: { details: FEWER },
    out: { details: CACHED },
  },
  {
    name: 'cached_tokens before the text, of other lengths',
    prefill: { details: '{"cached_tokens":123}' },
    decode: { details: FEWER, usageFirst: true },
    out: { details: '{"cached_tokens":123}', usageFirst: true },
  },
  {
    name: 'no details at decode',
    prefill: { details: CACHED },
    decode: { details: 'null' },
    out: { details: CACHED },
  },
  { name: 'cached_tokens that decode does not tell', prefill: { details: CACHED }, decode: {} },
  {
    name: 'prompt_logprobs',
    prefill: { more: `,"prompt_logprobs":${LOGPROBS}` },
    decode: {},
    out: { more: `,"prompt_logprobs":${LOGPROBS}` },
    request: { prompt_logprobs: 0 },
  },
  {
    name: 'prompt_logprobs, null at decode, and cached_tokens',
    prefill: { details: CACHED, more: `,"prompt_logprobs":${LOGPROBS}` },
    decode: { details: FEWER, more: ',"prompt_logprobs":null' },
    out: { details: CACHED, more: `,"prompt_logprobs":${LOGPROBS}` },
    request: { prompt_logprobs: 0 },
  },
  { name: 'nothing', prefill: {}, decode: { details: FEWER } },
];

const prefillOf = (reply: Reply) =>
  answering(body({ text: 'x', ...reply }).replace(/\}$/, `,"kv_transfer_params":${PARAMS}}`));

const cases: Case[] = SPECS.flatMap((spec) =>
  PROTOCOLS.flatMap((protocol) =>
    ['hold', 'pass'].flatMap((heads) =>
      [undefined, 777].map((pieces): Case => {
        const name = `${spec.name}, ${protocol}, headers: ${heads}, pieces of ${pieces ?? 'all'}`;
        const options: ReplyOptions = pieces === undefined ? {} : { pieces };
        return {
          name,
          scenario: () => ({
            name,
            config: { ...HOLD, headers: heads },
            client: post(JSON.stringify({ prompt: 'a', max_tokens: 3, ...spec.request })),
            prefill: prefillOf(spec.prefill),
            decode: answering(body(spec.decode), options),
            downstream: protocol,
            upstream: protocol,
          }),
          check(result: Result) {
            expect(result).toMatchObject({ status: 200, complete: true });
            // The bodies are compared as a boolean, because printing the long text helps nobody.
            const out = body(spec.out ?? spec.decode);
            expect(result.body.toString() === out, `${result.body.subarray(-300)}`).toBe(true);
            expectOutcome(result, 'absent');
            if (heads === 'hold') expect(header(result.headers, 'x-routed-experts')).toBe('absent');
            const length = header(result.headers, 'content-length');
            expect(length ?? String(out.length)).toBe(String(out.length));
          },
          // A body that comes in one piece has ended before its head leaves.
          cutDecidesHead: true,
        };
      }),
    ),
  ),
);

const withArray = (at: 'first' | 'late') => {
  const array = `"routed_experts":${quoted(encoded(FULL))}`;
  const whole = body({ details: FEWER });
  return at === 'first'
    ? whole.replace('"text"', `${array},"text"`)
    : whole.replace(`${TEXT}"`, `${TEXT}",${array}`);
};

/** An array of decode for which prefill has no rows is refused wherever it stands. */
const refused: Case[] = (['first', 'late'] as const).flatMap((at) =>
  ['reject', 'null', 'forward'].map((policy): Case => ({
    name: `an array of decode’s, ${at}: ${policy}`,
    scenario: () => {
      const client = new Watch();
      const answer = withArray(at);
      // The filter examines at once what comes at once, so the late array is sent after the client
      // has received the head.
      const pieces = at === 'late' ? cut(Buffer.from(answer), 10_000) : 777;
      return {
        name: at,
        config: { ...HOLD, on_unmergeable: policy },
        client: post('{"prompt":"a","max_tokens":3}'),
        prefill: prefillOf({ details: CACHED }),
        decode: answering(answer, {
          pieces,
          ...(at === 'late' ? { before: (i: number) => (i === 5 ? client.seen(0) : undefined) } : {}),
        }),
        onBody: client.onBody,
      };
    },
    check(result) {
      if (at === 'late') {
        expect(result).toMatchObject({ status: 200, complete: false });
        return expectOutcome(result, 'rejected; reason=missing');
      }
      expect(result.complete).toBe(true);
      if (policy !== 'reject') return expectOutcome(result, 'unmerged; reason=missing');
      expectError(
        result,
        502,
        'BadGatewayError',
        'routed_experts can not be merged: the prefill reply has no array',
      );
      expectOutcome(result, 'rejected; reason=missing');
    },
    cutDecidesHead: true,
  })),
);

export const unrouted: Suite = { name: 'long responses without routing', cases: [...cases, ...refused] };
