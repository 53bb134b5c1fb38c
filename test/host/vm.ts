/**
 * One WebAssembly VM of one worker: how it is loaded, calls into the guest, its contexts, and what
 * a trap does.
 * The rules are those of src/wasm.cc, src/v8/v8.cc and include/proxy-wasm/wasm.h in
 * proxy-wasm-cpp-host.
 */

import v8 from 'node:v8';
import { EnvoyCrash, LoadError, type LogLevel } from './abi.ts';
import type { Callouts } from './callouts.ts';
import { RootContext, type Context } from './context.ts';
import { ALLOWED_IN_MALLOC, ALLOWED_IN_START, createImports, type HostFunction } from './imports.ts';
import { Memory } from './memory.ts';
import { Metrics, type MetricStore } from './metrics.ts';
import { functionTypes, type Signature } from './module.ts';
import type { SharedData, SharedQueues } from './shared.ts';

/** PROXY_WASM_HOST_MAX_WASM_MEMORY_SIZE_BYTES in limits.h: 1 GiB. */
export const MAX_PAGES = 16384;

/**
 * The guest functions that the host calls, with the signature by which Envoy calls them. A module
 * with another signature does not load.
 */
const GUEST_FUNCTIONS: Record<string, Signature> = {
  _initialize: ':',
  _start: ':',
  malloc: 'i:i',
  proxy_on_memory_allocate: 'i:i',
  proxy_on_context_create: 'ii:',
  proxy_on_vm_start: 'ii:i',
  proxy_on_configure: 'ii:i',
  proxy_on_tick: 'i:',
  proxy_on_request_headers: 'iii:i',
  proxy_on_request_body: 'iii:i',
  proxy_on_request_trailers: 'ii:i',
  proxy_on_response_headers: 'iii:i',
  proxy_on_response_body: 'iii:i',
  proxy_on_response_trailers: 'ii:i',
  proxy_on_http_call_response: 'iiiii:',
  proxy_on_queue_ready: 'ii:',
  proxy_on_done: 'i:i',
  proxy_on_log: 'i:',
  proxy_on_delete: 'i:',
};

const ABI_VERSIONS = ['proxy_abi_version_0_1_0', 'proxy_abi_version_0_2_0', 'proxy_abi_version_0_2_1'];

type GuestFunctions = Record<string, (...args: number[]) => number | undefined>;

/** A module that Envoy has accepted and compiled. The workers share it. */
export interface LoadedModule {
  module: WebAssembly.Module;
  exports: Map<string, Signature>;
  imports: { module: string; name: string }[];
}

export interface LogEntry {
  level: LogLevel;
  message: string;
}

/** The stream that caused what happens now. Counters and calls are put to its account. */
export interface Account {
  readonly counters: Record<string, number>;
}

/** What all VMs of one Envoy process share. */
export interface Process {
  readonly metrics: MetricStore;
  readonly sharedData: SharedData;
  readonly queues: SharedQueues;
  readonly callouts: Callouts;
  readonly logs: LogEntry[];
  readonly vmId: string;
  /** The plugin's name, which is also its root id. */
  readonly pluginName: string;
  readonly vmConfiguration: Buffer;
  readonly env: Record<string, string>;
  readonly allowOnHeadersStopIteration: boolean;
  readonly failOpen: boolean;
  account: Account | null;
  /** The virtual wall clock, in nanoseconds. */
  now: bigint;
}

/** Makes the checks of `load` in wasm.cc and of `link` in v8.cc of proxy-wasm-cpp-host. */
export function loadModule(wasm: Uint8Array): LoadedModule {
  // Envoy, too, sets this limit by a flag of V8 (--wasm_max_mem_pages in v8.cc).
  v8.setFlagsFromString(`--wasm-max-mem-pages=${MAX_PAGES}`);
  let module: WebAssembly.Module;
  try {
    module = new WebAssembly.Module(Uint8Array.from(wasm));
  } catch (error) {
    throw new LoadError(`Failed to load Wasm bytecode: ${(error as Error).message}`);
  }
  const types = functionTypes(wasm);
  if (!ABI_VERSIONS.some((name) => types.exports.has(name))) {
    throw new LoadError('Missing or unknown Proxy-Wasm ABI version');
  }
  if (!types.exports.has('proxy_abi_version_0_2_1')) {
    throw new LoadError('the emulator speaks ABI 0.2.1 only');
  }
  const known = createImports(null as never);
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    if (kind !== 'function' || !known.has(`${from}.${name}`)) {
      throw new LoadError(`Failed to load Wasm module due to a missing import: ${from}.${name}`);
    }
  }
  for (const { module: from, name, type } of types.imports) {
    const want = known.get(`${from}.${name}`)?.type;
    if (want !== type) {
      throw new LoadError(
        `Failed to load Wasm module due to an import type mismatch: ${from}.${name}, want: ${type}, but host exports: ${want}`,
      );
    }
  }
  if (!types.exports.has('malloc') && !types.exports.has('proxy_on_memory_allocate')) {
    throw new LoadError('Wasm module is missing malloc function.');
  }
  for (const [name, type] of types.exports) {
    const want = GUEST_FUNCTIONS[name];
    if (want !== undefined && want !== type) {
      throw new LoadError(`Failed to get function: ${name}: want ${want}, got ${type}`);
    }
    if (type.includes('?')) throw new EnvoyCrash(`export ${name} has a type outside i32, i64, f32, f64`);
  }
  return { module, exports: types.exports, imports: types.imports };
}

