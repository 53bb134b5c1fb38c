// Compares the simulated engine with files that NumPy wrote and with traffic of real vLLM, because
// other tests rely on the engine.

import { readFileSync } from 'node:fs';
import { connect } from 'node:http2';
import * as net from 'node:net';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import {
  createEngine,
  type SequentialConnector,
  type SequentialOptions,
  type SimulatedEngine,
  type Version,
} from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { decodeNpy, encodeNpy, npyHeader } from '../../yardstick/npy.ts';
import { captureNames, loadCapture, replayEngine, toEngineRequest } from '../engine/replay.ts';
import { EMPTY_PREFIX, Router, type Dtype } from '../engine/router.ts';
import { serveBoth, serveEngine } from '../engine/server.ts';
import { Detokenizer, decode, encode } from '../engine/tokenizer.ts';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';
import { NIXL_PREFILL, json, ok, post, text, withSampling, type Json } from './exchanges.ts';

function rowsOf(choice: Json) {
  return decodeNpy(Buffer.from(choice['routed_experts'], 'base64'));
}

function rowBytes(npy: ReturnType<typeof rowsOf>): number {
  return npy.shape.slice(1).reduce((a, b) => a * b, Number(npy.descr.slice(2)));
}

interface Deployment {
  prefill: SimulatedEngine;
  decode: SimulatedEngine;
  oracle: SimulatedEngine;
}

function deploy(options: Partial<SequentialOptions> = {}): Deployment {
  const fleet = new Fleet();
  return {
    prefill: createEngine({ ...options, role: 'prefill', fleet }),
    decode: createEngine({ ...options, role: 'decode', fleet }),
    oracle: createEngine({ ...options, role: 'oracle', fleet }),
  };
}

const ENDPOINTS: Record<string, { path: string; body: Json }> = {
  completions: {
    path: '/v1/completions',
    body: { model: 'tiny', prompt: 'The quick brown fox', max_tokens: 7 },
  },
  chat: {
    path: '/v1/chat/completions',
    body: { model: 'tiny', messages: [{ role: 'user', content: 'The quick "fox"' }], max_tokens: 7 },
  },
  generate: {
    path: '/inference/v1/generate',
    body: { model: 'tiny', token_ids: [61, 62, 63, 64, 65], sampling_params: { max_tokens: 7 } },
  },
};

/** Runs both legs as a router does. */
function disaggregate(
  deployment: Deployment,
  path: string,
  body: Json,
  connector: SequentialConnector,
  tail: boolean,
) {
  const id: Header[] = [['x-request-id', 'req-1']];
  const nixl = connector === 'nixl';
  const leg = withSampling(body, { max_tokens: 1, n: 1 });
  const prefill = ok(
    deployment.prefill(post(path, nixl ? { ...leg, kv_transfer_params: NIXL_PREFILL } : leg, id)),
  );
  const promptTokens = prefill['usage'].prompt_tokens;
  let second = nixl ? { ...body, kv_transfer_params: prefill['kv_transfer_params'] } : body;
  if (tail) second = withSampling(second, { routed_experts_prompt_start: promptTokens });
  return { prefill, promptTokens, reply: deployment.decode(post(path, second, id)) };
}

describe('npy', () => {
  const golden = (name: string) => readFileSync(new URL(`../fixtures/npy/${name}`, import.meta.url));
  const arrays = { '|u1': Uint8Array, '<u2': Uint16Array, '<i2': Int16Array, '<i4': Int32Array };
  const values = (dtype: Dtype, count: number) =>
    new arrays[dtype](Array.from({ length: count }, (_, i) => (i * 7 + 3) % 251));

  test.each<[string, Dtype, number[]]>([
    ['u1-39x4x4', '|u1', [39, 4, 4]],
    ['u1-0x4x4', '|u1', [0, 4, 4]],
    ['u2-5x3x2', '<u2', [5, 3, 2]],
    ['i2-7x2x8', '<i2', [7, 2, 8]],
    ['i4-1x1x1', '<i4', [1, 1, 1]],
    ['u1-1234x1x1', '|u1', [1234, 1, 1]],
    ['u1-12', '|u1', [12]],
  ])('encodes %s to the bytes that NumPy saved', (name, dtype, shape) => {
    const data = values(
      dtype,
      shape.reduce((a, b) => a * b),
    );
    expect(encodeNpy(data, dtype, shape).equals(golden(`${name}.npy`))).toBe(true);
  });

  test.each([2, 3] as const)('encodes version %i to the bytes that NumPy wrote', (version) => {
    const file = encodeNpy(values('<u2', 30), '<u2', [5, 3, 2], { version });
    expect(file.equals(golden(`u2-5x3x2.v${version}.npy`))).toBe(true);
  });

  test('aligns headers of every length as NumPy does', () => {
    const shapes = Array.from({ length: 30 }, (_, nines) =>
      [1, 10, 100].map((last) => [3, ...Array(nines).fill(9), last]),
    );
    const headers = shapes.flat().map((shape) => npyHeader('|u1', shape));
    expect(new Set(headers.map(({ length }) => length)).size).toBeGreaterThan(1);
    expect(Buffer.concat(headers).equals(golden('headers.bin'))).toBe(true);
  });

  test('re-encodes every captured array to the captured bytes', () => {
    let seen = 0;
    for (const name of captureNames()) {
      for (const leg of ['prefill', 'decode', 'oracle'] as const) {
        for (const [, base64] of loadCapture(name)
          [leg].response.body.toString()
          .matchAll(/"routed_experts":"([^"]*)"/g)) {
          const file = Buffer.from(base64!, 'base64');
          const { data, descr, shape } = decodeNpy(file);
          expect(encodeNpy(data, descr as Dtype, shape).equals(file)).toBe(true);
          seen++;
        }
      }
    }
    expect(seen).toBeGreaterThan(30);
  });

  test('moves the data to another base64 phase by padding', () => {
    const phases = [0, 1, 2].map((padding) => npyHeader('|u1', [5, 4, 4], { padding }).length % 3);
    expect(new Set(phases).size).toBe(3);
    const { data } = decodeNpy(encodeNpy(Uint8Array.of(1, 2, 3), '|u1', [3], { padding: 1 }));
    expect([...data]).toEqual([1, 2, 3]);
  });

  test('refuses files that NumPy refuses', () => {
    const file = encodeNpy(Uint8Array.of(1, 2, 3), '|u1', [3]);
    expect(() => decodeNpy(file.subarray(0, -1))).toThrow('bytes');
    expect(() => decodeNpy(Buffer.from('PK'))).toThrow('not a .npy');
  });
});

