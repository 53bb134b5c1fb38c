/**
 * The emulator: Envoy's Wasm host rewritten in TypeScript. It runs scenarios in one process,
 * without sockets and without sleeping. Real Envoy is the judge: where the two differ, the emulator
 * is wrong.
 */

import { readFile } from 'node:fs/promises';
import {
  asksBootstrap,
  auditLines,
  withAddresses,
  withAuditCluster,
  type Host,
  type Protocol,
  type Result,
  type Scenario,
} from '../scenario.ts';
import { LoadError } from './abi.ts';
import {
  ASYNC_RESPONSE_LIMIT,
  Callouts,
  type CalloutReply,
  type ClusterSpec,
  type PendingCallout,
} from './callouts.ts';
import type { RootContext } from './context.ts';
import { Exchange, portOf } from './exchange.ts';
import { MetricStore } from './metrics.ts';
import { SharedData, SharedQueues } from './shared.ts';
import { HttpStream, type AccessLogEntry } from './stream.ts';
import { type Account, loadModule, Vm, type LoadedModule, type LogEntry, type Process } from './vm.ts';

export { EnvoyCrash, LoadError } from './abi.ts';
export { PAIRS_MAX_BYTES, PAIRS_MAX_COUNT } from './headers.ts';
export { calloutRequest } from './callouts.ts';
export type { CalloutReply, ClusterSpec, PendingCallout } from './callouts.ts';
export { HttpStream, type AccessLogEntry, type RequestHead } from './stream.ts';
export type { LogEntry } from './vm.ts';

export interface EmulatorOptions {
  /** The filter: the path of a file, or its bytes. */
  wasmPath?: string;
  wasm?: Uint8Array;
  /** Number of workers. Streams go to their VMs in turn. Default 1. */
  workers?: number;
  /**
   * per_connection_buffer_limit_bytes of the listener. Default 1 MiB. For HTTP/2 clients the window
   * of the stream takes its place.
   */
  bufferLimit?: number;
  /** request_body_buffer_limit of the route. It raises the limit of both directions. */
  requestBodyBufferLimit?: number;
  /** Runtime key http.async_response_buffer_limit. Default 32 MiB. */
  asyncResponseLimit?: number;
  /** PluginConfig.allow_on_headers_stop_iteration. Default true; Envoy's default is false. */
  allowOnHeadersStopIteration?: boolean;
  failurePolicy?: 'FAIL_CLOSED' | 'FAIL_RELOAD';
  /** PluginConfig.fail_open (legacy): streams pass when the VM has failed. */
  failOpen?: boolean;
  /**
   * The end of a body comes with its last bytes instead of in an empty callback of its own. Default
   * false.
   */
  mergeEndOfStream?: boolean;
  /** enable_trailers of the HTTP/1 codecs. Default true. */
  http1Trailers?: boolean;
  /**
   * An answer to the loss of an engine names the failure of the transport, as Envoy's do until
   * 1.37. Default false.
   */
  tellsTransportFailures?: boolean;
  /** Clusters that calls may name, beside `prefill` and `decode`. */
  clusters?: Record<string, ClusterSpec>;
  vmId?: string;
  vmConfiguration?: string;
  env?: Record<string, string>;
}

export interface StreamSettings {
  downstream?: Protocol;
  upstream?: Protocol;
}

export interface EmulatorExtras {
  readonly name: 'emulator';
  /**
   * Opens a stream of the plugin with this configuration, for a test that drives it step by step.
   */
  openStream(config?: Record<string, unknown>, settings?: StreamSettings): HttpStream;
  /**
   * Runs on_tick of every plugin that asked for it, in every worker. Counters that it raises are
   * put to the account of a stream.
   */
  runTimers(account?: Account | null): void;
  /** Runs on_tick of the plugin with this configuration, in every worker. */
  tick(config?: Record<string, unknown>): void;
  /** Moves the virtual clock forward. */
  advance(ms: number): void;
  readonly pendingCallouts: readonly PendingCallout[];
  /** Answers a call, in one turn of the event loop. */
  completeCallout(call: PendingCallout | number, reply: CalloutReply, protocol?: Protocol): void;
  readonly vms: readonly Vm[];
  /** Why the VM failed; with several workers, why the first failed VM did. */
  readonly failed: string | null;
  readonly memoryPages: number;
  /** Number of contexts of streams that are still alive in the VMs. */
  readonly openContexts: number;
  readonly logs: LogEntry[];
  readonly accessLog: AccessLogEntry[];
  counter(name: string): number;
  gauge(name: string): number;
  /** Bytes in Envoy's shared data. */
  readonly sharedBytes: number;
}

