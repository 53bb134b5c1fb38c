// Every format of the same rows: what an engine writes is compared with bytes made by hand, and
// with format A.

import { describe, expect, test } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import type { Routing } from '../engine/compute.ts';
import { Fleet } from '../engine/fleet.ts';
import { createFormat } from '../engine/formats/index.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import type { Dtype, RowData } from '../engine/router.ts';
import type { Header } from '../scenario.ts';
import { NIXL_PREFILL, eventsOf, ok, post, text, withSampling, type Json } from './exchanges.ts';

const ARRAYS = { '|u1': Uint8Array, '<u2': Uint16Array, '<i2': Int16Array, '<i4': Int32Array };
const DTYPES = { uint8: '|u1', uint16: '<u2', int16: '<i2', int32: '<i4' } as const;

/** Three rows of two layers with top_k 2: two prompt rows and one generated row. */
function routing(dtype: Dtype, more: Partial<Routing> = {}): Routing {
  const data = new ARRAYS[dtype]([1, 2, 3, 4, 5, 6, 7, 127, 9, 10, 11, 12]);
  return { rows: { data, count: 3 }, start: 0, promptTokens: 2, remote: false, ...more };
}

function encode(dtype: Dtype, options: Partial<EngineOptions>, of: Routing | null = routing(dtype)) {
  const model = { name: 'm', layers: 2, topK: 2, experts: 128, dtype, vocab: 100 };
  return createFormat(options.format!, model, { role: 'oracle', ...options }).encode(of);
}

