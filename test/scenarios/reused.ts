// Requests that decode serves alone after the same prompts were under P/D. Decode's cache, or a
// store, has their KV, and the slots of that KV hold the rows of other requests. The right rows are
// those of an engine that has forwarded everything itself.

import { expect } from 'vitest';
import type { EngineOptions } from '../engine/engine.ts';
import type { Result, Scenario } from '../scenario.ts';
import { type Case, type Suite } from './case.ts';
import {
  CACHED_TEXT,
  CHAT,
  COMPLETIONS,
  GENERATE,
  HANDSHAKES,
  expectError,
  post,
  saltOf,
} from './messages.ts';
import { meaningOf } from '../../yardstick/meaning.ts';
import { oracleOf, usedDeployment } from './used.ts';

type Json = Record<string, unknown>;

interface Ask {
  name: string;
  path: string;
  body: Json;
  /** P/D serves such a request if prefill is up. */
  served?: boolean;
}

const PROMPT = Array.from({ length: 300 }, (_, i) => 3 + ((i * 31 + (i >> 4)) % 500));
const OTHER = PROMPT.map((id) => 3 + ((id * 7) % 499));
const CONTENT = 'Which experts have seen this prompt before? '.repeat(4);
const SAMPLED = { n: 2, temperature: 0.8 };

const ASKS: Ask[] = [
  { name: 'a completion', path: COMPLETIONS, body: { prompt: PROMPT, max_tokens: 5 }, served: true },
  {
    name: 'a chat',
    path: CHAT,
    body: { messages: [{ role: 'user', content: CONTENT }], max_tokens: 5 },
    served: true,
  },
  {
    name: 'a generate',
    path: GENERATE,
    body: { token_ids: PROMPT, sampling_params: { max_tokens: 5 } },
    served: true,
  },
  {
    name: 'a stream of generate',
    path: GENERATE,
    body: { token_ids: PROMPT, stream: true, sampling_params: { max_tokens: 5 } },
    served: true,
  },
  {
    name: 'two samples',
    path: COMPLETIONS,
    body: { prompt: PROMPT, max_tokens: 5, ...SAMPLED },
    served: true,
  },
  {
    name: 'two samples of generate',
    path: GENERATE,
    body: { token_ids: PROMPT, sampling_params: { max_tokens: 5, ...SAMPLED } },
    served: true,
  },
  { name: 'two prompts', path: COMPLETIONS, body: { prompt: [PROMPT, OTHER], max_tokens: 5 } },
  { name: 'echo', path: COMPLETIONS, body: { prompt: CONTENT, echo: true, max_tokens: 5 } },
  {
    name: 'a start of a completion',
    path: COMPLETIONS,
    body: { prompt: PROMPT, max_tokens: 5, routed_experts_prompt_start: 100 },
    served: true,
  },
  {
    name: 'a start of a chat',
    path: CHAT,
    body: {
      messages: [{ role: 'user', content: CONTENT }],
      ...{ max_tokens: 5, routed_experts_prompt_start: 20 },
    },
    served: true,
  },
  {
    name: 'a start of a generate',
    path: GENERATE,
    body: { token_ids: PROMPT, sampling_params: { max_tokens: 5, routed_experts_prompt_start: 100 } },
    served: true,
  },
];

interface Spec {
  ask: Ask;
  /** Options of decode, beyond those that both engines have. */
  engine?: Partial<EngineOptions>;
  config?: Json;
  right: boolean;
  /** The prompt was not under P/D before. */
  unknown?: boolean;
}

const MODEL = { layers: 3, topK: 2, experts: 32 };

function caseOf(name: string, { ask, engine, config, right, unknown }: Spec): Case {
  const { path, body } = ask;
  const request = JSON.stringify(body);
  const before = unknown ? JSON.stringify({ ...body, prompt: OTHER }) : request;
  const shared = { model: MODEL, ...engine };
  return {
    name: `${ask.name}: ${name}`,
    scenario: (): Scenario => {
      const { prefill, decode } = usedDeployment(path, before, shared).engines;
      return {
        name,
        config: { prefill: { retries: 0 }, ...config },
        client: post(request, { path }),
        prefill: ask.served ? 'down' : prefill,
        ...(config?.['connector'] === 'mooncake' ? { bootstrap: 'down' as const } : {}),
        decode,
      };
    },
    check(result: Result): void {
      expect(result.prefillRequests).toEqual([]);
      expect(result.decodeRequests).toHaveLength(1);
      const [received] = result.decodeRequests;
      if (config?.['local_prefix_cache'] !== 'shared') saltOf(received!);
      else expect(received!.body.toString()).toBe(request);
      if (!right) {
        expect(result.logged).toBe('rejected; reason=cached');
        if (body['stream']) return expect(result.complete).toBe(false);
        return expectError(
          result,
          502,
          'BadGatewayError',
          `routed_experts can not be merged: ${CACHED_TEXT}`,
        );
      }
      expect(result).toMatchObject({ status: 200, complete: true, logged: 'local' });
      expect(meaningOf(result.body.toString())).toEqual(meaningOf(oracleOf(path, request, shared)));
    },
  };
}

