// Enumerations of the proxy-wasm ABI 0.2.1 (proxy-wasm/spec, abi-versions/v0.2.1), as far as the
// filter uses them.

export const enum Status {
  Ok = 0,
  NotFound = 1,
  BadArgument = 2,
  InternalFailure = 10,
}

export const enum LogLevel {
  Trace = 0,
  Debug = 1,
  Info = 2,
  Warn = 3,
  Error = 4,
  Critical = 5,
}

/** What a callback for a head or for trailers returns. */
export const enum HeadersStatus {
  Continue = 0,
  /**
   * Envoy holds the head and goes on with body callbacks, if the plugin's configuration has
   * `allow_on_headers_stop_iteration`; without it, this is `StopAllIterationAndWatermark`.
   */
  StopIteration = 1,
  /**
   * Envoy holds the head and what follows. It keeps as much of the body as its buffer limit allows,
   * and reads no more until the stream is continued.
   */
  StopAllIterationAndWatermark = 4,
}

/** What a callback for a body returns. */
export const enum BodyStatus {
  Continue = 0,
  /** Envoy keeps the bytes, up to its buffer limit. */
  StopIterationAndBuffer = 1,
  /** Envoy drops the bytes. */
  StopIterationNoBuffer = 3,
}

export const enum BufferKind {
  RequestBody = 0,
  ResponseBody = 1,
  CallResponseBody = 4,
  PluginConfiguration = 7,
}

export const enum HeaderMapKind {
  RequestHeaders = 0,
  RequestTrailers = 1,
  ResponseHeaders = 2,
  /**
   * Envoy makes the trailers of a response that has none when a header is set here in the callback
   * for the end of its body.
   */
  ResponseTrailers = 3,
  CallResponseHeaders = 6,
}

export const enum StreamKind {
  Request = 0,
  Response = 1,
}

export const enum MetricKind {
  Counter = 0,
  Gauge = 1,
  Histogram = 2,
}
