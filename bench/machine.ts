// What the Linux kernel reports of processes and of the machine.

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';

/** What a process, or a group of processes, has used so far. */
export interface Usage {
  /** User and system time of all threads, in milliseconds. */
  cpuMs: number;
  /** Peak of the resident memory; for a group, the sum of the peaks. */
  peakBytes: number;
}

const MS_PER_TICK = 1000 / Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));

export const usageOf = (pid: number): Usage => ({
  cpuMs: cpuMs(pid),
  peakBytes: statusBytes(pid, 'VmHWM'),
});

export const residentBytes = (pid: number) => statusBytes(pid, 'VmRSS');

/**
 * Adds up all processes of a process group, such as a router started by a shell with its children.
 */
export function usageOfGroup(group: number): Usage {
  const sum: Usage = { cpuMs: 0, peakBytes: 0 };
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (Number(stat(Number(name))[2]) !== group) continue;
      const { cpuMs, peakBytes } = usageOf(Number(name));
      sum.cpuMs += cpuMs;
      sum.peakBytes += peakBytes;
    } catch {
      // The process has ended meanwhile.
    }
  }
  return sum;
}

/** utime and stime of /proc/<pid>/stat. */
function cpuMs(pid: number): number {
  const fields = stat(pid);
  return (Number(fields[11]) + Number(fields[12])) * MS_PER_TICK;
}

/**
 * The fields of /proc/<pid>/stat from the third one on. The name before them may contain spaces.
 */
function stat(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return text.slice(text.lastIndexOf(')') + 2).split(' ');
}

function statusBytes(pid: number, key: 'VmHWM' | 'VmRSS'): number {
  const line = new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(line?.[1] ?? 0) * 1024;
}

export function describeMachine(): string {
  const all = cpus();
  const model = all[0]?.model.trim() ?? 'unknown processor';
  const memory = (totalmem() / 2 ** 30).toFixed(0);
  return `${all.length} x ${model}, ${memory} GiB, Linux ${release()}, Node ${process.versions.node}`;
}

export const load = () =>
  loadavg()
    .map((value) => value.toFixed(1))
    .join(' ');