describe('router', () => {
  test.each<[Dtype, number]>([
    ['|u1', 256],
    ['<u2', 512],
    ['<i2', 64],
    ['<i4', 70_000],
  ])('gives %s rows distinct experts of %i', (dtype, experts) => {
    const router = new Router({ name: 'm', layers: 3, topK: 8, experts, dtype, vocab: 1000 });
    const { data } = router.rows(Array.from({ length: 200 }, (_, i) => (i * i) % 90));
    for (let at = 0; at < data.length; at += 8) {
      const chosen = new Set(data.subarray(at, at + 8));
      expect(chosen.size).toBe(8);
      for (const expert of chosen) expect(expert >= 0 && expert < experts).toBe(true);
    }
    expect(new Set(data).size).toBeGreaterThan(Math.min(experts, 800) / 2);
  });

  test('routes a token by everything before it and nothing behind it', () => {
    const router = new Router({ name: 'm', layers: 4, topK: 2, experts: 64, dtype: '|u1', vocab: 1000 });
    const [a, b] = [router.rows([1, 2, 3, 4]).data, router.rows([1, 2, 9, 4, 5]).data];
    expect(a.subarray(0, 16)).toEqual(b.subarray(0, 16));
    expect(a.subarray(16, 24)).not.toEqual(b.subarray(16, 24));
    expect(a.subarray(24, 32)).not.toEqual(b.subarray(24, 32));
    expect(router.rows([1, 2], EMPTY_PREFIX).data).toEqual(a.subarray(0, 16));
    const layers = [0, 2, 4, 6].map((at) => a.subarray(at, at + 2).join());
    expect(new Set(layers).size).toBeGreaterThan(2);
  });

  test('refuses more experts than its dtype can name', () => {
    expect(() => createEngine({ role: 'oracle', model: { experts: 257 } })).toThrow(RangeError);
  });
});

describe('tokenizer', () => {
  test('decodes what it encoded', () => {
    expect(decode(encode('fox "狐" 🦊\n'))).toBe('fox "狐" 🦊\n');
  });

  test('streams the text that it decodes at once', () => {
    const ids = [...encode('a狐'), 260, ...encode('é').slice(0, 1), 261];
    const detokenizer = new Detokenizer();
    expect(ids.map((id) => detokenizer.push(id)).join('') + detokenizer.end()).toBe(decode(ids));
    expect(decode(ids)).toBe('a狐 routed_experts\ufffd"');
  });
});

const CASES = (['0.30', '0.32'] as const).flatMap((version) =>
  (['nixl', 'shared_storage'] as const).flatMap((connector) =>
    Object.keys(ENDPOINTS).flatMap((endpoint) =>
      [1, 3].flatMap((n) => [1, 7].map((maxTokens) => ({ version, connector, endpoint, n, maxTokens }))),
    ),
  ),
);

