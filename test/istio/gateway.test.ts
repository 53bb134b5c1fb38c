// Istio pushes the gateway's manifest to a real Envoy, which has engines behind it.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { waitFor } from '../envoy/wait.ts';
import { deploy, MOUNTED, type Deployment } from './deployment.ts';
import { gatewayProxy, gatewayService, service } from './mesh.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };

let engines: Engines;
let gateway: Deployment;
let port: number;
let surroundings: string[];
let text: string;

beforeAll(async () => {
  engines = await startEngines();
  port = await freePort();
  surroundings = [
    gatewayService(port),
    service({ host: 'prefill.models.svc.cluster.local', port: 8000, targetPort: engines.prefillPort }),
    service({ host: 'decode.models.svc.cluster.local', port: 8000, targetPort: engines.decodePort }),
  ];
  text = edited(manifest('istio/envoyfilter.yaml'), MOUNTED);
  gateway = await deploy(gatewayProxy(manifest('istio/gateway-pod.yaml')), port, [text, ...surroundings]);
});
afterAll(async () => {
  await gateway?.close();
  await engines?.close();
});

test('a request is served by prefill and decode, and every row is the oracle’s', async () => {
  await expectMerged(engines, port, REQUEST);
  expect(engines.prefill.requests.length).toBe(1);
  expect(engines.decode.requests.length).toBe(1);
});

test('the access log tells the outcome', async () => {
  const sent = gateway.output().length;
  await expectMerged(engines, port, REQUEST);
  const line = await waitFor('a line comes', () => /^\{.*\}$/m.exec(gateway.output().slice(sent))?.[0]);
  expect(JSON.parse(line)).toMatchObject({
    status: 200,
    method: 'POST',
    path: '/v1/completions',
    routed_experts: 'merged; rows=26; choices=1',
  });
});

test('a request larger than the default buffer is held', async () => {
  await expectMerged(engines, port, { ...REQUEST, user: 'u'.repeat(4 << 20) });
});

test('a reply of prefill larger than the default limit of 32 MiB is taken', async () => {
  const prompt = Array.from({ length: 80_000 }, (_, i) => 3 + ((i * 31 + (i >> 8)) % 500));
  await expectMerged(engines, port, { ...REQUEST, prompt });
});

test('decode is not retried: the blocks of its prefill are gone', async () => {
  // Some versions of Istio retry after 503 by default. No route here has a retry policy.
  const routes = await gateway.envoy.admin('/config_dump?resource=dynamic_route_configs');
  expect(routes).toContain('"request_body_buffer_limit": "67108864"');
  expect(routes).not.toContain('retry_policy');
  const before = engines.decode.requests.length;
  const options = engines.decode.options as { fail?: unknown };
  options.fail = (ordinal: number) => (ordinal > before ? { status: 503 } : undefined);
  try {
    expect((await ask(port, REQUEST)).status).toBe(503);
    expect(engines.decode.requests.length).toBe(before + 1);
  } finally {
    delete options.fail;
  }
});

test('a manifest that changes while requests run changes them from one to the next, and fails none', async () => {
  let open = () => {};
  engines.gate = new Promise<void>((resolve) => (open = resolve));
  const asked = engines.prefill.requests.length;
  // These requests wait for prefill under the old configuration, until other requests have been
  // served under the new one.
  const old = Promise.all(Array.from({ length: 4 }, () => expectMerged(engines, port, REQUEST)));
  old.catch(() => undefined);
  await waitFor('prefill is asked', async () => {
    const stats = await gateway.envoy.admin('/stats?filter=prefill.*upstream_rq_active');
    return /upstream_rq_active: 4$/m.test(stats) ? true : undefined;
  });
  expect(engines.prefill.requests.length).toBe(asked);
  engines.gate = Promise.resolve();

  let done = 0;
  let stop = false;
  const client = async () => {
    for (; !stop; done++) await expectMerged(engines, port, { ...REQUEST, prompt: `Request ${done}` });
  };
  const clients = Array.from({ length: 4 }, client);
  const failed = Promise.all(clients);
  failed.catch(() => undefined);
  await waitFor('requests run', () => (done > 20 ? true : undefined));
  const tails = () =>
    engines.decode.requests.filter(({ body }) => body.includes('"routed_experts_prompt_start"')).length;
  expect(tails()).toBe(0);

  const changed = edited(text, { '"decode_rows": "full"': '"decode_rows": "tail"' });
  await gateway.controlPlane.apply([changed, ...surroundings].join('\n---\n'));
  await Promise.race([failed, waitFor('decode is asked for tails', () => (tails() > 20 ? true : undefined))]);
  open();
  await old;
  const seen = done;
  await Promise.race([failed, waitFor('more requests run', () => (done > seen + 20 ? true : undefined))]);
  stop = true;
  await failed;
});

test('a configuration that the filter refuses leaves the one before in place, and Envoy says why', async () => {
  const wrong = edited(text, { '"decode_rows": "full"': '"decode_row": "full"' });
  await gateway.controlPlane.apply([wrong, ...surroundings].join('\n---\n'));
  await waitFor('Envoy refuses', () =>
    gateway.envoy.logs().includes('configuration refused: decode_row: expected no such key')
      ? true
      : undefined,
  );
  await expectMerged(engines, port, REQUEST);
  await gateway.controlPlane.apply([text, ...surroundings].join('\n---\n'));
});

test('no VM has failed', async () => {
  expect(gateway.envoy.logs()).not.toMatch(/Uncaught RuntimeError|wasm_fail/);
});
