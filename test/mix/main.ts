// `npm run test:mix`: many clients at once, some of which leave, through one Envoy with several workers, before engines of every
// kind, some of which abort. Whatever is complete is compared with the engine that does both; an exchange that nothing
// comes of for `--stall` seconds is told about with all that Envoy, the engines and the client have seen of it.
//
//     npm run test:mix -- --requests 3000 --clients 64 --workers 4 --seed 1 --aborts 6 --leavers 5
//
// Rates are percent: of legs that abort, of clients that leave. What stands behind a further `--` goes to Envoy.

import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { load } from '../../bench/machine.ts';
import { table } from '../../bench/report.ts';
import { digits, quantile } from '../../bench/stats.ts';
import { Problem, runMain } from '../../tools/problem.mjs';
import { serveEngine } from '../engine/server.ts';
import { sendHttp1 } from '../envoy/http1.ts';
import { sendHttp2 } from '../envoy/http2.ts';
import { createPlant, type Plant } from '../envoy/plant.ts';
import { waitFor } from '../envoy/wait.ts';
import type { ClientRequest, Engine, EngineRequest } from '../scenario.ts';
import { Random } from '../unit/random.ts';
import { DEPLOYMENTS, enginesOf, type Engines } from './deployments.ts';
import { Exchange, type Leg, type Rates, type Reply } from './exchange.ts';
import { judge } from './judge.ts';

const ID = 'x-mix';
/** Of a client; what stalls is told about long before. */
const PATIENCE_MS = 60_000;
const TRAP = /Uncaught RuntimeError|wasm_fail|Function: \w+ failed/;

interface Options {
  requests: number;
  clients: number;
  workers: number;
  seed: number;
  /** Seconds. */
  stall: number;
  rates: Rates;
  /** Arguments for Envoy. */
  args: string[];
}

interface Ended {
  exchange: Exchange;
  reply: Reply;
  came: string;
  wrong?: string;
}

class Mix {
  readonly exchanges = new Map<string, Exchange>();
  readonly ended: Ended[] = [];
  readonly engines: Engines[];
  readonly stalled: string[] = [];
  readonly random: Random;
  #plant!: Plant;

  constructor(readonly options: Options) {
    this.random = new Random(options.seed);
    this.engines = DEPLOYMENTS.map((deployment) =>
      enginesOf(deployment, (leg) => (_ordinal, request) => this.#of(request)?.asked(leg as Leg)),
    );
  }

  #of({ headers }: EngineRequest): Exchange | undefined {
    return this.exchanges.get(headers.find(([name]) => name === ID)?.[1] ?? '');
  }

