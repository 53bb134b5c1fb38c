// The prefill leg: the call that carries it.

import { httpCall, randomBytes } from '../abi/host';
import { PairReader, PairWriter } from '../abi/pairs';
import { Status } from '../abi/types';
import { Ascii, startsWithIgnoreCase, writeDecimal } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { ClusterType, Config } from './config';
import {
  AUTHORITY,
  ENVOY_PREFIX,
  GET,
  HEALTH,
  MAX_RETRIES,
  METHOD,
  ORIGINAL_DST_HOST,
  PATH,
  REQUEST_ID,
  RETRY_ON,
  isOneHop,
} from './names';

const UUID_BYTES: usize = 36;
const DECIMAL_BYTES: usize = 20;

/** What Envoy tries again by itself, within the call's timeout. A reply whose head has come is not among it. */
const RETRIED = new Ascii('connect-failure,refused-stream,reset,gateway-error');

/** Whether Envoy has tried again what ended in this status, if it was to try again at all. */
export function isRetriedByEnvoy(status: i32): bool {
  return status >= 502 && status <= 504;
}

/**
 * Starts the call with the headers of the client's request. All blocks are borrowed; `id` is the request's id where the
 * client's request had none, `endpoint` the one that the request names, where it does; `retries` are Envoy's.
 */
export function startPrefill(
  config: Config,
  headers: Block,
  body: Block,
  id: Block | null,
  endpoint: Block | null,
  retries: i32,
): Status {
  const writer = new PairWriter();
  const reader = new PairReader(headers);
  const named = config.endpointHeader;
  const target = config.clusterType == ClusterType.DynamicForwardProxy ? AUTHORITY : ORIGINAL_DST_HOST;
  while (reader.next()) {
    // Envoy's own headers choose endpoints, retries and timeouts: a client must not, for this leg.
    if (startsWithIgnoreCase(reader.namePtr, reader.nameLen, ENVOY_PREFIX)) continue;
    if (isOneHop(reader.namePtr, reader.nameLen)) continue;
    if (named !== null && reader.is(named)) continue;
    if (endpoint !== null && reader.is(target)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  if (id !== null) writer.add(REQUEST_ID.ptr, REQUEST_ID.len, id.ptr, id.len);
  if (endpoint !== null) writer.add(target.ptr, target.len, endpoint.ptr, endpoint.len);
  const number = Block.alloc(DECIMAL_BYTES);
  if (retries > 0) {
    writer.addText(RETRY_ON, RETRIED);
    writer.add(MAX_RETRIES.ptr, MAX_RETRIES.len, number.ptr, writeDecimal(retries, number.ptr));
  }
  const pairs = writer.build();
  const status = httpCall(config.cluster, pairs, body, config.timeoutMs);
  pairs.free();
  number.free();
  return status;
}

/**
 * Starts a call that has a dynamic forward proxy look the endpoint (borrowed) up: a call with a body fails as long as
 * the address is not known (Envoy's async_client_impl.cc), one without waits for it.
 */
export function startLookup(config: Config, endpoint: Block): Status {
  const writer = new PairWriter();
  writer.addText(METHOD, GET);
  writer.addText(PATH, HEALTH);
  writer.add(AUTHORITY.ptr, AUTHORITY.len, endpoint.ptr, endpoint.len);
  const pairs = writer.build();
  const nothing = Block.alloc(0);
  const status = httpCall(config.cluster, pairs, nothing, config.timeoutMs);
  pairs.free();
  nothing.free();
  return status;
}

/** A random UUID (RFC 9562, version 4) for a request that has no id, as text. */
export function newRequestId(): Block {
  const id = Block.alloc(UUID_BYTES);
  const random = Block.alloc(16);
  randomBytes(random.ptr, 16);
  store<u8>(random.ptr, (load<u8>(random.ptr, 6) & 0x0f) | 0x40, 6);
  store<u8>(random.ptr, (load<u8>(random.ptr, 8) & 0x3f) | 0x80, 8);
  let at = id.ptr;
  for (let i: usize = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) store<u8>(at++, 0x2d);
    const byte = load<u8>(random.ptr + i);
    store<u8>(at++, hexDigit(byte >> 4));
    store<u8>(at++, hexDigit(byte & 15));
  }
  random.free();
  return id;
}

function hexDigit(value: u8): u8 {
  return value < 10 ? 0x30 + value : 0x57 + value;
}
