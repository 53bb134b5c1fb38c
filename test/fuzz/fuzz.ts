// Runs the fuzzer for a range of seeds and counts the outcomes.

import { Random } from '../unit/random.ts';
import { caseOf } from './generate.ts';
import { Runner, type Find } from './run.ts';

/** A run ends after this many finds. */
const MOST_FINDS = 20;

export interface Ran {
  counts: Counts;
  origins: Counts;
  finds: Find[];
}

/**
 * Runs `cases` cases with the seeds from `seed` on. A case does not depend on the cases that run
 * beside it.
 */
export async function fuzz(
  wasmPath: string,
  seed: number,
  cases: number,
  progress: (done: number) => void = () => undefined,
): Promise<Ran> {
  const ran: Ran = { counts: {}, origins: {}, finds: [] };
  const { counts, origins, finds } = ran;
  let runner = await Runner.create(wasmPath, counts);
  for (let done = 0; done < cases && finds.length < MOST_FINDS;) {
    const beside = Math.min(cases - done, new Random(seed + done).pick([1, 1, 2, 3, 5]));
    const group = Array.from({ length: beside }, (_, i) => caseOf(seed + done + i));
    const find = await runner.run(group);
    if (find) {
      finds.push(find);
      // What the failed group left behind must not affect the next one.
      runner = await Runner.create(wasmPath, counts);
    }
    for (const { notes } of group) origins[notes[0]!] = (origins[notes[0]!] ?? 0) + 1;
    for (let i = 0; i < beside; i++) progress(++done);
  }
  return ran;
}

/** The number of cases by outcome, or by what they were made from. */
export type Counts = Record<string, number>;

export const sorted = (counts: Counts): [string, number][] =>
  Object.entries(counts).sort(([, a], [, b]) => b - a);

export function showCounts(counts: Counts): string {
  return sorted(counts)
    .map(([outcome, n]) => `${String(n).padStart(9)} ${outcome}`)
    .join('\n');
}
