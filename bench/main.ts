// `npm run bench`: the filter beside the floor, which is a plain Envoy that moves the same bytes to
// the client: prefill's reply, then decode's. Every cell (workload, protocol, concurrency) has
// processes of its own, and its subjects take turns.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { requireEnvoy } from '../tools/envoy.mjs';
import { ROOT } from '../tools/paths.mjs';
import { runMain } from '../tools/problem.mjs';
import { run as runProgram } from '../tools/run.mjs';
import type { Protocol } from '../test/scenario.ts';
import { describe, type Format, type Workload } from './bodies.ts';
import type { EngineHandlers, Role } from './engine.ts';
import { startEnvoy } from './envoy.ts';
import type { Kind, LoadHandlers, RunSpec } from './load.ts';
import { describeMachine, load, usageOf, type Usage } from './machine.ts';
import { parseOptions, USAGE, type Beside, type Options } from './options.ts';
import { profile } from './perf.ts';
import { Worker } from './process.ts';
import { markdown, plot, type CellResult, type SubjectResult, type Window } from './report.ts';
import { startRouter } from './router.ts';
import { quantile, ratio } from './stats.ts';

interface Cell {
  workload: Workload;
  /** The same with a client that asks for the last rows only. */
  turn?: Workload;
  protocol: Protocol;
  concurrency: number;
}

/** Something that is measured in a cell, such as the filter or the floor. */
interface Subject {
  name: string;
  kind: Kind;
  format: Format;
  /** Whether its client asks for the last rows only. */
  turn?: boolean;
  /** Name of the subject that this one equals except for one thing. */
  beside?: string;
  port: number;
  /** The process to profile; absent for routers of others. */
  pid?: number;
  usage(): Usage;
  close(): Promise<void>;
}

const WARM_SECONDS = 0.5;
const WARM_REQUESTS = 200;
const FLOOR = 'Envoy x 2';
/** A turn generates as many tokens as the client has added to the prompt since the one before. */
const TURN_TOKENS = 256;

async function bench(
  options: Options,
  engines: { prefill: Worker<EngineHandlers>; decode: Worker<EngineHandlers> },
  client: Worker<LoadHandlers>,
) {
  const started = load();
  const prefill = await engines.prefill.call('listen', {
    roles: ['prefill', 'turn prefill'],
    protocol: options.upstream,
  });
  const decode = await engines.decode.call('listen', {
    roles: ['full', 'tail', 'turn full', 'turn tail'],
    protocol: options.upstream,
  });
  const ports = { ...prefill, ...decode } as Ports;
  const results: CellResult[] = [];
  let loaded = '';
  for (const cell of cells(options)) {
    const { workload, turn } = cell;
    if (loaded !== describe(workload)) {
      loaded = describe(workload);
      await Promise.all([
        engines.prefill.call('load', { workload, turn }),
        engines.decode.call('load', { workload, turn }),
        client.call('load', { workload, turn }),
      ]);
    }
    results.push(await measure(cell, options, ports, client));
  }
  const { output: version } = await runProgram(await requireEnvoy(), ['--version']);
  const context = {
    command: ['npm run bench --', ...process.argv.slice(2)].join(' '),
    machine: describeMachine(),
    envoy: /\/(\d[\w.-]*)\//.exec(version)?.[1] ?? 'unknown',
    load: `${started} before, ${load()} after`,
    options,
    results,
  };
  const text = markdown(context);
  console.log(`\n${text}`);
  const dir = join(ROOT, 'bench', 'results');
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, `${options.out}.md`), text);
  writeFileSync(join(dir, `${options.out}.svg`), plot(context));
  console.log(`Written to bench/results/${options.out}.md and .svg`);
}

/**
 * The first model is measured with every protocol and concurrency, the other models only with the
 * first of each.
 */
