// Faults that only a real Envoy can show: engines that violate HTTP, engines that restart under
// load, and an Envoy that is drained or gets a new configuration under load. After each of them,
// every request has been answered and has one outcome, and the filter holds nothing.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { serveEngine, type EngineServer } from '../engine/server.ts';
import type { Engine } from '../scenario.ts';
import { header } from '../scenarios/case.ts';
import { GOOD_DECODE, GOOD_MERGED, GOOD_PREFILL, PROMPT, REQUEST, rowBytes } from '../scenarios/messages.ts';
import {
  createPlant,
  http,
  rawEngine,
  type Answer,
  type Plant,
  type PlantOptions,
  type Sent,
} from './plant.ts';
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

// ---- engines that violate HTTP

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
/**
 * The answer is an error, or a body that no client can take for a complete one. It never has the
 * prompt rows that decode sent.
 */
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
    // All of the document has arrived before the connection closes, so it is merged and sent. What
    // is missing would come after it, and the client sees that the body is incomplete.
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

/** Answers with as many bytes as the request header `x-cut` says, and closes the connection. */
const cutting = (text: string): Talk => {
  const bytes = Buffer.from(text);
  return (socket, request) => {
    const cut = Number(/^x-cut: (\d+)/im.exec(request)?.[1]);
    socket.write(bytes.subarray(0, cut), () => void (cut < bytes.length && socket.destroySoon()));
  };
};

/**
 * Sends a request for every `step`th byte of an answer, eight at a time. Returns how many exchanges
 * had each outcome.
 */
async function atBytes(
  of: Plant,
  { length, step, ...request }: Sent & { length: number; step: number },
  check: (answer: Answer) => void,
): Promise<Record<string, number>> {
  await of.settled();
  const before = await of.outcomes();
  let next = 0;
  const client = async () => {
    for (let cut = next; cut < length; cut = next) {
      next += step;
      check(await of.send({ ...request, headers: { 'x-cut': String(cut) } }));
    }
  };
  await Promise.all(Array.from({ length: 8 }, client));
  await of.settled();
  const after = await of.outcomes();
  const changed = Object.entries(after).map(([name, n]) => [name, n - before[name]!] as const);
  return Object.fromEntries(changed.filter(([, n]) => n > 0));
}

const chunked = (body: string) =>
  http(
    `${Buffer.byteLength(body).toString(16)}\r\n${body}\r\n0\r\n\r\n`,
    null,
    'transfer-encoding: chunked\r\n',
  );
const eventsOf = (body: string) => `data: {"id":"e"}\n\ndata: ${body}\n\ndata: [DONE]\n\n`;
const SGLANG = { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } };

const base64 = (...bytes: number[]) => Buffer.from(bytes).toString('base64');
const withArray = (array: string) =>
  `{"choices":[{"routed_experts":${array}}],"usage":{"prompt_tokens":2,"completion_tokens":3},"kv_transfer_params":{"x":1}}`;
const object = (data: string, rows: number, start: number) =>
  withArray(`{"data":"${data}","shape":[${rows},1,3],"start":${start}}`);
const lists = (prompt: string) => `{"prompt_routed_experts":${prompt},${withArray('[[[3]],[[4]]]').slice(1)}`;
const raw = (experts: number[]) =>
  `{"text":"x","meta_info":{"prompt_tokens":2,"completion_tokens":2,"routed_experts":"${Buffer.from(Int32Array.from(experts).buffer).toString('base64')}"}}`;

interface Cut {
  name: string;
  prefill?: string;
  /** What decode writes to its socket. */
  decode: string;
  /** The body that the client gets when nothing is cut. */
  out: string;
  /** The bytes behind the document without which the client cannot take it for complete. */
  behind?: number;
  step: number;
  request?: string;
  path?: string;
}

