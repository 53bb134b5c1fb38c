// `npm run bench:memory`: how much the filter holds when many long requests come at once, and how
// the cost of a request grows with workers, concurrency, choices and pieces.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { requireEnvoy } from '../tools/envoy.mjs';
import { ROOT } from '../tools/paths.mjs';
import { Problem, runMain } from '../tools/problem.mjs';
import { run as runProgram } from '../tools/run.mjs';
import { describe, type Format, type Workload } from './bodies.ts';
import type { EngineHandlers } from './engine.ts';
import { startEnvoy, type MeasuredEnvoy } from './envoy.ts';
import type { Kind, LoadHandlers, RunResult } from './load.ts';
import { describeMachine, load, residentBytes, usageOf } from './machine.ts';
import { Worker } from './process.ts';
import { table } from './report.ts';
import { largestVm } from './vm_memory.ts';
import { digits, megabytes, quantile, ratio, spread } from './stats.ts';

const MODEL = { layers: 48, topK: 8, dtype: '|u1' } as const;
const LONG: Workload = { tokens: 131_072, ...MODEL };
const SHORT: Workload = { tokens: 256, ...MODEL };
const SAMPLE_MS = 20;
const STAT = 'wasmcustom.routed_experts.';
const SECTIONS = ['many', 'workers', 'concurrency', 'choices', 'pieces', 'start'] as const;
type Section = (typeof SECTIONS)[number];

interface Bench {
  engines: Worker<EngineHandlers>[];
  client: Worker<LoadHandlers>;
  ports: Record<'prefill' | Format, number>;
  seconds: number;
  repeats: number;
  /** Members of the plugin's configuration. */
  filter: Record<string, unknown>;
}

/** Loads the bodies that the engines answer with and the client expects. */
async function loadWorkload({ engines, client }: Bench, workload: Workload, pieceBytes = 0): Promise<void> {
  await Promise.all([
    ...engines.map((engine) => engine.call('load', { workload, pieceBytes })),
    client.call('load', { workload }),
  ]);
}

function start({ ports, filter }: Bench, format: Format | 'floor', workers = 1): Promise<MeasuredEnvoy> {
  return startEnvoy({
    prefillPort: ports.prefill,
    decodePort: format === 'floor' ? ports.full : ports[format],
    upstream: 'http1',
    workers,
    filter: format === 'floor' ? undefined : { decode_rows: format, ...filter },
  });
}

interface Load {
  concurrency: number;
  seconds: number;
  leastRequests?: number;
  mostRequests?: number;
  verifyEvery?: number;
}

function run({ client }: Bench, port: number, format: Format | 'floor', load: Load): Promise<RunResult> {
  const kind: Kind = format === 'floor' ? 'floor' : 'filter';
  return client.call('run', {
    kind,
    format: format === 'floor' ? 'full' : format,
    protocol: 'http1',
    port,
    prefill: '',
    ...load,
  });
}

// ---- many long requests at once

interface Sample {
  resident: number;
  vm: number;
  gauges: Record<string, number>;
}

async function sample(envoy: MeasuredEnvoy): Promise<Sample> {
  const stats = JSON.parse(await envoy.admin(`/stats?format=json&filter=${STAT}.*_bytes`)).stats;
  const gauges: Record<string, number> = {};
  for (const { name, value } of stats as { name?: string; value: number }[]) {
    if (name) gauges[name.slice(STAT.length)] = value;
  }
  return { resident: residentBytes(envoy.pid), vm: largestVm(envoy.pid), gauges };
}

