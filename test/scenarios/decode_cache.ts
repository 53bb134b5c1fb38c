// How decode came by the prompt: how many of its tokens decode says that it did not compute, in the
// access log and in the counters. Prefill's own count takes the place of this number in the
// response, so nobody else sees it.

import { expect } from 'vitest';
import type { EngineOptions } from '../engine/engine.ts';
import type { Engine, Scenario } from '../scenario.ts';
import { Fleet } from '../engine/fleet.ts';
import { createEngine } from '../engine/engine.ts';
import type { Case, Suite } from './case.ts';
import {
  answering,
  decodeBody,
  encoded,
  FULL,
  GENERATE,
  GOOD_DECODE,
  GOOD_PREFILL,
  jsonOf,
  NO_ARRAY,
  PARAMS,
  post,
  quoted,
  REQUEST,
} from './messages.ts';

/** What is counted, and logged, of one exchange. */
type Told = { cached: number; computed: number } | 'untold' | null;

function expectTold(result: { loggedDecode: string | null; counters: Record<string, number> }, told: Told) {
  const counted = Object.entries(result.counters).filter(([name]) =>
    name.startsWith('routed_experts.decode_'),
  );
  const numbers = told !== null && told !== 'untold' ? told : { cached: 0, computed: 0 };
  expect(Object.fromEntries(counted)).toEqual({
    ...(numbers.cached > 0 ? { 'routed_experts.decode_cached_tokens': numbers.cached } : {}),
    ...(numbers.computed > 0 ? { 'routed_experts.decode_computed_tokens': numbers.computed } : {}),
    ...(told === 'untold' ? { 'routed_experts.decode_untold': 1 } : {}),
  });
  const text = told !== null && told !== 'untold' ? `cached=${told.cached}; computed=${told.computed}` : told;
  expect(result.loggedDecode).toBe(text);
}

// ---- messages by hand

const ARRAY = quoted(encoded(FULL));
const OTHER = quoted(encoded({ ...FULL, layers: 3 }));
const decode = (cachedTokens: number, arrays = [ARRAY]) => decodeBody(arrays, { cachedTokens });
/** Prefill says of its own cache that it had 2 tokens: this is what the client is told. */
const PREFILL = GOOD_PREFILL.replace(
  '"completion_tokens":1',
  '"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}',
);

interface ByHand {
  name: string;
  told: Told;
  prefill?: string;
  decode: string | Engine;
  config?: Record<string, unknown>;
  request?: string;
  path?: string;
  /** What the client reads of decode's count. Default: what decode has sent. */
  shown?: string;
  outcome?: string;
  cutDecidesHead?: true;
  random?: RegExp;
}

const event = (document: string) => `data: ${document}\n\n`;
const DONE = 'data: [DONE]\n\n';
const stream = (...documents: string[]) =>
  answering(documents.map(event).join('') + DONE, {
    headers: [['content-type', 'text/event-stream']],
    contentLength: null,
  });
const last = `{"choices":[{"index":0,"token_ids":[7,8,9],"finish_reason":"length","routed_experts":${ARRAY}}]}`;
const usage = (cached: number | null) =>
  `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":${
    cached === null ? 'null' : `{"cached_tokens":${cached}}`
  }}}`;
const streams = {
  path: GENERATE,
  request: '{"token_ids":[1,2,3,4,5],"sampling_params":{"max_tokens":3},"stream":true}',
};

