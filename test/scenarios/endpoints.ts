// The prefill endpoint that a request names: which engine gets the leg, which endpoints are
// refused, and that the header is never forwarded.

import { expect } from 'vitest';
import type {
  ClientRequest,
  Engine,
  EngineRequest,
  Header,
  Protocol,
  Result,
  Scenario,
} from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  decodeBody,
  encoded,
  expectError,
  expectOutcome,
  FULL,
  GOOD_DECODE,
  jsonOf,
  merged,
  NO_ARRAY,
  PARAMS,
  post,
  prefillBody,
  PROMPT,
  quoted,
  reply,
  REQUEST,
  REQUEST_ID,
  withoutSalt,
} from './messages.ts';

const HEADER = 'x-prefiller-host-port';
const PROTOCOLS: Protocol[] = ['http1', 'http2'];

/** Each prefill engine returns rows of its own. */
const ROWS = [PROMPT, { ...PROMPT, from: 7 }];
const REPLIES = ROWS.map((rows) => prefillBody(quoted(encoded(rows))));
const MERGED = ROWS.map((rows) => decodeBody([quoted(merged(rows, FULL))]));

const ALLOWED = ['{prefill:0}', '127.0.0.0/30:{prefill:1:port}'];

const naming = (value: string | string[], more: Partial<ClientRequest> = {}): ClientRequest => {
  const request = post(REQUEST, more);
  const headers = [value].flat().map((each): Header => [HEADER, each]);
  return { ...request, headers: [...request.headers, ...headers] };
};

function scenarioOf(client: ClientRequest, more: Partial<Scenario> = {}, prefill: object = {}): Scenario {
  return {
    name: 'endpoint',
    config: { prefill: { endpoint_header: HEADER, allowed_endpoints: ALLOWED, ...prefill } },
    client,
    prefill: REPLIES.map((body) => answering(body)),
    decode: answering(GOOD_DECODE),
    ...more,
  };
}

const sent = ({ prefillRequests, decodeRequests }: Result): EngineRequest[] => [
  ...prefillRequests,
  ...decodeRequests,
];

function expectNotForwarded(result: Result): void {
  for (const { headers, trailers = [] } of sent(result))
    expect([...headers, ...trailers].map(([name]) => name)).not.toContain(HEADER);
}

/** Checks that this engine, and no other, got the leg. */
function expectServed(result: Result, engine: number): void {
  expect(result).toMatchObject({ status: 200, complete: true });
  expect(result.body.toString()).toBe(MERGED[engine]);
  expect(result.prefillRequests).toHaveLength(1);
  expectNotForwarded(result);
  expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
}

interface Named {
  name: string;
  value: string | string[];
  engine: number;
}

const NAMED: Named[] = [
  { name: 'the first engine', value: '{prefill:0}', engine: 0 },
  { name: 'the second engine', value: '{prefill:1}', engine: 1 },
  { name: 'the first of a list', value: '{prefill:1}, {prefill:0}', engine: 1 },
  { name: 'a list of which only the first is allowed', value: '{prefill:1},10.9.9.9:1,x', engine: 1 },
  { name: 'the first of two headers', value: ['{prefill:1}', '{prefill:0}'], engine: 1 },
  { name: 'white space around it', value: ' \t {prefill:1} \t , x', engine: 1 },
  { name: 'an IPv4 address inside an IPv6 one', value: '[::ffff:127.0.0.1]:{prefill:1:port}', engine: 1 },
  { name: 'the same in hexadecimal', value: '[0:0:0:0:0:FFFF:7f00:1]:{prefill:1:port}', engine: 1 },
];

const named: Case[] = NAMED.flatMap((of) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `${of.name}, ${protocol}`,
    scenario: () => scenarioOf(naming(of.value), { downstream: protocol, upstream: protocol }),
    check(result) {
      expectServed(result, of.engine);
      // The filter writes the address in its own form, whatever the client wrote.
      const host = header(result.prefillRequests[0]!.headers, 'x-envoy-original-dst-host');
      expect(host).toMatch(/^127\.0\.0\.1:\d+$/);
      expect(jsonOf(result.decodeRequests[0]!)['kv_transfer_params']).toMatchObject({
        remote_request_id: 'r-1',
      });
    },
  })),
);

