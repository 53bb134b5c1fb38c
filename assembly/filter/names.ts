// The names and values of headers that the filter reads or writes, as bytes.

import { Ascii, startsWithIgnoreCase } from '../bytes/ascii';

export const AUTHORITY = new Ascii(':authority');
export const METHOD = new Ascii(':method');
export const PATH = new Ascii(':path');
export const STATUS = new Ascii(':status');
export const ACCEPT_ENCODING = new Ascii('accept-encoding');
export const CONTENT_ENCODING = new Ascii('content-encoding');
export const CONTENT_LENGTH = new Ascii('content-length');
export const CONTENT_TYPE = new Ascii('content-type');
export const REQUEST_ID = new Ascii('x-request-id');
export const ENVOY_PREFIX = new Ascii('x-envoy-');
export const MAX_RETRIES = new Ascii('x-envoy-max-retries');
export const ORIGINAL_DST_HOST = new Ascii('x-envoy-original-dst-host');
export const RETRY_ON = new Ascii('x-envoy-retry-on');
/** The header, and the trailer, that tells the client the outcome. */
export const ROUTED_EXPERTS = new Ascii('x-routed-experts');
/**
 * The property that the filter sets to the outcome. Envoy has it as filter state
 * `wasm.routed_experts`.
 */
export const OUTCOME_PROPERTY = new Ascii('routed_experts');
/** The same for what decode has told of its cache: `wasm.routed_experts_decode`. */
export const DECODE_PROPERTY = new Ascii('routed_experts_decode');

export const GET = new Ascii('GET');
export const POST = new Ascii('POST');
export const PUT = new Ascii('PUT');
/** A path that every engine answers without work. */
export const HEALTH = new Ascii('/health');
/** The path at which a Mooncake bootstrap server names its ranks. */
export const QUERY = new Ascii('/query');
export const EVENT_STREAM = new Ascii('text/event-stream');
export const IDENTITY = new Ascii('identity');
export const APPLICATION_JSON = new Ascii('application/json');

/**
 * Headers that belong to one connection or to one body (RFC 9110, section 7.6.1). A message that
 * the filter makes out of another one does not get them.
 */
const ONE_HOP: Ascii[] = [
  ACCEPT_ENCODING,
  CONTENT_LENGTH,
  new Ascii('connection'),
  new Ascii('expect'),
  new Ascii('host'),
  new Ascii('keep-alive'),
  new Ascii('proxy-authenticate'),
  new Ascii('proxy-authorization'),
  new Ascii('proxy-connection'),
  new Ascii('te'),
  new Ascii('trailer'),
  new Ascii('transfer-encoding'),
  new Ascii('upgrade'),
];

/** Other headers that an endpoint header cannot be, because the legs or the client need them. */
const OURS: Ascii[] = [
  CONTENT_ENCODING,
  CONTENT_TYPE,
  REQUEST_ID,
  ROUTED_EXPERTS,
  new Ascii('authorization'),
];

/**
 * Whether a header belongs to one connection or body. Its name is in lower case, as Envoy has it.
 */
export function isOneHop(ptr: usize, len: usize): bool {
  for (let i = 0; i < ONE_HOP.length; i++) if (ONE_HOP[i].equals(ptr, len)) return true;
  return false;
}

/**
 * Whether a header, its name in lower case, already has a meaning, so that it cannot be the
 * endpoint header.
 */
export function isReserved(ptr: usize, len: usize): bool {
  for (let i = 0; i < OURS.length; i++) if (OURS[i].equals(ptr, len)) return true;
  return isOneHop(ptr, len) || startsWithIgnoreCase(ptr, len, ENVOY_PREFIX);
}
