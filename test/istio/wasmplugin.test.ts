// Istio pushes the WasmPlugin, and the TrafficExtension that replaces it, to a real Envoy, which
// then lacks allow_on_headers_stop_iteration.

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { DIST } from '../../tools/paths.mjs';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { deploy, type Deployment } from './deployment.ts';
import { gatewayProxy, gatewayService, service } from './mesh.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };

describe.each(['wasmplugin.yaml', 'trafficextension.yaml'])('%s', (file) => {
  let engines: Engines;
  let gateway: Deployment;
  let port: number;

  beforeAll(async () => {
    engines = await startEngines();
    port = await freePort();
    // The routes and services of the gateway's manifest, without its EnvoyFilter.
    const [routes] = manifest('istio/envoyfilter.yaml').split(
      '---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter',
    );
    // Istio's agent would fetch the image and give Envoy its module as a file. There is no agent
    // here.
    const image = {
      'oci://registry.example/routed-experts-filter:0.2.0': `file://${join(DIST, 'filter.wasm')}`,
    };
    gateway = await deploy(gatewayProxy(manifest('istio/gateway-pod.yaml')), port, [
      routes!,
      edited(manifest(`istio/${file}`), image),
      gatewayService(port),
      service({ host: 'prefill.models.svc.cluster.local', port: 8000, targetPort: engines.prefillPort }),
      service({ host: 'decode.models.svc.cluster.local', port: 8000, targetPort: engines.decodePort }),
    ]);
  });
  afterAll(async () => {
    await gateway?.close();
    await engines?.close();
  });

  test.each([
    ['small', ''],
    ['larger than the default buffer', 'u'.repeat(4 << 20)],
  ])('a request is served by prefill and decode, and every row is the oracle’s: %s', async (_, user) => {
    const before = engines.prefill.requests.length;
    const answer = await ask(port, { ...REQUEST, user });
    expect(answer.status, answer.text.slice(0, 500)).toBe(200);
    expect(answer.arrays).toEqual(engines.right(REQUEST));
    expect(engines.prefill.requests.length).toBe(before + 1);
  });
});
