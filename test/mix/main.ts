// `npm run test:mix` sends requests of many clients at once, some of which leave, through one Envoy
// with several workers to engines of every kind, some of which abort. Every complete answer is
// compared with the oracle's. An exchange without an end after `--stall` seconds fails the run and
// is reported with everything that Envoy, the engines and the client have seen of it.
//
//     npm run test:mix -- --requests 3000 --clients 64 --workers 4 --seed 1 --aborts 6 --leavers 5
//         --runs 7 --report
//
// The rates `--aborts` (of legs) and `--leavers` (of clients) are percentages. Each run has the
// next seed. Arguments after a further `--` go to Envoy; for example, `--component-log-level
// connection:trace,pool:debug` shows what was sent where.

import { writeFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { load } from '../../bench/machine.ts';
import { ROOT } from '../../tools/paths.mjs';
import { Problem, runMain } from '../../tools/problem.mjs';
import { Mix } from './mix.ts';
import { report, summary, type Run } from './report.ts';

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
      ...{ aborts: text, leavers: text, runs: text, report: { type: 'boolean' } },
    },
    allowPositionals: true,
  });
  const seed = numberOf('seed', values.seed, Math.floor(Math.random() * 0x7fffffff), 0);
  const options = {
    requests: numberOf('requests', values.requests, 3000, 1),
    clients: numberOf('clients', values.clients, 64, 1),
    workers: numberOf('workers', values.workers, 4, 1),
    stall: numberOf('stall', values.stall, 30, 1),
    rates: {
      aborts: numberOf('aborts', values.aborts, 6, 0) / 100,
      leavers: numberOf('leavers', values.leavers, 5, 0) / 100,
    },
    // The arguments after `--`.
    args: positionals,
  };
  const before = load();
  const runs: Run[] = [];
  for (let i = 0; i < numberOf('runs', values.runs, values.report ? 7 : 1, 1); i++) {
    const delay = monitorEventLoopDelay({ resolution: 10 });
    delay.enable();
    const begun = performance.now();
    const mix = new Mix({ ...options, seed: seed + i });
    console.log(
      `--seed ${seed + i}: ${options.requests} requests, ${options.clients} clients, load ${load()}`,
    );
    await mix.run();
    delay.disable();
    runs.push({ mix, seconds: (performance.now() - begun) / 1000, busyMs: delay.max / 1e6 });
    console.log(summary(runs.at(-1)!));
  }
  const written = await report(runs, options, before);
  if (values.report) writeFileSync(join(ROOT, 'bench', 'results', 'mix.md'), written);
  else console.log(`\n${written}`);
  const failed = runs.filter(({ mix }) => mix.wrong.length + mix.stalled.length + mix.faults.length > 0);
  if (failed.length === 0) return;
  const lines = failed.map(({ mix }) => {
    const what = [`${mix.wrong.length} wrong`, ...mix.faults, ...mix.stalled];
    return `--seed ${mix.options.seed}: ${what.join('; ')}`;
  });
  throw new Problem(lines.join('\n'));
});
