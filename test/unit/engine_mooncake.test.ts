// The simulated MooncakeConnector: both legs name one transfer, and decode waits for the prefill
// engine that holds it.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { createEngine, type Awaitable, type EngineOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import type { EngineReply, EngineRequest, Header } from '../scenario.ts';
import { json, ok, post, text, withSampling, type Json } from './exchanges.ts';

type Concurrent = SimulatedEngine<Awaitable>;

interface Deployment {
  prefill: Concurrent;
  decode: Concurrent;
  oracle: SimulatedEngine;
  /** Ends the waiting of every leg: its patience is over. */
  lose(): void;
}

function deploy(options: Partial<EngineOptions> = {}): Deployment {
  const fleet = new Fleet();
  let lose!: () => void;
  const over = new Promise<void>((resolve) => (lose = resolve));
  const shared = { connector: 'mooncake', ranks: 2, fleet, patience: () => over, ...options } as const;
  return {
    prefill: createEngine({ ...shared, role: 'prefill' }),
    decode: createEngine({ ...shared, role: 'decode' }),
    oracle: createEngine({ ...shared, role: 'oracle' }),
    lose,
  };
}

const PATH = '/v1/completions';
const BODY: Json = { model: 'tiny', prompt: 'The quick brown fox', max_tokens: 5 };

const BODIES: Record<string, Json> = {
  [PATH]: BODY,
  '/v1/chat/completions': { messages: [{ role: 'user', content: 'The quick "fox"' }], max_tokens: 5 },
  '/inference/v1/generate': { token_ids: [61, 62, 63], sampling_params: { max_tokens: 5 } },
};

async function query(engine: Concurrent): Promise<EngineReply> {
  return engine({ method: 'GET', path: '/query', headers: [], body: Buffer.alloc(0) });
}

async function idsOf(engine: Concurrent): Promise<string[]> {
  return Object.values(ok(await query(engine))).map(({ engine_id }) => engine_id);
}

interface Leg {
  path?: string;
  body?: Json;
  transfer?: string;
  rank?: string | null;
  params?: Json;
}

function prefillLeg({ path = PATH, body = BODY, transfer = 'xfer-1', rank = '0', params }: Leg = {}) {
  const kv_transfer_params = {
    do_remote_decode: true,
    do_remote_prefill: false,
    transfer_id: transfer,
    ...params,
  };
  const headers: Header[] = rank === null ? [] : [['x-data-parallel-rank', rank]];
  return post(path, { ...withSampling(body, { max_tokens: 1 }), kv_transfer_params }, headers);
}

async function decodeLeg(
  engine: Concurrent,
  { path = PATH, body = BODY, transfer = 'xfer-1', rank = '0', params }: Leg = {},
): Promise<EngineRequest> {
  const kv_transfer_params = {
    do_remote_prefill: true,
    do_remote_decode: false,
    transfer_id: transfer,
    remote_bootstrap_addr: 'http://127.0.0.1:8998',
    remote_engine_id: (await idsOf(engine))[Number(rank)],
    ...params,
  };
  return post(path, { ...body, kv_transfer_params });
}

const rowsOf = (choice: Json) => decodeNpy(Buffer.from(choice['routed_experts'], 'base64'));

async function turns(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await nextTurn();
}

