/**
 * Contexts: the root context of a plugin, and the filter of one HTTP stream.
 * Rules: envoy source/extensions/common/wasm/context.cc, proxy-wasm-cpp-host src/context.cc.
 */

import type { Header } from '../scenario.ts';
import {
  BufferType,
  DataStatus,
  EnvoyCrash,
  HeadersStatus,
  MapType,
  StreamType,
  TrailersStatus,
  WasmResult,
} from './abi.ts';
import { EnvoyBuffer, type GuestBuffer } from './buffer.ts';
import type { CalloutOutcome } from './callouts.ts';
import type { HeaderMap } from './headers.ts';
import { lookUp, type StreamInfo } from './properties.ts';
import type { Vm } from './vm.ts';

const EMPTY = Buffer.alloc(0);

/** The methods of Envoy's decoder_callbacks_ and encoder_callbacks_ that a context uses. */
export interface FilterCallbacks {
  readonly info: StreamInfo;
  continueDecoding(): void;
  continueEncoding(): void;
  resetStream(details: string): void;
  sendLocalReply(status: number, body: Buffer, headers: Header[], details: string): void;
  addDecodedData(data: EnvoyBuffer): void;
  addEncodedData(data: EnvoyBuffer): void;
  addEncodedTrailers(): HeaderMap;
  decodingBuffer(): EnvoyBuffer;
  encodingBuffer(): EnvoyBuffer;
}

export abstract class Context {
  readonly vm: Vm;
  readonly id: number;
  inVm = false;

  protected constructor(vm: Vm, id: number) {
    this.vm = vm;
    this.id = id;
  }

  abstract get root(): RootContext;

  /**
   * While the access log is written, a missing map is NotFound instead of BadArgument
   * (`getHeaderMapValue`).
   */
  get isLogging(): boolean {
    return false;
  }

  /** The header map of this type, if the guest may write it. */
  map(_type: number): HeaderMap | null {
    return null;
  }

  /** The header map of this type, if the guest may read it. */
  constMap(type: number): HeaderMap | null {
    const response = this.root.callResponse;
    if (type === MapType.HttpCallResponseHeaders) return response?.headers ?? null;
    if (type === MapType.HttpCallResponseTrailers) return response?.trailers ?? null;
    return this.map(type);
  }

  buffer(type: number): GuestBuffer | null {
    switch (type) {
      case BufferType.VmConfiguration:
        return this.vm.process.vmConfiguration;
      case BufferType.HttpRequestBody:
      case BufferType.HttpResponseBody:
      case BufferType.NetworkDownstreamData:
      case BufferType.NetworkUpstreamData:
      case BufferType.GrpcReceiveBuffer:
      case BufferType.CallData:
        return EMPTY;
      case BufferType.HttpCallResponseBody:
        return this.root.callResponse?.body ?? null;
      default:
        return null;
    }
  }

  getProperty(path: string): Buffer | null {
    return lookUp(path, this.root, null);
  }

  setProperty(_path: string, _value: Buffer): number {
    return WasmResult.NotFound;
  }

  /** Called on a root context, these functions find no stream and do nothing. */
  continueStream(type: number): number {
    return type === StreamType.Upstream ? WasmResult.Unimplemented : WasmResult.Ok;
  }

  closeStream(_type: number): number {
    return WasmResult.Ok;
  }

  sendLocalResponse(_status: number, _body: Buffer, _headers: Header[], _details: string): void {}
}

/** One plugin configuration in one VM. It owns the calls that its streams make. */
export class RootContext extends Context {
  readonly configuration: Buffer | null;
  callResponse: { headers: HeaderMap; trailers: HeaderMap | null; body: Buffer } | null = null;
  statusCode = 0;
  statusMessage = '';
  #configuring = false;

  constructor(vm: Vm, id: number, configuration: Buffer | null) {
    super(vm, id);
    this.configuration = configuration;
  }

  override get root(): RootContext {
    return this;
  }

  override buffer(type: number): GuestBuffer | null {
    if (type === BufferType.PluginConfiguration) return this.#configuring ? this.configuration : null;
    return super.buffer(type);
  }

  /**
   * Follows `onStart` in proxy-wasm-cpp-host, context.cc: the guest cannot read the plugin's
   * configuration in on_vm_start.
   */
  onStart(): boolean {
    return this.vm.deferring(() => {
      this.#configuring = true;
      this.vm.call(this, 'proxy_on_context_create', this.id, 0);
      this.inVm = true;
      this.#configuring = false;
      if (!this.vm.exports('proxy_on_vm_start')) return true;
      return this.vm.call(this, 'proxy_on_vm_start', this.id, this.vm.process.vmConfiguration.length) !== 0;
    });
  }

