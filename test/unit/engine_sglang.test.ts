// The simulated SGLang: its two engines meet in a room, and its replies carry raw int32 rows.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { createEngine, type Awaitable, type EngineOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import { eventsOf, json, ok, post, type Json } from './exchanges.ts';
import { BODIES, CHAT, COMPLETIONS, NATIVE, ROW, arraysOf, bytes, int32 } from './sglang.ts';

type Concurrent = SimulatedEngine<Awaitable>;

interface Deployment {
  prefill: Concurrent;
  decode: Concurrent;
  oracle: SimulatedEngine;
  /** Ends the waiting of every leg: its patience is over. */
  lose(): void;
}

const ADDRESS = { host: '127.0.0.1', port: 8998 };

function deploy(options: Partial<EngineOptions> = {}): Deployment {
  const fleet = new Fleet();
  let lose!: () => void;
  const over = new Promise<void>((resolve) => (lose = resolve));
  const shared = { connector: 'sglang', fleet, patience: () => over, ...options } as const;
  return {
    prefill: createEngine({ ...shared, role: 'prefill' }),
    decode: createEngine({ ...shared, role: 'decode' }),
    oracle: createEngine({ ...shared, role: 'oracle' }),
    lose,
  };
}

/**
 * `body` with a room, whose number stands in it as `room` is written. `more` may change the
 * address.
 */
function inRoom(body: Json, room = '7', more: Json = {}): string {
  const { host, port } = ADDRESS;
  const whole = { ...body, bootstrap_host: host, bootstrap_port: port, bootstrap_room: '@', ...more };
  return JSON.stringify(whole).replace('"@"', room);
}

async function both({ prefill, decode }: Deployment, path: string, body: string): Promise<[Json, Json]> {
  const [one, two] = await Promise.all([prefill(post(path, body)), decode(post(path, body))]);
  return [ok(one), ok(two)];
}

/** A reply without its arrays, its ids, and cached_tokens, which only prefill knows. */
function rest(reply: Json): unknown {
  return JSON.parse(
    JSON.stringify(reply, (key, value) =>
      ['routed_experts', 'id', 'cached_tokens'].includes(key) ? undefined : value,
    ),
  );
}

