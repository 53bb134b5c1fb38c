// What a filter implements: one root context for each plugin configuration, one stream context for
// each HTTP stream. The host calls it through dispatch.ts.

import { Block } from '../bytes/block';

/** One plugin configuration of this VM; `id` is the host's. */
export abstract class RootContext {
  constructor(readonly id: u32) {}

  /** Takes the plugin's configuration, which is borrowed; false makes Envoy refuse it. */
  abstract configure(configuration: Block): bool;

  /** The context of a new stream below this root context. */
  abstract createStream(id: u32): StreamContext;

  /** The timer that `setTick` has set is due. No stream is the effective context. */
  abstract onTick(): void;

  /**
   * A call of this root context, which it knows by its token, has ended; the rest is as for a
   * stream.
   */
  abstract onCallResponse(token: u32, headers: u32, bodySize: u32): void;

  /**
   * Called when no stream uses the configuration any more. The root context gives back what it
   * owns, and no answer to a call of its own will come.
   */
  abstract onDelete(): void;
}

/**
 * One HTTP stream. The callbacks of its two directions return what Envoy does with the head or the
 * bytes: a `HeadersStatus` for heads and trailers, a `BodyStatus` for bodies, of which `size` bytes
 * are in the buffer.
 */
export abstract class StreamContext {
  constructor(readonly id: u32) {}

  abstract onRequestHeaders(endOfStream: bool): i32;
  abstract onRequestBody(size: u32, endOfStream: bool): i32;
  abstract onRequestTrailers(): i32;
  abstract onResponseHeaders(endOfStream: bool): i32;
  abstract onResponseBody(size: u32, endOfStream: bool): i32;
  abstract onResponseTrailers(): i32;

  /**
   * The call of this stream with the token `call` has ended with `headers` headers and `bodySize`
   * bytes; no headers mean that no answer came. The stream is the effective context.
   */
  abstract onCallResponse(call: u32, headers: u32, bodySize: u32): void;

  /**
   * The stream is over, and Envoy writes the access log next. Heads and properties can still be
   * read and set, bodies can't.
   */
  abstract onLog(): void;

  /**
   * The last callback of the stream: it gives back what it owns. No host call may act on the stream
   * after it.
   */
  abstract onDone(): void;
}
