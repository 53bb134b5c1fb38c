// A short run of the fuzzer, and every find that was kept in `finds/`. The seeds are the same each
// time, so that a change that passes here passes in CI; `npm run fuzz` has new ones.

import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { fuzz } from './fuzz.ts';
import { Runner, type Find } from './run.ts';

const CASES = 20_000;
const FIRST_SEED = 1_000_000;
const given = process.env['SEED'];

test(`${CASES} cases end as the reference says, or in a refusal`, async () => {
  const seed = Number(given ?? FIRST_SEED);
  console.log(`fuzz: SEED=${seed} CASES=${CASES}`);
  const { finds, counts } = await fuzz(FILTER_WASM, seed, CASES);
  const told = finds.map(({ what, cases }) => [
    what,
    ...cases.map(({ seed, notes }) => `SEED=${seed} CASES=1 npm run fuzz: ${notes.join(', ')}`),
  ]);
  expect(told).toEqual([]);
  // A filter that refused everything would pass every case, so a share of them must be merged.
  expect(counts['merged']).toBeGreaterThan(CASES / 10);
}, 300_000);

const FINDS = new URL('finds/', import.meta.url);

for (const name of readdirSync(FINDS).filter((file) => file.endsWith('.json'))) {
  test(`find: ${name.slice(0, -5)}`, async () => {
    const { cases } = JSON.parse(readFileSync(new URL(name, FINDS), 'utf8')) as Find;
    const runner = await Runner.create(FILTER_WASM);
    expect((await runner.run(cases))?.what ?? null).toBeNull();
  });
}
