/** Header maps and their wire form between guest and host. Strings hold one byte per character (latin1). */

import type { Header } from '../scenario.ts';

/** Adding one of these again appends to its value (header_map_impl.cc insertByKey: the inline headers). */
const INLINE = new Set(
  (
    ':authority :method :path :protocol :scheme :status accept accept-encoding authorization cache-control ' +
    'connection content-encoding content-length content-type cookie etag expect expires forwarded grpc-message ' +
    'grpc-status grpc-timeout host keep-alive last-modified location proxy-connection proxy-status referer server ' +
    'te transfer-encoding upgrade user-agent vary via x-envoy-attempt-count x-envoy-expected-rq-timeout-ms ' +
    'x-envoy-external-address x-envoy-internal x-envoy-max-retries x-envoy-original-path x-envoy-retry-on ' +
    'x-envoy-upstream-rq-timeout-ms x-envoy-upstream-service-time x-forwarded-for x-forwarded-host ' +
    'x-forwarded-port x-forwarded-proto x-request-id'
  ).split(' '),
);

export class HeaderMap {
  #entries: Header[] = [];

  static from(headers: Iterable<Header>): HeaderMap {
    const map = new HeaderMap();
    for (const [name, value] of headers) map.add(name, value);
    return map;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** header_map_impl.cc byteSize: names and values, no separators. */
  get byteSize(): number {
    return this.#entries.reduce((sum, [name, value]) => sum + name.length + value.length, 0);
  }

  entries(): Header[] {
    return this.#entries.map(([name, value]) => [name, value]);
  }

  /** Without pseudo headers. */
  fields(): Header[] {
    return this.entries().filter(([name]) => !name.startsWith(':'));
  }

  /** The first value; context.cc getHeaderMapValue never joins the others. */
  get(name: string): string | undefined {
    const key = name.toLowerCase();
    return this.#entries.find(([each]) => each === key)?.[1];
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  add(name: string, value: string): void {
    const key = name.toLowerCase();
    const present = INLINE.has(key) ? this.#entries.find(([each]) => each === key) : undefined;
    if (present) {
      if (value !== '') present[1] += present[1] === '' ? value : (key === 'cookie' ? '; ' : ',') + value;
      return;
    }
    if (!key.startsWith(':')) {
      this.#entries.push([key, value]);
      return;
    }
    // Pseudo headers stand before the others (header_map_impl.h HeaderList::insert).
    const at = this.#entries.findIndex(([each]) => !each.startsWith(':'));
    this.#entries.splice(at < 0 ? this.#entries.length : at, 0, [key, value]);
  }

  set(name: string, value: string): void {
    this.remove(name);
    this.add(name, value);
  }

  remove(name: string): void {
    const key = name.toLowerCase();
    this.#entries = this.#entries.filter(([each]) => each !== key);
  }

  clear(): void {
    this.#entries = [];
  }
}

/** limits.h PROXY_WASM_HOST_PAIRS_MAX_BYTES and _COUNT. */
export const PAIRS_MAX_BYTES = 1024 * 1024;
export const PAIRS_MAX_COUNT = 1024;

/** pairs_util.cc marshalPairs: count, (name length, value length)*, (name NUL value NUL)*. */
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

/** pairs_util.cc toPairs: whatever is malformed or over the limits is an empty list, without an error. */
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
