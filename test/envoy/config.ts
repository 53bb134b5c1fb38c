/**
 * The configuration of the Envoy that runs scenarios: a bootstrap, and one listener for each
 * configuration of the filter.
 */

import { prefillName, type Protocol } from '../scenario.ts';

export const PROTOCOLS: Protocol[] = ['http1', 'http2'];
export const STAT_PREFIX = 'ingress';

/** Names of clusters, by the leg that they serve. Nothing listens at the port of `down`. */
export type Leg = 'prefill' | 'decode' | 'bootstrap' | 'audit';
export const clusterOf = (leg: Leg, protocol: Protocol) => `${leg}_${protocol}`;
export const CLUSTER_DOWN = 'down';
/** The cluster whose endpoint the call names in the header `x-envoy-original-dst-host`. */
export const originalDstCluster = (protocol: Protocol) => `original_dst_${protocol}`;
/** The cluster whose endpoint the call names in `:authority`. */
export const forwardProxyCluster = (protocol: Protocol) => `dynamic_forward_proxy_${protocol}`;

/** The port of tcpmux: it is reserved, and the system never assigns it to a socket. */
const CLOSED_PORT = 1;

export interface EnvoyOptions {
  /** Number of worker threads. Default 1. */
  concurrency?: number;
  /** `per_connection_buffer_limit_bytes` of the listeners. Default: Envoy's. */
  bufferLimit?: number;
  /**
   * `request_body_buffer_limit` of the route, which also raises the limit of the response. Default:
   * none.
   */
  requestBodyBufferLimit?: number;
  /** `http.async_response_buffer_limit`: the largest reply to the prefill leg. Default: Envoy's. */
  asyncResponseLimit?: number;
  /** The idle timeout of a stream. Default: Envoy's. */
  streamIdleTimeoutMs?: number;
  /**
   * `allow_on_headers_stop_iteration`; when it is false, the key is left out, as a WasmPlugin of
   * Istio leaves it out. Default: true.
   */
  headsCanStop?: boolean;
  /** Puts a gzip decompressor before the filter. Default: none. */
  decompress?: boolean;
  failurePolicy?: 'FAIL_RELOAD' | 'FAIL_CLOSED' | 'FAIL_OPEN';
  /** The filter's module. Default: `build/filter.wasm`. */
  wasmPath?: string;
  /**
   * Name of a request header. Its value, and the time that the request took, go into the access
   * log.
   */
  idHeader?: string;
}

export interface Files {
  lds: string;
  accessLog: string;
}

/** The ports of each engine, by its name. */
export type Ports = Map<string, Record<Protocol, number>>;

export function bootstrap(options: EnvoyOptions, ports: Ports, files: Files): object {
  const limit = options.asyncResponseLimit;
  return {
    node: { id: 'test', cluster: 'test' },
    admin: { address: socketAddress(0) },
    dynamic_resources: { lds_config: { path_config_source: { path: files.lds } } },
    layered_runtime: {
      layers: [
        {
          name: 'static',
          static_layer: limit === undefined ? {} : { 'http.async_response_buffer_limit': limit },
        },
      ],
    },
    static_resources: {
      clusters: [
        ...PROTOCOLS.flatMap((protocol) => [
          staticCluster(clusterOf('prefill', protocol), protocol, ports.get(prefillName(0))![protocol]),
          staticCluster(clusterOf('decode', protocol), protocol, ports.get('decode')![protocol]),
          ...(['bootstrap', 'audit'] as const).map((leg) =>
            staticCluster(clusterOf(leg, protocol), protocol, ports.get(leg)?.[protocol] ?? CLOSED_PORT),
          ),
          {
            ...cluster(originalDstCluster(protocol), protocol),
            type: 'ORIGINAL_DST',
            lb_policy: 'CLUSTER_PROVIDED',
            original_dst_lb_config: { use_http_header: true },
          },
          {
            // Envoy demands both options for a cluster that forwards to any host.
            ...cluster(forwardProxyCluster(protocol), protocol, {
              auto_sni: true,
              auto_san_validation: true,
            }),
            lb_policy: 'CLUSTER_PROVIDED',
            cluster_type: {
              name: 'envoy.clusters.dynamic_forward_proxy',
              typed_config: {
                '@type':
                  'type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig',
                dns_cache_config: { name: `dns_${protocol}`, dns_lookup_family: 'V4_ONLY' },
              },
            },
          },
        ]),
        staticCluster(CLUSTER_DOWN, 'http1', CLOSED_PORT),
      ],
    },
  };
}

const socketAddress = (port: number) => ({ socket_address: { address: '127.0.0.1', port_value: port } });

function cluster(name: string, protocol: Protocol, upstreamOptions?: object) {
  const http =
    protocol === 'http1'
      ? { http_protocol_options: { enable_trailers: true } }
      : { http2_protocol_options: {} };
  return {
    name,
    connect_timeout: '2s',
    typed_extension_protocol_options: {
      'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
        '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
        // This is shorter than the 5 s of Node's keep-alive, so that no request is sent on a
        // connection that Node is closing.
        common_http_protocol_options: { idle_timeout: '2s' },
        explicit_http_config: http,
        ...(upstreamOptions ? { upstream_http_protocol_options: upstreamOptions } : {}),
      },
    },
  };
}

