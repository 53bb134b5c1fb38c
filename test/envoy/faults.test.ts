// Faults on real Envoy alone: engines that break HTTP, engines that restart, an Envoy that is drained or configured anew,
// under load. After each: every request has had an answer and one outcome, and nothing is held.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { serveEngine, type EngineServer } from '../engine/server.ts';
import type { Engine } from '../scenario.ts';
import { header } from '../scenarios/case.ts';
import { GOOD_DECODE, GOOD_MERGED, GOOD_PREFILL, REQUEST } from '../scenarios/messages.ts';
import { createPlant, http, rawEngine, type Answer, type Plant, type PlantOptions } from './plant.ts';
import { waitFor } from './wait.ts';

const open: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.close();
});

const keep = <T extends { close(): Promise<void> }>(of: T): T => {
  open.push(of);
  return of;
};
const plant = async (options: PlantOptions) => keep(await createPlant(options));
const outcomeOf = ({ headers }: Answer) => header(headers, 'x-routed-experts');

// ---- engines that break HTTP

type Talk = Parameters<typeof rawEngine>[0];
const says =
  (...parts: string[]): Talk =>
  (socket) =>
    parts.forEach((part) => socket.write(part));
const saysAndEnds =
  (...parts: string[]): Talk =>
  (socket) => {
    parts.forEach((part) => socket.write(part));
    socket.end();
  };
const GOOD = { prefill: says(http(GOOD_PREFILL)), decode: says(http(GOOD_DECODE)) };

interface Fault {
  name: string;
  prefill?: Talk;
  decode?: Talk;
  check(answer: Answer): void;
}

const isLocal = (answer: Answer) => {
  expect(answer).toMatchObject({ status: 200, complete: true });
  expect(answer.body.toString()).toBe(GOOD_DECODE);
  expect(outcomeOf(answer)).toBe('local');
};
const isMerged = (answer: Answer) => {
  expect(answer).toMatchObject({ status: 200, complete: true });
  expect(answer.body.toString()).toBe(GOOD_MERGED);
  expect(outcomeOf(answer)).toMatch(/^merged; rows=5/);
};
/** An error, or a body that nobody can take for whole; never decode's prompt rows. */
const isRefused = ({ status, complete, body }: Answer) => {
  expect(status !== 200 || !complete).toBe(true);
  expect(GOOD_MERGED.startsWith(body.toString()) || status !== 200).toBe(true);
};

const LENGTH = Buffer.byteLength(GOOD_DECODE);

