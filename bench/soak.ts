// `npm run soak`: exchanges of mixed sizes and forms, some with faults, for half an hour. Memory,
// traps and latency over time are written as Markdown and a plot. Every merged response is
// compared, byte for byte, with an independent merge.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { serveEngine } from '../test/engine/server.ts';
import { createPlant } from '../test/envoy/plant.ts';
import type { Engine } from '../test/scenario.ts';
import { Random } from '../test/unit/random.ts';
import { ROOT } from '../tools/paths.mjs';
import { Problem, runMain } from '../tools/problem.mjs';
import { describeMachine, load, residentBytes } from './machine.ts';
import { table } from './report.ts';
import { CONNECTORS, exchanges, faultOf, pick, replyOf, type Soaked } from './soak_exchanges.ts';
import { digits, megabytes, quantile } from './stats.ts';
import { largestVm } from './vm_memory.ts';

const CONCURRENCY = 12;
/** The share of exchanges in which one leg fails, and the share in which the client leaves. */
const FAULTS = 0.06;
const LEAVERS = 0.02;
const ID = 'x-soak';
/** The configuration of both listeners, which stand in the order of `CONNECTORS`. */
const CONFIG = { max_capture_bytes: 2 ** 27, max_hold_bytes: 2 ** 25 };
const PREFILL = { retries: 1, timeout_ms: 10_000 };

interface Sample {
  minutes: number;
  requests: number;
  p50: number;
  p99: number;
  vm: number;
  resident: number;
  held: number;
}

interface Leg {
  of: Soaked;
  prefillFails: boolean;
  decodeFails: boolean;
}

interface Totals {
  outcomes: Record<string, number>;
  compared: number;
  wrong: string[];
}

/** An engine that finds its reply by the number in the request's header. */
function engine(random: Random, running: Map<string, Leg>, leg: 'prefill' | 'decode'): Engine {
  return ({ headers }) => {
    const id = headers.find(([name]) => name === ID)?.[1] ?? '';
    const asked = running.get(id);
    if (!asked) return { status: 503, headers: [], chunks: [] };
    const { of, prefillFails, decodeFails } = asked;
    const stream = leg === 'decode' && of.stream;
    const fails = leg === 'prefill' ? prefillFails : decodeFails;
    return fails ? faultOf(random, of[leg], stream) : replyOf(random, of[leg], stream);
  };
}