const CUTS: Cut[] = [
  { name: 'with a length', decode: http(GOOD_DECODE), out: GOOD_MERGED, step: 1 },
  { name: 'in chunks', decode: chunked(GOOD_DECODE), out: GOOD_MERGED, behind: 7, step: 7 },
  {
    name: 'of events',
    request: REQUEST.replace('}', ',"stream":true}'),
    decode: chunked(eventsOf(GOOD_DECODE)).replace('application/json', 'text/event-stream'),
    out: eventsOf(GOOD_MERGED),
    step: 19,
  },
  {
    name: 'with an object of generated rows',
    prefill: object(base64(1, 2, 3, 4, 5, 6), 2, 0),
    decode: http(object(base64(7, 8, 9, 10, 11, 12), 2, 2)),
    out: object(base64(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), 4, 0),
    step: 5,
  },
  {
    name: 'with prompt_routed_experts',
    prefill: lists('[[[1]],[[2]]]'),
    decode: http(lists('[[[98]],[[99]]]')),
    out: lists('[[[1]],[[2]]]'),
    step: 5,
  },
];

/**
 * Bodies of SGLang. Both arrays have three rows: those of the two prompt tokens, and that of the
 * token behind them.
 */
const RAW: Cut = {
  name: 'with int32',
  path: '/generate',
  request: '{"text":"a"}',
  prefill: raw([1, 2, 3, 4, 5, 6]),
  decode: http(raw([97, 98, 99, 100, 5, 6])),
  out: raw([1, 2, 3, 4, 5, 6]),
  step: 5,
};

/** Cuts decode's answer at every `step`th byte. Only the whole answer is merged. */
async function cutAnywhere(of: Plant, cut: Cut): Promise<void> {
  const { decode, out, behind = 0, step, request: body = REQUEST, path = '/v1/completions' } = cut;
  const outcomes = await atBytes(of, { length: decode.length, step, path, body }, (answer) => {
    expect(answer.status !== 200 || !answer.complete).toBe(true);
    // The body has no prompt row of decode's.
    if (answer.status === 200) expect(out.startsWith(answer.body.toString())).toBe(true);
  });
  const { merged = 0, ...refused } = outcomes;
  expect(merged).toBeLessThanOrEqual(behind);
  expect(Object.keys(refused).filter((name) => !['absent', 'aborted', 'rejected'].includes(name))).toEqual(
    [],
  );
  const whole = await of.send({ path, body, headers: { 'x-cut': String(decode.length) } });
  expect(whole).toMatchObject({ status: 200, complete: true });
  expect(whole.body.toString()).toBe(out);
  await of.settled();
}

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
      // The timeout is short because some engines send less than they announce.
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
    // Neither the connections nor the VM have suffered: the next exchange is like the first.
    check(await of.send({ body: REQUEST }));
    talk = GOOD;
    isMerged(await of.send({ body: REQUEST }));
    await of.settled();
  });

  test.each(CUTS)('decode’s answer $name is cut at any byte', async (cut) => {
    talk = { prefill: says(http(cut.prefill ?? GOOD_PREFILL)), decode: cutting(cut.decode) };
    await cutAnywhere(of, cut);
    talk = GOOD;
  });

  test('decode’s answer that ends with its connection is cut at any byte', async () => {
    const answer = http(GOOD_DECODE, null);
    talk = { ...GOOD, decode: cutting(answer) };
    const outcomes = await atBytes(of, { length: answer.length, step: 5, body: REQUEST }, (cut) => {
      // If the connection closes before any byte of the body, the response is an empty one, and its
      // outcome says so.
      if (cut.status === 200 && cut.body.length === 0 && cut.complete) expect(outcomeOf(cut)).toBe('absent');
      else isRefused(cut);
    });
    expect(Object.keys(outcomes).sort()).toEqual(['absent', 'rejected']);
    talk = GOOD;
  });

  test.each([
    ['with a length', http(GOOD_PREFILL)],
    ['in chunks', chunked(GOOD_PREFILL)],
    ['that ends with its connection', http(GOOD_PREFILL, null)],
  ])('prefill’s answer %s is cut at any byte', async (_name, answer) => {
    talk = { ...GOOD, prefill: cutting(answer) };
    const sent = { length: answer.length, step: 7, body: REQUEST };
    expect(await atBytes(of, sent, isLocal)).toEqual({ local: Math.ceil(answer.length / 7) });
    talk = GOOD;
  });
});

