// The connectors whose legs name prefill's bootstrap server, between simulated engines that insist
// on their handshake: rooms and transfers must be the same on both legs, or an engine waits in
// vain. Mooncake's legs are sent in both orders. The answer must be the oracle's.

import { expect } from 'vitest';
import { createEngine, type Address, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import type { Engine, EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  BATCH_DECODE,
  CHAT,
  COMPLETIONS,
  expectOutcome,
  expectSalted,
  GENERATE,
  GOOD_DECODE,
  HANDSHAKES,
  jsonOf,
  NATIVE,
  post,
  withoutSalt,
  type HandshakeName,
} from './messages.ts';
import { usedDeployment } from './used.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const HOST = '127.0.0.1';

type Json = Record<string, any>;

interface Spec {
  name: string;
  path: string;
  body: Json;
  protocol: Protocol;
  config?: Json;
  engine?: Partial<EngineOptions>;
  /** For connector mooncake. */
  handshake?: HandshakeName;
}

/**
 * A VM remembers a bootstrap server by its port, so each exchange gets a server that none has asked
 * before.
 */
let lastPort = 10_000;

/**
 * Matches what differs between runs: what the filter generates, the ports, and the ids, which
 * engines draw in the order in which the legs arrive.
 */
const RANDOM =
  /(?<="(?:request_)?id":)"[^"]*"|"bootstrap_room":(\d+|\[[\d,]+\])|xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+|(?<="bootstrap_port":)[\d,[\]]+/g;

/**
 * A reply without what differs between engines: ids, and the count of cached tokens, which only
 * prefill knows.
 */
function rest(text: string): unknown {
  return JSON.parse(text, (key, value: unknown) => (OF_AN_ENGINE.has(key) ? undefined : value));
}

const OF_AN_ENGINE = new Set([
  ...['id', 'request_id', 'cached_tokens', 'cached_tokens_details', 'system_fingerprint'],
]);

const promptOf = (document: string): number => Number(/"index":(\d+)\}$/.exec(document)?.[1] ?? 0);

