// Enumerations of the proxy-wasm ABI 0.2.1 (proxy-wasm/spec, abi-versions/v0.2.1).

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

/** What a header or trailer callback returns. */
export const enum HeadersStatus {
  Continue = 0,
  /** Holds the head; body callbacks go on, if the plugin has `allow_on_headers_stop_iteration`. */
  StopIteration = 1,
  /** Holds the head and what follows; of the body Envoy keeps what its buffer takes, and reads no more meanwhile. */
  StopAllIterationAndWatermark = 4,
}

/** What a body callback returns. */
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
  /** Written at the end of a body, they are made. */
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
