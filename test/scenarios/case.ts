// Defines a suite of scenarios, and when two hosts agree on a result.

import type { EngineRequest, Header, Result, Scenario } from '../scenario.ts';

/** Limits of the host that a suite needs. Default: Envoy's. */
export interface Limits {
  /** The listener's buffer limit, which bounds requests that are held. */
  bufferLimit?: number;
  /** The largest reply of the prefill leg. */
  asyncResponseLimit?: number;
  /** The plugin's field `allow_on_headers_stop_iteration`. Default: true. */
  headsCanStop?: boolean;
}

export interface Case {
  name: string;
  /** Creates a new scenario for every run, because engines have state. */
  scenario(): Scenario;
  /** Fails if the result is not as it should be. */
  check(result: Result): void;
  /** The host generates the id of the client's request, so ids differ between runs. */
  ownId?: boolean;
  /**
   * Matches text that differs between runs: rooms, which the filter generates, and ids, which the
   * engines draw in the order in which the legs arrive. The lengths differ, too.
   */
  random?: RegExp;
  /**
   * How the network cuts the body into pieces decides what the head can tell: whether it has a
   * length, whether its outcome has `choices`, and whether the outcome comes again in a trailer.
   */
  cutDecidesHead?: boolean;
  /** The case runs on this host only, for this reason. */
  only?: { host: 'envoy' | 'emulator'; because: string };
}

export interface Suite {
  name: string;
  limits?: Limits;
  cases: Case[];
}

/** Headers that Envoy adds on its own, or that are about a connection and not about an exchange. */
const ENVOYS_OWN = /^(date|server|x-envoy-.*|x-forwarded-.*|connection|keep-alive)$/;

/**
 * The salts that keep a request that decode serves alone from entries that other requests have left
 * in caches. They have a fixed length.
 */
const SALTS =
  /(?<="(?:extra_key|cache(?:_|\\u005f)salt)"\s*:\s*")[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=")|(?<="lmcache\.tag\.routed_experts":")[0-9a-f]{32}(?=")/g;

/** A result in the form in which both hosts must agree. */
export interface Comparable {
  status: number;
  complete: boolean;
  headers: Header[];
  trailers: Header[];
  body: string;
  logged: string | null;
  loggedDecode: string | null;
  counters: Record<string, number>;
  prefillRequests: object[];
  bootstrapRequests: object[];
  decodeRequests: object[];
  auditRequests: object[];
  auditLog: string[];
}

export function comparable(of: Case, result: Result): Comparable {
  const id = of.ownId ? ownIdOf(result) : undefined;
  const same = (text: string) => (id ? text.replaceAll(id, '<id>') : text);
  const made = (text: string) => (of.random ? text.replace(of.random, '<random>') : text);
  const request = ({ method, path, headers, body, trailers = [] }: EngineRequest) => ({
    method,
    path,
    headers: ordered(headers, same).filter(([name]) => !of.random || name !== 'content-length'),
    body: made(same(body.toString('latin1'))),
    trailers,
  });
  const headers = ordered(result.headers, same);
  return {
    status: result.status,
    complete: result.complete,
    headers: of.cutDecidesHead ? headers.flatMap(withoutCut) : headers,
    trailers: ordered(result.trailers, same).filter(
      ([name]) => !of.cutDecidesHead || name !== 'x-routed-experts',
    ),
    body: made(same(result.body.toString('latin1'))),
    logged: result.logged,
    loggedDecode: result.loggedDecode,
    counters: Object.fromEntries(Object.entries(result.counters).sort()),
    prefillRequests: result.prefillRequests.map(unsalted).map(request),
    bootstrapRequests: result.bootstrapRequests.map(request),
    decodeRequests: result.decodeRequests.map(unsalted).map(request),
    auditRequests: result.auditRequests.map(unsalted).map(request),
    // Each host has names of its own for clusters.
    auditLog: result.auditLog.map((line) => same(line).replace(/of cluster \w+/, '')),
  };
}

const unsalted = (request: EngineRequest): EngineRequest => ({
  ...request,
  body: Buffer.from(request.body.toString('latin1').replace(SALTS, '<salt>'), 'latin1'),
});

/** The differences between the results of two hosts; empty if they agree. */
export function differences(of: Case, envoy: Result, emulator: Result): object[] {
  const [a, b] = [comparable(of, envoy), comparable(of, emulator)];
  // How much of a body leaves before its stream is reset depends on timing.
  if (!a.complete && !b.complete && (a.body.startsWith(b.body) || b.body.startsWith(a.body))) a.body = b.body;
  return (Object.keys(a) as (keyof Comparable)[])
    .filter((key) => JSON.stringify(a[key]) !== JSON.stringify(b[key]))
    .map((key) => ({ [key]: { envoy: shown(a[key]), emulator: shown(b[key]) } }));
}

/** A readable excerpt of a long value. */
function shown(value: unknown): unknown {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text.length > 3000 ? `${text.slice(0, 1500)} … ${text.slice(-1500)}` : value;
}

function ordered(headers: Header[], same: (text: string) => string): Header[] {
  return (
    headers
      .filter(([name]) => !ENVOYS_OWN.test(name))
      // Each host has ports of its own.
      .map(([name, value]): Header => [
        name,
        name === 'host' ? value.replace(/:\d+$/, ':<port>') : same(value),
      ])
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
  );
}

function withoutCut([name, value]: Header): Header[] {
  if (name === 'content-length' || name === 'transfer-encoding') return [];
  return [[name, name === 'x-routed-experts' ? value.replace(/; choices=\d+$/, '') : value]];
}

function ownIdOf({ prefillRequests, decodeRequests }: Result): string | undefined {
  return [...prefillRequests, ...decodeRequests]
    .flatMap(({ headers }) => headers)
    .find(([name]) => name === 'x-request-id')?.[1];
}

/** The first value of a header. */
export function header(headers: Header[], wanted: string): string | undefined {
  return headers.find(([name]) => name === wanted)?.[1];
}