  /** The engines of all deployments behind one port: a request's id says whose it is. */
  #leg(leg: Leg): Engine {
    return async (request) => {
      const exchange = this.#of(request);
      if (!exchange) throw new Error('nobody has sent this request');
      await this.#pause(4);
      const reply = await this.engines[DEPLOYMENTS.indexOf(exchange.deployment)]![leg](request);
      exchange.note(`${leg} answers ${reply.fault ?? reply.status}`);
      const whole = Buffer.concat(reply.chunks);
      const chunks = this.random.cuts(whole.length, this.random.pick([whole.length + 1, 5000, 1500]));
      let at = 0;
      return {
        ...reply,
        // A piece after the other, so that a client can leave between them.
        chunks: chunks.length > 20 ? [whole] : chunks.map((len) => whole.subarray(at, (at += len))),
        before: () => this.#pause(3),
        read: (pieces) => void (pieces > chunks.length && exchange.note(`${leg} has answered`)),
      };
    };
  }

  async #pause(most: number): Promise<void> {
    const ms = this.random.below(most);
    if (ms > 0) await setTimeout(ms);
  }

  async run(): Promise<string[]> {
    const { workers } = this.options;
    const prefill = await serveEngine(this.#leg('prefill'));
    const decode = await serveEngine(this.#leg('decode'));
    const mooncake = DEPLOYMENTS.findIndex(({ config }) => config['connector'] === 'mooncake');
    const bootstrap = await serveEngine(this.engines[mooncake]!.prefill);
    const [first, ...more] = DEPLOYMENTS.map(({ config }) => config);
    this.#plant = await createPlant({
      ...{ prefillPort: prefill.port, decodePort: decode.port, bootstrapPort: bootstrap.port },
      ...{ config: first, more, concurrency: workers, idHeader: ID, args: this.options.args },
    });
    const over = new AbortController();
    const watching = this.#watch(over.signal);
    try {
      let serial = 0;
      const client = async () => {
        while (serial < this.options.requests) await this.#serve(serial++);
      };
      await Promise.all(Array.from({ length: this.options.clients }, client));
      const left = await this.#settle();
      return [...left, ...this.stalled, ...(await this.#countedTwice())];
    } finally {
      over.abort();
      await watching;
      await this.#plant.close();
      for (const each of [prefill, decode, bootstrap]) await each.close();
    }
  }

  async #serve(serial: number): Promise<void> {
    const exchange = new Exchange(serial, this.random, this.options.rates);
    this.exchanges.set(exchange.id, exchange);
    const reply = await this.#send(exchange);
    exchange.ended = performance.now();
    exchange.note(`the client has ${reply.status}, ${reply.body.length} bytes, complete: ${reply.complete}`);
    const engines = this.engines[DEPLOYMENTS.indexOf(exchange.deployment)]!;
    const judged = await judge(exchange, reply, engines).catch((error: Error) => {
      return { came: 'not JSON', wrong: error.message };
    });
    this.ended.push({ exchange, reply, ...judged });
    if (this.ended.length % 500 === 0) console.log(`${this.ended.length} of ${this.options.requests}`);
  }

  async #send(exchange: Exchange): Promise<Reply> {
    const { path, body, client, leaving, leave } = exchange;
    const listener = DEPLOYMENTS.indexOf(exchange.deployment);
    if (leaving?.at === 'once') exchange.hangUp();
    if (leaving?.at === 'time') void setTimeout(leaving.ms).then(() => exchange.hangUp());
    void leave.then(() => exchange.note('the client leaves'));
    if (client === 'pool') {
      const answer = await this.#plant.send({ path, body, listener, headers: { [ID]: exchange.id }, leave });
      return { ...answer, trailers: [] };
    }
    const half = body.length >> 1;
    const request: ClientRequest = {
      ...{ method: 'POST', path },
      headers: [
        ['content-type', 'application/json'],
        ['content-length', String(body.length)],
        [ID, exchange.id],
      ],
      chunks: leaving?.at === 'half of the request' ? [body.subarray(0, half), body.subarray(half)] : [body],
    };
    return (client === 'http1' ? sendHttp1 : sendHttp2)({
      ...{ port: this.#plant.ports[listener]!, request, timeoutMs: PATIENCE_MS, leave },
      onBody: (bytes) => exchange.received(bytes),
      // Between its halves.
      arrived: async () => exchange.hangUp(),
    });
  }

  // ---- what stalls

  async #watch(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await setTimeout(500, undefined, { signal }).catch(() => undefined);
      const now = performance.now();
      const late = [...this.exchanges.values()].filter(
        ({ ended, started, told }) =>
          !told && ended === undefined && now - started > this.options.stall * 1000,
      );
      if (late.length > 0) await this.#tell('no answer', late);
    }
  }

  async #tell(what: string, late: Exchange[]): Promise<void> {
    for (const each of late) each.told = true;
    const open = [...this.exchanges.values()].filter(({ ended }) => ended === undefined).length;
    const lines = await this.#plant.log();
    const said = late.map((each) => {
      const line = lines.find(({ id }) => id === each.id);
      return `${what} of ${each.id}; access log: ${JSON.stringify(line ?? null)}\n  ${each.journal.join('\n  ')}`;
    });
    const stats = await this.#plant.stats(
      '(rq|cx)_active|pending_active|overflow|held_bytes|paused|timeout|idle',
    );
    const some = Object.entries(stats).filter(([, value]) => value !== 0);
    const clusters = (await this.#plant.envoy.admin('/clusters')).split('\n');
    console.log(
      [
        `\n${late.length} stalled (${what}); ${open} open, ${this.ended.length} ended, load ${load()}`,
        ...said,
        ...some.map(([name, value]) => `  ${name}: ${value}`),
        ...clusters
          .filter((line) => /::(rq|cx)_/.test(line) && !/::0$/.test(line))
          .map((line) => `  ${line}`),
        ...this.#plant.envoy.logs().split('\n').slice(-20),
      ].join('\n'),
    );
    this.stalled.push(...late.map(({ id }) => `${what}: ${id}`));
  }

  // ---- what is left behind

  /** Waits until nothing is left in Envoy; what is left when that does not come. */
  async #settle(): Promise<string[]> {
    let seen: Record<string, number> = {};
    const quiet = async () => {
      const stats = await this.#plant.stats(
        '(ingress\\.downstream|upstream)_rq_(active|pending_active)$|held_bytes$',
      );
      seen = Object.fromEntries(Object.entries(stats).filter(([, value]) => value !== 0));
      return Object.keys(seen).length === 0 ? true : undefined;
    };
    const limit = this.options.stall * 1000;
    const settled = await waitFor('Nothing is left', quiet, limit).catch(() => false);
    const logged = new Set((await this.#plant.log()).map(({ id }) => id));
    const late = [...this.exchanges.values()].filter(({ id, journal }) => {
      // A client that left before Envoy had its head never was one.
      return !logged.has(id) && journal.some((line) => /is asked|client has [1-9]/.test(line));
    });
    if (late.length > 0) await this.#tell('no end in the access log', late);
    await this.#tellWrong();
    const traps = this.#plant.envoy.logs().split('\n');
    return [
      ...(settled ? [] : [`left behind: ${JSON.stringify(seen)}`]),
      ...traps.filter((line) => TRAP.test(line)),
    ];
  }

  async #tellWrong(): Promise<void> {
    const lines = await this.#plant.log();
    for (const { exchange, wrong } of this.ended) {
      if (wrong === undefined) continue;
      const line = lines.find(({ id }) => id === exchange.id);
      const seen = exchange.journal.join('\n  ');
      console.log(
        `\nwrong, ${exchange.id}: ${wrong}; access log: ${JSON.stringify(line)}\n  ${exchange.body.toString().slice(0, 200)}\n  ${seen}`,
      );
    }
  }

  /** Every request that Envoy had has one outcome. */
  async #countedTwice(): Promise<string[]> {
    const total = await this.#plant.stats('^http\\.ingress\\.downstream_rq_total$');
    const outcomes = await this.#plant.outcomes();
    const counted = Object.values(outcomes).reduce((a, b) => a + b, 0);
    const requests = Object.values(total)[0] ?? 0;
    console.log(`\n${requests} requests in Envoy: ${JSON.stringify(outcomes)}`);
    const reset = await this.#plant.log().then((lines) => lines.filter(({ id }) => id == null).length);
    return counted === requests
      ? []
      : [`${requests} requests, ${counted} outcomes, ${reset} lines without an id`];
  }
}