const BY_HAND: ByHand[] = [
  { name: 'decode has pulled all but the last', decode: decode(4), told: { cached: 4, computed: 1 } },
  { name: 'decode has pulled all', decode: decode(5), told: { cached: 5, computed: 0 } },
  { name: 'decode has computed all', decode: decode(0), told: { cached: 0, computed: 5 } },
  {
    name: 'prefill’s count takes the place of decode’s',
    prefill: PREFILL,
    decode: decode(4),
    told: { cached: 4, computed: 1 },
    shown: '"cached_tokens":2',
  },
  {
    name: 'the details stand before the number of tokens',
    decode: decode(4).replace(
      '"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}',
      '"prompt_tokens_details":{"cached_tokens":4},"prompt_tokens":5,"completion_tokens":3',
    ),
    told: { cached: 4, computed: 1 },
  },
  { name: 'decode does not tell', decode: GOOD_DECODE, told: 'untold' },
  {
    name: 'decode says null, which becomes prefill’s',
    prefill: PREFILL,
    decode: decode(4).replace('{"cached_tokens":4}', 'null'),
    told: 'untold',
    shown: '"cached_tokens":2',
  },
  { name: 'a number that is no integer', decode: decode(4).replace(':4}', ':4.5}'), told: 'untold' },
  { name: 'more than the prompt has', decode: decode(6), told: 'untold' },
  {
    name: 'nobody says how many tokens the prompt has',
    prefill: GOOD_PREFILL.replace(/"usage":\{[^}]*\}/, '"usage":null').replace(
      /"routed_experts":"[^"]*"/,
      '"routed_experts":null',
    ),
    decode: decode(4, ['null']),
    told: 'untold',
    outcome: 'absent',
  },
  {
    name: 'decode repeats what prefill has told it (vLLM 0.32, NIXL)',
    prefill: GOOD_PREFILL.replace(PARAMS, PARAMS.replace('}', ',"remote_prefill_cached_tokens":2}')),
    decode: decode(2),
    told: 'untold',
  },
  {
    name: 'SGLang’s decode repeats what prefill has told it',
    config: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
    decode: decode(2),
    told: 'untold',
    random: /(?<="bootstrap_room":)\d+/g,
  },
  {
    name: 'without routing',
    prefill: GOOD_PREFILL.replace(/"routed_experts":"[^"]*"/, '"routed_experts":null'),
    decode: NO_ARRAY.replace(
      '"completion_tokens":3',
      '"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":3}',
    ),
    told: { cached: 3, computed: 2 },
    outcome: 'absent',
  },
  {
    name: 'the head passes',
    config: { headers: 'pass' },
    decode: decode(4),
    told: { cached: 4, computed: 1 },
  },
  {
    name: 'the response has left in part',
    config: { hold_bytes: 0 },
    decode: answering(decode(4), { pieces: 50 }),
    cutDecidesHead: true,
    told: { cached: 4, computed: 1 },
  },
  {
    name: 'arrays become null',
    config: { on_unmergeable: 'null' },
    decode: decode(4, [OTHER]),
    told: { cached: 4, computed: 1 },
    outcome: 'unmerged; reason=layers',
  },
  { name: 'a stream', ...streams, decode: stream(last, usage(4)), told: { cached: 4, computed: 1 } },
  {
    name: 'a stream, in which prefill’s count takes the place',
    ...streams,
    prefill: PREFILL,
    decode: stream(last, usage(4)),
    told: { cached: 4, computed: 1 },
    shown: '"cached_tokens":2',
  },
  { name: 'a stream that does not tell', ...streams, decode: stream(last, usage(null)), told: 'untold' },
  { name: 'a stream without usage', ...streams, decode: stream(last), told: 'untold' },
];

const byHand = BY_HAND.map((of): Case => {
  const engine = typeof of.decode === 'string' ? answering(of.decode) : of.decode;
  return {
    name: of.name,
    ...(of.cutDecidesHead ? { cutDecidesHead: true } : {}),
    ...(of.random ? { random: of.random } : {}),
    scenario: (): Scenario => ({
      name: of.name,
      config: of.config ?? {},
      client: post(of.request ?? REQUEST, of.path === undefined ? {} : { path: of.path }),
      prefill: answering(of.prefill ?? GOOD_PREFILL),
      decode: engine,
    }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.logged).toMatch(of.outcome ?? /^merged; rows=5/);
      if (of.shown !== undefined) expect(result.body.toString()).toContain(of.shown);
      expectTold(result, of.told);
    },
  };
});

// ---- nothing is said of P/D where there is none, or no response of decode's

const NONE: [string, Partial<Scenario>, string][] = [
  [
    'decode serves the request alone',
    { client: post(REQUEST.replace('}', ',"echo":true}')), decode: answering(decode(0)) },
    'local',
  ],
  [
    'prefill fails',
    { prefill: 'down', config: { prefill: { retries: 0 } }, decode: answering(decode(0)) },
    'local',
  ],
  ['decode refuses', { decode: answering('{"error":{}}', { status: 400 }) }, 'absent'],
  ['the response is refused', { decode: answering(decode(4, [OTHER])) }, 'rejected; reason=layers'],
];

