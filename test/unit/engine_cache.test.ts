// What an engine has served before shows in what it returns: the rows of slots that were not
// written for the present request.

import { describe, expect, test } from 'vitest';
import { createEngine, type EngineOptions, type SequentialOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { KvPool } from '../engine/kv_pool.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import { BlockHashes } from '../engine/prefix_cache.ts';
import { Router, derive, type MoeModel } from '../engine/router.ts';
import type { EngineReply } from '../scenario.ts';
import { NIXL_PREFILL, eventsOf, ok, post, withSampling, type Json } from './exchanges.ts';

const COMPLETIONS = '/v1/completions';
const CHAT = '/v1/chat/completions';
const GENERATE = '/inference/v1/generate';
const MODEL: MoeModel = { name: 'tiny', layers: 3, topK: 2, experts: 200, dtype: '|u1', vocab: 1000 };
const ROW = 6;
const PROMPT = Array.from({ length: 50 }, (_, i) => 3 + ((i * 13) % 400));
const OTHER = PROMPT.map((id) => id + 1);

const BODIES: Record<string, Json> = {
  [COMPLETIONS]: { prompt: PROMPT, max_tokens: 4 },
  [CHAT]: { messages: [{ role: 'user', content: 'The quick brown fox jumps over it' }], max_tokens: 4 },
  [GENERATE]: { token_ids: PROMPT, sampling_params: { max_tokens: 4 } },
};

function deploy(options: Partial<SequentialOptions> = {}) {
  const shared = { fleet: new Fleet(), model: MODEL, ...options };
  return {
    prefill: createEngine({ ...shared, role: 'prefill' }),
    decode: createEngine({ ...shared, role: 'decode' }),
    oracle: () => createEngine({ ...shared, fleet: new Fleet(), role: 'oracle' }),
  };
}

type Deployment = ReturnType<typeof deploy>;

function disaggregate({ prefill, decode }: Deployment, path: string, body: Json, nixl = true): Json {
  const leg = withSampling(body, { max_tokens: 1 });
  const first = ok(prefill(post(path, nixl ? { ...leg, kv_transfer_params: NIXL_PREFILL } : leg)));
  const { kv_transfer_params } = first;
  return ok(decode(post(path, nixl ? { ...body, kv_transfer_params } : body)));
}

const rowsIn = (choice: Json): Buffer => decodeNpy(Buffer.from(choice['routed_experts'], 'base64')).data;
const rowsOf = (reply: Json): Buffer => rowsIn(reply['choices'][0]);

/** Which rows differ, and which of them are zeros. */
function wrong(mine: Buffer, truth: Buffer) {
  expect(mine.length).toBe(truth.length);
  const rows = Array.from({ length: truth.length / ROW }, (_, i) => i);
  const at = (data: Buffer, i: number) => data.subarray(i * ROW, (i + 1) * ROW);
  const differ = rows.filter((i) => !at(mine, i).equals(at(truth, i)));
  return { differ, zeros: differ.filter((i) => at(mine, i).every((id) => id === 0)) };
}

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

describe('decode alone, after the same prompt was under P/D', () => {
  test.each(Object.keys(BODIES))('has on %s the rows of the slots that it pulled into', (path) => {
    const body = BODIES[path]!;
    for (const salt of [undefined, 'mine']) {
      const deployment = deploy();
      disaggregate(deployment, path, body);
      const truth = ok(deployment.oracle()(post(path, body)));
      const alone = ok(deployment.decode(post(path, { ...body, cache_salt: salt })));
      const full = Math.floor((alone['usage'].prompt_tokens - 1) / 16) * 16;
      expect(full).toBeGreaterThan(16);
      const { differ, zeros } = wrong(rowsOf(alone), rowsOf(truth));
      expect(differ).toEqual(salt ? [] : range(0, full));
      expect(zeros).toEqual(differ);
      expect({ ...alone['choices'][0], routed_experts: 0 }).toEqual({
        ...truth['choices'][0],
        routed_experts: 0,
      });
    }
  });

  test('has rows of an earlier request where its blocks were used before', () => {
    // The pool has four blocks, so the second prompt's KV is pulled into the blocks of the first.
    const deployment = deploy({ kvBlocks: 4 });
    const { decode } = deployment;
    const before = rowsOf(ok(decode(post(COMPLETIONS, { prompt: OTHER, max_tokens: 15 }))));
    disaggregate(deployment, COMPLETIONS, BODIES[COMPLETIONS]!);
    const alone = rowsOf(ok(decode(post(COMPLETIONS, BODIES[COMPLETIONS]))));
    const { differ, zeros } = wrong(
      alone,
      rowsOf(ok(deployment.oracle()(post(COMPLETIONS, BODIES[COMPLETIONS])))),
    );
    expect(differ).toEqual(range(0, 48));
    expect(zeros).toEqual([]);
    // The pool hands out first the blocks that were released last.
    expect(alone.subarray(0, 16 * ROW).equals(before.subarray(48 * ROW, 64 * ROW))).toBe(true);
    expect(alone.subarray(16 * ROW, 32 * ROW).equals(before.subarray(32 * ROW, 48 * ROW))).toBe(true);
  });

  test('has them for what follows on it, and for its first blocks alone', () => {
    const deployment = deploy();
    const turn = disaggregate(deployment, GENERATE, BODIES[GENERATE]!);
    const next = [...PROMPT, ...turn['choices'][0].token_ids, ...OTHER];
    for (const [ids, hit] of [
      [next, 48],
      [PROMPT.slice(0, 33), 32],
      [PROMPT.slice(0, 32), 16],
      [[...PROMPT.slice(0, 20), ...OTHER], 16],
      [[9, ...PROMPT], 0],
    ] as [number[], number][]) {
      const body = { token_ids: ids, sampling_params: { max_tokens: 2 } };
      const alone = rowsOf(ok(deployment.decode(post(GENERATE, body))));
      expect(wrong(alone, rowsOf(ok(deployment.oracle()(post(GENERATE, body))))).differ).toEqual(
        range(0, hit),
      );
    }
  });

  test('has them in every choice and every prompt, in streams, and from a start on', () => {
    const deployment = deploy();
    const body = BODIES[GENERATE]!;
    for (const prompt of [PROMPT, OTHER]) disaggregate(deployment, COMPLETIONS, { prompt, max_tokens: 2 });
    const count = (path: string, asked: Json) => {
      const [mine, truth] = [deployment.decode, deployment.oracle()].map((engine) => {
        const reply = engine(post(path, asked));
        const choices = asked['stream']
          ? eventsOf(reply)
              .flatMap(({ choices }) => choices)
              .filter((choice) => choice.routed_experts)
          : ok(reply)['choices'];
        return choices.map(rowsIn) as Buffer[];
      });
      return mine!.map((rows, i) => wrong(rows, truth![i]!).differ.length);
    };
    expect(count(GENERATE, withSampling(body, { n: 2 }))).toEqual([48, 48]);
    expect(count(COMPLETIONS, { prompt: [PROMPT, OTHER], max_tokens: 2 })).toEqual([48, 48]);
    expect(count(GENERATE, { ...body, stream: true })).toEqual([48]);
    expect(count(GENERATE, withSampling(body, { routed_experts_prompt_start: 40 }))).toEqual([8]);
    const salted = { cache_salt: 'x' };
    expect(count(GENERATE, { ...withSampling(body, { n: 2 }), ...salted })).toEqual([0, 0]);
    expect(count(COMPLETIONS, { prompt: [PROMPT, OTHER], max_tokens: 2, cache_salt: 'y' })).toEqual([0, 0]);
  });

  test('forwards everything where prompt_logprobs are asked for, where nothing is cached, and once it has forgotten', () => {
    const body = BODIES[COMPLETIONS]!;
    const differ = (options: Partial<SequentialOptions>, more: Json, restart = false) => {
      const deployment = deploy(options);
      disaggregate(deployment, COMPLETIONS, body);
      if (restart) deployment.decode.restart();
      const alone = rowsOf(ok(deployment.decode(post(COMPLETIONS, { ...body, ...more }))));
      return wrong(alone, rowsOf(ok(deployment.oracle()(post(COMPLETIONS, body))))).differ.length;
    };
    expect(differ({}, { prompt_logprobs: 0 })).toBe(0);
    expect(differ({ prefixCaching: false }, {})).toBe(0);
    expect(differ({}, {}, true)).toBe(0);
    expect(differ({ ignoreSalt: true }, { cache_salt: 'x' })).toBe(48);
  });

  test('kills 0.32, which has no rows of what it pulled, unless it is salted', () => {
    for (const salt of [undefined, 'x']) {
      const deployment = deploy({ version: '0.32' });
      const leg = { ...BODIES[COMPLETIONS], routed_experts_prompt_start: PROMPT.length };
      disaggregate(deployment, COMPLETIONS, leg);
      const { status } = deployment.decode(post(COMPLETIONS, { ...BODIES[COMPLETIONS], cache_salt: salt }));
      expect(status).toBe(salt ? 200 : 500);
      expect(deployment.decode.dead).toBe(!salt);
    }
  });

  test('is right once its own block has taken the place of one that was pulled', () => {
    const deployment = deploy();
    const body = BODIES[COMPLETIONS]!;
    disaggregate(deployment, COMPLETIONS, body);
    const truth = rowsOf(ok(deployment.oracle()(post(COMPLETIONS, body))));
    const twice = [1, 2].map(() =>
      rowsOf(ok(deployment.decode(post(COMPLETIONS, { ...body, cache_salt: 'a' })))),
    );
    for (const rows of twice) expect(rows.equals(truth)).toBe(true);
  });
});

describe('cache_salt', () => {
  test.each<[unknown, number]>([
    [null, 200],
    ['x'.repeat(128), 200],
    ['', 400],
    ['x'.repeat(129), 400],
    ['a@b', 400],
    ['a/b', 400],
    ['a\\b', 400],
    ['a\0b', 400],
    [7, 400],
  ])('%j has the status %i', (cache_salt, status) => {
    for (const [path, body] of Object.entries(BODIES)) {
      expect(deploy().decode(post(path, { ...body, cache_salt })).status).toBe(status);
    }
  });

  test('divides what is cached', () => {
    const engine = createEngine({ role: 'oracle', cachedTokens: {} });
    const cached = (cache_salt?: string) =>
      ok(engine(post(COMPLETIONS, { ...BODIES[COMPLETIONS], cache_salt })))['usage'].prompt_tokens_details
        .cached_tokens;
    expect([cached('a'), cached('b'), cached(), cached('a'), cached()]).toEqual([0, 0, 0, 48, 48]);
  });
});

describe('SGLang’s radix tree', () => {
  const ask = (
    engine: ReturnType<typeof createEngine>,
    input_ids: number[] | number[][],
    more: Json = {},
  ) => {
    const reply = ok(
      engine(
        post('/generate', { input_ids, sampling_params: { max_new_tokens: 2 }, ...more }),
      ) as EngineReply,
    );
    const replies: Json[] = Array.isArray(reply) ? reply : [reply];
    return replies.map(({ meta_info }) => meta_info.cached_tokens as number);
  };
  const engine = () => createEngine({ role: 'oracle', format: 'D', model: MODEL });

  test('finds single tokens, but for the last one', () => {
    const of = engine();
    expect(ask(of, PROMPT)).toEqual([0]);
    expect(ask(of, PROMPT)).toEqual([49]);
    expect(ask(of, [...PROMPT.slice(0, 7), ...OTHER])).toEqual([7]);
    expect(ask(of, [9, ...PROMPT])).toEqual([0]);
  });

  test('is divided by extra_key, a text or one for each prompt', () => {
    const of = engine();
    expect(ask(of, PROMPT, { extra_key: 'a' })).toEqual([0]);
    expect(ask(of, PROMPT)).toEqual([0]);
    expect(ask(of, PROMPT, { extra_key: '' })).toEqual([49]);
    expect(ask(of, PROMPT, { extra_key: 'b' })).toEqual([0]);
    expect(ask(of, [PROMPT, PROMPT, PROMPT], { extra_key: ['c', 'a', 'b'] })).toEqual([0, 49, 49]);
  });

  test('is divided by cache_salt on the OpenAI endpoints only', () => {
    const of = engine();
    expect(ask(of, PROMPT)).toEqual([0]);
    expect(ask(of, PROMPT, { cache_salt: 'a' })).toEqual([49]);
    const salted = { prompt: PROMPT, max_tokens: 1, cache_salt: 'a' };
    const cachedOf = (reply: Json): unknown => reply['usage'].prompt_tokens_details?.cached_tokens ?? 0;
    expect(cachedOf(ok(of(post(COMPLETIONS, salted)) as EngineReply))).toBe(0);
    expect(cachedOf(ok(of(post(COMPLETIONS, { ...salted, cache_salt: null })) as EngineReply))).toBe(0);
  });
});

describe('a store', () => {
  const stored = (options: Partial<EngineOptions>, more: Json, nixl = false) => {
    const deployment = deploy({
      connector: 'shared_storage',
      cachedTokens: {},
      ...options,
    } as SequentialOptions);
    const body = BODIES[COMPLETIONS]!;
    disaggregate(deployment, COMPLETIONS, body, nixl);
    // The restart empties decode's own cache.
    deployment.decode.restart();
    const alone = ok(deployment.decode(post(COMPLETIONS, { ...body, ...more })));
    const truth = rowsOf(ok(deployment.oracle()(post(COMPLETIONS, body))));
    return [wrong(rowsOf(alone), truth).differ.length, alone['usage'].prompt_tokens_details.cached_tokens];
  };
  const tag = { kv_transfer_params: { 'lmcache.tag.a': 'b' } };

  test.each<[NonNullable<EngineOptions['store']>, Json, number]>([
    ['example', {}, 48],
    ['example', { cache_salt: 'x' }, 48],
    ['example', tag, 48],
    ['lmcache', {}, 48],
    ['lmcache', { cache_salt: 'x' }, 48],
    ['lmcache', tag, 0],
    ['lmcache_mp', {}, 48],
    ['lmcache_mp', tag, 48],
    ['lmcache_mp', { cache_salt: 'x' }, 0],
  ])('of %s loads under %j %i tokens', (store, more, loaded) => {
    expect(stored({ store }, more)).toEqual([loaded, loaded]);
  });

  test('has decode’s own prompts, but for those that LMCache is told to forget', () => {
    const cachedBy = (store: 'example' | 'lmcache', params: Json | undefined) => {
      const { decode } = deploy({ connector: 'shared_storage', store, cachedTokens: {} });
      const body = { ...BODIES[COMPLETIONS], ...(params && { kv_transfer_params: params }) };
      ok(decode(post(COMPLETIONS, body)));
      decode.restart();
      return ok(decode(post(COMPLETIONS, body)))['usage'].prompt_tokens_details.cached_tokens;
    };
    expect(cachedBy('example', undefined)).toBe(48);
    expect(cachedBy('lmcache', undefined)).toBe(48);
    expect(cachedBy('lmcache', { 'lmcache.skip_save': true })).toBe(0);
  });

  test('has whole prompts alone, or the longest beginning', () => {
    const longer = [...PROMPT.slice(0, 40), ...OTHER];
    const cached = (store: 'example' | 'lmcache') => {
      const { prefill, decode } = deploy({ connector: 'shared_storage', store, cachedTokens: {} });
      ok(prefill(post(COMPLETIONS, { prompt: PROMPT, max_tokens: 1 })));
      return ok(decode(post(COMPLETIONS, { prompt: longer, max_tokens: 1 })))['usage'].prompt_tokens_details
        .cached_tokens;
    };
    expect([cached('example'), cached('lmcache')]).toEqual([0, 32]);
  });
});

describe('rows', () => {
  test.each<[string, Partial<MoeModel>]>([
    ['a dense first layer', { dense: (layer) => layer === 0 }],
    ['every second layer dense', { dense: (layer) => layer % 2 === 1 }],
    ['top 1', { topK: 1 }],
    ['zero experts', { zeroExperts: 200 }],
    ['nothing special', {}],
  ])('of a model with %s are the router’s, through whatever blocks', (_name, more) => {
    const model = { ...MODEL, ...more };
    const router = new Router(model);
    for (const blockSize of [1, 4, 16]) {
      const engine = createEngine({ role: 'oracle', model, blockSize, kvBlocks: 10 });
      for (let i = 0; i < 3; i++) {
        const body = { token_ids: PROMPT.map((id) => id + i), sampling_params: { max_tokens: 9 } };
        const [choice] = ok(engine(post(GENERATE, body)))['choices'];
        const truth = router.rows([...body.token_ids, ...choice.token_ids.slice(0, -1)]);
        expect(rowsIn(choice).equals(Buffer.from(truth.data.buffer))).toBe(true);
      }
    }
    const { data } = router.rows(PROMPT);
    const layers = range(0, model.layers).map((layer) =>
      range(0, PROMPT.length).map((row) => {
        const at = (row * model.layers + layer) * model.topK;
        return [...data.subarray(at, at + model.topK)];
      }),
    );
    layers.forEach((rows, layer) => {
      const dense = more.dense?.(layer) ?? false;
      expect(rows.every((ids) => ids.every((id) => id === 0))).toBe(dense);
      const repeats = rows.some((ids) => new Set(ids).size < ids.length);
      expect(repeats).toBe(model.topK > 1 && (dense || model.zeroExperts !== undefined));
    });
  });

  test('name zero experts by ids of their own in SGLang', () => {
    const engine = createEngine({ role: 'oracle', format: 'D', model: { experts: 8, zeroExperts: 8 } });
    const asked = { input_ids: PROMPT, return_routed_experts: true, sampling_params: { max_new_tokens: 2 } };
    const bytes = Buffer.from(ok(engine(post('/generate', asked)))['meta_info'].routed_experts, 'base64');
    const ids = range(0, bytes.length / 4).map((i) => bytes.readInt32LE(4 * i));
    expect(Math.max(...ids)).toBe(15);
    for (let i = 0; i < ids.length; i += 4) expect(new Set(ids.slice(i, i + 4)).size).toBe(4);
  });

  test('have the dtype of their largest id where the engine chooses it', () => {
    const dtypeOf = (format: 'A' | 'B', experts: number, start: number) => {
      const model = { layers: 2, topK: 2, experts, dtype: '<i4' } as const;
      const engine = createEngine({ role: 'oracle', format, model, dtypePerReply: true });
      const body = { prompt: PROMPT, max_tokens: 1, routed_experts_prompt_start: start };
      const value = ok(engine(post(COMPLETIONS, body)))['choices'][0].routed_experts;
      return typeof value === 'string' ? decodeNpy(Buffer.from(value, 'base64')).descr : value.dtype;
    };
    expect([16, 3000, 70_000].map((experts) => dtypeOf('A', experts, 0))).toEqual(['|u1', '<i2', '<i4']);
    expect([16, 3000, 70_000].map((experts) => dtypeOf('B', experts, 0))).toEqual([
      'uint8',
      'int16',
      'int32',
    ]);
    expect(dtypeOf('A', 3000, PROMPT.length)).toBe('|u1');
    expect(dtypeOf('B', 3000, PROMPT.length)).toBe('uint8');
  });

  test('are wrong as an engine is told to have them wrong', () => {
    const asked = { prompt: PROMPT, max_tokens: 4 };
    const run = (faults: EngineOptions['faults']) =>
      rowsOf(
        ok(createEngine({ role: 'oracle', model: MODEL, faults: faults ?? {} })(post(COMPLETIONS, asked))),
      );
    const truth = run({});
    expect(wrong(run({ zeros: 'all' }), truth).zeros).toEqual(range(0, 53));
    expect(wrong(run({ zeros: 'prompt' }), truth).zeros).toEqual(range(0, 50));
    expect(wrong(run({ zeros: [3, 51] }), truth).zeros).toEqual([3, 51]);
    const repeated = run({ repeats: [7] });
    expect(wrong(repeated, truth)).toEqual({ differ: [7], zeros: [] });
    expect(repeated[8 * ROW - 1]).toBe(repeated[8 * ROW - 2]);
    expect(run({ extraRows: 1 }).subarray(0, -ROW).equals(truth)).toBe(true);
    expect(run({ extraRows: 1 }).subarray(-ROW).equals(truth.subarray(-ROW))).toBe(true);
    expect(run({ extraRows: -2 }).equals(truth.subarray(0, -2 * ROW))).toBe(true);
  });
});

describe('the pool', () => {
  const pool = (capacity: number) => new KvPool(new Router(MODEL), { blockSize: 4, capacity, stale: false });
  const hashes = (tokens: number[], salt = '') => new BlockHashes(4, salt).extend(tokens).list;

  test('gives blocks that nobody has used, then those that are free longest', () => {
    const of = pool(4);
    const [a, b] = [of.allocate(2), of.allocate(2)];
    expect([a, b]).toEqual([
      [1, 2],
      [3, 4],
    ]);
    of.release(b);
    of.release(a);
    expect(of.allocate(3)).toEqual([4, 3, 2]);
    // The pool has one free block left, and makes a new one for the second.
    expect(of.allocate(2)).toEqual([1, 5]);
  });

  test('finds blocks without a gap, until they are used for something else', () => {
    const of = pool(4);
    const list = hashes(range(0, 12));
    const blocks = of.allocate(3);
    of.cache(list, blocks);
    of.release(blocks);
    expect(of.hit(list, 2)).toEqual([1, 2]);
    of.release([1, 2]);
    expect(of.hit(hashes([...range(0, 8), 9, 9, 9, 9]), 3)).toEqual([1, 2]);
    // Blocks that are in use are not handed out.
    expect(of.allocate(2)).toEqual([4, 3]);
    expect(of.hit(list, 3)).toEqual([1, 2]);
    expect(of.hit(hashes(range(0, 12), 'salt'), 3)).toEqual([]);
  });

  test('keeps what slots hold until a token is forwarded into them', () => {
    const of = pool(1);
    const [block] = of.allocate(1);
    const slot = block! * 4;
    const zero = new Uint8Array(ROW);
    expect(of.read([block!], 0, 1).data).toEqual(zero);
    of.load(slot, 77);
    expect([of.kv(slot), of.read([block!], 0, 1).data]).toEqual([77, zero]);
    expect(of.captured([block!], 0, 1)).toBe(false);
    of.forward(slot, derive(1, 1));
    const row = of.read([block!], 0, 1).data;
    expect(row).not.toEqual(zero);
    expect(of.captured([block!], 0, 1)).toBe(true);
    of.release([block!]);
    expect(of.allocate(1)).toEqual([block]);
    expect(of.read([block!], 0, 1).data).toEqual(row);
    expect(of.captured([block!], 0, 1)).toBe(false);
  });
});