function count<T>(of: readonly T[], name: (each: T) => string): [string, number][] {
  const counts = new Map<string, number>();
  for (const each of of) counts.set(name(each), (counts.get(name(each)) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a.localeCompare(b));
}

function numberOf(name: string, text: string | undefined, standard: number, least: number): number {
  const value = text === undefined ? standard : Number(text);
  if (!(Number.isInteger(value) && value >= least))
    throw new Problem(`--${name} is a whole number of at least ${least}.`);
  return value;
}

await runMain(import.meta.url, async () => {
  const text = { type: 'string' } as const;
  const { values, positionals } = parseArgs({
    options: {
      ...{ requests: text, clients: text, workers: text, seed: text, stall: text },
      ...{ aborts: text, leavers: text },
    },
    allowPositionals: true,
  });
  const options: Options = {
    requests: numberOf('requests', values.requests, 3000, 1),
    clients: numberOf('clients', values.clients, 64, 1),
    workers: numberOf('workers', values.workers, 4, 1),
    seed: numberOf('seed', values.seed, Math.floor(Math.random() * 0x7fffffff), 0),
    stall: numberOf('stall', values.stall, 20, 1),
    rates: {
      aborts: numberOf('aborts', values.aborts, 6, 0) / 100,
      leavers: numberOf('leavers', values.leavers, 5, 0) / 100,
    },
    // Behind `--`.
    args: positionals,
  };
  const { requests, clients, workers, seed } = options;
  console.log(`--seed ${seed}: ${requests} requests, ${clients} clients, ${workers} workers, load ${load()}`);
  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  const begun = performance.now();
  const mix = new Mix(options);
  const left = await mix.run();
  const seconds = (performance.now() - begun) / 1000;
  const wrong = mix.ended.filter((each) => each.wrong !== undefined);
  const times = mix.ended.map(({ exchange }) => exchange.ended! - exchange.started).sort((a, b) => a - b);
  console.log(
    [
      '',
      ...table(
        ['listener', 'what came', 'requests'],
        count(mix.ended, ({ exchange, came }) => `${exchange.deployment.name}|${came}`).map(([name, n]) => [
          ...name.split('|'),
          String(n),
        ]),
      ),
      '',
      `${mix.ended.length} exchanges in ${digits(seconds)} s, ${mix.ended.filter(({ exchange }) => exchange.leaving).length} with a client that leaves, ` +
        `${mix.ended.filter(({ exchange }) => exchange.faulty).length} with an engine that aborts; ${wrong.length} wrong; ` +
        `${mix.stalled.length} stalled; p50 ${digits(quantile(times, 0.5))} ms, p99 ${digits(quantile(times, 0.99))} ms, ` +
        `longest ${digits(times.at(-1)!)} ms; this process was busy for up to ${digits(delay.max / 1e6)} ms at a time`,
    ].join('\n'),
  );
  if (wrong.length > 0 || left.length > 0) {
    throw new Problem(`--seed ${seed}: ${wrong.length} wrong; ${left.join('; ') || 'nothing stalled'}`);
  }
});
