// Where an Envoy's time goes: samples of `perf`, summed by where the code is. Wasm has no symbols there: it is one line.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { lastError, run } from '../tools/run.mjs';

const TOP = 25;

export async function profile(pid: number, seconds: number, work: () => Promise<unknown>): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'perf-'));
  const data = join(dir, 'perf.data');
  try {
    const events = ['-e', 'cpu-clock', '-F', '999', '-g'];
    const recording = run('perf', [
      ...['record', '-q', '-p', String(pid), ...events, '-o', data, '--', 'sleep', String(seconds)],
    ]);
    await work();
    const recorded = await recording;
    if (recorded.code !== 0) return `perf record failed: ${lastError(recorded.output)}`;
    const report = await run('perf', [
      ...['report', '-i', data, '--stdio', '--no-children', '-g', 'none', '--sort', 'dso,symbol'],
    ]);
    return summary(report.output);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** Lines are `12.34%  dso  [.] symbol`. Compiled wasm is memory without a file. */
function summary(report: string): string {
  const shares = new Map<string, number>();
  for (const line of report.split('\n')) {
    const match = /^\s*([\d.]+)%\s+(\S+)\s+\[(.)\]\s+(.*\S)/.exec(line);
    if (!match) continue;
    const [, share, dso, ring, symbol] = match as unknown as string[];
    const where = wherever(dso!, ring!, symbol!);
    shares.set(where, (shares.get(where) ?? 0) + Number(share));
  }
  const sorted = [...shares].sort(([, a], [, b]) => b - a).slice(0, TOP);
  return sorted.map(([where, share]) => `    ${share.toFixed(1).padStart(5)}%  ${where}`).join('\n');
}

function wherever(dso: string, ring: string, symbol: string): string {
  if (ring === 'k') return `kernel  ${symbol}`;
  if (dso.includes('anon') || dso.startsWith('[') || dso.startsWith('//') || dso.includes('memfd')) {
    return 'wasm';
  }
  return `${dso.replace(/^.*\//, '')}  ${/^0x/.test(symbol) ? '(no symbol)' : symbol}`;
}