function staticCluster(name: string, protocol: Protocol, port: number) {
  return {
    ...cluster(name, protocol),
    type: 'STATIC',
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(port) } }] }],
    },
  };
}

/** One line of the access log. */
export interface LogLine {
  /** The client's end of the connection, `ip:port`. */
  client: string;
  code: number;
  details: string | null;
  flags: string | null;
  routed_experts: string | null;
  routed_experts_decode: string | null;
  /**
   * Only with `idHeader`: the value of that header, the milliseconds from the first byte of the
   * head to the end, and the address of the engine that answered.
   */
  id?: string | null;
  duration?: number;
  upstream?: string | null;
}

export interface ListenerSpec {
  name: string;
  /** The plugin configuration, with `prefill.cluster`. */
  config: Record<string, unknown>;
  decodeCluster: string;
}

export function listener(spec: ListenerSpec, options: EnvoyOptions, wasmPath: string, files: Files): object {
  const { bufferLimit, requestBodyBufferLimit, streamIdleTimeoutMs } = options;
  return {
    '@type': 'type.googleapis.com/envoy.config.listener.v3.Listener',
    name: spec.name,
    address: socketAddress(0),
    ...(bufferLimit === undefined ? {} : { per_connection_buffer_limit_bytes: bufferLimit }),
    filter_chains: [
      {
        filters: [
          {
            name: 'envoy.filters.network.http_connection_manager',
            typed_config: {
              '@type':
                'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
              stat_prefix: STAT_PREFIX,
              codec_type: 'AUTO',
              // By default, Envoy's HTTP/1 codec drops trailers.
              http_protocol_options: { enable_trailers: true },
              // After a reset Envoy waits this long before it closes the connection, and a client
              // that was cut off would wait as long.
              delayed_close_timeout: '0.05s',
              ...(streamIdleTimeoutMs === undefined
                ? {}
                : { stream_idle_timeout: milliseconds(streamIdleTimeoutMs) }),
              access_log: [accessLog(files.accessLog, options)],
              http_filters: [
                ...(options.decompress ? [decompressor()] : []),
                { name: 'envoy.filters.http.wasm', typed_config: wasmFilter(spec.config, options, wasmPath) },
                {
                  name: 'envoy.filters.http.router',
                  typed_config: {
                    '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router',
                  },
                },
              ],
              route_config: {
                virtual_hosts: [
                  {
                    name: 'all',
                    domains: ['*'],
                    routes: [
                      {
                        match: { prefix: '/' },
                        route: { cluster: spec.decodeCluster, timeout: '0s' },
                        ...(requestBodyBufferLimit === undefined
                          ? {}
                          : { request_body_buffer_limit: requestBodyBufferLimit }),
                      },
                    ],
                  },
                ],
              },
            },
          },
        ],
      },
    ],
  };
}

const milliseconds = (ms: number) => `${ms / 1000}s`;

/** The decompressor removes `content-encoding` and `content-length` together with the coding. */
const decompressor = () => ({
  name: 'envoy.filters.http.decompressor',
  typed_config: {
    '@type': 'type.googleapis.com/envoy.extensions.filters.http.decompressor.v3.Decompressor',
    decompressor_library: {
      name: 'gzip',
      typed_config: {
        '@type': 'type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip',
      },
    },
  },
});

function accessLog(path: string, { idHeader }: EnvoyOptions) {
  const json_format: Partial<Record<keyof LogLine, string>> = {
    client: '%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%',
    code: '%RESPONSE_CODE%',
    details: '%RESPONSE_CODE_DETAILS%',
    flags: '%RESPONSE_FLAGS%',
    routed_experts: '%FILTER_STATE(wasm.routed_experts:PLAIN)%',
    routed_experts_decode: '%FILTER_STATE(wasm.routed_experts_decode:PLAIN)%',
    ...(idHeader === undefined
      ? {}
      : { id: `%REQ(${idHeader})%`, duration: '%DURATION%', upstream: '%UPSTREAM_HOST%' }),
  };
  return {
    name: 'envoy.access_loggers.file',
    typed_config: {
      '@type': 'type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog',
      path,
      log_format: { json_format },
    },
  };
}

/** All filters of one Envoy share a VM, because they have the same `vm_id` and the same code. */
function wasmFilter(
  config: Record<string, unknown>,
  { failurePolicy = 'FAIL_RELOAD', headsCanStop = true }: EnvoyOptions,
  wasmPath: string,
) {
  return {
    '@type': 'type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm',
    config: {
      name: 'routed_experts',
      root_id: 'routed_experts',
      vm_config: {
        vm_id: 'routed_experts',
        runtime: 'envoy.wasm.runtime.v8',
        code: { local: { filename: wasmPath } },
      },
      configuration: {
        '@type': 'type.googleapis.com/google.protobuf.StringValue',
        value: JSON.stringify(config),
      },
      failure_policy: failurePolicy,
      ...(headsCanStop ? { allow_on_headers_stop_iteration: true } : {}),
    },
  };
}
