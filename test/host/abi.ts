/**
 * The numbers of proxy-wasm ABI 0.2.1, as in proxy-wasm-cpp-host,
 * include/proxy-wasm/wasm_api_impl.h and proxy_wasm_common.h.
 */

export const WasmResult = {
  Ok: 0,
  NotFound: 1,
  BadArgument: 2,
  InvalidMemoryAccess: 6,
  Empty: 7,
  CasMismatch: 8,
  InternalFailure: 10,
  BrokenConnection: 11,
  Unimplemented: 12,
} as const;

export const MapType = {
  RequestHeaders: 0,
  RequestTrailers: 1,
  ResponseHeaders: 2,
  ResponseTrailers: 3,
  HttpCallResponseHeaders: 6,
  HttpCallResponseTrailers: 7,
  Max: 7,
} as const;

export const BufferType = {
  HttpRequestBody: 0,
  HttpResponseBody: 1,
  NetworkDownstreamData: 2,
  NetworkUpstreamData: 3,
  HttpCallResponseBody: 4,
  GrpcReceiveBuffer: 5,
  VmConfiguration: 6,
  PluginConfiguration: 7,
  CallData: 8,
  Max: 8,
} as const;

export const StreamType = { Request: 0, Response: 1, Downstream: 2, Upstream: 3, Max: 3 } as const;

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'critical'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const HeadersStatus = {
  Continue: 0,
  StopIteration: 1,
  StopAllIterationAndBuffer: 3,
  StopAllIterationAndWatermark: 4,
} as const;

export const DataStatus = {
  Continue: 0,
  StopIterationAndBuffer: 1,
  StopIterationAndWatermark: 2,
  StopIterationNoBuffer: 3,
} as const;

export const TrailersStatus = { Continue: 0, StopIteration: 1 } as const;

/**
 * Thrown when the guest uses the host in a way that kills Envoy or corrupts its connection to the
 * client. The emulator never catches it, so the test fails.
 */
export class EnvoyCrash extends Error {
  constructor(why: string, what = 'SIGSEGV in Envoy') {
    super(`${what}: ${why}`);
    this.name = 'EnvoyCrash';
  }
}

/** Thrown when Envoy would refuse the module or its configuration. */
export class LoadError extends Error {
  constructor(why: string) {
    super(why);
    this.name = 'LoadError';
  }
}