/** The client also sends Envoy's own header, which would name another endpoint. */
const disguised: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `a client can not name it in Envoy's own header, ${protocol}`,
  scenario: () => {
    const client = naming('{prefill:1}');
    return scenarioOf(
      { ...client, headers: [...client.headers, ['x-envoy-original-dst-host', '{prefill:0}']] },
      { downstream: protocol, upstream: protocol },
    );
  },
  check: (result) => expectServed(result, 1),
}));

const upperCase: Case = {
  name: 'the letter case of the header does not matter',
  scenario: () => {
    const client = post(REQUEST);
    return scenarioOf({ ...client, headers: [...client.headers, ['X-Prefiller-Host-Port', '{prefill:1}']] });
  },
  check: (result) => expectServed(result, 1),
};

// ---- no endpoint

const nowhere: Case[] = [
  ['no header', []],
  ['an empty header', ['']],
  ['white space', [' \t']],
  ['a list that begins with nothing', [', {prefill:0}']],
  ['an empty header before another', ['', '{prefill:0}']],
].flatMap(([name, values]) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `${name as string}: no P/D, ${protocol}`,
    scenario: () => {
      const body = `{"prompt":"a","kv_transfer_params":${PARAMS}}`;
      const client = post(body);
      const headers = (values as string[]).map((value): Header => [HEADER, value]);
      return scenarioOf(
        { ...client, headers: [...client.headers, ...headers] },
        { downstream: protocol, upstream: protocol },
      );
    },
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true, prefillRequests: [] });
      expect(result.body.toString()).toBe(GOOD_DECODE);
      expect(JSON.parse(withoutSalt(result.decodeRequests[0]!))).toEqual({ prompt: 'a' });
      expectNotForwarded(result);
      expect(header(result.headers, 'x-routed-experts')).toBe('local');
      expectOutcome(result, 'local');
    },
  })),
);

// ---- refused

const NOT_ALLOWED = 'is not allowed';
const NOT_READ = 'is not an address or a name with a port';

const REFUSED: [value: string | string[], why: string][] = [
  ['127.0.0.1:1', NOT_ALLOWED],
  ['127.0.0.4:{prefill:1:port}', NOT_ALLOWED],
  ['10.0.0.1:{prefill:0:port}', NOT_ALLOWED],
  ['[::1]:{prefill:0:port}', NOT_ALLOWED],
  ['[::ffff:10.0.0.1]:{prefill:0:port}', NOT_ALLOWED],
  ['169.254.169.254:80', NOT_ALLOWED],
  ['localhost:{prefill:0:port}', NOT_ALLOWED],
  ['10.0.0.1:1,{prefill:0}', NOT_ALLOWED],
  [['10.0.0.1:1', '{prefill:0}'], NOT_ALLOWED],
  ['127.0.0.1', NOT_READ],
  ['{prefill:0:port}', NOT_READ],
  ['0127.0.0.1:{prefill:0:port}', NOT_READ],
  ['127.1:{prefill:0:port}', NOT_READ],
  ['2130706433:{prefill:0:port}', NOT_READ],
  ['0x7f000001:{prefill:0:port}', NOT_READ],
  ['::ffff:127.0.0.1:{prefill:0:port}', NOT_READ],
  ['[::ffff:127.0.0.1%lo]:{prefill:0:port}', NOT_READ],
  ['{prefill:0}x', NOT_READ],
  ['{prefill:0}/', NOT_READ],
  ['http://{prefill:0}', NOT_READ],
  ['{prefill:0} {prefill:0}', NOT_READ],
  ['a@{prefill:0}', NOT_READ],
];

const refused: Case[] = REFUSED.flatMap(([value, why]) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `${JSON.stringify(value)} ${why}, ${protocol}`,
    scenario: () => scenarioOf(naming(value), { downstream: protocol, upstream: protocol }),
    check(result) {
      expectError(result, 403, 'ForbiddenError', `the prefill endpoint ${why}`);
      expect(sent(result)).toEqual([]);
      expect(header(result.headers, 'x-routed-experts')).toBe('rejected');
      expectOutcome(result, 'rejected', { 'routed_experts.endpoints_refused': 1 });
    },
  })),
);

/**
 * A request that P/D would not serve is refused, too, because the filter reads the endpoint before
 * the body.
 */
const refusedLocal: Case = {
  name: 'a batch that names an endpoint which is not allowed',
  scenario: () =>
    scenarioOf({
      ...naming('10.0.0.1:1', post('{"prompt":["a","b"]}')),
    }),
  check(result) {
    expect(result.status).toBe(403);
    expect(sent(result)).toEqual([]);
    expectOutcome(result, 'rejected', { 'routed_experts.endpoints_refused': 1 });
  },
};

