// Requests with a `content-encoding`. The filter cannot read their bodies, and a server behind the
// filter that decodes one would find the client's own transfer parameters in it. So none of them
// reaches an engine.

import { brotliCompressSync, gzipSync } from 'node:zlib';
import { expect } from 'vitest';
import type { ClientRequest, Header, Protocol, Result } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  COMPLETIONS,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  JSON_TYPE,
  NATIVE,
  REQUEST,
  REQUEST_ID,
  answering,
  cut,
  expectError,
  expectOutcome,
  post,
} from './messages.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
/**
 * Node's HTTP/2 client sends each header once, so a request with several `content-encoding` headers
 * goes over HTTP/1 only.
 */
const protocols = ({ headers }: ClientRequest): Protocol[] =>
  headers.filter(([name]) => name === 'content-encoding').length > 1 ? ['http1'] : PROTOCOLS;
const HEADS = ['hold', 'pass'];
const EVIL = '{"prompt":"a","max_tokens":3,"kv_transfer_params":{"remote_host":"10.6.6.6"}}';
const GZIP = gzipSync(EVIL);

const MESSAGE =
  'the request has a content-encoding, which the filter does not read: send it without one, or let a ' +
  'decompressor (envoy.filters.http.decompressor) stand before this filter';

function encodedAs(
  values: string[],
  body: string | Buffer = GZIP,
  more: Partial<ClientRequest> = {},
): ClientRequest {
  return post(body, {
    headers: [
      JSON_TYPE,
      ...values.map((value): Header => ['content-encoding', value]),
      ['content-length', String(Buffer.byteLength(body))],
      ['x-request-id', REQUEST_ID],
    ],
    ...more,
  });
}

interface Spec {
  name: string;
  client: ClientRequest;
  config?: Record<string, unknown>;
  decode?: string;
}

const CODINGS = [
  ...['gzip', 'GZip', 'x-gzip', 'br', 'zstd', 'deflate', 'compress', 'aws-chunked', 'identity;q=1'],
  ...['identity, gzip', 'gzip, identity', 'identity,,\tbr ,', 'gzip,gzip', 'identities', 'identit'],
];

const REFUSED: Spec[] = [
  ...CODINGS.map((value) => ({ name: JSON.stringify(value), client: encodedAs([value]) })),
  { name: 'several headers', client: encodedAs(['identity', 'gzip']) },
  { name: 'several headers, the first', client: encodedAs(['br', 'identity'], brotliCompressSync(EVIL)) },
  { name: 'a body that is not compressed', client: encodedAs(['gzip'], EVIL) },
  { name: 'a request that decode would serve alone', client: encodedAs(['gzip'], '{"prompt":["a","b"]}') },
  { name: 'a body that is no JSON', client: encodedAs(['gzip'], 'prompt=a') },
  { name: 'chat', client: encodedAs(['gzip'], GZIP, { path: CHAT }) },
  { name: 'generate', client: encodedAs(['gzip'], GZIP, { path: `${GENERATE}?a=b` }) },
  { name: 'an escaped path', client: encodedAs(['gzip'], GZIP, { path: '/v1/%63ompletions' }) },
  {
    name: 'no length, in pieces',
    client: {
      ...post(''),
      headers: [JSON_TYPE, ['content-encoding', 'gzip'], ['x-request-id', REQUEST_ID]],
      chunks: cut(GZIP, 20),
    },
  },
];

/** Connectors that run both legs at once need heads that are held. */
const CONCURRENT: Spec[] = [COMPLETIONS, NATIVE].flatMap((path) =>
  ['POST', ...(path === NATIVE ? ['PUT'] : [])].map((method) => ({
    name: `sglang, ${method} ${path}`,
    client: encodedAs(['gzip'], GZIP, { path, method }),
    config: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
  })),
);

function checkRefused(result: Result): void {
  expectError(result, 415, 'UnsupportedMediaTypeError', MESSAGE);
  expect([result.prefillRequests, result.decodeRequests]).toEqual([[], []]);
  expect(header(result.headers, 'x-routed-experts')).toBe('rejected');
  expectOutcome(result, 'rejected');
}

/** Values of `content-encoding` that name no encoding, or only the identity. */
const PLAIN: [name: string, values: string[]][] = [
  ['identity', ['identity']],
  ['Identity', ['Identity']],
  ['nothing', ['']],
  ['empty items', [',\t,']],
  ['identity twice', ['identity, IDENTITY']],
  ['several headers', ['identity', 'identity']],
];

const all = (
  { name, client, config, decode = GOOD_DECODE }: Spec,
  heads: string[],
  check: (result: Result) => void,
): Case[] =>
  protocols(client).flatMap((protocol) =>
    heads.map((each): Case => ({
      name: `${name}, ${protocol}, headers: ${each}`,
      scenario: () => ({
        name,
        config: { headers: each, ...config },
        client,
        prefill: answering(GOOD_PREFILL),
        decode: answering(decode),
        downstream: protocol,
        upstream: protocol,
      }),
      check,
    })),
  );

export const encodings: Suite = {
  name: 'requests with a content-encoding',
  cases: [
    ...REFUSED.flatMap((of) => all(of, HEADS, checkRefused)),
    ...CONCURRENT.flatMap((of) => all(of, ['hold'], checkRefused)),
    ...PLAIN.flatMap(([name, values]) =>
      all({ name: `passes: ${name}`, client: encodedAs(values, REQUEST) }, HEADS, (result) => {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(GOOD_MERGED);
        expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
      }),
    ),
    // The filter does not look at the encoding of a request that it does not serve.
    ...all(
      {
        name: 'passes: another path',
        client: encodedAs(['gzip'], GZIP, { path: '/v1/other' }),
        decode: '{}',
      },
      HEADS,
      (result) => {
        expect(result.status).toBe(200);
        expect(result.decodeRequests.map(({ body }) => body.equals(GZIP))).toEqual([true]);
        expectOutcome(result, 'local');
      },
    ),
  ],
};