describe('decode answers an unfinished request, whose head has gone on', () => {
  const ask = async (decode: string, config = {}) => {
    let release = () => {};
    const released = new Promise<void>((resolve) => (release = resolve));
    // Decode's answer is there before prefill's.
    const prefill = keep(
      await rawEngine((socket) => void released.then(() => socket.write(http(GOOD_PREFILL)))),
    );
    const engine = keep(await rawEngine(says(decode)));
    const of = await plant({
      prefillPort: prefill.port,
      decodePort: engine.port,
      config: { headers: 'pass', ...config },
    });
    const answer = await of.send({ body: REQUEST });
    release();
    await of.settled();
    const [line] = await of.log();
    return { answer, logged: line!.routed_experts };
  };

  test('it is refused', async () => {
    const { answer, logged } = await ask(http(GOOD_DECODE));
    expect(answer.status).toBe(502);
    expect(JSON.parse(answer.body.toString())).toMatchObject({ error: { code: 502 } });
    expect(outcomeOf(answer)).toBe('rejected; reason=prefill');
    expect(logged).toBe('rejected; reason=prefill');
  });

  test('or goes on, if the configuration says so', async () => {
    const { answer, logged } = await ask(http(GOOD_DECODE), { on_unmergeable: 'forward' });
    expect(answer).toMatchObject({ status: 200, complete: true });
    expect(answer.body.toString()).toBe(GOOD_DECODE);
    expect(outcomeOf(answer)).toBe('unmerged; reason=prefill');
    expect(logged).toBe('unmerged; reason=prefill');
  });

  test('an error goes to the client', async () => {
    const { answer, logged } = await ask('HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno');
    expect([answer.status, answer.body.toString(), logged]).toEqual([401, 'no', 'absent']);
  });
});

describe('both legs at once', () => {
  let talk: { prefill: Talk; decode: Talk };
  let of: Plant;
  const ended: { close(): Promise<void> }[] = [];

  beforeAll(async () => {
    const prefill = await rawEngine((...said) => talk.prefill(...said));
    const decode = await rawEngine((...said) => talk.decode(...said));
    of = await createPlant({ prefillPort: prefill.port, decodePort: decode.port, config: SGLANG });
    ended.push(of, prefill, decode);
  });
  afterAll(async () => {
    for (const each of ended) await each.close();
  });

  test('decode’s answer is cut at any byte', async () => {
    talk = { prefill: says(http(RAW.prefill!)), decode: cutting(RAW.decode) };
    await cutAnywhere(of, RAW);
  });

  test('prefill’s answer is cut at any byte', async () => {
    const answer = http(RAW.prefill!);
    talk = { prefill: cutting(answer), decode: says(RAW.decode) };
    const sent = { length: answer.length, step: RAW.step, path: RAW.path!, body: RAW.request! };
    const outcomes = await atBytes(of, sent, (cut) => {
      expect(cut).toMatchObject({ status: 502, complete: true });
      expect(outcomeOf(cut)).toBe('rejected; reason=prefill');
    });
    expect(outcomes).toEqual({ rejected: Math.ceil(answer.length / RAW.step) });
  });
});

// ---- exchanges that end early

/** Engines that hold back a part of their answers. */
class Held {
  readonly asked = { prefill: 0, decode: 0, bootstrap: 0 };
  private readonly rest: (() => void)[] = [];

  talk(leg: keyof Held['asked'], answer: string, bytes: number): Talk {
    return (socket) => {
      this.asked[leg]++;
      socket.write(answer.slice(0, bytes));
      if (bytes < answer.length)
        this.rest.push(() => void (socket.destroyed || socket.write(answer.slice(bytes))));
    };
  }

