/**
 * Runs one Envoy process: starts it with a configuration, waits until it is ready, collects its
 * log, and ends it.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, get } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireEnvoy } from '../../tools/envoy.mjs';
import { ROOT } from '../../tools/paths.mjs';
import { waitFor } from './wait.ts';

export interface LaunchOptions {
  /** Makes the bootstrap, as YAML or as an object. `dir` is the folder for Envoy's files. */
  config: (dir: string) => string | object;
  concurrency?: number;
  args?: string[];
  /** Called with what Envoy prints: its log, and access logs that go to standard output. */
  onOutput?: (text: string) => void;
}

export interface Envoy {
  readonly pid: number;
  readonly adminUrl: string;
  /** The temporary folder of this process, removed by `close`. */
  readonly dir: string;
  /** Resolves when the process has ended, and says how it ended. */
  readonly ended: Promise<string>;
  /** What Envoy has logged so far. */
  logs(): string;
  /** Returns the body of an admin page; fails when the status is not 200. */
  admin(path: string): Promise<string>;
  close(): Promise<void>;
}

const STOP_MS = 5_000;
const LOG_TAIL = 4_000;

const running = new Set<ChildProcess>();
let guarded = false;

export async function launchEnvoy(options: LaunchOptions): Promise<Envoy> {
  const binary = await requireEnvoy();
  const dir = mkdtempSync(join(tmpdir(), 'envoy-'));
  const addressFile = join(dir, 'admin-address');
  const config = join(dir, 'bootstrap.yaml');
  const bootstrap = options.config(dir);
  // JSON is a subset of YAML.
  writeFileSync(config, typeof bootstrap === 'string' ? bootstrap : JSON.stringify(bootstrap, null, 2));

  // With hot restart, Envoy would need a base id for its shared memory, and test files that run in
  // parallel would have to use different ones.
  const args = ['--disable-hot-restart', '--config-path', config, '--admin-address-path', addressFile];
  args.push('--concurrency', String(options.concurrency ?? 1));
  const { args: own = [] } = options;
  // Envoy refuses an option that is given twice.
  if (!own.includes('--component-log-level')) args.push('--component-log-level', 'wasm:info');
  args.push('--log-level', 'warning', ...own);
  const child = spawn(binary, args, { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] });
  running.add(child);
  guardExit();

  let log = '';
  child.stderr.setEncoding('utf8').on('data', (data: string) => (log += data));
  for (const stream of [child.stdout.setEncoding('utf8'), child.stderr]) {
    stream.on('data', (data: string) => options.onOutput?.(data));
  }
  let how: string | undefined;
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(`Envoy did not start: ${error.message}`));
    child.on('close', (code, signal) => resolve(`Envoy ended with ${signal ?? `code ${code}`}`));
  }).then((description) => {
    running.delete(child);
    return (how = description);
  });

  const close = async () => {
    if (how === undefined) {
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
      await ended;
      clearTimeout(timer);
    }
    agent.destroy();
    rmSync(dir, { recursive: true, force: true });
  };

  const agent = new Agent({ keepAlive: true });
  let adminUrl = '';
  const admin = async (path: string) => {
    const { status, body } = await fetchText(agent, adminUrl + path);
    if (status !== 200) throw new Error(`Envoy's admin answered ${status} to ${path}: ${body}`);
    return body;
  };

  try {
    await waitFor('Envoy is ready', async () => {
      if (how !== undefined) throw new Error(how);
      adminUrl ||= readAddress(addressFile);
      if (!adminUrl) return undefined;
      // A refused connection may mean that Envoy is still starting, or that it has ended: `how`
      // says whether the process has ended.
      const ready = await fetchText(agent, `${adminUrl}/ready`).catch(() => undefined);
      return ready?.status === 200 ? true : undefined;
    });
  } catch (error) {
    const reason = `${(error as Error).message}\n${log.slice(-LOG_TAIL)}`;
    await close();
    throw new Error(reason);
  }
  return { pid: child.pid ?? 0, adminUrl, dir, ended, logs: () => log, admin, close };
}

/** The admin URL, or an empty string as long as Envoy has not written its address. */
function readAddress(path: string): string {
  try {
    const address = readFileSync(path, 'utf8');
    return address ? `http://${address}` : '';
  } catch {
    return '';
  }
}

async function fetchText(agent: Agent, url: string): Promise<{ status: number; body: string }> {
  const request = get(url, { agent });
  const [response] = await once(request, 'response');
  let body = '';
  for await (const data of response.setEncoding('utf8')) body += data;
  return { status: response.statusCode, body };
}

/** No Envoy may outlive the process that started it, whichever way that process ends. */
function guardExit() {
  if (guarded) return;
  guarded = true;
  process.on('exit', killAll);
  // The runner of a test worker was killed.
  process.on('disconnect', killAll);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, endBySignal);
}

/**
 * Lets the signal have its usual effect. If the process handles the signal elsewhere, too, that
 * handler closes what it started, or exits.
 */
function endBySignal(signal: NodeJS.Signals) {
  if (process.listenerCount(signal) > 1) return;
  killAll();
  process.off(signal, endBySignal);
  process.kill(process.pid, signal);
}

function killAll() {
  for (const child of running) child.kill('SIGKILL');
}
