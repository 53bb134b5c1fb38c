/**
 * An Envoy with the filter, between engines that the test makes itself, for what a `Scenario`
 * cannot express: many requests at once, engines that violate HTTP or restart, and an Envoy that is
 * drained or gets a new configuration.
 */

import { renameSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { Agent, request as httpRequest } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { OUTCOMES } from '../scenarios/run.ts';
import type { Header } from '../scenario.ts';
import {
  bootstrap,
  clusterOf,
  listener,
  STAT_PREFIX,
  type EnvoyOptions,
  type Files,
  type LogLine,
} from './config.ts';
import { asksBootstrap, prefillName } from '../scenario.ts';
import { launchEnvoy, type Envoy } from './launcher.ts';
import { waitFor } from './wait.ts';

export interface PlantOptions extends EnvoyOptions {
  prefillPort: number;
  decodePort: number;
  /** The port of prefill's bootstrap server. */
  bootstrapPort?: number;
  /** The port of the engine that audits ask; `clusterOf('audit', 'http1')` leads to it. */
  auditPort?: number;
  /** The plugin configuration of the first listener. */
  config?: Record<string, unknown>;
  /** The plugin configurations of more listeners, whose filters share the VM of the first. */
  more?: Record<string, unknown>[];
  args?: string[];
}

export interface Answer {
  /** 0 when no response came. */
  status: number;
  headers: Header[];
  body: Buffer;
  /** The response arrived up to its end. */
  complete: boolean;
}

export interface Sent {
  path?: string;
  body: string | Buffer;
  headers?: Record<string, string>;
  /** Index of the listener; the first is 0. */
  listener?: number;
  /** The client hangs up when this promise resolves. */
  leave?: Promise<unknown>;
}

export interface Plant {
  readonly envoy: Envoy;
  readonly port: number;
  /** The ports of all listeners. */
  readonly ports: readonly number[];
  send(request: Sent): Promise<Answer>;
  /** Number of requests sent so far. */
  readonly sent: number;
  stats(filter: string): Promise<Record<string, number>>;
  outcomes(): Promise<Record<string, number>>;
  log(): Promise<LogLine[]>;
  /** Gives the first listener another configuration; false when Envoy refuses it. */
  configure(config: Record<string, unknown>): Promise<boolean>;
  /** Waits until no stream is served by an earlier configuration any more. */
  replaced(): Promise<void>;
  /**
   * Waits until every request sent has its one outcome and the filter holds nothing; fails when
   * that does not happen.
   */
  settled(): Promise<void>;
  close(): Promise<void>;
}

/** How long a client waits while nothing arrives. */
const PATIENCE_MS = 60_000;

const TRAP = /Uncaught RuntimeError|wasm_fail|Function: \w+ failed/;

export async function createPlant(options: PlantOptions): Promise<Plant> {
  const more = options.more ?? [];
  const port = await freePort();
  const ports = [port, ...(await Promise.all(more.map(freePort)))];
  let files: Files = { lds: '', accessLog: '' };
  const publish = (first: Record<string, unknown>) => {
    const cluster = clusterOf('prefill', 'http1');
    const resources = [first, ...more].map((config, i) => {
      const own = (config['prefill'] ?? {}) as object;
      const asked = asksBootstrap(config, own) ? { bootstrap_cluster: clusterOf('bootstrap', 'http1') } : {};
      const prefill = { cluster, ...asked, ...own };
      const name = i === 0 ? 'plant' : `plant ${i}`;
      const spec = { name, config: { ...config, prefill }, decodeCluster: clusterOf('decode', 'http1') };
      const resource = listener(spec, options, options.wasmPath ?? FILTER_WASM, files);
      // The listener keeps its port when it is updated.
      return { ...resource, address: { socket_address: { address: '127.0.0.1', port_value: ports[i] } } };
    });
    writeFileSync(`${files.lds}.new`, JSON.stringify({ resources }));
    renameSync(`${files.lds}.new`, files.lds);
  };
  const leg = (of: number) => ({ http1: of, http2: of });
  const engines = new Map([
    [prefillName(0), leg(options.prefillPort)],
    ['decode', leg(options.decodePort)],
  ]);
  if (options.bootstrapPort !== undefined) engines.set('bootstrap', leg(options.bootstrapPort));
  if (options.auditPort !== undefined) engines.set('audit', leg(options.auditPort));
  const envoy = await launchEnvoy({
    config: (dir) => {
      files = { lds: join(dir, 'lds.json'), accessLog: join(dir, 'access.log') };
      publish(options.config ?? {});
      return bootstrap(options, engines, files);
    },
    concurrency: options.concurrency,
    args: ['--file-flush-interval-msec', '5', ...(options.args ?? [])],
  });
  const stats = async (filter: string) => {
    const query = new URLSearchParams({ format: 'json', filter });
    const { stats: list } = JSON.parse(await envoy.admin(`/stats?${query}`)) as {
      stats: { name?: string; value?: number }[];
    };
    return Object.fromEntries(list.flatMap(({ name, value }) => (name ? [[name, value ?? 0]] : [])));
  };
  const filterStats = async () => {
    const all = Object.entries(await stats('^wasmcustom\\.routed_experts\\.'));
    return Object.fromEntries(
      all.map(([name, value]) => [name.slice('wasmcustom.routed_experts.'.length), value]),
    );
  };
  const outcomes = async () => {
    const all = await filterStats();
    return Object.fromEntries(OUTCOMES.map((name) => [name, all[name] ?? 0]));
  };
  const agent = new Agent({ keepAlive: true, maxSockets: 1024 });
  let sent = 0;

  const settled = async () => {
    let seen: object = {};
    const quiet = async () => {
      const all = await filterStats();
      const requests = Object.entries(
        await stats(`^(http\\.${STAT_PREFIX}\\.downstream|cluster\\..*upstream)_rq_active$`),
      );
      const counted = OUTCOMES.reduce((sum, name) => sum + (all[name] ?? 0), 0);
      const running = requests.reduce((sum, [, value]) => sum + value, 0);
      seen = { sent, counted, running, held: all['held_bytes'], ...all };
      return running === 0 && counted === sent && (all['held_bytes'] ?? 0) === 0 ? true : undefined;
    };
    await waitFor('Every exchange has ended', quiet).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(seen)}\n${envoy.logs().slice(-3000)}`);
    });
    const traps = envoy
      .logs()
      .split('\n')
      .filter((line) => TRAP.test(line));
    if (traps.length > 0) throw new Error(traps.join('\n'));
  };

  await waitFor('The listener is there', async () => {
    if ((await stats('listener_manager.lds.update_rejected'))['listener_manager.lds.update_rejected'])
      throw new Error(envoy.logs());
    return (
      (await stats('listener_manager.total_listeners_active'))['listener_manager.total_listeners_active'] ===
        ports.length || undefined
    );
  }).catch(async (error) => {
    await envoy.close();
    throw error;
  });

  return {
    envoy,
    port,
    ports,
    get sent() {
      return sent;
    },
    send(request) {
      sent++;
      return send(agent, ports[request.listener ?? 0]!, request);
    },
    stats,
    outcomes,
    async log() {
      const text = await readFile(files.accessLog, 'utf8').catch(() => '');
      return text.split('\n').flatMap((line) => (line ? [JSON.parse(line) as LogLine] : []));
    },
    async configure(config) {
      const counts = async () => {
        const {
          'listener_manager.lds.update_success': success = 0,
          'listener_manager.lds.update_rejected': rejected = 0,
        } = await stats('^listener_manager\\.lds\\.update_');
        return { success, rejected };
      };
      const before = await counts();
      publish(config);
      return waitFor('Envoy looks at the configuration', async () => {
        const now = await counts();
        if (now.rejected > before.rejected) return false;
        return now.success > before.success ? true : undefined;
      });
    },
    async replaced() {
      await waitFor('Earlier configurations are gone', async () => {
        const draining = await stats('^listener_manager\\..*_draining$');
        return Object.values(draining).every((n) => n === 0) ? true : undefined;
      });
    },
    settled,
    async close() {
      agent.destroy();
      await envoy.close();
    },
  };
}

function send(
  agent: Agent,
  port: number,
  { path = '/v1/completions', body, headers, leave }: Sent,
): Promise<Answer> {
  const bytes = Buffer.from(body);
  return new Promise((resolve) => {
    const answer: Answer = { status: 0, headers: [], body: Buffer.alloc(0), complete: false };
    const pieces: Buffer[] = [];
    const end = () => resolve({ ...answer, body: Buffer.concat(pieces) });
    const request = httpRequest({
      ...{ agent, port, path, host: '127.0.0.1', method: 'POST' },
      headers: { 'content-type': 'application/json', 'content-length': bytes.length, ...headers },
    });
    request.on('error', end);
    // A request that was given up before it had a connection emits no error.
    request.on('close', () => void (answer.status === 0 && end()));
    request.on('response', (response) => {
      answer.status = response.statusCode ?? 0;
      for (let i = 0; i < response.rawHeaders.length; i += 2)
        answer.headers.push([response.rawHeaders[i]!.toLowerCase(), response.rawHeaders[i + 1]!]);
      response.on('data', (piece: Buffer) => pieces.push(piece));
      response.on('error', () => undefined);
      response.on('close', () => {
        answer.complete = response.complete;
        end();
      });
    });
    void leave?.then(() => request.destroy());
    request.setTimeout(PATIENCE_MS, () => request.destroy());
    request.end(bytes);
  });
}

/** Returns a port on which nothing listens. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/**
 * An engine that writes to its socket whatever the test wants: `talk` is called for each whole
 * request.
 */
export async function rawEngine(
  talk: (socket: Socket, request: string, ordinal: number) => void,
): Promise<{ port: number; close(): Promise<void> }> {
  const sockets = new Set<Socket>();
  let ordinal = 0;
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => undefined);
    let received = '';
    socket.on('data', (data) => {
      received += data.toString('latin1');
      for (;;) {
        const head = received.indexOf('\r\n\r\n');
        if (head < 0) return;
        const length = Number(/^content-length: (\d+)/im.exec(received.slice(0, head + 2))?.[1] ?? 0);
        if (received.length < head + 4 + length) return;
        const request = received.slice(0, head + 4 + length);
        received = received.slice(head + 4 + length);
        talk(socket, request, ++ordinal);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as { port: number }).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}

/** An HTTP/1 response as text. */
export const http = (body: string, length: number | null = Buffer.byteLength(body), more = ''): string =>
  `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n${length === null ? '' : `content-length: ${length}\r\n`}${more}\r\n${body}`;