describe('prefill and decode', () => {
  test.each(CASES)(
    'merge to the oracle: $version $connector $endpoint n=$n max_tokens=$maxTokens',
    ({ version, connector, endpoint, n, maxTokens }) => {
      const { path, body } = ENDPOINTS[endpoint]!;
      for (const dtype of ['|u1', '<i4'] as const) {
        const deployment = deploy({ version, connector, promptRows: 'stale', model: { dtype } });
        const asked = withSampling(body, { n, max_tokens: maxTokens });
        const oracle = ok(deployment.oracle(post(path, asked)));
        const { prefill, promptTokens, reply } = disaggregate(
          deployment,
          path,
          asked,
          connector,
          version === '0.32',
        );
        const merged = ok(reply);
        expect(merged['choices']).toHaveLength(n);
        expect(merged['usage']).toEqual(oracle['usage']);
        expect(merged['kv_transfer_params']).toBeNull();
        const prompt = rowsOf(prefill['choices'][0]);
        expect(prompt.shape[0]).toBe(promptTokens);
        merged['choices'].forEach((choice: Json, i: number) => {
          const [mine, truth] = [rowsOf(choice), rowsOf(oracle['choices'][i])];
          const skipped = version === '0.32' ? 0 : promptTokens * rowBytes(mine);
          expect(truth.shape[0]).toBe(promptTokens + maxTokens - 1);
          expect(Buffer.concat([prompt.data, mine.data.subarray(skipped)]).equals(truth.data)).toBe(true);
          expect({ ...choice, routed_experts: 0 }).toEqual({ ...oracle['choices'][i], routed_experts: 0 });
        });
        const rows = new Set(
          merged['choices'].map((choice: Json) => choice['token_ids']?.join() ?? choice['text']),
        );
        if (endpoint === 'generate') expect(rows.size).toBe(n);
      }
    },
  );

  test.each(['zeros', 'stale'] as const)(
    'decode returns %s for prompt tokens it never forwarded',
    (promptRows) => {
      const deployment = deploy({ promptRows });
      const { path, body } = ENDPOINTS['completions']!;
      const truth = rowsOf(ok(deployment.oracle(post(path, body)))['choices'][0]);
      const { promptTokens, reply } = disaggregate(deployment, path, body, 'nixl', false);
      const mine = rowsOf(ok(reply)['choices'][0]);
      const size = rowBytes(mine);
      for (let row = 0; row < truth.shape[0]!; row++) {
        const [a, b] = [mine.data, truth.data].map((data) => data.subarray(row * size, (row + 1) * size));
        expect(a!.equals(b!), `row ${row}`).toBe(row >= promptTokens - 1);
        if (row < promptTokens - 1) expect(a!.every((expert) => expert === 0)).toBe(promptRows === 'zeros');
      }
    },
  );

  test('decode alone returns valid rows', () => {
    const deployment = deploy();
    for (const { path, body } of Object.values(ENDPOINTS)) {
      const [decode, oracle] = [deployment.decode, deployment.oracle].map((engine) =>
        ok(engine(post(path, body))),
      );
      expect(decode!['choices']).toEqual(oracle!['choices']);
    }
  });

  test('a prompt later in a batch is computed against the wrong KV', () => {
    const deployment = deploy();
    const body = { model: 'tiny', prompt: ['a fox and a dog', '0 1 2 3 4 5'], max_tokens: 5 };
    const oracle = ok(deployment.oracle(post('/v1/completions', body)));
    const { reply } = disaggregate(deployment, '/v1/completions', body, 'nixl', false);
    const decode = ok(reply);
    expect(decode['choices'][0].text).toBe(oracle['choices'][0].text);
    expect(decode['choices'][1].text).not.toBe(oracle['choices'][1].text);
    expect(decode['usage']).toEqual(oracle['usage']);
    expect(decode['choices'].map((choice: Json) => choice['index'])).toEqual([0, 1]);
  });

  test('a prompt that prefill did not store is computed by decode', () => {
    const deployment = deploy({ connector: 'shared_storage' });
    const { path, body } = ENDPOINTS['completions']!;
    deployment.prefill(post(path, { ...body, prompt: 'another', max_tokens: 1 }));
    const [decode, oracle] = [deployment.decode, deployment.oracle].map((engine) =>
      ok(engine(post(path, body))),
    );
    expect(decode!['choices']).toEqual(oracle!['choices']);
  });

  test('prefill hands out nothing when the first token ends the answer', () => {
    const deployment = deploy({ eosAfter: 1 });
    const { path, body } = ENDPOINTS['completions']!;
    const reply = ok(deployment.prefill(post(path, { ...body, kv_transfer_params: NIXL_PREFILL })));
    expect(reply['choices'][0].finish_reason).toBe('stop');
    expect(reply['choices'][0].text).toBe('');
    expect(reply['kv_transfer_params']).toBeNull();
  });

  test('prefill hands out nothing unasked', () => {
    const { path, body } = ENDPOINTS['completions']!;
    expect(ok(deploy().prefill(post(path, body)))['kv_transfer_params']).toBeNull();
  });
});

describe('the handshake', () => {
  const { path, body } = ENDPOINTS['completions']!;

  function handedOut(deployment: Deployment): Json {
    const request = post(path, { ...body, max_tokens: 1, kv_transfer_params: NIXL_PREFILL }, [
      ['x-request-id', 'r'],
    ]);
    return ok(deployment.prefill(request))['kv_transfer_params'];
  }

  function decodeStatus(deployment: Deployment, params: Json, prompt: unknown = body['prompt']): number {
    const reply = deployment.decode(post(path, { ...body, prompt, kv_transfer_params: params }));
    if (reply.status !== 200)
      expect(json(reply)['error']).toMatchObject({ type: 'BadRequestError', code: 400 });
    return reply.status;
  }

  test('is accepted with the parameters as they were handed out, once', () => {
    const deployment = deploy({ extraKvParams: { later: { version: ['é', 1.5] } } });
    const params = handedOut(deployment);
    expect(params['remote_request_id']).toMatch(/^cmpl-r-0-[0-9a-f]{8}$/);
    expect(params['later']).toEqual({ version: ['é', 1.5] });
    expect(decodeStatus(deployment, params)).toBe(200);
    expect(decodeStatus(deployment, params)).toBe(400);
  });

  test.each<[string, Json]>([
    ['another request', { remote_request_id: 'cmpl-x-0-00000000' }],
    ['other blocks', { remote_block_ids: [[99]] }],
    ['another engine', { remote_engine_id: '00000000-0000-4000-a000-000000000000' }],
    ['a wrong type', { do_remote_prefill: 'true' }],
    ['a missing key', { remote_blocks_expiry_time: undefined }],
    ['a new key', { extra: null }],
    ['both directions', { do_remote_decode: true }],
  ])('is refused with %s, and the blocks stay', (_name, change) => {
    const deployment = deploy();
    const params = handedOut(deployment);
    expect(decodeStatus(deployment, { ...params, ...change })).toBe(400);
    expect(decodeStatus(deployment, params)).toBe(200);
  });

  test('is refused for another prompt', () => {
    const deployment = deploy();
    expect(decodeStatus(deployment, handedOut(deployment), 'The quick brown dog')).toBe(400);
  });

  test('is refused once the prefill engine has restarted', () => {
    const deployment = deploy();
    const before = handedOut(deployment);
    deployment.prefill.restart();
    expect(decodeStatus(deployment, before)).toBe(400);
    const after = handedOut(deployment);
    expect(after['remote_engine_id']).not.toBe(before['remote_engine_id']);
    expect(decodeStatus(deployment, after)).toBe(200);
  });

  test('is refused by an engine of another deployment', () => {
    expect(decodeStatus(deploy(), handedOut(deploy()))).toBe(400);
  });

  test.each<[string, Json]>([
    ['an unknown key', { unknown: null }],
    ['a remote host', { remote_host: 'evil' }],
    ['both directions', { do_remote_prefill: true }],
  ])('is refused by prefill with %s', (_name, change) => {
    const params = { ...NIXL_PREFILL, ...change };
    expect(deploy().prefill(post(path, { ...body, kv_transfer_params: params })).status).toBe(400);
  });

  test('is refused by the wrong role', () => {
    const deployment = deploy();
    const params = handedOut(deployment);
    expect(deployment.prefill(post(path, { ...body, kv_transfer_params: params })).status).toBe(400);
    expect(deployment.decode(post(path, { ...body, kv_transfer_params: NIXL_PREFILL })).status).toBe(400);
  });
});