const piecemeal: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `refused before its body has come, ${protocol}`,
  // How much the client still writes when it is answered depends on timing.
  only: { host: 'emulator', because: 'a client that is answered while it writes may be cut off' },
  scenario: () =>
    scenarioOf(
      { ...naming('10.0.0.1:1'), chunks: [...REQUEST].map((each) => Buffer.from(each)) },
      { downstream: protocol, upstream: protocol },
    ),
  check(result) {
    expect(result.status).toBe(403);
    expectOutcome(result, 'rejected', { 'routed_experts.endpoints_refused': 1 });
  },
}));

// ---- the header goes nowhere

const bodiless = (method: string, path: string, value: string): ClientRequest => ({
  method,
  path,
  headers: [
    ['x-request-id', REQUEST_ID],
    [HEADER, value],
  ],
  chunks: [],
});

const UNSERVED: [string, ClientRequest][] = [
  ['another path', naming('10.0.0.1:1', { path: '/v1/embeddings' })],
  ['another path, allowed', naming('{prefill:0}', { path: '/v1/embeddings' })],
  ['GET', bodiless('GET', '/v1/models', '{prefill:0}')],
  ['GET of a served path', bodiless('GET', '/v1/completions', 'x')],
  ['DELETE', bodiless('DELETE', '/v1/completions', '{prefill:0}')],
  ['PUT', naming('{prefill:0}', { method: 'PUT' })],
  ['two headers', naming(['a', 'b'], { path: '/health' })],
];

const unserved: Case[] = UNSERVED.flatMap(([name, client]) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `not served, ${name}: the header is taken out, ${protocol}`,
    scenario: () =>
      scenarioOf(client, { decode: answering(NO_ARRAY), downstream: protocol, upstream: protocol }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true, prefillRequests: [] });
      expect(result.decodeRequests).toHaveLength(1);
      expectNotForwarded(result);
      expectOutcome(result, 'local');
    },
  })),
);

const trailers: Case[] = PROTOCOLS.flatMap((protocol) =>
  ['/v1/completions', '/v1/embeddings'].map((path): Case => ({
    name: `in trailers it names nothing, and goes nowhere, ${path}, ${protocol}`,
    scenario: () => {
      const client = post(REQUEST, {
        path,
        trailers: [
          [HEADER, '10.0.0.1:1'],
          ['x-end', '1'],
        ],
      });
      const headers = client.headers.filter(([name]) => name !== 'content-length');
      return scenarioOf(
        { ...client, headers },
        { decode: answering(NO_ARRAY), downstream: protocol, upstream: protocol },
      );
    },
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true, prefillRequests: [] });
      expectNotForwarded(result);
      expect(result.decodeRequests[0]!.trailers).toEqual([['x-end', '1']]);
      expectOutcome(result, 'local');
    },
  })),
);

/** Without the setting `endpoint_header`, the header is one like any other. */
const unset: Case = {
  name: 'without endpoint_header nothing is taken out, and nothing named',
  scenario: () => ({ ...scenarioOf(naming('10.0.0.1:1')), config: {} }),
  check(result) {
    expect(result.body.toString()).toBe(MERGED[0]);
    for (const { headers } of sent(result)) expect(header(headers, HEADER)).toBe('10.0.0.1:1');
  },
};

// ---- an endpoint that fails

const fails: Case = {
  name: 'an endpoint where nobody listens',
  scenario: () => scenarioOf(naming('127.0.0.1:1'), {}, { allowed_endpoints: ['127.0.0.1:1'], retries: 2 }),
  check(result) {
    expect(result.body.toString()).toBe(GOOD_DECODE);
    expect(result.prefillRequests).toEqual([]);
    expectOutcome(result, 'local', { 'routed_experts.prefill_failures': 1 });
  },
};

/** The retries of Envoy and the tries of the filter go to the endpoint that the request names. */
const again: Case = {
  name: 'tries are made at the same endpoint',
  scenario: () => {
    const answers = [503, 500, 200];
    const busy: Engine = () => {
      const status = answers.shift()!;
      return reply(status === 200 ? REPLIES[1]! : 'busy', { status });
    };
    return scenarioOf(naming('{prefill:1}'), { prefill: [answering(REPLIES[0]!), busy] }, { retries: 2 });
  },
  check(result) {
    expect(result.body.toString()).toBe(MERGED[1]);
    expect(result.prefillRequests).toHaveLength(3);
    expectNotForwarded(result);
    const hosts = new Set(
      result.prefillRequests.map(({ headers }) => header(headers, 'x-envoy-original-dst-host')),
    );
    expect(hosts.size).toBe(1);
    expectOutcome(result, 'merged; rows=5; choices=1', {
      'routed_experts.spliced_bytes': 30,
      'routed_experts.prefill_failures': 1,
    });
  },
};

