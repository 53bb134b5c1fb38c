// One run of the mix: starts the engines and Envoy, sends the requests, and judges how each
// exchange ended.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { load } from '../../bench/machine.ts';
import { ROOT } from '../../tools/paths.mjs';
import { serveEngine } from '../engine/server.ts';
import type { SendOptions } from '../envoy/client.ts';
import type { LogLine } from '../envoy/config.ts';
import { sendHttp1 } from '../envoy/http1.ts';
import { sendHttp2 } from '../envoy/http2.ts';
import { createPlant, type Plant } from '../envoy/plant.ts';
import { waitFor } from '../envoy/wait.ts';
import type { ClientRequest, Engine, EngineRequest } from '../scenario.ts';
import { Random } from '../unit/random.ts';
import { DEPLOYMENTS, enginesOf, type Deployment, type Engines } from './deployments.ts';
import { Exchange, type HangUp, type Leg, type Rates, type Reply } from './exchange.ts';
import { judge, type Judged } from './judge.ts';

const ID = 'x-mix';
/** How long a client waits for its answer. A stalled exchange is reported long before that. */
const PATIENCE_MS = 60_000;
const TRAP = /Uncaught RuntimeError|wasm_fail|Function: \w+ failed/;
/** The gauges that are 0 while no request is being served. */
const GAUGES = '(ingress\\.downstream|upstream)_rq_(active|pending_active)$|held_bytes$';

const HANG_UPS: Record<HangUp, SendOptions['hangUp']> = {
  close: (socket) => socket.destroy(),
  reset: (socket) => socket.resetAndDestroy(),
  'half-close': (socket) => socket.end(),
};

export interface Options {
  requests: number;
  clients: number;
  workers: number;
  seed: number;
  /** The number of seconds after which an exchange without an end counts as stalled. */
  stall: number;
  rates: Rates;
  /** Further arguments for Envoy. */
  args: string[];
}

export interface Ended extends Judged {
  exchange: Exchange;
  reply: Reply;
  /** The outcome in Envoy's access log; undefined if the client left before Envoy had its head. */
  outcome?: string | undefined;
}

/** The number of requests of which some are audited, whatever the seed. */
const ENOUGH_FOR_AUDITS = 500;

export class Mix {
  readonly exchanges = new Map<string, Exchange>();
  readonly ended: Ended[] = [];
  /** The stalled exchanges; each was reported with evidence. */
  readonly stalled: string[] = [];
  /**
   * Everything else that must not happen: something left behind, a trap, or a request without
   * exactly one outcome.
   */
  readonly faults: string[] = [];
  readonly #engines: Engines[];
  readonly #random: Random;
  readonly #evidence: string;
  #plant!: Plant;