  /** Sends the rest of every answer. */
  letGo(): void {
    for (const say of this.rest) say();
  }
}

interface Stage {
  name: string;
  config?: Record<string, unknown>;
  /** Bytes of the client's body that are sent; absent: all. */
  bytes?: number;
  /**
   * Bytes of each engine's answer that are sent while the exchange runs; absent: all. The rest is
   * sent after its end.
   */
  prefill?: number;
  decode?: number;
  bootstrap?: number;
  events?: boolean;
}

const MOONCAKE = {
  connector: 'mooncake',
  handshake: 'concurrent',
  max_model_len: 4096,
  prefill: { bootstrap_host: '127.0.0.1' },
};
const RANKS = '{"0":{"engine_id":"a"}}';
const EVENTS = chunked(eventsOf(GOOD_DECODE)).replace('application/json', 'text/event-stream');

/**
 * Room for the rows of exactly one exchange, in whole quanta. If rows of an ended exchange are
 * still counted, the next exchange has no room.
 */
const ROWS = (rowBytes(PROMPT).length / 3) * 4 + 8;
const ROOM_FOR_ONE = { max_capture_bytes: ROWS, max_parked_bytes: 1 };

const STAGES: Stage[] = [
  { name: 'the client sends its body', bytes: 20 },
  { name: 'prefill runs', prefill: 0 },
  { name: 'prefill answers', prefill: 200 },
  { name: 'decode runs', decode: 0 },
  { name: 'the response is held', decode: 250 },
  { name: 'the response leaves', decode: 250, config: { hold_bytes: 0 } },
  { name: 'a tail is held', decode: 250, config: { decode_rows: 'tail' } },
  { name: 'rows are parked', decode: 0, config: { max_capture_bytes: 1, max_parked_bytes: ROWS } },
  { name: 'both legs run', prefill: 0, decode: 0, config: SGLANG },
  { name: 'a part of decode’s response waits', prefill: 0, decode: 250, config: SGLANG },
  { name: 'decode’s response waits', prefill: 0, config: SGLANG },
  { name: 'events wait', prefill: 0, decode: 250, events: true, config: SGLANG },
  { name: 'prefill has answered, and decode has not', decode: 0, config: SGLANG },
  { name: 'ranks are asked for', bootstrap: 0, config: MOONCAKE },
];

