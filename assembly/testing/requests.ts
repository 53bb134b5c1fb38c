// Requests: a client's body read, and the legs that a connector makes of it.

import { Ascii } from '../bytes/ascii';
import { Connector, decodeLeg, prefillLeg, withoutClientParams } from '../connectors/connector';
import { RequestBody, Unfit } from '../connectors/request_body';
import { Checked } from '../connectors/protocol';
import { Rewrite } from '../connectors/rewrite';
import { Api } from '../connectors/schema';
import { RANDOM_BYTES, Session } from '../connectors/session';
import { connectorNamed } from '../connectors/table';
import { output } from './shared';

let connector: Connector = connectorNamed('nixl')!;
const session = new Session();
let request: RequestBody | null = null;
let requestPtr: usize = 0;
let requestLen: usize = 0;

/**
 * Sets the connector of the requests and legs that follow; false when there is none of that name.
 */
export function useConnector(ptr: usize, len: usize): bool {
  const named = connectorNamed(String.UTF8.decodeUnsafe(ptr, len));
  if (named !== null) connector = named;
  return named !== null;
}

/**
 * Sets what legs share, see `Session`. `random` is the address of 16 bytes; `host` is borrowed
 * until the next call.
 */
export function useSession(
  random: usize,
  host: usize,
  hostLen: usize,
  port: i32,
  rank: i32,
  engine: usize,
  engineLen: i32,
): void {
  memory.copy(session.randomPtr, random, RANDOM_BYTES);
  session.hostPtr = host;
  session.hostLen = hostLen;
  session.port = port;
  session.rank = rank;
  session.engineId = new StaticArray<u8>(engineLen);
  memory.copy(changetype<usize>(session.engineId), engine, engineLen);
}

/** Reads a request, whose bytes are borrowed until the next one; returns its `Unfit`. */
export function requestRead(api: Api, ptr: usize, len: usize): i32 {
  requestPtr = ptr;
  requestLen = len;
  const read = new RequestBody(api, connector.schema, ptr, len);
  request = read;
  return read.unfit == Unfit.No ? connector.judge(read) : read.unfit;
}

/**
 * What vLLM says of the request that was read: 0 when it takes it, 1 when it refuses it, and the
 * member and the message are in the output, 2 when only the engine can tell. `limit` is the length
 * of the model, 0 when it is not known, and `prompt` that of the prompt.
 */
export function requestCheck(limit: i32, prompt: i32): i32 {
  const checked = Checked.of(request!, requestPtr);
  const refused = checked.isRefused || (!checked.unsure && limit > 0 && checked.exceeds(limit, prompt));
  const text = String.UTF8.encode(checked.param + ': ' + checked.refusal);
  if (refused) output.write(changetype<usize>(text), text.byteLength);
  return refused ? 1 : checked.unsure ? 2 : 0;
}

export function requestChoices(): i32 {
  return request!.choices;
}

export function requestMaxTokens(): f64 {
  return <f64>request!.maxTokens;
}

export function requestHasParams(): bool {
  return request!.hasClientParams;
}

/**
 * Writes the prefill leg into the output. False when the leg's two ways of being written, or the
 * length that it announces, differ.
 */
export function writePrefillLeg(): bool {
  const right = written(prefillLeg(request!, connector, session));
  session.release();
  return right;
}

/** Writes the prefill leg's own headers into the output, one a line. */
export function writePrefillHeaders(): void {
  prefillLeg(request!, connector, session);
  const colon = new Ascii(':');
  const feed = new Ascii('\n');
  for (let i = 0; i < session.headers.length; i++) {
    const header = session.headers[i];
    output.write(header.name.ptr, header.name.len);
    output.write(colon.ptr, colon.len);
    output.write(header.value.ptr, header.value.len);
    output.write(feed.ptr, feed.len);
  }
  session.release();
}

/** Writes the decode leg into the output; returns as `writePrefillLeg` does. */
export function writeDecodeLeg(params: usize, paramsLen: usize, promptStart: f64): bool {
  session.paramsPtr = params;
  session.paramsLen = paramsLen;
  const right = written(decodeLeg(request!, connector, session, <i64>promptStart));
  session.release();
  return right;
}

/** Writes the request without what only a connector may set; returns as `writePrefillLeg` does. */
export function writeLocal(): bool {
  return written(withoutClientParams(request!));
}

/** Writes a leg into the output, and again into a block; true when both and `lengthOf` agree. */
function written(leg: Rewrite): bool {
  const before = output.len;
  leg.write(requestPtr, requestLen, output);
  const len = output.len - before;
  const block = leg.toBlock(requestPtr, requestLen);
  const same = block.len == len && memory.compare(block.ptr, output.ptr + before, len) == 0;
  block.free();
  return same && leg.lengthOf(requestPtr, requestLen) == len;
}
