// Where an Envoy spends its time: samples of `perf`, added up by place in the code. Wasm has no
// symbols there, so it is one line.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { lastError, run } from '../tools/run.mjs';

const TOP = 20;
const SEPARATOR = ';';

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
      ...['report', '-i', data, '--stdio', '--no-children', '-g', 'none', '-F', 'overhead,dso,symbol'],
      ...['--field-separator', SEPARATOR],
    ]);
    return summary(report.output);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/**
 * Each line of the report is `12.34%`, the file, and `[.] symbol`. Compiled Wasm is memory that
 * belongs to no file.
 */
function summary(report: string): string {
  const places = new Map<string, number>();
  const kinds = new Map<string, number>();
  for (const line of report.split('\n')) {
    const [share, dso, symbol] = line.split(SEPARATOR).map((field) => field.trim());
    if (!share?.endsWith('%') || dso === undefined || symbol === undefined) continue;
    const kind = kindOf(dso, symbol);
    const name = symbol.replace(/^\[.\] /, '').replace(/@@.*|\s.*/, '');
    const place = kind === 'wasm' ? kind : `${kind}  ${/^0x/.test(name) ? '(no symbol)' : name}`;
    add(places, place, parseFloat(share));
    add(kinds, kind, parseFloat(share));
  }
  return [...lines(kinds), '', ...lines(places).slice(0, TOP)].join('\n');
}

function add(sums: Map<string, number>, key: string, value: number): void {
  sums.set(key, (sums.get(key) ?? 0) + value);
}

const lines = (shares: Map<string, number>) =>
  [...shares]
    .sort(([, a], [, b]) => b - a)
    .map(([name, share]) => `    ${share.toFixed(1).padStart(5)}%  ${name}`.trimEnd());

function kindOf(dso: string, symbol: string): string {
  if (symbol.startsWith('[k]')) return 'kernel';
  return /^(\[JIT\]|\/\/anon|anon|\[anon|\[unknown\]|memfd)/.test(dso) ? 'wasm' : dso.replace(/^.*\//, '');
}
