// `npm run fuzz`: CASES cases (default 100,000) from SEED on (default: random). A find ends it, is printed, and is written
// to build/find.json; to keep it, move it to test/fuzz/finds/. With `-- --report` a run is written to bench/results/fuzz.md.

import { readFileSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { describeMachine } from '../../bench/machine.ts';
import { table } from '../../bench/report.ts';
import { BUILD, FILTER_WASM, ROOT } from '../../tools/paths.mjs';
import { fuzz, showCounts, sorted, type Counts } from './fuzz.ts';

const { values } = parseArgs({ options: { report: { type: 'boolean' } } });

const cases = Number(process.env['CASES'] ?? 100_000);
const given = process.env['SEED'];
const seed = given === undefined ? Math.floor(Math.random() * 0x3fffffff) : Number(given);
if (!(cases > 0 && seed >= 0)) throw new Error('CASES and SEED are numbers');

console.log(`SEED=${seed} CASES=${cases}`);
const started = performance.now();
const { counts, origins, find } = await fuzz(FILTER_WASM, seed, cases, (done) => {
  if (done % 50_000 === 0)
    console.log(`${done} cases, ${Math.round((performance.now() - started) / 1000)} s`);
});
console.log(showCounts(counts));
console.log(`${((performance.now() - started) / 1000).toFixed(1)} s`);
if (find) {
  const path = join(BUILD, 'find.json');
  writeFileSync(path, JSON.stringify(find, null, 1));
  console.error(
    `\n${find.what}\n${find.cases.map(({ seed, notes }) => `SEED=${seed} CASES=1: ${notes.join(', ')}`).join('\n')}`,
  );
  console.error(`The case is in ${path}; the run was SEED=${seed} CASES=${cases}.`);
  process.exitCode = 1;
} else {
  console.log('nothing found');
  if (values.report) writeFileSync(join(ROOT, 'bench', 'results', 'fuzz.md'), report());
}

function report(): string {
  const rows = (of: Counts) => sorted(of).map(([name, n]) => [name, String(n)]);
  const minutes = (performance.now() - started) / 60_000;
  const sum = createHash('sha256').update(readFileSync(FILTER_WASM)).digest('hex');
  return [
    '# Fuzzing',
    '',
    `    SEED=${seed} CASES=${cases} npm run fuzz -- --report`,
    '',
    `${describeMachine()}; filter.wasm with sha256 \`${sum}\`.`,
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
