// Istio pushes the llm-d gateway's manifest to a real Envoy. The client takes the endpoint picker's
// place and sets its header.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { deploy, MOUNTED, type Deployment } from './deployment.ts';
import { inferenceGateway, inferenceProxy, service } from './mesh.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };
const HEADER = 'x-prefiller-host-port';
/** The gateway's own address. */
const HERE = '127.0.0.1';

let engines: Engines;
let other: Engines;
let gateway: Deployment;
let port: number;

beforeAll(async () => {
  engines = await startEngines();
  other = await startEngines();
  port = await freePort();
  const allowed = { '"10.0.0.0/8:8000"': `"127.0.0.0/8:${engines.prefillPort}"` };
  gateway = await deploy(inferenceProxy(manifest('istio/gateway-pod.yaml')), port, [
    edited(manifest('istio/llm-d.yaml'), { ...MOUNTED, ...allowed }),
    inferenceGateway(port),
    service({ host: 'decode.models.svc.cluster.local', port: 8000, targetPort: engines.decodePort }),
  ]);
});
afterAll(async () => {
  await gateway?.close();
  await engines?.close();
  await other?.close();
});

test('the endpoint of the header runs prefill, and every row is the oracle’s', async () => {
  const headers = { [HEADER]: `127.0.0.1:${engines.prefillPort}` };
  await expectMerged(engines, port, REQUEST, HERE, headers);
  expect(engines.prefill.requests.length).toBe(1);
  for (const { headers } of [...engines.prefill.requests, ...engines.decode.requests])
    expect(headers.map(([name]) => name)).not.toContain(HEADER);
});

test('a request larger than the default buffer is held', async () => {
  const headers = { [HEADER]: `127.0.0.1:${engines.prefillPort}` };
  await expectMerged(engines, port, { ...REQUEST, user: 'u'.repeat(4 << 20) }, HERE, headers);
});

test('an endpoint that is not allowed is not called', async () => {
  const before = engines.decode.requests.length;
  const answer = await ask(port, REQUEST, HERE, { [HEADER]: `127.0.0.1:${other.prefillPort}` });
  expect(answer.status).toBe(403);
  expect(other.prefill.requests.length).toBe(0);
  expect(engines.decode.requests.length).toBe(before);
});

test('a request without the header goes to decode alone', async () => {
  const before = engines.prefill.requests.length;
  const answer = await ask(port, REQUEST);
  expect([answer.status, answer.outcome]).toEqual([200, 'local']);
  expect(answer.arrays).toEqual(engines.right(REQUEST));
  expect(engines.prefill.requests.length).toBe(before);
});
