// Builds what `npm run test:gateway` needs into .gateway/: Envoy Gateway, crane and helm. The first
// build needs Go and takes some minutes.
import { join } from 'node:path';
import { areBuilt, ensurePrograms, moduleSource, program } from './go.mjs';
import { runMain } from './problem.mjs';

/** @type {import('./go.mjs').Programs} */
const GATEWAY = {
  dir: '.gateway',
  module: join('test', 'gateway'),
  packages: {
    crane: 'github.com/google/go-containerregistry/cmd/crane',
    'envoy-gateway': 'github.com/envoyproxy/gateway/cmd/envoy-gateway',
    helm: 'helm.sh/helm/v3/cmd/helm',
  },
};

/** @param {string} name */
export const gatewayTool = (name) => program(GATEWAY, name);

/** The folder of Envoy Gateway's own sources in Go's module cache. */
export const gatewaySource = () => moduleSource(GATEWAY, 'github.com/envoyproxy/gateway');

/** The folder of the Gateway API's sources. */
export const gatewayApiSource = () => moduleSource(GATEWAY, 'sigs.k8s.io/gateway-api');

export const gatewayIsBuilt = () => areBuilt(GATEWAY);

export const ensureGateway = () => ensurePrograms(GATEWAY);

await runMain(import.meta.url, ensureGateway);
