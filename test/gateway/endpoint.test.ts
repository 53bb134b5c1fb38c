// Envoy Gateway deploys the filter with a Backend of type DynamicResolver. The client takes the
// endpoint picker's place and names the prefill engine.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startEngines, type Engines } from '../deployments/engines.ts';
import { edited } from '../deployments/manifests.ts';
import { serveArtefacts, type Artefacts } from './artefacts.ts';
import { deploy, type Deployment } from './deployment.ts';
import { exchange, TO_PREFILL } from './raw.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };
const HEADER = 'x-prefiller-host-port';
/** The gateway's own address. */
const HERE = '127.0.0.1';

let engines: Engines;
let other: Engines;
let artefacts: Artefacts;
let gateway: Deployment;

beforeAll(async () => {
  engines = await startEngines();
  other = await startEngines();
  artefacts = await serveArtefacts();
  const allowed = [`127.0.0.0/8:${engines.prefillPort}`, `localhost:${engines.prefillPort}`];
  gateway = await deploy(['envoyextensionpolicy', 'endpoint'], artefacts, engines, (text) =>
    edited(text, { '[ "10.0.0.0/8:8000" ]': JSON.stringify(allowed) }),
  );
});
afterAll(async () => {
  await gateway?.close();
  await artefacts?.close();
  await engines?.close();
  await other?.close();
});

test.each(['127.0.0.1', 'localhost'])(
  'the endpoint %s runs prefill, and every row is the oracle’s',
  async (host) => {
    const headers = { [HEADER]: `${host}:${engines.prefillPort}` };
    const before = engines.prefill.requests.length;
    const answer = await ask(gateway.port, REQUEST, HERE, headers);
    expect(answer.status, answer.text.slice(0, 500)).toBe(200);
    expect(answer.arrays).toEqual(engines.right(REQUEST));
    const prefills = engines.prefill.requests.slice(before).filter(({ method }) => method === 'POST');
    expect(prefills).toHaveLength(1);
    for (const { headers } of [...engines.prefill.requests, ...engines.decode.requests])
      expect(headers.map(([name]) => name)).not.toContain(HEADER);
  },
);

test('an endpoint that is not allowed is not called', async () => {
  const before = engines.decode.requests.length;
  const answer = await ask(gateway.port, REQUEST, HERE, { [HEADER]: `127.0.0.1:${other.prefillPort}` });
  expect(answer.status).toBe(403);
  expect(other.prefill.requests.length).toBe(0);
  expect(engines.decode.requests.length).toBe(before);
});

test('a request without the header goes to decode alone', async () => {
  const before = engines.prefill.requests.length;
  const answer = await ask(gateway.port, REQUEST);
  expect(answer.status).toBe(200);
  expect(answer.arrays).toEqual(engines.right(REQUEST));
  expect(engines.prefill.requests.length).toBe(before);
});

test('a client cannot make Envoy connect to a host by the route of the prefill leg', async () => {
  const before = engines.prefill.requests.length;
  expect(await exchange(gateway.port, TO_PREFILL)).toMatch(/^HTTP\/1\.1 403 /);
  expect(engines.prefill.requests.length).toBe(before);
});