async function soak(minutes: number, seed: number) {
  const random = new Random(seed);
  const all = exchanges(seed);
  const running = new Map<string, Leg>();
  const prefill = await serveEngine(engine(random, running, 'prefill'));
  const decode = await serveEngine(engine(random, running, 'decode'));
  const of = await createPlant({
    prefillPort: prefill.port,
    decodePort: decode.port,
    requestBodyBufferLimit: 2 ** 24,
    config: { ...CONFIG, decode_rows: 'tail', prefill: PREFILL },
    more: [{ ...CONFIG, connector: 'sglang', prefill: { ...PREFILL, bootstrap_host: '127.0.0.1' } }],
  });
  const totals: Totals = { outcomes: {}, compared: 0, wrong: [] };
  const samples: Sample[] = [];
  let latencies: number[] = [];
  const end = Date.now() + minutes * 60_000;
  let serial = 0;

  const client = async () => {
    while (Date.now() < end) {
      const id = String(serial++);
      const fails = random.chance(FAULTS);
      const prefillFails = fails && random.chance(0.5);
      const leg = { of: pick(random, all), prefillFails, decodeFails: fails && !prefillFails };
      running.set(id, leg);
      const { path, request, merged, name, connector } = leg.of;
      const leaves = !fails && random.chance(LEAVERS);
      const leave = leaves ? new Promise((resolve) => setTimeout(resolve, random.below(15))) : undefined;
      const begun = performance.now();
      const answer = await of.send({
        path,
        listener: CONNECTORS.indexOf(connector),
        body: request,
        headers: { [ID]: id },
        ...(leave ? { leave } : {}),
      });
      running.delete(id);
      if (fails || leaves) {
        // A complete response that says merged must be right. Any other response may be decode's
        // own.
        const outcome = answer.headers.find(([key]) => key === 'x-routed-experts')?.[1] ?? '';
        if (answer.complete && outcome.startsWith('merged') && !answer.body.equals(merged))
          totals.wrong.push(name);
        continue;
      }
      latencies.push(performance.now() - begun);
      totals.compared++;
      if (!answer.complete || !answer.body.equals(merged)) totals.wrong.push(`${name}: ${answer.status}`);
    }
  };

  const started = Date.now();
  const sampler = (async () => {
    const every = Math.max(1000, (minutes * 60_000) / 120);
    while (Date.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, every));
      const window = latencies.sort((a, b) => a - b);
      latencies = [];
      const held = await of.stats('routed_experts.held_bytes');
      samples.push({
        minutes: (Date.now() - started) / 60_000,
        requests: window.length,
        p50: quantile(window, 0.5),
        p99: quantile(window, 0.99),
        vm: largestVm(of.envoy.pid),
        resident: residentBytes(of.envoy.pid),
        held: Object.values(held)[0] ?? 0,
      });
      const last = samples.at(-1)!;
      console.log(
        `${last.minutes.toFixed(1)} min: ${window.length} requests, p99 ${digits(last.p99)} ms, VM ${megabytes(last.vm)} MB, ` +
          `RSS ${megabytes(last.resident)} MB, ${totals.wrong.length} wrong`,
      );
    }
  })();
  try {
    await Promise.all([...Array.from({ length: CONCURRENCY }, client), sampler]);
    // Fails when an exchange has not ended, when something is held, or when a VM has trapped. The
    // exchanges are compared with the requests that Envoy counts, not with those sent: a client
    // that leaves before Envoy has its request counts as none.
    let left = '';
    for (let i = 0; i < 100; i++) {
      const stats = await of.stats(
        'held_bytes|http\\.ingress\\.downstream_rq_(active|total)$|vm_reload_success',
      );
      totals.outcomes = await of.outcomes();
      const counted = Object.values(totals.outcomes).reduce((a, b) => a + b);
      const reloads = Object.entries(stats).filter(([name]) => name.includes('reload'));
      const open = {
        held: stats['wasmcustom.routed_experts.held_bytes'] ?? 0,
        active: stats['http.ingress.downstream_rq_active'] ?? 0,
        uncounted: (stats['http.ingress.downstream_rq_total'] ?? 0) - counted,
        reloads: reloads.reduce((sum, [, value]) => sum + value, 0),
      };
      left = JSON.stringify(open);
      if (Object.values(open).every((value) => value === 0)) break;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    const traps = of.envoy
      .logs()
      .split('\n')
      .filter((line) => /Uncaught RuntimeError|wasm_fail/.test(line));
    return { totals, samples, left, traps: traps.length, sent: serial };
  } finally {
    await of.close();
    await prefill.close();
    await decode.close();
  }
}

// ---- report

function plot(samples: Sample[]): string {
  const [width, height, margin] = [720, 150, 60];
  const span = samples.at(-1)!.minutes;
  const panel = (
    title: string,
    top: number,
    lines: { name: string; color: string; of: (s: Sample) => number }[],
  ) => {
    const most = Math.max(1, ...lines.flatMap(({ of }) => samples.map(of))) * 1.1;
    const x = (s: Sample) => margin + (s.minutes / span) * (width - 2 * margin);
    const y = (value: number) => top + height - 20 - (value / most) * (height - 50);
    const drawn = lines.map(({ name, color, of }, i) => {
      const points = samples.map((s) => `${x(s).toFixed(1)},${y(of(s)).toFixed(1)}`).join(' ');
      return (
        `<polyline fill="none" stroke="${color}" stroke-width="1.5" points="${points}"/>` +
        `<text x="${width - margin + 4}" y="${top + 40 + 14 * i}" fill="${color}">${name}</text>`
      );
    });
    return (
      `<text x="${margin}" y="${top + 16}">${title}</text>` +
      `<line x1="${margin}" x2="${width - margin}" y1="${y(0)}" y2="${y(0)}" stroke="#888"/>` +
      `<text x="4" y="${y(0)}">0</text><text x="4" y="${y(most / 1.1)}">${digits(most / 1.1)}</text>${drawn.join('')}`
    );
  };
  const body = [
    panel('MB', 0, [
      { name: 'RSS', color: '#c33', of: (s) => s.resident / 1e6 },
      { name: 'VM', color: '#36c', of: (s) => s.vm / 1e6 },
      { name: 'held', color: '#393', of: (s) => s.held / 1e6 },
    ]),
    panel('ms', height, [
      { name: 'p99', color: '#c33', of: (s) => s.p99 },
      { name: 'p50', color: '#36c', of: (s) => s.p50 },
    ]),
    `<text x="${margin}" y="${2 * height + 10}">0 to ${span.toFixed(1)} minutes</text>`,
  ];
  const size = `width="${width}" height="${2 * height + 20}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="12"><rect ${size} fill="#fff"/>${body.join('')}</svg>\n`;
}