const FAULTS: Fault[] = [
  { name: 'prefill closes at once', prefill: saysAndEnds(), check: isLocal },
  { name: 'prefill sends no HTTP', prefill: saysAndEnds('SSH-2.0-x\r\n'), check: isLocal },
  {
    name: 'prefill announces more than it sends, and closes',
    prefill: saysAndEnds(http(GOOD_PREFILL, GOOD_PREFILL.length + 10)),
    check: isLocal,
  },
  {
    name: 'prefill announces more than it sends, and is silent',
    prefill: says(http(GOOD_PREFILL, GOOD_PREFILL.length + 10)),
    check: isLocal,
  },
  {
    name: 'prefill announces less than it sends',
    prefill: saysAndEnds(http(GOOD_PREFILL, GOOD_PREFILL.length - 10)),
    check: isLocal,
  },
  { name: 'prefill answers twice', prefill: says(http(GOOD_PREFILL), http(GOOD_PREFILL)), check: isMerged },
  {
    name: 'prefill answers until it closes',
    prefill: saysAndEnds(http(GOOD_PREFILL, null)),
    check: isMerged,
  },
  {
    name: 'prefill sends two lengths',
    prefill: saysAndEnds(http(GOOD_PREFILL, GOOD_PREFILL.length, 'content-length: 3\r\n')),
    check: isLocal,
  },
  {
    name: 'prefill sends broken chunks',
    prefill: saysAndEnds(http('zz\r\n', null, 'transfer-encoding: chunked\r\n')),
    check: isLocal,
  },
  {
    name: 'prefill sends a megabyte of headers',
    prefill: saysAndEnds(http(GOOD_PREFILL, GOOD_PREFILL.length, `x-large: ${'y'.repeat(1 << 20)}\r\n`)),
    check: isLocal,
  },
  {
    name: 'prefill says 100 first',
    prefill: says('HTTP/1.1 100 Continue\r\n\r\n', http(GOOD_PREFILL)),
    check: isMerged,
  },
  { name: 'decode closes at once', decode: saysAndEnds(), check: isRefused },
  { name: 'decode sends no HTTP', decode: saysAndEnds('SSH-2.0-x\r\n'), check: isRefused },
  {
    name: 'decode announces more than it sends, and closes',
    decode: saysAndEnds(http(GOOD_DECODE, LENGTH + 10)),
    // The document is whole when it goes out; what is missing is behind it, and the client sees that.
    check: ({ complete }) => expect(complete).toBe(false),
  },
  {
    name: 'decode announces less than it sends',
    decode: saysAndEnds(http(GOOD_DECODE, LENGTH - 10)),
    check: (answer) => {
      expect(answer).toMatchObject({ status: 502, complete: true });
      expect(outcomeOf(answer)).toBe('rejected; reason=json');
    },
  },
  { name: 'decode answers twice', decode: says(http(GOOD_DECODE), http(GOOD_DECODE)), check: isMerged },
  { name: 'decode answers until it closes', decode: saysAndEnds(http(GOOD_DECODE, null)), check: isMerged },
  {
    name: 'decode sends two lengths',
    decode: saysAndEnds(http(GOOD_DECODE, LENGTH, 'content-length: 3\r\n')),
    check: isRefused,
  },
  {
    name: 'decode sends broken chunks',
    decode: saysAndEnds(http('10\r\n{"choices":[{"in\r\nzz\r\n', null, 'transfer-encoding: chunked\r\n')),
    check: isRefused,
  },
  {
    name: 'decode writes byte by byte',
    decode: async (socket) => {
      for (const byte of http(GOOD_DECODE)) {
        if (socket.destroyed) return;
        await new Promise((resolve) => socket.write(byte, resolve));
      }
    },
    check: isMerged,
  },
];

describe.each([0, 1 << 20])('engines that break HTTP, hold_bytes %i', (hold_bytes) => {
  let talk = GOOD;
  let of: Plant;
  const ended: { close(): Promise<void> }[] = [];

  beforeAll(async () => {
    const prefill = await rawEngine((...said) => talk.prefill(...said));
    const decode = await rawEngine((...said) => talk.decode(...said));
    of = await createPlant({
      prefillPort: prefill.port,
      decodePort: decode.port,
      // Short waits, for engines that send less than they announced.
      config: { hold_bytes, prefill: { timeout_ms: 300, retries: 0 } },
    });
    ended.push(of, prefill, decode);
  });
  afterAll(async () => {
    for (const each of ended) await each.close();
  });

  test.each(FAULTS)('$name', async ({ check, ...fault }) => {
    talk = { ...GOOD, ...fault };
    check(await of.send({ body: REQUEST }));
    await of.settled();
    // Connections and the VM are as before: the next exchange is like the first.
    check(await of.send({ body: REQUEST }));
    talk = GOOD;
    isMerged(await of.send({ body: REQUEST }));
    await of.settled();
  });
});

describe('a decode response that is cut at any byte', () => {
  const STEP = 37;
  test.each([0, 1 << 20])('hold_bytes %i', async (hold_bytes) => {
    let cut = 0;
    const decode = keep(
      await rawEngine((socket) => {
        socket.write(http(GOOD_DECODE).slice(0, cut), () => socket.destroySoon());
      }),
    );
    const prefill = keep(await rawEngine(GOOD.prefill));
    const of = await plant({ prefillPort: prefill.port, decodePort: decode.port, config: { hold_bytes } });
    for (cut = 0; cut < http(GOOD_DECODE).length; cut += STEP) isRefused(await of.send({ body: REQUEST }));
    await of.settled();
    const { merged } = await of.outcomes();
    expect(merged).toBe(0);
  });
});