function cells({ sizes, turns, models, protocols, concurrency, prompt, connector }: Options): Cell[] {
  const conversations = turns.flatMap((tokens) =>
    concurrency.map((n): Cell => {
      const generated = TURN_TOKENS;
      const workload = { tokens: tokens + generated, generated, ...models[0]!, prompt, connector };
      const turn = { ...workload, asked: TURN_TOKENS };
      return { workload, turn, protocol: protocols[0]!, concurrency: n };
    }),
  );
  const whole = models.flatMap((model, i) =>
    sizes.flatMap((tokens) =>
      (i === 0 ? protocols : protocols.slice(0, 1)).flatMap((protocol) =>
        (i === 0 ? concurrency : concurrency.slice(0, 1)).map((n) => ({
          workload: { tokens, ...model, prompt, connector },
          protocol,
          concurrency: n,
        })),
      ),
    ),
  );
  return [...whole, ...conversations];
}

type Ports = Record<Role, number>;

async function measure(
  cell: Cell,
  options: Options,
  ports: Ports,
  client: Worker<LoadHandlers>,
): Promise<CellResult> {
  const subjects: Subject[] = [];
  const windows = new Map<Subject, Window[]>();
  const profiles: string[] = [];
  try {
    subjects.push(await floor(options, ports));
    for (const format of options.formats) {
      subjects.push(await filter(format, options, ports));
      if (cell.turn) subjects.push(await ofTurn(format, options, ports));
      for (const beside of options.besides) subjects.push(await filter(format, options, ports, beside));
    }
    // The routers of others speak HTTP/1.
    if (cell.protocol === 'http1') {
      for (const other of options.others) {
        const router = await startRouter(other, ports.prefill, ports.full);
        subjects.push({ name: other.name, kind: 'router', format: 'full', ...router });
      }
    }
    for (const subject of subjects) {
      windows.set(subject, []);
      await window(subject, cell, ports, client, WARM_SECONDS, 1, WARM_REQUESTS);
    }
    for (let repeat = 0; repeat < options.repeats; repeat++) {
      // A subject finds the machine as the one before it left it, so each repeat begins with
      // another subject.
      for (let i = 0; i < subjects.length; i++) {
        const subject = subjects[(i + repeat) % subjects.length]!;
        windows.get(subject)!.push(await window(subject, cell, ports, client, options.seconds));
      }
    }
    if (options.perf) {
      for (const subject of subjects) {
        if (subject.pid === undefined) continue;
        const text = await profile(subject.pid, options.seconds, () =>
          window(subject, cell, ports, client, options.seconds + 1),
        );
        profiles.push(`${subject.name}, ${title(cell)}\n\n${text}`);
      }
    }
    const measured = subjects.map((subject): SubjectResult => {
      const { name, kind, format, beside } = subject;
      return {
        name,
        kind,
        format,
        beside,
        turn: subject.turn ?? false,
        windows: windows.get(subject)!,
        peakBytes: subject.usage().peakBytes,
      };
    });
    const result = { ...cell, title: title(cell), subjects: measured, profiles };
    print(result);
    return result;
  } finally {
    for (const subject of subjects) await subject.close();
  }
}

const title = ({ workload, protocol, concurrency }: Cell) =>
  `${describe(workload)}, ${protocol === 'http1' ? 'HTTP/1' : 'HTTP/2'}, concurrency ${concurrency}`;

async function floor({ upstream }: Options, ports: Ports): Promise<Subject> {
  const envoy = await startEnvoy({ prefillPort: ports.prefill, decodePort: ports.full, upstream });
  // The floor of A' is the same as of A, because the client gets the same full response from the
  // filter.
  return { name: FLOOR, kind: 'floor', format: 'full', ...envoy, usage: () => usageOf(envoy.pid) };
}

