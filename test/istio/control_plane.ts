/**
 * Runs Istio's discovery server as a process (discovery/main.go). Its whole configuration is what
 * was applied last.
 */

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { tool } from '../../tools/istio.mjs';

export interface ControlPlane {
  readonly port: number;
  /**
   * Replaces the configuration with these manifests (YAML documents); fails when Istio refuses
   * them.
   */
  apply(manifests: string): Promise<void>;
  close(): Promise<void>;
}

/** Turns off filters of Istio's own proxy, which a plain Envoy does not have. */
const PLAIN_ENVOY = {
  PILOT_ENABLE_METADATA_EXCHANGE: 'false',
  PILOT_ENABLE_TELEMETRY_LABEL: 'false',
  PILOT_ENABLE_ALPN_FILTER: 'false',
};

export async function startControlPlane(): Promise<ControlPlane> {
  const dir = mkdtempSync(join(tmpdir(), 'istio-'));
  const child = spawn(tool('discovery'), { stdio: 'pipe', env: { ...process.env, ...PLAIN_ENVOY } });
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (data: string) => (log += data));
  const ended = new Promise<never>((_, reject) => {
    child.on('error', reject);
    child.on('close', (code) => reject(new Error(`the discovery server ended with code ${code}\n${log}`)));
  });
  ended.catch(() => undefined);
  // Istio's log goes to the same stream as the answers.
  const answers: string[] = [];
  const waiting: ((line: string) => void)[] = [];
  createInterface(child.stdout).on('line', (line) => {
    if (!/^(listening|applied|refused) /.test(line)) return;
    const next = waiting.shift();
    if (next) next(line);
    else answers.push(line);
  });
  const answer = () =>
    Promise.race([
      ended,
      new Promise<string>((resolve) => {
        const line = answers.shift();
        if (line === undefined) waiting.push(resolve);
        else resolve(line);
      }),
    ]);

  const port = Number((await answer()).split(':').at(-1));
  let applied = 0;
  return {
    port,
    async apply(manifests) {
      const file = join(dir, `${++applied}.yaml`);
      writeFileSync(file, manifests);
      child.stdin.write(`${file}\n`);
      const line = await answer();
      if (!line.startsWith('applied ')) throw new Error(line);
    },
    async close() {
      const closed = new Promise((resolve) => child.once('close', resolve));
      child.stdin.end();
      await closed;
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
