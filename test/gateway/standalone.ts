/**
 * What standalone mode needs beside, and other than, the manifests that users apply:
 *
 * - There is no Kubernetes, so the services are resources of kind Backend with the addresses of the
 *   engines, and a GatewayClass has to be there.
 * - The Gateway listens on a free port.
 * - The Envoy to start must be named, else one is downloaded.
 * - Envoy fetches the module from Envoy Gateway by its name in Kubernetes and with certificates of
 *   its pod. A patch has the address and the files of this machine.
 */

import { edited } from '../deployments/manifests.ts';
import type { Surroundings } from './control_plane.ts';

export interface Addresses {
  /** The port of the Gateway. */
  port: number;
  /** Service names and the ports of this machine that stand for them. */
  services: Record<string, number>;
}

/** Manifests with each object of a later file in the place of the earlier one of its name. */
export function applied(...files: string[]): string {
  const objects = new Map<string, string>();
  for (const document of files.flatMap((file) => file.split(/^---$/m))) {
    const [, kind] = /^kind: (\w+)$/m.exec(document) ?? [];
    const [, name] = /^ {2}name: ([\w-]+)$/m.exec(document) ?? [];
    objects.set(`${kind}/${name}`, document.trim());
  }
  return [...objects.values()].join('\n---\n');
}

export function standalone(manifests: string, addresses: Addresses, surroundings: Surroundings): string {
  let text = edited(manifests, {
    'protocol: HTTP, port: 80 }': `protocol: HTTP, port: ${addresses.port} }`,
    // The first key of the EnvoyProxy's spec.
    '\n  concurrency: 2\n': `
  provider: { type: Host, host: { envoyVersion: ${surroundings.envoyVersion} } }
  concurrency: 2
`,
  });
  const backends = Object.entries(addresses.services).map(([name, port]) => {
    const service = `- { name: ${name}, port: 8000 }`;
    const backend = `- { group: gateway.envoyproxy.io, kind: Backend, name: ${name}-service }`;
    text = edited(text, { [service]: backend });
    return backendOf(`${name}-service`, port);
  });
  return [GATEWAY_CLASS, ...backends, moduleCluster(surroundings.certificates), text].join('\n---\n');
}

const GATEWAY_CLASS = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: eg }
spec: { controllerName: gateway.envoyproxy.io/gatewayclass-controller }
`;

const backendOf = (name: string, port: number) => `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: ${name}, namespace: models }
spec: { endpoints: [{ ip: { address: 127.0.0.1, port: ${port} } }] }
`;

/** Envoy Gateway serves modules with TLS 1.3 on port 18002. */
const moduleCluster = (certificates: string) => `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: { name: standalone, namespace: models }
spec:
  targetRef: { group: gateway.networking.k8s.io, kind: Gateway, name: inference }
  type: JSONPatch
  jsonPatches:
    - type: type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: wasm_cluster
      operation:
        op: replace
        path: /load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address
        value: 127.0.0.1
    - type: type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: wasm_cluster
      operation:
        op: replace
        path: /transport_socket
        value:
          name: envoy.transport_sockets.tls
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
            common_tls_context:
              tls_params: { tls_maximum_protocol_version: TLSv1_3 }
              tls_certificates:
                - certificate_chain: { filename: ${certificates}/tls.crt }
                  private_key: { filename: ${certificates}/tls.key }
              validation_context: { trusted_ca: { filename: ${certificates}/ca.crt } }
`;