describe('two engines in one room', () => {
  test.each([NATIVE, COMPLETIONS, CHAT])('merge to the oracle on %s', async (path) => {
    for (const [promptRows, generated] of [
      ['zeros', 7],
      ['stale', 7],
    ] as const) {
      const deployment = deploy({ promptRows });
      const cap =
        path === NATIVE ? { sampling_params: { max_new_tokens: generated } } : { max_tokens: generated };
      const asked = { ...BODIES[path], ...cap, return_routed_experts: true };
      const oracle = ok(deployment.oracle(post(path, asked)));
      const [prefill, decode] = await both(deployment, path, inRoom(asked));
      const [ours, mine, truth] = [prefill, decode, oracle].map((reply) => arraysOf(reply)[0]!);
      const rows = truth!.length / ROW;
      expect(ours!.length / ROW).toBe(rows - (generated - 1));
      expect(Buffer.concat([ours!, mine!.subarray(ours!.length)]).equals(truth!)).toBe(true);
      expect(rest(decode)).toEqual(rest(oracle));
      // The first token arrives together with the KV, so decode forwards no prompt token, not even
      // the last.
      for (let at = 0; at < ours!.length; at += ROW) {
        expect(mine!.subarray(at, at + ROW).equals(ours!.subarray(at, at + ROW))).toBe(false);
      }
    }
  });

  test.each([NATIVE, COMPLETIONS, CHAT])(
    'have on %s no array of decode’s where prefill’s token is all',
    async (path) => {
      const cap = path === NATIVE ? { sampling_params: { max_new_tokens: 1 } } : { max_tokens: 1 };
      const asked = { ...BODIES[path], ...cap, return_routed_experts: true };
      const deployment = deploy();
      const [prefill, decode] = await both(deployment, path, inRoom(asked));
      const oracle = ok(deployment.oracle(post(path, asked)));
      expect(arraysOf(prefill)[0]!.equals(arraysOf(oracle)[0]!)).toBe(true);
      expect(JSON.stringify(decode)).not.toContain('routed_experts');
      expect(decode['usage'] ?? decode['meta_info'].completion_tokens).toEqual(
        oracle['usage'] ?? oracle['meta_info'].completion_tokens,
      );
    },
  );

  test('find what decode has generated before where its radix tree is on, and nothing where it is not', async () => {
    const ask = (input_ids: number[]) => ({
      input_ids,
      return_routed_experts: true,
      sampling_params: { max_new_tokens: 7 },
    });
    const prompt = Array.from({ length: 20 }, (_, i) => 3 + i);
    for (const decodeRadixCache of [undefined, false, true]) {
      const deployment = deploy({
        ...(decodeRadixCache === undefined ? {} : { decodeRadixCache }),
        promptRows: 'stale',
      });
      const [, turn] = await both(deployment, NATIVE, inRoom(ask(prompt)));
      const next = ask([...prompt, ...turn['output_ids'], 99, 98]);
      const [, decode] = await both(deployment, NATIVE, inRoom(next, '8'));
      const [mine, truth] = [decode, ok(deployment.oracle(post(NATIVE, next)))].map(
        (reply) => arraysOf(reply)[0]!,
      );
      const right = Array.from({ length: 29 }, (_, i) => i).filter((i) => {
        const [from, to] = [i * ROW, (i + 1) * ROW];
        return mine!.subarray(from, to).equals(truth!.subarray(from, to));
      });
      // Of the seven generated tokens decode has forwarded all but the last one. It has never
      // forwarded the prompt.
      expect(right).toEqual(decodeRadixCache ? [20, 21, 22, 23, 24, 25] : []);
    }
  });

  test('return the rows that vLLM would, as int32', () => {
    const { oracle } = deploy();
    const reply = ok(oracle(post(COMPLETIONS, { ...BODIES[COMPLETIONS], return_routed_experts: true })));
    const vllm = ok(createEngine({ role: 'oracle' })(post(COMPLETIONS, BODIES[COMPLETIONS])));
    const { data } = decodeNpy(bytes(vllm['choices'][0].routed_experts));
    expect(int32(arraysOf(reply)[0]!)).toEqual([...data]);
    expect(reply['choices'][0].text).toBe(vllm['choices'][0].text);
  });

  test.each([NATIVE, COMPLETIONS, CHAT])('prefill stops at the first token on %s', async (path) => {
    for (const eosAfter of [1, 100]) {
      const [prefill] = await both(deploy({ eosAfter }), path, inRoom(BODIES[path]!));
      if (path === NATIVE) {
        expect(prefill['output_ids']).toHaveLength(1);
        expect(prefill['meta_info']).toMatchObject({
          completion_tokens: 1,
          finish_reason: { type: 'length', length: 0 },
        });
      } else {
        expect(prefill['usage'].completion_tokens).toBe(1);
        expect(prefill['choices'][0].finish_reason).toBe('length');
      }
    }
  });

  test.each(['prefill', 'decode'] as const)('wait for each other, %s first', async (role) => {
    const deployment = deploy();
    const other = role === 'prefill' ? 'decode' : 'prefill';
    const request = post(COMPLETIONS, inRoom(BODIES[COMPLETIONS]!));
    let answered = false;
    const first = Promise.resolve(deployment[role](request)).finally(() => (answered = true));
    for (let turn = 0; turn < 50; turn++) await nextTurn();
    expect(answered).toBe(false);
    ok(await deployment[other](request));
    ok(await first);
  });

  test.each<[string, 'prefill' | 'decode', string]>([
    ['prefill', 'prefill', 'Prefill bootstrap failed'],
    ['decode', 'decode', 'Decode transfer failed'],
  ])('a %s that nobody joins fails when its patience ends', async (_name, role, message) => {
    const deployment = deploy();
    const other = role === 'prefill' ? 'decode' : 'prefill';
    for (const [i, path] of [NATIVE, CHAT].entries()) {
      const request = post(path, inRoom(BODIES[path]!, String(i)));
      const waiting = deployment[role](request);
      deployment.lose();
      const reply = await waiting;
      expect(reply.status).toBe(500);
      expect(json(reply)).toMatchObject({ object: 'error', type: '500', param: null, code: 500 });
      expect(json(reply)['message']).toContain(message);
      expect(json(reply)['message']).toContain(`KVTransferError(bootstrap_room=${i})`);
      // The other leg finds no partner in that room.
      expect((await deployment[other](request)).status).toBe(500);
    }
  });

  test('patience may be a time', async () => {
    const { decode } = deploy({ patience: 1 });
    expect((await decode(post(COMPLETIONS, inRoom(BODIES[COMPLETIONS]!)))).status).toBe(500);
  });

  test('fail on the request they were told to, waiting or not', async () => {
    const { prefill } = deploy();
    const fail = { 1: { status: 503 }, 2: { fault: 'reset_body', keepBytes: 10 } } as const;
    const decode = createEngine({ role: 'decode', connector: 'sglang', fleet: prefill.fleet, fail });
    const first = await decode(post(COMPLETIONS, inRoom(BODIES[COMPLETIONS]!, '1')));
    expect(first.status).toBe(503);
    expect(json(first)).toMatchObject({ object: 'error', code: 503 });
    const request = post(COMPLETIONS, inRoom(BODIES[COMPLETIONS]!, '2'));
    const [, second] = await Promise.all([prefill(request), decode(request)]);
    expect(second).toMatchObject({ status: 200, fault: 'reset_body' });
    expect(Buffer.concat(second.chunks)).toHaveLength(10);
  });

  test('a stream ends with the failure', async () => {
    const deployment = deploy();
    deployment.lose();
    const ask = async (path: string) =>
      eventsOf(await deployment.decode(post(path, inRoom({ ...BODIES[path], stream: true }, '1'))));
    const { error } = (await ask(COMPLETIONS))[0]!;
    expect(error).toMatchObject({ object: 'error', type: 'INTERNAL_SERVER_ERROR', code: 500 });
    const [native] = await ask(NATIVE);
    expect(native!['meta_info'].finish_reason).toMatchObject({ type: 'abort', status_code: 500 });
  });
});