async function many(bench: Bench): Promise<string[]> {
  await loadWorkload(bench, LONG);
  const rows: string[][] = [];
  for (const format of ['full', 'tail'] as const) {
    for (const concurrency of [16, 32]) {
      const envoy = await start(bench, format);
      try {
        // The second round may use the memory that the first one took, and must not take more.
        for (const round of [1, 2]) {
          const peak: Sample = { resident: 0, vm: 0, gauges: {} };
          let running = true;
          const sampling = (async () => {
            while (running) {
              const now = await sample(envoy);
              peak.resident = Math.max(peak.resident, now.resident);
              peak.vm = Math.max(peak.vm, now.vm);
              for (const [name, value] of Object.entries(now.gauges)) {
                peak.gauges[name] = Math.max(peak.gauges[name] ?? 0, value);
              }
              await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS));
            }
          })();
          const all = { concurrency, seconds: 0.001, leastRequests: concurrency, mostRequests: concurrency };
          const result = await run(bench, envoy.port, format, { ...all, verifyEvery: 1 });
          running = false;
          await sampling;
          const after = await sample(envoy);
          const gauges = Object.keys(peak.gauges).filter((name) => name !== 'spliced_bytes');
          rows.push([
            format === 'full' ? 'A' : "A'",
            String(concurrency),
            String(round),
            outcomes(result),
            String(result.verified),
            digits(result.seconds),
            gauges.map((name) => `${name} ${megabytes(peak.gauges[name]!)}`).join(', '),
            megabytes(peak.vm),
            megabytes(peak.resident),
            gauges.map((name) => `${name} ${megabytes(after.gauges[name]!)}`).join(', '),
            megabytes(after.resident),
          ]);
          console.log(rows.at(-1)!.join('  '));
        }
      } finally {
        await envoy.close();
      }
    }
  }
  return [
    `## Many long requests at once: ${describe(LONG)}, one worker`,
    '',
    'Peaks in MB, sampled every 20 ms while all requests run, and what remains. VM: memory of the largest wasm VM, which never ' +
      'shrinks. Envoy itself buffers each prefill reply whole, in its own memory. Every response was compared byte for byte.',
    '',
    ...table(
      [
        ...[
          'format',
          'at once',
          'round',
          'outcomes',
          'compared',
          'seconds',
          'peak of gauges',
          'VM',
          'peak RSS',
        ],
        ...['gauges after', 'RSS after'],
      ],
      rows,
    ),
  ];
}

function outcomes({ outcomes, failures }: RunResult): string {
  const parts = Object.entries(outcomes).map(([name, n]) => `${n} ${name || 'none'}`);
  const failed = Object.entries(failures).filter(([what]) => !what.startsWith('outcome: '));
  return [...parts, ...failed.map(([what, n]) => `${n} failed: ${what}`)].join(', ');
}

// ---- cost as something grows

interface Cost {
  p50: number;
  cpuMs: number;
  perSecond: number;
  requests: number;
  failed: string;
}

async function cost(bench: Bench, envoy: MeasuredEnvoy, format: Format | 'floor', load: Load): Promise<Cost> {
  const before = usageOf(envoy.pid).cpuMs;
  const result = await run(bench, envoy.port, format, load);
  const requests = result.latencies.length;
  return {
    p50: quantile(
      result.latencies.sort((a, b) => a - b),
      0.5,
    ),
    cpuMs: (usageOf(envoy.pid).cpuMs - before) / requests,
    perSecond: requests / result.seconds,
    requests,
    failed: Object.entries(result.failures)
      .map(([what, n]) => `${n} ${what}`)
      .join(', '),
  };
}

interface Row {
  label: string;
  workload: Workload;
  load: Load;
  workers?: number;
  pieceBytes?: number;
  /** The CPU time is divided by this number, and shown in microseconds. */
  units: number;
}