describe('one transfer', () => {
  test.each(Object.keys(BODIES))('merges to the oracle on %s', async (path) => {
    for (const version of ['0.30', '0.32'] as const) {
      for (const [rank, n] of [
        ['0', 1],
        ['1', 3],
      ] as const) {
        const deployment = deploy({ version, promptRows: 'stale' });
        const asked = withSampling(BODIES[path]!, { n });
        const oracle = ok(deployment.oracle(post(path, asked)));
        const body = withSampling(asked, { n: 1 });
        const prefill = ok(await deployment.prefill(prefillLeg({ path, body, rank })));
        const promptTokens = prefill['usage'].prompt_tokens;
        expect(prefill['kv_transfer_params']).toBeNull();
        expect(prefill['usage'].completion_tokens).toBe(1);
        const tail = version === '0.32' ? { routed_experts_prompt_start: promptTokens } : {};
        const leg = await decodeLeg(deployment.prefill, { path, body: withSampling(asked, tail), rank });
        const decode = ok(await deployment.decode(leg));
        const ours = rowsOf(prefill['choices'][0]).data;
        decode['choices'].forEach((choice: Json, i: number) => {
          const [mine, truth] = [rowsOf(choice), rowsOf(oracle['choices'][i])];
          const from = version === '0.32' ? 0 : ours.length;
          expect(Buffer.concat([ours, mine.data.subarray(from)]).equals(truth.data)).toBe(true);
          expect({ ...choice, routed_experts: 0 }).toEqual({ ...oracle['choices'][i], routed_experts: 0 });
        });
        expect(decode['usage']).toEqual(oracle['usage']);
      }
    }
  });

  test('has decode wait for prefill, which waits for nobody', async () => {
    const { prefill, decode } = deploy();
    let answered = false;
    const waiting = Promise.resolve(decode(await decodeLeg(prefill))).finally(() => (answered = true));
    await turns();
    expect(answered).toBe(false);
    ok(prefill(prefillLeg()) as EngineReply);
    ok(await waiting);
  });

  test.each<[string, Leg]>([
    ['another transfer', { transfer: 'xfer-2' }],
    ['another rank', { rank: '1' }],
  ])('is not %s: decode fails when its patience ends', async (_name, other) => {
    const { prefill, decode, lose } = deploy();
    ok(await prefill(prefillLeg(other)));
    let answered = false;
    const waiting = Promise.resolve(decode(await decodeLeg(prefill))).finally(() => (answered = true));
    await turns();
    expect(answered).toBe(false);
    lose();
    const reply = await waiting;
    expect(reply.status).toBe(500);
    expect(json(reply)).toEqual({
      error: { message: 'Internal server error', type: 'InternalServerError', param: null, code: 500 },
    });
  });

  test('ends a stream with the failure', async () => {
    const { prefill, decode, lose } = deploy();
    lose();
    const reply = await decode(await decodeLeg(prefill, { body: { ...BODY, stream: true } }));
    expect(reply.status).toBe(200);
    expect(text(reply)).toMatch(/^data: \{"error":\{.*"code":500\}\}\n\ndata: \[DONE\]\n\n$/);
  });

  test('is pulled once', async () => {
    const { prefill, decode, lose } = deploy();
    ok(await prefill(prefillLeg()));
    ok(await decode(await decodeLeg(prefill)));
    lose();
    expect((await decode(await decodeLeg(prefill))).status).toBe(500);
    expect((await prefill(prefillLeg())).status).toBe(400);
  });

  test('is kept as long as patience lasts', async () => {
    let lose!: () => void;
    const over = new Promise<void>((resolve) => (lose = resolve));
    const { prefill, decode } = deploy({ patience: () => over });
    ok(await prefill(prefillLeg()));
    lose();
    await turns();
    expect((await decode(await decodeLeg(prefill))).status).toBe(500);
  });

  test('waits for a decode that comes later, and is given up after a time', async () => {
    let giveUp!: () => void;
    const over = new Promise<void>((resolve) => (giveUp = resolve));
    const { prefill, decode, lose } = deploy({ keepsKv: () => over });
    ok(await prefill(prefillLeg()));
    await turns();
    expect([...prefill.fleet.kept]).toHaveLength(1);
    ok(await decode(await decodeLeg(prefill)));
    await turns();
    expect([...prefill.fleet.kept]).toEqual([]);
    ok(await prefill(prefillLeg({ transfer: 'xfer-2' })));
    giveUp();
    await turns();
    expect([...prefill.fleet.kept]).toEqual([]);
    lose();
    expect((await decode(await decodeLeg(prefill, { transfer: 'xfer-2' }))).status).toBe(500);
  });

  test('that cannot be loaded is computed by decode itself, under recompute', async () => {
    const { prefill, decode, oracle } = deploy({ kvLoadFailure: 'recompute', promptRows: 'stale' });
    ok(await prefill(prefillLeg()));
    const params = { remote_engine_id: 'of an engine that was there before' };
    const reply = ok(await decode(await decodeLeg(prefill, { params })));
    expect(reply['choices']).toEqual(ok(oracle(post(PATH, BODY)))['choices']);
    await turns();
    // Nobody tells prefill, which keeps its blocks.
    expect([...prefill.fleet.kept]).toHaveLength(1);
  });

  test('of an engine that is not known is waited for, under wait', async () => {
    const { prefill, decode, lose } = deploy({ kvLoadFailure: 'wait' });
    ok(await prefill(prefillLeg()));
    const params = { remote_engine_id: 'of an engine that was there before' };
    let answered = false;
    const waiting = Promise.resolve(decode(await decodeLeg(prefill, { params }))).finally(
      () => (answered = true),
    );
    await turns();
    expect(answered).toBe(false);
    lose();
    expect((await waiting).status).toBe(500);
  });

  test('is forgotten with the engine that offered it', async () => {
    const { prefill } = deploy();
    ok(await prefill(prefillLeg()));
    expect([...prefill.fleet.kept]).toHaveLength(1);
    prefill.restart();
    expect([...prefill.fleet.kept]).toEqual([]);
  });

  test('holds one prompt', async () => {
    const { prefill, decode } = deploy();
    ok(await prefill(prefillLeg()));
    const body = { ...BODY, prompt: 'The quick brown dog' };
    expect((await decode(await decodeLeg(prefill, { body }))).status).toBe(500);
  });

  test('does not come to be when the first token ends the answer', async () => {
    const { prefill, decode, lose } = deploy({ eosAfter: 1 });
    ok(await prefill(prefillLeg()));
    lose();
    expect((await decode(await decodeLeg(prefill))).status).toBe(500);
  });

  test('has no prompt_logprobs: decode dies', async () => {
    const { prefill, decode } = deploy();
    const body = { ...BODY, prompt_logprobs: 1 };
    expect(ok(await prefill(prefillLeg({ body })))['choices'][0].prompt_logprobs).toHaveLength(19);
    expect((await decode(await decodeLeg(prefill, { body }))).status).toBe(500);
    expect(decode.dead).toBe(true);
  });

  test('is not needed: each engine serves what has none', async () => {
    const deployment = deploy();
    const truth = ok(deployment.oracle(post(PATH, BODY)))['choices'];
    for (const engine of [deployment.prefill, deployment.decode]) {
      expect(ok(await engine(post(PATH, BODY)))['choices']).toEqual(truth);
    }
  });
});