describe('an exchange that ends early', () => {
  const IDLE_MS = 300;
  const LEGS = ['prefill', 'decode', 'bootstrap'] as const;
  let talk: Record<string, Talk>;
  let of: Plant;
  const ended: { close(): Promise<void> }[] = [];

  beforeAll(async () => {
    const engine = (leg: string) => rawEngine((...said) => talk[leg]!(...said));
    const [prefill, decode] = [await engine('prefill'), await engine('decode')];
    const bootstrap = await engine('bootstrap');
    of = await createPlant({
      ...{ prefillPort: prefill.port, decodePort: decode.port, bootstrapPort: bootstrap.port },
      streamIdleTimeoutMs: IDLE_MS,
    });
    ended.push(of, prefill, decode, bootstrap);
  });
  afterAll(async () => {
    for (const each of ended) await each.close();
  });

  const CLIENT = 'http.ingress.downstream_cx_rx_bytes_total';
  const DECODE = 'cluster.decode_http1.upstream_cx_rx_bytes_total';
  const received = async (name: string) => (await of.stats(name))[name] ?? 0;

  describe.each(STAGES)('while $name', (stage) => {
    test.each(['the client leaves', 'it is idle for too long'])('%s', async (end) => {
      const answers = {
        prefill: http(GOOD_PREFILL),
        decode: stage.events ? EVENTS : http(GOOD_DECODE),
        bootstrap: http(RANKS),
      };
      const held = new Held();
      const talking = (comes: Partial<Record<string, number>>) =>
        LEGS.map((leg) => [leg, held.talk(leg, answers[leg], comes[leg] ?? answers[leg].length)]);
      talk = Object.fromEntries(talking(stage as object));
      // Each exchange names a bootstrap server of its own, so that none finds the ranks in the
      // filter's cache.
      const port = 30_000 + of.sent;
      const prefill = { ...(stage.config?.['prefill'] as object | undefined) };
      const config = {
        ...ROOM_FOR_ONE,
        ...stage.config,
        prefill: stage.config === MOONCAKE ? { ...prefill, bootstrap_port: port } : prefill,
      };
      expect(await of.configure(config)).toBe(true);
      const before = await of.outcomes();
      const [sent, came] = [await received(CLIENT), await received(DECODE)];

      // Resolves when Envoy has received everything that is sent in this stage.
      const reached = waitFor('The stage is reached', async () => {
        if (stage.bytes !== undefined) return (await received(CLIENT)) >= sent + stage.bytes || undefined;
        const asked = LEGS.every((leg) => stage[leg] === undefined || held.asked[leg] > 0);
        const comes = stage.decode ?? (stage.config === SGLANG ? answers.decode.length : 0);
        return (asked && (await received(DECODE)) >= came + comes) || undefined;
      });
      const body = stage.events ? REQUEST.replace('}', ',"stream":true}') : REQUEST;
      const answer = await of.send({
        body: body.slice(0, stage.bytes ?? body.length),
        headers: { 'content-length': String(body.length), connection: 'close' },
        ...(end === 'the client leaves' ? { leave: reached } : {}),
      });
      await reached;
      expect(answer.status === 200 && answer.complete).toBe(false);
      const after = await waitFor('It has its outcome', async () => {
        const now = await of.outcomes();
        const [a, b] = [now, before].map((each) => Object.values(each).reduce((x, y) => x + y));
        return a! > b! ? now : undefined;
      });
      if (end === 'the client leaves') expect(after['aborted']).toBe(before['aborted']! + 1);

      // Bytes that arrive after the end of the exchange reach no other exchange.
      held.letGo();
      await of.settled();
      talk = Object.fromEntries(talking({}));
      const next = await of.send({ body, headers: { connection: 'close' } });
      expect(next.body.toString()).toBe(stage.events ? eventsOf(GOOD_MERGED) : GOOD_MERGED);
      await of.settled();
    });
  });
});

// ---- under load

/** Both engines. Each can be stopped, and started again on the same port. */
class Engines {
  readonly fleet = new Fleet();
  readonly #servers: Partial<Record<'prefill' | 'decode', EngineServer>> = {};
  readonly ports = { prefill: 0, decode: 0 };

  constructor(private readonly options: Partial<EngineOptions> = {}) {}

  engine(role: 'prefill' | 'decode' | 'oracle'): Engine {
    return createEngine({ ...this.options, role, fleet: this.fleet, promptRows: 'stale' } as EngineOptions);
  }

  async start(role: 'prefill' | 'decode'): Promise<void> {
    const server = await serveEngine(this.engine(role), { port: this.ports[role] });
    this.ports[role] = server.port;
    this.#servers[role] = server;
  }

  async stop(role: 'prefill' | 'decode'): Promise<void> {
    await this.#servers[role]?.close();
    delete this.#servers[role];
    // Prefill's bootstrap server ends with it, so nothing is registered there any more.
    if (role === 'prefill') this.fleet.prefills.clear();
  }