describe('a prefill reply that is cut at any byte', () => {
  test('decode serves alone', async () => {
    let cut = 0;
    const prefill = keep(
      await rawEngine((socket) => {
        socket.write(http(GOOD_PREFILL).slice(0, cut), () => socket.destroySoon());
      }),
    );
    const decode = keep(await rawEngine(GOOD.decode));
    const of = await plant({
      prefillPort: prefill.port,
      decodePort: decode.port,
      config: { prefill: { retries: 0 } },
    });
    for (cut = 0; cut < http(GOOD_PREFILL).length; cut += 37) isLocal(await of.send({ body: REQUEST }));
    await of.settled();
  });
});

// ---- under load

/** Both engines, which can be ended and started again on their ports. */
class Engines {
  readonly fleet = new Fleet();
  readonly #servers: Partial<Record<'prefill' | 'decode', EngineServer>> = {};
  readonly ports = { prefill: 0, decode: 0 };

  engine(role: 'prefill' | 'decode' | 'oracle'): Engine {
    return createEngine({ role, fleet: this.fleet, promptRows: 'stale' });
  }

  async start(role: 'prefill' | 'decode'): Promise<void> {
    const server = await serveEngine(this.engine(role), { port: this.ports[role] });
    this.ports[role] = server.port;
    this.#servers[role] = server;
  }

  async stop(role: 'prefill' | 'decode'): Promise<void> {
    await this.#servers[role]?.close();
    delete this.#servers[role];
  }

