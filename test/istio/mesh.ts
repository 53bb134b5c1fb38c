/**
 * What a cluster would give Istio beside the manifests: services, engines and proxies, as entries
 * of Istio's own API.
 */

import type { Proxy } from './proxy.ts';

export interface Endpoint {
  host: string;
  port: number;
  targetPort: number;
}

/**
 * A service of engines on this machine. It has no mTLS, because nothing issues certificates here.
 */
export const service = ({ host, port, targetPort }: Endpoint): string => `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: ${host.split('.')[0]}, namespace: models }
spec:
  hosts: [${host}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: ${port}, name: http, protocol: HTTP, targetPort: ${targetPort} }]
  endpoints: [{ address: 127.0.0.1 }]
`;

const GATEWAY_IP = '127.0.0.9';

/** A pod of the gateway that the manifests select. `patch` is the manifest that patches the pod. */
export const gatewayProxy = (patch: string): Proxy => ({
  type: 'router',
  ip: GATEWAY_IP,
  name: 'gateway',
  namespace: 'istio-system',
  labels: { istio: 'ingressgateway' },
  ...proxyConfig(patch),
});

/**
 * The gateway's own service. It maps port 80 of the Gateway to the free port on which the listener
 * binds.
 */
export const gatewayService = (port: number): string => `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: gateway, namespace: istio-system }
spec:
  hosts: [istio-ingressgateway.istio-system.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: ${port} }]
  workloadSelector: { labels: { istio: ingressgateway } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: gateway, namespace: istio-system }
spec:
  address: ${GATEWAY_IP}
  labels: { istio: ingressgateway }
`;

const DECODE_POD_IP = '127.0.0.8';
const NOBODY_IP = '127.0.0.7';

/**
 * The sidecar of a decode pod that the manifests select. `annotated` is the text with the pod's
 * annotation.
 */
export const decodeProxy = (annotated: string): Proxy => ({
  type: 'sidecar',
  ip: DECODE_POD_IP,
  name: 'decode-0',
  namespace: 'models',
  labels: { app: 'decode' },
  ...proxyConfig(annotated),
  // There are no iptables rules here, so listeners bind to the ports of the Sidecar resource.
  metadata: { INTERCEPTION_MODE: 'NONE' },
});

/** The values in the annotation `proxy.istio.io/config`. */
function proxyConfig(text: string): Pick<Proxy, 'runtimeValues' | 'inclusionPrefixes'> {
  const [, name, value] = /^[ #]+(http\.[a-z_]+): "(\d+)"$/m.exec(text)!;
  const [, prefixes] = /^[ #]+inclusionPrefixes: \[(.*)\]$/m.exec(text)!;
  return { runtimeValues: { [name!]: value! }, inclusionPrefixes: prefixes!.split(', ') };
}

/** The address on which the sidecar takes requests. */
export const DECODE_POD = { ip: DECODE_POD_IP, port: 8000 };

/** The decode pod and its service. The engine of the pod listens on `enginePort`. */
export const decodePod = (enginePort: number): string => `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: decode, namespace: models }
spec:
  hosts: [decode.models.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{ number: 8000, name: http, protocol: HTTP }]
  workloadSelector: { labels: { app: decode } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: decode-0, namespace: models }
spec:
  address: ${DECODE_POD_IP}
  labels: { app: decode }
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: decode, namespace: models }
spec:
  workloadSelector: { labels: { app: decode } }
  ingress:
    - port: { number: 8000, protocol: HTTP, name: http }
      bind: ${DECODE_POD_IP}
      captureMode: NONE
      defaultEndpoint: 127.0.0.1:${enginePort}
  egress:
    # Clusters are what is wanted; a listener comes with them, and is put where it is in nobody's way.
    - port: { number: 8000, protocol: HTTP, name: http-egress }
      bind: ${NOBODY_IP}
      hosts: ['./prefill.models.svc.cluster.local']
---
# Nobody hands out certificates here.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: models }
spec: { mtls: { mode: DISABLE } }
`;

const INFERENCE_IP = '127.0.0.6';
const INFERENCE = 'gateway.networking.k8s.io/gateway-name: inference-gateway';

/** A pod that Istio creates for the Gateway `inference-gateway`. */
export const inferenceProxy = (patch: string): Proxy => ({
  type: 'router',
  ip: INFERENCE_IP,
  name: 'inference-gateway-istio',
  namespace: 'llm-d',
  labels: { 'gateway.networking.k8s.io/gateway-name': 'inference-gateway' },
  ...proxyConfig(patch),
});

/**
 * The pod's service, and what Istio makes of the Gateway and of an HTTPRoute to the decode engines.
 */
export const inferenceGateway = (port: number): string => `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: gateway, namespace: llm-d }
spec:
  hosts: [inference-gateway-istio.llm-d.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: 80, name: http, protocol: HTTP, targetPort: ${port} }]
  workloadSelector: { labels: { ${INFERENCE} } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: gateway, namespace: llm-d }
spec:
  address: ${INFERENCE_IP}
  labels: { ${INFERENCE} }
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: inference-gateway, namespace: llm-d }
spec:
  selector: { ${INFERENCE} }
  servers: [{ port: { number: 80, name: http, protocol: HTTP }, hosts: ['*'] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: decode, namespace: llm-d }
spec:
  hosts: ['*']
  gateways: [inference-gateway]
  http: [{ route: [{ destination: { host: decode.models.svc.cluster.local, port: { number: 8000 } } }] }]
`;
