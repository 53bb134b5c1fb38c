// Starts another router by the user's command.

import { spawn } from 'node:child_process';
import * as net from 'node:net';
import { waitFor } from '../test/envoy/wait.ts';
import { usageOfGroup, type Usage } from './machine.ts';
import type { Other } from './options.ts';

export interface RunningRouter {
  readonly port: number;
  usage(): Usage;
  close(): Promise<void>;
}

const START_MS = 60_000;
const STOP_MS = 5_000;
const LOG_TAIL = 2_000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const exit = () => process.exit(1);

export async function startRouter(
  { name, command }: Other,
  prefillPort: number,
  decodePort: number,
): Promise<RunningRouter> {
  const port = await freePort();
  const line = command
    .replaceAll('{prefill}', `127.0.0.1:${prefillPort}`)
    .replaceAll('{decode}', `127.0.0.1:${decodePort}`)
    .replaceAll('{port}', String(port));
  // The shell gets a process group of its own, so that its children are measured and ended with it.
  const child = spawn('/bin/sh', ['-c', line], { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let log = '';
  const keep = (text: string) => (log = (log + text).slice(-LOG_TAIL));
  child.stdout.setEncoding('utf8').on('data', keep);
  child.stderr.setEncoding('utf8').on('data', keep);
  let running = true;
  const ended = new Promise<void>((resolve) =>
    child.on('close', () => {
      running = false;
      resolve();
    }),
  );
  const signal = (which: NodeJS.Signals) => {
    if (!running || child.pid === undefined) return;
    try {
      process.kill(-child.pid, which);
    } catch {
      // The process group has just ended.
    }
  };
  const killed = () => signal('SIGKILL');
  process.on('exit', killed);
  // Ctrl-C does not reach the router's process group. Exiting on the signal ends it by the exit
  // handler.
  for (const name of SIGNALS) process.on(name, exit);
  const close = async () => {
    signal('SIGTERM');
    const timer = setTimeout(killed, STOP_MS);
    await ended;
    clearTimeout(timer);
    process.off('exit', killed);
    for (const name of SIGNALS) process.off(name, exit);
  };
  try {
    await waitFor(
      `${name} listens`,
      async () => {
        if (!running) throw new Error(`${name} ended`);
        return (await accepts(port)) ? true : undefined;
      },
      START_MS,
    );
  } catch (error) {
    await close();
    throw new Error(`${(error as Error).message}\n${log}`);
  }
  return { port, usage: () => usageOfGroup(child.pid!), close };
}

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ host: '127.0.0.1', port });
    socket.on('connect', () => (socket.destroy(), resolve(true)));
    socket.on('error', () => resolve(false));
  });
}
