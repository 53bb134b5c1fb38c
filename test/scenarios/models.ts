// Models of different kinds: with dense layers, with one expert per token, with zero experts, with
// more experts than a byte has values. The merged answer must be the oracle's in every format, and
// what broken engines return must be refused.

import { expect } from 'vitest';
import { createEngine, type EngineOptions, type Faults } from '../engine/engine.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import { Router, type MoeModel } from '../engine/router.ts';
import type { EngineReply, Result, Scenario } from '../scenario.ts';
import { type Case, type Suite } from './case.ts';
import { CACHED_TEXT, CHAT, COMPLETIONS, GENERATE, NATIVE, expectError, post } from './messages.ts';
import { meaningOf } from '../../yardstick/meaning.ts';
import { oracleOf, usedDeployment } from './used.ts';

type Json = Record<string, any>;

const HOST = '127.0.0.1';

/**
 * Bootstrap servers that no exchange of this suite, or of another suite on the same host, has asked
 * before.
 */
let lastPort = 30_000;

const MODELS: Record<string, Partial<MoeModel>> = {
  'its first layer dense': { layers: 4, topK: 4, experts: 32, dense: (layer) => layer === 0 },
  'its first three layers dense': { layers: 5, topK: 2, experts: 32, dense: (layer) => layer < 3 },
  'every second layer dense': { layers: 6, topK: 3, experts: 16, dense: (layer) => layer % 2 === 1 },
  'one expert a token': { layers: 12, topK: 1, experts: 8 },
  'one expert a token, every second layer dense': {
    ...{ layers: 12, topK: 1, experts: 8 },
    dense: (layer) => layer % 2 === 0,
  },
  'zero experts': { layers: 4, topK: 4, experts: 8, zeroExperts: 8 },
  'zero experts, its first layer dense': {
    ...{ layers: 4, topK: 4, experts: 8, zeroExperts: 8 },
    dense: (layer) => layer === 0,
  },
  'as many experts as it chooses': { layers: 3, topK: 4, experts: 4 },
  '300 experts': { layers: 3, topK: 4, experts: 300, dtype: '<i2' },
};

interface Ask {
  path: string;
  body: Json;
  engine?: Partial<EngineOptions>;
  config?: Json;
  /** The outcome in the log. Default: a successful merge under P/D. */
  logged?: RegExp;
}

const IDS = Array.from({ length: 37 }, (_, i) => 3 + ((i * 31 + (i >> 2)) % 500));
const CONTENT = 'Which of these layers have experts?';
const TAIL = {
  engine: { version: '0.32', connector: 'shared_storage' },
  config: { decode_rows: 'tail', connector: 'shared_storage' },
} as const;

const ASKS: Record<string, Ask> = {
  'a completion': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 } },
  'one token': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 1 } },
  'two samples of a chat': {
    path: CHAT,
    body: { messages: [{ role: 'user', content: CONTENT }], max_tokens: 6, n: 2, temperature: 0.8 },
  },
  'a stream of a generate': {
    path: GENERATE,
    body: { token_ids: IDS, stream: true, sampling_params: { max_tokens: 6 } },
  },
  'a tail': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 }, ...TAIL },
  'decode alone': {
    path: COMPLETIONS,
    body: { prompt: CONTENT, max_tokens: 6, echo: true },
    logged: /^local$/,
  },
  'an object': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 }, engine: { format: 'B' } },
  'prompt rows apart': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 }, engine: { format: 'C' } },
  SGLang: {
    path: NATIVE,
    body: { input_ids: IDS, return_routed_experts: true, sampling_params: { max_new_tokens: 6 } },
    engine: { connector: 'sglang' },
    config: { connector: 'sglang' },
  },
};

/** The ids as numbers, because two arrays with different dtypes may have the same content. */
function idsOf(value: unknown): unknown {
  if (typeof value === 'string') {
    const bytes = Buffer.from(value, 'base64');
    if (bytes[0] !== 0x93) return numbersOf('<i4', bytes);
    const { descr, shape, data } = decodeNpy(bytes);
    return [shape, numbersOf(descr, data)];
  }
  if (typeof value !== 'object' || value === null || !('data' in value)) return value;
  const { data, dtype, ...rest } = value as Json;
  return { ...rest, ids: numbersOf(DESCRS[dtype]!, Buffer.from(data as string, 'base64')) };
}

