// What a VM remembers of a Mooncake bootstrap server: the ranks, which take turns until a leg has
// failed. Which engine a rank is, the server is asked in each exchange, while prefill works.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Engine, EngineReply, Result, Scenario } from '../scenario.ts';
import { header } from './case.ts';
import {
  Event,
  expectError,
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

/** An engine that says so when it is asked. */
const telling =
  (asked: Event, engine: Engine): Engine =>
  (request) => {
    asked.happen();
    return engine(request);
  };

/** An engine that answers only when something has happened. */
const behind =
  ({ happened }: Event, engine: Engine): Engine =>
  async (request) => {
    await happened;
    return engine(request);
  };

/** An engine that says when its answer has been read to its end. */
const read = (seen: Event, of: EngineReply): EngineReply => ({
  ...of,
  read: (pieces) => void (pieces > of.chunks.length && seen.happen()),
});

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

    test('take turns, and their engines are asked for in each exchange', async () => {
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
      // In sequence the server is asked twice when prefill has taken more than a second, as it may
      // on a busy machine.
      if (concurrent) expect(legs.map(({ queries }) => queries)).toEqual([1, 1, 1, 1, 1, 1, 1]);
    });

    /** For exchanges whose engines wait for each other, also on a busy machine. */
    const PATIENT = { timeout_ms: 5000 };

    /**
     * Engines that show that the ranks are remembered: the bootstrap server answers only when
     * prefill has its leg.
     */
    const remembering = (ids: Record<string, string>) => {
      const leg = new Event();
      return {
        prefill: telling(leg, answering(MOONCAKE_PREFILL)),
        bootstrap: behind(leg, ranks(ids)),
      };
    };

    test('prefill’s leg does not wait for the server', async () => {
      const { run } = server({ 0: 'old', 1: 'old too' }, PATIENT);
      expect(told(await run())).toEqual({ rank: '0', engine: 'old', queries: 1 });
      const decodeAsked = new Event();
      const { prefill, bootstrap } = remembering({ 0: 'new', 1: 'new too' });
      const result = await run({
        // Where both legs are sent at once, decode has its own before prefill answers.
        prefill: async (request) => {
          const answer = await prefill(request);
          if (concurrent) await decodeAsked.happened;
          return answer;
        },
        bootstrap,
        decode: telling(decodeAsked, answering(GOOD_DECODE)),
      });
      expect(told(result)).toEqual({ rank: '1', engine: 'new too', queries: 1 });
      expect(result.body.toString()).toBe(GOOD_MERGED);
    });

    test('decode’s leg waits for the server, though prefill has answered', async () => {
      const { run } = server({ 0: 'old' }, PATIENT);
      await run();
      const answered = new Event();
      const result = await run({
        prefill: () => read(answered, reply(MOONCAKE_PREFILL)),
        bootstrap: behind(answered, ranks({ 0: 'new' })),
      });
      expect(told(result)).toEqual({ rank: '0', engine: 'new', queries: 1 });
      expect(result.body.toString()).toBe(GOOD_MERGED);
    });

    test.each<[string, Engine]>([
      ['fails', (request) => status(500)(request)],
      ['says nonsense', answering('ready')],
      ['does not name the rank any more', ranks({ 1: 'one' })],
    ])('a server that %s while prefill works: what on_prefill_failure says', async (_name, bootstrap) => {
      const { run } = server({ 0: 'old' }, PATIENT);
      await run();
      const decodeAsked = new Event();
      const alone = await run({
        // This reply comes when decode serves the request alone, and nobody reads it.
        prefill: behind(decodeAsked, answering(MOONCAKE_PREFILL)),
        bootstrap,
        decode: telling(decodeAsked, answering(GOOD_DECODE)),
      });
      expect(alone.body.toString()).toBe(GOOD_DECODE);
      expect(told(alone)).toEqual({ rank: '0', engine: undefined, queries: 1 });
      const failures = { 'routed_experts.prefill_failures': 1 };
      expect(alone.counters).toEqual({ 'routed_experts.local': 1, ...failures });
      await run();
      const refused = await run({ bootstrap }, { on_prefill_failure: 'reject' });
      const message = 'prefill failed: the bootstrap server does not tell its ranks';
      expectError(refused, 502, 'BadGatewayError', message);
      expect(refused.decodeRequests).toEqual([]);
      expect(refused.counters).toEqual({ 'routed_experts.rejected': 1, ...failures });
    });

    test('a late answer of the server is not taken for one of a second try', async () => {
      const { run } = server({ 0: 'old' }, { ...PATIENT, retries: 1 });
      await run();
      const [again, late] = [new Event(), new Event()];
      let legs = 0;
      let queries = 0;
      const result = await run({
        prefill: async (request) => {
          if (++legs === 1) return status(500)(request);
          again.happen();
          await late.happened;
          return answering(MOONCAKE_PREFILL)(request);
        },
        bootstrap: async (request) => {
          if (++queries > 1) return ranks({ 0: 'new' })(request);
          await again.happened;
          return read(late, reply('{"0":{"engine_id":"late"}}'));
        },
      });
      expect(told(result)).toEqual({ rank: '0', engine: 'new', queries: 2 });
      expect(result.body.toString()).toBe(GOOD_MERGED);
      expect(result.prefillRequests).toHaveLength(2);
      expect(result.counters).toMatchObject({
        'routed_experts.merged': 1,
        'routed_experts.prefill_failures': 1,
      });
    });

    test('a client leaves while prefill and the server are asked', async () => {
      const { run } = server({ 0: 'a' });
      await run();
      const [leg, query] = [new Event(), new Event()];
      const stall = answering('', { fault: 'stall' });
      const result = await run({
        prefill: telling(leg, stall),
        bootstrap: telling(query, stall),
        leave: Promise.all([leg.happened, query.happened]),
      });
      expect(result.complete).toBe(false);
      expect(result.decodeRequests).toEqual([]);
      expect(result.counters).toEqual({ 'routed_experts.aborted': 1 });
      expect((await run()).body.toString()).toBe(GOOD_MERGED);
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
    ])('are forgotten when %s', async (_name, failing) => {
      const { run, restart } = server({ 0: 'old' });
      expect(told(await run()).engine).toBe('old');
      const failed = await run(failing, { on_unmergeable: 'forward' });
      expect(failed.body.toString()).not.toBe(GOOD_MERGED);
      restart({ 1: 'new' });
      const next = await run();
      expect(told(next)).toEqual({ rank: '1', engine: 'new', queries: 1 });
      expect(next.body.toString()).toBe(GOOD_MERGED);
    });

    test.each([
      ['decode answers 400', { decode: status(400) }],
      ['decode has no routing', { decode: answering('{"choices":[]}') }],
    ])('are not forgotten when %s', async (_name, more) => {
      const { run } = server({ 0: 'a' }, PATIENT);
      await run();
      await run(more);
      expect(told(await run(remembering({ 0: 'b' })))).toEqual({ rank: '0', engine: 'b', queries: 1 });
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
      const { run } = server({ 0: 'one' }, { ...PATIENT, bootstrap_ttl_ms: 2000 });
      expect(told(await run())).toEqual({ rank: '0', engine: 'one', queries: 1 });
      expect(told(await run(remembering({ 0: 'two' })))).toMatchObject({ rank: '0', engine: 'two' });
      await host.pass(2100);
      const other = { bootstrap: ranks({ 3: 'three' }) };
      expect(told(await run(other))).toEqual({ rank: '3', engine: 'three', queries: 1 });
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