describe('decode dies as vLLM does', () => {
  function expectDeath(deployment: Deployment, reply: EngineReply, asked: EngineRequest): void {
    expect(reply.status).toBe(500);
    const captured = loadCapture('v030.nixl.x.prompt_logprobs').decode.response;
    expect(text(reply)).toBe(captured.body.toString());
    expect(deployment.decode(asked).fault).toBe('reset');
    expect(deployment.decode.dead).toBe(true);
  }

  const request = post('/v1/completions', { prompt: 'x' });

  test.each(['nixl', 'shared_storage'] as const)(
    'asked by 0.32 for rows of a prompt from %s',
    (connector) => {
      for (const { path, body } of Object.values(ENDPOINTS)) {
        // In larger blocks, a store would keep nothing of a prompt of five tokens.
        const deployment = deploy({ version: '0.32', connector, blockSize: 1 });
        expectDeath(deployment, disaggregate(deployment, path, body, connector, false).reply, request);
      }
    },
  );

  test.each<[string, Json]>([
    ['prompt_logprobs', { prompt_logprobs: 1 }],
    ['echo with logprobs', { echo: true, logprobs: 1 }],
  ])('asked for %s of a remote prompt', (_name, change) => {
    const deployment = deploy();
    const { path, body } = ENDPOINTS['completions']!;
    expectDeath(
      deployment,
      disaggregate(deployment, path, { ...body, ...change }, 'nixl', false).reply,
      request,
    );
  });

  test('but not without capture, nor of its own prompt', () => {
    const { path, body } = ENDPOINTS['completions']!;
    const deployment = deploy({ version: '0.32', capture: false });
    const { reply } = disaggregate(deployment, path, body, 'nixl', false);
    expect(ok(reply)['choices'][0].routed_experts).toBeNull();
    ok(deploy({ version: '0.32' }).decode(post(path, { ...body, prompt_logprobs: 1 })));
  });
});

describe('routed_experts_prompt_start', () => {
  test.each(Object.keys(ENDPOINTS))('drops rows before it on %s', (endpoint) => {
    const { path, body } = ENDPOINTS[endpoint]!;
    const asked = withSampling(body, { routed_experts_prompt_start: 3 });
    const oracle = (options: Partial<SequentialOptions>) =>
      rowsOf(ok(createEngine({ role: 'oracle', ...options })(post(path, asked)))['choices'][0]);
    const whole = oracle({ ignorePromptStart: true });
    for (const version of ['0.30', '0.32'] as const) {
      const tail = oracle({ version });
      expect(tail.shape[0]).toBe(whole.shape[0]! - 3);
      expect(tail.data.equals(whole.data.subarray(3 * rowBytes(whole)))).toBe(true);
    }
  });
});

/** The keys in their order, the first element of each array, and the type of each value. */
function shape(value: unknown): unknown {
  if (Array.isArray(value))
    return value.length > 0 && typeof value[0] === 'object' ? [shape(value[0])] : 'list';
  if (typeof value !== 'object' || value === null) return value === null ? 'null' : typeof value;
  return Object.entries(value).map(([key, item]) => [key, shape(item)]);
}

function versionOf(name: string): Version {
  return name.startsWith('v032') ? '0.32' : '0.30';
}

