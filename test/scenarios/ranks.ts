// What a VM remembers of a Mooncake bootstrap server: the ranks take turns, and the filter asks for
// them again when a leg has failed.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Engine, EngineReply, Result, Scenario } from '../scenario.ts';
import { header } from './case.ts';
import {
  GOOD_DECODE,
  GOOD_MERGED,
  HANDSHAKES,
  MOONCAKE_PREFILL,
  REQUEST,
  answering,
  jsonOf,
  post,
  reply,
} from './messages.ts';
import { OUTCOMES, type Start, type TestHost } from './run.ts';

const HOST = '127.0.0.1';

const ranks = (ids: Record<string, string>): Engine =>
  answering(
    JSON.stringify(
      Object.fromEntries(
        Object.entries(ids).map(([rank, engine_id]) => [rank, { engine_id, worker_addr: {} }]),
      ),
    ),
  );

interface Leg {
  rank: string | undefined;
  engine: unknown;
  queries: number;
}

/** What the legs were told, and how often the bootstrap server was asked. */
function told({ prefillRequests, decodeRequests, bootstrapRequests }: Result): Leg {
  const params = decodeRequests[0] && jsonOf(decodeRequests[0])['kv_transfer_params'];
  return {
    rank: prefillRequests[0] && header(prefillRequests[0].headers, 'x-data-parallel-rank'),
    engine: (params as Record<string, unknown> | undefined)?.['remote_engine_id'],
    queries: bootstrapRequests.length,
  };
}

