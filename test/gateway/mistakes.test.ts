// What mistakes look like with Envoy Gateway: each is seen as docs/deploy.md says.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { DIST } from '../../tools/paths.mjs';
import { ask, startEngines, type Answer, type Engines } from '../deployments/engines.ts';
import { edited } from '../deployments/manifests.ts';
import { waitFor } from '../envoy/wait.ts';
import { serveArtefacts, type Artefacts } from './artefacts.ts';
import { deploy, URL, type Deployment } from './deployment.ts';
import { completion, exchange } from './raw.ts';

const REQUEST = { prompt: 'Tell me of routed experts.', max_tokens: 8, temperature: 0 };
const SHA256 = readFileSync(join(DIST, 'filter.wasm.sha256'), 'utf8').slice(0, 64);

let engines: Engines;
let artefacts: Artefacts;
let gateway: Deployment | undefined;
/** Decode's requests before the one of the test. */
let earlier: number;

beforeAll(async () => {
  engines = await startEngines();
  artefacts = await serveArtefacts();
});
afterEach(async () => {
  await gateway?.close();
  gateway = undefined;
});
afterAll(async () => {
  await artefacts?.close();
  await engines?.close();
});

async function askWith(files: string[], edits: Record<string, string>, without?: RegExp): Promise<Answer> {
  gateway = await deploy(files, artefacts, engines, (text) => edited(text.replace(without ?? '', ''), edits));
  earlier = engines.decode.requests.length;
  return ask(gateway.port, REQUEST);
}

test('`headers: hold` without the patch: the filter’s 500 names the fix', async () => {
  const answer = await askWith(
    ['envoyextensionpolicy', 'envoypatchpolicy'],
    {},
    /^apiVersion: \S+\nkind: EnvoyPatchPolicy\n[^]*?(\n---|$(?![^]))/m,
  );
  expect(answer.status).toBe(500);
  expect(answer.text).toContain('allow_on_headers_stop_iteration');
  expect(engines.decode.requests.length).toBe(earlier);
});

test.each([
  ['sha256', { [SHA256]: '1'.repeat(64) }],
  ['URL', { [URL]: 'http://127.0.0.1:1/filter.wasm' }],
])('a wrong %s: the policy is not accepted, and the route answers an empty 500', async (_, edits) => {
  const answer = await askWith(['envoyextensionpolicy', 'envoypatchpolicy'], edits);
  expect([answer.status, answer.text]).toEqual([500, '']);
  expect(engines.decode.requests.length).toBe(earlier);
});

test('a configuration that the filter refuses: 503, and the reason is in Envoy’s log', async () => {
  const answer = await askWith(['envoyextensionpolicy'], { '"connector": "nixl"': '"connector": "nicksl"' });
  expect(answer.status).toBe(503);
  await waitFor(
    'Envoy logs it',
    () => /configuration refused[^\n]*connector/.test(gateway!.output()) || undefined,
  );
  expect(engines.decode.requests.length).toBe(earlier);
});

test('a prefill cluster that does not exist: `local`', async () => {
  const answer = await askWith(['envoyextensionpolicy', 'envoypatchpolicy'], {
    '"cluster": "httproute/models/prefill/rule/0"': '"cluster": "prefill"',
  });
  expect([answer.status, answer.outcome]).toEqual([200, 'local']);
});

test('no buffer limit: 413; no trailers: a client of HTTP/1 sees no outcome', async () => {
  await askWith(['envoyextensionpolicy'], {
    '  requestBuffer: { limit: 67108864 }\n': '',
    '  http1: { enableTrailers: true }\n': '',
  });
  const { port } = gateway!;
  expect((await ask(port, { ...REQUEST, user: 'u'.repeat(64 << 10) })).status).toBe(413);
  const streamed = await exchange(port, completion({ ...REQUEST, stream: true }));
  expect(streamed).toMatch(/^HTTP\/1\.1 200 /);
  expect(streamed).not.toContain('x-routed-experts');
});

test('no limit of prefill’s replies: `local` above 32 MiB', async () => {
  const limit = '            static_layer:\n              http.async_response_buffer_limit: 268435456\n';
  await askWith(['envoyextensionpolicy', 'envoypatchpolicy'], { [limit]: '            static_layer: {}\n' });
  const prompt = Array.from({ length: 80_000 }, (_, i) => 3 + (i % 500));
  const answer = await ask(gateway!.port, { ...REQUEST, prompt });
  expect([answer.status, answer.outcome]).toEqual([200, 'local']);
});
