/**
 * A scenario is one exchange: a client's request, the two engines that answer its legs, and the
 * configuration of the filter. It runs on any `Host`: the emulator (`test/host`) or real Envoy
 * (`test/envoy`).
 */

/**
 * Name (in lower case) and value of a header, in the order in which they were sent. Pseudo-headers
 * of HTTP/2 are not included.
 */
export type Header = [name: string, value: string];

/** One request as an engine receives it. */
export interface EngineRequest {
  method: string;
  path: string;
  headers: Header[];
  body: Buffer;
  /** Absent when there are none. */
  trailers?: Header[];
}

/** What an engine does with a request. */
export interface EngineReply {
  status: number;
  /**
   * The headers as they are sent. Without `content-length` the body is chunked (HTTP/1) or has no
   * announced length (HTTP/2).
   */
  headers: Header[];
  /**
   * The body, in the pieces in which it is written. A piece reaches Envoy before the next one is
   * written.
   */
  chunks: Buffer[];
  trailers?: Header[];
  /** Piece `i` is not written before this promise has resolved. */
  before?: (i: number) => Promise<unknown> | undefined;
  /**
   * Called with the number of `chunks` that Envoy has read, and with one more than there are when
   * it has read the end.
   */
  read?: (pieces: number) => void;
  /**
   * `reset`: the connection is reset before the head. `reset_body`: it is reset after the last of
   * `chunks`, before the body ends. `stall`: no answer is ever sent. `stall_body`: the head and
   * `chunks` are sent, and the body never ends.
   */
  fault?: 'reset' | 'reset_body' | 'stall' | 'stall_body';
}

export type Engine = (request: EngineRequest) => EngineReply | Promise<EngineReply>;

export type Protocol = 'http1' | 'http2';

export interface ClientRequest {
  method: string;
  path: string;
  headers: Header[];
  /** The body, in the pieces in which it is written. If there are none, the request has no body. */
  chunks: Buffer[];
  /** Trailers need HTTP/2, or a chunked body of HTTP/1. */
  trailers?: Header[];
}

export interface Scenario {
  name: string;
  /**
   * The plugin configuration as the user writes it. The host adds `prefill.cluster` when it is
   * absent and, for the connector mooncake, `prefill.bootstrap_cluster`. In the configuration and
   * in values of the client's headers, `{prefill:1}` stands for the address (`ip:port`) of the
   * second prefill engine and `{prefill:1:port}` for its port; `{bootstrap}` likewise. A value that
   * is nothing but a port becomes a number.
   */
  config?: Record<string, unknown>;
  client: ClientRequest;
  /**
   * One prefill engine, or several that have addresses of their own. The cluster leads to the
   * first.
   */
  prefill: Engine | 'down' | Engine[];
  /** The bootstrap server of prefill, if there is one. */
  bootstrap?: Engine | 'down';
  /**
   * How prefill answers when it is asked for its models. Default: one model, of which a sequence
   * may have 131,072 tokens.
   */
  models?: Engine;
  decode: Engine | 'down';
  /**
   * The engine that audits ask. The configuration gets its cluster where it has an `audit` without
   * one, and the result is there when the audit is over.
   */
  audit?: Engine | 'down';
  /** Protocol between client and Envoy. Default `http1`. */
  downstream?: Protocol;
  /** Protocol between Envoy and both engines. Default `http1`. */
  upstream?: Protocol;
  /** The client hangs up when this promise resolves. */
  leave?: Promise<unknown>;
  /**
   * Called with what has reached the client: with 0 for the head, and then with the number of bytes
   * of the body so far.
   */
  onBody?: (bytes: number) => void;
}

export interface Result {
  status: number;
  headers: Header[];
  body: Buffer;
  trailers: Header[];
  /**
   * False when the stream was reset before its end. `status` is 0 when the client got no head
   * either.
   */
  complete: boolean;
  /** The requests that reached each engine, in order; of prefill those for completions. */
  prefillRequests: EngineRequest[];
  /** The requests for prefill's list of models, which a VM asks for once. */
  modelsRequests: EngineRequest[];
  bootstrapRequests: EngineRequest[];
  decodeRequests: EngineRequest[];
  auditRequests: EngineRequest[];
  /** What the filter has logged of audits. */
  auditLog: string[];
  /**
   * The counters of the filter that this exchange changed, and by how much. Names lack the prefix
   * `wasmcustom.`.
   */
  counters: Record<string, number>;
  /**
   * `%FILTER_STATE(wasm.routed_experts:PLAIN)%` in the access-log line of this exchange; null when
   * it is not set.
   */
  logged: string | null;
  /** `%FILTER_STATE(wasm.routed_experts_decode:PLAIN)%`, likewise. */
  loggedDecode: string | null;
}

