/**
 * A plain Envoy that gets its whole configuration from Istio's discovery server, as a gateway or as
 * a sidecar.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { istioSource } from '../../tools/istio.mjs';
import { launchEnvoy, type Envoy } from '../envoy/launcher.ts';

export interface Proxy {
  type: 'router' | 'sidecar';
  /**
   * The address must differ from those of the engines, because Istio takes the labels of the
   * endpoint at this address for the labels of the proxy.
   */
  ip: string;
  name: string;
  namespace: string;
  labels: Record<string, string>;
  /**
   * `runtimeValues` in the annotation `proxy.istio.io/config`. Istio copies them into the
   * bootstrap.
   */
  runtimeValues: Record<string, string>;
  /** `proxyStatsMatcher.inclusionPrefixes` in that annotation. */
  inclusionPrefixes: string[];
  metadata?: Record<string, unknown>;
}

export function launchProxy(
  proxy: Proxy,
  discoveryPort: number,
  onOutput?: (text: string) => void,
): Promise<Envoy> {
  const { type, ip, name, namespace, labels, runtimeValues, inclusionPrefixes, metadata } = proxy;
  const ads = { ads: {}, resource_api_version: 'V3', initial_fetch_timeout: '0s' };
  return launchEnvoy({
    config: () => ({
      node: {
        id: `${type}~${ip}~${name}.${namespace}~${namespace}.svc.cluster.local`,
        cluster: `${name}.${namespace}`,
        metadata: {
          NAMESPACE: namespace,
          LABELS: labels,
          CLUSTER_ID: 'Kubernetes',
          ISTIO_VERSION: '1.30.0',
          INSTANCE_IPS: ip,
          ...metadata,
        },
      },
      stats_config: statsConfig(inclusionPrefixes),
      admin: { address: { socket_address: { address: '127.0.0.1', port_value: 0 } } },
      layered_runtime: { layers: [{ name: 'global config', static_layer: runtimeValues }] },
      dynamic_resources: {
        lds_config: ads,
        cds_config: ads,
        ads_config: {
          api_type: 'GRPC',
          transport_api_version: 'V3',
          grpc_services: [{ envoy_grpc: { cluster_name: 'xds-grpc' } }],
        },
      },
      static_resources: {
        clusters: [
          {
            name: 'xds-grpc',
            connect_timeout: '2s',
            load_assignment: {
              cluster_name: 'xds-grpc',
              endpoints: [
                {
                  lb_endpoints: [
                    {
                      endpoint: {
                        address: { socket_address: { address: '127.0.0.1', port_value: discoveryPort } },
                      },
                    },
                  ],
                },
              ],
            },
            typed_extension_protocol_options: {
              'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
                '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
                explicit_http_config: { http2_protocol_options: {} },
              },
            },
          },
        ],
      },
    }),
    args: ['--file-flush-interval-msec', '5'],
    onOutput,
  });
}

/**
 * Which statistics Envoy has, and with which labels, as in the bootstrap that Istio's agent writes.
 */
function statsConfig(inclusionPrefixes: string[]): object {
  const read = (path: string) => readFileSync(join(istioSource(), path), 'utf8');
  const template = read('tools/packaging/common/envoy_bootstrap.json');
  const [, tags] = /"stats_tags": (\[[^]*?\n {4}\])/.exec(template)!;
  const go = read('pkg/bootstrap/config.go');
  const constant = (name: string) => new RegExp(`${name} += ["\`](.*)["\`]`).exec(go)![1]!;
  const prefixes = constant('requiredEnvoyStatsMatcherInclusionPrefixes').split(',');
  return {
    use_all_default_tags: false,
    stats_tags: JSON.parse(tags!.replace(/\{\{- range[^]*?\{\{- end \}\}/g, '')),
    stats_matcher: {
      inclusion_list: { patterns: [...prefixes, ...inclusionPrefixes].map((prefix) => ({ prefix })) },
    },
  };
}