export type Emulator = Host & EmulatorExtras;

const LISTENER_BUFFER_LIMIT = 1024 * 1024;
/** initial_stream_window_size of Envoy 1.36 and later. */
const HTTP2_STREAM_WINDOW = 16 * 1024 * 1024;
/**
 * A VM is loaded again when this time has passed since the last load (base_interval of
 * reload_config).
 */
const RELOAD_WINDOW_NS = 1_000_000_000n;

/** The name that the configuration of `test/envoy` gives the plugin. */
const PLUGIN = 'routed_experts';

const originalDst: ClusterSpec = { originalDst: true };
const forwardProxy: ClusterSpec = { forwardProxy: true };
/**
 * Clusters under the names that the Envoy of `test/envoy` gives them, and under names without a
 * protocol.
 */
const CLUSTERS: Record<string, ClusterSpec> = {
  prefill: {},
  prefill_http1: {},
  prefill_http2: {},
  decode: {},
  decode_http1: {},
  decode_http2: {},
  bootstrap: {},
  audit: {},
  down: {},
  original_dst: originalDst,
  original_dst_http1: originalDst,
  original_dst_http2: originalDst,
  dynamic_forward_proxy_http1: forwardProxy,
  dynamic_forward_proxy_http2: forwardProxy,
};

export async function createEmulator(options: EmulatorOptions): Promise<Emulator> {
  const wasm = options.wasm ?? (options.wasmPath === undefined ? null : await readFile(options.wasmPath));
  if (!wasm) throw new LoadError('neither wasmPath nor wasm is given');
  return new EnvoyEmulator(options, loadModule(wasm));
}

class Worker {
  vm: Vm;
  loadedAt: bigint;
  readonly #process: Process;
  readonly #loaded: LoadedModule;
  readonly #reload: boolean;

  constructor(process: Process, loaded: LoadedModule, reload: boolean) {
    this.#process = process;
    this.#loaded = loaded;
    this.#reload = reload;
    this.vm = new Vm(process, loaded);
    this.loadedAt = process.now;
  }

  /**
   * Follows FAIL_RELOAD in Envoy's wasm.cc: the next stream loads the VM again, unless the last
   * load is too recent.
   */
  root(configuration: string): RootContext {
    const { now } = this.#process;
    if (this.vm.failed !== null && this.#reload && now - this.loadedAt >= RELOAD_WINDOW_NS) {
      this.vm = new Vm(this.#process, this.#loaded);
      this.loadedAt = now;
    }
    if (this.vm.failed !== null) {
      return this.vm.roots.get(configuration) ?? this.vm.vmContext;
    }
    return this.vm.plugin(configuration);
  }
}

class EnvoyEmulator implements Host, EmulatorExtras {
  readonly name = 'emulator';
  readonly logs: LogEntry[] = [];
  readonly accessLog: AccessLogEntry[] = [];
  readonly #options: EmulatorOptions;
  readonly #process: Process;
  readonly #workers: Worker[];
  #streams = 0;

  constructor(options: EmulatorOptions, loaded: LoadedModule) {
    this.#options = options;
    this.#process = {
      metrics: new MetricStore(),
      sharedData: new SharedData(),
      queues: new SharedQueues(),
      callouts: new Callouts(
        { ...CLUSTERS, ...options.clusters },
        options.asyncResponseLimit ?? ASYNC_RESPONSE_LIMIT,
      ),
      logs: this.logs,
      vmId: options.vmId ?? PLUGIN,
      pluginName: PLUGIN,
      vmConfiguration: Buffer.from(options.vmConfiguration ?? ''),
      env: options.env ?? {},
      allowOnHeadersStopIteration: options.allowOnHeadersStopIteration ?? true,
      failOpen: options.failOpen ?? false,
      account: null,
      now: BigInt(Date.now()) * 1_000_000n,
    };
    const reload = options.failurePolicy === 'FAIL_RELOAD';
    this.#workers = Array.from(
      { length: options.workers ?? 1 },
      () => new Worker(this.#process, loaded, reload),
    );
  }

