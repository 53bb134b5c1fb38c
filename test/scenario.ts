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
  /** When there are any. */
  trailers?: Header[];
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
  /** Told how many of `chunks` Envoy has read; one more than there are, when it has read the end. */
  read?: (pieces: number) => void;
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
  /**
   * Plugin configuration as the user writes it; the host fills in `prefill.cluster`, and for the connector mooncake
   * `prefill.bootstrap_cluster`, when they are absent. In it, and in values of the client's headers, `{prefill:1}` stands for
   * the address (`ip:port`) of the second prefill engine, and `{prefill:1:port}` for its port; `{bootstrap}` likewise. A
   * value that is nothing but a port is a number.
   */
  config?: Record<string, unknown>;
  client: ClientRequest;
  /** One engine, or several with addresses of their own; the cluster leads to the first. */
  prefill: Engine | 'down' | Engine[];
  /** Prefill's bootstrap server, where it has one. */
  bootstrap?: Engine | 'down';
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
  bootstrapRequests: EngineRequest[];
  decodeRequests: EngineRequest[];
  /** Counters of the filter that this exchange changed, by how much; names without the `wasmcustom.` prefix. */
  counters: Record<string, number>;
  /** `%FILTER_STATE(wasm.routed_experts:PLAIN)%` of the access-log line of this exchange; null when unset. */
  logged: string | null;
}

/** Prefill engines that a scenario can have. */
export const PREFILL_ENGINES = 2;
export const prefillName = (i: number): string => `prefill:${i}`;

/** Everyone that a scenario lets answer, by name. */
export const ENGINES = [
  'decode',
  ...Array.from({ length: PREFILL_ENGINES }, (_, i) => prefillName(i)),
  'bootstrap',
];

/** The engine of a name; undefined when the scenario has none. */
export function engineOf(scenario: Scenario, name: string): Engine | 'down' | undefined {
  const { prefill, bootstrap, decode } = scenario;
  if (name === 'decode') return decode;
  if (name === 'bootstrap') return bootstrap;
  const i = ENGINES.slice(1).indexOf(name);
  return Array.isArray(prefill) ? prefill[i] : i === 0 ? prefill : undefined;
}

/** Which requests of a result those of an engine are. */
export function requestsOf(name: string): 'prefillRequests' | 'bootstrapRequests' | 'decodeRequests' {
  if (name === 'decode') return 'decodeRequests';
  return name === 'bootstrap' ? 'bootstrapRequests' : 'prefillRequests';
}

/** A scenario with addresses where it names engines; `port` tells the port of an engine on 127.0.0.1. */
export function withAddresses(scenario: Scenario, port: (engine: string) => number): Scenario {
  const filledIn = (text: string) =>
    text
      .replace(/"\{(prefill:\d|bootstrap):port\}"/g, (_, engine: string) => String(port(engine)))
      .replace(/\{(prefill:\d|bootstrap)(:port)?\}/g, (_, engine: string, alone) =>
        alone ? String(port(engine)) : `127.0.0.1:${port(engine)}`,
      );
  const { config, client } = scenario;
  return {
    ...scenario,
    ...(config ? { config: JSON.parse(filledIn(JSON.stringify(config))) as Record<string, unknown> } : {}),
    client: { ...client, headers: client.headers.map(([name, value]): Header => [name, filledIn(value)]) },
  };
}

/** Whether a configuration is for a connector that asks a bootstrap server through a cluster of its own. */
export function asksBootstrap(config: Record<string, unknown>, prefill: object): boolean {
  return config['connector'] === 'mooncake' && !('endpoint_header' in prefill);
}

export interface Host {
  readonly name: 'emulator' | 'envoy';
  run(scenario: Scenario): Promise<Result>;
  close(): Promise<void>;
}