describe('the bootstrap server', () => {
  test('tells the engine id of every rank', async () => {
    const { prefill } = deploy({ ranks: 3 });
    const answer = ok(await query(prefill));
    expect(Object.keys(answer)).toEqual(['0', '1', '2']);
    expect(new Set(await idsOf(prefill)).size).toBe(3);
    expect(answer['1']).toEqual({
      engine_id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      worker_addr: { 0: { 0: expect.stringMatching(/^tcp:\/\/127\.0\.0\.1:\d+$/) } },
    });
  });

  test('is part of a prefill engine', async () => {
    const { decode, oracle } = deploy();
    expect((await query(decode)).status).toBe(404);
    expect((await query(oracle)).status).toBe(404);
    expect((await query(createEngine({ role: 'prefill' }))).status).toBe(404);
  });

  test('is where the prefill engine says, IPv6 too', async () => {
    const bootstrap = { host: '::1', port: 0 };
    const { prefill, decode } = deploy({ bootstrap });
    bootstrap.port = 4242;
    ok(await prefill(prefillLeg()));
    const params = { remote_bootstrap_addr: 'http://[::1]:4242' };
    ok(await decode(await decodeLeg(prefill, { params })));
  });

  test('of a restarted engine has new ids, and the old ones fail', async () => {
    const { prefill, decode } = deploy();
    const [ids, before] = [await idsOf(prefill), await decodeLeg(prefill)];
    prefill.dead = true;
    prefill.restart();
    for (const id of await idsOf(prefill)) expect(ids).not.toContain(id);
    ok(await prefill(prefillLeg()));
    const reply = await decode(before);
    expect(reply.status).toBe(500);
    expect(json(reply)['error'].type).toBe('InternalServerError');
    ok(await decode(await decodeLeg(prefill)));
  });

  test.each(['http://127.0.0.1:8999', 'http://elsewhere:8998'])('is not at %s', async (address) => {
    const { prefill, decode } = deploy();
    ok(await prefill(prefillLeg()));
    const params = { remote_bootstrap_addr: address };
    expect((await decode(await decodeLeg(prefill, { params }))).status).toBe(500);
  });
});