  openStream(config: Record<string, unknown> = {}, settings: StreamSettings = {}): HttpStream {
    const id = this.#streams++;
    const http2 = settings.downstream === 'http2';
    const limit = http2 ? HTTP2_STREAM_WINDOW : (this.#options.bufferLimit ?? LISTENER_BUFFER_LIMIT);
    return new HttpStream({
      id,
      root: this.#workers[id % this.#workers.length].root(configurationOf(config, settings.upstream)),
      bufferLimit: Math.max(limit, this.#options.requestBodyBufferLimit ?? 0),
      downstream: settings.downstream ?? 'http1',
      upstream: settings.upstream ?? 'http1',
      http1Trailers: this.#options.http1Trailers ?? true,
      tellsTransportFailures: this.#options.tellsTransportFailures ?? false,
      onLog: (entry) => this.accessLog.push(entry),
    });
  }

  tick(config: Record<string, unknown> = {}): void {
    for (const worker of this.#workers) {
      worker.root(configurationOf(config)).onTick();
      worker.vm.reap();
    }
  }

  runTimers(account: Account | null = null): void {
    this.#process.account = account;
    for (const vm of this.vms) {
      for (const root of vm.roots.values()) if (vm.tickPeriods.has(root.id)) root.onTick();
      vm.reap();
    }
    this.#process.account = null;
  }

  advance(ms: number): void {
    this.#process.now += BigInt(ms) * 1_000_000n;
  }

  get pendingCallouts(): readonly PendingCallout[] {
    return [...this.#process.callouts.pending];
  }

  completeCallout(which: PendingCallout | number, reply: CalloutReply, protocol?: Protocol): void {
    const call =
      typeof which === 'number' ? this.pendingCallouts.find(({ token }) => token === which) : which;
    if (!call) throw new Error(`no callout ${String(which)} is pending`);
    this.#process.account = call.account;
    try {
      this.#process.callouts.complete(call, reply, protocol);
    } finally {
      this.#process.account = null;
      call.root.vm.reap();
    }
  }

  get vms(): readonly Vm[] {
    return this.#workers.map(({ vm }) => vm);
  }

  get failed(): string | null {
    return this.vms.find(({ failed }) => failed !== null)?.failed ?? null;
  }

  get memoryPages(): number {
    return this.vms.reduce((sum, { memory }) => sum + memory.pages, 0);
  }

  get openContexts(): number {
    return this.vms.reduce((sum, { contexts, roots }) => sum + contexts.size - roots.size, 0);
  }

  counter(name: string): number {
    return Number(this.#process.metrics.counters.get(name) ?? 0n);
  }

  gauge(name: string): number {
    return Number(this.#process.metrics.gauges.get(name) ?? 0n);
  }

  get sharedBytes(): number {
    return this.#process.sharedData.bytes;
  }

  async run(scenario: Scenario): Promise<Result> {
    const placed = withAddresses(scenario, portOf);
    const stream = this.openStream(placed.config, placed);
    const exchange = new Exchange(this, stream, placed, this.#options.mergeEndOfStream ?? false);
    const logged = this.logs.length;
    const result = await exchange.run();
    const said = this.logs.slice(logged).map(({ message }) => message);
    return { ...result, auditLog: auditLines(said.join('\n')) };
  }

  async close(): Promise<void> {}
}

/** Adds `prefill.cluster` when it is absent, as `Scenario.config` promises. */
function configurationOf(config: Record<string, unknown>, upstream: Protocol = 'http1'): string {
  const prefill = config.prefill ?? {};
  if (typeof prefill !== 'object' || Array.isArray(prefill)) return JSON.stringify(config);
  const proxy = 'cluster_type' in prefill && prefill.cluster_type === 'dynamic_forward_proxy';
  const byRequest = `${proxy ? 'dynamic_forward_proxy' : 'original_dst'}_${upstream}`;
  const cluster = 'endpoint_header' in prefill ? byRequest : 'prefill';
  const asked = asksBootstrap(config, prefill) ? { bootstrap_cluster: 'bootstrap' } : {};
  return JSON.stringify(withAuditCluster({ ...config, prefill: { cluster, ...asked, ...prefill } }, 'audit'));
}