describe('rows made by hand', () => {
  const B = { format: 'B' } as const;

  test.each<[Dtype, string, string]>([
    ['|u1', 'uint8', 'AQIDBAUGB38JCgsM'],
    ['<u2', 'uint16', 'AQACAAMABAAFAAYABwB/AAkACgALAAwA'],
    ['<i2', 'int16', 'AQACAAMABAAFAAYABwB/AAkACgALAAwA'],
    ['<i4', 'int32', 'AQAAAAIAAAADAAAABAAAAAUAAAAGAAAABwAAAH8AAAAJAAAACgAAAAsAAAAMAAAA'],
  ])('of %s are in B an object of %s', (dtype, name, data) => {
    const value = { data, shape: [3, 2, 2], start: 0, dtype: name };
    const { choice, before, after } = encode(dtype, B);
    expect(JSON.stringify(choice)).toBe(JSON.stringify({ routed_experts: value }));
    expect([before, after]).toEqual([{}, {}]);
  });

  test.each<[string, EngineOptions['object'], Json]>([
    ['from token 1 on', { start: 1 }, { data: 'BQYHfwkKCww=', shape: [2, 2, 2], start: 1, dtype: 'uint8' }],
    ['of generated tokens', { start: 'generated' }, { data: 'CQoLDA==', shape: [1, 2, 2], start: 2 }],
    ['of none', { start: 3 }, { data: '', shape: [0, 2, 2], start: 3 }],
    ['that start behind the last', { start: 9 }, { data: '', shape: [0, 2, 2], start: 3 }],
  ])('are in B those %s', (_name, object, expected) => {
    expect(encode('|u1', { ...B, object }).choice['routed_experts']).toMatchObject(expected);
  });

  test('are in B counted from the first token, wherever they start', () => {
    const tail = routing('|u1', { rows: { data: new Uint8Array(8).fill(1), count: 2 }, start: 1 });
    expect(encode('|u1', { ...B, object: { start: 2 } }, tail).choice['routed_experts']).toMatchObject({
      data: 'AQEBAQ==',
      shape: [1, 2, 2],
      start: 2,
    });
    expect(encode('|u1', B, tail).choice['routed_experts']).toMatchObject({ shape: [2, 2, 2], start: 1 });
  });

  test('have in B keys in any order, uint8 without dtype', () => {
    const object = { keys: ['start', 'data', 'shape'] } as const;
    const value = encode('|u1', { ...B, object }).choice['routed_experts'];
    expect(JSON.stringify(value)).toBe('{"start":0,"data":"AQIDBAUGB38JCgsM","shape":[3,2,2]}');
    expect(() => encode('<u2', { ...B, object })).toThrow(RangeError);
  });

  const PROMPT = [
    [
      [1, 2],
      [3, 4],
    ],
    [
      [5, 6],
      [7, 127],
    ],
  ];
  const GENERATED = [
    [
      [9, 10],
      [11, 12],
    ],
  ];

  test('are in C lists, those of the prompt in front of the choices', () => {
    const { choice, before, after } = encode('|u1', { format: 'C' });
    expect([choice, before, after]).toEqual([
      { routed_experts: GENERATED },
      { prompt_routed_experts: PROMPT },
      {},
    ]);
    expect(encode('|u1', { format: 'C', split: { place: 'choice' } })).toMatchObject({
      choice: { prompt_routed_experts: PROMPT, routed_experts: GENERATED },
      before: {},
    });
  });

  test.each<[Dtype, string, string, string]>([
    ['|u1', 'uint8', 'AQIDBAUGB38=', 'CQoLDA=='],
    ['<i2', 'int16', 'AQACAAMABAAFAAYABwB/AA==', 'CQAKAAsADAA='],
  ])('of %s are in C objects of %s', (dtype, name, prompt, generated) => {
    const { choice, before } = encode(dtype, { format: 'C', split: { encoding: 'base64' } });
    expect(JSON.stringify([before, choice])).toBe(
      JSON.stringify([
        {
          prompt_routed_experts: { encoding: 'base64', dtype: name, shape: [2, 2, 2], data: prompt },
        },
        { routed_experts: { encoding: 'base64', dtype: name, shape: [1, 2, 2], data: generated } },
      ]),
    );
  });

  test('are in C split behind the prompt, wherever they start', () => {
    const tail = (start: number, count: number) =>
      routing('|u1', { rows: { data: new Uint8Array(4 * count).fill(start), count }, start });
    const row = (value: number) => [Array(2).fill(value), Array(2).fill(value)];
    expect(encode('|u1', { format: 'C' }, tail(1, 2))).toMatchObject({
      before: { prompt_routed_experts: [row(1)] },
      choice: { routed_experts: [row(1)] },
    });
    expect(encode('|u1', { format: 'C' }, tail(2, 1))).toMatchObject({
      before: { prompt_routed_experts: [] },
      choice: { routed_experts: [row(2)] },
    });
  });

  test('are in C empty where one token was generated', () => {
    const one = routing('|u1', { promptTokens: 3 });
    expect(encode('|u1', { format: 'C' }, one).choice).toEqual({ routed_experts: [] });
    const split = { encoding: 'base64' } as const;
    expect(encode('|u1', { format: 'C', split }, one).choice['routed_experts']).toMatchObject({
      shape: [0, 2, 2],
      data: '',
    });
  });

  test.each<['invalid' | 'null' | 'missing', Json]>([
    ['invalid', { prompt_routed_experts: PROMPT }],
    ['null', { prompt_routed_experts: null }],
    ['missing', {}],
  ])('of a remote prompt are in C %s', (remotePrompt, expected) => {
    const remote = routing('|u1', { remote: true });
    expect(encode('|u1', { format: 'C', split: { remotePrompt } }, remote).before).toEqual(expected);
    const place = 'choice';
    expect(encode('|u1', { format: 'C', split: { remotePrompt, place } }, remote).choice).toEqual({
      ...expected,
      routed_experts: GENERATED,
    });
    expect(encode('|u1', { format: 'C', split: { remotePrompt } }).before).toEqual({
      prompt_routed_experts: PROMPT,
    });
  });

  test('are in D raw, beside the choices and in meta_info', () => {
    const members = { routed_experts: 'AQAAAAIAAAADAAAABAAAAAUAAAAGAAAABwAAAH8AAAAJAAAACgAAAAsAAAAMAAAA' };
    expect(encode('<i4', { format: 'D' })).toEqual({
      choice: {},
      before: {},
      after: { sglext: members },
      meta: members,
    });
  });

  test('are null where nothing was captured; D says nothing', () => {
    const nothing = { routed_experts: null };
    for (const format of ['A', 'B', 'C'] as const)
      expect(encode('|u1', { format }, null).choice).toEqual(nothing);
    expect(encode('|u1', { format: 'C' }, null).before).toEqual({ prompt_routed_experts: null });
    expect(encode('<i4', { format: 'D' }, null)).toEqual({ choice: {}, before: {}, after: {}, meta: {} });
  });
});