async function grow(bench: Bench, title: string, note: string, unit: string, rows: Row[]): Promise<string[]> {
  const lines: string[][] = [];
  for (const { label, workload, load, workers, pieceBytes, units } of rows) {
    await loadWorkload(bench, workload, pieceBytes);
    const subjects = ['floor', 'full', 'tail'] as const;
    const envoys: MeasuredEnvoy[] = [];
    const costs: Cost[][] = subjects.map(() => []);
    try {
      for (const format of subjects) {
        const envoy = await start(bench, format, workers);
        envoys.push(envoy);
        await cost(bench, envoy, format, { ...load, seconds: 0.2, leastRequests: 1, verifyEvery: 1 });
      }
      for (let repeat = 0; repeat < bench.repeats; repeat++) {
        for (let i = 0; i < subjects.length; i++) {
          const at = (i + repeat) % subjects.length;
          costs[at]!.push(await cost(bench, envoys[at]!, subjects[at]!, load));
        }
      }
    } finally {
      for (const envoy of envoys) await envoy.close();
    }
    subjects.forEach((format, i) => {
      const median = (pick: (cost: Cost) => number) => spread(costs[i]!.map(pick)).median;
      const toFloor = (pick: (cost: Cost) => number) =>
        spread(costs[i]!.map((one, repeat) => pick(one) / pick(costs[0]![repeat]!))).median;
      const cpu = median((one) => one.cpuMs);
      const failed = costs[i]!.flatMap((one) => (one.failed ? [one.failed] : [])).join(', ');
      lines.push([
        label,
        format === 'floor' ? 'Envoy x 2' : format === 'full' ? 'filter, A' : "filter, A'",
        digits(median((one) => one.p50)),
        digits(median((one) => one.perSecond)),
        digits(cpu),
        digits((cpu * 1000) / units),
        i === 0 ? '' : ratio(toFloor((one) => one.p50)),
        i === 0 ? '' : ratio(toFloor((one) => one.cpuMs)),
        failed || '0',
      ]);
      console.log(lines.at(-1)!.join('  '));
    });
  }
  const head = [
    '',
    'subject',
    'p50 ms',
    'requests/s',
    'CPU ms',
    `CPU us/${unit}`,
    'p50 / floor',
    'CPU / floor',
  ];
  return [`## ${title}`, '', note, '', ...table([...head, 'failed'], lines)];
}

const workers = (bench: Bench) =>
  grow(
    bench,
    'Workers',
    'Concurrency 16. Engines and load generator run on the same processors.',
    'request',
    [1, 2].map((n) => ({
      label: `${n} worker${n === 1 ? '' : 's'}`,
      workload: { tokens: 2048, ...MODEL },
      load: { concurrency: 16, seconds: bench.seconds },
      workers: n,
      units: 1,
    })),
  );

const concurrency = (bench: Bench) =>
  grow(
    bench,
    `Concurrency: ${describe(SHORT)}`,
    'The CPU of a request must not grow by more than the floor does.',
    'request',
    [1, 16, 256].map((n) => ({
      label: `${n} at once`,
      workload: SHORT,
      load: { concurrency: n, seconds: bench.seconds },
      units: 1,
    })),
  );

const choices = (bench: Bench) =>
  grow(
    bench,
    'Choices: 256 tokens each',
    'The CPU of a choice must not grow.',
    'choice',
    [1, 8, 32, 128].map((n) => ({
      label: `n = ${n}`,
      workload: { ...SHORT, choices: n },
      load: { concurrency: 1, seconds: bench.seconds },
      units: n,
    })),
  );

const pieces = (bench: Bench) =>
  grow(
    bench,
    "Decode's response written byte by byte",
    'Each byte has a system call of its own; Envoy may find several at once. The CPU of a byte must not grow.',
    'byte',
    [32, 128, 512].map((tokens) => ({
      label: `${tokens} tokens`,
      workload: { tokens, ...MODEL },
      load: { concurrency: 1, seconds: Math.min(bench.seconds, 1), mostRequests: 20 },
      pieceBytes: 1,
      // The base64 characters of one token's row, times the tokens.
      units: tokens * MODEL.layers * MODEL.topK * (4 / 3),
    })),
  );

// ---- start