  onConfigure(): boolean {
    if (this.vm.failed !== null || !this.vm.exports('proxy_on_configure')) return true;
    return this.vm.deferring(() => {
      this.#configuring = true;
      const accepted =
        this.vm.call(this, 'proxy_on_configure', this.id, this.configuration?.length ?? 0) !== 0;
      this.#configuring = false;
      return accepted;
    });
  }

  onTick(): void {
    if (this.vm.failed === null) this.vm.deferring(() => this.vm.call(this, 'proxy_on_tick', this.id));
  }

  /**
   * Follows `onHttpCallSuccess` and `onHttpCallFailure`: when the VM has failed, the answer is
   * dropped.
   */
  onCallout(token: number, outcome: CalloutOutcome): void {
    if (this.vm.isBusy) {
      this.vm.addAfterVmCallAction(() => this.onCallout(token, outcome));
      return;
    }
    if (outcome === 'reset') {
      this.statusCode = WasmResult.BrokenConnection;
      this.statusMessage = 'reset';
    } else {
      this.callResponse = outcome;
    }
    this.vm.addAfterVmCallAction(() => {
      this.callResponse = null;
      this.statusMessage = '';
    });
    const sizes =
      outcome === 'reset'
        ? [0, 0, 0]
        : [outcome.headers.size, outcome.body.length, outcome.trailers?.size ?? 0];
    this.vm.deferring(() => {
      if (this.vm.failed === null)
        this.vm.call(this, 'proxy_on_http_call_response', this.id, token, ...sizes);
    });
  }
}

/** The filter of one stream. */
export class StreamContext extends Context {
  readonly callbacks: FilterCallbacks;
  readonly #root: RootContext;
  readonly #allowStop: boolean;
  readonly #failOpen: boolean;
  #requestHeaders: HeaderMap | null = null;
  #requestTrailers: HeaderMap | null = null;
  #responseHeaders: HeaderMap | null = null;
  #responseTrailers: HeaderMap | null = null;
  #requestBody = new BodyPointer();
  #responseBody = new BodyPointer();
  #responseEnded = false;
  #logged: { request: HeaderMap | null; response: HeaderMap | null; trailers: HeaderMap | null } | null =
    null;
  #streamFailed = false;
  #failureReplySent = false;
  destroyed = false;

  constructor(root: RootContext, callbacks: FilterCallbacks) {
    super(root.vm, root.vm.failed === null ? root.vm.allocContextId() : 0);
    this.#root = root;
    this.callbacks = callbacks;
    this.#allowStop = root.vm.process.allowOnHeadersStopIteration;
    this.#failOpen = root.vm.process.failOpen;
    if (this.id !== 0) this.vm.contexts.set(this.id, this);
  }

  override get root(): RootContext {
    return this.#root;
  }

  override get isLogging(): boolean {
    return this.#logged !== null;
  }

  override map(type: number): HeaderMap | null {
    switch (type) {
      case MapType.RequestHeaders:
        return this.#requestHeaders;
      case MapType.RequestTrailers:
        return this.#requestTrailers;
      case MapType.ResponseHeaders:
        return this.#responseHeaders;
      case MapType.ResponseTrailers:
        // Follows `getMap`: when the guest first asks for the trailers of a body that has ended
        // without any, Envoy creates them.
        if (this.#responseTrailers === null && this.#responseEnded && this.#responseBody.lent) {
          this.#responseTrailers = this.callbacks.addEncodedTrailers();
        }
        return this.#responseTrailers;
      default:
        return null;
    }
  }

  override constMap(type: number): HeaderMap | null {
    const logged = this.#logged;
    if (type === MapType.RequestHeaders && logged?.request) return logged.request;
    if (type === MapType.ResponseHeaders && logged?.response) return logged.response;
    if (type === MapType.ResponseTrailers && logged?.trailers) return logged.trailers;
    return super.constMap(type);
  }

  override buffer(type: number): GuestBuffer | null {
    if (type === BufferType.HttpRequestBody) {
      return this.#requestBody.buffer('request', () => this.callbacks.decodingBuffer());
    }
    if (type === BufferType.HttpResponseBody) {
      return this.#responseBody.buffer('response', () => this.callbacks.encodingBuffer());
    }
    return super.buffer(type);
  }

