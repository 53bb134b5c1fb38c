// A decompressor stands where the filter's answer 415 says that it must: before the filter, which
// then reads the body that the client compressed.

import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Protocol } from '../scenario.ts';
import { header } from '../scenarios/case.ts';
import {
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  JSON_TYPE,
  PARAMS,
  answering,
  jsonOf,
  post,
} from '../scenarios/messages.ts';
import { createEnvoyHost, type EnvoyHost } from './index.ts';

let host: EnvoyHost;
beforeAll(async () => {
  host = await createEnvoyHost({ decompress: true });
});
afterAll(() => host?.close());

const EVIL = '{"prompt":"a","max_tokens":3,"kv_transfer_params":{"remote_host":"10.6.6.6"}}';

const run = (coding: string, protocol: Protocol) => {
  const body = gzipSync(EVIL);
  return host.run({
    name: coding,
    client: post(body, {
      headers: [JSON_TYPE, ['content-encoding', coding], ['content-length', String(body.length)]],
    }),
    prefill: answering(GOOD_PREFILL),
    decode: answering(GOOD_DECODE),
    downstream: protocol,
    upstream: protocol,
  });
};

test.each<Protocol>(['http1', 'http2'])('what a decompressor unpacks is served: %s', async (protocol) => {
  const result = await run('gzip', protocol);
  expect([result.status, result.body.toString()]).toEqual([200, GOOD_MERGED]);
  expect(jsonOf(result.prefillRequests[0]!)).toMatchObject({ prompt: 'a', max_tokens: 1 });
  expect(jsonOf(result.decodeRequests[0]!)['kv_transfer_params']).toEqual(JSON.parse(PARAMS));
  for (const { headers, body } of [...result.prefillRequests, ...result.decodeRequests]) {
    expect(header(headers, 'content-encoding')).toBeUndefined();
    expect(body.toString()).not.toContain('10.6.6.6');
  }
});

test('what it does not know is refused', async () => {
  const result = await run('br', 'http1');
  expect([result.status, result.prefillRequests, result.decodeRequests]).toEqual([415, [], []]);
});