const TOLD = { cachedTokens: {} };
const SHARED = { local_prefix_cache: 'shared' };

const ownCache: Case[] = ASKS.flatMap((ask) => [
  caseOf('salted', { ask, right: true }),
  caseOf('salted, decode tells what was cached', { ask, engine: TOLD, right: true }),
  caseOf('unsalted', { ask, config: SHARED, right: false }),
  caseOf('unsalted, decode tells what was cached', { ask, engine: TOLD, config: SHARED, right: false }),
  // This version of the engine would die of rows that it has not captured.
  caseOf('salted, decode is a later one', { ask, engine: { version: '0.32' }, right: true }),
]);

const [COMPLETION, , , , SAMPLES, , PROMPTS] = ASKS as [Ask, Ask, Ask, Ask, Ask, Ask, Ask];

const others: Case[] = [
  caseOf('unsalted, another prompt than before', {
    ...{ ask: COMPLETION, engine: TOLD, config: SHARED },
    ...{ right: true, unknown: true },
  }),
  caseOf('unsalted, another prompt than before, nothing is told', {
    ...{ ask: COMPLETION, config: SHARED },
    ...{ right: false, unknown: true },
  }),
  caseOf('unsalted, decode has no prefix cache, and tells that nothing was cached', {
    ...{ ask: COMPLETION, engine: { ...TOLD, prefixCaching: false }, config: SHARED },
    right: true,
  }),
];
const saltless: Case[] = ASKS.filter(({ name, body }) => !/two/.test(name) && !body['stream']).map((ask) =>
  caseOf('decode does not know salts, and tells what was cached', {
    ask,
    engine: { ...TOLD, ignoreSalt: true },
    right: false,
  }),
);

const STORED = { connector: 'shared_storage' } as const;
const inStore = (store: 'example' | 'lmcache' | 'lmcache_mp', more: Partial<EngineOptions> = {}) => ({
  ...STORED,
  store,
  ...more,
});
const single = ASKS.filter(({ name, body }) => !/two/.test(name) && !body['stream']);

const stores: Case[] = [
  // The ExampleConnector finds a prompt by its tokens alone, whatever the request says.
  ...single.map((ask) =>
    caseOf('ExampleConnector', { ask, engine: inStore('example', TOLD), config: STORED, right: false }),
  ),
  caseOf('ExampleConnector, nothing is told', {
    ask: COMPLETION,
    engine: inStore('example'),
    config: STORED,
    right: false,
  }),
  caseOf('ExampleConnector, a prompt that it does not have', {
    ask: COMPLETION,
    engine: inStore('example', TOLD),
    config: STORED,
    right: true,
    unknown: true,
  }),
  // The keys of LMCache's chunks contain the request's own tag or salt, so no other request's
  // chunks are found.
  ...single.flatMap((ask) =>
    (['lmcache', 'lmcache_mp'] as const).map((store) =>
      caseOf(store, { ask, engine: inStore(store, TOLD), config: STORED, right: true }),
    ),
  ),
  caseOf('lmcache, nothing is told', {
    ask: COMPLETION,
    engine: inStore('lmcache'),
    config: STORED,
    right: false,
  }),
  // Without a salt, the chunks of the earlier requests are found.
  ...single.flatMap((ask) =>
    (['example', 'lmcache', 'lmcache_mp'] as const).map((store) =>
      caseOf(`${store}, unsalted`, {
        ask,
        engine: inStore(store, TOLD),
        config: { ...STORED, ...SHARED },
        right: false,
      }),
    ),
  ),
  ...(['example', 'lmcache', 'lmcache_mp'] as const).map((store) =>
    caseOf(`${store}, unsalted, another prompt than before`, {
      ask: COMPLETION,
      engine: inStore(store, TOLD),
      config: { ...STORED, ...SHARED },
      ...{ right: true, unknown: true },
    }),
  ),
  // A sample finds the chunks of the sample before it, and nothing distinguishes these from chunks
  // of an earlier request.
  ...[SAMPLES, PROMPTS].map((ask) =>
    caseOf('lmcache', { ask, engine: inStore('lmcache', TOLD), config: STORED, right: false }),
  ),
];

const HOST = '127.0.0.1';
/** A port of a bootstrap server that no exchange of another suite on the same host asks. */
const PORT = 26_999;

/** Decode has pulled the KV of the prompts over Mooncake transfers before. */
const transferred: Case[] = HANDSHAKES.flatMap((handshake) =>
  ASKS.filter(({ name }) => /^(a completion|a stream of generate|two samples)$/.test(name)).map((ask) =>
    caseOf(`after Mooncake's transfers, ${handshake}`, {
      ask,
      engine: { connector: 'mooncake', bootstrap: { host: HOST, port: PORT }, ...TOLD },
      config: {
        ...{ connector: 'mooncake', handshake },
        prefill: { bootstrap_host: HOST, bootstrap_port: PORT, retries: 0 },
      },
      right: true,
    }),
  ),
);

export const reused: Suite = {
  name: 'what decode serves alone after P/D',
  cases: [...ownCache, ...others, ...saltless, ...stores, ...transferred],
};