  constructor(readonly options: Options) {
    this.#random = new Random(options.seed);
    this.#evidence = join(ROOT, 'build', 'mix', String(options.seed));
    const made = new Map<Deployment['engine'], Engines>();
    this.#engines = DEPLOYMENTS.map((deployment) => {
      const { engine } = deployment;
      const engines =
        made.get(engine) ??
        enginesOf(deployment, (leg) => (_ordinal, request) => this.#of(request)?.asked(leg as Leg));
      made.set(engine, engines);
      return engines;
    });
  }

  get wrong(): Ended[] {
    return this.ended.filter((each) => each.wrong !== undefined);
  }

  async run(): Promise<void> {
    const { workers, requests, clients } = this.options;
    const prefill = await serveEngine(this.#leg('prefill'));
    const decode = await serveEngine(this.#leg('decode'));
    const mooncake = DEPLOYMENTS.findIndex(({ config }) => config['connector'] === 'mooncake');
    const bootstrap = await serveEngine(this.#engines[mooncake]!.prefill);
    const audit = await serveEngine((request) => this.#enginesOf(this.#exchangeOf(request)).oracle(request));
    const [first, ...more] = DEPLOYMENTS.map(({ config }) => config);
    this.#plant = await createPlant({
      ...{ prefillPort: prefill.port, decodePort: decode.port, bootstrapPort: bootstrap.port },
      auditPort: audit.port,
      ...{ config: first, more, concurrency: workers, idHeader: ID, args: this.options.args },
    });
    const over = new AbortController();
    const watching = this.#watch(over.signal);
    try {
      let serial = 0;
      const client = async () => {
        while (serial < requests) await this.#serve(serial++);
      };
      await Promise.all(Array.from({ length: clients }, client));
      await this.#settle();
      await this.#tellWrong();
    } finally {
      over.abort();
      await watching;
      await this.#plant.close();
      for (const each of [prefill, decode, bootstrap, audit]) await each.close();
    }
  }

  #of({ headers }: EngineRequest): Exchange | undefined {
    return this.exchanges.get(headers.find(([name]) => name === ID)?.[1] ?? '');
  }

  #exchangeOf(request: EngineRequest): Exchange {
    const exchange = this.#of(request);
    if (!exchange) throw new Error('nobody has sent this request');
    return exchange;
  }

  #enginesOf({ deployment }: Exchange): Engines {
    return this.#engines[DEPLOYMENTS.indexOf(deployment)]!;
  }

  /**
   * Serves one leg of all deployments behind one port; the id in a request tells whose engine must
   * answer.
   */
  #leg(leg: Leg): Engine {
    return async (request) => {
      const exchange = this.#exchangeOf(request);
      await this.#pause(4);
      const reply = await this.#enginesOf(exchange)[leg](request);
      exchange.goes(leg, `answers ${reply.fault ?? reply.status}`);
      const whole = Buffer.concat(reply.chunks);
      if (leg === 'decode' && exchange.faulty) exchange.damaged = whole;
      const lengths = this.#random.cuts(whole.length, this.#random.pick([whole.length + 1, 5000, 1500]));
      let at = 0;
      // The reply is sent piece by piece, so that a client can leave between two pieces.
      const chunks = lengths.length > 20 ? [whole] : lengths.map((len) => whole.subarray(at, (at += len)));
      return {
        ...reply,
        chunks,
        before: () => this.#pause(3),
        read: (pieces) => void (pieces > chunks.length && exchange.goes(leg, 'has answered')),
      };
    };
  }

  async #pause(most: number): Promise<void> {
    const ms = this.#random.below(most);
    if (ms > 0) await setTimeout(ms);
  }

  async #serve(serial: number): Promise<void> {
    const exchange = new Exchange(serial, this.options.seed, this.options.rates);
    this.exchanges.set(exchange.id, exchange);
    const reply = await this.#send(exchange);
    exchange.ended = performance.now();
    exchange.note(`the client has ${reply.status}, ${reply.body.length} bytes, complete: ${reply.complete}`);
    const engines = this.#enginesOf(exchange);
    const judged = await judge(exchange, reply, engines).catch((error: Error) => {
      return { came: 'not JSON', wrong: error.message };
    });
    this.ended.push({ exchange, reply, ...judged });
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
      hangUp: HANG_UPS[exchange.hangsUpBy],
      onBody: (bytes) => exchange.received(bytes),
      // Called between the two halves of the request.
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

  /**
   * Reports what the client, the engines and Envoy have seen of the exchanges: a summary on the
   * terminal, and Envoy's admin pages in `build/mix`.
   */
  async #tell(what: string, late: Exchange[]): Promise<void> {
    for (const each of late) each.told = true;
    const open = [...this.exchanges.values()].filter(({ ended }) => ended === undefined).length;
    const lines = linesById(await this.#plant.log());
    const active = await this.#plant.stats('rq_(active|pending_active)$|_overflow$|held_bytes$');
    mkdirSync(this.#evidence, { recursive: true });
    for (const page of ['clusters', 'stats', 'listeners', 'config_dump']) {
      writeFileSync(join(this.#evidence, `${page}.txt`), await this.#plant.envoy.admin(`/${page}`));
    }
    writeFileSync(join(this.#evidence, 'envoy.txt'), this.#plant.envoy.logs());
    console.log(
      [
        `\n${late.length} stalled (${what}); ${open} open, ${this.ended.length} ended, load ${load()}`,
        ...late.flatMap((each) => [
          `${what} of ${each.id}; ${each.waitsFor}; access log: ${JSON.stringify(lines.get(each.id) ?? null)}`,
          ...each.journal.map((line) => `  ${line}`),
        ]),
        ...nonZero(active).map(([name, value]) => `  ${name}: ${value}`),
      ].join('\n'),
    );
    this.stalled.push(...late.map(({ id }) => `${what}: ${id}`));
  }

  // ---- what is left behind

  /** Waits until Envoy serves no request and holds no bytes any more, and checks what is left. */
  async #settle(): Promise<void> {
    let left = '';
    const quiet = async () => {
      const open = nonZero(await this.#plant.stats(GAUGES));
      left = JSON.stringify(Object.fromEntries(open));
      return open.length === 0 ? true : undefined;
    };
    const settled = await waitFor('Nothing is left', quiet, this.options.stall * 1000).catch(() => false);
    // Envoy writes the line of an exchange after its last gauge has fallen. Of an exchange of which
    // it has seen nothing, it writes none.
    const unlogged = async () => {
      const logged = linesById(await this.#plant.log());
      const late = this.#seen.filter(({ id }) => !logged.has(id));
      return { logged, late };
    };
    const allLogged = async () => ((await unlogged()).late.length === 0 ? true : undefined);
    await waitFor('Every exchange is logged', allLogged, this.options.stall * 1000).catch(() => false);
    const { logged, late } = await unlogged();
    for (const each of this.ended) {
      each.outcome = logged.get(each.exchange.id)?.routed_experts?.split(';')[0];
    }
    if (late.length > 0) await this.#tell('no end in the access log', late);
    if (!settled) {
      // What is left may be the prefill call of a client that has left, because Envoy cannot cancel
      // a call.
      const alone = [...this.exchanges.values()].filter(
        ({ leaving, legs }) => leaving && legs.prefill && legs.prefill !== 'has answered',
      );
      if (alone.length > 0) await this.#tell('left behind, perhaps', alone);
      this.faults.push(`left behind: ${left}`);
    }
    this.faults.push(
      ...this.#plant.envoy
        .logs()
        .split('\n')
        .filter((line) => TRAP.test(line)),
    );
    await this.#countOutcomes();
    await this.#countAudits();
  }

  /**
   * The exchanges whose head has certainly reached Envoy. If a client left earlier, no line in the
   * access log is expected.
   */
  get #seen(): Exchange[] {
    return [...this.exchanges.values()].filter(
      ({ legs, journal }) =>
        legs.prefill || legs.decode || journal.some((line) => /client has [1-9]/.test(line)),
    );
  }

  /**
   * Checks that audits have found each row right, and that there are rows: of so many requests at
   * least one is audited.
   */
  async #countAudits(): Promise<void> {
    const name = 'wasmcustom.routed_experts.audit.';
    const found = await this.#plant.stats('^wasmcustom\\.routed_experts\\.audit\\.');
    const { failed, skipped, rows, rows_differing } = Object.fromEntries(
      Object.entries(found).map(([key, count]) => [key.slice(name.length), count]),
    );
    const none = !rows && this.options.requests >= ENOUGH_FOR_AUDITS;
    if (none || failed || skipped || rows_differing) this.faults.push(`audits: ${JSON.stringify(found)}`);
  }

  /** Checks that every request that reached Envoy has one outcome. */
  async #countOutcomes(): Promise<void> {
    const total = await this.#plant.stats('^http\\.ingress\\.downstream_rq_total$');
    const counted = Object.values(await this.#plant.outcomes()).reduce((a, b) => a + b, 0);
    const [requests = 0] = Object.values(total);
    if (counted !== requests) this.faults.push(`${requests} requests, ${counted} outcomes`);
  }

  async #tellWrong(): Promise<void> {
    const lines = linesById(await this.#plant.log());
    for (const { exchange, wrong } of this.wrong) {
      console.log(
        [
          `\nwrong, ${exchange.id}: ${wrong}`,
          `access log: ${JSON.stringify(lines.get(exchange.id) ?? null)}`,
          exchange.body.toString().slice(0, 200),
          ...exchange.journal.map((line) => `  ${line}`),
        ].join('\n'),
      );
    }
  }
}

const linesById = (lines: LogLine[]) => new Map(lines.map((line) => [line.id ?? '', line]));
const nonZero = (stats: Record<string, number>) => Object.entries(stats).filter(([, value]) => value !== 0);
