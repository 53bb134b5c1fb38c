// Envoy Gateway deploys the filter by its policy and an EnvoyPatchPolicy, with `headers: hold` and
// the module from a URL.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEngines, type Engines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { serveArtefacts, type Artefacts } from './artefacts.ts';
import { deploy, type Deployment } from './deployment.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };

let engines: Engines;
let artefacts: Artefacts;
let gateway: Deployment;

beforeAll(async () => {
  engines = await startEngines();
  artefacts = await serveArtefacts();
  gateway = await deploy(['envoyextensionpolicy', 'envoypatchpolicy'], artefacts, engines);
});
afterAll(async () => {
  await gateway?.close();
  await artefacts?.close();
  await engines?.close();
});

const prompt = (tokens: number) => Array.from({ length: tokens }, (_, i) => 3 + ((i * 31 + (i >> 8)) % 500));

test.each([
  ['a small one', REQUEST],
  ['one above the limit of 32 KiB that Envoy Gateway sets', { ...REQUEST, user: 'u'.repeat(4 << 20) }],
  ['one whose prefill replies with more than 32 MiB', { ...REQUEST, prompt: prompt(80_000) }],
])('the head says that rows are merged, and every row is the oracle’s: %s', async (_, body) => {
  const before = [engines.prefill.requests.length, engines.decode.requests.length];
  await expectMerged(engines, gateway.port, body);
  expect([engines.prefill.requests.length, engines.decode.requests.length]).toEqual(before.map((n) => n + 1));
});

test('the module is the one of the URL', () => {
  expect(artefacts.fetched).toContain('/filter.wasm');
});
