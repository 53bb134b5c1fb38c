// The Envoys that are measured. One has the filter and one does not; otherwise they are the same.

import { FILTER_WASM } from '../tools/paths.mjs';
import { launchEnvoy, type Envoy } from '../test/envoy/launcher.ts';
import type { Protocol } from '../test/scenario.ts';

export interface EnvoySpec {
  prefillPort: number;
  decodePort: number;
  upstream: Protocol;
  /**
   * The plugin's configuration without `prefill`. Without it there is no filter, and `/prefill`
   * goes to the prefill engine.
   */
  filter?: Record<string, unknown>;
  /** Path of the filter's module; absent: the module of this checkout. */
  module?: string;
  /** Number of worker threads. Default 1. */
  workers?: number;
}

export interface MeasuredEnvoy extends Envoy {
  readonly port: number;
}

/**
 * Envoy buffers prefill's whole reply, and the largest reply here exceeds Envoy's default limit of
 * 32 MiB.
 */
const ASYNC_RESPONSE_LIMIT = 2 ** 30;

export async function startEnvoy(spec: EnvoySpec): Promise<MeasuredEnvoy> {
  const envoy = await launchEnvoy({ config: () => bootstrap(spec), concurrency: spec.workers ?? 1 });
  const listeners = JSON.parse(await envoy.admin('/listeners?format=json'));
  const port: number = listeners.listener_statuses[0].local_address.socket_address.port_value;
  return { ...envoy, port };
}

const PACKAGE = 'type.googleapis.com/envoy.extensions.';
const address = (port: number) => ({ socket_address: { address: '127.0.0.1', port_value: port } });

function bootstrap(spec: EnvoySpec): object {
  return {
    admin: { address: address(0) },
    layered_runtime: {
      layers: [
        { name: 'static', static_layer: { 'http.async_response_buffer_limit': ASYNC_RESPONSE_LIMIT } },
      ],
    },
    static_resources: {
      clusters: [
        cluster('prefill', spec.prefillPort, spec.upstream),
        cluster('decode', spec.decodePort, spec.upstream),
      ],
      listeners: [listener(spec)],
    },
  };
}

function cluster(name: string, port: number, protocol: Protocol): object {
  return {
    name,
    type: 'STATIC',
    connect_timeout: '2s',
    circuit_breakers: {
      thresholds: [{ max_connections: 65536, max_pending_requests: 65536, max_requests: 65536 }],
    },
    typed_extension_protocol_options: {
      'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
        '@type': `${PACKAGE}upstreams.http.v3.HttpProtocolOptions`,
        explicit_http_config:
          protocol === 'http1' ? { http_protocol_options: {} } : { http2_protocol_options: {} },
      },
    },
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: address(port) } }] }],
    },
  };
}

function listener(spec: EnvoySpec): object {
  const route = (prefix: string, to: string) => ({
    match: { prefix },
    route: { cluster: to, timeout: '0s' },
  });
  const router = {
    name: 'envoy.filters.http.router',
    typed_config: { '@type': `${PACKAGE}filters.http.router.v3.Router` },
  };
  return {
    name: 'clients',
    address: address(0),
    filter_chains: [
      {
        filters: [
          {
            name: 'envoy.filters.network.http_connection_manager',
            typed_config: {
              '@type': `${PACKAGE}filters.network.http_connection_manager.v3.HttpConnectionManager`,
              stat_prefix: 'clients',
              codec_type: 'AUTO',
              http_filters: spec.filter ? [wasm(spec.filter, spec.module ?? FILTER_WASM), router] : [router],
              route_config: {
                virtual_hosts: [
                  {
                    name: 'all',
                    domains: ['*'],
                    routes: [route('/prefill', 'prefill'), route('/', 'decode')],
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

function wasm(configuration: Record<string, unknown>, filename: string): object {
  return {
    name: 'envoy.filters.http.wasm',
    typed_config: {
      '@type': `${PACKAGE}filters.http.wasm.v3.Wasm`,
      config: {
        name: 'routed_experts',
        root_id: 'routed_experts',
        vm_config: {
          vm_id: 'routed_experts',
          runtime: 'envoy.wasm.runtime.v8',
          code: { local: { filename } },
        },
        configuration: {
          '@type': 'type.googleapis.com/google.protobuf.StringValue',
          value: JSON.stringify({ prefill: { cluster: 'prefill' }, ...configuration }),
        },
        failure_policy: 'FAIL_RELOAD',
        allow_on_headers_stop_iteration: true,
      },
    },
  };
}
