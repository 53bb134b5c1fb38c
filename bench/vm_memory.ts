// How much memory the VMs of an Envoy process have taken.

import { readFileSync } from 'node:fs';

/**
 * Number of bytes of the largest Wasm VM of a process. V8 reserves gigabytes of address space for a
 * Wasm memory, and makes its pages accessible from the beginning on.
 */
export function largestVm(pid: number): number {
  let largest = 0;
  let before: { size: number; end: string; accessible: boolean } | undefined;
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ 0/.exec(line);
    if (!match) continue;
    const [, begin, end, mode] = match as unknown as [string, string, string, string];
    const size = parseInt(end, 16) - parseInt(begin, 16);
    const reserved = mode.startsWith('---') && size > 2 ** 30;
    if (reserved && before?.accessible && before.end === begin) largest = Math.max(largest, before.size);
    before = { size, end, accessible: mode.startsWith('rw') };
  }
  return largest;
}