describe('a room', () => {
  const body = BODIES[COMPLETIONS]!;

  test.each(['0', '9007199254740993', '9223372036854775807'])('may be %s', async (room) => {
    await both(deploy(), COMPLETIONS, inRoom(body, room));
  });

  test('is told from its neighbour beyond 2^53', async () => {
    const { prefill, decode, lose } = deploy();
    const legs = [
      prefill(post(COMPLETIONS, inRoom(body, '9007199254740992'))),
      decode(post(COMPLETIONS, inRoom(body, '9007199254740993'))),
    ];
    lose();
    expect((await Promise.all(legs)).map(({ status }) => status)).toEqual([500, 500]);
  });

  test.each(['9223372036854775808', '-1', '1.5', '1e3', '"7"', '[7]', 'true', '{}'])(
    'is not %s',
    async (room) => {
      const reply = await deploy().prefill(post(COMPLETIONS, inRoom(body, room)));
      expect(reply.status).toBe(400);
      expect(json(reply)).toMatchObject({ object: 'error', code: 400 });
    },
  );

  test('is used once', async () => {
    const deployment = deploy();
    const request = inRoom(body);
    await both(deployment, COMPLETIONS, request);
    for (const role of ['prefill', 'decode'] as const) {
      const again = await deployment[role](post(COMPLETIONS, request));
      expect(again.status).toBe(500);
      expect(json(again)['message']).toContain('used before');
    }
  });

  test.each<[string, Json]>([
    ['another host', { bootstrap_host: '10.0.0.1' }],
    ['another port', { bootstrap_port: 8999 }],
  ])('is not found at %s', async (_name, more) => {
    const deployment = deploy();
    for (const role of ['prefill', 'decode'] as const) {
      const reply = await deployment[role](post(COMPLETIONS, inRoom(body, '7', more)));
      expect(reply.status).toBe(500);
      expect(json(reply)['message']).toContain('no prefill info');
    }
  });

  test('is found where the prefill engine says, at any time', async () => {
    const bootstrap = { host: 'prefill-3', port: 1 };
    const deployment = deploy({ bootstrap });
    bootstrap.port = 4242;
    await both(
      deployment,
      COMPLETIONS,
      inRoom(body, '7', { bootstrap_host: 'prefill-3', bootstrap_port: 4242 }),
    );
  });

  test('is one of its prefill engine, whatever the others have', async () => {
    const one = deploy();
    const fleet = one.prefill.fleet;
    const two = deploy({ fleet, bootstrap: { host: '127.0.0.1', port: 9000 } });
    const there = inRoom(body, '7', { bootstrap_port: 9000 });
    expect((await one.prefill(post(COMPLETIONS, there))).status).toBe(500);
    await both({ ...two, decode: one.decode }, COMPLETIONS, there);
    await both(one, COMPLETIONS, inRoom(body));
  });

  test('holds one prompt', async () => {
    const { prefill, decode } = deploy();
    const [one, two] = await Promise.all([
      prefill(post(COMPLETIONS, inRoom(body))),
      decode(post(COMPLETIONS, inRoom({ ...body, prompt: 'The quick brown dog' }))),
    ]);
    ok(one);
    expect(two.status).toBe(500);
  });

  test.each<[string, Json]>([
    ['no room', { bootstrap_room: undefined }],
    ['a room that is null', { bootstrap_room: null }],
    ['no host', { bootstrap_host: undefined }],
    ['an empty host', { bootstrap_host: '' }],
    ['no port', { bootstrap_port: null }],
    ['port 0', { bootstrap_port: 0 }],
    ['a port in a string', { bootstrap_port: '8998' }],
  ])('is needed: %s', async (_name, more) => {
    const { prefill, decode } = deploy();
    for (const engine of [prefill, decode]) {
      const native = await engine(post(NATIVE, inRoom(BODIES[NATIVE]!, '7', more)));
      expect(native.status).toBe(400);
      expect(Object.keys(json(native)['error'])).toEqual(['message']);
      const openAi = await engine(post(COMPLETIONS, inRoom(body, '7', more)));
      expect(openAi.status).toBe(400);
      expect(json(openAi)).toMatchObject({ object: 'error', type: 'BadRequestError', code: 400 });
    }
    if ('bootstrap_room' in more) {
      const reply = await decode(post(COMPLETIONS, body));
      expect(json(reply)['message']).toContain('without bootstrap room id');
    }
  });

  test('is not looked at by an engine without the other side', () => {
    ok(deploy().oracle(post(COMPLETIONS, inRoom(body, '7', { bootstrap_host: 'elsewhere' }))));
  });
});

