// The calls to prefill's cluster: the one that carries the prefill leg, and the one that has an
// endpoint looked up.

import { httpCall, randomBytes } from '../../abi/host';
import { PairReader, PairWriter } from '../../abi/pairs';
import { Status } from '../../abi/types';
import { Ascii, startsWithIgnoreCase } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { DECIMAL_BYTES, Text, UUID_BYTES } from '../../bytes/text';
import { Dialect } from '../../connectors/schema';
import { RANDOM_BYTES, RANK, Session } from '../../connectors/session';
import { ClusterType, Config } from '../config/config';
import {
  AUTHORITY,
  CONTENT_TYPE,
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

/**
 * The failures after which Envoy sends the leg again itself, within the timeout of the call. A
 * reply whose head has come and that then breaks off is not among them.
 */
export const RETRIED = new Ascii('connect-failure,refused-stream,reset,gateway-error');
/**
 * The same where the leg must not reach an engine twice: only failures at which the engine has not
 * seen the leg.
 */
const RETRIED_UNSEEN = new Ascii('connect-failure,refused-stream');

/** The engine lists its models from memory, so it needs no more time than this. */
const MODELS_TIMEOUT_MS: u32 = 10000;
const CHAT_PATH = new Ascii('/chat');
const MODELS = new Ascii('/models');

/** Whether a status says that no engine has answered. Envoy retries it as a gateway error. */
export function isUnavailable(status: i32): bool {
  return status >= 502 && status <= 504;
}

/**
 * Whether Envoy retries a leg that an engine may have seen. It sends the same bytes again, which is
 * no use where decode's leg already waits for the first ones, or where the bytes name a transfer.
 */
export function isRetriedSeen(config: Config): bool {
  return !config.concurrent && !config.connector.namesTransfer;
}

/**
 * Starts the call with the headers of the client's request and those of the session. All blocks are
 * borrowed. `id` is a request id where the client's request has none, and `endpoint` the endpoint
 * that the request names, if any. `retries` is how often Envoy may retry.
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
  const writer = legHeaders(config, headers, endpoint, session);
  if (id !== null) writer.add(REQUEST_ID.ptr, REQUEST_ID.len, id.ptr, id.len);
  const retried = isRetriedSeen(config) ? RETRIED : RETRIED_UNSEEN;
  return startCall(config, writer, body, retried, retries, config.timeoutMs);
}

/**
 * The headers of a call that asks an engine in the client's place: those of the client's request,
 * those of the session, and the endpoint. All are borrowed.
 */
export function legHeaders(
  config: Config,
  headers: Block,
  endpoint: Block | null,
  session: Session,
): PairWriter {
  const writer = new PairWriter();
  addHeaders(writer, config, headers, endpoint, session);
  for (let i = 0; i < session.headers.length; i++) {
    const own = session.headers[i];
    writer.add(own.name.ptr, own.name.len, own.value.ptr, own.value.len);
  }
  return writer;
}

/**
 * Adds the headers of the client's request that a call to prefill has, and the endpoint. All blocks
 * are borrowed. A call without a `session` has a method, a path and no body of its own.
 */
function addHeaders(
  writer: PairWriter,
  config: Config,
  headers: Block,
  endpoint: Block | null,
  session: Session | null,
): void {
  const reader = new PairReader(headers);
  const named = config.endpointHeader;
  const ranked = config.connector.schema.dialect == Dialect.Vllm;
  const target = config.clusterType == ClusterType.DynamicForwardProxy ? AUTHORITY : ORIGINAL_DST_HOST;
  while (reader.next()) {
    // Headers of this prefix make Envoy choose endpoints, retries and timeouts. A client must not
    // do that for the prefill leg.
    if (startsWithIgnoreCase(reader.namePtr, reader.nameLen, ENVOY_PREFIX)) continue;
    if (isOneHop(reader.namePtr, reader.nameLen)) continue;
    if (named !== null && reader.is(named)) continue;
    if (endpoint !== null && reader.is(target)) continue;
    if (ranked && reader.is(RANK)) continue;
    if (session !== null ? isReplaced(reader, session) : isOfBody(reader)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  if (endpoint !== null) writer.add(target.ptr, target.len, endpoint.ptr, endpoint.len);
}

/** Starts a call to prefill's cluster. Envoy may retry `retries` times what is `retried`. */
function startCall(
  config: Config,
  writer: PairWriter,
  body: Block,
  retried: Ascii,
  retries: i32,
  timeoutMs: u32,
): Status {
  const number = new Text(DECIMAL_BYTES).decimal(retries).end();
  if (retries > 0) {
    writer.addText(RETRY_ON, retried);
    writer.add(MAX_RETRIES.ptr, MAX_RETRIES.len, number.ptr, number.len);
  }
  const pairs = writer.build();
  const status = httpCall(config.cluster, pairs, body, timeoutMs);
  pairs.free();
  number.free();
  return status;
}

/**
 * Starts the call that asks prefill for its models. It has the headers of the client's request
 * (borrowed), as an engine may ask for a key here, too.
 */
export function startModels(config: Config, headers: Block, endpoint: Block | null): Status {
  const writer = new PairWriter();
  const path = modelsPath(headers);
  writer.addText(METHOD, GET);
  writer.add(PATH.ptr, PATH.len, path.ptr, path.len);
  addHeaders(writer, config, headers, endpoint, null);
  const nothing = Block.alloc(0);
  const timeoutMs = min(config.timeoutMs, MODELS_TIMEOUT_MS);
  const status = startCall(config, writer, nothing, RETRIED, config.retries, timeoutMs);
  nothing.free();
  path.free();
  return status;
}

/**
 * The path of the list of models beside the path of a request, `/v1/models` beside
 * `/v1/completions`, after any prefix of a gateway. The caller owns it.
 */
export function modelsPath(headers: Block): Block {
  const reader = new PairReader(headers);
  let ptr: usize = 0;
  let len: usize = 0;
  while (reader.next()) {
    if (!reader.is(PATH)) continue;
    ptr = reader.valuePtr;
    while (len < reader.valueLen && load<u8>(ptr + len) != 0x3f) len++;
  }
  len = lastSlash(ptr, len);
  const chat = len >= CHAT_PATH.len && CHAT_PATH.equals(ptr + len - CHAT_PATH.len, CHAT_PATH.len);
  if (chat) len -= CHAT_PATH.len;
  return new Text(len + MODELS.len).bytes(ptr, len).add(MODELS).end();
}

/** How many of the `len` bytes at `ptr` stand before the last slash. */
function lastSlash(ptr: usize, len: usize): usize {
  while (len > 0 && load<u8>(ptr + len - 1) != 0x2f) len--;
  return len > 0 ? len - 1 : 0;
}

/** Whether a header says what the client's request is, and not whose. */
function isOfBody(reader: PairReader): bool {
  return reader.is(METHOD) || reader.is(PATH) || reader.is(CONTENT_TYPE);
}

/**
 * Starts a call that makes a dynamic forward proxy look up the address of an endpoint (borrowed).
 * As long as the address is not known, a call with a body fails, while one without a body waits for
 * the address (Envoy's async_client_impl.cc).
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

/** Makes a random UUID, for a request that has no id. The caller owns it. */
export function newRequestId(): Block {
  const random = Block.alloc(RANDOM_BYTES);
  randomBytes(random.ptr, random.len);
  const id = new Text(UUID_BYTES).uuid(random.ptr).end();
  random.free();
  return id;
}
