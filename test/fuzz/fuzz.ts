// A run of the fuzzer.

import { Random } from '../unit/random.ts';
import { caseOf } from './generate.ts';
import { Runner, type Find } from './run.ts';

/** Runs `cases` cases with the seeds from `seed` on. A case is the same whatever runs beside it. */
export async function fuzz(
  wasmPath: string,
  seed: number,
  cases: number,
  progress: (done: number) => void = () => undefined,
): Promise<{ counts: Record<string, number>; find: Find | null }> {
  const runner = await Runner.create(wasmPath);
  for (let done = 0; done < cases;) {
    const beside = Math.min(cases - done, new Random(seed + done).pick([1, 1, 2, 3, 5]));
    const group = Array.from({ length: beside }, (_, i) => caseOf(seed + done + i));
    const find = await runner.run(group);
    if (find) return { counts: runner.counts, find };
    for (let i = 0; i < beside; i++) progress(++done);
  }
  return { counts: runner.counts, find: null };
}

export function showCounts(counts: Record<string, number>): string {
  return Object.entries(counts)
    .sort(([, a], [, b]) => b - a)
    .map(([outcome, n]) => `${String(n).padStart(9)} ${outcome}`)
    .join('\n');
}