const none = NONE.map(([name, scenario, outcome]): Case => ({
  name: `${name}: nothing is said`,
  scenario: () => ({
    name,
    config: {},
    client: post(REQUEST),
    prefill: answering(GOOD_PREFILL),
    decode: answering(GOOD_DECODE),
    ...scenario,
  }),
  check(result) {
    expect(result.logged).toBe(outcome);
    expectTold(result, null);
  },
}));

// ---- simulated engines

const TOKENS = 100;
const BLOCK = 16;
const prompt = Array.from({ length: TOKENS }, (_, i) => 3 + ((i * 31) % 499));
const SERVER = { host: '127.0.0.1', port: 8998 };

interface Simulated {
  name: string;
  engines: Partial<EngineOptions>;
  /** Decode finds nothing of what prefill has computed, and nobody says so. */
  apart?: boolean;
  told: Told;
}

const MOONCAKE: Partial<EngineOptions> = { connector: 'mooncake', bootstrap: SERVER, cachedTokens: {} };
const STORE: Partial<EngineOptions> = { connector: 'shared_storage', cachedTokens: {} };

const SIMULATED: Simulated[] = [
  {
    name: 'nixl',
    engines: { connector: 'nixl', cachedTokens: {} },
    told: { cached: TOKENS - 1, computed: 1 },
  },
  {
    name: 'nixl, engines that do not tell',
    engines: { connector: 'nixl' },
    told: 'untold',
  },
  {
    name: 'a store that both engines share',
    engines: STORE,
    told: { cached: TOKENS - (TOKENS % BLOCK), computed: TOKENS % BLOCK },
  },
  {
    name: 'a store that decode does not have',
    engines: STORE,
    apart: true,
    told: { cached: 0, computed: TOKENS },
  },
  { name: 'mooncake', engines: MOONCAKE, told: { cached: TOKENS - 1, computed: 1 } },
  {
    name: 'mooncake, decode cannot pull and computes the prompt again',
    engines: { ...MOONCAKE, kvLoadFailure: 'recompute' },
    apart: true,
    told: { cached: 0, computed: TOKENS },
  },
];

/** Transfers are random, and so are the addresses of bootstrap servers. */
const RANDOM = /xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+|(?<=engine_id":")[0-9a-f-]{36}/g;

const simulated = SIMULATED.map((of): Case => {
  const request = JSON.stringify({ prompt, max_tokens: 4 });
  const mooncake = of.engines.connector === 'mooncake';
  return {
    name: `simulated: ${of.name}`,
    ...(mooncake ? { random: RANDOM } : {}),
    scenario(): Scenario {
      const shared = { ...of.engines, fleet: new Fleet() };
      const prefill = createEngine({ ...shared, role: 'prefill' });
      const decode = createEngine({ ...shared, ...(of.apart ? { fleet: new Fleet() } : {}), role: 'decode' });
      return {
        name: of.name,
        config: {
          connector: of.engines.connector,
          ...(mooncake ? { prefill: { bootstrap_host: SERVER.host, bootstrap_port: SERVER.port } } : {}),
        },
        client: post(request),
        prefill,
        ...(mooncake ? { bootstrap: prefill } : {}),
        decode,
      };
    },
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      // The rows are right either way: prefill has forwarded the same tokens.
      expect(result.logged).toBe(`merged; rows=${TOKENS}; choices=1`);
      const oracle = createEngine({ ...of.engines, connector: 'nixl', role: 'oracle' });
      const { chunks } = oracle({
        method: 'POST',
        path: '/v1/completions',
        headers: [['content-type', 'application/json']],
        body: Buffer.from(request),
      }) as { chunks: Buffer[] };
      const arrayOf = (body: Buffer) => /"routed_experts":"([^"]*)"/.exec(body.toString())![1];
      expect(arrayOf(result.body)).toBe(arrayOf(Buffer.concat(chunks)));
      expect(jsonOf(result).choices).toHaveLength(1);
      expectTold(result, of.told);
    },
  };
});

export const decodeCache: Suite = {
  name: 'how decode came by the prompt',
  cases: [...byHand, ...none, ...simulated],
};
