// The prefill leg: the call that carries it.

import { httpCall, randomBytes } from '../../abi/host';
import { PairReader, PairWriter } from '../../abi/pairs';
import { Status } from '../../abi/types';
import { Ascii, startsWithIgnoreCase } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { DECIMAL_BYTES, Text, UUID_BYTES } from '../../bytes/text';
import { RANDOM_BYTES, Session } from '../../connectors/session';
import { ClusterType, Config } from '../config/config';
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
} from '../names';

/** What Envoy tries again by itself, within the call's timeout. A reply whose head has come is not among it. */
export const RETRIED = new Ascii('connect-failure,refused-stream,reset,gateway-error');
/** The same where the other leg waits for this one: only what the engine has not begun. */
const RETRIED_UNSEEN = new Ascii('connect-failure,refused-stream');

/** Whether Envoy has tried again what ended in this status, if it was to try again at all. */
export function isRetriedByEnvoy(status: i32): bool {
  return status >= 502 && status <= 504;
}

/**
 * Starts the call with the headers of the client's request, and those of the session. All blocks are borrowed; `id` is
 * the request's id where the client's request had none, `endpoint` the one that the request names, where it does;
 * `retries` are Envoy's.
 */
export function startPrefill(
  config: Config,
  headers: Block,
  body: Block,
  id: Block | null,
  endpoint: Block | null,
  session: Session,
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
    if (isReplaced(reader, session)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  if (id !== null) writer.add(REQUEST_ID.ptr, REQUEST_ID.len, id.ptr, id.len);
  if (endpoint !== null) writer.add(target.ptr, target.len, endpoint.ptr, endpoint.len);
  for (let i = 0; i < session.headers.length; i++) {
    const own = session.headers[i];
    writer.add(own.name.ptr, own.name.len, own.value.ptr, own.value.len);
  }
  const number = new Text(DECIMAL_BYTES).decimal(retries).end();
  if (retries > 0) {
    writer.addText(RETRY_ON, config.connector.concurrent ? RETRIED_UNSEEN : RETRIED);
    writer.add(MAX_RETRIES.ptr, MAX_RETRIES.len, number.ptr, number.len);
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

function isReplaced(reader: PairReader, session: Session): bool {
  for (let i = 0; i < session.headers.length; i++) if (reader.is(session.headers[i].name)) return true;
  return false;
}

/** A random UUID for a request that has no id. */
export function newRequestId(): Block {
  const random = Block.alloc(RANDOM_BYTES);
  randomBytes(random.ptr, random.len);
  const id = new Text(UUID_BYTES).uuid(random.ptr).end();
  random.free();
  return id;
}