export class Vm {
  readonly process: Process;
  readonly metrics: Metrics;
  readonly memory: Memory;
  readonly contexts = new Map<number, Context>();
  readonly roots = new Map<string, RootContext>();
  /**
   * Number of calls of each guest function, and of each host function, since the VM was created.
   */
  readonly guestCalls: Record<string, number> = {};
  readonly hostCalls: Record<string, number> = {};
  readonly vmContext: RootContext;
  /** Why the VM failed; a failed VM is never called again. */
  failed: string | null = null;
  /**
   * send_local_response has asked to stop: this overrides what the callback returns
   * (`convertVmCallResult*` in context.cc).
   */
  stopIteration = false;
  /** Contexts whose filter object Envoy destroys at the end of this turn of the event loop. */
  readonly dying: Context[] = [];
  readonly tickPeriods = new Map<number, number>();
  /**
   * When it is set, this byte fills the unused end of each block that the guest's malloc returns,
   * so that a guest that reads past what it was given fails a test.
   */
  poison: number | null = null;

  readonly #loaded: LoadedModule;
  readonly #functions: GuestFunctions;
  #current: Context | null = null;
  #effective = 0;
  #nextContext = 1;
  #nextCallout = 0;
  #afterVmCall: (() => void)[] = [];
  #restrictedTo: ReadonlySet<string> | null = null;

  constructor(process: Process, loaded: LoadedModule) {
    this.process = process;
    this.#loaded = loaded;
    this.metrics = new Metrics(process.metrics, (name, by) => {
      const counters = process.account?.counters;
      if (counters) counters[name] = (counters[name] ?? 0) + Number(by);
    });
    const known = createImports(this);
    const imports: WebAssembly.Imports = {};
    for (const { module, name } of loaded.imports) {
      const host = known.get(`${module}.${name}`);
      if (host) (imports[module] ??= {})[name] = this.#guard(`${module}.${name}`, host);
    }
    let instance: WebAssembly.Instance;
    try {
      instance = new WebAssembly.Instance(loaded.module, imports);
    } catch (error) {
      if (error instanceof EnvoyCrash) throw error;
      throw new LoadError(`Failed to create new Wasm instance: ${(error as Error).message}`);
    }
    if (!(instance.exports.memory instanceof WebAssembly.Memory)) throw new LoadError('no memory exported');
    this.memory = new Memory(instance.exports.memory);
    this.#functions = instance.exports as GuestFunctions;
    this.vmContext = new RootContext(this, 0, null);
    // As `startVm` in wasm.cc does: it calls _initialize, or else _start, and forbids most host
    // functions meanwhile.
    this.#restrictedTo = ALLOWED_IN_START;
    this.call(this.vmContext, this.exports('_initialize') ? '_initialize' : '_start');
    this.#restrictedTo = null;
    if (this.failed !== null) throw new LoadError(`Failed to initialize Wasm code: ${this.failed}`);
  }

  exports(name: string): boolean {
    return this.#loaded.exports.has(name);
  }

  allocContextId(): number {
    return this.#nextContext++;
  }

