/**
 * A scenario is one exchange: a client's request, the two engines that answer its legs, and the filter's configuration.
 * It runs on any `Host`: the emulator (`test/host`) and real Envoy (`test/envoy`).
 */

/** Header name (lower case) and value, in the order they were sent. HTTP/2 pseudo headers are not included. */
export type Header = [name: string, value: string];

/** One request as an engine receives it. */
export interface EngineRequest {
  method: string;
  path: string;
  headers: Header[];
  body: Buffer;
}

/** What an engine does with a request. */
export interface EngineReply {
  status: number;
  /** As sent. Without `content-length` the body goes out chunked (HTTP/1) or without a length (HTTP/2). */
  headers: Header[];
  /** The body, in the pieces in which it is written; a piece reaches Envoy before the next one is written. */
  chunks: Buffer[];
  trailers?: Header[];
  /** Piece `i` is not written before this has resolved. */
  before?: (i: number) => Promise<unknown> | undefined;
  /**
   * `reset`: the connection is reset before the head; `reset_body`: after the last of `chunks`, before the body ends;
   * `stall`: no answer is ever sent; `stall_body`: the head and `chunks` are sent and the body never ends.
   */
  fault?: 'reset' | 'reset_body' | 'stall' | 'stall_body';
}

export type Engine = (request: EngineRequest) => EngineReply | Promise<EngineReply>;

export type Protocol = 'http1' | 'http2';

export interface ClientRequest {
  method: string;
  path: string;
  headers: Header[];
  /** The body in the pieces in which it is written; empty: no body at all. */
  chunks: Buffer[];
  /** HTTP/2, or HTTP/1 chunked. */
  trailers?: Header[];
}

export interface Scenario {
  name: string;
  /** Plugin configuration as the user writes it; the host fills in `prefill.cluster` when it is absent. */
  config?: Record<string, unknown>;
  client: ClientRequest;
  prefill: Engine | 'down';
  decode: Engine | 'down';
  /** Protocol between client and Envoy. Default `http1`. */
  downstream?: Protocol;
  /** Protocol between Envoy and both engines. Default `http1`. */
  upstream?: Protocol;
  /** The client hangs up when this resolves. */
  leave?: Promise<unknown>;
  /** Told what has come to the client: with 0 of the head, then of the bytes of the body so far. */
  onBody?: (bytes: number) => void;
}

export interface Result {
  status: number;
  headers: Header[];
  body: Buffer;
  trailers: Header[];
  /** False when the stream was reset before its end (`status` is 0 when not even a head came). */
  complete: boolean;
  /** What reached each engine, in order. */
  prefillRequests: EngineRequest[];
  decodeRequests: EngineRequest[];
  /** Counters of the filter that this exchange changed, by how much; names without the `wasmcustom.` prefix. */
  counters: Record<string, number>;
  /** `%FILTER_STATE(wasm.routed_experts:PLAIN)%` of the access-log line of this exchange; null when unset. */
  logged: string | null;
}

export interface Host {
  readonly name: 'emulator' | 'envoy';
  run(scenario: Scenario): Promise<Result>;
  close(): Promise<void>;
}
