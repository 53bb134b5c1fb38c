// Requests that decode would refuse and prefill would take, because the prefill leg caps or drops
// what is wrong with them. The filter refuses them before a leg leaves, as vLLM does, or lets
// decode serve them alone. A Mooncake decode engine dies of each that reaches it with a transfer.

import { expect } from 'vitest';
import type { Awaitable, SimulatedEngine } from '../engine/engine.ts';
import { createEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { listing, type Engine, type Header, type Result, type Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  CHAT,
  COMPLETIONS,
  GENERATE,
  GOOD_DECODE,
  HANDSHAKES,
  JSON_TYPE,
  MOONCAKE_PREFILL,
  PARAMS,
  REQUEST_ID,
  answering,
  expectOutcome,
  jsonOf,
  post,
} from './messages.ts';

/** The longest sequence of the engines. */
const LIMIT = 100;
const HOST = '127.0.0.1';
/** A VM remembers servers, so each case has a bootstrap server and a path of its own. */
let ordinal = 30_000;

const RANDOM =
  /xfer-[-0-9a-f]+|"remote_bootstrap_addr":"[^"]*"|"remote_engine_id":"[^"]*"|[0-9a-f]{8}(?=")|\/\d{5}\//g;

type Connector = 'nixl' | 'mooncake';

/** A request in pieces: what differs between the APIs, and members as the client writes them. */
type Path = typeof COMPLETIONS | typeof CHAT | typeof GENERATE;
const PROMPTS: Record<Path, string> = {
  [COMPLETIONS]: '"prompt":[5,6,7]',
  [CHAT]: '"messages":[{"role":"user","content":"x"}]',
  [GENERATE]: '"token_ids":[5,6,7]',
};
const requestOf = (path: Path, members: string, prompt = PROMPTS[path]) =>
  path === GENERATE && !members.includes('"sampling_params"')
    ? `{${prompt},"sampling_params":{${members}}}`
    : `{${[prompt, members].filter(Boolean).join()}}`;

interface Spec {
  name: string;
  path: Path;
  body: string;
  connector: Connector;
  handshake?: 'sequential' | 'concurrent';
  headers?: Header[];
  config?: Record<string, unknown>;
  models?: Engine;
  check(
    result: Result,
    engines: { prefill: SimulatedEngine<Awaitable>; decode: SimulatedEngine<Awaitable> },
  ): void;
}

/** An engine behind a gateway that puts a prefix before its paths. */
const behind =
  (prefix: string, engine: Engine): Engine =>
  (request) =>
    engine({ ...request, path: request.path.replace(prefix, '') });

function caseOf(spec: Spec): Case {
  const { name, path, body, connector, handshake, headers = [], config = {}, models } = spec;
  const port = ++ordinal;
  let engines: ReturnType<typeof pair>;
  const pair = () => {
    const shared = { connector, fleet: new Fleet(), bootstrap: { host: HOST, port }, maxModelLen: LIMIT };
    const options = { ...shared, patience: 2000, model: { layers: 2, topK: 2, experts: 9 } } as const;
    return {
      prefill: createEngine({ ...options, role: 'prefill' } as never) as SimulatedEngine<Awaitable>,
      decode: createEngine({ ...options, role: 'decode' } as never) as SimulatedEngine<Awaitable>,
    };
  };
  return {
    name,
    scenario: (): Scenario => {
      const prefix = `/${port}`;
      engines = pair();
      const mooncake = connector === 'mooncake';
      return {
        name,
        config: {
          connector,
          paths: [prefix + path],
          ...(mooncake ? {} : { max_model_len: LIMIT }),
          ...(handshake ? { handshake } : {}),
          ...config,
          prefill: {
            retries: 0,
            ...(mooncake ? { bootstrap_host: HOST, bootstrap_port: port } : {}),
          },
        },
        client: post(body, {
          path: prefix + path,
          headers: [
            JSON_TYPE,
            ['content-length', String(Buffer.byteLength(body))],
            ['x-request-id', REQUEST_ID],
            ...headers,
          ],
        }),
        models: models ?? listing({ tiny: LIMIT }),
        prefill: behind(prefix, engines.prefill),
        ...(mooncake ? { bootstrap: engines.prefill } : {}),
        decode: behind(prefix, engines.decode),
      };
    },
    check(result) {
      expect(engines.decode.dead).toBe(false);
      spec.check(result, engines);
    },
    random: RANDOM,
    cutDecidesHead: true,
  };
}

function expectRefusal(result: Result, param: string): void {
  expect(result).toMatchObject({ status: 400, complete: true });
  const { error } = jsonOf(result) as { error: Record<string, unknown> };
  expect(Object.keys(error)).toEqual(['message', 'type', 'param', 'code']);
  expect(error).toMatchObject({ type: 'BadRequestError', param, code: 400 });
  expectOutcome(result, 'rejected');
}

const untouched = ({ prefillRequests, decodeRequests }: Result) =>
  expect([...prefillRequests, ...decodeRequests]).toEqual([]);

const DEPLOYMENTS: { connector: Connector; handshake?: 'sequential' | 'concurrent' }[] = [
  { connector: 'nixl' },
  ...HANDSHAKES.map((handshake) => ({ connector: 'mooncake' as const, handshake })),
];
const everywhere = (of: (deployment: (typeof DEPLOYMENTS)[number], name: string) => Case[]): Case[] =>
  DEPLOYMENTS.flatMap((deployment) =>
    of(deployment, [deployment.connector, deployment.handshake].filter(Boolean).join(', ')),
  );

// ---- refused by what the request says alone

/** Members, and the one that the error names. */
const WRONG: Partial<Record<Path, [members: string, param: string][]>> = {
  [COMPLETIONS]: [
    ['"max_tokens":-1', 'max_tokens'],
    ['"max_tokens":4.5', 'max_tokens'],
    ['"max_tokens":[4]', 'max_tokens'],
    ['"max_tokens":"4x"', 'max_tokens'],
    ['"max_tokens":4,"min_tokens":5', 'min_tokens'],
    ['"min_tokens":17', 'min_tokens'],
    ['"min_tokens":-1', 'min_tokens'],
    ['"min_tokens":"two"', 'min_tokens'],
    ['"min_tokens":null', 'min_tokens'],
    ['"n":0', 'n'],
    ['"n":null', 'n'],
    ['"stream_options":{"include_usage":true}', 'stream_options'],
    ['"stream":false,"stream_options":{"include_usage":true}', 'stream_options'],
    ['"stream":true,"stream_options":[]', 'stream_options'],
    ['"stream":true,"stream_options":{"include_usage":2}', 'include_usage'],
    ['"stream":"maybe"', 'stream'],
    ['"stream":2', 'stream'],
  ],
  [CHAT]: [
    ['"max_completion_tokens":-1', 'max_tokens'],
    ['"max_completion_tokens":{}', 'max_completion_tokens'],
    ['"max_tokens":[4],"max_completion_tokens":4', 'max_tokens'],
    ['"max_tokens":9,"max_completion_tokens":4,"min_tokens":5', 'min_tokens'],
    ['"stream_options":{"include_usage":true}', 'stream_options'],
  ],
  [GENERATE]: [
    ['"max_tokens":-1', 'max_tokens'],
    ['"max_tokens":"4.5"', 'max_tokens'],
    ['"min_tokens":17', 'min_tokens'],
    ['"n":null', 'n'],
    ['"sampling_params":null', 'sampling_params'],
    ['"sampling_params":[]', 'sampling_params'],
    ['"sampling_params":{},"stream":"maybe"', 'stream'],
    ['"sampling_params":{},"stream_options":7', 'stream_options'],
  ],
};

const wrong = everywhere((deployment, where) =>
  Object.entries(WRONG).flatMap(([path, list]) =>
    list.map(([members, param]) =>
      caseOf({
        ...deployment,
        name: `${where}, ${path}: refuses ${members}`,
        path: path as Path,
        body: requestOf(path as Path, members),
        check(result) {
          expectRefusal(result, param);
          untouched(result);
        },
      }),
    ),
  ),
);

const greedy = ['0', '0.0', '"0"', 'false'].map((temperature) =>
  caseOf({
    connector: 'nixl',
    name: `nixl: refuses several choices of greedy sampling, temperature ${temperature}`,
    path: COMPLETIONS,
    body: requestOf(COMPLETIONS, `"n":2,"temperature":${temperature}`),
    check(result) {
      expectRefusal(result, 'n');
      untouched(result);
    },
  }),
);

// ---- what looks wrong, and vLLM serves

const SERVED: Partial<Record<Path, string[]>> = {
  [COMPLETIONS]: [
    '"max_tokens":"4"',
    '"max_tokens":4.0',
    '"max_tokens":40e-1',
    '"max_tokens":true',
    '"max_tokens":null',
    '"max_tokens":97',
    '"max_tokens":4,"min_tokens":4',
    '"max_tokens":4,"stream":"false"',
    '"max_tokens":4,"stream":0',
    '"max_tokens":4,"stream":false,"stream_options":{}',
    '"max_tokens":4,"max_completion_tokens":-1',
  ],
  [CHAT]: ['"max_tokens":-5,"max_completion_tokens":4', '"max_tokens":1000,"max_completion_tokens":4'],
  [GENERATE]: [
    '"max_tokens":1000',
    '"sampling_params":{"max_tokens":4},"stream_options":{"include_usage":true}',
  ],
};

const served = everywhere((deployment, where) =>
  Object.entries(SERVED).flatMap(([path, list]) =>
    list.map((members) =>
      caseOf({
        ...deployment,
        name: `${where}, ${path}: serves ${members}`,
        path: path as Path,
        body: requestOf(path as Path, members),
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          expect(header(result.headers, 'x-routed-experts')).toMatch(/^merged/);
        },
      }),
    ),
  ),
);

const ALONE = ['"max_tokens":"\\u0034"', '"truncate_prompt_tokens":-1', '"use_beam_search":true'];
const REFUSED_ALONE = ['"max_tokens":"\\u002d1"', '"truncate_prompt_tokens":101'];

const alone = everywhere((deployment, where) =>
  [...ALONE, ...REFUSED_ALONE].map((members) =>
    caseOf({
      ...deployment,
      name: `${where}: leaves to decode ${members}`,
      path: COMPLETIONS,
      body: requestOf(COMPLETIONS, members),
      check(result) {
        expect(result.status).toBe(REFUSED_ALONE.includes(members) ? 400 : 200);
        expect(result.prefillRequests).toEqual([]);
        expect(result.decodeRequests).toHaveLength(1);
        expect(jsonOf(result.decodeRequests[0]!)).not.toHaveProperty('kv_transfer_params');
        expectOutcome(result, 'local');
      },
    }),
  ),
);

// ---- the length of the model

const TOO_LONG: [path: Path, members: string, param: string][] = [
  [COMPLETIONS, '"max_tokens":101', 'max_tokens'],
  [COMPLETIONS, '"max_tokens":1e2,"min_tokens":1', 'input_tokens'],
  [COMPLETIONS, '"max_tokens":98', 'input_tokens'],
  [CHAT, '"max_tokens":101', 'max_tokens'],
  [CHAT, '"max_tokens":4,"max_completion_tokens":101', 'max_completion_tokens'],
  [CHAT, '"min_tokens":101', 'min_tokens'],
];

const tooLong = everywhere((deployment, where) =>
  TOO_LONG.map(([path, members, param]) =>
    caseOf({
      ...deployment,
      name: `${where}, ${path}: refuses ${members}, above the length of the model`,
      path,
      body: requestOf(path, members),
      check(result) {
        expectRefusal(result, param);
        untouched(result);
      },
    }),
  ),
);

/** Only prefill knows how many tokens a text has. In sequence it has told them in time. */
const LONG_CHAT = `"messages":[{"role":"user","content":[{"type":"text","text":"${'x'.repeat(40)}"}]}]`;

const tooLongTogether = everywhere((deployment, where) => {
  if (deployment.handshake === 'concurrent') return [];
  return (
    [
      [COMPLETIONS, '', `"prompt":"${'x'.repeat(40)}","max_tokens":99`, 'input_tokens'],
      [CHAT, '"max_tokens":99', LONG_CHAT, 'input_tokens'],
      [CHAT, '"min_tokens":99', LONG_CHAT, 'min_tokens'],
    ] as const
  ).map(([path, members, prompt, param], i) =>
    caseOf({
      ...deployment,
      name: `${where}, ${path}: refuses a prompt and a cap that are too long together (${i})`,
      path,
      body: requestOf(path, members, prompt),
      check(result) {
        expectRefusal(result, param);
        expect(result.prefillRequests).toHaveLength(1);
        expect(result.decodeRequests).toEqual([]);
      },
    }),
  );
});

/**
 * vLLM counts the tokens of an image only after it has compared the prompt with the length of the
 * model, so the count that prefill reports does not show that decode would refuse the request.
 */
const parts = (type: string) =>
  `{"messages":[{"role":"user","content":[{"type":"${type}"}]}],"max_tokens":96}`;
const withImage = (
  [
    ['image_url', 'local'],
    ['text', 'rejected'],
  ] as const
).map(([type, outcome]): Case => ({
  name: `a chat with a part of type ${type} and a count above the length of the model: ${outcome}`,
  scenario: () => ({
    name: type,
    config: { max_model_len: LIMIT },
    client: post(parts(type), { path: CHAT }),
    prefill: answering(
      MOONCAKE_PREFILL.replace('"kv_transfer_params":null', `"kv_transfer_params":${PARAMS}`),
    ),
    decode: answering(GOOD_DECODE),
  }),
  check(result) {
    expect(result.prefillRequests).toHaveLength(1);
    expect(result.status).toBe(outcome === 'local' ? 200 : 400);
    expectOutcome(result, outcome);
  },
}));

// ---- prefill's list of models

const forModel = (model: string, members: string) => requestOf(COMPLETIONS, `"model":"${model}",${members}`);
const KEY: Header = ['authorization', 'Bearer key'];

interface ModelsSpec {
  name: string;
  models: Engine;
  body: string;
  config?: Record<string, unknown>;
  check(result: Result): void;
}
const refuses = (result: Result) => (expectRefusal(result, 'max_tokens'), untouched(result));
const merges = (result: Result) => expect(header(result.headers, 'x-routed-experts')).toMatch(/^merged/);
const fails = (status: number) => (result: Result) => {
  expect(result.status).toBe(status);
  expect(result.prefillRequests).toEqual([]);
  expectOutcome(result, status === 200 ? 'local' : 'rejected', { 'routed_experts.prefill_failures': 1 });
};
const NO_LENGTH = '{"object":"list","data":[{"id":"tiny"}]}';

const MODELS: ModelsSpec[] = [
  {
    name: 'the length of the model that the request names',
    models: listing({ big: 1000, tiny: 50 }),
    body: forModel('tiny', '"max_tokens":60'),
    check: refuses,
  },
  {
    name: 'the length of the first model, for an adapter without one',
    models: listing({ base: 50, adapter: null }),
    body: forModel('adapter', '"max_tokens":60'),
    check: refuses,
  },
  {
    name: 'the length of the first model, where the request names none',
    models: listing({ a: 1000, b: 50 }),
    body: requestOf(COMPLETIONS, '"max_tokens":60'),
    check: merges,
  },
  {
    name: 'a setting in place of the list',
    models: answering('', { status: 500 }),
    body: requestOf(COMPLETIONS, '"max_tokens":60'),
    config: { max_model_len: 50 },
    check(result) {
      refuses(result);
      expect(result.modelsRequests).toEqual([]);
    },
  },
  {
    name: 'no list for a request by token ids, whose cap vLLM does not compare',
    models: answering('', { status: 500 }),
    body: '',
    check(result) {
      merges(result);
      expect(result.modelsRequests).toEqual([]);
    },
  },
  ...(
    [
      ['an error', answering('{}', { status: 500 })],
      ['a list without a length', answering(NO_LENGTH)],
      ['no JSON', answering('<html>')],
      ['a refused key', answering('{}', { status: 401 })],
    ] as const
  ).flatMap(([what, models]): ModelsSpec[] => [
    { name: `${what}: decode alone`, models, body: requestOf(COMPLETIONS, ''), check: fails(200) },
    {
      name: `${what}: on_prefill_failure reject`,
      models,
      body: requestOf(COMPLETIONS, ''),
      config: { on_prefill_failure: 'reject' },
      check: fails(502),
    },
  ]),
];

const models = HANDSHAKES.flatMap((handshake) =>
  MODELS.map(({ name, models: list, body, config, check }) =>
    caseOf({
      connector: 'mooncake',
      handshake,
      name: `mooncake, ${handshake}, list of models: ${name}`,
      path: body ? COMPLETIONS : GENERATE,
      body: body || requestOf(GENERATE, '"max_tokens":4'),
      headers: [KEY],
      models: list,
      ...(config ? { config } : {}),
      check(result) {
        check(result);
        for (const request of result.modelsRequests) {
          expect(request).toMatchObject({
            method: 'GET',
            path: expect.stringMatching(/^\/\d+\/v1\/models$/),
          });
          expect(request.headers).toContainEqual(KEY);
          expect(header(request.headers, 'content-type')).toBeUndefined();
          expect(request.body).toHaveLength(0);
        }
      },
    }),
  ),
);

const ranks = everywhere((deployment, where) =>
  [undefined, 'pass'].flatMap((headers) => {
    if (headers && deployment.handshake === 'concurrent') return [];
    return caseOf({
      ...deployment,
      name: `${where}: a client's rank reaches no engine${headers ? ', headers pass' : ''}`,
      path: COMPLETIONS,
      body: requestOf(COMPLETIONS, '"max_tokens":4'),
      headers: [['x-data-parallel-rank', '7']],
      ...(headers ? { config: { headers } } : {}),
      check(result) {
        expect(result).toMatchObject({ status: 200, complete: true });
        const [prefill, decode] = [result.prefillRequests[0]!, result.decodeRequests[0]!];
        const own = deployment.connector === 'mooncake' ? '0' : undefined;
        expect(header(prefill.headers, 'x-data-parallel-rank')).toBe(own);
        expect(header(decode.headers, 'x-data-parallel-rank')).toBeUndefined();
      },
    });
  }),
);

export const refused: Suite = {
  name: 'requests that decode would refuse',
  cases: [
    ...wrong,
    ...greedy,
    ...served,
    ...alone,
    ...tooLong,
    ...tooLongTogether,
    ...withImage,
    ...models,
    ...ranks,
  ],
};