  /**
   * Follows `nextHttpCallId` in wasm.h: a token is a multiple of 4, and the low bits are the kind
   * of call.
   */
  nextCalloutToken(): number {
    return (this.#nextCallout += 4);
  }

  /** Calls a function of the guest. Returns 0 when the function is missing or traps. */
  call(context: Context, name: string, ...args: number[]): number {
    if (!this.exports(name)) return 0;
    const [current, effective] = [this.#current, this.#effective];
    this.#current = context;
    this.#effective = 0;
    this.guestCalls[name] = (this.guestCalls[name] ?? 0) + 1;
    try {
      return (this.#functions[name](...args) ?? 0) >>> 0;
    } catch (error) {
      if (!(error instanceof WebAssembly.RuntimeError || error instanceof RangeError)) throw error;
      // As in v8.cc, a trap in any call fails the VM for good.
      this.failed = `Function: ${name} failed: Uncaught RuntimeError: ${error.message}`;
      this.log('critical', `${this.failed}\n${error.stack}`);
      return 0;
    } finally {
      this.#current = current;
      this.#effective = effective;
    }
  }

  /**
   * Follows `DeferAfterCallActions` in context.cc: what the guest asks for happens after its
   * callback has returned.
   */
  deferring<T>(callback: () => T): T {
    try {
      return callback();
    } finally {
      this.stopIteration = false;
      for (let next = this.#afterVmCall.shift(); next; next = this.#afterVmCall.shift()) next();
    }
  }

  addAfterVmCallAction(action: () => void): void {
    this.#afterVmCall.push(action);
  }

  /** Whether the guest is on the stack. */
  get isBusy(): boolean {
    return this.#current !== null;
  }

  /** Follows `contextOrEffectiveContext` in exports.cc. */
  get context(): Context {
    if (this.#current === null) throw new EnvoyCrash('a host function was called from the start section');
    return (this.#effective !== 0 && this.contexts.get(this.#effective)) || this.#current;
  }

  setEffectiveContext(id: number): boolean {
    if (!this.contexts.has(id)) return false;
    this.#effective = id;
    return true;
  }

  /**
   * Follows `allocMemory` in wasm.h: calls the guest's malloc, during which the guest may only log
   * and read the clock. Returns 0 when there is no memory.
   */
  alloc(size: number): number {
    this.#restrictedTo = ALLOWED_IN_MALLOC;
    const ptr = this.call(
      this.vmContext,
      this.exports('malloc') ? 'malloc' : 'proxy_on_memory_allocate',
      size,
    );
    this.#restrictedTo = null;
    return ptr !== 0 && this.memory.view(ptr, size) ? ptr : 0;
  }

  /**
   * Follows `copyToPointerSize` in wasm.h: an empty value is pointer 0, and malloc is not called.
   */
  give(bytes: Uint8Array, ptrPtr: number, sizePtr: number): boolean {
    let ptr = 0;
    if (bytes.length > 0) {
      ptr = this.alloc(bytes.length);
      if (ptr === 0 || !this.memory.write(ptr, bytes)) return false;
      if (this.poison !== null) this.memory.fillSlack(ptr, bytes.length, this.poison);
    }
    return this.memory.setU32(ptrPtr, ptr) && this.memory.setU32(sizePtr, bytes.length);
  }

  log(level: LogLevel, message: string): void {
    this.process.logs.push({ level, message });
  }

  /**
   * The root context of a plugin configuration. The first call creates it
   * (`getOrCreateThreadLocalPlugin` in wasm.cc).
   */
  plugin(configuration: string): RootContext {
    const known = this.roots.get(configuration);
    if (known) return known;
    const root = new RootContext(this, this.allocContextId(), Buffer.from(configuration));
    this.contexts.set(root.id, root);
    const rejected = (what: string): LoadError => {
      this.contexts.delete(root.id);
      const said = this.process.logs.slice(-4).map(({ level, message }) => `\n  ${level}: ${message}`);
      return new LoadError(`${what}${this.failed ? `: ${this.failed}` : ''}${said.join('')}`);
    };
    if (!root.onStart() || this.failed !== null) throw rejected('Failed to start thread-local Wasm');
    if (!root.onConfigure() || this.failed !== null) {
      throw rejected('Failed to configure thread-local Wasm plugin');
    }
    this.roots.set(configuration, root);
    return root;
  }

  /** Ends the turn of the event loop, when Envoy frees the filters that were destroyed in it. */
  reap(): void {
    for (const context of this.dying.splice(0)) this.contexts.delete(context.id);
  }

  #guard(name: string, host: HostFunction): (...args: (number | bigint)[]) => number | undefined {
    const signed = [...host.type.split(':')[0]];
    return (...args) => {
      this.hostCalls[name] = (this.hostCalls[name] ?? 0) + 1;
      if (this.#restrictedTo !== null && !this.#restrictedTo.has(name)) {
        // As `trap("restricted_callback")` in v8.cc does.
        throw new WebAssembly.RuntimeError(`restricted_callback: ${name}`);
      }
      if (this.#current === null) throw new EnvoyCrash(`${name} was called from the start section`);
      return host.run(...args.map((arg, i) => (signed[i] === 'i' ? Number(arg) >>> 0 : arg)));
    };
  }
}