function report(result: Awaited<ReturnType<typeof soak>>, minutes: number, before: string): string {
  const { samples, totals, left, traps, sent } = result;
  const tenth = (i: number) =>
    samples.slice(Math.floor((i * samples.length) / 5), Math.floor(((i + 1) * samples.length) / 5));
  const rows = Array.from({ length: 5 }, (_, i) => tenth(i))
    .filter((part) => part.length > 0)
    .map((part) => [
      `${part[0]!.minutes.toFixed(1)} to ${part.at(-1)!.minutes.toFixed(1)}`,
      String(part.reduce((sum, { requests }) => sum + requests, 0)),
      digits(Math.max(...part.map(({ p50 }) => p50))),
      digits(Math.max(...part.map(({ p99 }) => p99))),
      megabytes(Math.max(...part.map(({ vm }) => vm))),
      megabytes(Math.max(...part.map(({ resident }) => resident))),
    ]);
  return [
    '# Soak',
    '',
    `    npm run soak -- --minutes ${minutes}`,
    '',
    `${describeMachine()}; load average ${before} before, ${load()} after. One worker, ${CONCURRENCY} requests at once; engines and ` +
      `client in one process beside it. Prompts of 7 to 16,000 tokens, .npy in full and as tails, objects, prompt rows apart, SGLang’s, streams and lists, one and two choices, legs one after the other and at once; ` +
      `${FAULTS * 100} % of the exchanges with a leg that resets, breaks off, answers 500 or sends what is no JSON or no array; ` +
      `${LEAVERS * 100} % of the clients leave.`,
    '',
    `**${minutes} minutes, ${sent} requests, ${totals.compared} responses compared byte for byte, ${totals.wrong.length} wrong, ${traps} traps.** ` +
      `Left behind: \`${left}\`.`,
    '',
    ...table(
      ['outcome', 'requests'],
      Object.entries(totals.outcomes).map(([name, n]) => [name, String(n)]),
    ),
    '',
    'Largest values in each fifth of the time; the VM never gives memory back.',
    '',
    ...table(['minutes', 'requests', 'p50 ms', 'p99 ms', 'VM MB', 'RSS MB'], rows),
    '',
    '![memory and latency over time](soak.svg)',
    '',
  ].join('\n');
}

await runMain(import.meta.url, async () => {
  const { values } = parseArgs({ options: { minutes: { type: 'string' }, seed: { type: 'string' } } });
  const minutes = Number(values.minutes ?? 30);
  const seed = Number(values.seed ?? 1);
  if (!(minutes > 0 && minutes <= 10_000)) throw new Problem('--minutes is a number above 0.');
  const before = load();
  const result = await soak(minutes, seed);
  const folder = join(ROOT, 'bench', 'results');
  mkdirSync(folder, { recursive: true });
  const text = report(result, minutes, before);
  writeFileSync(join(folder, 'soak.md'), text);
  writeFileSync(join(folder, 'soak.svg'), plot(result.samples));
  console.log(`\n${text}`);
  const clean = result.totals.wrong.length === 0 && result.traps === 0 && !/:[^0]/.test(result.left);
  if (!clean) throw new Problem(`Not clean: ${result.totals.wrong.slice(0, 5).join('; ')} ${result.left}`);
});