  async close(): Promise<void> {
    for (const server of Object.values(this.#servers)) await server.close();
  }
}

async function engines(options?: Partial<EngineOptions>): Promise<Engines> {
  const both = keep(new Engines(options));
  await both.start('prefill');
  await both.start('decode');
  return both;
}

const bodies = ['one two three', 'four five', 'six seven eight nine ten'].map((prompt) =>
  // An engine of SGLang returns rows only to a request that asks for them.
  JSON.stringify({ model: 'tiny', prompt, max_tokens: 4, return_routed_experts: true }),
);

/**
 * The array in an answer. Only arrays are compared with those of the oracle, the engine that runs
 * both prefill and decode.
 */
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

/**
 * Sends requests until it is stopped, and returns the answers. Every complete answer with status
 * 200 is compared with the oracle's.
 */
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
    /**
     * Waits until `n` more answers with this outcome have come; by default, `n` answers with any
     * outcome.
     */
    more: (n: number, outcome = '') => {
      const of = () => answers.filter((each) => outcomeOf(each)?.startsWith(outcome) || outcome === '');
      const enough = of().length + n;
      return waitFor(`${n} more answers`, () => (of().length >= enough ? true : undefined), 60_000);
    },
    stop: async () => {
      stopped = true;
      await clients;
      return answers;
    },
  };
}

