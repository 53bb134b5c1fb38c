// Finds the context for the host's context ids and call tokens. An id that is not known is no
// error: Envoy has calls for streams that are gone.

import { Block } from '../bytes/block';
import { RootContext, StreamContext } from './context';
import { bufferBytes, setEffectiveContext } from './host';
import { BodyStatus, BufferKind, HeadersStatus, Status } from './types';

/** What makes a root context; null before `onCreateRoot`. */
let createRoot: ((id: u32) => RootContext) | null = null;
/** Contexts by id. A stream leaves when it is done. */
const roots = new Map<u32, RootContext>();
const streams = new Map<u32, StreamContext>();
/** By the token of a call in flight, the id of the stream that waits for it. */
const calls = new Map<u32, u32>();
/** The same for calls of root contexts. */
const rootCalls = new Map<u32, u32>();

/** Registers what makes a root context. Called once, before the host calls anything. */
export function onCreateRoot(create: (id: u32) => RootContext): void {
  createRoot = create;
}

/** Registers the stream that gets the answer to a call; `token` is that of `startedCall`. */
export function expectCall(token: u32, stream: u32): void {
  calls.set(token, stream);
}

/** Registers the root context that gets the answer to a call; `token` is that of `startedCall`. */
export function expectRootCall(token: u32, root: u32): void {
  rootCalls.set(token, root);
}

/** Takes the registration back, when no answer will come. */
export function forgetRootCall(token: u32): void {
  rootCalls.delete(token);
}

/** The host has a new context: a root context when `parent` is 0, else a stream. */
export function contextCreate(id: u32, parent: u32): void {
  if (parent == 0) {
    const create = createRoot;
    if (create !== null) roots.set(id, create(id));
    return;
  }
  if (roots.has(parent)) streams.set(id, roots.get(parent).createStream(id));
}

/**
 * The host has a configuration of `size` bytes for a root context; returns whether it is accepted.
 */
export function configure(root: u32, size: u32): bool {
  if (!roots.has(root)) return false;
  const read = bufferBytes(BufferKind.PluginConfiguration, 0, size);
  const configuration = read === null ? Block.alloc(0) : read;
  const accepted = roots.get(root).configure(configuration);
  configuration.free();
  return accepted;
}

/** The timer of a root context is due. */
export function tick(root: u32): void {
  if (roots.has(root)) roots.get(root).onTick();
}

/** Makes the host calls that follow act on a stream; false when the stream is gone. */
export function enterStream(id: u32): bool {
  return streams.has(id) && setEffectiveContext(id) == Status.Ok;
}

/** The host is about to log a stream, which is over. */
export function contextLog(id: u32): void {
  if (streams.has(id)) streams.get(id).onLog();
}

/**
 * A stream is over, and is forgotten now rather than when its context is deleted: Envoy deletes it
 * later, and the answer to a call that comes in between must not touch a stream that is gone.
 */
export function contextDone(id: u32): void {
  if (!streams.has(id)) return;
  const stream = streams.get(id);
  streams.delete(id);
  stream.onDone();
}

/** The host has deleted a context. */
export function contextDelete(id: u32): void {
  contextDone(id);
  if (!roots.has(id)) return;
  const root = roots.get(id);
  roots.delete(id);
  root.onDelete();
}

export function requestHeaders(id: u32, endOfStream: bool): i32 {
  return streams.has(id) ? streams.get(id).onRequestHeaders(endOfStream) : HeadersStatus.Continue;
}

export function requestBody(id: u32, size: u32, endOfStream: bool): i32 {
  return streams.has(id) ? streams.get(id).onRequestBody(size, endOfStream) : BodyStatus.Continue;
}

export function requestTrailers(id: u32): i32 {
  return streams.has(id) ? streams.get(id).onRequestTrailers() : HeadersStatus.Continue;
}

export function responseHeaders(id: u32, endOfStream: bool): i32 {
  return streams.has(id) ? streams.get(id).onResponseHeaders(endOfStream) : HeadersStatus.Continue;
}

export function responseBody(id: u32, size: u32, endOfStream: bool): i32 {
  return streams.has(id) ? streams.get(id).onResponseBody(size, endOfStream) : BodyStatus.Continue;
}

export function responseTrailers(id: u32): i32 {
  return streams.has(id) ? streams.get(id).onResponseTrailers() : HeadersStatus.Continue;
}

/**
 * The answer to a call has come. Envoy answers calls of streams that are gone, too; such an answer
 * is dropped unread.
 */
export function callResponse(token: u32, headers: u32, bodySize: u32): void {
  if (rootCalls.has(token)) {
    const root = rootCalls.get(token);
    rootCalls.delete(token);
    if (roots.has(root)) roots.get(root).onCallResponse(token, headers, bodySize);
    return;
  }
  if (!calls.has(token)) return;
  const id = calls.get(token);
  calls.delete(token);
  if (!streams.has(id) || setEffectiveContext(id) != Status.Ok) return;
  streams.get(id).onCallResponse(token, headers, bodySize);
}
