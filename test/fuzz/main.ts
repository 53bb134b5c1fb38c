// `npm run fuzz`: CASES cases (default 100,000) from SEED on (default: random). A find ends it, is printed, and is written
// to build/find.json; to keep it, move it to test/fuzz/finds/.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BUILD, FILTER_WASM } from '../../tools/paths.mjs';
import { fuzz, showCounts } from './fuzz.ts';

const cases = Number(process.env['CASES'] ?? 100_000);
const given = process.env['SEED'];
const seed = given === undefined ? Math.floor(Math.random() * 0x3fffffff) : Number(given);
if (!(cases > 0 && seed >= 0)) throw new Error('CASES and SEED are numbers');

console.log(`SEED=${seed} CASES=${cases}`);
const started = performance.now();
const { counts, find } = await fuzz(FILTER_WASM, seed, cases, (done) => {
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
} else console.log('nothing found');
