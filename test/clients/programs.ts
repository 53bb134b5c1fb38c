/** The programs of the clients: Python's in the environment of .clients/, and Node's. */

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { NEWEST_OPENAI, PYTHON } from '../../tools/clients.mjs';
import { ROOT } from '../../tools/paths.mjs';
import type { Compared, Deployment, Kind, Refusing } from './deployment.ts';

/** An array that a client has decoded: null where the client has none. */
export type Digest = { shape: number[]; dtype: string; sha256: string } | null;

/** What a client makes of a refusal, and how many requests it has sent. */
export interface Refusal {
  raised?: string;
  text?: string;
  returned?: Digest[];
  requests: number;
}

export interface Found {
  /** By the name of the case. `golden` is what NumPy alone has decoded of the oracle's answer. */
  decoded: Record<string, Record<Compared | 'golden', Digest[]>>;
  refused: Record<string, Record<Refusing, Refusal>>;
}

/**
 * Lets a client of Python ask; the name is that of its module. `newest`: with the newest `openai`.
 */
export function runPython(
  client: string,
  kind: Kind,
  { compare, refuse }: Deployment,
  { newest = false } = {},
): Promise<Found> {
  const folder = join(ROOT, 'test', 'clients', 'python');
  // Clients read the proxy of the machine from the environment.
  const env = { ...process.env, NO_PROXY: '127.0.0.1', no_proxy: '127.0.0.1' };
  if (newest) Object.assign(env, { PYTHONPATH: NEWEST_OPENAI });
  const child = spawn(PYTHON, [join(folder, 'run.py'), client], { env });
  child.stdin.end(JSON.stringify({ kind, compare, refuse }));
  let output = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      if (code !== 0) reject(new Error(`${client} ended with ${code}:\n${errors.slice(-3000)}`));
      else resolve(JSON.parse(output.trim().split('\n').at(-1)!) as Found);
    });
  });
}