describe('a batch', () => {
  const prompts = ['a fox', 'and a dog', '0 1 2 3'];
  const native = {
    text: prompts,
    sampling_params: { max_new_tokens: 3 },
    return_routed_experts: true,
  };
  const three = (value: unknown) => [value, value, value];

  test.each<[string, string, Json]>([
    ['a room each', '[5, 9223372036854775806 ,0]', {}],
    ['a first room', '5', {}],
    [
      'lists of everything',
      '[1,2,3]',
      { bootstrap_host: three('127.0.0.1'), bootstrap_port: three(8998), sampling_params: three({}) },
    ],
  ])('meets with %s', async (_name, room, more) => {
    const deployment = deploy();
    const [prefill, decode] = await both(deployment, NATIVE, inRoom({ ...native, ...more }, room));
    const oracle = ok(deployment.oracle(post(NATIVE, { ...native, ...more })));
    expect(decode.map((item: Json) => item['text'])).toEqual(oracle.map((item: Json) => item['text']));
    arraysOf(oracle).forEach((truth, i) => {
      const [ours, mine] = [arraysOf(prefill)[i]!, arraysOf(decode)[i]!];
      expect(ours.length / ROW).toBe(prompts[i]!.length);
      expect(Buffer.concat([ours, mine.subarray(ours.length)]).equals(truth)).toBe(true);
    });
  });

  test('of one is a list, and has lists', async () => {
    const one = { input_ids: [[1, 2, 3]], sampling_params: {} };
    const [prefill, decode] = await both(deploy(), NATIVE, inRoom(one, '[4]'));
    expect([prefill, decode].every((reply) => Array.isArray(reply) && reply.length === 1)).toBe(true);
  });

  test('of completions has a list of rooms', async () => {
    const [, decode] = await both(deploy(), COMPLETIONS, inRoom({ prompt: prompts }, '[1,2,3]'));
    expect(decode['choices']).toHaveLength(3);
  });

  test.each<[string, Json, string]>([
    ['rooms', {}, '[1,2]'],
    ['no rooms', {}, '[]'],
    ['hosts', { bootstrap_host: ['127.0.0.1'] }, '1'],
    ['ports', { bootstrap_port: [8998, 8998] }, '1'],
    ['rooms without end', {}, '9223372036854775806'],
    ['sampling_params', { sampling_params: [{}] }, '1'],
  ])('is refused with other %s', async (_name, more, room) => {
    expect((await deploy().prefill(post(NATIVE, inRoom(native, room, more)))).status).toBe(400);
  });

  test('fails as a whole when one room is taken, and leaves the others', async () => {
    const { prefill, decode, lose } = deploy();
    const whole = prefill(post(NATIVE, inRoom(native, '[1,2,3]')));
    expect((await prefill(post(NATIVE, inRoom(native, '[4,5,2]')))).status).toBe(500);
    expect((await prefill(post(NATIVE, inRoom(native, '[6,6,7]')))).status).toBe(500);
    const alone = decode(post(NATIVE, inRoom({ text: 'a fox' }, '4')));
    ok(await decode(post(NATIVE, inRoom(native, '[1,2,3]'))));
    ok(await whole);
    lose();
    expect((await alone).status).toBe(500);
  });
});

