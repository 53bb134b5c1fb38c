// Requests that decode serves alone, and requests that are refused: which bytes reach which engine.

import { expect } from 'vitest';
import type { ClientRequest, EngineRequest, Protocol, Result } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  BATCH_DECODE,
  CACHED_TEXT,
  CHAT,
  COMPLETIONS,
  GENERATE,
  GOOD_DECODE,
  GOOD_PREFILL,
  NO_ARRAY,
  PARAMS,
  answering,
  cachedDecode,
  expectError,
  expectLength,
  expectOutcome,
  expectSalted,
  jsonOf,
  post,
  saltOf,
  withoutSalt,
} from './messages.ts';

interface Local {
  name: string;
  client: ClientRequest;
  config?: Record<string, unknown>;
  /** Decode's reply. Default: an array of all rows, and no report about its cache. */
  reply?: string;
}

interface Salted extends Local {
  /** The body of decode's request apart from its salt, as JSON. Default: the client's bytes. */
  body?: string;
  /**
   * The exact body of decode's request with this salt, for requests whose own salt is replaced in
   * its place.
   */
  exact?: (salt: string) => string;
}

const bodiless = (method: string, path: string): ClientRequest => ({
  method,
  path,
  headers: [['x-request-id', 'client-1']],
  chunks: [],
});

const at = (path: string, body: string | Buffer): ClientRequest => post(body, { path });

/** No reply to such a request has routing, so the filter does not read the response. */
const UNREAD: Local[] = [
  { name: 'GET of a served path', client: bodiless('GET', COMPLETIONS) },
  { name: 'GET /v1/models', client: bodiless('GET', '/v1/models') },
  { name: 'DELETE', client: bodiless('DELETE', COMPLETIONS) },
  { name: 'POST without a body', client: bodiless('POST', COMPLETIONS) },
  { name: 'PUT', client: { ...at(COMPLETIONS, '{"prompt":"x"}'), method: 'PUT' } },
];

const SHARED = { local_prefix_cache: 'shared' };

/**
 * The filter cannot make decode forward the whole prompt of these requests, so the reply itself
 * must say that decode has done so.
 */
const UNSALTED: Local[] = [
  { name: 'another path', client: at('/v1/embeddings', '{"input":"x"}') },
  { name: 'a path below', client: at('/v1/completions/x', '{"prompt":"x"}') },
  { name: 'a slash at the end', client: at('/v1/completions/', '{"prompt":"x"}') },
  { name: 'not JSON', client: at(COMPLETIONS, 'prompt=x') },
  { name: 'JSON that is cut', client: at(COMPLETIONS, '{"prompt":"x"') },
  { name: 'a list', client: at(COMPLETIONS, '[{"prompt":"x"}]') },
  { name: 'a string', client: at(COMPLETIONS, '"x"') },
  {
    name: 'echo, local_prefix_cache shared',
    client: at(COMPLETIONS, '{"prompt":"a","echo":true}'),
    config: SHARED,
  },
  {
    name: 'echo and a salt of the client’s own, local_prefix_cache shared',
    client: at(COMPLETIONS, '{"prompt":"a","echo":true,"cache_salt":"mine"}'),
    config: SHARED,
  },
  {
    name: 'a start that is no number, SGLang',
    client: at(COMPLETIONS, '{"prompt":"a","routed_experts_start_len":"0"}'),
    config: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
  },
];