const NATIVE = '/generate';
const COMPLETIONS = '/v1/completions';
const CHAT = '/v1/chat/completions';
const GENERATE = '/inference/v1/generate';
const VLLM = [COMPLETIONS, CHAT, GENERATE];
const SGLANG = [NATIVE, COMPLETIONS, CHAT];

/**
 * A request for `tokens` tokens with their routing. The prompt is the same on every endpoint except
 * chat.
 */
function bodyOf(path: string, tokens: number, more: Json = {}): Json {
  const prompt = [61, 62, 63, 64, 65];
  const shared = { return_routed_experts: true, ...more };
  if (path === GENERATE) return { token_ids: prompt, sampling_params: { max_tokens: tokens }, ...shared };
  if (path === NATIVE) return { input_ids: prompt, sampling_params: { max_new_tokens: tokens }, ...shared };
  if (path === COMPLETIONS) return { prompt, max_tokens: tokens, ...shared };
  return { messages: [{ role: 'user', content: 'a "fox"' }], max_tokens: tokens, ...shared };
}

/** The expert ids of all rows, in whichever format these are. */
function expertsOf(value: unknown): number[] {
  if (Array.isArray(value)) return value.flat(2) as number[];
  if (typeof value === 'object' && value !== null) {
    const { data, dtype = 'uint8', shape } = value as Json;
    return numbers(Buffer.from(data, 'base64'), DTYPES[dtype as 'uint8'], shape);
  }
  const raw = Buffer.from(value as string, 'base64');
  if (raw.subarray(1, 6).toString() !== 'NUMPY') return numbers(raw, '<i4');
  const { data, descr, shape } = decodeNpy(raw);
  return numbers(data, descr as Dtype, shape);
}

function numbers(raw: Buffer, dtype: Dtype, shape?: number[]): number[] {
  const copy = new Uint8Array(raw).buffer;
  const all: RowData = new ARRAYS[dtype](copy);
  if (shape) expect(all.length).toBe(shape.reduce((a, b) => a * b));
  return [...all];
}

/**
 * The prompt rows and the generated rows of a choice, where its format separates them; otherwise
 * all rows are in the second list.
 */
function partsOf(reply: Json, choice: Json | null): [prompt: number[] | null, rest: number[]] {
  const meta = reply['meta_info'] ?? {};
  const prompt = choice?.['prompt_routed_experts'] ?? reply['prompt_routed_experts'];
  const array = choice?.['routed_experts'] ?? reply['sglext']?.routed_experts ?? meta.routed_experts;
  return [prompt ? expertsOf(prompt) : null, expertsOf(array)];
}

const FORMATS: [string, Partial<EngineOptions>][] = [
  ['B', { format: 'B' }],
  ['C nested', { format: 'C' }],
  ['C base64', { format: 'C', split: { encoding: 'base64' } }],
  ['C in choices', { format: 'C', split: { place: 'choice' } }],
  ['D', { format: 'D' }],
];

