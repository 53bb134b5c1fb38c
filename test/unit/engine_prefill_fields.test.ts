// Fields that only the engine that has forwarded the prompt can fill: prompt_logprobs and
// cached_tokens.

import { describe, expect, test } from 'vitest';
import { createEngine, type SequentialOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { loadCapture, toEngineRequest } from '../engine/replay.ts';
import { NIXL_PREFILL, eventsOf, json, ok, post, withSampling, type Json } from './exchanges.ts';

function deploy(options: Partial<SequentialOptions> = {}) {
  const fleet = new Fleet();
  return {
    prefill: createEngine({ ...options, role: 'prefill', fleet }),
    decode: createEngine({ ...options, role: 'decode', fleet }),
    oracle: createEngine({ ...options, role: 'oracle', fleet }),
  };
}

const COMPLETIONS = '/v1/completions';
const NATIVE = '/generate';

const BODIES: Record<string, Json> = {
  [COMPLETIONS]: { prompt: 'The quick brown fox', max_tokens: 4 },
  '/v1/chat/completions': { messages: [{ role: 'user', content: 'a "fox"' }], max_tokens: 4 },
  '/inference/v1/generate': { token_ids: [61, 62, 63], sampling_params: { max_tokens: 4 } },
};

describe('prompt_logprobs', () => {
  const place = (path: string, reply: Json) => (path === COMPLETIONS ? reply['choices'][0] : reply);

  test.each(Object.keys(BODIES))('of prefill are the oracle’s on %s', (path) => {
    const { prefill, decode, oracle } = deploy();
    const asked = withSampling(BODIES[path]!, { prompt_logprobs: 2 });
    const leg = { ...withSampling(asked, { max_tokens: 1 }), kv_transfer_params: NIXL_PREFILL };
    const first = ok(prefill(post(path, leg)));
    const truth = place(path, ok(oracle(post(path, asked))))['prompt_logprobs'];
    expect(truth).toHaveLength(first['usage'].prompt_tokens);
    expect(truth[0]).toBeNull();
    expect(place(path, first)['prompt_logprobs']).toEqual(truth);
    // The request to decode does not ask for prompt_logprobs: that would kill the engine.
    const { kv_transfer_params } = first;
    const second = ok(decode(post(path, { ...BODIES[path], kv_transfer_params })));
    expect(place(path, second)['prompt_logprobs']).toBeNull();
    const again = ok(prefill(post(path, leg)));
    const deadly = { ...asked, kv_transfer_params: again['kv_transfer_params'] };
    expect(decode(post(path, deadly)).status).toBe(500);
    expect(decode.dead).toBe(true);
  });

  test('are written as vLLM writes them', () => {
    const { request, response } = loadCapture('v030.nixl.x.prompt_logprobs').oracle;
    const mine = ok(createEngine({ role: 'oracle' })(toEngineRequest(request)))['choices'][0].prompt_logprobs;
    const real = JSON.parse(response.body.toString()).choices[0].prompt_logprobs;
    expect([mine[0], real[0]]).toEqual([null, null]);
    for (const entry of [...mine.slice(1), ...real.slice(1)]) {
      const values: Json[] = Object.values(entry);
      expect(values.length === 1 || values.length === 2).toBe(true);
      for (const value of values) expect(Object.keys(value)).toEqual(['logprob', 'rank', 'decoded_token']);
      expect(values.map(({ rank }) => rank)).toContain(1);
    }
  });
});

describe('cached_tokens', () => {
  const prompt = Array.from({ length: 300 }, (_, i) => 3 + (i % 400));
  const NOTHING = { cached_tokens: 0 };
  const ask = (engine: SimulatedEngine, ids: number[], more: Json = {}) =>
    json(engine(post(COMPLETIONS, { prompt: ids, max_tokens: 2, ...more })))['usage'].prompt_tokens_details;

  test.each(['prefill', 'oracle'] as const)(
    'of %s are full blocks of prompts that came before, never the last token',
    (role) => {
      const engine = createEngine({ role, cachedTokens: {}, blockSize: 128 });
      expect(ask(engine, prompt)).toEqual(NOTHING);
      expect(ask(engine, prompt)).toEqual({ cached_tokens: 256 });
      expect(ask(engine, [...prompt, ...prompt])).toEqual({ cached_tokens: 256 });
      expect(ask(engine, [...prompt, ...prompt])).toEqual({ cached_tokens: 512 });
      expect(ask(engine, prompt.slice(0, 256))).toEqual({ cached_tokens: 128 });
      expect(ask(engine, [9, ...prompt])).toEqual(NOTHING);
      engine.restart();
      expect(ask(engine, prompt)).toEqual(NOTHING);
    },
  );

  test('are told where the engine was started to', () => {
    const engine = createEngine({ role: 'oracle' });
    ask(engine, prompt);
    expect(ask(engine, prompt)).toBeNull();
    expect(ask(createEngine({ role: 'oracle', cachedTokens: {} }), prompt)).toEqual(NOTHING);
    expect(ask(createEngine({ role: 'oracle', cachedTokens: { zero: 'null' } }), prompt)).toBeNull();
    expect(ask(createEngine({ role: 'oracle', cachedTokens: { lie: 7 } }), prompt)).toEqual({
      cached_tokens: 7,
    });
  });

  test('are told in streams with the usage', () => {
    const engine = createEngine({ role: 'oracle', cachedTokens: { zero: 'null' }, blockSize: 128 });
    const asked = { prompt, max_tokens: 2, stream: true, stream_options: { include_usage: true } };
    const usage = () => eventsOf(engine(post(COMPLETIONS, asked))).at(-1)!['usage'];
    expect('prompt_tokens_details' in usage()).toBe(false);
    expect(usage().prompt_tokens_details).toEqual({ cached_tokens: 256 });
  });

  test('are those of the last prompt and its last sample, in a stream of the first', () => {
    const shifted = (by: number) => prompt.map((id) => id + by);
    const engine = createEngine({ role: 'oracle', cachedTokens: {}, blockSize: 128 });
    ask(engine, prompt);
    const body = { prompt: [prompt, shifted(1)], max_tokens: 2 };
    expect(ok(engine(post(COMPLETIONS, body)))['usage'].prompt_tokens_details).toEqual(NOTHING);
    // The blocks of one sample are in the cache when the next sample begins.
    const samples = { prompt: shifted(2), max_tokens: 2, n: 3 };
    expect(ok(engine(post(COMPLETIONS, samples)))['usage'].prompt_tokens_details).toEqual({
      cached_tokens: 256,
    });
    const stream = {
      ...samples,
      prompt: shifted(3),
      stream: true,
      stream_options: { include_usage: true },
    };
    expect(eventsOf(engine(post(COMPLETIONS, stream))).at(-1)!['usage'].prompt_tokens_details).toEqual(
      NOTHING,
    );
  });

  test('are summed over SGLang’s prompts', () => {
    const engine = createEngine({ role: 'oracle', format: 'D', cachedTokens: {} });
    ask(engine, prompt);
    const body = { prompt: [prompt, prompt.map((id) => id + 1), prompt], max_tokens: 2, n: 2 };
    expect(ok(engine(post(COMPLETIONS, body)))['usage'].prompt_tokens_details).toEqual({
      cached_tokens: 598,
    });
  });

  test.each<[NonNullable<SequentialOptions['cachedTokens']>['remote'], Json | null]>([
    ['all', { cached_tokens: 300 }],
    ['all but one', { cached_tokens: 299 }],
    [undefined, { cached_tokens: 299 }],
    ['null', null],
  ])('of decode are %s, prefill and the oracle tell the truth', (remote, expected) => {
    for (const zero of ['null', 'object'] as const) {
      const { prefill, decode, oracle } = deploy({ cachedTokens: { remote, zero }, blockSize: 128 });
      const none = zero === 'null' ? null : { cached_tokens: 0 };
      for (const truth of [none, { cached_tokens: 256 }]) {
        const leg = { max_tokens: 1, kv_transfer_params: NIXL_PREFILL };
        const first = ok(prefill(post(COMPLETIONS, { prompt, ...leg })));
        const { kv_transfer_params } = first;
        expect(ask(decode, prompt, { kv_transfer_params })).toEqual(expected);
        expect(first['usage'].prompt_tokens_details).toEqual(truth);
        expect(ask(oracle, prompt)).toEqual(truth);
      }
    }
  });

  test('are in SGLang’s meta_info token by token', () => {
    const engine = createEngine({ role: 'oracle', format: 'D', cachedTokens: {} });
    const asked = { input_ids: prompt, sampling_params: { max_new_tokens: 2 } };
    ok(engine(post(NATIVE, asked)));
    expect(ok(engine(post(NATIVE, asked)))['meta_info'].cached_tokens).toBe(299);
    expect(ask(engine, prompt)).toEqual({ cached_tokens: 299 });
  });
});