/** A reply whose array has the rows from the client's start on. */
const SALTED: Salted[] = [
  { name: 'several texts', client: at(COMPLETIONS, '{"prompt":["a","b"]}'), reply: BATCH_DECODE },
  {
    name: 'several lists of tokens',
    client: at(COMPLETIONS, '{"prompt":[[1,2],[3]]}'),
    reply: BATCH_DECODE,
  },
  { name: 'prompt_embeds', client: at(COMPLETIONS, '{"prompt_embeds":"AAAA"}') },
  {
    name: 'prompt_logprobs of a stream',
    client: at(COMPLETIONS, '{"prompt":"a","prompt_logprobs":0,"stream":true}'),
  },
  {
    name: 'prompt_logprobs of a stream, in sampling_params',
    client: at(GENERATE, '{"token_ids":[1],"stream":true,"sampling_params":{"prompt_logprobs":1}}'),
  },
  { name: 'echo', client: at(COMPLETIONS, '{"prompt":"a","echo":true}') },
  { name: 'echo, in white space', client: at(COMPLETIONS, ' \n{ "prompt" : "a" , "echo" : true }\r\n ') },
  {
    name: 'echo of text beyond ASCII',
    client: at(COMPLETIONS, '{"prompt":"\u00e9\u72d0\ud83e\udd8a \\ud83e\\udd8a","echo":true}'),
  },
  { name: 'max_tokens: 0', client: at(COMPLETIONS, '{"prompt":"a","max_tokens":0}') },
  { name: 'max_completion_tokens: 0', client: at(CHAT, '{"messages":[],"max_completion_tokens":0}') },
  {
    // An engine takes it for 0.
    name: 'a start that is no number',
    client: at(COMPLETIONS, '{"prompt":"a","routed_experts_prompt_start":"0"}'),
  },
  {
    name: 'a start in sampling_params that is no plain number',
    client: at(GENERATE, '{"token_ids":[1],"sampling_params":{"routed_experts_prompt_start":0.0}}'),
  },
  {
    name: 'sampling_params twice',
    client: at(GENERATE, '{"token_ids":[1],"sampling_params":{"n":1},"sampling_params":{}}'),
  },
  // The client's own transfer parameters are removed, and nothing else.
  {
    name: 'a batch with parameters',
    client: at(COMPLETIONS, `{"prompt":["a","b"], "kv_transfer_params": ${PARAMS} ,"n":1}`),
    body: '{"prompt":["a","b"],"n":1}',
    reply: BATCH_DECODE,
  },
  {
    name: 'a batch with escaped parameters, twice',
    client: at(
      COMPLETIONS,
      `{"kv\\u005ftransfer_params":${PARAMS},"prompt":["a","b"],"kv_transfer_params":1}`,
    ),
    body: '{"prompt":["a","b"]}',
    reply: BATCH_DECODE,
  },
  {
    name: 'a batch with parameters in vllm_xargs',
    client: at(COMPLETIONS, `{"prompt":["a","b"],"vllm_xargs":{"a":1,"kv_transfer_params":${PARAMS}}}`),
    body: '{"prompt":["a","b"],"vllm_xargs":{"a":1}}',
    reply: BATCH_DECODE,
  },
  {
    name: 'max_tokens: 0 with parameters in extra_args',
    client: at(
      GENERATE,
      `{"token_ids":[1],"sampling_params":{"max_tokens":0,"extra_args":{"kv_transfer_params":${PARAMS},"b":2}},"kv_transfer_params":{}}`,
    ),
    body: '{"token_ids":[1],"sampling_params":{"max_tokens":0,"extra_args":{"b":2}}}',
  },
  // With a salt of the client's own, its second request would hit the blocks that the first one
  // pulled.
  {
    name: 'a salt of the client’s own',
    client: at(COMPLETIONS, '{"prompt":"a", "cache_salt" : "mine" ,"echo":true}'),
    exact: (salt) => `{"prompt":"a", "cache_salt" : "${salt}" ,"echo":true}`,
  },
  {
    name: 'a salt that is null',
    client: at(GENERATE, '{"cache_salt":null,"token_ids":[1],"sampling_params":{"max_tokens":0}}'),
    exact: (salt) => `{"cache_salt":"${salt}","token_ids":[1],"sampling_params":{"max_tokens":0}}`,
  },
  {
    name: 'a salt twice, the second escaped',
    client: at(CHAT, '{"cache_salt":"a","max_tokens":0,"cache\\u005fsalt":{"b":1},"messages":[]}'),
    exact: (salt) => `{"max_tokens":0,"cache\\u005fsalt":"${salt}","messages":[]}`,
  },
  {
    name: 'a salt in another object, which is none',
    client: at(COMPLETIONS, '{"prompt":"a","echo":true,"vllm_xargs":{"cache_salt":"mine"}}'),
  },
];

function expectAlone({ client }: Local, result: Result): EngineRequest {
  expect(result.prefillRequests).toEqual([]);
  expect(result.decodeRequests).toHaveLength(1);
  const [request] = result.decodeRequests as [EngineRequest];
  expect(request.body.includes('do_remote_prefill')).toBe(false);
  expect(request.path).toBe(client.path);
  expect(request.method).toBe(client.method);
  if (request.body.length > 0)
    expect(header(request.headers, 'content-length')).toBe(String(request.body.length));
  return request;
}

/** Decode got the client's bytes, unchanged. */
function expectUntouched(of: Local, result: Result): void {
  const request = expectAlone(of, result);
  expect(request.body).toEqual(Buffer.concat(of.client.chunks));
  // The response must not be compressed if the filter reads it. For other paths and for bodies that
  // are no request, the filter forwards `accept-encoding` and does not read compressed responses.
  expect(header(request.headers, 'accept-encoding')).toBe(of.config ? undefined : 'gzip');
}

/** Whether the path is not served, so that the response's head leaves at once. */
const isElsewhere = ({ client }: Local) => client.path !== COMPLETIONS;

function expectLocal(reply: string, result: Result, headless = false): void {
  expect(result).toMatchObject({ status: 200, complete: true });
  expect(result.body.toString()).toBe(reply);
  expectLength(result, true);
  expect(header(result.headers, 'x-routed-experts')).toBe(headless ? undefined : 'local');
  expectOutcome(result, 'local');
}

