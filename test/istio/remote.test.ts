// The module comes from a URL, its configuration is pushed as an extension configuration, and the
// prefill engine has a DNS name.

import { readFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { DIST } from '../../tools/paths.mjs';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { waitFor } from '../envoy/wait.ts';
import { deploy, type Deployment } from './deployment.ts';
import { gatewayProxy, gatewayService, service } from './mesh.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };

let engines: Engines;
let artefacts: Server;
let fetched: string[] = [];
let gateway: Deployment | undefined;

beforeAll(async () => {
  engines = await startEngines();
  const wasm = readFileSync(join(DIST, 'filter.wasm'));
  artefacts = createServer((request, response) => {
    fetched.push(`${request.headers.host}${request.url}`);
    response.end(wasm);
  });
  await new Promise<void>((resolve) => artefacts.listen(0, '127.0.0.1', resolve));
});
afterEach(async () => {
  await gateway?.close();
  gateway = undefined;
  fetched = [];
});
afterAll(async () => {
  artefacts?.closeAllConnections();
  artefacts?.close();
  await engines?.close();
});

/**
 * The deployment after `kubectl apply -f envoyfilter.yaml` and then `-f remote.yaml`, whose
 * EnvoyFilter has the same name and takes the first one's place.
 */
async function start(port: number, edits: (text: string) => string = (text) => text): Promise<Deployment> {
  const remote = edited(manifest('istio/remote.yaml'), {
    'address: prefill.example.internal, port_value: 8000': `address: localhost, port_value: ${engines.prefillPort}`,
  });
  const proxy = gatewayProxy(manifest('istio/gateway-pod.yaml'));
  return deploy(proxy, port, [
    manifest('istio/envoyfilter.yaml'),
    edits(remote),
    gatewayService(port),
    service({ host: 'decode.models.svc.cluster.local', port: 8000, targetPort: engines.decodePort }),
    service({
      host: 'artefacts.models.svc.cluster.local',
      port: 80,
      targetPort: (artefacts.address() as AddressInfo).port,
    }),
  ]);
}

test('Envoy runs the module of the URL, and prefill is found by its name', async () => {
  const port = await freePort();
  gateway = await start(port);
  await expectMerged(engines, port, REQUEST);
  expect(fetched[0]).toBe('artefacts.models.svc.cluster.local/filter.wasm');
  const clusters = await gateway.envoy.admin('/clusters');
  expect(clusters).toContain('prefill::127.0.0.1:');
});

test('a module that does not have the sha256 is not run, and no request passes without the filter', async () => {
  const port = await freePort();
  const sha256 = readFileSync(join(DIST, 'filter.wasm.sha256'), 'utf8').slice(0, 64);
  const before = engines.decode.requests.length;
  gateway = await start(port, (text) => edited(text, { [sha256]: '1'.repeat(64) }));
  await waitFor('Envoy fetches the module', () => (fetched.length > 0 ? true : undefined));
  const answer = await ask(port, REQUEST);
  expect(answer.status).toBeGreaterThanOrEqual(500);
  expect(engines.decode.requests.length).toBe(before);
});