// ---- dynamic forward proxy

const PROXY = {
  cluster_type: 'dynamic_forward_proxy',
  allowed_endpoints: ['LocalHost:{prefill:1:port}', '127.0.0.1:1-65535', '[::1]:1', 'nowhere.invalid:1'],
};

/**
 * The result without the look-ups. Envoy resolves a host when a request first asks for it; a leg
 * has a body and cannot wait for that, so the filter sends `GET /health` first.
 */
function withoutLookup(result: Result): Result {
  const lookups = result.prefillRequests.filter(({ path }) => path === '/health');
  for (const { method, body } of lookups) expect([method, body.length]).toEqual(['GET', 0]);
  return { ...result, prefillRequests: result.prefillRequests.filter((each) => !lookups.includes(each)) };
}

const proxied: Case[] = [
  ['a name for the first time', 'LOCALHOST:{prefill:1:port}', 'localhost', 1],
  ['a name', 'localhost:{prefill:1:port}', 'localhost', 1],
  ['an address', '{prefill:1}', '127.0.0.1', 1],
  ['an address, the other engine', '[::ffff:7f00:1]:{prefill:0:port}', '127.0.0.1', 0],
].flatMap(([name, value, host, engine]) =>
  PROTOCOLS.map((protocol): Case => ({
    name: `a dynamic forward proxy, ${name as string}, ${protocol}`,
    scenario: () => scenarioOf(naming(value as string), { downstream: protocol, upstream: protocol }, PROXY),
    check(all) {
      const result = withoutLookup(all);
      expectServed(result, engine as number);
      const first = (name as string).includes('first');
      if (first || name === 'a name') expect(all.prefillRequests).toHaveLength(first ? 2 : 1);
      const [request] = result.prefillRequests as [EngineRequest];
      expect(header(request.headers, 'x-envoy-original-dst-host')).toBeUndefined();
      if (protocol === 'http1') {
        expect(header(request.headers, 'host')!.replace(/\d+$/, '')).toBe(`${host as string}:`);
        expect(header(result.decodeRequests[0]!.headers, 'host')).toBe('localhost');
      }
    },
  })),
);

const proxyRefused: Case[] = ['localhost:{prefill:0:port}', 'localhost.x:{prefill:1:port}', '10.0.0.1:1'].map(
  (value): Case => ({
    name: `a dynamic forward proxy, ${value} is not allowed`,
    scenario: () => scenarioOf(naming(value), {}, PROXY),
    check(result) {
      expectError(result, 403, 'ForbiddenError', `the prefill endpoint ${NOT_ALLOWED}`);
      expect(sent(result)).toEqual([]);
      expectOutcome(result, 'rejected', { 'routed_experts.endpoints_refused': 1 });
    },
  }),
);

/** A host without an address, both the first time and when Envoy already knows that it has none. */
const hostless: Case[] = ['nowhere.invalid:1', 'nowhere.invalid:1', '[::1]:1'].flatMap((value, i) =>
  ['decode', 'reject'].map((policy): Case => ({
    name: `a dynamic forward proxy, no address for ${value} (${i}): ${policy}`,
    scenario: () => {
      const scenario = scenarioOf(naming(value), {}, PROXY);
      return { ...scenario, config: { ...scenario.config, on_prefill_failure: policy } };
    },
    check(result) {
      expect(result.prefillRequests).toEqual([]);
      const failures = { 'routed_experts.prefill_failures': 1 };
      if (policy === 'reject') {
        expectError(result, 502, 'BadGatewayError', 'prefill failed: no healthy host');
        return expectOutcome(result, 'rejected', failures);
      }
      expect(result.body.toString()).toBe(GOOD_DECODE);
      expectOutcome(result, 'local', failures);
    },
  })),
);

export const endpoints: Suite = {
  name: 'the prefill endpoint that a request names',
  cases: [
    ...named,
    ...disguised,
    upperCase,
    ...nowhere,
    ...refused,
    refusedLocal,
    ...piecemeal,
    ...unserved,
    ...trailers,
    unset,
    fails,
    again,
    ...proxied,
    ...proxyRefused,
    ...hostless,
  ],
};
