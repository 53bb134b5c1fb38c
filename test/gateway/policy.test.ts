// Envoy Gateway deploys the filter by its policy alone, with the module from an image.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { waitFor } from '../envoy/wait.ts';
import { serveArtefacts, type Artefacts } from './artefacts.ts';
import { deploy, type Deployment } from './deployment.ts';
import { completion, exchange, TO_PREFILL } from './raw.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };

let engines: Engines;
let artefacts: Artefacts;
let gateway: Deployment;

beforeAll(async () => {
  engines = await startEngines();
  artefacts = await serveArtefacts();
  gateway = await deploy(['envoyextensionpolicy'], artefacts, engines);
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
])('prefill and decode serve %s, and every row is the oracle’s', async (_, body) => {
  const before = [engines.prefill.requests.length, engines.decode.requests.length];
  const answer = await ask(gateway.port, body);
  expect(answer.status, answer.text.slice(0, 500)).toBe(200);
  expect(answer.arrays.length).toBe(1);
  expect(answer.arrays.join() === engines.right(body).join()).toBe(true);
  expect([engines.prefill.requests.length, engines.decode.requests.length]).toEqual(before.map((n) => n + 1));
});

test('the access log tells the outcome', async () => {
  const sent = gateway.output().length;
  await ask(gateway.port, REQUEST);
  const line = await waitFor(
    'a line comes',
    () => /^\{"[^\n]*"routed_experts"[^\n]*\}$/m.exec(gateway.output().slice(sent))?.[0],
    30_000,
  );
  expect(JSON.parse(line)).toMatchObject({
    status: 200,
    method: 'POST',
    path: '/v1/completions',
    routed_experts: 'merged; rows=26; choices=1',
  });
});

test('a client of HTTP/1 gets the outcome in a trailer where the response has no length', async () => {
  const text = await exchange(gateway.port, completion({ ...REQUEST, stream: true }));
  expect(text).toMatch(/^HTTP\/1\.1 200 /);
  // Streams of this endpoint carry no routing in vLLM 0.30.
  expect(text).toMatch(/\r\n0\r\nx-routed-experts: absent\r\n/);
});

test('a client cannot get to prefill', async () => {
  const before = engines.prefill.requests.length;
  expect(await exchange(gateway.port, TO_PREFILL)).toMatch(/^HTTP\/1\.1 403 /);
  expect(engines.prefill.requests.length).toBe(before);
});

test('decode is not retried: the blocks of its prefill are gone', async () => {
  const before = engines.decode.requests.length;
  const options = engines.decode.options as { fail?: unknown };
  options.fail = () => ({ status: 503 });
  try {
    expect((await ask(gateway.port, REQUEST)).status).toBe(503);
    expect(engines.decode.requests.length).toBe(before + 1);
  } finally {
    delete options.fail;
  }
});