const bodies = (text: string, events: boolean): string[] =>
  events ? text.split('\n\n').flatMap((event) => (/^data: \{/.test(event) ? [event.slice(6)] : [])) : [text];

export function caseOf(connector: 'sglang' | 'mooncake', spec: Spec): Case {
  const { name, path, body, protocol, config, engine, handshake } = spec;
  const request = JSON.stringify(body);
  const options = (address: Address) =>
    ({
      connector,
      ...(connector === 'mooncake' ? { ranks: 3 } : {}),
      bootstrap: address,
      // Long enough for a loaded machine. A leg that no other leg joins fails the test.
      patience: 5000,
      model: { layers: 3, topK: 2, experts: 9 },
      ...engine,
    }) satisfies Partial<EngineOptions>;

  const scenario = (): Scenario => {
    const address = { host: HOST, port: ++lastPort };
    const { engines } = usedDeployment(path, request, options(address), {
      decode: { chunkBytes: 101 },
    });
    return {
      name,
      config: {
        connector,
        ...(handshake ? { handshake } : {}),
        ...config,
        prefill: { bootstrap_host: HOST, bootstrap_port: address.port, ...config?.['prefill'] },
      },
      client: post(request, { path }),
      ...(handshake ? ordered(engines, handshake) : engines),
      bootstrap: engines.prefill,
      downstream: protocol,
      upstream: protocol,
    };
  };

  const check = (result: Result): void => {
    expect(result).toMatchObject({ status: 200, complete: true });
    const oracle = createEngine({ ...options({ host: HOST, port: 1 }), role: 'oracle' });
    const { chunks } = oracle({
      method: 'POST',
      path,
      headers: [['content-type', 'application/json']],
      body: Buffer.from(request),
    }) as EngineReply;
    const [ours, theirs] = [result.body, Buffer.concat(chunks)].map((each) =>
      bodies(each.toString(), body['stream'] === true).map(rest),
    );
    // Events of several prompts come in the order of the engine that sends them.
    const inOrder = (documents: unknown[]) =>
      documents.map((each) => JSON.stringify(each)).sort((a, b) => promptOf(a) - promptOf(b));
    expect(inOrder(ours!)).toEqual(inOrder(theirs!));
    expect(result.logged).toMatch(/^merged; rows=\d+; choices=\d+$/);
    expect(result.prefillRequests).toHaveLength(1);
    expect(result.decodeRequests).toHaveLength(1);
    if (connector === 'mooncake') checkMooncake(result);
  };
  return { name, scenario, check, random: RANDOM, cutDecidesHead: true };
}

/**
 * Engines that show in which order they are asked: in sequence decode refuses what comes before
 * prefill has answered, and otherwise prefill does not answer before decode has been asked.
 */
export function ordered(
  { prefill, decode }: { prefill: Engine; decode: Engine },
  handshake: HandshakeName,
): { prefill: Engine; decode: Engine } {
  let answered = false;
  let ask = (): void => undefined;
  const asked = new Promise<void>((resolve) => (ask = resolve));
  return {
    prefill: async (request) => {
      const reply = await prefill(request);
      if (handshake === 'concurrent') await asked;
      answered = true;
      return reply;
    },
    decode: (request) => {
      ask();
      return handshake === 'sequential' && !answered
        ? answering('', { status: 418 })(request)
        : decode(request);
    },
  };
}

function checkMooncake({ prefillRequests, bootstrapRequests, decodeRequests }: Result): void {
  expect(bootstrapRequests.map(({ method, path, body }) => [method, path, body.length])).toEqual([
    ['GET', '/query', 0],
  ]);
  const [prefill, decode] = [prefillRequests[0]!, decodeRequests[0]!];
  expect(header(prefill.headers, 'x-data-parallel-rank')).toBe('0');
  expect(header(decode.headers, 'x-data-parallel-rank')).toBeUndefined();
  const [one, two] = [prefill, decode].map((request) => jsonOf(request)['kv_transfer_params'] as Json);
  expect(one!['transfer_id']).toBe(two!['transfer_id']);
  expect(one!['transfer_id']).toMatch(
    /^xfer-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
  );
}

// ---- SGLang

const routed = (body: Json): Json => ({ ...body, return_routed_experts: true });
const native = (body: Json, sampling: Json = {}): Json =>
  routed({ ...body, sampling_params: { max_new_tokens: 7, ...sampling } });

const SGLANG: [string, string, Json][] = [
  ['a text', NATIVE, native({ text: 'The quick brown fox' })],
  ['tokens', NATIVE, native({ input_ids: [5, 6, 7, 8] })],
  ['one generated token', NATIVE, native({ text: 'The quick' }, { max_new_tokens: 1 })],
  ['one token each of two texts', NATIVE, native({ text: ['The', 'quick fox'] }, { max_new_tokens: 1 })],
  [
    'one token behind the rows asked for',
    NATIVE,
    native({ input_ids: [5, 6, 7], routed_experts_start_len: 2 }, { max_new_tokens: 1 }),
  ],
  ['a long prompt', NATIVE, native({ input_ids: Array.from({ length: 3000 }, (_, i) => i % 500) })],
  ['a list of one text', NATIVE, native({ text: ['The quick'] })],
  ['two texts', NATIVE, native({ text: ['The quick', 'brown fox jumps'] })],
  ['three lists of tokens', NATIVE, native({ input_ids: [[1, 2, 3], [4], [5, 6]] })],
  [
    'parameters for each text',
    NATIVE,
    routed({
      text: ['The quick', 'brown'],
      sampling_params: [{ max_new_tokens: 4 }, { max_new_tokens: 4 }],
    }),
  ],
  ['a completion', COMPLETIONS, routed({ prompt: 'The quick brown fox', max_tokens: 7 })],
  ['a completion of tokens', COMPLETIONS, routed({ prompt: [3, 4, 5], max_tokens: 7 })],
  ['a completion of one token', COMPLETIONS, routed({ prompt: 'The quick brown fox', max_tokens: 1 })],
  ['a chat', CHAT, routed({ messages: [{ role: 'user', content: 'The quick "fox"' }], max_tokens: 7 })],
  ['a chat of one token', CHAT, routed({ messages: [{ role: 'user', content: 'Go' }], max_tokens: 1 })],
  [
    'a chat of one token with meta_info',
    CHAT,
    routed({ messages: [{ role: 'user', content: 'Go' }], max_tokens: 1, return_meta_info: true }),
  ],
];

/** The model ends its text with the first token. In a stream only `usage` tells that. */
const sglangEnds: Case[] = [
  { name: 'a native reply', path: NATIVE, body: native({ input_ids: [3, 4, 5] }) },
  { name: 'a native stream', path: NATIVE, body: native({ input_ids: [3, 4, 5], stream: true }) },
  { name: 'a list', path: NATIVE, body: native({ text: ['The quick', 'brown'] }) },
  { name: 'a completion', path: COMPLETIONS, body: routed({ prompt: [3, 4, 5], max_tokens: 7 }) },
  ...[COMPLETIONS, CHAT].map((path) => ({
    name: 'a stream with usage',
    path,
    body: routed({
      ...(path === CHAT ? { messages: [{ role: 'user', content: 'Go' }] } : { prompt: [3, 4, 5] }),
      ...{ max_tokens: 7, stream: true, stream_options: { include_usage: true } },
    }),
  })),
].map(({ name, path, body }) =>
  caseOf('sglang', {
    name: `sglang, ${path}: the first token ends the text, ${name}`,
    path,
    body,
    protocol: 'http1',
    engine: { eosAfter: 1 },
  }),
);

/** SGLang's engines have no answer to a request for several choices, so no leg is sent. */
const sglangSamples: Case[] = (
  [
    ['a completion', COMPLETIONS, { prompt: 'a', n: 2 }],
    ['a chat', CHAT, { messages: [{ role: 'user', content: 'a' }], n: 3, stream: true }],
    ['a number of choices that is no plain integer', COMPLETIONS, { prompt: 'a', n: 1.5 }],
    ['a native request', NATIVE, { text: 'a', sampling_params: { n: 2 } }],
    ['some prompt of a list', NATIVE, { text: ['a', 'b'], sampling_params: [{ n: 2 }, { n: 1 }] }],
  ] as [string, string, Json][]
).map(([name, path, body]) => ({
  name: `sglang, ${path}: several choices are refused, ${name}`,
  scenario: () => ({
    name,
    config: { connector: 'sglang', prefill: { bootstrap_host: HOST } },
    client: post(JSON.stringify(body), { path }),
    prefill: answering(''),
    decode: answering(''),
  }),
  check(result) {
    expect(result.status).toBe(400);
    expect([...result.prefillRequests, ...result.decodeRequests]).toEqual([]);
    const error = jsonOf(result);
    const message = expect.stringContaining('n must be 1');
    expect(error).toEqual(
      path === NATIVE
        ? { error: { message } }
        : { object: 'error', message, type: 'BadRequestError', param: null, code: 400 },
    );
    expectOutcome(result, 'rejected');
  },
}));

/** Nothing in the reply tells which prompt its one array belongs to, or how long that prompt is. */
const severalPrompts: Case = {
  name: 'sglang, /v1/completions: two prompts in one reply are refused',
  scenario: () => {
    // By the counts of both prompts, prefill's first array would have 14 rows of half the width.
    const prompt = [7, 6].map((length) => Array.from({ length }, (_, i) => 3 + i));
    const body = routed({ prompt, max_tokens: 7 });
    const address = { host: HOST, port: ++lastPort };
    const shared = {
      ...{ connector: 'sglang' as const, bootstrap: address, patience: 5000 },
      model: { layers: 3, topK: 2, experts: 9 },
    };
    const request = JSON.stringify(body);
    return {
      name: 'two prompts',
      config: {
        connector: 'sglang',
        prefill: { bootstrap_host: HOST, bootstrap_port: address.port },
      },
      client: post(request, { path: COMPLETIONS }),
      ...usedDeployment(COMPLETIONS, request, shared).engines,
    };
  },
  check(result) {
    expect(result.status).toBe(502);
    expect(result.logged).toMatch(/^rejected; reason=/);
    expect(result.decodeRequests).toHaveLength(1);
  },
  random: RANDOM,
  cutDecidesHead: true,
};

const sglangCases: Case[] = SGLANG.flatMap(([name, path, body]) =>
  PROTOCOLS.flatMap((protocol) =>
    [0, 1 << 20].map((hold_bytes) =>
      caseOf('sglang', {
        name: `sglang, ${path}: ${name}, hold_bytes ${hold_bytes}, ${protocol}`,
        path,
        body,
        protocol,
        config: { hold_bytes },
      }),
    ),
  ),
);

const sglangStreams: Case[] = SGLANG.flatMap(([name, path, body]) =>
  PROTOCOLS.map((protocol) =>
    caseOf('sglang', {
      name: `sglang, ${path}: a stream, ${name}, ${protocol}`,
      path,
      body: { ...body, stream: true },
      protocol,
    }),
  ),
);

// ---- Mooncake

const MOONCAKE: [string, string, Json][] = [
  ['a text', COMPLETIONS, { prompt: 'The quick brown fox', max_tokens: 7 }],
  ['tokens', COMPLETIONS, { prompt: [3, 4, 5], max_tokens: 7 }],
  ['one generated token', COMPLETIONS, { prompt: [3, 4, 5], max_tokens: 1 }],
  [
    'a long prompt',
    COMPLETIONS,
    { prompt: Array.from({ length: 3000 }, (_, i) => 3 + (i % 500)), max_tokens: 7 },
  ],
  ['n is 1', COMPLETIONS, { prompt: [3, 4, 5], max_tokens: 7, n: 1 }],
  ['a minimum of tokens', COMPLETIONS, { prompt: [3, 4, 5], max_tokens: 7, min_tokens: 3 }],
  ['a chat', CHAT, { messages: [{ role: 'user', content: 'The quick "fox"' }], max_tokens: 7 }],
  ['generate', GENERATE, { token_ids: [61, 62, 63], sampling_params: { max_tokens: 7 } }],
  [
    'generate, a stream',
    GENERATE,
    // Of a prompt as short as the text, nothing in an event tells a tail from all rows.
    {
      token_ids: Array.from({ length: 20 }, (_, i) => 61 + i),
      stream: true,
      sampling_params: { max_tokens: 7 },
    },
  ],
];

const mooncakeCases: Case[] = MOONCAKE.flatMap(([name, path, body]) =>
  HANDSHAKES.flatMap((handshake) =>
    PROTOCOLS.flatMap((protocol) =>
      [0, 1 << 20].map((hold_bytes) =>
        caseOf('mooncake', {
          name: `mooncake, ${handshake}, ${path}: ${name}, hold_bytes ${hold_bytes}, ${protocol}`,
          path,
          body,
          protocol,
          handshake,
          config: { hold_bytes },
        }),
      ),
    ),
  ),
);

/** What decode can be asked only in sequence, when the length of the prompt is known. */
const mooncakeInSequence: Case[] = MOONCAKE.flatMap(([name, path, body]) =>
  (
    [
      [{ decode_rows: 'tail' }, {}],
      [{ decode_rows: 'tail' }, { version: '0.32' }],
      [{ decode_rows: 'tail', last_prompt_row: 'decode' }, {}],
      [{ headers: 'pass' }, {}],
    ] satisfies [Json, Partial<EngineOptions>][]
  ).map(([config, engine], i) =>
    caseOf('mooncake', {
      name: `mooncake, sequential, ${path}: ${name}, ${JSON.stringify([config, engine])}`,
      path,
      body,
      protocol: PROTOCOLS[i % 2]!,
      handshake: 'sequential',
      config,
      engine,
    }),
  ),
);

/**
 * A model whose first token ends the text. Prefill must not stop there, or there is no transfer.
 */
const firstIsEnd: Case[] = [COMPLETIONS, GENERATE].flatMap((path) =>
  HANDSHAKES.map((handshake) =>
    caseOf('mooncake', {
      name: `mooncake, ${handshake}, ${path}: the first token ends the text`,
      path,
      body:
        path === GENERATE
          ? { token_ids: [61, 62, 63], sampling_params: { max_tokens: 7 } }
          : { prompt: [3, 4, 5], max_tokens: 7 },
      protocol: 'http1',
      handshake,
      engine: { eosAfter: 1 },
    }),
  ),
);

// ---- what one transfer can't serve, and servers that fail

/** Decode's reply to a request with several prompts, or with one. */
const several = ({ prompt }: Json) =>
  Array.isArray(prompt) && prompt.length > 1 ? BATCH_DECODE : GOOD_DECODE;

const alone = (name: string, body: Json, path = COMPLETIONS): Case => ({
  name: `mooncake, ${name}: decode alone`,
  scenario: () => ({
    name,
    config: {
      connector: 'mooncake',
      prefill: { bootstrap_host: HOST, bootstrap_port: ++lastPort },
    },
    client: post(JSON.stringify({ ...body, kv_transfer_params: { evil: 1 } }), { path }),
    prefill: answering(''),
    bootstrap: answering(''),
    decode: answering(several(body)),
  }),
  check(result) {
    expect(result.body.toString()).toBe(several(body));
    expect([...result.prefillRequests, ...result.bootstrapRequests]).toEqual([]);
    expect(JSON.parse(withoutSalt(result.decodeRequests[0]!))).toEqual(body);
    expectOutcome(result, 'local');
  },
});

const samples: Case[] = [
  alone('several samples', { prompt: 'a', n: 2 }),
  alone('several samples, in a text', { prompt: 'a', n: '2' }),
  alone('several prompts', { prompt: ['a', 'b'] }),
  alone('several samples of tokens', { token_ids: [1], sampling_params: { n: 3 } }, GENERATE),
];

const FAILURES = { 'routed_experts.prefill_failures': 1 };

const RANKLESS: [string, Scenario['bootstrap'], string, string?][] = [
  ['is down', 'down', 'the bootstrap server does not tell its ranks'],
  ['answers 500', answering('{}', { status: 500 }), 'the bootstrap server does not tell its ranks'],
  ['answers 404', answering('{}', { status: 404 }), 'the bootstrap server does not tell its ranks'],
  ['answers with no rank', answering('{}'), 'the bootstrap server does not tell its ranks'],
  ['answers with a list', answering('[{"engine_id":"a"}]'), 'the bootstrap server does not tell its ranks'],
  ['answers with no id', answering('{"0":{}}'), 'the bootstrap server does not tell its ranks'],
  [
    'answers with a number',
    answering('{"0":{"engine_id":1}}'),
    'the bootstrap server does not tell its ranks',
  ],
  [
    'answers with a quote',
    answering('{"0":{"engine_id":"a\\"b"}}'),
    'the bootstrap server does not tell its ranks',
  ],
  ['answers with text', answering('ready'), 'the bootstrap server does not tell its ranks'],
  ['answers with half', answering('{"0":{"engine_id":"a"'), 'the bootstrap server does not tell its ranks'],
  [
    'answers with more than it could have',
    answering(`{"0":{"engine_id":"a"},"x":"${'y'.repeat(70_000)}"}`),
    'the bootstrap server does not tell its ranks',
  ],
  [
    'breaks off',
    answering('{"0":{"engine_id":"a"}}', { fault: 'reset_body', pieces: [Buffer.from('{"0')] }),
    'connection reset, or reply too large',
  ],
  ['is silent', answering('', { fault: 'stall' }), 'timeout', 'GatewayTimeoutError'],
];

const rankless: Case[] = RANKLESS.flatMap(([name, bootstrap, text, type = 'BadGatewayError']) =>
  ['decode', 'reject'].flatMap((policy) =>
    HANDSHAKES.map((handshake, i): Case => ({
      name: `mooncake, ${handshake}, the bootstrap server ${name}: ${policy}`,
      scenario: () => ({
        name,
        config: {
          connector: 'mooncake',
          handshake,
          on_prefill_failure: policy,
          prefill: {
            bootstrap_host: HOST,
            bootstrap_port: ++lastPort,
            timeout_ms: 300,
            retries: 0,
          },
        },
        client: post('{"prompt":"a"}'),
        prefill: answering(''),
        bootstrap,
        decode: answering(GOOD_DECODE),
        downstream: PROTOCOLS[i]!,
        upstream: PROTOCOLS[i]!,
      }),
      check(result) {
        expect(result.prefillRequests).toEqual([]);
        if (policy === 'decode') {
          expect(result.body.toString()).toBe(GOOD_DECODE);
          expectSalted(result.decodeRequests[0]!, '{"prompt":"a"}');
          return expectOutcome(result, 'local', FAILURES);
        }
        const { error } = JSON.parse(result.body.toString()) as { error: Json };
        expect(error).toMatchObject({ message: `prefill failed: ${text}`, type });
        expect(result.decodeRequests).toEqual([]);
        expectOutcome(result, 'rejected', FAILURES);
      },
    })),
  ),
);

/**
 * If the request names the prefill endpoint, the bootstrap server is on the host of that endpoint.
 */
const byRequest: Case[] = PROTOCOLS.flatMap((protocol, i) =>
  ['original_dst', 'dynamic_forward_proxy'].map((cluster_type, j): Case => {
    const handshake = HANDSHAKES[(i + j) % 2]!;
    const address = { host: HOST, port: 0 };
    const request = { prompt: 'The quick brown fox', max_tokens: 4 };
    return {
      name: `mooncake, ${handshake}, the endpoint in the request, ${cluster_type}, ${protocol}`,
      random: RANDOM,
      scenario: () => {
        const shared = {
          connector: 'mooncake',
          bootstrap: address,
          patience: 5000,
          fleet: new Fleet(),
        } as const;
        const prefill = createEngine({ ...shared, role: 'prefill' });
        return {
          name: 'endpoint',
          config: {
            connector: 'mooncake',
            handshake,
            prefill: {
              endpoint_header: 'x-prefiller-host-port',
              allowed_endpoints: ['{prefill:1}'],
              cluster_type,
              bootstrap_port: '{bootstrap:port}',
            },
          },
          client: {
            ...post(JSON.stringify(request)),
            headers: [...post(JSON.stringify(request)).headers, ['x-prefiller-host-port', '{prefill:1}']],
          },
          prefill: [answering('', { status: 418 }), prefill],
          bootstrap: (query) => {
            const to = header(query.headers, 'x-envoy-original-dst-host') ?? header(query.headers, 'host');
            address.port = portOf(to);
            return prefill(query);
          },
          decode: (received) => {
            // A request over HTTP/2 has no `host` header, so the port is taken from what decode was
            // told.
            if (address.port === 0)
              address.port = Number(/127\.0\.0\.1:(\d+)/.exec(received.body.toString())![1]);
            return createEngine({ ...shared, role: 'decode' })(received);
          },
          downstream: protocol,
          upstream: protocol,
        };
      },
      check(result) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.logged).toMatch(/^merged/);
        expect(result.prefillRequests.filter(({ path }) => path !== '/health')).toHaveLength(1);
        expect(result.bootstrapRequests.map(({ path }) => path)).toEqual(['/query']);
        for (const { headers } of [
          ...result.prefillRequests,
          ...result.decodeRequests,
          ...result.bootstrapRequests,
        ])
          expect(headers.map(([name]) => name)).not.toContain('x-prefiller-host-port');
      },
    };
  }),
);

const portOf = (address: string | undefined): number => Number(/:(\d+)$/.exec(address ?? '')?.[1] ?? 0);

export const connectors: Suite = {
  name: 'connectors with a bootstrap server',
  cases: [
    ...sglangCases,
    ...sglangEnds,
    ...sglangSamples,
    severalPrompts,
    ...sglangStreams,
    ...mooncakeCases,
    ...mooncakeInSequence,
    ...firstIsEnd,
    ...samples,
    ...rankless,
    ...byRequest,
  ],
};
