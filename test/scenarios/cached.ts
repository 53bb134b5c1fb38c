// Requests that decode serves alone. The filter salts them so that decode forwards the whole
// prompt, and refuses a response if decode's own count of cached tokens shows, or leaves open, that
// rows of its array are those of an earlier request.

import { expect } from 'vitest';
import type { ClientRequest, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  COMPLETIONS,
  GENERATE,
  HANDSHAKES,
  NATIVE,
  answering,
  expectError,
  expectOutcome,
  post,
} from './messages.ts';
import { changed, inInt32, inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';

const PROMPT = 9;
const ROWS = rowsOf(0, PROMPT + 3);
const SALT = /"cache_salt"\s*:\s*"([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"/g;

/**
 * What decode reports about its cache: a number, an object without the number (`none`), or `null`.
 */
type Cached = number | 'none' | null;

const details = (cached: Cached) =>
  cached === null ? 'null' : cached === 'none' ? '{}' : `{"cached_tokens":${cached}}`;

interface Body {
  arrays?: Rows[];
  write?: Write;
  cached?: Cached;
  prompt?: number;
  /** The number of generated tokens of all choices. Default: the right one. */
  completion?: number;
}

function bodyOf({
  arrays = [ROWS],
  write = inNpy(),
  cached = null,
  prompt = PROMPT,
  completion,
}: Body): string {
  const tokens = completion ?? arrays.reduce((sum, rows) => sum + rows.length + 1 - PROMPT, 0);
  const choices = arrays.map((rows, i) => `{"index":${i},"text":"x","routed_experts":${write(rows)}}`);
  return (
    `{"choices":[${choices.join(',')}],"usage":{"prompt_tokens":${prompt},"completion_tokens":${tokens},` +
    `"prompt_tokens_details":${details(cached)}}}`
  );
}

interface Spec {
  name: string;
  client: ClientRequest;
  config?: Record<string, unknown>;
  body: string;
  events?: boolean;
  outcome: string;
  /** The request reaches decode without a salt, as the client sent it. */
  unsalted?: boolean;
  /** Checks the other members of decode's request. */
  more?: (request: Record<string, unknown>) => void;
  type?: string;
  text?: string;
  /** The head of the response leaves before the filter knows the outcome. */
  headless?: boolean;
}

const down = { prefill: { retries: 0 } };
const completion = (more: Record<string, unknown> = {}, path = COMPLETIONS) =>
  post(JSON.stringify({ prompt: 'one two', max_tokens: 20, ...more }), { path });

const TEXT: Record<string, string> = {
  cached: 'decode served the request alone, and does not say that nothing of its prompt came from a cache',
  rows: 'the decode array does not have the rows that were asked for',
};

function caseOf(of: Spec): Case {
  const {
    name,
    client,
    config,
    body,
    events,
    outcome,
    unsalted,
    more,
    type = 'application/json',
    text,
    headless,
  } = of;
  return {
    name,
    scenario: (): Scenario => ({
      name,
      config: { ...down, ...config },
      client,
      prefill: 'down',
      ...(config?.['connector'] === 'mooncake' ? { bootstrap: 'down' as const } : {}),
      decode: answering(body, {
        headers: [['content-type', events ? 'text/event-stream' : type]],
        ...(events ? { contentLength: null } : {}),
      }),
    }),
    check(result: Result): void {
      const request = result.decodeRequests[0]!;
      const sent = Buffer.concat(client.chunks).toString();
      const salts = [...request.body.toString().matchAll(SALT)];
      expect(salts).toHaveLength(unsalted ? 0 : 1);
      if (unsalted) expect(request.body.toString()).toBe(sent);
      else {
        const { cache_salt: _, ...rest } = JSON.parse(request.body.toString()) as Record<string, unknown>;
        const { cache_salt: __, ...asked } = JSON.parse(sent) as Record<string, unknown>;
        if (more) more(rest);
        else expect(rest).toEqual(asked);
        expect(header(request.headers, 'content-length')).toBe(String(request.body.length));
      }
      expect(header(request.headers, 'accept-encoding')).toBeUndefined();
      expect(result.logged).toBe(outcome);
      const reason = /reason=(\w+)/.exec(outcome)?.[1];
      if (reason === undefined || outcome.startsWith('unmerged')) {
        expect(result).toMatchObject({ status: 200, complete: true });
        return expect(result.body.toString()).toBe(text ?? body);
      }
      if (events || headless) return expect(result.complete).toBe(false);
      expectError(
        result,
        502,
        'BadGatewayError',
        `routed_experts can not be merged: ${text ?? TEXT[reason]}`,
      );
    },
  };
}

const LOCAL = 'local';
const CACHED = 'rejected; reason=cached';
const shared = { local_prefix_cache: 'shared' };

const salted: Spec[] = [
  ...[COMPLETIONS, CHAT, GENERATE].map((path): Spec => ({
    name: `salted, nothing is said of the cache, ${path}`,
    client: completion(path === GENERATE ? { sampling_params: {} } : {}, path),
    body: bodyOf({}),
    outcome: LOCAL,
  })),
  { name: 'salted, 0', client: completion(), body: bodyOf({ cached: 0 }), outcome: LOCAL },
  {
    name: 'salted, details without the number',
    client: completion(),
    body: bodyOf({ cached: 'none' }),
    outcome: LOCAL,
  },
  { name: 'salted, 256', client: completion(), body: bodyOf({ cached: 256 }), outcome: CACHED },
  { name: 'salted, 1', client: completion({ n: 1 }), body: bodyOf({ cached: 1 }), outcome: CACHED },
  {
    name: "salted in place of the client's own",
    client: completion({ cache_salt: 'mine', stop: ['}'] }),
    body: bodyOf({}),
    outcome: LOCAL,
  },
  {
    name: "salted in place of the client's own, twice and of other types",
    client: post('{"cache_salt":{"a":[1]},"prompt":"one two", "cache_salt" : null ,"max_tokens":20}'),
    body: bodyOf({}),
    outcome: LOCAL,
  },
  { name: 'salted, an empty object', client: post('{}'), body: bodyOf({}), outcome: LOCAL },
  ...HANDSHAKES.map((handshake): Spec => ({
    name: `salted, two samples that share what decode forwarded for them, ${handshake}`,
    client: completion({ n: 2 }),
    config: { connector: 'mooncake', handshake, prefill: { bootstrap_host: 'p', retries: 0 } },
    body: bodyOf({ arrays: [ROWS, ROWS], cached: 8 }),
    outcome: LOCAL,
  })),
  {
    name: 'salted, two prompts that share what decode forwarded for them',
    client: completion({ prompt: ['a', 'b'] }),
    body: bodyOf({ arrays: [ROWS, ROWS], prompt: 2 * PROMPT, cached: 8 }),
    outcome: LOCAL,
  },
  {
    name: 'no array, and a cache',
    client: completion(),
    body: bodyOf({ arrays: [], cached: 0 }),
    outcome: LOCAL,
  },
  { name: 'salted, B', client: completion(), body: bodyOf({ write: inObject() }), outcome: LOCAL },
  {
    name: 'salted, accept-encoding',
    client: { ...completion(), headers: [...completion().headers, ['accept-encoding', 'gzip']] },
    body: bodyOf({}),
    outcome: LOCAL,
  },
];

const unsalted: Spec[] = [
  { name: 'shared, nothing is said', client: completion(), body: bodyOf({}), outcome: CACHED },
  {
    name: 'shared, details without the number',
    client: completion(),
    body: bodyOf({ cached: 'none' }),
    outcome: CACHED,
  },
  { name: 'shared, 0', client: completion(), body: bodyOf({ cached: 0 }), outcome: LOCAL },
  { name: 'shared, 256', client: completion(), body: bodyOf({ cached: 256 }), outcome: CACHED },
  {
    name: 'shared, no array',
    client: completion(),
    body: bodyOf({ arrays: [], completion: 3 }),
    outcome: LOCAL,
  },
  {
    name: 'shared, an array that is null',
    client: completion(),
    body: bodyOf({ write: () => 'null' }),
    outcome: LOCAL,
  },
  {
    name: 'shared, two prompts, of which the last one was not cached',
    client: completion({ prompt: ['a', 'b'] }),
    body: bodyOf({ arrays: [ROWS, ROWS], prompt: 2 * PROMPT, cached: 0 }),
    outcome: CACHED,
  },
  {
    name: 'shared, two samples, 0',
    client: completion({ n: 2, echo: true }),
    body: bodyOf({ arrays: [ROWS, ROWS], cached: 0 }),
    outcome: LOCAL,
  },
  {
    name: 'shared, forwarded all the same',
    client: completion(),
    config: { on_unmergeable: 'forward' },
    body: bodyOf({}),
    outcome: 'unmerged; reason=cached',
  },
  {
    name: 'shared, null instead',
    client: completion(),
    config: { on_unmergeable: 'null' },
    body: bodyOf({}),
    outcome: 'unmerged; reason=cached',
    text: bodyOf({ write: () => 'null' }).replace(/"completion_tokens":\d+/, '"completion_tokens":4'),
  },
].map((of) => ({ ...of, config: { ...shared, ...of.config }, unsalted: true }));

const tagged = (request: Record<string, unknown>) =>
  expect(request['kv_transfer_params']).toEqual({
    'lmcache.tag.routed_experts': expect.stringMatching(/^[0-9a-f]{32}$/) as string,
    'lmcache.skip_save': true,
  });

// Whatever decode's own cache does, a store may hand over the KV of a prompt that prefill has
// forwarded once.
const stored: Spec[] = [
  { name: 'a store, nothing is said', client: completion(), body: bodyOf({}), outcome: CACHED },
  { name: 'a store, 0', client: completion(), body: bodyOf({ cached: 0 }), outcome: LOCAL },
  {
    name: 'a store, 256',
    client: completion({ kv_transfer_params: { a: 1 } }),
    body: bodyOf({ cached: 256 }),
    outcome: CACHED,
  },
].map((of) => ({ ...of, config: { connector: 'shared_storage' }, more: tagged }));

const elsewhere = post('{"prompt":"x"}', { path: '/v1/other' });
const unread: Spec[] = [
  { name: 'a path that is not served, an array', client: elsewhere, body: bodyOf({}), outcome: CACHED },
  {
    name: 'a path that is not served, an array, 0',
    client: elsewhere,
    body: bodyOf({ cached: 0 }),
    outcome: LOCAL,
  },
  {
    name: 'a path that is not served, no array',
    client: elsewhere,
    body: '{"data":[1,2]}',
    outcome: LOCAL,
  },
  {
    name: 'a path that is not served, no JSON after all',
    client: elsewhere,
    body: '<html>',
    outcome: LOCAL,
  },
  {
    name: 'a path that is not served, another type',
    client: elsewhere,
    body: bodyOf({}),
    type: 'text/plain',
    outcome: LOCAL,
  },
  { name: 'a body that is no request', client: post('[1]'), body: bodyOf({}), outcome: CACHED },
  { name: 'a body that is no request, 0', client: post('[1]'), body: bodyOf({ cached: 0 }), outcome: LOCAL },
].map((of) => ({ ...of, unsalted: true, headless: of.client === elsewhere }));

// ---- arrays are read as those of P/D are

const zero = changed(ROWS, (i, _, ids) => (i === 4 ? ids.map(() => 0) : ids));
const wrongRow = 'a row names experts that a router cannot have given (decode row 4, all layers)';
const split = (prompt: Rows, generated: Rows) =>
  `{"prompt_routed_experts":${inLists(prompt)},"choices":[{"index":0,"routed_experts":${inLists(generated)}}],"usage":{"prompt_tokens":${prompt.length},"completion_tokens":${generated.length + 1}}}`;
const read: Spec[] = [
  {
    name: 'a row of zeros, A',
    client: completion(),
    body: bodyOf({ arrays: [zero] }),
    outcome: 'rejected; reason=experts',
    text: wrongRow,
  },
  {
    name: 'a row of zeros, B',
    client: completion(),
    body: bodyOf({ arrays: [zero], write: inObject() }),
    outcome: 'rejected; reason=experts',
    text: wrongRow,
  },
  {
    name: 'a row of zeros, C',
    client: completion(),
    body: split(zero.slice(0, 9), zero.slice(9)),
    outcome: 'rejected; reason=experts',
    text: wrongRow,
  },
  { name: 'C', client: completion(), body: split(ROWS.slice(0, 9), ROWS.slice(9)), outcome: LOCAL },
  {
    name: 'too few rows',
    client: completion(),
    body: bodyOf({ completion: 9 }),
    outcome: 'rejected; reason=rows',
  },
  {
    name: 'too few rows, C',
    client: completion(),
    body: split(ROWS.slice(0, 9), ROWS.slice(9)).replace('"completion_tokens":4', '"completion_tokens":5'),
    outcome: 'rejected; reason=rows',
  },
  {
    name: 'rows from where the client asked',
    client: completion({ routed_experts_prompt_start: 4 }),
    body: bodyOf({ arrays: [ROWS.slice(4)], completion: 4 }),
    outcome: LOCAL,
  },
  {
    name: 'rows from where the client asked, of an engine that does not know the field',
    client: completion({ routed_experts_prompt_start: 4 }),
    body: bodyOf({ completion: 4 }),
    outcome: LOCAL,
  },
  {
    name: 'rows from elsewhere than the client asked',
    client: completion({ routed_experts_prompt_start: 4 }),
    body: bodyOf({ arrays: [ROWS.slice(3)], completion: 4 }),
    outcome: 'rejected; reason=rows',
  },
  {
    name: 'a body that is cut inside an array',
    client: completion(),
    body: bodyOf({ write: inObject() }).slice(0, 90),
    outcome: 'rejected; reason=json',
    text: 'the decode response is not a complete JSON object',
  },
  {
    name: 'a body that is cut is no array',
    client: completion(),
    body: '{"choices":[{"index":0,"te',
    outcome: LOCAL,
  },
  {
    name: 'a body that is cut behind its array',
    client: completion(),
    body: bodyOf({}).slice(0, -9),
    outcome: 'rejected; reason=json',
    text: 'the decode response is not a complete JSON object',
  },
];

// ---- streams: what is known too late ends them

const event = (data: string) => `data: ${data}\n\n`;
const arrayEvent = event(`{"choices":[{"index":0,"token_ids":[1,2,3,4],"routed_experts":${inNpy()(ROWS)}}]}`);
const usageEvent = (cached: Cached) =>
  event(
    `{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":${details(cached)}}}`,
  ) + event('[DONE]');
const streaming = post(
  JSON.stringify({
    token_ids: [1, 2],
    stream: true,
    sampling_params: { prompt_logprobs: 1, max_tokens: 20 },
  }),
  { path: GENERATE },
);
const streams: Spec[] = [
  { name: 'stream: nothing is said', body: arrayEvent + usageEvent(null), outcome: LOCAL },
  { name: 'stream: 0', body: arrayEvent + usageEvent(0), outcome: LOCAL },
  { name: 'stream: 8', body: arrayEvent + usageEvent(8), outcome: CACHED },
  {
    name: 'stream: shared',
    body: arrayEvent + usageEvent(0),
    outcome: CACHED,
    config: shared,
    unsalted: true,
  },
  {
    name: 'stream: shared, no array',
    body: event('{"choices":[]}') + usageEvent(null),
    outcome: LOCAL,
    config: shared,
    unsalted: true,
  },
].map((of) => ({ ...of, client: streaming, events: true }));

// Requests to SGLang's engines are not salted. Each element of a reply has its own count of cached
// tokens.
const native = (cached: string) =>
  `{"text":"x","meta_info":{"prompt_tokens":9,"completion_tokens":4${cached},"routed_experts":${inInt32(ROWS)}}}`;
const sglang: Spec[] = [
  { name: 'SGLang: 0', body: native(',"cached_tokens":0'), outcome: LOCAL },
  { name: 'SGLang: 3', body: native(',"cached_tokens":3'), outcome: CACHED },
  { name: 'SGLang: nothing is said', body: native(''), outcome: CACHED },
  {
    name: 'SGLang: a list, 0',
    body: `[${native(',"cached_tokens":0')},${native(',"cached_tokens":0')}]`,
    outcome: LOCAL,
  },
  {
    name: 'SGLang: a list, 0 and 3',
    body: `[${native(',"cached_tokens":0')},${native(',"cached_tokens":3')}]`,
    outcome: CACHED,
  },
  {
    name: 'SGLang: too few rows',
    body: native(',"cached_tokens":0').replace('"completion_tokens":4', '"completion_tokens":7'),
    outcome: 'rejected; reason=rows',
  },
  {
    name: 'SGLang: a row of zeros',
    body: native(',"cached_tokens":0').replace(inInt32(ROWS), inInt32(zero)),
    outcome: 'rejected; reason=experts',
    text: wrongRow,
  },
].map((of) => ({
  ...of,
  client: post(JSON.stringify({ text: 'x', return_routed_experts: true, routed_experts_start_len: 0 }), {
    path: NATIVE,
  }),
  // P/D does not serve the request, because the request names no endpoint.
  config: {
    connector: 'sglang',
    prefill: { retries: 0, endpoint_header: 'x-prefiller', allowed_endpoints: ['{prefill:0}'] },
  },
  unsalted: true,
}));

export const cached: Suite = {
  name: 'what decode serves alone',
  cases: [
    ...[...salted, ...unsalted, ...stored, ...unread, ...read, ...streams, ...sglang].map(caseOf),
    {
      name: 'two requests have two salts',
      scenario: () => ({
        name: 'two salts',
        config: { prefill: { retries: 0 } },
        client: completion(),
        prefill: 'down',
        decode: ({ body }) => {
          const [, salt] = [...body.toString().matchAll(SALT)][0]!;
          const twice = seen.has(salt!);
          seen.add(salt!);
          return answering(twice ? '{"twice":true}' : '{"new":true}')({
            method: '',
            path: '',
            headers: [],
            body,
          }) as never;
        },
      }),
      check: (result) => expectOutcome(result, LOCAL, { 'routed_experts.prefill_failures': 1 }),
    },
  ],
};

const seen = new Set<string>();