  override getProperty(path: string): Buffer | null {
    return lookUp(path, this.#root, {
      info: this.callbacks.info,
      request: this.constMap(MapType.RequestHeaders),
      response: this.constMap(MapType.ResponseHeaders),
    });
  }

  override setProperty(path: string, value: Buffer): number {
    this.callbacks.info.filterState.set(`wasm.${path}`, value);
    return WasmResult.Ok;
  }

  override continueStream(type: number): number {
    if (type === StreamType.Downstream) return WasmResult.Ok;
    if (type === StreamType.Upstream) return WasmResult.Unimplemented;
    this.vm.addAfterVmCallAction(() =>
      type === StreamType.Request ? this.callbacks.continueDecoding() : this.callbacks.continueEncoding(),
    );
    // Whichever direction is continued, Envoy drops its pointers to the request, and keeps those to
    // the response (`continueStream`).
    this.#requestHeaders = null;
    this.#requestTrailers = null;
    this.#requestBody.forget();
    return WasmResult.Ok;
  }

  override closeStream(type: number): number {
    if (type === StreamType.Request || type === StreamType.Response) {
      this.vm.addAfterVmCallAction(() => this.callbacks.resetStream('wasm_close_stream'));
    }
    return WasmResult.Ok;
  }

  override sendLocalResponse(status: number, body: Buffer, headers: Header[], details: string): void {
    this.vm.addAfterVmCallAction(() =>
      this.callbacks.sendLocalReply(status, body, headers, details.replace(/\s/g, '_')),
    );
  }

  // The stream calls the methods below.

  decodeHeaders(headers: HeaderMap, end: boolean): number {
    if (this.vm.failed === null && !this.inVm && this.id !== 0) {
      this.vm.deferring(() => this.vm.call(this, 'proxy_on_context_create', this.id, this.#root.id));
    }
    this.inVm = true;
    this.#requestHeaders = headers;
    const status = this.#onHeaders('proxy_on_request_headers', headers, end);
    if (status === HeadersStatus.Continue) this.#requestHeaders = null;
    return status;
  }

  decodeData(data: EnvoyBuffer, end: boolean): number {
    if (!this.inVm) return DataStatus.Continue;
    if (this.#requestBody.buffering) {
      this.callbacks.addDecodedData(data);
      if (this.destroyed) return DataStatus.StopIterationAndBuffer;
    }
    return this.#requestBody.during(data, () => {
      const size = this.buffer(BufferType.HttpRequestBody)?.length ?? 0;
      return this.#onBody('proxy_on_request_body', size, end);
    });
  }

  decodeTrailers(trailers: HeaderMap): number {
    if (!this.inVm) return TrailersStatus.Continue;
    this.#requestTrailers = trailers;
    const status = this.#onTrailers('proxy_on_request_trailers', trailers);
    if (status === TrailersStatus.Continue) this.#requestTrailers = null;
    return status;
  }

  encodeHeaders(headers: HeaderMap, end: boolean): number {
    if (!this.inVm || this.#failureReplySent) return HeadersStatus.Continue;
    this.#responseHeaders = headers;
    const status = this.#onHeaders('proxy_on_response_headers', headers, end);
    if (status === HeadersStatus.Continue) this.#responseHeaders = null;
    return status;
  }

  encodeData(data: EnvoyBuffer, end: boolean): number {
    if (!this.inVm || this.#failureReplySent) return DataStatus.Continue;
    if (this.#responseBody.buffering) {
      this.callbacks.addEncodedData(data);
      if (this.destroyed) return DataStatus.StopIterationAndBuffer;
    }
    this.#responseEnded = end;
    return this.#responseBody.during(data, () => {
      const size = this.buffer(BufferType.HttpResponseBody)?.length ?? 0;
      return this.#onBody('proxy_on_response_body', size, end);
    });
  }

  encodeTrailers(trailers: HeaderMap): number {
    if (!this.inVm || this.#failureReplySent) return TrailersStatus.Continue;
    this.#responseTrailers = trailers;
    const status = this.#onTrailers('proxy_on_response_trailers', trailers);
    if (status === TrailersStatus.Continue) this.#responseTrailers = null;
    return status;
  }

  /**
   * Follows `Context::log`: the guest can read the final maps again, even those of a direction that
   * was continued.
   */
  log(request: HeaderMap | null, response: HeaderMap | null, trailers: HeaderMap | null): void {
    if (!this.inVm) return;
    this.#logged = { request, response, trailers };
    this.#notify('proxy_on_log');
    this.#logged = null;
  }

  /**
   * Follows `Context::onDestroy`: it calls on_done, ignores the answer because this is a stream,
   * and calls on_delete.
   */
  onDestroy(): void {
    if (this.destroyed || !this.inVm) return;
    this.destroyed = true;
    this.#notify('proxy_on_done');
    this.#notify('proxy_on_delete');
    this.vm.dying.push(this);
  }

  #notify(name: string): void {
    if (this.vm.failed === null && this.id !== 0) this.vm.deferring(() => this.vm.call(this, name, this.id));
  }

  #onHeaders(name: string, headers: HeaderMap, end: boolean): number {
    return this.#callback(
      name,
      [headers.size, Number(end)],
      (status) => {
        if (this.vm.stopIteration || status > HeadersStatus.StopAllIterationAndWatermark) {
          return HeadersStatus.StopAllIterationAndWatermark;
        }
        // proxy-wasm-cpp-host issue 143: without allow_on_headers_stop_iteration, a guest that
        // pauses at the head also pauses the body.
        if (status === HeadersStatus.StopIteration && !this.#allowStop) {
          return HeadersStatus.StopAllIterationAndWatermark;
        }
        // `convertFilterHeadersStatus` does not know 2 (ContinueAndEndStream) and takes it for
        // Continue.
        return status === 2 ? HeadersStatus.Continue : status;
      },
      HeadersStatus.StopAllIterationAndWatermark,
    );
  }

  #onBody(name: string, size: number, end: boolean): number {
    return this.#callback(
      name,
      [size, Number(end)],
      (status) =>
        this.vm.stopIteration || status > DataStatus.StopIterationNoBuffer
          ? DataStatus.StopIterationNoBuffer
          : status,
      DataStatus.StopIterationNoBuffer,
    );
  }

  #onTrailers(name: string, trailers: HeaderMap): number {
    return this.#callback(
      name,
      [trailers.size],
      (status) => (this.vm.stopIteration || status > 1 ? TrailersStatus.StopIteration : status),
      TrailersStatus.StopIteration,
    );
  }

  /**
   * Follows CHECK_FAIL_HTTP in context.cc of proxy-wasm-cpp-host, which stands around each
   * callback. The guest's answer is converted before the deferred actions run.
   */
  #callback(name: string, args: number[], convert: (status: number) => number, closed: number): number {
    if (this.vm.failed !== null) return this.#whenFailed(closed);
    if (!this.vm.exports(name)) return 0;
    return this.vm.deferring(() => {
      const status = this.vm.call(this, name, this.id, ...args);
      return this.vm.failed !== null ? this.#whenFailed(closed) : convert(status);
    });
  }

  #whenFailed(closed: number): number {
    if (this.#failOpen) return 0;
    if (!this.#streamFailed) {
      this.#streamFailed = true;
      if (!this.#failureReplySent) {
        this.callbacks.sendLocalReply(503, EMPTY, [], 'wasm_fail_stream');
        this.#failureReplySent = true;
      }
    }
    return closed;
  }
}

/**
 * `request_body_buffer_` and `buffering_request_body_` of context.cc, or the same pair for the
 * response.
 */
class BodyPointer {
  buffering = false;
  #data: EnvoyBuffer | null = null;
  #dangling = false;

  /** Whether the pointer to the body is set. */
  get lent(): boolean {
    return this.#data !== null;
  }

  /**
   * Follows `decodeData` and `encodeData`: the pointer outlives the callback unless the guest
   * returned Continue.
   */
  during(data: EnvoyBuffer, callback: () => number): number {
    this.#data = data;
    this.#dangling = false;
    const status = callback();
    this.buffering = status === DataStatus.StopIterationAndBuffer;
    if (status === DataStatus.Continue) this.#data = null;
    else this.#dangling = this.#data !== null;
    return status;
  }

  /** Follows `getBuffer`. */
  buffer(what: string, whole: () => EnvoyBuffer): GuestBuffer {
    if (this.buffering) return whole();
    if (this.#data === null) return EMPTY;
    if (this.#dangling) {
      throw new EnvoyCrash(
        `${what} body touched after a body callback that did not return StopIterationAndBuffer`,
      );
    }
    return this.#data;
  }

  forget(): void {
    this.#data = null;
  }
}