async function filter(
  format: Format,
  { upstream, connector }: Options,
  ports: Ports,
  beside?: Beside,
): Promise<Subject> {
  const envoy = await startEnvoy({
    prefillPort: ports.prefill,
    decodePort: ports[format],
    upstream,
    filter: {
      connector,
      decode_rows: format,
      ...(connector === 'mooncake' ? mooncake(ports) : {}),
      ...beside?.config,
    },
    ...(beside?.module ? { module: beside.module } : {}),
  });
  const own = format === 'full' ? 'filter, A' : "filter, A'";
  const name = beside ? `${own}, ${beside.name}` : own;
  return {
    name,
    ...(beside ? { beside: own } : {}),
    kind: 'filter',
    format,
    ...envoy,
    usage: () => usageOf(envoy.pid),
  };
}

/** What the filter has to know of Mooncake's prefill, whose mock is its own bootstrap server. */
const mooncake = (ports: Ports) => ({
  prefill: {
    cluster: 'prefill',
    bootstrap_host: '127.0.0.1',
    bootstrap_port: ports.prefill,
    bootstrap_cluster: 'prefill',
  },
  max_model_len: 1 << 20,
});

/** The filter as its client asks for the last rows only, beside the same asked for all of them. */
async function ofTurn(format: Format, options: Options, ports: Ports): Promise<Subject> {
  const own = { ...ports, prefill: ports['turn prefill'], [format]: ports[`turn ${format}`] };
  const subject = await filter(format, options, own, { name: 'a turn', config: {} });
  return { ...subject, turn: true };
}

async function window(
  subject: Subject,
  { protocol, concurrency }: Cell,
  ports: Ports,
  client: Worker<LoadHandlers>,
  seconds: number,
  verifyEvery?: number,
  mostRequests?: number,
): Promise<Window> {
  const { kind, format, turn, port } = subject;
  const prefill = `127.0.0.1:${ports.prefill}`;
  const spec: RunSpec = { kind, format, turn, protocol, port, prefill, concurrency, seconds };
  const before = subject.usage().cpuMs;
  const result = await client.call('run', { ...spec, verifyEvery, mostRequests });
  const cpuMs = subject.usage().cpuMs - before;
  const requests = result.latencies.length;
  const sorted = result.latencies.sort((a, b) => a - b);
  return {
    p50: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
    perSecond: requests / result.seconds,
    cpuMs: cpuMs / requests,
    requests,
    bytes: result.bytes / requests,
    verified: result.verified,
    outcomes: result.outcomes,
    failures: result.failures,
  };
}

/** Prints the progress. */
function print({ title, subjects }: CellResult): void {
  console.log(title);
  const [base] = subjects;
  for (const { name, windows } of subjects) {
    const median = (pick: (window: Window) => number) =>
      quantile(
        windows.map(pick).sort((a, b) => a - b),
        0.5,
      );
    const of = (pick: (window: Window) => number) =>
      ratio(
        quantile(
          windows.map((w, i) => pick(w) / pick(base!.windows[i]!)).sort((a, b) => a - b),
          0.5,
        ),
      );
    const failed = windows.flatMap((w) => Object.entries(w.failures).map(([what, n]) => `${n} x ${what}`));
    console.log(
      `  ${name.padEnd(12)} p50 ${median((w) => w.p50).toFixed(2)} ms (${of((w) => w.p50)}), ` +
        `CPU ${median((w) => w.cpuMs).toFixed(2)} ms (${of((w) => w.cpuMs)}), ` +
        `${windows.reduce((sum, w) => sum + w.requests, 0)} requests` +
        (failed.length > 0 ? `; FAILED: ${failed.join('; ')}` : ''),
    );
  }
}

await runMain(import.meta.url, async () => {
  const options = parseOptions(process.argv.slice(2));
  if (options === 'help') return console.log(USAGE);
  const engines = {
    prefill: new Worker<EngineHandlers>('engine.ts'),
    decode: new Worker<EngineHandlers>('engine.ts'),
  };
  const client = new Worker<LoadHandlers>('load.ts');
  try {
    await bench(options, engines, client);
  } finally {
    for (const worker of [engines.prefill, engines.decode, client]) worker.close();
  }
});