/** The number of prefill engines that a scenario can have. */
export const PREFILL_ENGINES = 2;
export const prefillName = (i: number): string => `prefill:${i}`;

/** The names of all engines that a scenario can have. */
export const ENGINES = [
  'decode',
  ...Array.from({ length: PREFILL_ENGINES }, (_, i) => prefillName(i)),
  'bootstrap',
  'audit',
];

/** The engine with this name; undefined when the scenario has none. */
export function engineOf(scenario: Scenario, name: string): Engine | 'down' | undefined {
  const { prefill, bootstrap, decode, audit } = scenario;
  if (name === 'decode') return decode;
  if (name === 'bootstrap') return bootstrap;
  if (name === 'audit') return audit;
  const i = ENGINES.slice(1).indexOf(name);
  return Array.isArray(prefill) ? prefill[i] : i === 0 ? prefill : undefined;
}

/** The requests that an exchange makes, by the engine that got them. */
export type Requests = Pick<
  Result,
  'prefillRequests' | 'modelsRequests' | 'bootstrapRequests' | 'decodeRequests' | 'auditRequests'
>;

export const noRequests = (): Requests => ({
  prefillRequests: [],
  modelsRequests: [],
  bootstrapRequests: [],
  decodeRequests: [],
  auditRequests: [],
});

/** The member of `Result` that holds the requests of an engine. */
export function requestsOf(name: string): keyof Requests {
  if (name === 'decode') return 'decodeRequests';
  if (name === 'audit') return 'auditRequests';
  return name === 'bootstrap' ? 'bootstrapRequests' : 'prefillRequests';
}

const DEFAULT_LENGTH = 131_072;

/** A list of models as vLLM answers it, with the longest sequence of each. */
export function listing(models: Record<string, number | null>): Engine {
  const data = Object.entries(models).map(([id, max_model_len]) => ({ id, object: 'model', max_model_len }));
  const body = Buffer.from(JSON.stringify({ object: 'list', data }));
  const headers: Header[] = [
    ['content-length', String(body.length)],
    ['content-type', 'application/json'],
  ];
  return () => ({ status: 200, headers, chunks: [body] });
}

/**
 * Has a request answered by the engine with this name. It is noted in `seen`, and undefined is
 * returned where there is no such engine.
 */
export function deliver(
  scenario: Scenario,
  name: string,
  request: EngineRequest,
  seen: Requests,
): ReturnType<Engine> | undefined {
  const engine = engineOf(scenario, name);
  if (typeof engine !== 'function') return undefined;
  const lists = request.method === 'GET' && request.path.endsWith('/models') && name.startsWith('prefill');
  seen[lists ? 'modelsRequests' : requestsOf(name)].push(request);
  if (!lists) return engine(request);
  return (scenario.models ?? listing({ tiny: DEFAULT_LENGTH }))(request);
}

/**
 * The scenario with addresses in place of the names of engines. `port` returns the port of an
 * engine on 127.0.0.1.
 */
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

/**
 * Whether a configuration is for a connector that asks a bootstrap server through a cluster of its
 * own.
 */
export function asksBootstrap(config: Record<string, unknown>, prefill: object): boolean {
  return config['connector'] === 'mooncake' && !('endpoint_header' in prefill);
}

/** The configuration with this cluster where it has an `audit` that names none. */
export function withAuditCluster(config: Record<string, unknown>, cluster: string): Record<string, unknown> {
  const { audit } = config;
  if (typeof audit !== 'object' || audit === null || Array.isArray(audit)) return config;
  return { ...config, audit: { cluster, ...audit } };
}

/** The lines on audits in what the filter has logged. */
export const auditLines = (log: string): string[] =>
  [...log.matchAll(/audit(?: failed)?: .*/g)].map(([line]) => line);

export interface Host {
  readonly name: 'emulator' | 'envoy';
  run(scenario: Scenario): Promise<Result>;
  close(): Promise<void>;
}
