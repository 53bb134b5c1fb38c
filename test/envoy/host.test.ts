/**
 * The host is tested by itself, with requests that the filter passes unchanged: what it reports is
 * what happened on the wire.
 */

import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Engine, EngineReply, Header, Scenario } from '../scenario.ts';
import { ConfigRejected, createEnvoyHost, type EnvoyHost } from './index.ts';

let host: EnvoyHost;
beforeAll(async () => void (host = await createEnvoyHost({ clientTimeoutMs: 500 })));
afterAll(() => host?.close());

const HEADERS: Header[] = [['x-engine', 'decode']];

function answering(text: string, more: Partial<EngineReply> = {}): Engine {
  return () => ({ status: 200, headers: HEADERS, chunks: [Buffer.from(text)], ...more });
}

function scenario(more: Partial<Scenario> = {}): Scenario {
  return {
    name: 'host',
    client: {
      method: 'POST',
      path: '/health',
      headers: [],
      chunks: ['a', 'bc', 'd'].map((s) => Buffer.from(s)),
    },
    prefill: answering('prefill'),
    decode: answering('decode'),
    ...more,
  };
}

const pairs = (['http1', 'http2'] as const).flatMap((downstream) =>
  (['http1', 'http2'] as const).map((upstream) => ({ downstream, upstream })),
);

test.each(pairs)('passes a request and its answer: $downstream to $upstream', async (protocols) => {
  const result = await host.run(scenario(protocols));
  expect(result).toMatchObject({ status: 200, complete: true, prefillRequests: [], trailers: [] });
  expect(result.body.toString()).toBe('decode');
  expect(result.headers).toContainEqual(['x-engine', 'decode']);
  expect(result.decodeRequests).toHaveLength(1);
  expect(result.decodeRequests[0]).toMatchObject({
    method: 'POST',
    path: '/health',
    body: Buffer.from('abcd'),
  });
});

test.each(pairs)('hands on trailers: $downstream to $upstream', async (protocols) => {
  const trailers: Header[] = [['x-end', '1']];
  const result = await host.run(scenario({ ...protocols, decode: answering('decode', { trailers }) }));
  expect(result).toMatchObject({ complete: true, trailers });
});

test.each(pairs)('a body that is cut off is incomplete: $downstream to $upstream', async (protocols) => {
  const result = await host.run(
    scenario({ ...protocols, decode: answering('dec', { fault: 'reset_body' }) }),
  );
  expect(result).toMatchObject({ status: 200, complete: false });
  expect(result.body.toString()).toBe('dec');
});

test.each(pairs)('a client loses its patience: $downstream to $upstream', async (protocols) => {
  const result = await host.run(scenario({ ...protocols, decode: answering('', { fault: 'stall' }) }));
  expect(result).toMatchObject({ status: 0, complete: false });
  expect(result.line.flags).toBe('DC');
});

test.each(['http1', 'http2'] as const)('a client hangs up: %s', async (downstream) => {
  let reached = () => {};
  const leave = new Promise<void>((resolve) => (reached = resolve));
  const decode: Engine = () => {
    reached();
    return { status: 200, headers: [], chunks: [], fault: 'stall' };
  };
  const result = await host.run(scenario({ downstream, decode, leave }));
  expect(result).toMatchObject({ status: 0, complete: false });
});

test('a request without a body has none', async () => {
  const client = { method: 'GET', path: '/health', headers: [], chunks: [] };
  const { decodeRequests } = await host.run(scenario({ client }));
  expect(decodeRequests[0]!.body).toHaveLength(0);
  expect(decodeRequests[0]!.headers.map(([name]) => name)).not.toContain('transfer-encoding');
});

test('an engine that is down refuses connections', async () => {
  const result = await host.run(scenario({ decode: 'down' }));
  expect(result).toMatchObject({ status: 503, decodeRequests: [] });
  expect(result.line.flags).toBe('UF');
});

test('scenarios that are started together run one after the other', async () => {
  const bodies = ['one', 'two', 'three'];
  const results = await Promise.all(bodies.map((text) => host.run(scenario({ decode: answering(text) }))));
  expect(results.map((result) => result.body.toString())).toEqual(bodies);
  expect(results.map((result) => result.decodeRequests.length)).toEqual([1, 1, 1]);
});

test('a configuration that the filter refuses is an error with its reason, and the host goes on', async () => {
  const refused = host.run(scenario({ config: { no_such_key: 1 } }));
  await expect(refused).rejects.toThrow(ConfigRejected);
  await expect(refused).rejects.toThrow('no_such_key');
  expect(await host.run(scenario())).toMatchObject({ status: 200, complete: true });
});

test('the VM is alive', async () => {
  expect(host.traps()).toEqual([]);
  expect(await host.vmAlive()).toBe(true);
});