const DESCRS: Json = { uint8: '|u1', uint16: '<u2', int16: '<i2', int32: '<i4' };

function numbersOf(descr: string, data: Buffer): number[] {
  const size = Number(descr.slice(2));
  return Array.from({ length: data.length / size }, (_, i) =>
    descr[1] === 'u' ? data.readUIntLE(i * size, size) : data.readIntLE(i * size, size),
  );
}

const ARRAYS = new Set(['routed_experts', 'prompt_routed_experts']);

const readable = (text: string): unknown =>
  JSON.parse(JSON.stringify(meaningOf(text)), (key, value: unknown) =>
    ARRAYS.has(key) ? idsOf(value) : value,
  );

interface Exchange {
  name: string;
  ask: Ask;
  engine: Partial<EngineOptions>;
  prefillEngine?: Partial<EngineOptions>;
  decodeEngine?: Partial<EngineOptions>;
  config?: Json;
}

/** The engines of a used deployment, with the filter between them. */
function scenarioOf({
  name,
  ask,
  engine,
  prefillEngine = {},
  decodeEngine = {},
  config,
}: Exchange): Scenario {
  const request = JSON.stringify(ask.body);
  const sglang = ask.engine?.connector === 'sglang';
  const address = { host: HOST, port: sglang ? ++lastPort : 0 };
  const shared = {
    ...(sglang ? { bootstrap: address, patience: 5000 } : {}),
    ...ask.engine,
    ...engine,
  };
  const { engines } = usedDeployment(ask.path, request, shared, {
    prefill: prefillEngine,
    decode: decodeEngine,
  });
  return {
    name,
    config: {
      ...ask.config,
      ...config,
      ...(sglang ? { prefill: { bootstrap_host: HOST, bootstrap_port: address.port } } : {}),
    },
    client: post(request, { path: ask.path }),
    ...engines,
    ...(sglang ? { bootstrap: engines.prefill } : {}),
  };
}

const RANDOM = /"bootstrap_room":\d+|(?<="bootstrap_port":)\d+|(?<="id":)"[0-9a-f]+"/g;
const randomOf = (ask: Ask) => (ask.engine?.connector === 'sglang' ? { random: RANDOM } : {});

function rightly(exchange: Exchange): Case {
  const { name, ask, engine } = exchange;
  return {
    name,
    scenario: () => scenarioOf(exchange),
    ...randomOf(ask),
    cutDecidesHead: true,
    check(result: Result): void {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.logged).toMatch(ask.logged ?? /^merged; rows=\d+; choices=[12]$/);
      const right = oracleOf(ask.path, JSON.stringify(ask.body), { ...ask.engine, ...engine });
      expect(right).toContain('"routed_experts"');
      expect(readable(result.body.toString())).toEqual(readable(right));
    },
  };
}

const ofModels: Case[] = Object.entries(MODELS).flatMap(([modelName, model]) =>
  Object.entries(ASKS).flatMap(([askName, ask]) => {
    const sglang = ask.engine?.connector === 'sglang';
    // SGLang captures zero experts under their own ids, so there are more ids, and its format does
    // not tell the layers.
    const experts = model.experts! + (sglang ? (model.zeroExperts ?? 0) : 0);
    const known = { model: { layers: model.layers, top_k: model.topK, experts } };
    const engine = { model };
    const name = `${askName}, a model with ${modelName}`;
    return [
      rightly({ name, ask, engine }),
      rightly({
        name: `${name}, which is configured and checked whole`,
        ask,
        engine,
        config: { check_rows: 'all', ...known },
      }),
    ];
  }),
);

// ---- the dtype of each reply

/** A model in which hardly any id needs more than a byte. */
const NARROW: Partial<MoeModel> = { layers: 2, topK: 2, experts: 264, dtype: '<i2' };
const LENGTH = 12;

/**
 * A prompt whose rows need two bytes per id if `wide`, and whose generated rows do if
 * `generatedWide`.
 */