describe('under load', () => {
  /**
   * Each connector with the options of its engines: a leg waits only for this `patience`, in
   * milliseconds, when the engine of the other leg has gone.
   */
  const CONNECTORS: [string, Partial<EngineOptions>, Record<string, unknown>][] = [
    ['nixl', {}, {}],
    ['sglang', { connector: 'sglang', format: 'D', patience: 300 }, SGLANG],
    ...(['sequential', 'concurrent'] as const).map(
      (handshake): [string, Partial<EngineOptions>, Record<string, unknown>] => [
        `mooncake, ${handshake}`,
        { connector: 'mooncake', patience: 300 },
        { ...SGLANG, connector: 'mooncake', handshake },
      ],
    ),
  ];

  test.each(CONNECTORS)('engines restart, %s', async (_name, options, config) => {
    const both = await engines(options);
    const { prefill: prefillPort, decode: decodePort } = both.ports;
    const of = await plant({
      ...{ prefillPort, decodePort, config },
      ...(options.connector === 'mooncake' ? { bootstrapPort: prefillPort } : {}),
    });
    const running = load(of, await oracles(both));
    await running.more(30, 'merged');
    for (const role of ['prefill', 'decode', 'prefill', 'decode'] as const) {
      await both.stop(role);
      await running.more(20);
      await both.start(role);
      await running.more(20, 'merged');
    }
    const answers = await running.stop();
    await of.settled();
    const { local, rejected, absent } = await of.outcomes();
    // While prefill is stopped, decode serves alone; where decode's leg had been sent already, the
    // client gets an error.
    const concurrent = options.connector === 'sglang' || config['handshake'] === 'concurrent';
    expect(concurrent ? rejected! + absent! : local).toBeGreaterThan(0);
    expect(answers.filter(({ status }) => status === 0)).toEqual([]);
    // No request is sent to an engine that has gone.
    for (const body of bodies) expect(outcomeOf(await of.send({ body }))).toMatch(/^merged/);
    await of.settled();
  });

  test('a configuration is replaced, by a good one and by a bad one', async () => {
    const both = await engines();
    const config = { on_unmergeable: 'reject' };
    const of = await plant({
      prefillPort: both.ports.prefill,
      decodePort: both.ports.decode,
      config,
      args: ['--drain-time-s', '1', '--drain-strategy', 'immediate'],
    });
    const running = load(of, await oracles(both), 2);
    /**
     * The outcomes of requests that began after the present configuration had replaced the earlier
     * one.
     */
    const served = async () => {
      await of.replaced();
      const before = running.answers.length;
      // Two requests are under way, and the earlier configuration may have served them.
      await running.more(2 + 30);
      const outcomes = running.answers.slice(before + 2).map((answer) => outcomeOf(answer)?.split(';')[0]);
      return [...new Set(outcomes)];
    };
    expect(await served()).toEqual(['merged']);
    // There is no room for rows, so decode serves alone.
    expect(await of.configure({ ...config, max_capture_bytes: 1, max_parked_bytes: 1 })).toBe(true);
    expect(await served()).toEqual(['local']);
    expect(await of.configure({ ...config, hold_bytes: -1 })).toBe(false);
    const refusal = 'configuration refused: hold_bytes: expected an integer';
    await waitFor('The log says why', () => of.envoy.logs().includes(refusal) || undefined);
    expect(await served()).toEqual(['local']);
    expect(await of.configure({ ...config, hold_bytes: 100 })).toBe(true);
    expect(await served()).toEqual(['merged']);
    const answers = await running.stop();
    await of.settled();
    // No request was lost while configurations changed.
    expect(answers.filter(({ status, complete }) => status !== 200 || !complete)).toEqual([]);
    const { merged, local } = await of.outcomes();
    expect(merged! + local!).toBe(answers.length);
  });

  test.each([
    ['nixl', {}],
    ['sglang', SGLANG],
  ])('a configuration goes when its last connections do, %s', async (_name, config) => {
    const held = new Held();
    let slow = true;
    const leg = (answer: string) => held.talk('prefill', answer, slow ? 0 : answer.length);
    const prefill = keep(await rawEngine((...said) => leg(http(GOOD_PREFILL))(...said)));
    const decode = keep(await rawEngine(GOOD.decode));
    const of = await plant({
      ...{ prefillPort: prefill.port, decodePort: decode.port, config },
      args: ['--drain-time-s', '1', '--drain-strategy', 'immediate'],
    });
    // One request is answered while its configuration is drained, the other is not.
    const first = of.send({ body: REQUEST });
    await waitFor('Prefill is asked', () => held.asked.prefill === 1 || undefined);
    expect(await of.configure({ ...config, hold_bytes: 0 })).toBe(true);
    held.letGo();
    isMerged(await first);
    const second = of.send({ body: REQUEST });
    await waitFor('Prefill is asked again', () => held.asked.prefill === 2 || undefined);
    expect(await of.configure({ ...config, hold_bytes: 100 })).toBe(true);
    await of.replaced();
    // Envoy has closed the connection and cancelled the call, because the configuration that made
    // it has gone.
    expect((await second).status).toBe(0);
    held.letGo();
    slow = false;
    isMerged(await of.send({ body: REQUEST }));
    await of.settled();
    expect(await of.outcomes()).toMatchObject({ merged: 2, aborted: 1 });
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
    // Envoy's admin interface wants POST. After healthcheck/fail, responses close their
    // connections.
    for (const path of ['/healthcheck/fail', '/drain_listeners?graceful']) {
      const { status } = await fetch(of.envoy.adminUrl + path, { method: 'POST' });
      expect(status).toBe(200);
    }
    await waitFor('The listener is gone', () =>
      running.answers.some(({ status }) => status === 0) ? true : undefined,
    );
    const answers = await running.stop();
    // Clients whose connection was refused never sent a request.
    const refused = answers.filter(({ status }) => status === 0).length;
    expect(answers.filter(({ status, complete }) => status !== 0 && !(status === 200 && complete))).toEqual(
      [],
    );
    const counted = await waitFor('Every request is counted', async () => {
      const { merged } = await of.outcomes();
      const left = Object.values(await of.stats('^http\\.ingress\\..*_rq_active$|held_bytes$'));
      return merged === of.sent - refused && left.every((n) => n === 0) ? merged : undefined;
    });
    expect(counted).toBeGreaterThan(0);
  });

  test('clients leave at any time', async () => {
    const both = await engines();
    const of = await plant({ prefillPort: both.ports.prefill, decodePort: both.ports.decode });
    const right = await oracles(both);
    const running = load(of, right, 4);
    for (let i = 0; i < 60; i++) {
      // The client leaves after that many answers to the other clients, so that in time it leaves
      // before, during and after each stage.
      const leave = running.more(1 + (i % 7));
      await of.send({ body: bodies[0]!, leave: i % 3 === 0 ? Promise.resolve() : leave });
    }
    const answers = await running.stop();
    // A client that left before Envoy had received its request counts as no request.
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