describe('samples of one prompt', () => {
  const asked = {
    text: 'The quick brown fox',
    sampling_params: { max_new_tokens: 4, n: 3 },
    return_routed_experts: true,
  };

  test('share a room, and wait forever', async () => {
    const { prefill, decode, lose } = deploy();
    const legs = [prefill, decode].map((engine) => engine(post(NATIVE, inRoom(asked))));
    lose();
    expect((await Promise.all(legs)).map(({ status }) => status)).toEqual([500, 500]);
  });

  test('have a room each where SGLang knows to', async () => {
    const deployment = deploy({ parallelSampling: true });
    const [prefill, decode] = await both(deployment, NATIVE, inRoom(asked));
    const oracle = ok(deployment.oracle(post(NATIVE, asked)));
    expect(decode).toHaveLength(3);
    expect(new Set(decode.map((item: Json) => item['text'])).size).toBe(3);
    arraysOf(oracle).forEach((truth, i) => {
      const [ours, mine] = [arraysOf(prefill)[i]!, arraysOf(decode)[i]!];
      expect(Buffer.concat([ours, mine.subarray(ours.length)]).equals(truth)).toBe(true);
    });
  });
});

describe('indexer_topk', () => {
  const indexer = { layers: 3, topK: 4 };
  const asked = (more: Json = {}): Json => ({
    ...BODIES[NATIVE],
    return_routed_experts: true,
    return_indexer_topk: true,
    ...more,
  });
  const positions = (reply: Json) => int32(bytes(reply['meta_info'].indexer_topk));
  const size = indexer.layers * indexer.topK;

  test('has a row for each token but the last, stands behind the experts, and has -1 and 0', () => {
    const reply = ok(deploy({ indexer }).oracle(post(NATIVE, JSON.stringify(asked()))));
    const { prompt_tokens: prompt, completion_tokens: generated } = reply['meta_info'];
    expect(positions(reply)).toHaveLength((prompt + generated - 1) * size);
    expect(positions(reply)).toEqual(expect.arrayContaining([-1, 0, 1]));
    const keys = Object.keys(reply['meta_info']);
    const at = keys.indexOf('routed_experts');
    expect(keys.slice(at, at + 3)).toEqual(['routed_experts', 'indexer_topk', 'dp_rank']);
  });

  test('has all rows, whatever experts were asked for', () => {
    const { oracle } = deploy({ indexer });
    const [all, late] = [0, 2].map((routed_experts_start_len) =>
      ok(oracle(post(NATIVE, JSON.stringify(asked({ routed_experts_start_len }))))),
    );
    expect(positions(late!)).toEqual(positions(all!));
    expect(arraysOf(late!)[0]!.length).toBe(arraysOf(all!)[0]!.length - 2 * ROW);
  });

  test.each(['zeros', 'stale'] as const)(
    'decode has %s for the prompt, and prefill lacks it',
    async (promptRows) => {
      const deployment = deploy({ indexer, promptRows });
      const oracle = positions(ok(deployment.oracle(post(NATIVE, JSON.stringify(asked())))));
      const [prefill, decode] = await both(deployment, NATIVE, inRoom(asked()));
      expect(prefill['meta_info']).toHaveProperty('routed_experts');
      expect(prefill['meta_info']).not.toHaveProperty('indexer_topk');
      const prompt = decode['meta_info'].prompt_tokens * size;
      const ours = positions(decode);
      expect(ours.slice(prompt)).toEqual(oracle.slice(prompt));
      expect(ours.slice(0, prompt)).not.toEqual(oracle.slice(0, prompt));
      expect(ours.slice(0, prompt).every((position) => position === 0)).toBe(promptRows === 'zeros');
    },
  );

  test('a prefill that returns it has the rows of the prompt', async () => {
    const deployment = deploy({ indexer: { ...indexer, ofPrefill: true } });
    const oracle = positions(ok(deployment.oracle(post(NATIVE, JSON.stringify(asked())))));
    const [prefill] = await both(deployment, NATIVE, inRoom(asked()));
    expect(positions(prefill)).toEqual(oracle.slice(0, prefill['meta_info'].prompt_tokens * size));
  });

  test('nobody gets it who does not ask, and no chat of SGLang 0.5.23', () => {
    const { oracle } = deploy({ indexer });
    const { return_indexer_topk: _, ...without } = asked();
    expect(ok(oracle(post(NATIVE, JSON.stringify(without))))['meta_info']).not.toHaveProperty('indexer_topk');
    const chat = { ...BODIES[CHAT], return_indexer_topk: true, return_meta_info: true };
    const reply = ok(oracle(post(CHAT, JSON.stringify(chat))));
    expect(reply['choices'][0].meta_info).not.toHaveProperty('indexer_topk');
  });
});