function promptWhere(wide: boolean, generatedWide: boolean): number[] {
  const model = { ...createEngine({ role: 'oracle', model: NARROW }).model };
  const needsTwo = (ids: ArrayLike<number>) => Array.from(ids).some((id) => id > 0xff);
  for (let seed = 0; ; seed++) {
    const prompt = Array.from({ length: LENGTH }, (_, i) => 3 + ((i * 31 + seed * 7) % 500));
    const body = JSON.stringify({ token_ids: prompt, sampling_params: { max_tokens: 4 } });
    const { choices } = JSON.parse(oracleOf(GENERATE, body, { model: NARROW })) as Json;
    const tokens = [...prompt, ...(choices[0].token_ids as number[]).slice(0, -1)];
    const { data } = new Router(model).rows(tokens);
    const at = LENGTH * model.layers * model.topK;
    if (needsTwo(data.subarray(0, at)) === wide && needsTwo(data.subarray(at)) === generatedWide)
      return prompt;
  }
}

const descrOf = (reply: EngineReply, object: boolean): string => {
  const { routed_experts } = (JSON.parse(Buffer.concat(reply.chunks).toString()) as Json)['choices'][0];
  return object ? DESCRS[routed_experts.dtype] : decodeNpy(Buffer.from(routed_experts, 'base64')).descr;
};

const ofDtypes: Case[] = (['A', 'B'] as const).flatMap((format) =>
  [
    { legs: ['<i2', '|u1'], prompt: promptWhere(true, false), tokens: 4 },
    { legs: ['|u1', '<i2'], prompt: promptWhere(false, true), tokens: 4 },
    { legs: ['<i2', '<i2'], prompt: promptWhere(true, true), tokens: 4 },
    { legs: ['|u1', '|u1'], prompt: promptWhere(false, false), tokens: 4 },
    // An array without rows has one byte per id, too.
    { legs: ['<i2', '|u1'], prompt: promptWhere(true, false), tokens: 1 },
  ].flatMap(({ legs, prompt, tokens }) =>
    ['tail', 'full'].map((form): Case => {
      const ask: Ask = {
        path: COMPLETIONS,
        body: { prompt, max_tokens: tokens },
        ...(form === 'tail' ? TAIL : {}),
      };
      const engine = { format, model: NARROW, dtypePerReply: true };
      const name = `${format}, ${form}, ${legs.join(' and ')}, ${tokens} generated`;
      const replies: EngineReply[] = [];
      const { check, ...rest } = rightly({ name, ask, engine });
      return {
        ...rest,
        scenario() {
          const scenario = scenarioOf({ name, ask, engine });
          const [prefill, decode] = [scenario.prefill, scenario.decode] as [
            (request: unknown) => Promise<EngineReply>,
            (request: unknown) => Promise<EngineReply>,
          ];
          return {
            ...scenario,
            prefill: async (received) => (replies[0] = await prefill(received)),
            decode: async (received) => (replies[1] = await decode(received)),
          };
        },
        check(result) {
          check(result);
          expect(descrOf(replies[0]!, format === 'B')).toBe(legs[0]);
          if (form === 'tail') expect(descrOf(replies[1]!, format === 'B')).toBe(legs[1]);
        },
      };
    }),
  ),
);

export const models: Suite = { name: 'models of every kind', cases: [...ofModels, ...ofDtypes] };

// ---- engines that are broken

interface Broken {
  name: string;
  ask: string;
  prefill?: Partial<EngineOptions>;
  decode?: Partial<EngineOptions>;
  config?: Json;
  /**
   * The reason of the refusal; `text` is the message, which may name the row. Null means that the
   * answer is the oracle's in spite of the fault.
   */
  reason: string | null;
  text?: string;
}

const faulty = (faults: Faults) => ({ faults });
const EXPERTS = 'a row names experts that a router cannot have given';
const LP = IDS.length;

