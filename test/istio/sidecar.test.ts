// Istio pushes the filter to a real Envoy as the sidecar of the decode pod.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { deploy, MOUNTED, type Deployment } from './deployment.ts';
import { DECODE_POD, decodePod, decodeProxy, service } from './mesh.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };
const { ip, port } = DECODE_POD;

let engines: Engines;
let sidecar: Deployment;

beforeAll(async () => {
  engines = await startEngines();
  const text = manifest('istio/sidecar.yaml');
  sidecar = await deploy(decodeProxy(text), port, [
    edited(text, MOUNTED),
    decodePod(engines.decodePort),
    service({ host: 'prefill.models.svc.cluster.local', port: 8000, targetPort: engines.prefillPort }),
  ]);
});
afterAll(async () => {
  await sidecar?.close();
  await engines?.close();
});

test('a request to the decode pod goes through prefill first, and every row is the oracle’s', async () => {
  await expectMerged(engines, port, REQUEST, ip);
  expect(engines.prefill.requests.length).toBe(1);
  expect(engines.decode.requests.length).toBe(1);
});

test('a request larger than the default buffer is held', async () => {
  await expectMerged(engines, port, { ...REQUEST, user: 'u'.repeat(4 << 20) }, ip);
});

test('the sidecar does not retry, and ends streams that wait for ever', async () => {
  const dump = await sidecar.envoy.admin('/config_dump');
  expect(dump).toContain('"stream_idle_timeout": "1800s"');
  const before = engines.decode.requests.length;
  const options = engines.decode.options as { fail?: unknown };
  options.fail = (ordinal: number) => (ordinal > before ? { status: 503 } : undefined);
  try {
    expect((await ask(port, REQUEST, ip)).status).toBe(503);
    expect(engines.decode.requests.length).toBe(before + 1);
  } finally {
    delete options.fail;
  }
});
