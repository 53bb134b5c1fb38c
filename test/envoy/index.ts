/** The `Host` that runs scenarios on real Envoy. */

import { existsSync, renameSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { serveEngine, type EngineServer } from '../engine/server.ts';
import {
  asksBootstrap,
  auditLines,
  deliver,
  ENGINES,
  noRequests,
  prefillName,
  withAddresses,
  withAuditCluster,
  type Engine,
  type Host,
  type Protocol,
  type Requests,
  type Result,
  type Scenario,
} from '../scenario.ts';
import { sendHttp1 } from './http1.ts';
import { sendHttp2 } from './http2.ts';
import {
  bootstrap,
  CLUSTER_DOWN,
  clusterOf,
  type EnvoyOptions,
  type Files,
  forwardProxyCluster,
  listener,
  type ListenerSpec,
  type LogLine,
  originalDstCluster,
  type Ports,
  PROTOCOLS,
  STAT_PREFIX,
} from './config.ts';
import { launchEnvoy } from './launcher.ts';
import { FIRST_FILTER_AT_START } from './version.ts';
import { waitFor } from './wait.ts';

export type { EnvoyOptions } from './config.ts';

export interface HostOptions extends EnvoyOptions {
  /** How long a client waits for its response, in milliseconds. Default 60,000. */
  clientTimeoutMs?: number;
}

export interface EnvoyHost extends Host {
  readonly name: 'envoy';
  readonly pid: number;
  readonly adminUrl: string;
  run(scenario: Scenario): Promise<EnvoyResult>;
  /** The counters and gauges of Envoy whose names match the regular expression. */
  stats(filter: string): Promise<Record<string, number>>;
  /**
   * The value of a gauge of the filter, by its name without the prefix `wasmcustom.`; undefined
   * when it was never defined.
   */
  gauge(name: string): Promise<number | undefined>;
  /** What Envoy has logged so far. */
  logs(): string;
  /** The lines of the log that report a trap in the VM. */
  traps(): string[];
  /** Whether the process is running and no VM has failed since it started. */
  vmAlive(): Promise<boolean>;
}

export interface EnvoyResult extends Result {
  /** The whole access-log line of the exchange. */
  line: LogLine;
}

/** Envoy refused a listener. The message is Envoy's reason, and what the filter logged. */
export class ConfigRejected extends Error {}

interface Run {
  scenario: Scenario;
  requests: Requests;
  /** By engine: how many bytes it had written before this run that Envoy had not read. */
  unread: Map<string, number>;
}

const METRICS = 'wasmcustom.';
const HELD = `${METRICS}routed_experts.held_bytes`;
const LOG_TAIL = 4_000;

export async function createEnvoyHost(options: HostOptions = {}): Promise<EnvoyHost> {
  const wasmPath = options.wasmPath ?? FILTER_WASM;
  const { clientTimeoutMs = 60_000 } = options;
  if (!existsSync(wasmPath)) throw new Error(`${wasmPath} is missing: "npm run build" makes it`);

  // The engines outlive a scenario, and answer for the one that is running.
  let running: Run | undefined;
  const serve = (name: string): Engine => {
    return (request) => {
      const reply = running && deliver(running.scenario, name, request, running.requests);
      // Without a reply the request belongs to an exchange that has ended.
      return reply ?? { status: 503, headers: [], chunks: [] };
    };
  };
  const servers = new Map<string, EngineServer>();
  const ports: Ports = new Map();
  /** Resolves when Envoy has read all that an engine has written. */
  const read = (name: string) => async () => {
    const run = running;
    await waitFor('Envoy reads what an engine has written', async () => {
      // After the end of the exchange, Envoy reads no further.
      if (!run || run !== running) return true;
      return (await unread(name, run.scenario.upstream ?? 'http1')) <= run.unread.get(name)!
        ? true
        : undefined;
    });
  };
  /**
   * Bytes that an engine has written and Envoy has not read. Bytes on a connection that was cut
   * count, too, although Envoy never reads them.
   */
  const unread = async (name: string, protocol: Protocol) => {
    const leg = name === 'decode' || name === 'bootstrap' ? name : 'prefill';
    const cluster = clusterOf(leg, protocol);
    const taken = (await stat(`cluster.${cluster}.upstream_cx_rx_bytes_total`)) ?? 0;
    return servers.get(`${name} ${protocol}`)!.bytesWritten - taken;
  };
  for (const name of ENGINES) {
    const served = { http1: 0, http2: 0 };
    for (const protocol of PROTOCOLS) {
      const engine = await serveEngine(serve(name), { http2: protocol === 'http2', read: read(name) });
      servers.set(`${name} ${protocol}`, engine);
      served[protocol] = engine.port;
    }
    ports.set(name, served);
  }
  const closeEngines = () => Promise.all([...servers.values()].map((server) => server.close()));

  let files: Files = { lds: '', accessLog: '' };
  const envoy = await launchEnvoy({
    config: (dir) => {
      files = { lds: join(dir, 'lds.json'), accessLog: join(dir, 'access.log') };
      const config = { prefill: { cluster: CLUSTER_DOWN } };
      const first = { name: 'first', config, decodeCluster: CLUSTER_DOWN };
      const resources = FIRST_FILTER_AT_START ? [listener(first, {}, FILTER_WASM, files)] : [];
      writeFileSync(files.lds, JSON.stringify({ resources }));
      return bootstrap(options, ports, files);
    },
    concurrency: options.concurrency,
    // Without this option Envoy writes its access logs every 10 s.
    args: ['--file-flush-interval-msec', '5'],
  }).catch(async (error) => {
    await closeEngines();
    throw error;
  });

  let death: string | undefined;
  void envoy.ended.then((how) => (death = how));
  const explain = (error: unknown) =>
    new Error(`${(error as Error).message}${death ? `; ${death}` : ''}\n${envoy.logs().slice(-LOG_TAIL)}`, {
      cause: error,
    });

  const stats = async (filter: string, type = 'All') => {
    const query = new URLSearchParams({ format: 'json', type, filter });
    const { stats } = JSON.parse(await envoy.admin(`/stats?${query}`)) as { stats: Stat[] };
    return Object.fromEntries(stats.flatMap((s) => (s.name === undefined ? [] : [[s.name, s.value ?? 0]])));
  };
  const stat = async (name: string) => (await stats(`^${name.replaceAll('.', '\\.')}$`))[name];

  // ---- listeners, one for each configuration of the filter

  const listeners = new Map<string, { spec: ListenerSpec; port: number }>();
  let named = 0;

  const publish = (specs: ListenerSpec[]) => {
    const resources = specs.map((spec) => listener(spec, options, wasmPath, files));
    // Moving the file into place is atomic, so Envoy never reads half of it.
    writeFileSync(`${files.lds}.new`, JSON.stringify({ resources }));
    renameSync(`${files.lds}.new`, files.lds);
  };

  const updates = async () => {
    const { success = 0, rejected = 0 } = Object.fromEntries(
      Object.entries(await stats('^listener_manager\\.lds\\.update_(success|rejected)$')).map(
        ([name, value]) => [name.slice(name.lastIndexOf('_') + 1), value],
      ),
    );
    return { success, rejected };
  };

  const publishAndWait = async (specs: ListenerSpec[]) => {
    const before = await updates();
    publish(specs);
    return waitFor('Envoy takes the listeners', async () => {
      const now = await updates();
      if (now.rejected > before.rejected) return false;
      return now.success > before.success ? true : undefined;
    });
  };

  const listenerPort = async (scenario: Scenario): Promise<number> => {
    const { upstream = 'http1' } = scenario;
    const config = withCluster(scenario, upstream);
    const decodeCluster = scenario.decode === 'down' ? CLUSTER_DOWN : clusterOf('decode', upstream);
    const key = JSON.stringify([config, decodeCluster]);
    const known = listeners.get(key);
    if (known) return known.port;

    const spec: ListenerSpec = { name: `listener_${++named}`, config, decodeCluster };
    const specs = [...listeners.values()].map((entry) => entry.spec);
    const logged = envoy.logs().length;
    if (!(await publishAndWait([...specs, spec]))) {
      const reason = [await rejection(spec.name), ...wasmLog(envoy.logs().slice(logged))].join('\n');
      await publishAndWait(specs);
      throw new ConfigRejected(reason);
    }
    const port = await waitFor(`${spec.name} listens`, async () => {
      const { listener_statuses = [] } = JSON.parse(await envoy.admin('/listeners?format=json')) as Listeners;
      return listener_statuses.find((status) => status.name === spec.name)?.local_address.socket_address
        .port_value;
    });
    listeners.set(key, { spec, port });
    return port;
  };

  const rejection = async (name: string) => {
    const { configs = [] } = JSON.parse(await envoy.admin('/config_dump?resource=dynamic_listeners')) as Dump;
    return configs.find((config) => config.name === name)?.error_state?.details ?? 'no reason given';
  };

  // ---- one exchange

  const received = `http.${STAT_PREFIX}.downstream_cx_rx_bytes_total`;

  const runScenario = async (scenario: Scenario): Promise<EnvoyResult> => {
    const port = await listenerPort(scenario);
    const before = await counters();
    const receivedBefore = (await stat(received)) ?? 0;
    const arrived = (socket: Socket) =>
      waitFor('Envoy reads a piece of the request', async () => {
        const now = (await stat(received)) ?? 0;
        return socket.destroyed || now - receivedBefore >= socket.bytesWritten ? true : undefined;
      }).then(() => undefined);

    const logged = await accessLogSize();
    const said = envoy.logs().length;
    const requests = noRequests();
    const unreadBefore = new Map<string, number>();
    for (const name of ['decode', prefillName(0), ...(scenario.bootstrap ? ['bootstrap'] : [])])
      unreadBefore.set(name, await unread(name, scenario.upstream ?? 'http1'));
    running = { scenario, requests, unread: unreadBefore };
    try {
      const send = scenario.downstream === 'http2' ? sendHttp2 : sendHttp1;
      const { client, leave, onBody } = scenario;
      const sent = { port, request: client, timeoutMs: clientTimeoutMs, leave, onBody, arrived };
      const { localPort, ...reply } = await send(sent);
      const line = await waitFor('The access log tells of the exchange', async () => {
        if (death) throw new Error(death);
        return (await accessLogFrom(logged)).find(({ client }) => client === `127.0.0.1:${localPort}`);
      });
      // An audit that is under way holds what it needs.
      if (scenario.audit)
        await waitFor('The audit ends', async () => ((await stat(HELD)) === 0 ? true : undefined));
      const counters = difference(before, await settledCounters());
      // What Envoy has logged is read from a pipe, and may come after its counters.
      const told = ['failed', 'rows_differing'].some((name) => counters[`routed_experts.audit.${name}`]);
      const auditLog = await waitFor('The log tells of the audit', async () => {
        const lines = auditLines(envoy.logs().slice(said));
        return told && lines.length === 0 ? undefined : lines;
      });
      return {
        ...reply,
        ...requests,
        auditLog,
        counters,
        logged: line.routed_experts,
        loggedDecode: line.routed_experts_decode,
        line,
      };
    } finally {
      running = undefined;
    }
  };

  const accessLog = () => readFile(files.accessLog).catch(() => Buffer.alloc(0));
  const accessLogSize = async () => (await accessLog()).length;
  const accessLogFrom = async (offset: number): Promise<LogLine[]> => {
    const text = (await accessLog()).toString('utf8', offset);
    const whole = text.slice(0, text.lastIndexOf('\n') + 1);
    return whole.split('\n').flatMap((line) => (line ? [JSON.parse(line) as LogLine] : []));
  };

  const counters = () => stats(`^${METRICS}`, 'Counters');

  /**
   * Envoy writes the log line before the last callbacks of the filter, which have run when no
   * stream is left.
   */
  const settledCounters = async () => {
    const active = `^http\\.${STAT_PREFIX}\\.downstream_(cx|rq)_active$`;
    await waitFor('The exchange ends', async () => {
      return Object.values(await stats(active)).every((value) => value === 0) ? true : undefined;
    });
    return counters();
  };

  // ---- the host

  let last: Promise<unknown> = Promise.resolve();
  const traps = () =>
    envoy
      .logs()
      .split('\n')
      .filter((line) => TRAP.test(line));

  return {
    name: 'envoy',
    pid: envoy.pid,
    adminUrl: envoy.adminUrl,
    run(scenario) {
      const { upstream = 'http1' } = scenario;
      const placed = withAddresses(scenario, (engine) => ports.get(engine)![upstream]);
      const result = last.then(() =>
        runScenario(placed).catch((error) => {
          throw error instanceof ConfigRejected ? error : explain(error);
        }),
      );
      last = result.catch(() => undefined);
      return result;
    },
    stats: (filter) => stats(filter),
    gauge: (name) => stat(METRICS + name),
    logs: () => envoy.logs(),
    traps,
    async vmAlive() {
      if (death || traps().length > 0) return false;
      return Object.values(await stats('^wasm\\..*vm_reload')).every((value) => value === 0);
    },
    async close() {
      await last;
      await envoy.close();
      await closeEngines();
    },
  };
}

/** What Envoy and the filter log about the VM. Envoy's own refusal gives no reason. */
const wasmLog = (log: string) => [...log.matchAll(/\[wasm\] \[[^\]]*\] (.*)/g)].map(([, message]) => message);