const BROKEN: Broken[] = (['a completion', 'an object', 'SGLang'] as const).flatMap((ask): Broken[] => {
  const sglang = ask === 'SGLang';
  const config = sglang ? { model: { layers: 4, top_k: 4, experts: 32 } } : {};
  // The array has no header, so only its size shows the fault.
  const ofPrefill = sglang ? 'size' : 'prompt';
  return [
    {
      name: "prefill's array is zero",
      ask,
      prefill: faulty({ zeros: 'all' }),
      reason: 'experts',
      text: `${EXPERTS} (prefill row 0, all layers)`,
    },
    {
      name: 'a row of prefill is zero',
      ask,
      prefill: faulty({ zeros: [20] }),
      reason: 'experts',
      text: `${EXPERTS} (prefill row 20, all layers)`,
    },
    {
      name: 'a generated row is zero',
      ask,
      decode: faulty({ zeros: [LP + 2] }),
      reason: 'experts',
      text: `${EXPERTS} (decode row ${LP + 2}, all layers)`,
    },
    { name: "decode's prompt rows are zero", ask, decode: faulty({ zeros: 'prompt' }), reason: null },
    {
      name: 'prefill names an expert twice',
      ask,
      config,
      prefill: faulty({ repeats: [11] }),
      reason: 'experts',
      text: `${EXPERTS} (prefill row 11, layer 3)`,
    },
    {
      name: 'decode names an expert twice',
      ask,
      config,
      decode: faulty({ repeats: [LP + 1] }),
      reason: 'experts',
      text: `${EXPERTS} (decode row ${LP + 1}, layer 3)`,
    },
    { name: 'decode has a row too many', ask, decode: faulty({ extraRows: 1 }), reason: 'rows' },
    { name: 'decode has a row too few', ask, decode: faulty({ extraRows: -1 }), reason: 'rows' },
    { name: 'prefill has a row too many', ask, prefill: faulty({ extraRows: 1 }), reason: ofPrefill },
    // One row less is what hybrid models have (hybrid.ts).
    { name: 'prefill has two rows too few', ask, prefill: faulty({ extraRows: -2 }), reason: ofPrefill },
  ];
});

const ALONE: Broken[] = [
  { name: 'a row is zero', ask: 'decode alone', decode: faulty({ zeros: [5] }), reason: 'experts' },
  { name: 'all rows are zero', ask: 'decode alone', decode: faulty({ zeros: 'all' }), reason: 'experts' },
  {
    name: 'an expert is named twice',
    ask: 'decode alone',
    decode: faulty({ repeats: [5] }),
    reason: 'experts',
  },
  { name: 'there is a row too many', ask: 'decode alone', decode: faulty({ extraRows: 1 }), reason: 'rows' },
  { name: 'there is a row too few', ask: 'decode alone', decode: faulty({ extraRows: -1 }), reason: 'rows' },
  {
    name: 'it tells of cached tokens that there are not',
    ask: 'decode alone',
    decode: { cachedTokens: { lie: 16 } },
    reason: 'cached',
    text: CACHED_TEXT,
  },
  {
    name: 'the salt is not looked at, and cached tokens are told',
    ask: 'decode alone',
    decode: { cachedTokens: {}, ignoreSalt: true },
    reason: 'cached',
    text: CACHED_TEXT,
  },
  {
    name: 'nothing is cached, and that is told',
    ask: 'decode alone',
    decode: { cachedTokens: {}, prefixCaching: false },
    config: { local_prefix_cache: 'shared' },
    reason: null,
  },
];

export const broken: Suite = {
  name: 'engines that are broken',
  cases: [...BROKEN, ...ALONE].map(
    ({ name, ask: askName, prefill = {}, decode = {}, config = {}, reason, text }) => {
      const ask = ASKS[askName]!;
      const exchange: Exchange = {
        name: `${askName}: ${name}`,
        ask,
        engine: { model: MODELS['its first layer dense']! },
        // The requests that warmed these engines met the same faults, but nothing checked them.
        prefillEngine: prefill,
        decodeEngine: decode,
        config,
      };
      const right = rightly(exchange);
      if (reason === null) return right;
      return {
        ...right,
        check(result: Result): void {
          expect(result.logged).toBe(`rejected; reason=${reason}`);
          if (text)
            return expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${text}`);
          expect(result).toMatchObject({ status: 502, complete: true });
        },
      };
    },
  ),
};