function expectCached(result: Result, headless: boolean): void {
  if (headless) {
    expect(result).toMatchObject({ status: 200, complete: false });
    return expectOutcome(result, 'rejected; reason=cached');
  }
  expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${CACHED_TEXT}`);
  expect(header(result.headers, 'x-routed-experts')).toBe('rejected; reason=cached');
  expectOutcome(result, 'rejected; reason=cached');
}

function checkSalted(of: Salted, result: Result): void {
  const request = expectAlone(of, result);
  const sent = Buffer.concat(of.client.chunks);
  if (of.exact) expect(request.body.toString()).toBe(of.exact(saltOf(request)));
  else if (of.body === undefined) expectSalted(request, sent);
  else expect(JSON.parse(withoutSalt(request))).toEqual(JSON.parse(of.body));
  // The filter reads the response, so decode must not compress it.
  expect(header(request.headers, 'accept-encoding')).toBeUndefined();
}

type Check = (of: Local, result: Result) => void;

const aloneCase = (of: Local, name: string, protocol: Protocol, reply: string, check: Check): Case => ({
  name: `decode alone: ${of.name}${name}, ${protocol}`,
  scenario: () => ({
    name: of.name,
    ...(of.config ? { config: of.config } : {}),
    client: { ...of.client, headers: [...of.client.headers, ['accept-encoding', 'gzip']] },
    prefill: answering(GOOD_PREFILL),
    decode: answering(reply),
    downstream: protocol,
    upstream: protocol,
  }),
  check: (result) => check(of, result),
});

const alone: Case[] = (['http1', 'http2'] as const).flatMap((protocol) => [
  ...UNREAD.map((of) =>
    aloneCase(of, '', protocol, GOOD_DECODE, (_, result) => {
      expectUntouched(of, result);
      expectLocal(GOOD_DECODE, result);
    }),
  ),
  ...UNSALTED.flatMap((of) => [
    aloneCase(of, ', nothing was cached', protocol, cachedDecode(0), (_, result) => {
      expectUntouched(of, result);
      expectLocal(cachedDecode(0), result, isElsewhere(of));
    }),
    ...[GOOD_DECODE, cachedDecode(4)].map((reply) =>
      aloneCase(
        of,
        reply === GOOD_DECODE ? ', nobody knows what was cached' : ', some was cached',
        protocol,
        reply,
        (_, result) => {
          expectUntouched(of, result);
          expectCached(result, isElsewhere(of));
        },
      ),
    ),
    aloneCase(of, ', no array', protocol, NO_ARRAY, (_, result) => {
      expectUntouched(of, result);
      expectLocal(NO_ARRAY, result, isElsewhere(of));
    }),
  ]),
  ...SALTED.map((of) =>
    aloneCase(of, '', protocol, of.reply ?? GOOD_DECODE, (_, result) => {
      checkSalted(of, result);
      expectLocal(of.reply ?? GOOD_DECODE, result);
    }),
  ),
]);

interface Served {
  name: string;
  client: ClientRequest;
}

/**
 * Requests that P/D serves: prefill's parameters reach decode, and the client's own parameters
 * reach no engine.
 */
const SERVED: Served[] = [
  { name: 'one text in a list', client: at(COMPLETIONS, '{"prompt":["a"]}') },
  { name: 'a list of tokens', client: at(COMPLETIONS, '{"prompt":[1,2,3]}') },
  { name: 'one list of tokens', client: at(COMPLETIONS, '{"prompt":[[1,2,3]]}') },
  {
    name: 'nulls',
    client: at(
      COMPLETIONS,
      '{"prompt":"a","prompt_logprobs":null,"echo":false,"prompt_embeds":null,"stream_options":null}',
    ),
  },
  { name: 'a start of 0', client: at(COMPLETIONS, '{"prompt":"a","routed_experts_prompt_start":0}') },
  { name: 'an empty object', client: at(COMPLETIONS, '{}') },
  { name: 'white space', client: at(COMPLETIONS, ' \n{ "prompt" : "a" , "max_tokens" : 5 }\r\n ') },
  { name: 'a query', client: at(`${COMPLETIONS}?a=b`, '{"prompt":"a"}') },
  {
    name: 'an escaped path',
    client: at('/v1/%63ompletions', `{"prompt":"a","kv_transfer_params":${PARAMS}}`),
  },
  {
    name: 'parameters',
    client: at(COMPLETIONS, `{"prompt":"a","kv_transfer_params":${PARAMS.replace('r-1', 'evil')}}`),
  },
  { name: 'escaped parameters', client: at(CHAT, `{"messages":[],"k\\u0076_transfer_params":{"evil":1}}`) },
  {
    name: 'parameters twice',
    client: at(COMPLETIONS, `{"kv_transfer_params":{"evil":1},"prompt":"a","kv_transfer_params":{"evil":2}}`),
  },
  { name: 'parameters alone', client: at(COMPLETIONS, '{"kv_transfer_params":{"evil":1}}') },
  {
    name: 'parameters in extra_args',
    client: at(
      GENERATE,
      '{"token_ids":[1],"sampling_params":{"extra_args":{"kv_transfer_params":{"evil":1}}}}',
    ),
  },
  {
    name: 'parameters in vllm_xargs',
    client: at(CHAT, '{"messages":[],"vllm_xargs":{"kv_transfer_params":{"evil":1}}}'),
  },
  {
    name: 'text beyond ASCII',
    client: at(COMPLETIONS, '{"prompt":"\u00e9\u72d0\ud83e\udd8a \\ud83e\\udd8a"}'),
  },
  {
    name: 'many members',
    client: at(
      COMPLETIONS,
      '{"prompt":"a","min_tokens":4,"max_tokens":9,"n":3,"stream":false,"stream_options":{},"cache_hit_threshold":0.5,"logit_bias":{"1":-1e2}}',
    ),
  },
];

function checkServed({ client }: Served, result: Result): void {
  expect(result.prefillRequests).toHaveLength(1);
  expect(result.decodeRequests).toHaveLength(1);
  for (const { body, path, headers } of [...result.prefillRequests, ...result.decodeRequests]) {
    expect(body.includes('evil')).toBe(false);
    expect(path).toBe(client.path);
    expect(header(headers, 'content-length')).toBe(String(body.length));
  }
  const sent = JSON.parse(Buffer.concat(client.chunks).toString()) as Record<string, unknown>;
  for (const owner of [
    sent,
    sent['vllm_xargs'],
    (sent['sampling_params'] as { extra_args?: object } | null)?.extra_args,
  ]) {
    if (owner) delete (owner as Record<string, unknown>)['kv_transfer_params'];
  }
  const { kv_transfer_params: params, ...decoded } = jsonOf(result.decodeRequests[0]!);
  expect(params).toEqual(JSON.parse(PARAMS));
  expect(decoded).toEqual(sent);

  const prefilled = jsonOf(result.prefillRequests[0]!);
  expect(prefilled['kv_transfer_params']).toMatchObject({ do_remote_decode: true, do_remote_prefill: false });
  const caps = (client.path === GENERATE ? prefilled['sampling_params'] : prefilled) as Record<
    string,
    unknown
  >;
  expect(caps['max_tokens']).toBe(1);
  expect(caps['min_tokens'] ?? 1).toBe(1);
  expect(caps['n'] ?? 1).toBe(1);
  expect(prefilled['stream'] ?? false).toBe(false);
  expect('stream_options' in prefilled).toBe(false);
}

interface Refused {
  name: string;
  body: Buffer | string;
  message: string;
}

const NOT_UTF8 = 'the request body is not UTF-8';
const REFUSED: Refused[] = [
  { name: 'UTF-16', body: Buffer.from('{"prompt":"a"}', 'utf16le'), message: NOT_UTF8 },
  { name: 'UTF-16 with a mark', body: Buffer.from('\ufeff{"prompt":"a"}', 'utf16le'), message: NOT_UTF8 },
  { name: 'UTF-16, big endian', body: Buffer.from('{"prompt":"a"}', 'utf16le').swap16(), message: NOT_UTF8 },
  { name: 'UTF-32', body: Buffer.from([0x7b, 0, 0, 0, 0x7d, 0, 0, 0]), message: NOT_UTF8 },
  { name: 'UTF-8 with a mark', body: '\ufeff{"prompt":"a"}', message: NOT_UTF8 },
  {
    name: 'too deep',
    body: `{"prompt":${'['.repeat(600)}${']'.repeat(600)}}`,
    message: 'the request body is nested too deep',
  },
];

export const local: Suite = {
  name: 'requests that P/D can not serve, and those that it can',
  cases: [
    ...alone,
    ...SERVED.map((of): Case => ({
      name: `both legs: ${of.name}`,
      scenario: () => ({
        name: of.name,
        client: of.client,
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
      }),
      check: (result) => checkServed(of, result),
    })),
    ...REFUSED.map((of): Case => ({
      name: `refused: ${of.name}`,
      scenario: () => ({
        name: of.name,
        client: at(COMPLETIONS, of.body),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
      }),
      check(result) {
        expectError(result, 400, 'BadRequestError', of.message);
        expect(result.prefillRequests).toEqual([]);
        expect(result.decodeRequests).toEqual([]);
        expect(header(result.headers, 'x-routed-experts')).toBe('rejected');
        expectOutcome(result, 'rejected');
      },
    })),
  ],
};
