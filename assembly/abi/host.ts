// Typed calls to the host. Each returns a status or says by its value that there is none; nothing throws.
// What the host hands over it puts into memory from our `malloc`: the returned block owns it.

import {
  proxy_close_stream,
  proxy_continue_stream,
  proxy_define_metric,
  proxy_get_buffer_bytes,
  proxy_get_current_time_nanoseconds,
  proxy_get_header_map_pairs,
  proxy_get_header_map_value,
  proxy_get_log_level,
  proxy_get_property,
  proxy_get_shared_data,
  proxy_http_call,
  proxy_increment_metric,
  proxy_log,
  proxy_record_metric,
  proxy_remove_header_map_value,
  proxy_replace_header_map_value,
  proxy_send_local_response,
  proxy_set_buffer_bytes,
  proxy_set_effective_context,
  proxy_set_property,
  proxy_set_tick_period_milliseconds,
  proxy_set_shared_data,
} from '@gcoredev/proxy-wasm-sdk-as/assembly/imports';
import { allocate } from '../bytes/arena';
import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { BufferKind, HeaderMapKind, LogLevel, MetricKind, Status, StreamKind } from './types';

/** No gRPC status: the local reply is plain HTTP. */
const NO_GRPC: u32 = 0xffffffff;
/** Past the end of every buffer. */
const BEHIND: u32 = 0xffffffff;

/** Where the host puts addresses, sizes and numbers that it returns. */
const out0: usize = memory.data(8, 8);
const out1: usize = memory.data(8, 8);
const out2: usize = memory.data(8, 8);

/** Memory for what the host hands over; exported to it. */
export function malloc(size: usize): usize {
  return allocate(size);
}

/** Whether lines of a level are written at all: ask before building one. */
export function logs(level: LogLevel): bool {
  return proxy_get_log_level(out0) == Status.Ok && load<u32>(out0) <= <u32>level;
}

/** Writes a line; build it only when `logs(level)`. */
export function log(level: LogLevel, text: string): void {
  const bytes = String.UTF8.encode(text);
  proxy_log(level, changetype<usize>(bytes), bytes.byteLength);
}

function handedOver(status: u32): Block | null {
  return status == Status.Ok ? Block.adopt(load<u32>(out0), load<u32>(out1)) : null;
}

function clearOut(): void {
  store<u32>(out0, 0);
  store<u32>(out1, 0);
}

/** Up to `len` bytes of a buffer from `start` on; null when there is no such buffer. */
export function bufferBytes(kind: BufferKind, start: u32, len: u32): Block | null {
  clearOut();
  return handedOver(proxy_get_buffer_bytes(kind, start, len, out0, out1));
}

/** Replaces a whole buffer; `ptr` is borrowed. */
export function replaceBuffer(kind: BufferKind, ptr: usize, len: usize): Status {
  return proxy_set_buffer_bytes(kind, 0, BEHIND, ptr, len);
}

/** Adds to the end of a buffer; `ptr` is borrowed. */
export function appendBuffer(kind: BufferKind, ptr: usize, len: usize): Status {
  return proxy_set_buffer_bytes(kind, BEHIND, 0, ptr, len);
}

/** First value of a header; null when there is none. */
export function header(map: HeaderMapKind, name: Ascii): Block | null {
  clearOut();
  return handedOver(proxy_get_header_map_value(map, name.ptr, name.len, out0, out1));
}

export function replaceHeader(map: HeaderMapKind, name: Ascii, ptr: usize, len: usize): Status {
  return proxy_replace_header_map_value(map, name.ptr, name.len, ptr, len);
}

export function removeHeader(map: HeaderMapKind, name: Ascii): Status {
  return proxy_remove_header_map_value(map, name.ptr, name.len);
}

/** All headers of a map in the ABI's encoding (see `pairs.ts`); null when there is no such map. */
export function headerPairs(map: HeaderMapKind): Block | null {
  clearOut();
  return handedOver(proxy_get_header_map_pairs(map, out0, out1));
}

