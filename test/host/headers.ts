/**
 * Header maps, and the form in which guest and host exchange them. A string holds one byte in each
 * character (latin1).
 */

import type { Header } from '../scenario.ts';

/**
 * When one of these headers is added again, Envoy appends to its value; any other name gets a
 * second entry. They are the inline headers of Envoy 1.40 (`insertByKey` in header_map_impl.cc).
 */
const COMMON =
  'cache-control connection content-encoding content-length content-type keep-alive proxy-connection proxy-status ' +
  'transfer-encoding upgrade via x-envoy-attempt-count x-envoy-decorator-operation x-request-id';
const INLINE = {
  request: new Set(
    (
      `${COMMON} :authority :method :path :protocol :scheme accept accept-encoding access-control-request-headers ` +
      'access-control-request-method authorization expect grpc-accept-encoding grpc-timeout if-match ' +
      'if-modified-since if-none-match if-range if-unmodified-since origin pragma referer te user-agent ' +
      'x-client-trace-id x-envoy-downstream-service-cluster x-envoy-downstream-service-node ' +
      'x-envoy-expected-rq-timeout-ms x-envoy-external-address x-envoy-force-trace ' +
      'x-envoy-hedge-on-per-try-timeout x-envoy-internal x-envoy-ip-tags x-envoy-is-timeout-retry ' +
      'x-envoy-max-retries x-envoy-original-path x-envoy-retriable-header-names x-envoy-retriable-status-codes ' +
      'x-envoy-retry-grpc-on x-envoy-retry-on x-envoy-upstream-alt-stat-name ' +
      'x-envoy-upstream-rq-per-try-timeout-ms x-envoy-upstream-rq-timeout-alt-response ' +
      'x-envoy-upstream-rq-timeout-ms x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port ' +
      'x-forwarded-proto'
    ).split(' '),
  ),
  response: new Set(
    (
      `${COMMON} :status access-control-allow-credentials access-control-allow-headers ` +
      'access-control-allow-methods access-control-allow-origin access-control-expose-headers ' +
      'access-control-max-age age date etag expires grpc-message grpc-status last-modified location server vary ' +
      'x-envoy-degraded x-envoy-immediate-health-check-fail x-envoy-ratelimited x-envoy-upstream-canary ' +
      'x-envoy-upstream-service-time'
    ).split(' '),
  ),
  trailers: new Set(['grpc-message', 'grpc-status']),
};
export type MapKind = keyof typeof INLINE;

export class HeaderMap {
  #entries: Header[] = [];
  readonly #kind: MapKind;

  constructor(kind: MapKind) {
    this.#kind = kind;
  }

  static from(kind: MapKind, headers: Iterable<Header>): HeaderMap {
    const map = new HeaderMap(kind);
    for (const [name, value] of headers) map.add(name, value);
    return map;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** As `byteSize` in header_map_impl.cc: the bytes of names and values, without separators. */
  get byteSize(): number {
    return this.#entries.reduce((sum, [name, value]) => sum + name.length + value.length, 0);
  }

  entries(): Header[] {
    return this.#entries.map(([name, value]) => [name, value]);
  }

  /** The headers without the pseudo-headers. */
  fields(): Header[] {
    return this.entries().filter(([name]) => !name.startsWith(':'));
  }

  /** `host` is another name of `:authority` (header_map_impl.cc). */
  #key(name: string): string {
    const key = name.toLowerCase();
    return key === 'host' && this.#kind === 'request' ? ':authority' : key;
  }

  /** Returns the first value. `getHeaderMapValue` in context.cc never joins several. */
  get(name: string): string | undefined {
    const key = this.#key(name);
    return this.#entries.find(([each]) => each === key)?.[1];
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  add(name: string, value: string): void {
    const key = this.#key(name);
    const present = INLINE[this.#kind].has(key) ? this.#entries.find(([each]) => each === key) : undefined;
    if (present) {
      if (value !== '') present[1] += present[1] === '' ? value : `,${value}`;
      return;
    }
    if (!key.startsWith(':')) {
      this.#entries.push([key, value]);
      return;
    }
    // Pseudo-headers stand before the others (`HeaderList::insert` in header_map_impl.h).
    const at = this.#entries.findIndex(([each]) => !each.startsWith(':'));
    this.#entries.splice(at < 0 ? this.#entries.length : at, 0, [key, value]);
  }

  set(name: string, value: string): void {
    this.remove(name);
    this.add(name, value);
  }

  /** Sets a header as Envoy's own code does: a header that is present keeps its place. */
  put(name: string, value: string): void {
    const present = this.#entries.find(([each]) => each === name);
    if (present) present[1] = value;
    else this.add(name, value);
  }

  remove(name: string): void {
    const key = this.#key(name);
    this.#entries = this.#entries.filter(([each]) => each !== key);
  }

  clear(): void {
    this.#entries = [];
  }
}

/** PROXY_WASM_HOST_PAIRS_MAX_BYTES and PROXY_WASM_HOST_PAIRS_MAX_COUNT in limits.h. */
export const PAIRS_MAX_BYTES = 1024 * 1024;
export const PAIRS_MAX_COUNT = 1024;

/**
 * Follows `marshalPairs` in pairs_util.cc. The layout is: count, (name length, value length)*,
 * (name NUL value NUL)*.
 */
export function marshalPairs(pairs: Header[]): Buffer {
  const size = pairs.reduce((sum, [name, value]) => sum + 8 + name.length + 1 + value.length + 1, 4);
  const out = Buffer.alloc(size);
  let at = out.writeUInt32LE(pairs.length, 0);
  for (const [name, value] of pairs) {
    at = out.writeUInt32LE(name.length, at);
    at = out.writeUInt32LE(value.length, at);
  }
  for (const text of pairs.flat()) at += out.write(text, at, 'latin1') + 1;
  return out;
}

/**
 * Follows `toPairs` in pairs_util.cc: what is malformed or exceeds a limit becomes an empty list,
 * without an error.
 */
export function unmarshalPairs(bytes: Buffer): Header[] {
  if (bytes.length > PAIRS_MAX_BYTES || bytes.length < 4) return [];
  const count = bytes.readUInt32LE(0);
  if (count > PAIRS_MAX_COUNT || 4 + count * 8 > bytes.length) return [];
  const pairs: Header[] = [];
  let at = 4 + count * 8;
  const take = (len: number): string | null => {
    const end = at + len;
    if (end + 1 > bytes.length || bytes[end] !== 0) return null;
    const text = bytes.toString('latin1', at, end);
    at = end + 1;
    return text;
  };
  for (let i = 0; i < count; i++) {
    const name = take(bytes.readUInt32LE(4 + i * 8));
    const value = name === null ? null : take(bytes.readUInt32LE(8 + i * 8));
    if (name === null || value === null) return [];
    pairs.push([name, value]);
  }
  return at === bytes.length ? pairs : [];
}
