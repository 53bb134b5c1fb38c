// `npm run fuzz` runs CASES cases (default 100,000) from SEED on (default: random). A find is
// printed and written to build/find-<n>.json; to keep it, move it to test/fuzz/finds/. A long run
// is split into one process per core. With `-- --report` the result of a run is written to
// bench/results/fuzz.md.

import { fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { describeMachine } from '../../bench/machine.ts';
import { table } from '../../bench/report.ts';
import { BUILD, FILTER_WASM, ROOT } from '../../tools/paths.mjs';
import { fuzz, showCounts, sorted, type Counts, type Ran } from './fuzz.ts';
import type { Find } from './run.ts';

const { values } = parseArgs({ options: { report: { type: 'boolean' } } });
const cases = Number(process.env['CASES'] ?? 100_000);
const given = process.env['SEED'];
const seed = given === undefined ? Math.floor(Math.random() * 0x3fffffff) : Number(given);
if (!(cases > 0 && seed >= 0)) throw new Error('CASES and SEED are numbers');

interface Run {
  seed: number;
  cases: number;
}

type Told = { done: number } | Ran;

const started = performance.now();
if (process.send) await part();
else await all();

/** Runs a part of the cases in a child process. */
async function part(): Promise<void> {
  // Resolves when the message has been sent, so that the process can end after it.
  const tell = (told: Told) => new Promise((resolve) => process.send!(told, resolve));
  const result = await fuzz(FILTER_WASM, seed, cases, (done) => {
    if (done % 10_000 === 0) void tell({ done });
  });
  await tell(result);
  process.disconnect();
}

async function all(): Promise<void> {
  console.log(`SEED=${seed} CASES=${cases}`);
  // A short run uses one process, because its order matters more than its time.
  const processes = cases < 10_000 ? 1 : availableParallelism();
  const each = Math.ceil(cases / processes);
  const runs = Array.from({ length: processes }, (_, i): Run => {
    return { seed: seed + i * each, cases: Math.min(each, cases - i * each) };
  });
  const done = runs.map(() => 0);
  const results = await Promise.all(
    runs.map(
      (run, i) =>
        new Promise<Ran>((resolve, reject) => {
          const env = { ...process.env, SEED: String(run.seed), CASES: String(run.cases) };
          const child = fork(import.meta.filename, { env });
          child.on('message', (told: Told) => {
            if (!('done' in told)) return resolve(told);
            done[i] = told.done;
            const sum = done.reduce((a, b) => a + b, 0);
            if (sum % 50_000 === 0) console.log(`${sum} cases, ${seconds()} s`);
          });
          child.on('error', reject);
          child.on('exit', (code) => reject(new Error(`a part ended with ${code}`)));
        }),
    ),
  );
  const counts = sum(results.map((result) => result.counts));
  const origins = sum(results.map((result) => result.origins));
  console.log(showCounts(counts));
  console.log(`${seconds()} s`);
  const finds = results.flatMap(({ finds }, i) => finds.map((find) => ({ find, run: runs[i]! })));
  finds.forEach(show);
  if (finds.length > 0) return;
  console.log('nothing found');
  if (values.report)
    writeFileSync(join(ROOT, 'bench', 'results', 'fuzz.md'), report(counts, origins, processes));
}

function seconds(): string {
  return ((performance.now() - started) / 1000).toFixed(1);
}

function sum(of: Counts[]): Counts {
  const out: Counts = {};
  for (const counts of of) for (const [name, n] of Object.entries(counts)) out[name] = (out[name] ?? 0) + n;
  return out;
}

function show({ find, run }: { find: Find; run: Run }, i: number): void {
  const path = join(BUILD, `find-${i + 1}.json`);
  writeFileSync(path, JSON.stringify(find, null, 1));
  const each = find.cases.map(({ seed, notes }) => `SEED=${seed} CASES=1: ${notes.join(', ')}`);
  console.error(`\n${find.what}\n${each.join('\n')}`);
  console.error(`The case is in ${path}; the run was SEED=${run.seed} CASES=${run.cases}.`);
  process.exitCode = 1;
}

function report(counts: Counts, origins: Counts, processes: number): string {
  const rows = (of: Counts) => sorted(of).map(([name, n]) => [name, String(n)]);
  const minutes = (performance.now() - started) / 60_000;
  const sha = createHash('sha256').update(readFileSync(FILTER_WASM)).digest('hex');
  return [
    '# Fuzzing',
    '',
    `    SEED=${seed} CASES=${cases} npm run fuzz -- --report`,
    '',
    `${describeMachine()}; ${processes} processes; filter.wasm with sha256 \`${sha}\`.`,
    '',
    `**${cases} cases in ${minutes.toFixed(0)} minutes, nothing found.** Each ended as the reference says, or in a refusal.`,
    '',
    ...table(['outcome', 'cases'], rows(counts)),
    '',
    'What they were made from, before the damage; one in eight is not damaged and must be merged.',
    '',
    ...table(['messages', 'cases'], rows(origins)),
    '',
  ].join('\n');
}
