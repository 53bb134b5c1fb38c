/**
 * One HTTP stream of Envoy, with one Wasm filter before the router: connection manager, filter
 * manager, router and codecs.
 * The rules are those of Envoy's source/common/http/filter_manager.cc, conn_manager_impl.cc,
 * conn_manager_utility.cc and http1/codec_impl.cc, and of source/common/router/router.cc. A
 * function named in a comment without a file is in filter_manager.cc.
 */

import type { Header, Protocol } from '../scenario.ts';
import { DataStatus, EnvoyCrash, HeadersStatus, TrailersStatus } from './abi.ts';
import { EnvoyBuffer } from './buffer.ts';
import { StreamContext, type FilterCallbacks, type RootContext } from './context.ts';
import { HeaderMap } from './headers.ts';
import type { StreamInfo } from './properties.ts';
import { ROUTER_OWN, upstreamError, type ResetReason } from './upstream.ts';
import type { Account } from './vm.ts';

/** `IterationState` of the filter in one direction. */
const enum Iteration {
  Continue,
  StopSingle,
  StopAllBuffer,
  StopAllWatermark,
}

/** One direction of the stream, as `ActiveStreamFilterBase` keeps it. */
class Direction {
  iteration = Iteration.Continue;
  headersContinued = false;
  iterateFromCurrent = false;
  /** The filter has been told that the stream ends. */
  endStream = false;
  /**
   * decoder_filters_streaming_ or encoder_filters_streaming_: when the buffer exceeds its limit,
   * Envoy pauses the sender instead of failing the stream.
   */
  streaming = true;
  buffered: EnvoyBuffer | null = null;
  /** A callback of the filter is on the stack. */
  inCallback = false;
  /** decoder_filter_chain_aborted_ or encoder_filter_chain_aborted_. */
  aborted = false;
  /** How many times the reads from the sender have been disabled and not enabled again. */
  paused = 0;

  get stoppedAll(): boolean {
    return this.iteration === Iteration.StopAllBuffer || this.iteration === Iteration.StopAllWatermark;
  }
}

/** What Envoy has sent to the decode engine. */
export interface UpstreamRequest {
  headers: HeaderMap;
  chunks: Buffer[];
  trailers: HeaderMap | null;
  complete: boolean;
  /** The head carried the end of the stream. */
  headOnly: boolean;
}

/** What Envoy has sent to the client. */
export interface ClientResponse {
  /** 0 until the head has been sent. */
  status: number;
  headers: Header[];
  chunks: Buffer[];
  trailers: Header[];
  /** The end of the response has been sent. */
  complete: boolean;
}

/** One line of the access log. */
export interface AccessLogEntry {
  status: number;
  details: string | null;
  filterState: Map<string, Buffer>;
}

export interface StreamOptions {
  id: number;
  root: RootContext;
  bufferLimit: number;
  downstream: Protocol;
  upstream: Protocol;
  http1Trailers: boolean;
  tellsTransportFailures: boolean;
  onLog: (entry: AccessLogEntry) => void;
}

export interface RequestHead {
  method: string;
  path: string;
  headers?: Header[];
  authority?: string;
}

/** Hop-by-hop headers, which Envoy never forwards (conn_manager_utility.cc). */
const HOP_BY_HOP = ['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding'];

/**
 * Headers that Envoy removes because a client outside must not set them (`cleanRequestHeaders` in
 * conn_manager_utility.cc).
 */
const FROM_OUTSIDE = [
  ...ROUTER_OWN,
  'upgrade',
  'x-envoy-expected-rq-timeout-ms',
  'x-envoy-force-trace',
  'x-envoy-internal',
  'x-envoy-ip-tags',
  'x-envoy-is-timeout-retry',
];

