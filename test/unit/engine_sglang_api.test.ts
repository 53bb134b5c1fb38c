// The API of the simulated SGLang: the requests that it accepts, and its replies and streams.

import { describe, expect, test } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { memberText } from '../engine/json.ts';
import { eventsOf, ok, post, text, type Json } from './exchanges.ts';
import { BODIES, CHAT, COMPLETIONS, NATIVE, ROW, arraysOf, int32 } from './sglang.ts';

describe('replies', () => {
  const routed = (path: string, more: Json = {}) => ({
    ...BODIES[path],
    return_routed_experts: true,
    ...more,
  });
  const oracle = (options: Partial<EngineOptions> = {}) =>
    createEngine({ format: 'D', ...options, role: 'oracle' });

  test.each([NATIVE, COMPLETIONS, CHAT])('carry rows on %s only when asked', (path) => {
    expect(text(oracle()(post(path, BODIES[path])))).not.toContain('routed_experts');
    expect(text(oracle({ capture: false })(post(path, routed(path))))).not.toContain('routed_experts');
    expect(text(oracle()(post(path, routed(path))))).toContain('"routed_experts":"');
  });

  test.each([NATIVE, COMPLETIONS, CHAT])('carry rows on %s from routed_experts_start_len on', (path) => {
    const whole = arraysOf(ok(oracle()(post(path, routed(path)))))[0]!;
    const tail = arraysOf(ok(oracle()(post(path, routed(path, { routed_experts_start_len: 3 })))))[0]!;
    expect(tail.equals(whole.subarray(3 * ROW))).toBe(true);
    const behind = oracle()(post(path, routed(path, { routed_experts_start_len: 500 })));
    expect(behind.status).toBe(400);
  });

  test('have the keys of SGLang', () => {
    const native = ok(oracle()(post(NATIVE, routed(NATIVE))));
    expect(Object.keys(native)).toEqual(['text', 'output_ids', 'meta_info']);
    expect(native['meta_info']).toMatchObject({
      finish_reason: { type: 'length', length: 7 },
      prompt_tokens: 19,
      completion_tokens: 7,
      cached_tokens: 0,
    });
    const completions = ok(oracle()(post(COMPLETIONS, { model: 'any', ...routed(COMPLETIONS) })));
    expect(Object.keys(completions)).toEqual([
      ...['id', 'object', 'created', 'model', 'choices', 'usage', 'metadata', 'sglext'],
    ]);
    expect(completions['model']).toBe('any');
    const chat = ok(oracle()(post(CHAT, routed(CHAT, { return_meta_info: true }))));
    expect(chat['choices'][0].meta_info.routed_experts).toEqual(expect.any(String));
    expect(chat).not.toHaveProperty('sglext');
    const stopped = ok(oracle({ eosAfter: 2 })(post(NATIVE, routed(NATIVE))));
    expect(stopped['meta_info'].finish_reason).toEqual({ type: 'stop', matched: 2 });
  });

  test('have the log probability of each generated token in front of the rows', () => {
    const reply = oracle()(post(NATIVE, routed(NATIVE, { return_logprob: true })));
    const { output_ids, meta_info } = ok(reply);
    expect(meta_info.output_token_logprobs.map(([, id]: [number, number]) => id)).toEqual(output_ids);
    const [logprobs, rows] = ['"output_token_logprobs"', '"routed_experts"'].map((key) =>
      text(reply).indexOf(key),
    );
    expect(logprobs).toBeLessThan(rows!);
  });

  test('have one array for several choices beside them, one each in a list', () => {
    const openAi = ok(oracle()(post(COMPLETIONS, routed(COMPLETIONS, { n: 2 }))));
    expect(openAi['choices']).toHaveLength(2);
    const sampling_params = { max_new_tokens: 7, n: 2 };
    const list = ok(oracle()(post(NATIVE, routed(NATIVE, { sampling_params }))));
    const [first, second] = arraysOf(list);
    expect(arraysOf(openAi)[0]!.equals(first!)).toBe(true);
    expect(second!.equals(first!)).toBe(false);
    expect(new Set(list.map((item: Json) => item['meta_info'].id)).size).toBe(2);
  });

  test('mark unknown rows with -1', () => {
    const reply = ok(oracle({ unknownRows: [1] })(post(COMPLETIONS, routed(COMPLETIONS))));
    const rows = int32(arraysOf(reply)[0]!);
    expect(new Set(rows.slice(16, 32))).toEqual(new Set([-1]));
    expect(rows.slice(0, 16).every((expert) => expert >= 0)).toBe(true);
  });

  test.each([COMPLETIONS, CHAT])('stream the array in an event of its own on %s', (path) => {
    const asked = routed(path, { n: 2, stream: true, stream_options: { include_usage: true } });
    const events = eventsOf(oracle()(post(path, asked)));
    const whole = ok(oracle()(post(path, routed(path, { n: 2 }))));
    const carrying = events.filter((event) => 'sglext' in event);
    expect(carrying).toHaveLength(1);
    expect(carrying[0]).toMatchObject({ choices: [], sglext: whole['sglext'] });
    expect(events.indexOf(carrying[0]!)).toBe(events.length - 2);
    expect(events.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 14 } });
    const texts = ['', ''];
    for (const { choices } of events) {
      for (const { index, text, delta } of choices) texts[index] += text ?? delta.content;
    }
    expect(texts).toEqual(
      whole['choices'].map((choice: Json) => choice['text'] ?? choice['message'].content),
    );
  });

  test('stream on /generate what there is so far, the rows at the end', () => {
    const asked = routed(NATIVE, { sampling_params: { max_new_tokens: 5, n: 2 }, stream: true });
    const events = eventsOf(oracle()(post(NATIVE, asked)));
    expect(events).toHaveLength(10);
    const whole = ok(oracle()(post(NATIVE, { ...asked, stream: false })));
    for (const index of [0, 1]) {
      const mine = events.filter((event) => event['index'] === index);
      expect(mine.map(({ output_ids }) => output_ids.length)).toEqual([1, 2, 3, 4, 5]);
      expect(mine.slice(0, -1).every(({ meta_info }) => meta_info.finish_reason === null)).toBe(true);
      expect(mine.slice(0, -1).some(({ meta_info }) => 'routed_experts' in meta_info)).toBe(false);
      expect(mine.at(-1)!['text']).toBe(whole[index].text);
      expect(mine.at(-1)!['meta_info'].routed_experts).toBe(whole[index].meta_info.routed_experts);
    }
  });
});