async function starts(bench: Bench): Promise<string[]> {
  const rows: string[][] = [];
  for (const format of ['floor', 'full'] as const) {
    const times: number[] = [];
    const memory: number[] = [];
    for (let i = 0; i < bench.repeats; i++) {
      const begun = performance.now();
      const envoy = await start(bench, format);
      times.push(performance.now() - begun);
      memory.push(residentBytes(envoy.pid));
      await envoy.close();
    }
    const { median, least, most } = spread(times);
    rows.push([
      format === 'floor' ? 'without filter' : 'with the filter',
      `${digits(median)} (${digits(least)}..${digits(most)})`,
      megabytes(spread(memory).median),
    ]);
    console.log(rows.at(-1)!.join('  '));
  }
  return [
    '## Start',
    '',
    'From starting Envoy until it is ready: with the filter this compiles the module, starts three VMs and configures them.',
    '',
    ...table(['Envoy', 'ms', 'RSS MB'], rows),
  ];
}

const sections: Record<Section, (bench: Bench) => Promise<string[]>> = {
  many,
  workers,
  concurrency,
  choices,
  pieces,
  start: starts,
};

const USAGE = `npm run bench:memory -- [options]
  --only LIST      ${SECTIONS.join(',')}
  --seconds N      length of a window         2
  --repeats N      windows of each subject    3
  --filter JSON    members of the plugin's configuration, such as '{"max_capture_bytes":100000000}'`;

await runMain(import.meta.url, async () => {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean' },
      only: { type: 'string' },
      seconds: { type: 'string' },
      repeats: { type: 'string' },
      filter: { type: 'string' },
    },
  });
  if (values.help) return console.log(USAGE);
  const names = (values.only ?? SECTIONS.join(',')).split(',');
  const unknown = names.find((name) => !SECTIONS.some((section) => section === name));
  if (unknown !== undefined) throw new Problem(`--only ${unknown}: known are ${SECTIONS.join(', ')}.`);
  const seconds = Number(values.seconds ?? 2);
  const repeats = Number(values.repeats ?? 3);
  if (!(seconds > 0 && seconds <= 600 && repeats >= 1 && repeats <= 100)) {
    throw new Problem('--seconds is a number up to 600, --repeats one from 1 to 100.');
  }
  const engines = [new Worker<EngineHandlers>('engine.ts'), new Worker<EngineHandlers>('engine.ts')];
  const client = new Worker<LoadHandlers>('load.ts');
  try {
    const started = load();
    const prefill = await engines[0]!.call('listen', { roles: ['prefill'], protocol: 'http1' });
    const decode = await engines[1]!.call('listen', { roles: ['full', 'tail'], protocol: 'http1' });
    const bench: Bench = {
      engines,
      client,
      ports: { prefill: prefill['prefill']!, full: decode['full']!, tail: decode['tail']! },
      seconds,
      repeats,
      filter: JSON.parse(values.filter ?? '{}'),
    };
    const parts: string[] = [];
    for (const name of SECTIONS) {
      if (!names.includes(name)) continue;
      console.log(`\n${name}`);
      parts.push(...(await sections[name](bench)), '');
    }
    const { output: version } = await runProgram(await requireEnvoy(), ['--version']);
    const args = process.argv.slice(2);
    const text = [
      '# Memory and scale',
      '',
      `    npm run bench:memory${args.length > 0 ? ` -- ${args.join(' ')}` : ''}`,
      '',
      `${describeMachine()}; Envoy ${/\/(\d[\w.-]*)\//.exec(version)?.[1] ?? 'unknown'}, default buffer limits; load average ` +
        `${started} before, ${load()} after. Medians of ${repeats} windows of ${seconds} s, interleaved.`,
      '',
      ...parts,
    ].join('\n');
    console.log(`\n${text}`);
    mkdirSync(join(ROOT, 'bench', 'results'), { recursive: true });
    writeFileSync(join(ROOT, 'bench', 'results', 'memory.md'), text);
  } finally {
    for (const worker of [...engines, client]) worker.close();
  }
});