const VALID_NAME = /^:?[!#$%&'*+.^_`|~0-9a-z-]+$/;

export class HttpStream implements FilterCallbacks, Account {
  readonly counters: Record<string, number> = {};
  readonly info: StreamInfo;
  readonly client: ClientResponse = { status: 0, headers: [], chunks: [], trailers: [], complete: false };
  /** Null until the router has received the head. */
  upstream: UpstreamRequest | null = null;
  /** The stream has ended: it was answered or reset, or the client left. */
  ended = false;
  accessLog: AccessLogEntry | null = null;

  readonly context: StreamContext;
  readonly #options: StreamOptions;
  readonly #decoder = new Direction();
  readonly #encoder = new Direction();
  #requestHeaders: HeaderMap | null = null;
  #requestTrailers: HeaderMap | null = null;
  #responseHeaders: HeaderMap | null = null;
  #responseTrailers: HeaderMap | null = null;
  #remoteDecodeComplete = false;
  #localComplete = false;
  #remoteEncodeComplete = false;
  #headersEncoded = false;
  #upstreamStarted = false;
  #preparedReply: (() => void) | null = null;

  constructor(options: StreamOptions) {
    this.#options = options;
    this.info = {
      id: options.id,
      protocol: options.downstream === 'http2' ? 'HTTP/2' : 'HTTP/1.1',
      startTime: options.root.vm.process.now,
      filterState: new Map(),
      cluster: `decode_${options.upstream}`,
      requestId: '',
      responseCode: null,
      responseCodeDetails: null,
      bytesReceived: 0,
      bytesSent: 0,
      upstreamAddress: null,
    };
    this.context = new StreamContext(options.root, this);
  }

  /** Whether Envoy has stopped reading the client's body for now. */
  get requestPaused(): boolean {
    return this.#decoder.paused > 0;
  }

  /** Whether Envoy has stopped reading the engine's body for now. */
  get responsePaused(): boolean {
    return this.#encoder.paused > 0;
  }

  /** Whether Envoy has read the client's whole request. */
  get requestComplete(): boolean {
    return this.#remoteDecodeComplete;
  }

  // The methods below are called for the client.

  requestHeaders(head: RequestHead, end: boolean): void {
    this.#turn(() => {
      const fields = head.headers ?? [];
      const isHost = ([name]: Header): boolean => name.toLowerCase() === 'host';
      const authority: Header = [':authority', head.authority ?? fields.find(isHost)?.[1] ?? 'localhost'];
      const method: Header = [':method', head.method];
      const path: Header = [':path', head.path];
      const scheme: Header = [':scheme', 'http'];
      const http1 = this.#options.downstream === 'http1';
      const pseudo = http1 ? [authority, path, method, scheme] : [method, path, scheme, authority];
      const headers = HeaderMap.from('request', [...pseudo, ...fields.filter((field) => !isHost(field))]);
      // `sanitizeConnectionHeader` in utility.cc, which http1/codec_impl.cc calls, removes the
      // headers that `connection` names.
      for (const name of (http1 ? (headers.get('connection') ?? '') : '').split(',')) {
        if (name.trim() !== '') headers.remove(name.trim().toLowerCase());
      }
      // As `mutateRequestHeaders` in conn_manager_utility.cc does.
      for (const name of [...HOP_BY_HOP, ...FROM_OUTSIDE]) headers.remove(name);
      if (headers.get('te') !== 'trailers') headers.remove('te');
      if (!headers.has('x-forwarded-proto')) headers.put('x-forwarded-proto', 'http');
      headers.put(':scheme', headers.get('x-forwarded-proto') ?? 'http');
      if (!headers.has('x-request-id')) headers.put('x-request-id', crypto.randomUUID());
      this.info.requestId = headers.get('x-request-id') ?? '';
      this.#requestHeaders = headers;
      this.#remoteDecodeComplete = end;
      this.#decodeHeaders(end);
    });
  }

  requestBody(bytes: Uint8Array, end: boolean): void {
    this.#turn(() => {
      this.info.bytesReceived += bytes.length;
      this.#remoteDecodeComplete = end;
      this.#decodeData(new EnvoyBuffer(bytes), end, false);
    });
  }

  requestTrailers(trailers: Header[]): void {
    this.#turn(() => {
      this.#requestTrailers = HeaderMap.from('trailers', trailers);
      this.#remoteDecodeComplete = true;
      this.#decodeTrailers(false);
    });
  }

  /** The client closes its connection. */
  clientDisconnect(): void {
    this.#turn(() => {
      this.info.responseCodeDetails = 'downstream_remote_disconnect';
      this.#end();
    });
  }

  // The methods below are called for the decode engine.

  responseHeaders(status: number, headers: Header[], end: boolean): void {
    this.#turn(() => {
      if (this.#localComplete) return;
      this.#upstreamStarted = true;
      this.info.upstreamAddress = '127.0.0.1:20000';
      const map = HeaderMap.from('response', [[':status', String(status)], ...headers]);
      map.remove('keep-alive');
      // As strict_1xx_and_204_response_headers in http1/codec_impl.cc demands.
      if (status === 204 && map.get('content-length') === '0') map.remove('content-length');
      map.put('x-envoy-upstream-service-time', '1');
      this.#responseHeaders = map;
      this.info.responseCodeDetails = 'via_upstream';
      this.#encodeHeaders(end, false);
    });
  }

  responseBody(bytes: Uint8Array, end: boolean): void {
    this.#turn(() => this.#encodeData(new EnvoyBuffer(bytes), end, false));
  }

  responseTrailers(trailers: Header[]): void {
    this.#turn(() => {
      this.#responseTrailers = HeaderMap.from('trailers', trailers);
      this.#encodeTrailers(false);
    });
  }

  /**
   * Follows `onUpstreamReset` in router.cc: once the head has been sent to the client, a failure
   * can only reset the response.
   */
  upstreamFailed(reason: ResetReason): void {
    this.#turn(() => {
      const { status, text } = upstreamError(reason);
      const when = this.#upstreamStarted ? 'after' : 'before';
      const transport =
        reason === 'remote connection failure' ? 'delayed connect error: Connection refused' : undefined;
      const told = transport && this.#options.tellsTransportFailures;
      const body = told ? `${text}, transport failure reason: ${transport}` : text;
      const why = transport ? `${reason}|${transport}` : reason;
      const details = `upstream_reset_${when}_response_started{${why}}`;
      this.sendLocalReply(status, Buffer.from(body), [], details.replaceAll(' ', '_'));
    });
  }

  /**
   * Follows `onIdleTimeout` in conn_manager_impl.cc: nothing has moved during the idle timeout of
   * the stream.
   */
  idleTimeout(): void {
    this.#turn(() => {
      const status = this.#remoteDecodeComplete ? 504 : 408;
      this.sendLocalReply(status, Buffer.from('stream timeout'), [], 'stream_idle_timeout');
    });
  }

  // The methods below implement FilterCallbacks.

  continueDecoding(): void {
    // As `ActiveStreamDecoderFilter::canContinue` decides.
    if (this.ended || this.#localComplete) return;
    const decoder = this.#decoder;
    this.#resume(decoder);
    if (!decoder.headersContinued) {
      decoder.headersContinued = true;
      this.#routeHeaders(this.#remoteDecodeComplete && !decoder.buffered && !this.#requestTrailers);
    }
    const hadTrailers = this.#requestTrailers !== null;
    if (decoder.buffered)
      this.#decodeData(decoder.buffered, this.#remoteDecodeComplete && !hadTrailers, true);
    if (hadTrailers) this.#decodeTrailers(true);
    decoder.iterateFromCurrent = false;
  }

  continueEncoding(): void {
    // In this case Envoy 1.40 writes the response a second time.
    if (this.ended)
      throw new EnvoyCrash('a response was continued after its end', 'corrupt bytes to the client');
    const encoder = this.#encoder;
    this.#resume(encoder);
    if (this.#responseHeaders === null)
      throw new EnvoyCrash('the response was continued before there was one');
    if (!encoder.headersContinued) {
      encoder.headersContinued = true;
      this.#sendHeaders(this.#localComplete && !encoder.buffered && !this.#responseTrailers);
    }
    const hadTrailers = this.#responseTrailers !== null;
    if (encoder.buffered && !this.ended) {
      this.#encodeData(encoder.buffered, this.#localComplete && !hadTrailers, true);
    }
    if (hadTrailers && !this.ended) this.#encodeTrailers(true);
    encoder.iterateFromCurrent = false;
  }

  /** Follows `FilterManager::resetStream`. */
  resetStream(details: string): void {
    this.#mustLive('closed');
    this.#abort();
    this.info.responseCodeDetails ??= details;
    this.#end();
  }

  /** Follows `DownstreamFilterManager::sendLocalReply`. */
  sendLocalReply(status: number, body: Buffer, headers: Header[], details: string): void {
    this.#mustLive('answered');
    this.#abort();
    this.info.responseCodeDetails = details;
    if (this.#responseHeaders === null) {
      const reply = (): void => this.#localReply(status, body, headers, false);
      // During a callback for the request, the reply waits until the callback has returned.
      if (this.#decoder.inCallback) this.#preparedReply ??= reply;
      else reply();
    } else if (!this.#headersEncoded) {
      // As in `sendDirectLocalReply`: the filter has seen the head of another response, and is not
      // shown this one.
      this.#encoder.streaming = true;
      this.#localReply(status, body, headers, true);
    } else {
      this.#end();
    }
  }

  /**
   * Envoy 1.40 would use freed memory here: when the guest replies or resets in on_log or on_done,
   * or a second time in one callback.
   */
  #mustLive(what: string): void {
    if (this.ended) throw new EnvoyCrash(`a stream was ${what} after its end`);
  }

  /** Follows `addDecodedData` with `streaming` = false. */
  addDecodedData(data: EnvoyBuffer): void {
    this.#decoder.streaming = false;
    this.#buffer(this.#decoder, data);
  }

  addEncodedData(data: EnvoyBuffer): void {
    this.#encoder.streaming = false;
    this.#buffer(this.#encoder, data);
  }

  /**
   * Envoy sends the trailers behind the data of the current callback, without showing them to the
   * filter.
   */
  addEncodedTrailers(): HeaderMap {
    return (this.#responseTrailers = HeaderMap.from('trailers', []));
  }

  decodingBuffer(): EnvoyBuffer {
    return (this.#decoder.buffered ??= this.#createBuffer(this.#decoder));
  }

  encodingBuffer(): EnvoyBuffer {
    return (this.#encoder.buffered ??= this.#createBuffer(this.#encoder));
  }

  // The methods below handle the request.

  #decodeHeaders(end: boolean): void {
    const decoder = this.#decoder;
    const headers = this.#requestHeaders as HeaderMap;
    decoder.endStream = end;
    let status = this.#inside(decoder, () => this.context.decodeHeaders(headers, end));
    if (decoder.aborted) {
      this.#executePreparedReply();
      status = HeadersStatus.StopIteration;
    }
    if (this.#afterHeaders(decoder, status) && !this.#localComplete) this.#routeHeaders(end);
  }

  #decodeData(data: EnvoyBuffer, end: boolean, continuing: boolean): void {
    if (this.ended || this.#localComplete) return;
    const decoder = this.#decoder;
    if (!continuing || decoder.iterateFromCurrent) {
      if (this.#bufferIfStoppedAll(decoder, data)) return;
      if (decoder.endStream) return;
      decoder.endStream = end && !this.#requestTrailers;
      const status = this.#inside(decoder, () => this.context.decodeData(data, decoder.endStream));
      if (decoder.aborted) {
        this.#executePreparedReply();
        return;
      }
      const complete = this.#remoteDecodeComplete && !this.#requestTrailers;
      if (!this.#afterData(decoder, status, data, complete, () => this.continueDecoding())) return;
    }
    this.#routeData(data, end);
  }

  #decodeTrailers(continuing: boolean): void {
    if (this.ended || this.#localComplete) return;
    const decoder = this.#decoder;
    const trailers = this.#requestTrailers as HeaderMap;
    if (!continuing || decoder.iterateFromCurrent) {
      if (decoder.stoppedAll) return;
      let status = this.#inside(decoder, () => this.context.decodeTrailers(trailers));
      decoder.endStream = true;
      if (decoder.aborted) {
        this.#executePreparedReply();
        status = TrailersStatus.StopIteration;
      }
      if (!this.#afterTrailers(decoder, status, () => this.continueDecoding())) return;
    }
    if (this.upstream && !this.upstream.complete) {
      if (this.#options.upstream === 'http2' || this.#options.http1Trailers)
        this.upstream.trailers = trailers;
      this.upstream.complete = true;
    }
  }

  /** Follows `decodeHeaders` in router.cc. */
  #routeHeaders(end: boolean): void {
    const headers = HeaderMap.from('request', (this.#requestHeaders as HeaderMap).entries());
    if (!headers.has(':path')) {
      this.sendLocalReply(404, Buffer.alloc(0), [], 'route_not_found');
      return;
    }
    if (!headers.has(':method')) {
      this.#replyRemoved(503, 'request', 'missing required header: :method');
      return;
    }
    for (const [name, value] of headers.entries()) {
      const part = !VALID_NAME.test(name) ? 'name' : /[\0\r\n]/.test(value) ? 'value for' : null;
      if (part === null) continue;
      this.#replyRemoved(503, 'request', `invalid header ${part}: ${name}`);
      return;
    }
    for (const name of ROUTER_OWN) headers.remove(name);
    this.upstream = { headers, chunks: [], trailers: null, complete: end, headOnly: end };
  }

  #routeData(data: EnvoyBuffer, end: boolean): void {
    const bytes = data.bytes();
    data.drain(bytes.length);
    if (!this.upstream || this.upstream.complete) return;
    if (bytes.length > 0) this.upstream.chunks.push(bytes);
    this.upstream.complete = end;
  }

  // The methods below handle the response. With `direct`, they do not call the filter.

  #encodeHeaders(end: boolean, direct: boolean): void {
    this.#localComplete = end;
    if (!direct) {
      const encoder = this.#encoder;
      const headers = this.#responseHeaders as HeaderMap;
      encoder.endStream = end;
      let status = this.#inside(encoder, () => this.context.encodeHeaders(headers, end));
      if (encoder.aborted) status = HeadersStatus.StopIteration;
      if (!this.#afterHeaders(encoder, status) || this.ended) return;
    }
    this.#sendHeaders(end);
  }

  #encodeData(data: EnvoyBuffer, end: boolean, continuing: boolean, direct = false): void {
    if (this.ended) return;
    if (!continuing) this.#localComplete = end;
    const encoder = this.#encoder;
    if (!direct && (!continuing || encoder.iterateFromCurrent)) {
      if (this.#bufferIfStoppedAll(encoder, data)) return;
      if (encoder.endStream) return;
      const before = this.#responseTrailers;
      encoder.endStream = end && !before;
      let status = this.#inside(encoder, () => this.context.encodeData(data, encoder.endStream));
      if (encoder.aborted) status = DataStatus.StopIterationNoBuffer;
      const complete = this.#localComplete && !this.#responseTrailers;
      if (!this.#afterData(encoder, status, data, complete, () => this.continueEncoding())) return;
      // Envoy 1.40 does not send trailers that the filter adds while `commonContinue` hands it
      // buffered data.
      if (before !== this.#responseTrailers && !continuing) {
        this.#sendData(data, false);
        return this.#sendTrailers();
      }
    }
    if (!this.ended) this.#sendData(data, end);
  }

  #encodeTrailers(continuing: boolean): void {
    if (this.ended) return;
    if (!continuing) this.#localComplete = true;
    const encoder = this.#encoder;
    const trailers = this.#responseTrailers as HeaderMap;
    if (!continuing || encoder.iterateFromCurrent) {
      if (encoder.stoppedAll) return;
      const status = this.#inside(encoder, () => this.context.encodeTrailers(trailers));
      encoder.endStream = true;
      if (this.ended || !this.#afterTrailers(encoder, status, () => this.continueEncoding())) return;
    }
    this.#sendTrailers();
  }

  #sendTrailers(): void {
    if (this.ended) return;
    // `encodeTrailersBase` in http1/codec_impl.cc: a body with a content-length cannot have
    // trailers.
    const chunked = this.#options.http1Trailers && !this.#responseHeaders?.has('content-length');
    if (this.#options.downstream === 'http2' || chunked) {
      this.client.trailers = (this.#responseTrailers as HeaderMap).entries();
    }
    this.#endEncode();
  }

  /** What the connection manager and the codec do to the head of a response. */
  #sendHeaders(end: boolean): void {
    const headers = this.#responseHeaders as HeaderMap;
    if (!headers.get(':status')) {
      // As `HeaderUtility::checkRequiredResponseHeaders` demands.
      this.#replyRemoved(502, 'response', 'missing required header: :status');
      return;
    }
    if (this.#headersEncoded) {
      throw new EnvoyCrash(
        'a response was continued in the callback that let it pass',
        'corrupt bytes to the client',
      );
    }
    this.#headersEncoded = true;
    for (const name of HOP_BY_HOP) headers.remove(name);
    if (!headers.has('date'))
      headers.put('date', new Date(Number(this.info.startTime / 1000000n)).toUTCString());
    headers.put('server', 'envoy');
    const status = Number(headers.get(':status'));
    const http1 = this.#options.downstream === 'http1';
    if (http1 && !this.#remoteDecodeComplete) headers.put('connection', 'close');
    this.info.responseCode = status;
    this.client.status = status;
    this.client.headers = headers.fields();
    if (http1 && !headers.has('content-length')) {
      // As `encodeHeadersBase` in http1/codec_impl.cc does.
      const bodiless = status < 200 || status === 204;
      const head = this.#requestHeaders?.get(':method') === 'HEAD';
      if (end && !head && !bodiless && status !== 304) this.client.headers.push(['content-length', '0']);
      if (!end && !bodiless) this.client.headers.push(['transfer-encoding', 'chunked']);
    }
    if (end) this.#endEncode();
  }

  #sendData(data: EnvoyBuffer, end: boolean): void {
    const bytes = data.bytes();
    data.drain(bytes.length);
    if (this.ended) return;
    this.info.bytesSent += bytes.length;
    if (bytes.length > 0) this.client.chunks.push(bytes);
    if (end) this.#endEncode();
  }

  /** Follows `maybeEndEncode(true)`. */
  #endEncode(): void {
    if (this.#remoteEncodeComplete) return;
    this.#remoteEncodeComplete = true;
    this.client.complete = true;
    this.#end();
  }

  #replyRemoved(status: number, side: string, why: string): void {
    const details = `filter_removed_required_${side}_headers{${why.replaceAll(' ', '_')}}`;
    this.sendLocalReply(status, Buffer.from(why), [], details);
  }

  /** Follows `Utility::prepareLocalReply` and `Utility::encodeLocalReply`. */
  #localReply(status: number, body: Buffer, extra: Header[], direct: boolean): void {
    const headers = HeaderMap.from('response', [[':status', String(status)], ...extra]);
    if (body.length > 0) {
      headers.put('content-length', String(body.length));
      if (!headers.has('content-type')) headers.put('content-type', 'text/plain');
    } else {
      headers.remove('content-length');
      headers.remove('content-type');
    }
    const bodiless = body.length === 0 || this.#requestHeaders?.get(':method') === 'HEAD';
    this.#responseHeaders = headers;
    this.#encodeHeaders(bodiless, direct);
    if (!bodiless && !this.ended) this.#encodeData(new EnvoyBuffer(body), true, false, direct);
  }

  #executePreparedReply(): void {
    const reply = this.#preparedReply;
    this.#preparedReply = null;
    reply?.();
  }

  // The methods below serve both directions.

  /**
   * Runs a callback of the filter. sendLocalReply and resetStream abort the direction whose
   * callback is running.
   */
  #inside(direction: Direction, callback: () => number): number {
    const outer = direction.inCallback;
    direction.inCallback = true;
    try {
      return callback();
    } finally {
      direction.inCallback = outer;
    }
  }

  #abort(): void {
    if (this.#decoder.inCallback) this.#decoder.aborted = true;
    else if (this.#encoder.inCallback) this.#encoder.aborted = true;
  }

  /** The first part of `commonContinue`. */
  #resume(direction: Direction): void {
    if (direction.stoppedAll) direction.iterateFromCurrent = true;
    direction.iteration = Iteration.Continue;
  }

  /** Follows `commonHandleAfterHeadersCallback`. */
  #afterHeaders(direction: Direction, status: number): boolean {
    switch (status) {
      case HeadersStatus.StopIteration:
        direction.iteration = Iteration.StopSingle;
        break;
      case HeadersStatus.StopAllIterationAndBuffer:
        direction.iteration = Iteration.StopAllBuffer;
        break;
      case HeadersStatus.StopAllIterationAndWatermark:
        direction.iteration = Iteration.StopAllWatermark;
        break;
      default:
        direction.headersContinued = true;
        return !direction.stoppedAll;
    }
    return false;
  }

  /** Follows `commonHandleAfterDataCallback`. */
  #afterData(
    direction: Direction,
    status: number,
    data: EnvoyBuffer,
    complete: boolean,
    resume: () => void,
  ): boolean {
    if (status === DataStatus.Continue) {
      if (direction.iteration !== Iteration.StopSingle) {
        // The buffer holds bytes that the guest kept with StopIterationAndBuffer and that were then
        // continued from a call's callback. This piece has been appended to them, so they leave
        // together.
        if (direction.buffered && direction.buffered !== data) data.move(direction.buffered);
        return true;
      }
      this.#buffer(direction, data);
      resume();
      return false;
    }
    direction.iteration = Iteration.StopSingle;
    if (status === DataStatus.StopIterationAndBuffer || status === DataStatus.StopIterationAndWatermark) {
      direction.streaming = status === DataStatus.StopIterationAndWatermark;
      this.#buffer(direction, data);
    } else if (complete && !direction.buffered && !this.ended) {
      direction.buffered = this.#createBuffer(direction);
    }
    return false;
  }

  /** Follows `commonHandleAfterTrailersCallback`. */
  #afterTrailers(direction: Direction, status: number, resume: () => void): boolean {
    if (status === TrailersStatus.Continue) {
      if (direction.iteration !== Iteration.StopSingle) return true;
      resume();
      return false;
    }
    if (direction.iteration === Iteration.Continue) direction.iteration = Iteration.StopSingle;
    return false;
  }

  /** Follows `handleDataIfStopAll`. */
  #bufferIfStoppedAll(direction: Direction, data: EnvoyBuffer): boolean {
    if (!direction.stoppedAll) return false;
    direction.streaming = direction.iteration === Iteration.StopAllWatermark;
    this.#buffer(direction, data);
    return true;
  }

  /** Follows `commonHandleBufferData`. */
  #buffer(direction: Direction, data: EnvoyBuffer): void {
    if (direction.buffered === data) return;
    direction.buffered ??= this.#createBuffer(direction);
    direction.buffered.move(data);
  }

  #createBuffer(direction: Direction): EnvoyBuffer {
    const buffer = new EnvoyBuffer();
    const tooLarge =
      direction === this.#decoder
        ? () => this.sendLocalReply(413, Buffer.from('Payload Too Large'), [], 'request_payload_too_large')
        : () =>
            this.sendLocalReply(500, Buffer.from('Internal Server Error'), [], 'response_payload_too_large');
    buffer.setWatermarks(
      this.#options.bufferLimit,
      () => {
        if (direction.streaming) direction.paused++;
        else tooLarge();
      },
      () => {
        if (direction.paused > 0) direction.paused--;
      },
    );
    return buffer;
  }

  /** Follows `doDeferredStreamDestroy`: Envoy writes the access log, then destroys the filter. */
  #end(): void {
    if (this.ended) return;
    this.ended = true;
    this.context.log(this.#requestHeaders, this.#responseHeaders, this.#responseTrailers);
    this.accessLog = {
      status: this.client.status,
      details: this.info.responseCodeDetails,
      filterState: new Map(this.info.filterState),
    };
    this.#options.onLog(this.accessLog);
    this.context.onDestroy();
  }

  /** Runs one event as a turn of Envoy's event loop. */
  #turn(event: () => void): void {
    if (this.ended) return;
    const { process } = this.#options.root.vm;
    process.account = this;
    try {
      event();
    } finally {
      process.account = null;
      this.context.vm.reap();
    }
  }
}