describe('an oracle', () => {
  test.each(FORMATS)('returns in %s the rows that A has', (_name, options) => {
    for (const dtype of ['|u1', '<u2', '<i2', '<i4'] as const) {
      for (const path of options.format === 'D' ? SGLANG : VLLM) {
        const model = { dtype };
        // SGLang's own endpoint gets the same prompt as vLLM's.
        const peer = path === NATIVE ? GENERATE : path;
        const reply = ok(createEngine({ model, ...options, role: 'oracle' })(post(path, bodyOf(path, 4))));
        const truth = ok(createEngine({ role: 'oracle', model })(post(peer, bodyOf(peer, 4))));
        const [prompt, rest] = partsOf(reply, reply['choices']?.[0] ?? null);
        expect([...(prompt ?? []), ...rest]).toEqual(expertsOf(truth['choices'][0].routed_experts));
      }
    }
  });

  test('writes every format on the API of another', () => {
    const forms: [Partial<EngineOptions>, string, (reply: Json) => unknown][] = [
      [{ api: 'sglang', format: 'A' }, NATIVE, (r) => r['meta_info'].routed_experts],
      [{ api: 'sglang', format: 'B' }, CHAT, (r) => r['choices'][0].routed_experts],
      [{ api: 'sglang', format: 'C' }, NATIVE, (r) => r['meta_info'].prompt_routed_experts],
      [{ api: 'vllm', format: 'D' }, GENERATE, (r) => r['sglext'].routed_experts],
    ];
    for (const [options, path, read] of forms) {
      const reply = ok(createEngine({ ...options, role: 'oracle' })(post(path, bodyOf(path, 4))));
      expect(expertsOf(read(reply)).length).toBeGreaterThan(0);
    }
  });

  test('honours routed_experts_prompt_start in B', () => {
    const engine = createEngine({ role: 'oracle', version: '0.32', format: 'B' });
    const body = bodyOf(COMPLETIONS, 4, { routed_experts_prompt_start: 5 });
    const value = ok(engine(post(COMPLETIONS, body)))['choices'][0].routed_experts;
    expect(value).toMatchObject({ start: 5, shape: [3, 4, 4] });
    expect(expertsOf(value)).toHaveLength(3 * 16);
  });

  test('is 0.21 in C, its prompt rows between created and model', () => {
    const reply = ok(createEngine({ role: 'oracle', format: 'C' })(post(CHAT, bodyOf(CHAT, 4))));
    expect(Object.keys(reply).slice(0, 5)).toEqual([
      ...['id', 'object', 'created', 'prompt_routed_experts', 'model'],
    ]);
    expect(reply['system_fingerprint']).toMatch(/^vllm-0\.21\.0-/);
    expect('metrics' in reply || 'ec_transfer_params' in reply).toBe(false);
  });
});

const ID: Header[] = [['x-request-id', 'r']];

/** The replies of both legs over nixl, and of one engine that does both. */
function legs(path: string, options: Partial<EngineOptions>, asked: Json): [Json, Json, Json] {
  const shared = { promptRows: 'stale', fleet: new Fleet(), ...options, connector: 'nixl' } as const;
  const prefill = createEngine({ ...shared, role: 'prefill' });
  const decode = createEngine({ ...shared, role: 'decode' });
  const first = { ...withSampling(asked, { max_tokens: 1, n: 1 }), kv_transfer_params: NIXL_PREFILL };
  const one = ok(prefill(post(path, first, ID)));
  const two = ok(decode(post(path, { ...asked, kv_transfer_params: one['kv_transfer_params'] }, ID)));
  return [one, two, ok(createEngine({ ...shared, role: 'oracle' })(post(path, asked)))];
}