const TRAP = /Uncaught RuntimeError|wasm_fail|Function: \w+ failed|restricted_callback/;

interface Stat {
  name?: string;
  value?: number;
}

interface Listeners {
  listener_statuses?: { name: string; local_address: { socket_address: { port_value: number } } }[];
}

interface Dump {
  configs?: { name: string; error_state?: { details: string } }[];
}

/**
 * The plugin configuration of the scenario, with the clusters of this host unless the scenario
 * names one.
 */
function withCluster(
  { config = {}, prefill, bootstrap, audit }: Scenario,
  upstream: Protocol,
): Record<string, unknown> {
  const written = config.prefill ?? {};
  if (typeof written !== 'object' || Array.isArray(written)) return config;
  let cluster = clusterOf('prefill', upstream);
  const proxy = 'cluster_type' in written && written.cluster_type === 'dynamic_forward_proxy';
  if ('endpoint_header' in written) cluster = (proxy ? forwardProxyCluster : originalDstCluster)(upstream);
  else if (prefill === 'down') cluster = CLUSTER_DOWN;
  const asked = asksBootstrap(config, written)
    ? { bootstrap_cluster: bootstrap === 'down' ? CLUSTER_DOWN : clusterOf('bootstrap', upstream) }
    : {};
  const auditor = audit === 'down' ? CLUSTER_DOWN : clusterOf('audit', upstream);
  return withAuditCluster({ ...config, prefill: { cluster, ...asked, ...written } }, auditor);
}

function difference(before: Record<string, number>, after: Record<string, number>): Record<string, number> {
  const changed = Object.entries(after).filter(([name, value]) => value !== (before[name] ?? 0));
  return Object.fromEntries(
    changed.map(([name, value]) => [name.slice(METRICS.length), value - (before[name] ?? 0)]),
  );
}
