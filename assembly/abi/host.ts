// Typed calls to the host. Each returns a status, or a value that says that there is none; nothing
// throws. What the host hands over lies in memory that it took from our `malloc`, and the block
// that is returned owns it.

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

/** The gRPC status that stands for none: the local reply is plain HTTP. */
const NO_GRPC: u32 = 0xffffffff;
/** An offset or a length past the end of every buffer. */
const BEHIND: u32 = 0xffffffff;

/** Where the host writes the addresses, sizes and numbers that a call returns. */
const out0: usize = memory.data(8, 8);
const out1: usize = memory.data(8, 8);
const out2: usize = memory.data(8, 8);

/** Memory for what the host hands over. The host calls this by its exported name. */
export function malloc(size: usize): usize {
  return allocate(size);
}

/** Whether lines of this level are written at all: to be asked before one is built. */
export function logs(level: LogLevel): bool {
  return proxy_get_log_level(out0) == Status.Ok && load<u32>(out0) <= <u32>level;
}

/** Writes a line to Envoy's log. It allocates, so it is for lines that `logs` has asked for. */
export function log(level: LogLevel, text: string): void {
  const bytes = String.UTF8.encode(text);
  proxy_log(level, changetype<usize>(bytes), bytes.byteLength);
}

/**
 * What a call with this status has handed over through `out0` and `out1` (owned); null when it
 * failed.
 */
function handedOver(status: u32): Block | null {
  return status == Status.Ok ? Block.adopt(load<u32>(out0), load<u32>(out1)) : null;
}

/** A host that returns nothing may leave the places of results as they were. */
function clearOut(): void {
  store<u32>(out0, 0);
  store<u32>(out1, 0);
}

/**
 * A copy (owned) of up to `len` bytes of a buffer from `start` on; null when there is no such
 * buffer.
 */
export function bufferBytes(kind: BufferKind, start: u32, len: u32): Block | null {
  clearOut();
  return handedOver(proxy_get_buffer_bytes(kind, start, len, out0, out1));
}

/** Replaces all bytes of a buffer by the `len` bytes at `ptr`, which are borrowed. */
export function replaceBuffer(kind: BufferKind, ptr: usize, len: usize): Status {
  return proxy_set_buffer_bytes(kind, 0, BEHIND, ptr, len);
}

/** Adds the `len` bytes at `ptr`, which are borrowed, to the end of a buffer. */
export function appendBuffer(kind: BufferKind, ptr: usize, len: usize): Status {
  return proxy_set_buffer_bytes(kind, BEHIND, 0, ptr, len);
}

/** The first value of a header (owned); null when there is none. */
export function header(map: HeaderMapKind, name: Ascii): Block | null {
  clearOut();
  return handedOver(proxy_get_header_map_value(map, name.ptr, name.len, out0, out1));
}

/** Sets a header to the `len` bytes at `ptr` (borrowed), whether it is there or not. */
export function replaceHeader(map: HeaderMapKind, name: Ascii, ptr: usize, len: usize): Status {
  return proxy_replace_header_map_value(map, name.ptr, name.len, ptr, len);
}

export function removeHeader(map: HeaderMapKind, name: Ascii): Status {
  return proxy_remove_header_map_value(map, name.ptr, name.len);
}

/**
 * All headers of a map (owned) in the ABI's encoding, see `pairs.ts`; null when there is no such
 * map.
 */
export function headerPairs(map: HeaderMapKind): Block | null {
  clearOut();
  return handedOver(proxy_get_header_map_pairs(map, out0, out1));
}

/** The token of the call that `httpCall` has just started: valid until the next host call. */
export function startedCall(): u32 {
  return load<u32>(out0);
}

/**
 * Starts an HTTP call to a cluster; everything is borrowed. With any status but `Ok` no answer will
 * come.
 */
export function httpCall(cluster: Ascii, pairs: Block, body: Block, timeoutMs: u32): Status {
  clearOut();
  // There are no trailers: an empty list of pairs is the count zero.
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

/**
 * Answers the client in place of the upstream. `details` becomes `%RESPONSE_CODE_DETAILS%`;
 * everything is borrowed. Envoy may run callbacks of this stream before it returns.
 */
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

/** Makes a stopped direction go on, once the callback that calls this has returned. */
export function continueStream(stream: StreamKind): Status {
  return proxy_continue_stream(stream);
}

/** Resets the stream. */
export function closeStream(stream: StreamKind): Status {
  return proxy_close_stream(stream);
}

/** Makes the host calls that follow act on a stream; `BadArgument` when it is gone. */
export function setEffectiveContext(id: u32): Status {
  return proxy_set_effective_context(id);
}

/** The id of a metric. Envoy makes a new id with each call, so each name is asked for once. */
export function defineMetric(kind: MetricKind, name: string): u32 {
  const bytes = String.UTF8.encode(name);
  clearOut();
  proxy_define_metric(kind, changetype<usize>(bytes), bytes.byteLength, out0);
  return load<u32>(out0);
}

/** Adds `by` to a counter or a gauge. */
export function increment(metric: u32, by: u64): void {
  proxy_increment_metric(metric, by);
}

/** Sets a gauge, or adds a value to a histogram. */
export function record(metric: u32, value: u64): void {
  proxy_record_metric(metric, value);
}

/** Sets the stream's filter state `wasm.<name>` to the `len` bytes at `ptr`, which are borrowed. */
export function setProperty(name: Ascii, ptr: usize, len: usize): void {
  proxy_set_property(name.ptr, name.len, ptr, len);
}

/** An integer attribute of the stream; -1 when there is none. `path` has NUL between its parts. */
export function integerProperty(path: Ascii): i64 {
  clearOut();
  const value = handedOver(proxy_get_property(path.ptr, path.len, out0, out1));
  if (value === null) return -1;
  const integer = value.len == 8 ? load<i64>(value.ptr) : -1;
  value.free();
  return integer;
}

/** Has the host call `onTick` of the root context every `ms` milliseconds. */
export function setTick(ms: u32): void {
  proxy_set_tick_period_milliseconds(ms);
}

/** Nanoseconds since the Unix epoch. */
export function now(): u64 {
  proxy_get_current_time_nanoseconds(out0);
  return load<u64>(out0);
}

/**
 * Stores a copy of the `len` bytes at `ptr` under a key that all VMs with this `vm_id` share;
 * everything is borrowed.
 */
export function setSharedData(key: usize, keyLen: usize, ptr: usize, len: usize): Status {
  // The last argument is the version to replace (compare and swap); 0 replaces any.
  return proxy_set_shared_data(key, keyLen, ptr, len, 0);
}

/** A copy (owned) of what is stored under a key; null when there is nothing. */
export function getSharedData(key: usize, keyLen: usize): Block | null {
  clearOut();
  return handedOver(proxy_get_shared_data(key, keyLen, out0, out1, out2));
}

// @ts-ignore: decorator
@external('wasi_snapshot_preview1', 'random_get')
declare function random_get(ptr: usize, len: usize): u32;

/** Fills the `len` bytes at `ptr` with random ones. */
export function randomBytes(ptr: usize, len: usize): void {
  random_get(ptr, len);
}
