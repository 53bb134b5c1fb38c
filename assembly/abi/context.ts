// What a filter implements: one root context per plugin configuration, one stream context per HTTP stream.

import { Block } from '../bytes/block';

export abstract class RootContext {
  constructor(readonly id: u32) {}

  /** The plugin's configuration (borrowed); false makes Envoy refuse it. */
  abstract configure(configuration: Block): bool;

  abstract createStream(id: u32): StreamContext;

  /** The timer that `setTick` asked for. No stream is the effective context. */
  abstract onTick(): void;
}

export abstract class StreamContext {
  constructor(readonly id: u32) {}

  abstract onRequestHeaders(endOfStream: bool): i32;
  abstract onRequestBody(size: u32, endOfStream: bool): i32;
  abstract onRequestTrailers(): i32;
  abstract onResponseHeaders(endOfStream: bool): i32;
  abstract onResponseBody(size: u32, endOfStream: bool): i32;
  abstract onResponseTrailers(): i32;

  /** The answer to a call; `headers` is 0 when none came. The stream is the effective context. */
  abstract onCallResponse(headers: u32, bodySize: u32): void;

  /** The stream is over; the access log is written next. Its heads and properties can still be used, not its bodies. */
  abstract onLog(): void;

  /** Nothing of the stream may be touched any more. */
  abstract onDone(): void;
}