export function runRanks(start: Start): void {
  describe.each(HANDSHAKES)('ranks of a bootstrap server, %s', (handshake) => {
    const concurrent = handshake === 'concurrent';
    let host: TestHost;
    let sent = 0;
    let port = 20_000;
    beforeAll(async () => void (host = await start({})));
    afterAll(() => host?.close());

    /** Runs exchanges with one bootstrap server that no other exchange has asked. */
    function server(ids: Record<string, string>, own: Record<string, unknown> = {}) {
      const bootstrap_port = ++port;
      let current = ids;
      return {
        restart: (next: Record<string, string>) => void (current = next),
        run: (more: Partial<Scenario> = {}, config: Record<string, unknown> = {}): Promise<Result> => {
          sent++;
          return host.run({
            name: 'ranks',
            config: {
              connector: 'mooncake',
              handshake,
              ...config,
              prefill: { bootstrap_host: HOST, bootstrap_port, timeout_ms: 400, retries: 0, ...own },
            },
            client: post(REQUEST),
            prefill: answering(MOONCAKE_PREFILL),
            bootstrap: (request) => ranks(current)(request),
            decode: answering(GOOD_DECODE),
            ...more,
          });
        },
      };
    }

    test('are asked for once, and take turns', async () => {
      const { run } = server({ 0: 'a', 1: 'b', 2: 'c' });
      const legs: Leg[] = [];
      for (let i = 0; i < 7; i++) {
        const result = await run();
        expect(result.body.toString()).toBe(GOOD_MERGED);
        legs.push(told(result));
      }
      expect(legs.map(({ rank, engine }) => `${rank}${engine as string}`)).toEqual([
        '0a',
        '1b',
        '2c',
        '0a',
        '1b',
        '2c',
        '0a',
      ]);
      // In sequence the server is asked again when more than a second has passed, as it may on a
      // busy machine.
      if (concurrent) expect(legs.map(({ queries }) => queries)).toEqual([1, 0, 0, 0, 0, 0, 0]);
    });

    test('are those of the server: others are asked for theirs', async () => {
      const [one, two] = [server({ 0: 'one' }), server({ 0: 'two', 1: 'three' })];
      expect(told(await one.run())).toEqual({ rank: '0', engine: 'one', queries: 1 });
      expect(told(await two.run())).toEqual({ rank: '0', engine: 'two', queries: 1 });
      expect(told(await one.run())).toMatchObject({ rank: '0', engine: 'one' });
      expect(told(await two.run())).toMatchObject({ rank: '1', engine: 'three' });
    });

    test('may have any numbers', async () => {
      const { run } = server({ 7: 'seven', 127: 'last', 128: 'too many', x: 'none' });
      const engines = [await run(), await run(), await run()].map((result) => told(result).engine);
      expect(engines).toEqual(['seven', 'last', 'seven']);
    });

    test('stand in the URL of the server and its port', async () => {
      const result = await server({ 0: 'a' }).run();
      expect(jsonOf(result.decodeRequests[0]!)['kv_transfer_params']).toEqual({
        do_remote_prefill: true,
        do_remote_decode: false,
        transfer_id: expect.stringMatching(/^xfer-/) as string,
        remote_bootstrap_addr: `http://${HOST}:${port}`,
        remote_engine_id: 'a',
      });
      const [query] = result.bootstrapRequests;
      expect(query).toMatchObject({ method: 'GET', path: '/query' });
      expect(header(query!.headers, 'host')).toBe(`${HOST}:${port}`);
    });

    test('a client can not choose one', async () => {
      const { run } = server({ 0: 'a' });
      const client = post('{"prompt":"a","kv_transfer_params":{"remote_engine_id":"evil"}}');
      const headers = [...client.headers, ['x-data-parallel-rank', '9'] as [string, string]];
      const result = await run({ client: { ...client, headers } });
      expect(told(result)).toEqual({ rank: '0', engine: 'a', queries: 1 });
      expect(
        result.prefillRequests[0]!.headers.filter(([name]) => name === 'x-data-parallel-rank'),
      ).toHaveLength(1);
    });

    const status = (code: number): Engine => answering('{"error":{}}', { status: code });
    const fault = (of: EngineReply['fault']): Engine =>
      answering(MOONCAKE_PREFILL, { fault: of, pieces: [Buffer.from(MOONCAKE_PREFILL).subarray(0, 99)] });

    test.each<[string, Partial<Scenario>]>([
      ['prefill answers 500', { prefill: status(500) }],
      ['prefill answers 503', { prefill: status(503) }],
      ['prefill does not know the rank', { prefill: status(400) }],
      ['prefill resets', { prefill: fault('reset') }],
      ['prefill breaks off', { prefill: fault('reset_body') }],
      ['prefill is silent', { prefill: fault('stall') }],
      ['prefill answers nonsense', { prefill: answering('<html>') }],
      ['decode answers 500', { decode: status(500) }],
      ['decode resets', { decode: answering('', { fault: 'reset' }) }],
      [
        'decode breaks off',
        {
          decode: () =>
            reply(GOOD_DECODE, { fault: 'reset_body', pieces: [Buffer.from(GOOD_DECODE).subarray(0, 99)] }),
        },
      ],
    ])('are asked for again when %s', async (_name, failing) => {
      const { run, restart } = server({ 0: 'old' });
      expect(told(await run()).engine).toBe('old');
      restart({ 0: 'new' });
      const failed = await run(failing, { on_unmergeable: 'forward' });
      expect(failed.body.toString()).not.toBe(GOOD_MERGED);
      const next = await run();
      expect(told(next)).toEqual({ rank: '0', engine: 'new', queries: 1 });
      expect(next.body.toString()).toBe(GOOD_MERGED);
    });

    test.each([
      ['decode answers 400', { decode: status(400) }],
      ['decode has no routing', { decode: answering('{"choices":[]}') }],
    ])('are not asked for again when %s', async (_name, more) => {
      const { run } = server({ 0: 'a' });
      await run();
      await run(more);
      if (concurrent) expect(told(await run()).queries).toBe(0);
    });

    const ONE = '{"0":{"engine_id":"one"}}';
    const TWO = '{"0":{"engine_id":"two"}}';
    const AT_ONCE = { bootstrap_ttl_ms: 0 };

    /** A server that says each of these once, and the last one for ever. */
    const saying = (...answers: string[]): Engine => {
      let at = 0;
      return (request) => answering(answers[Math.min(at++, answers.length - 1)]!)(request);
    };

    test('are asked for again when what is known of them is too old', async () => {
      const { run } = server({}, AT_ONCE);
      const bootstrap = saying(...(concurrent ? [ONE, TWO] : [ONE, ONE, TWO]));
      const legs = [told(await run({ bootstrap })), told(await run({ bootstrap }))];
      // In sequence each exchange asks before prefill's leg, and once more before decode's.
      const queries = concurrent ? 1 : 2;
      expect(legs).toEqual([
        { rank: '0', engine: 'one', queries },
        { rank: '0', engine: 'two', queries },
      ]);
    });

    test('are asked for again after bootstrap_ttl_ms, and not before', async () => {
      // Only a busy machine takes half of this time for one exchange.
      const { run } = server({}, { bootstrap_ttl_ms: 2000 });
      const bootstrap = saying(ONE, TWO);
      expect(told(await run({ bootstrap })).engine).toBe('one');
      if (concurrent) expect(told(await run({ bootstrap }))).toMatchObject({ engine: 'one', queries: 0 });
      await host.pass(2100);
      expect(told(await run({ bootstrap }))).toMatchObject({ engine: 'two', queries: 1 });
    });

    if (!concurrent) {
      test('are those of the engine that has answered: it has restarted since it was asked', async () => {
        const { run } = server({}, AT_ONCE);
        const result = await run({ bootstrap: saying(ONE, TWO) });
        expect(told(result)).toEqual({ rank: '0', engine: 'two', queries: 2 });
        expect(result.body.toString()).toBe(GOOD_MERGED);
      });

      test('are asked for again when prefill has taken more than a second', async () => {
        const { run } = server({}, { timeout_ms: 5000 });
        const prefill: Engine = async (request) => {
          await host.pass(1100);
          return answering(MOONCAKE_PREFILL)(request);
        };
        const result = await run({ bootstrap: saying(ONE, TWO), prefill });
        expect(told(result)).toEqual({ rank: '0', engine: 'two', queries: 2 });
      });

      test.each([
        ['does not name the rank any more', saying(ONE, '{"1":{"engine_id":"two"}}')],
        ['says nonsense', saying(ONE, 'ready')],
      ])('are not known when the server %s: decode alone', async (_name, bootstrap) => {
        const { run } = server({}, AT_ONCE);
        const result = await run({ bootstrap });
        expect(result.body.toString()).toBe(GOOD_DECODE);
        expect(told(result)).toEqual({ rank: '0', engine: undefined, queries: 2 });
        expect(result.counters).toMatchObject({
          'routed_experts.local': 1,
          'routed_experts.prefill_failures': 1,
        });
      });
    }

    test('a server that fails is asked again', async () => {
      const { run } = server({ 0: 'a' });
      const failed = await run({ bootstrap: status(500) });
      expect(failed.body.toString()).toBe(GOOD_DECODE);
      expect(told(await run())).toEqual({ rank: '0', engine: 'a', queries: 1 });
    });

    test('every exchange had exactly one outcome, and no VM has failed', async () => {
      const outcomes = await Promise.all(OUTCOMES.map((outcome) => host.metric(`routed_experts.${outcome}`)));
      expect(outcomes.reduce((a, b) => a + b)).toBe(sent);
      expect(await host.metric('routed_experts.held_bytes')).toBe(0);
      expect(await host.failures()).toEqual([]);
    });
  });
}