  async close(): Promise<void> {
    for (const server of Object.values(this.#servers)) await server.close();
  }
}

async function engines(): Promise<Engines> {
  const both = keep(new Engines());
  await both.start('prefill');
  await both.start('decode');
  return both;
}

const bodies = ['one two three', 'four five', 'six seven eight nine ten'].map((prompt) =>
  JSON.stringify({ model: 'tiny', prompt, max_tokens: 4 }),
);

/** What the engine that does both answers: only its array is looked at. */
const arrayOf = (body: Buffer) => /"routed_experts":("[^"]*")/.exec(body.toString('latin1'))?.[1];

async function oracles(of: Engines): Promise<(string | undefined)[]> {
  const oracle = of.engine('oracle');
  const headers: [string, string][] = [['content-type', 'application/json']];
  return Promise.all(
    bodies.map(async (body) => {
      const { chunks } = await oracle({
        method: 'POST',
        path: '/v1/completions',
        headers,
        body: Buffer.from(body),
      });
      return arrayOf(Buffer.concat(chunks));
    }),
  );
}

/** Sends requests until it is told to stop; the answers. Every one that looks whole and good is checked. */
function load(of: Plant, right: (string | undefined)[], concurrency = 8) {
  let stopped = false;
  const answers: Answer[] = [];
  const client = async (i: number) => {
    for (let n = i; !stopped; n++) {
      const answer = await of.send({ body: bodies[n % bodies.length]! });
      if (answer.status === 200 && answer.complete) {
        expect(outcomeOf(answer)).toMatch(/^(merged|local)/);
        expect(arrayOf(answer.body)).toBe(right[n % bodies.length]);
      }
      answers.push(answer);
    }
  };
  const clients = Promise.all(Array.from({ length: concurrency }, (_, i) => client(i)));
  return {
    answers,
    /** Waits until so many more answers have come. */
    more: (n: number) => {
      const enough = answers.length + n;
      return waitFor(`${n} more answers`, () => (answers.length >= enough ? true : undefined), 60_000);
    },
    stop: async () => {
      stopped = true;
      await clients;
      return answers;
    },
  };
}

describe('under load', () => {
  test('engines restart', async () => {
    const both = await engines();
    const of = await plant({ prefillPort: both.ports.prefill, decodePort: both.ports.decode });
    const running = load(of, await oracles(both));
    await running.more(50);
    for (const role of ['prefill', 'decode', 'prefill', 'decode'] as const) {
      await both.stop(role);
      await running.more(30);
      await both.start(role);
      await running.more(30);
    }
    const answers = await running.stop();
    await of.settled();
    const { merged, local } = await of.outcomes();
    expect(merged).toBeGreaterThan(50);
    expect(local).toBeGreaterThan(0);
    expect(answers.filter(({ status }) => status === 0)).toEqual([]);
  });

  test('a configuration is replaced, by a good one and by a bad one', async () => {
    const both = await engines();
    const config = { on_unmergeable: 'reject' };
    const of = await plant({ prefillPort: both.ports.prefill, decodePort: both.ports.decode, config });
    const running = load(of, await oracles(both));
    await running.more(30);
    expect(await of.configure({ ...config, hold_bytes: 0 })).toBe(true);
    await running.more(30);
    expect(await of.configure({ ...config, hold_bytes: -1 })).toBe(false);
    const refusal = 'configuration refused: hold_bytes: expected an integer';
    await waitFor('The log says why', () => of.envoy.logs().includes(refusal) || undefined);
    await running.more(30);
    expect(await of.configure({ ...config, hold_bytes: 100 })).toBe(true);
    await running.more(30);
    const answers = await running.stop();
    await of.settled();
    // No request was lost in between.
    expect(answers.filter(({ status, complete }) => status !== 200 || !complete)).toEqual([]);
    expect(await of.outcomes()).toMatchObject({ merged: answers.length });
  });

  test('Envoy is drained', async () => {
    const both = await engines();
    const of = await plant({
      prefillPort: both.ports.prefill,
      decodePort: both.ports.decode,
      args: ['--drain-time-s', '1', '--drain-strategy', 'immediate'],
    });
    const running = load(of, await oracles(both));
    await running.more(30);
    // POST, as the admin wants it: healthcheck/fail has responses close their connections.
    for (const path of ['/healthcheck/fail', '/drain_listeners?graceful']) {
      const { status } = await fetch(of.envoy.adminUrl + path, { method: 'POST' });
      expect(status).toBe(200);
    }
    await waitFor('The listener is gone', () =>
      running.answers.some(({ status }) => status === 0) ? true : undefined,
    );
    const answers = await running.stop();
    // Those whose connection was refused never were requests.
    const refused = answers.filter(({ status }) => status === 0).length;
    expect(answers.filter(({ status, complete }) => status !== 0 && !(status === 200 && complete))).toEqual(
      [],
    );
    const counted = await waitFor('Every request is counted', async () => {
      const { merged } = await of.outcomes();
      return merged === of.sent - refused ? merged : undefined;
    });
    expect(counted).toBeGreaterThan(0);
  });

  test('clients leave at any time', async () => {
    const both = await engines();
    const of = await plant({ prefillPort: both.ports.prefill, decodePort: both.ports.decode });
    const right = await oracles(both);
    const running = load(of, right, 4);
    for (let i = 0; i < 60; i++) {
      // After so many answers of the others: before, in, and behind each stage.
      const leave = running.more(1 + (i % 7));
      await of.send({ body: bodies[0]!, leave: i % 3 === 0 ? Promise.resolve() : leave });
    }
    const answers = await running.stop();
    // A client that left before Envoy had its request was never one.
    await waitFor('Every exchange has ended', async () => {
      const counted = Object.values(await of.outcomes()).reduce((a, b) => a + b);
      const stats = await of.stats('^http\\.ingress\\.downstream_rq_(total|active)$|held_bytes');
      const total = stats['http.ingress.downstream_rq_total'];
      const ended = stats['http.ingress.downstream_rq_active'] === 0 && counted === total;
      return ended && stats['wasmcustom.routed_experts.held_bytes'] === 0 ? true : undefined;
    });
    expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
  });
});