describe('prefill and decode', () => {
  test.each(FORMATS.filter(([name]) => name !== 'D'))('merge in %s to the oracle', (_name, options) => {
    for (const path of VLLM) {
      for (const tokens of [1, 4]) {
        const [prefill, decode, oracle] = legs(path, options, bodyOf(path, tokens));
        const [ours, mine, truth] = [prefill, decode, oracle].map((reply) =>
          partsOf(reply, reply['choices'][0]),
        );
        const whole = [...(truth![0] ?? []), ...truth![1]];
        if (truth![0]) {
          expect(ours![1]).toEqual([]);
          expect([...ours![0]!, ...mine![1]]).toEqual(whole);
          expect(mine![0]).not.toEqual(truth![0]);
          expect(mine![0]).toHaveLength(truth![0].length);
        } else {
          expect([...ours![1], ...mine![1].slice(ours![1].length)]).toEqual(whole);
        }
      }
    }
  });

  test.each(['null', 'missing'] as const)('in C decode says %s of the prompt', (remotePrompt) => {
    const [prefill, decode] = legs(CHAT, { format: 'C', split: { remotePrompt } }, bodyOf(CHAT, 4));
    expect(prefill['prompt_routed_experts']).not.toBeNull();
    if (remotePrompt === 'null') expect(decode['prompt_routed_experts']).toBeNull();
    else expect('prompt_routed_experts' in decode).toBe(false);
  });
});

describe('a stream', () => {
  const everywhere: [string, Partial<EngineOptions>, string[]][] = [
    ['A', { format: 'A' }, VLLM],
    ...FORMATS.map(([name, options]): [string, Partial<EngineOptions>, string[]] => [
      name,
      options,
      options.format === 'D' ? SGLANG : VLLM,
    ]),
    ['D of vLLM', { format: 'D', api: 'vllm' }, VLLM],
    ['B of SGLang', { format: 'B', api: 'sglang' }, SGLANG],
  ];

  test.each(everywhere)('carries %s on the last event of each choice', (_name, options, paths) => {
    for (const path of paths) {
      const engine = createEngine({ streamArrays: true, ...options, role: 'oracle' });
      const asked = withSampling(bodyOf(path, 4), { n: 2 });
      const events = eventsOf(engine(post(path, { ...asked, stream: true })));
      const whole = ok(engine(post(path, asked)));
      const carrying = events.filter((event) => carries(event));
      expect(carrying).toHaveLength(2);
      carrying.forEach((event, i) => {
        const [choice] = event['choices'] ?? [];
        expect(choice?.finish_reason ?? event['meta_info'].finish_reason.type).toBe('length');
        // Rows that a whole reply has beside its choices are those of the first choice.
        const beside = 'sglext' in whole || 'prompt_routed_experts' in whole;
        const item = Array.isArray(whole) ? whole[i] : whole;
        const parts = partsOf(event, choice ?? null);
        const expected = partsOf(item, item['choices']?.[i] ?? null);
        if (!beside || i === 0) expect(parts).toEqual(expected);
        expect(parts[1].length).toBeGreaterThan(0);
      });
    }
  });

  test.each(['A', 'B', 'C'] as const)('of completions and chat carries no %s of itself', (format) => {
    for (const path of [COMPLETIONS, CHAT]) {
      const engine = createEngine({ role: 'oracle', format });
      expect(text(engine(post(path, bodyOf(path, 4, { stream: true }))))).not.toContain('routed_experts');
    }
  });

  test('of generate has null before the last event', () => {
    for (const format of ['A', 'B', 'C'] as const) {
      const engine = createEngine({ role: 'oracle', format });
      const events = eventsOf(engine(post(GENERATE, bodyOf(GENERATE, 4, { stream: true }))));
      const values = events.map(({ choices }) => choices[0].routed_experts);
      expect(values.slice(0, -1)).toEqual([null, null, null]);
      expect(values.at(-1)).not.toBeNull();
    }
  });
});

/** Whether an event has rows. */
function carries(event: Json): boolean {
  const choice = event['choices']?.[0] ?? {};
  return [choice.routed_experts, event['sglext'], event['meta_info']?.routed_experts].some(
    (value) => value !== undefined && value !== null,
  );
}