/** Token of a call that `httpCall` has started. */
export function startedCall(): u32 {
  return load<u32>(out0);
}

/** Starts a call; everything is borrowed. On any status but `Ok` no answer will come. */
export function httpCall(cluster: Ascii, pairs: Block, body: Block, timeoutMs: u32): Status {
  clearOut();
  // No trailers: an empty list of pairs is a count of zero.
  store<u32>(out1, 0);
  return proxy_http_call(
    cluster.ptr,
    cluster.len,
    pairs.ptr,
    pairs.len,
    body.ptr,
    body.len,
    out1,
    4,
    timeoutMs,
    out0,
  );
}

/** Answers the client; `details` becomes %RESPONSE_CODE_DETAILS%. May run callbacks of this stream before it returns. */
export function sendLocalResponse(
  code: u32,
  details: Ascii,
  body: usize,
  bodyLen: usize,
  pairs: Block,
): Status {
  return proxy_send_local_response(
    code,
    details.ptr,
    details.len,
    body,
    bodyLen,
    pairs.ptr,
    pairs.len,
    NO_GRPC,
  );
}

/** Goes on with a stopped direction, after this callback has returned. */
export function continueStream(stream: StreamKind): Status {
  return proxy_continue_stream(stream);
}

/** Resets the stream. */
export function closeStream(stream: StreamKind): Status {
  return proxy_close_stream(stream);
}

/** Makes the calls that follow act on a stream; `BadArgument` when it is gone. */
export function setEffectiveContext(id: u32): Status {
  return proxy_set_effective_context(id);
}

/** Id of a metric; each call makes a new one in Envoy, so ask once. */
export function defineMetric(kind: MetricKind, name: string): u32 {
  const bytes = String.UTF8.encode(name);
  clearOut();
  proxy_define_metric(kind, changetype<usize>(bytes), bytes.byteLength, out0);
  return load<u32>(out0);
}

export function increment(metric: u32, by: u64): void {
  proxy_increment_metric(metric, by);
}

export function record(metric: u32, value: u64): void {
  proxy_record_metric(metric, value);
}

/** Sets filter state `wasm.<name>` of the stream. */
export function setProperty(name: Ascii, ptr: usize, len: usize): void {
  proxy_set_property(name.ptr, name.len, ptr, len);
}

/** An integer attribute of the stream; `path` has NUL between its parts. -1: there is none. */
export function integerProperty(path: Ascii): i64 {
  clearOut();
  const value = handedOver(proxy_get_property(path.ptr, path.len, out0, out1));
  if (value === null) return -1;
  const integer = value.len == 8 ? load<i64>(value.ptr) : -1;
  value.free();
  return integer;
}

/** Has the root context ticked every so many milliseconds. */
export function setTick(ms: u32): void {
  proxy_set_tick_period_milliseconds(ms);
}

/** Nanoseconds since the epoch. */
export function now(): u64 {
  proxy_get_current_time_nanoseconds(out0);
  return load<u64>(out0);
}

/** Stores a copy of `len` bytes under a key that all VMs of this `vm_id` see; everything is borrowed. */
export function setSharedData(key: usize, keyLen: usize, ptr: usize, len: usize): Status {
  // CAS 0: whatever is there is overwritten.
  return proxy_set_shared_data(key, keyLen, ptr, len, 0);
}

/** A copy of what is under a key; null when there is nothing. */
export function getSharedData(key: usize, keyLen: usize): Block | null {
  clearOut();
  return handedOver(proxy_get_shared_data(key, keyLen, out0, out1, out2));
}

// @ts-ignore: decorator
@external('wasi_snapshot_preview1', 'random_get')
declare function random_get(ptr: usize, len: usize): u32;

/** Fills `len` bytes at `ptr` with random ones. */
export function randomBytes(ptr: usize, len: usize): void {
  random_get(ptr, len);
}