describe('replies', () => {
  const sampled = captureNames();

  test.each(sampled)('have the keys, types and headers of the capture %s', (name) => {
    const capture = loadCapture(name);
    const connector = name.includes('nixl') ? 'nixl' : 'shared_storage';
    const deployment = deploy({ version: versionOf(name), connector });
    const replies = { prefill: deployment.prefill(toEngineRequest(capture.prefill.request)) } as Record<
      string,
      EngineReply
    >;
    replies['oracle'] = deployment.oracle(toEngineRequest(capture.oracle.request));
    // The captured parameters name blocks of the real prefill engine.
    const asked = JSON.parse(capture.decode.request.body.toString());
    if (asked.kv_transfer_params) asked.kv_transfer_params = json(replies['prefill']!)['kv_transfer_params'];
    if (asked.routed_experts_prompt_start)
      asked.routed_experts_prompt_start = json(replies['prefill']!)['usage'].prompt_tokens;
    replies['decode'] = deployment.decode(
      post(capture.decode.request.path, asked, capture.decode.request.headers),
    );
    for (const role of ['prefill', 'decode', 'oracle'] as const) {
      const [mine, real] = [replies[role]!, capture[role].response];
      expect(mine.status).toBe(real.status);
      const names = (headers: Header[]) =>
        headers.map(([key]) => key).filter((key) => key !== 'transfer-encoding');
      expect(names(mine.headers)).toEqual(names(real.headers));
      const [type, realType] = [mine, real].map(
        ({ headers }) => headers.find(([key]) => key === 'content-type')![1],
      );
      expect(type).toBe(realType);
      if (type!.startsWith('text/event-stream')) continue;
      expect(shape(json(mine))).toEqual(shape(JSON.parse(real.body.toString())));
      // The reply is as compact as Python's: parsing it and writing it again gives the same text.
      // Replies with keys that look like numbers are left out, because JavaScript would reorder
      // these.
      if (!name.includes('prompt_logprobs')) expect(JSON.stringify(json(mine))).toBe(text(mine));
      const length = mine.headers.find(([key]) => key === 'content-length')![1];
      expect(Number(length)).toBe(Buffer.concat(mine.chunks).length);
    }
  });

  test('a stream of generate has the events of the capture', () => {
    const capture = loadCapture('v030.nixl.x.stream.generate').oracle;
    const mine = createEngine({ role: 'oracle' })(toEngineRequest(capture.request));
    const events = (chunks: Buffer[]) =>
      chunks.map((chunk) => {
        const match = /^data: (.*)\n\n$/s.exec(chunk.toString());
        return match![1] === '[DONE]' ? '[DONE]' : shape(JSON.parse(match![1]!));
      });
    expect(events(mine.chunks)).toEqual(events(capture.response.chunks));
  });

  test('0.32 writes the choices of generate last', () => {
    const { path, body } = ENDPOINTS['generate']!;
    const keys = Object.keys(ok(createEngine({ role: 'oracle', version: '0.32' })(post(path, body))));
    expect(keys.slice(-3)).toEqual(['kv_transfer_params', 'ec_transfer_params', 'choices']);
  });

  test('streams of completions and chat carry the text and no routing', () => {
    const oracle = createEngine({ role: 'oracle' });
    for (const endpoint of ['completions', 'chat']) {
      const { path, body } = ENDPOINTS[endpoint]!;
      // With so many choices, at least one ends inside a character.
      const asked = { ...body, n: 40 };
      const whole = ok(oracle(post(path, asked)))['choices'].map(
        (c: Json) => c['text'] ?? c['message'].content,
      );
      const reply = oracle(post(path, { ...asked, stream: true, stream_options: { include_usage: true } }));
      expect(text(reply)).not.toContain('"routed_experts":"k05VTVBZAQB2');
      const events = reply.chunks.map((chunk) => chunk.toString().slice('data: '.length, -2));
      expect(events.pop()).toBe('[DONE]');
      const parsed = events.map((event) => JSON.parse(event));
      expect(parsed.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 280 } });
      const texts = whole.map(() => '');
      for (const { choices } of parsed) {
        for (const { index, text, delta } of choices) texts[index] += text ?? delta.content;
      }
      expect(texts).toEqual(whole);
    }
  });

  test('keep the own token first in prompt_logprobs', () => {
    const asked = { prompt: [400, 300, 200, 100], max_tokens: 1, prompt_logprobs: 1 };
    const reply = createEngine({ role: 'oracle' })(post('/v1/completions', asked));
    expect(text(reply)).toMatch(/"prompt_logprobs":\[null,\{"300":\{"logprob":-[\d.]+,"rank":2,/);
  });

  test('name tokens by their ids in the logprobs of /inference/v1/generate', () => {
    const asked = { token_ids: [5, 6, 7], sampling_params: { max_tokens: 3, logprobs: 1 } };
    const { token_ids, logprobs } = ok(
      createEngine({ role: 'oracle' })(post('/inference/v1/generate', asked)),
    )['choices'][0];
    const named = logprobs.content.map(({ token }: { token: string }) => token);
    expect(named).toEqual(token_ids.map((id: number) => `token_id:${id}`));
  });

  test('repeat the prompt under echo, alone when nothing may be generated', () => {
    const oracle = createEngine({ role: 'oracle' });
    const asked = { prompt: 'fox', echo: true, logprobs: 1 };
    const echoed = ok(oracle(post('/v1/completions', { ...asked, max_tokens: 2 })))['choices'][0];
    expect(echoed.text.startsWith('fox')).toBe(true);
    expect(echoed.logprobs.tokens).toHaveLength(5);
    expect(echoed.logprobs.token_logprobs[0]).toBeNull();
    expect(echoed.prompt_logprobs).toHaveLength(3);
    const alone = ok(oracle(post('/v1/completions', { ...asked, max_tokens: 0 })))['choices'][0];
    expect(alone.text).toBe('fox');
    expect(alone.logprobs.tokens).toHaveLength(3);
    expect(rowsOf(alone).shape[0]).toBe(3);
  });

  test('end early with EOS, later under min_tokens, never under ignore_eos', () => {
    const oracle = createEngine({ role: 'oracle', eosAfter: 2 });
    const run = (more: Json) =>
      ok(oracle(post('/v1/completions', { prompt: 'fox', max_tokens: 9, return_token_ids: true, ...more })))[
        'choices'
      ][0];
    expect(run({})).toMatchObject({ finish_reason: 'stop', stop_reason: null });
    expect(run({}).token_ids).toHaveLength(2);
    expect(run({}).token_ids[1]).toBe(2);
    expect(rowsOf(run({})).shape[0]).toBe(3 + 1);
    expect(run({ min_tokens: 4 }).token_ids).toHaveLength(5);
    expect(run({ ignore_eos: true })).toMatchObject({ finish_reason: 'length' });
  });

  test('follow the knobs: pieces, padding, unknown rows, lost arrays, no length', () => {
    const { path, body } = ENDPOINTS['generate']!;
    const run = (options: Partial<SequentialOptions>, more: Json = {}) =>
      createEngine({ role: 'oracle', ...options })(post(path, { ...body, ...more }));
    const whole = text(run({}));
    const pieces = run({ chunkBytes: 7 }).chunks;
    expect(pieces.length).toBeGreaterThan(10);
    expect(pieces.slice(0, -1).every(({ length }) => length === 7)).toBe(true);
    expect(Buffer.concat(pieces).toString().length).toBe(whole.length);
    const padded = rowsOf(ok(run({ npy: { version: 3, padding: 1 } }))['choices'][0]);
    expect([padded.version, padded.headerBytes]).toEqual([3, 129]);
    const unknown = rowsOf(ok(run({ unknownRows: [1], model: { dtype: '<i4' } }))['choices'][0]);
    expect(unknown.data.readInt32LE(rowBytes(unknown))).toBe(-1);
    expect(unknown.data.readInt32LE(0)).not.toBe(-1);
    expect(text(run({ loseStreamArray: true }, { stream: true }))).not.toContain('k05V');
    expect(text(run({}, { stream: true }))).toContain('k05V');
    expect(run({ omitContentLength: true }).headers.some(([name]) => name === 'content-length')).toBe(false);
    expect(ok(run({ capture: false }))['choices'][0].routed_experts).toBeNull();
  });

  test('fail on the request they were told to', () => {
    const { path, body } = ENDPOINTS['completions']!;
    const engine = createEngine({
      role: 'oracle',
      fail: { 1: { status: 503 }, 2: { fault: 'reset_body', keepBytes: 10 } },
    });
    engine({ method: 'GET', path: '/health', headers: [], body: Buffer.alloc(0) });
    const [first, second, third] = [1, 2, 3].map(() => engine(post(path, body)));
    expect(first!.status).toBe(503);
    expect(json(first!)['error'].code).toBe(503);
    expect(second).toMatchObject({ status: 200, fault: 'reset_body' });
    expect(Buffer.concat(second!.chunks)).toHaveLength(10);
    ok(third!);
    expect(engine.requests).toHaveLength(4);
  });

  test('are the same for the same request', () => {
    const { path, body } = ENDPOINTS['chat']!;
    const [a, b] = [1, 2].map(() => text(createEngine({ role: 'oracle' })(post(path, body))));
    expect(a).toBe(b);
  });
});

describe('validation', () => {
  const oracle = () =>
    createEngine({ role: 'oracle', version: '0.32', model: { vocab: 1000 }, maxModelLen: 64 });

  test.each<[string, string, unknown]>([
    ['a body that is no JSON', 'completions', '{"prompt":'],
    ['a body that is no UTF-8', 'completions', Buffer.from('{"prompt":"\xff"}', 'latin1')],
    ['a list', 'completions', '[]'],
    ['null', 'generate', 'null'],
    ['no prompt', 'completions', {}],
    ['an empty prompt', 'completions', { prompt: '' }],
    ['no prompts', 'completions', { prompt: [] }],
    ['an empty prompt in a batch', 'completions', { prompt: [[1], []] }],
    ['a mixed prompt', 'completions', { prompt: [1, 'a'] }],
    ['a negative token', 'completions', { prompt: [-1] }],
    ['a token out of vocabulary', 'completions', { prompt: [1000] }],
    ['a fractional max_tokens', 'completions', { prompt: 'a', max_tokens: 1.5 }],
    ['max_tokens 0', 'completions', { prompt: 'a', max_tokens: 0 }],
    [
      'max_completion_tokens 0',
      'chat',
      { messages: [{ role: 'user', content: 'a' }], max_completion_tokens: 0 },
    ],
    ['more tokens than fit', 'completions', { prompt: 'a', max_tokens: 64 }],
    ['n 0', 'completions', { prompt: 'a', n: 0 }],
    ['n null', 'completions', { prompt: 'a', n: null }],
    ['a greedy n', 'completions', { prompt: 'a', n: 2, temperature: 0 }],
    ['min_tokens over the cap', 'completions', { prompt: 'a', max_tokens: 1, min_tokens: 2 }],
    ['stream that is no boolean', 'completions', { prompt: 'a', stream: 'maybe' }],
    [
      'stream_options without stream',
      'chat',
      { messages: [{ role: 'user' }], stream_options: { include_usage: true } },
    ],
    ['prompt_logprobs of a stream', 'completions', { prompt: 'a', stream: true, prompt_logprobs: 1 }],
    ['kv_transfer_params that are a list', 'completions', { prompt: 'a', kv_transfer_params: [] }],
    [
      'kv_transfer_params that are a string',
      'generate',
      { token_ids: [1], sampling_params: {}, kv_transfer_params: 'x' },
    ],
    ['no messages', 'chat', {}],
    ['messages without a role', 'chat', { messages: [{ content: 'a' }] }],
    ['no token_ids', 'generate', { sampling_params: {} }],
    ['no sampling_params', 'generate', { token_ids: [1] }],
    [
      'min_tokens over the cap of generate',
      'generate',
      { token_ids: [1], sampling_params: { max_tokens: 1, min_tokens: 2 } },
    ],
    ['a negative prompt start', 'completions', { prompt: 'a', routed_experts_prompt_start: -1 }],
    ['a prompt start behind the prompt', 'completions', { prompt: 'a', routed_experts_prompt_start: 2 }],
  ])('refuses %s', (_name, endpoint, body) => {
    const reply = oracle()(post(ENDPOINTS[endpoint]!.path, body));
    expect(reply.status, text(reply)).toBe(400);
    const { error } = json(reply);
    expect(Object.keys(error)).toEqual(['message', 'type', 'param', 'code']);
    expect(error).toMatchObject({ type: 'BadRequestError', code: 400 });
  });

  test('says what vLLM says', () => {
    const message = (body: Json) =>
      json(oracle()(post('/v1/completions', { prompt: 'a', ...body })))['error'].message;
    expect(message({ stream_options: { include_usage: true } })).toBe(
      'Stream options can only be defined when `stream=True`.',
    );
    expect(message({ min_tokens: 5, max_tokens: 1 })).toBe(
      'min_tokens must be less than or equal to max_tokens=1, got 5.',
    );
  });

  test.each<[string, string, Json]>([
    ['numbers in strings', 'completions', { prompt: 'a', max_tokens: '3' }],
    [
      'null for a default',
      'completions',
      { prompt: 'a', max_tokens: null, stream: null, stream_options: null },
    ],
    ['unknown fields', 'completions', { prompt: 'a', max_completion_tokens: 0, x: {} }],
    ['empty stream_options', 'completions', { prompt: 'a', stream_options: {} }],
    ['empty kv_transfer_params', 'completions', { prompt: 'a', kv_transfer_params: {} }],
    [
      'parts of a message',
      'chat',
      { messages: [{ role: 'user', content: [{ type: 'text', text: 'a' }] }], n: null },
    ],
    ['no model', 'generate', { token_ids: [1], sampling_params: {} }],
  ])('accepts %s', (_name, endpoint, body) => {
    ok(oracle()(post(ENDPOINTS[endpoint]!.path, body)));
  });

  test('takes the last of duplicate keys', () => {
    const reply = ok(oracle()(post('/v1/completions', '{"prompt":"a","max_tokens":9,"max_tokens":2}')));
    expect(reply['usage'].completion_tokens).toBe(2);
  });

  test('refuses another model, another content type, another path and another method', () => {
    const engine = oracle();
    const missing = engine(post('/v1/completions', { model: 'other', prompt: 'a' }));
    expect(missing.status).toBe(404);
    expect(json(missing)['error']).toMatchObject({ type: 'NotFoundError', param: 'model', code: 404 });
    const plain = {
      ...post('/v1/completions', { prompt: 'a' }),
      headers: [['content-type', 'text/plain']] as Header[],
    };
    expect(engine(plain).status).toBe(400);
    expect(engine(post('/v1/other', {})).status).toBe(404);
    const get = (path: string) => engine({ method: 'GET', path, headers: [], body: Buffer.alloc(0) });
    expect(get('/v1/completions').status).toBe(405);
    expect(get('/health').status).toBe(200);
    expect(ok(get('/v1/models'))['data'][0].id).toBe('tiny');
  });
});

describe('replay', () => {
  test('gives back the captured message', () => {
    const { decode: leg } = loadCapture('v030.nixl.x.stream.generate');
    expect(leg.request).toMatchObject({ method: 'POST', path: '/inference/v1/generate' });
    expect(leg.response.chunks).toHaveLength(7);
    const engine = replayEngine(leg.response);
    const reply = engine(toEngineRequest(leg.request));
    expect(Buffer.concat(reply.chunks).equals(leg.response.body)).toBe(true);
    expect(reply.headers.map(([name]) => name)).toEqual(['date', 'server', 'content-type', 'vary']);
    expect(engine.requests).toHaveLength(1);
    expect(
      replayEngine(leg.response, { chunkBytes: 100 })(toEngineRequest(leg.request)).chunks[0],
    ).toHaveLength(100);
  });
});

describe('the server', () => {
  const closing: (() => Promise<void> | void)[] = [];
  afterEach(async () => {
    for (const close of closing.splice(0)) await close();
  });

  async function serve(engine: Engine) {
    const server = await serveBoth(engine);
    closing.push(() => server.close());
    return server;
  }

  /** Sends one request and collects what arrives until `enough` is true, or the connection ends. */
  function raw(port: number, enough: (seen: string) => boolean = () => false, body = '{}') {
    return new Promise<{ seen: string; pieces: string[]; error: string | null }>((resolve) => {
      const socket = net.connect(port, '127.0.0.1');
      const pieces: string[] = [];
      const done = (error: string | null) => {
        socket.destroy();
        resolve({ seen: pieces.join(''), pieces, error });
      };
      socket.on('data', (piece) => {
        pieces.push(piece.toString());
        if (enough(pieces.join(''))) done(null);
      });
      socket.on('error', (error: NodeJS.ErrnoException) => done(error.code ?? 'error'));
      socket.on('end', () => done('end'));
      socket.write(
        `POST /v1/x HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
      );
    });
  }

  function h2(port: number, body = '{}') {
    return new Promise<{ head: any; trailers: any; body: Buffer; error: string | null }>((resolve) => {
      const session = connect(`http://127.0.0.1:${port}`);
      closing.push(() => session.destroy());
      const stream = session.request({ ':method': 'POST', ':path': '/v1/x', 'x-a': '1' });
      let [head, trailers, error]: [any, any, string | null] = [null, null, null];
      const parts: Buffer[] = [];
      stream.on('response', (headers) => (head = headers));
      stream.on('trailers', (headers) => (trailers = headers));
      stream.on('data', (part: Buffer) => parts.push(part));
      stream.on('error', (reason) => (error = reason.message));
      stream.on('close', () => resolve({ head, trailers, body: Buffer.concat(parts), error }));
      stream.end(body);
    });
  }

  const HEADERS: Header[] = [
    ['date', 'Mon, 23 Nov 2026 09:42:38 GMT'],
    ['server', 'uvicorn'],
    ['content-length', '6'],
  ];
  const pieces = ['abc', 'def'].map((piece) => Buffer.from(piece));

  test('sends the head as the engine gave it, and hands it the request', async () => {
    const seen: EngineRequest[] = [];
    const { http1Port, http2Port } = await serve((request) => {
      seen.push(request);
      return { status: 207, headers: HEADERS, chunks: pieces };
    });
    const one = await raw(http1Port, (text) => text.endsWith('def'));
    expect(one.seen).toBe(
      'HTTP/1.1 207 Multi-Status\r\ndate: Mon, 23 Nov 2026 09:42:38 GMT\r\nserver: uvicorn\r\ncontent-length: 6\r\n\r\nabcdef',
    );
    const two = await h2(http2Port);
    expect(Object.fromEntries(Object.entries(two.head))).toEqual({
      ':status': 207,
      ...Object.fromEntries(HEADERS),
    });
    expect(two.body.toString()).toBe('abcdef');
    for (const request of seen) {
      expect(request).toMatchObject({ method: 'POST', path: '/v1/x', body: Buffer.from('{}') });
      expect(request.headers).toContainEqual(['x-a', '1']);
    }
  });

  test('sends a body without length in one chunk per piece, then the trailers', async () => {
    const reply: EngineReply = {
      status: 200,
      headers: HEADERS.slice(0, 2),
      chunks: pieces,
      trailers: [['x-t', '1']],
    };
    const { http1Port, http2Port } = await serve(() => reply);
    const one = await raw(http1Port, (text) => text.endsWith('\r\n\r\n') && text.includes('x-t'));
    expect(one.seen.split('\r\n\r\n')[0]).toMatch(/transfer-encoding: chunked$/);
    expect(one.seen).toMatch(/\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nx-t: 1\r\n\r\n$/);
    const two = await h2(http2Port);
    expect(two.head['content-length']).toBeUndefined();
    expect(two.trailers['x-t']).toBe('1');
    expect(two.body.toString()).toBe('abcdef');
  });

  test('adds no header of its own', async () => {
    const { http1Port, http2Port } = await serve(() => ({
      status: 200,
      headers: [],
      chunks: [],
      fault: 'stall_body',
    }));
    const one = await raw(http1Port, (text) => text.endsWith('\r\n\r\n'));
    expect(one.seen).toBe('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n');
    const session = connect(`http://127.0.0.1:${http2Port}`);
    closing.push(() => session.destroy());
    const head = await new Promise<object>((resolve) =>
      session.request({ ':path': '/' }).on('response', resolve),
    );
    expect(Object.keys(head)).toEqual([':status']);
  });

  test('lets a piece reach the client before it writes the next', async () => {
    const many = Array.from({ length: 20 }, (_, i) => Buffer.from(`<${i}>`));
    const { http1Port } = await serve(() => ({ status: 200, headers: [], chunks: many }));
    const { pieces: seen } = await raw(http1Port, (text) => text.endsWith('0\r\n\r\n'));
    expect(
      seen
        .filter((piece) => piece.includes('<'))
        .every((piece) => piece.indexOf('<') === piece.lastIndexOf('<')),
    ).toBe(true);
  });

  test.each([false, true])('takes no piece that the client has no room for (http2: %s)', async (http2) => {
    let taken = 0;
    const piece = Buffer.alloc(1_000_000);
    const chunks = Array.from({ length: 64 }, () => piece);
    for (let i = 0; i < chunks.length; i++) Object.defineProperty(chunks, i, { get: () => (taken++, piece) });
    const { http1Port, http2Port } = await serve(() => ({ status: 200, headers: [], chunks }));
    const socket = http2 ? null : net.connect(http1Port, '127.0.0.1');
    socket?.pause().write('GET / HTTP/1.1\r\nHost: a\r\n\r\n');
    const session = http2 ? connect(`http://127.0.0.1:${http2Port}`) : null;
    session?.request({ ':path': '/' }).pause();
    closing.push(() => void (socket?.destroy(), session?.destroy()));
    for (let turn = 0; turn < 2000; turn++) await nextTurn();
    expect(taken).toBeGreaterThan(0);
    expect(taken).toBeLessThan(32);
  });

  test('resets before the head, and behind the pieces', async () => {
    let fault: EngineReply['fault'];
    const { http1Port, http2Port } = await serve(() => ({
      status: 200,
      headers: HEADERS.slice(0, 2),
      chunks: [pieces[0]!],
      fault,
    }));
    fault = 'reset';
    expect(await raw(http1Port)).toMatchObject({ seen: '', error: 'ECONNRESET' });
    expect(await h2(http2Port)).toMatchObject({
      head: null,
      error: 'Stream closed with error code NGHTTP2_INTERNAL_ERROR',
    });
    fault = 'reset_body';
    const one = await raw(http1Port);
    expect(one.seen.endsWith('\r\n\r\n3\r\nabc\r\n')).toBe(true);
    expect(one.error).not.toBeNull();
    const two = await h2(http2Port);
    expect(two.body.toString()).toBe('abc');
    expect(two.error).toContain('NGHTTP2_INTERNAL_ERROR');
  });

  test.each(['reset', 'reset_body'] as const)(
    'does so, %s, to a client that asked again before the body it has was ended',
    async (fault) => {
      let open = () => {};
      const gate = new Promise<void>((resolve) => (open = resolve));
      let asked = 0;
      const engine: Engine = () => {
        if (++asked === 1)
          return { status: 200, headers: HEADERS, chunks: [Buffer.concat(pieces)], read: () => undefined };
        void later().then(open);
        return { status: 200, headers: HEADERS, chunks: [], fault };
      };
      const later = async () => {
        for (let turn = 0; turn < 10; turn++) await nextTurn();
      };
      const server = await serveEngine(engine, { read: () => gate });
      closing.push(() => server.close());
      const socket = net.connect(server.port, '127.0.0.1');
      const request = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}';
      let seen = '';
      socket.on('data', (data) => {
        const all = (seen += data.toString()).endsWith('abcdef');
        if (all && asked === 1) socket.write(request);
      });
      socket.on('error', () => undefined);
      socket.write(request);
      await new Promise((resolve) => socket.on('close', resolve));
      expect([asked, seen.split('abcdef').length]).toEqual([2, 2]);
    },
  );

  test.each(['stall', 'stall_body'] as const)('leaves the client waiting under %s', async (fault) => {
    const { http1Port, http2Port, close } = await serveBoth(() => ({
      status: 200,
      headers: HEADERS.slice(0, 2),
      chunks: [pieces[0]!],
      fault,
    }));
    let settled = 0;
    const [one, two] = [raw(http1Port), h2(http2Port)];
    for (const reply of [one, two]) void reply.then(() => settled++);
    for (let turn = 0; turn < 500; turn++) await nextTurn();
    expect(settled).toBe(0);
    await close();
    expect((await one).seen.endsWith(fault === 'stall' ? '' : '3\r\nabc\r\n')).toBe(true);
    expect((await one).seen === '').toBe(fault === 'stall');
    expect((await two).head === null).toBe(fault === 'stall');
    expect((await two).body.toString()).toBe(fault === 'stall' ? '' : 'abc');
  });

  test.each([false, true])('carries 20 MB to a slow reader (http2: %s)', async (http2) => {
    const big = Buffer.alloc(20_000_000, 'x');
    const chunks = Array.from({ length: 10 }, (_, i) => big.subarray(i * 2_000_000, (i + 1) * 2_000_000));
    const { http1Port, http2Port } = await serve(() => ({ status: 200, headers: [], chunks }));
    if (http2) return expect((await h2(http2Port)).body.length).toBe(big.length);
    const body = await (
      await fetch(`http://127.0.0.1:${http1Port}/v1/x`, { method: 'POST', body: '{}' })
    ).arrayBuffer();
    expect(body.byteLength).toBe(big.length);
  });
});