describe('a leg', () => {
  const NO = undefined;

  test.each<[string, Leg]>([
    ['without rank', { rank: null }],
    ['of a rank too high', { rank: '2' }],
    ['of a negative rank', { rank: '-1' }],
    ['of a rank that is no number', { rank: 'x' }],
    ['without transfer_id', { params: { transfer_id: NO } }],
    ['with an empty transfer_id', { params: { transfer_id: '' } }],
    ['with a transfer_id that is a number', { params: { transfer_id: 1 } }],
    ['in both directions', { params: { do_remote_prefill: true } }],
    ['without a direction', { params: { do_remote_prefill: NO } }],
    ['to decode', { params: { do_remote_decode: false, do_remote_prefill: true } }],
    ['with keys of another connector', { params: { remote_engine_id: null } }],
    ['of two prompts', { body: { prompt: ['a', 'b'] } }],
    ['of two samples', { body: { prompt: 'a', n: 2 } }],
  ])('to prefill is refused %s', async (_name, leg) => {
    const reply = await deploy().prefill(prefillLeg(leg));
    expect(reply.status).toBe(400);
    expect(json(reply)['error'].type).toBe('BadRequestError');
  });

  test('to prefill is refused without a cap of one token', async () => {
    const { headers, body } = prefillLeg();
    const uncapped = { ...JSON.parse(body.toString()), max_tokens: 2 };
    expect((await deploy().prefill(post(PATH, uncapped, headers))).status).toBe(400);
  });

  test.each<[string, Json]>([
    ['without transfer_id', { transfer_id: NO }],
    ['without an engine', { remote_engine_id: NO }],
    ['with an engine that is null', { remote_engine_id: null }],
    ['without an address', { remote_bootstrap_addr: NO }],
    ['with an address without scheme', { remote_bootstrap_addr: '127.0.0.1:8998' }],
    ['with an address without port', { remote_bootstrap_addr: 'http://127.0.0.1' }],
    ['with a path', { remote_bootstrap_addr: 'http://127.0.0.1:8998/' }],
    ['in both directions', { do_remote_decode: true }],
    ['to prefill', { do_remote_decode: true, do_remote_prefill: false }],
    ['with a further key', { remote_host: 'x' }],
  ])('to decode is refused %s', async (_name, params) => {
    const { prefill, decode } = deploy();
    ok(await prefill(prefillLeg()));
    expect((await decode(await decodeLeg(prefill, { params }))).status).toBe(400);
    ok(await decode(await decodeLeg(prefill)));
  });

  test('to decode is refused with two prompts', async () => {
    const { prefill, decode } = deploy();
    const body = { prompt: ['a', 'b'] };
    expect((await decode(await decodeLeg(prefill, { body }))).status).toBe(400);
  });
});