describe('requests', () => {
  const status = (path: string, body: unknown) =>
    createEngine({ role: 'oracle', api: 'sglang' })(post(path, body)).status;

  test.each<[string, string, unknown]>([
    ['no prompt', NATIVE, {}],
    ['two prompts', NATIVE, { text: 'a', input_ids: [1] }],
    ['a prompt that is a number', NATIVE, { text: 7 }],
    ['no prompts', NATIVE, { text: [] }],
    ['mixed prompts', NATIVE, { text: ['a', 1] }],
    ['ids that are texts', NATIVE, { input_ids: ['a'] }],
    ['empty ids', NATIVE, { input_ids: [] }],
    ['sampling_params that are a text', NATIVE, { text: 'a', sampling_params: 'x' }],
    ['max_new_tokens 0', NATIVE, { text: 'a', sampling_params: { max_new_tokens: 0 } }],
    ['max_tokens 0', COMPLETIONS, { prompt: 'a', max_tokens: 0 }],
    ['a negative start', NATIVE, { text: 'a', routed_experts_start_len: -1 }],
    ['a model that is a number', COMPLETIONS, { prompt: 'a', model: 1 }],
    ['JSON without end', NATIVE, '{"text":'],
  ])('are refused with %s', (_name, path, body) => {
    expect(status(path, body)).toBe(400);
  });

  test('know no field of vLLM, and no endpoint', () => {
    const body = { prompt: 'a', kv_transfer_params: 'x', prompt_logprobs: 'y' };
    expect(status(COMPLETIONS, body)).toBe(200);
    expect(status('/inference/v1/generate', { token_ids: [1], sampling_params: {} })).toBe(404);
    expect(createEngine({ role: 'oracle' })(post(NATIVE, { text: 'a' })).status).toBe(404);
  });
});

describe('the text of a member', () => {
  test.each<[string, string, string | null]>([
    ['is as it was written', '{"a" : 1.50 ,"k": 9007199254740993 }', '9007199254740993'],
    ['is the last of several', '{"k":1,"k":[2, {"k":3}]}', '[2, {"k":3}]'],
    ['is of the outermost object', '{"a":{"k":1},"b":[{"k":2}]}', null],
    ['has a key that may be escaped', '{"\\u006b":4}', '4'],
    ['is not what stands in a text', '{"a":"\\",\\"k\\":5","b":6}', null],
    ['may be a text', '{"k":"a,}\\\\"}', '"a,}\\\\"'],
    ['is not of a list', '[{"k":1}]', null],
  ])('%s', (_name, source, expected) => {
    JSON.parse(source);
    expect(memberText(source, 'k')).toBe(expected);
  });
});
