/**
 * The emulator: a transcription of Envoy's wasm host that runs scenarios in one process, without sockets or sleeps.
 * Real Envoy is the judge: where the two differ, the emulator is wrong.
 */

import { readFile } from 'node:fs/promises';
import type {
  Engine,
  EngineReply,
  EngineRequest,
  Header,
  Host,
  Protocol,
  Result,
  Scenario,
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
import { MetricStore } from './metrics.ts';
import { SharedData, SharedQueues } from './shared.ts';
import { HttpStream, type AccessLogEntry } from './stream.ts';
import { loadModule, Vm, type LoadedModule, type LogEntry, type Process } from './vm.ts';

export { EnvoyCrash, LoadError } from './abi.ts';
export type { CalloutReply, ClusterSpec, PendingCallout } from './callouts.ts';
export { HttpStream, type AccessLogEntry, type RequestHead } from './stream.ts';
export type { LogEntry } from './vm.ts';

export interface EmulatorOptions {
  /** The filter: a file, or its bytes. */
  wasmPath?: string;
  wasm?: Uint8Array;
  /** Streams go to the workers' VMs in turn. Default 1. */
  workers?: number;
  /** per_connection_buffer_limit_bytes of the listener. Default 1 MiB. */
  bufferLimit?: number;
  /** Runtime key http.async_response_buffer_limit. Default 32 MiB. */
  asyncResponseLimit?: number;
  /** PluginConfig.allow_on_headers_stop_iteration. Default true, unlike Envoy's. */
  allowOnHeadersStopIteration?: boolean;
  failurePolicy?: 'FAIL_CLOSED' | 'FAIL_RELOAD';
  /** PluginConfig.fail_open (legacy): a failed VM lets streams through. */
  failOpen?: boolean;
  /** The end of a body comes with its last bytes instead of as an empty callback of its own. Default false. */
  mergeEndOfStream?: boolean;
  /** enable_trailers of the HTTP/1 codecs. Default true. */
  http1Trailers?: boolean;
  /** Clusters beside `prefill` and `decode` that callouts may name. */
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
  /** A new stream of the plugin with this configuration, to be driven step by step. */
  openStream(config?: Record<string, unknown>, settings?: StreamSettings): HttpStream;
  /** Runs on_tick of the plugin with this configuration in every worker. */
  tick(config?: Record<string, unknown>): void;
  /** Moves the virtual clock. */
  advance(ms: number): void;
  readonly pendingCallouts: readonly PendingCallout[];
  /** Answers a callout; one turn of the event loop. */
  completeCallout(call: PendingCallout | number, reply: CalloutReply): void;
  readonly vms: readonly Vm[];
  /** Why the (first failed) VM failed. */
  readonly failed: string | null;
  readonly memoryPages: number;
  /** Contexts of streams that still live in the VMs. */
  readonly openContexts: number;
  readonly logs: LogEntry[];
  readonly accessLog: AccessLogEntry[];
  counter(name: string): number;
  gauge(name: string): number;
  /** Bytes in Envoy's shared data. */
  readonly sharedBytes: number;
}

export type Emulator = Host & EmulatorExtras;

/** Loading counts from the last load (common/wasm reload_config backoff, base_interval). */
const RELOAD_WINDOW_NS = 1_000_000_000n;
const DEFAULT_CLUSTER = 'prefill';

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

  /** wasm.cc of Envoy, FAIL_RELOAD: lazily, by the next stream, unless the last load is too fresh. */
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
        { [DEFAULT_CLUSTER]: {}, decode: {}, ...options.clusters },
        options.asyncResponseLimit ?? ASYNC_RESPONSE_LIMIT,
      ),
      logs: this.logs,
      vmId: options.vmId ?? '',
      vmConfiguration: Buffer.from(options.vmConfiguration ?? ''),
      env: options.env ?? {},
      allowOnHeadersStopIteration: options.allowOnHeadersStopIteration ?? true,
      failOpen: options.failOpen ?? false,
      exchange: null,
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
    return new HttpStream({
      id,
      root: this.#workers[id % this.#workers.length].root(configurationOf(config)),
      bufferLimit: this.#options.bufferLimit ?? 1024 * 1024,
      downstream: settings.downstream ?? 'http1',
      upstream: settings.upstream ?? 'http1',
      http1Trailers: this.#options.http1Trailers ?? true,
      onLog: (entry) => this.accessLog.push(entry),
    });
  }

  tick(config: Record<string, unknown> = {}): void {
    for (const worker of this.#workers) {
      worker.root(configurationOf(config)).onTick();
      worker.vm.reap();
    }
  }

  advance(ms: number): void {
    this.#process.now += BigInt(ms) * 1_000_000n;
  }

  get pendingCallouts(): readonly PendingCallout[] {
    return [...this.#process.callouts.pending];
  }

  completeCallout(which: PendingCallout | number, reply: CalloutReply): void {
    const call =
      typeof which === 'number' ? this.pendingCallouts.find(({ token }) => token === which) : which;
    if (!call) throw new Error(`no callout ${String(which)} is pending`);
    this.#process.exchange = call.exchange;
    try {
      this.#process.callouts.complete(call, reply);
    } finally {
      this.#process.exchange = null;
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
    const stream = this.openStream(scenario.config, scenario);
    const exchange = new Exchange(this, stream, scenario, this.#options.mergeEndOfStream ?? false);
    return exchange.run();
  }

  async close(): Promise<void> {}
}

/** `prefill.cluster` is filled in when it is absent (contract of `Scenario.config`). */
function configurationOf(config: Record<string, unknown>): string {
  const prefill = config.prefill ?? {};
  if (typeof prefill !== 'object' || Array.isArray(prefill)) return JSON.stringify(config);
  return JSON.stringify({ ...config, prefill: { cluster: DEFAULT_CLUSTER, ...prefill } });
}

type Step = () => void;

/** One scenario on one stream: feeds what the client and the engines send, in the order in which it can arrive. */
class Exchange {
  readonly #emulator: EmulatorExtras;
  readonly #stream: HttpStream;
  readonly #scenario: Scenario;
  readonly #merge: boolean;
  readonly #result: Pick<Result, 'prefillRequests' | 'decodeRequests'> = {
    prefillRequests: [],
    decodeRequests: [],
  };
  /** Callouts that will never be answered. */
  readonly #hanging = new Set<PendingCallout>();

  constructor(emulator: EmulatorExtras, stream: HttpStream, scenario: Scenario, merge: boolean) {
    this.#emulator = emulator;
    this.#stream = stream;
    this.#scenario = scenario;
    this.#merge = merge;
  }

  async run(): Promise<Result> {
    const stream = this.#stream;
    const request = this.#requestSteps();
    let response: Step[] | null = null;
    while (!stream.ended) {
      const callout = this.#nextCallout();
      if (request.length > 0 && !stream.requestPaused) request.shift()?.();
      else if (callout) await this.#answer(callout);
      else if (response === null && stream.upstream?.complete) response = await this.#decode();
      else if (response !== null && response.length > 0 && !stream.responsePaused) response.shift()?.();
      else break; // nothing can happen any more: the client waits in vain, and leaves
    }
    stream.clientDisconnect();
    // Answers that come when the client has left still reach the filter.
    for (let callout = this.#nextCallout(); callout; callout = this.#nextCallout())
      await this.#answer(callout);
    return this.#outcome();
  }

  #requestSteps(): Step[] {
    const { client } = this.#scenario;
    const stream = this.#stream;
    const http1 = (this.#scenario.downstream ?? 'http1') === 'http1';
    const body = bodySteps(client.chunks, client.trailers !== undefined, this.#merge, (bytes, end) =>
      stream.requestBody(bytes, end),
    );
    const empty = client.chunks.every(({ length }) => length === 0) && !client.trailers;
    const length = client.headers.find(([name]) => /^content-length$/i.test(name))?.[1];
    // http1/codec_impl.cc onHeadersComplete: without a body the head carries the end.
    const headOnly = client.chunks.length === 0 ? !client.trailers : empty && http1 && length === '0';
    const head = { method: client.method, path: client.path, headers: client.headers };
    const steps: Step[] = [() => stream.requestHeaders(head, headOnly)];
    if (headOnly) return steps;
    steps.push(...body);
    const { trailers } = client;
    if (trailers) steps.push(() => stream.requestTrailers(trailers));
    return steps;
  }

  #nextCallout(): PendingCallout | undefined {
    return this.#emulator.pendingCallouts.find(
      (call) => call.exchange === this.#stream && !this.#hanging.has(call),
    );
  }

  async #answer(call: PendingCallout): Promise<void> {
    const decode = call.cluster === 'decode';
    const engine = decode ? this.#scenario.decode : this.#scenario.prefill;
    let reply: CalloutReply = 'refused';
    if (engine !== 'down') {
      const seen = decode ? this.#result.decodeRequests : this.#result.prefillRequests;
      reply = await ask(engine, call.request, seen);
      if (reply.fault?.startsWith('stall') && call.timeoutMs === 0) {
        this.#hanging.add(call);
        return;
      }
    }
    this.#emulator.completeCallout(call, reply);
  }

  /** The router's exchange with the decode engine; the steps in which the answer arrives. */
  async #decode(): Promise<Step[]> {
    const stream = this.#stream;
    const { decode } = this.#scenario;
    if (decode === 'down') return [() => stream.upstreamFailed('refused')];
    const request = this.#decodeRequest();
    if (request === 'hang') return [];
    if (request === 'too long') {
      // The engine takes what follows the announced length for another request.
      return (this.#scenario.upstream ?? 'http1') === 'http1'
        ? this.#responseSteps({ status: 400, headers: [['content-length', '0']], chunks: [] })
        : [() => stream.upstreamFailed('reset')];
    }
    const reply = await ask(decode, request, this.#result.decodeRequests);
    if (reply.fault === 'reset') return [() => stream.upstreamFailed('reset')];
    if (reply.fault === 'stall') return [() => stream.upstreamFailed('timeout')];
    return this.#responseSteps(reply);
  }

  /** The request as the decode engine reads it: its body must be as long as its content-length says. */
  #decodeRequest(): EngineRequest | 'too long' | 'hang' {
    const upstream = this.#stream.upstream;
    if (!upstream) throw new Error('no request has left');
    const body = Buffer.concat(upstream.chunks);
    const map = upstream.headers;
    const length = map.get('content-length');
    if (length !== undefined) {
      if (body.length > Number(length)) return 'too long';
      if (body.length < Number(length)) return 'hang';
    }
    const method = map.get(':method') ?? '';
    const headers: Header[] = [['host', map.get(':authority') ?? ''], ...map.fields()];
    if (length === undefined && (this.#scenario.upstream ?? 'http1') === 'http1') {
      // http1/codec_impl.cc encodeHeadersBase.
      if (upstream.chunks.length > 0 || upstream.trailers) headers.push(['transfer-encoding', 'chunked']);
      else if (!/^(GET|HEAD|DELETE|TRACE|CONNECT)$/.test(method)) headers.push(['content-length', '0']);
    }
    return { method, path: map.get(':path') ?? '', headers, body };
  }

  #responseSteps(reply: EngineReply): Step[] {
    const stream = this.#stream;
    const http1 = (this.#scenario.upstream ?? 'http1') === 'http1';
    const length = reply.headers.find(([name]) => /^content-length$/i.test(name))?.[1];
    const headers: Header[] = [...reply.headers];
    if (http1 && length === undefined && ![204, 304].includes(reply.status)) {
      headers.push(['transfer-encoding', 'chunked']);
    }
    const head = this.#scenario.client.method === 'HEAD';
    // http1/codec_impl.cc cannotHaveBody; an HTTP/2 engine ends the stream with the head.
    const headOnly =
      head ||
      [204, 304].includes(reply.status) ||
      (!reply.fault && !reply.trailers && reply.chunks.length === 0 && (length === '0' || !http1));
    const steps: Step[] = [() => stream.responseHeaders(reply.status, headers, headOnly)];
    if (headOnly) return steps;
    const open = reply.fault !== undefined || reply.trailers !== undefined;
    steps.push(
      ...bodySteps(reply.chunks, open, this.#merge, (bytes, end) => stream.responseBody(bytes, end)),
    );
    const { trailers, fault } = reply;
    if (fault) steps.push(() => stream.upstreamFailed(fault === 'stall_body' ? 'timeout' : 'reset'));
    else if (trailers) steps.push(() => stream.responseTrailers(trailers));
    return steps;
  }

  /** What the client makes of what it got: a body that does not fit its content-length is not complete. */
  #outcome(): Result {
    const { client, counters, accessLog } = this.#stream;
    let body = Buffer.concat(client.chunks);
    let { complete } = client;
    const length = client.headers.find(([name]) => name === 'content-length')?.[1];
    const bodiless = this.#scenario.client.method === 'HEAD' || [204, 304].includes(client.status);
    if (length !== undefined && !bodiless && body.length !== Number(length)) {
      complete = false;
      body = body.subarray(0, Number(length));
    }
    return {
      status: client.status,
      headers: client.headers,
      body,
      trailers: client.trailers,
      complete,
      ...this.#result,
      counters: { ...counters },
      logged: accessLog?.filterState.get('wasm.routed_experts')?.toString() ?? null,
    };
  }
}

async function ask(engine: Engine, request: EngineRequest, seen: EngineRequest[]): Promise<EngineReply> {
  seen.push(request);
  return engine(request);
}

/** Each piece is a callback; the end is one of its own, or comes with the last piece. `open`: something else ends it. */
function bodySteps(
  chunks: Buffer[],
  open: boolean,
  merge: boolean,
  deliver: (bytes: Uint8Array, end: boolean) => void,
): Step[] {
  const pieces = chunks.filter(({ length }) => length > 0);
  const steps = pieces.map((bytes, i) => () => deliver(bytes, merge && !open && i === pieces.length - 1));
  if (!open && (!merge || pieces.length === 0)) steps.push(() => deliver(Buffer.alloc(0), true));
  return steps;
}
