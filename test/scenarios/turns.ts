// Turns. A client that has the rows of earlier turns asks for those from a token on, and P/D
// serves it: prefill's rows from there to the prompt's end, decode's behind them. The answer is
// that of the engine that does both, whatever each engine makes of `routed_experts_prompt_start`.

import { expect } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { meaningOf } from '../../yardstick/meaning.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import type { Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  CHAT,
  COMPLETIONS,
  expectError,
  expectOutcome,
  GENERATE,
  jsonOf,
  PARAMS,
  post,
} from './messages.ts';
import { inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';
import { oracleOf, usedDeployment, type Deployment } from './used.ts';

type Json = Record<string, any>;

const START = 'routed_experts_prompt_start';
const IDS = Array.from({ length: 37 }, (_, i) => 3 + ((i * 29 + (i >> 2)) % 500));
const CONTENT = 'Which experts have I had before?';

const BODIES: Record<string, Json> = {
  [COMPLETIONS]: { prompt: IDS, max_tokens: 6 },
  [CHAT]: { messages: [{ role: 'user', content: CONTENT }], max_tokens: 6 },
  [GENERATE]: { token_ids: IDS, sampling_params: { max_tokens: 6 } },
};

/** The request with further members where its endpoint has its sampling parameters. */
const asking = (path: string, more: Json, body = BODIES[path]!): Json =>
  path === GENERATE
    ? { ...body, sampling_params: { ...body['sampling_params'], ...more } }
    : { ...body, ...more };

const askedBy = (path: string, request: Json): unknown =>
  (path === GENERATE ? request['sampling_params'] : request)[START];

interface Spec {
  path: string;
  body: Json;
  start: number;
  /** Tokens of the prompt. */
  prompt: number;
  n: number;
  config: Json;
  shared: Partial<EngineOptions>;
  /** The engines that answer in full. */
  ignoring: ('prefill' | 'decode')[];
  hybrid: boolean;
}

/** Ports of bootstrap servers that no exchange of another suite on the same host has asked. */
let lastPort = 37_000;
const HOST = '127.0.0.1';
const RANDOM = /(?<="(?:remote_engine_)?id":)"[^"]*"|xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+/g;

function caseOf(name: string, spec: Spec): Case {
  const { path, body, start, prompt, n, config, shared, ignoring, hybrid } = spec;
  const request = JSON.stringify(body);
  const mooncake = shared.connector === 'mooncake';
  return {
    name,
    cutDecidesHead: true,
    ...(mooncake ? { random: RANDOM } : {}),
    scenario(): Scenario {
      const address = { host: HOST, port: mooncake ? ++lastPort : 0 };
      const options = { ...shared, ...(mooncake ? { bootstrap: address, patience: 5000 } : {}) };
      const own = (leg: 'prefill' | 'decode') => ({ ignorePromptStart: ignoring.includes(leg) });
      const { engines } = usedDeployment(path, request, options, {
        prefill: { ...own('prefill'), hybrid },
        decode: own('decode'),
      });
      return {
        name,
        config: {
          connector: shared.connector ?? 'nixl',
          ...config,
          ...(mooncake ? { prefill: { bootstrap_host: HOST, bootstrap_port: address.port } } : {}),
        },
        client: post(request, { path }),
        ...engines,
        ...(mooncake ? { bootstrap: engines.prefill } : {}),
      };
    },
    check(result: Result): void {
      expect(result, result.body.toString()).toMatchObject({ status: 200, complete: true });
      const right = oracleOf(path, request, shared);
      expect(right).toContain('"routed_experts"');
      expect(meaningOf(result.body.toString())).toEqual(meaningOf(right));
      const last = hybrid || config['last_prompt_row'] === 'decode';
      const seam = Math.max(last ? prompt - 1 : prompt, start);
      expect(result.logged).toBe(`merged; rows=${seam - start}; choices=${n}`);
      const length = header(result.headers, 'content-length');
      if (length !== undefined) expect(Number(length)).toBe(result.body.length);

      expect(result.prefillRequests).toHaveLength(1);
      const known = path !== CHAT && start === prompt ? start - 1 : start;
      const asked = known <= 1 ? undefined : known;
      expect(askedBy(path, jsonOf(result.prefillRequests[0]!))).toBe(asked);
      const tail = config['decode_rows'] === 'tail';
      expect(askedBy(path, jsonOf(result.decodeRequests[0]!))).toBe(tail ? seam : start);
    },
  };
}

const promptOf = (path: string): number =>
  Number(/"prompt_tokens":(\d+)/.exec(oracleOf(path, JSON.stringify(BODIES[path]), {}))![1]);

const TAIL = { decode_rows: 'tail' };

interface Deploy {
  name: string;
  config: Json;
  shared: Partial<EngineOptions>;
}

const DEPLOYS: Deploy[] = [
  { name: 'nixl', config: {}, shared: { connector: 'nixl' } },
  { name: 'nixl, tail', config: TAIL, shared: { connector: 'nixl' } },
  { name: '0.32, tail', config: TAIL, shared: { connector: 'shared_storage', version: '0.32' } },
  { name: 'mooncake', config: {}, shared: { connector: 'mooncake' } },
];

const NIXL = DEPLOYS.filter(({ shared }) => shared.connector === 'nixl');

/** Every endpoint, format, deployment and start, of engines that know the member. */
const obeying: Case[] = [COMPLETIONS, CHAT, GENERATE].flatMap((path) =>
  (['A', 'B'] as const).flatMap((format) =>
    DEPLOYS.flatMap(({ name, config, shared }) => {
      const prompt = promptOf(path);
      return [1, prompt >> 1, prompt].map((start) =>
        caseOf(`${path}, ${format}, ${name}, from ${start} of ${prompt}`, {
          path,
          body: asking(path, { [START]: start }),
          ...{ start, prompt, n: 1, config, ignoring: [], hybrid: false },
          shared: { ...shared, format },
        }),
      );
    }),
  ),
);

/** Engines that do not know the member, on either leg. */
const ignoring: Case[] = (['A', 'B'] as const).flatMap((format) =>
  NIXL.flatMap(({ name, config, shared }) =>
    ([['prefill'], ['decode'], ['prefill', 'decode']] as const).flatMap((who) =>
      [1, 20, 37].flatMap((start) =>
        (start === 20 ? [1, 2] : [1]).map((n) => {
          const sampled = n > 1 ? { n, temperature: 0.8 } : {};
          return caseOf(`${format}, ${name}, n=${n}, from ${start}, ignored by ${who.join(' and ')}`, {
            ...{ path: COMPLETIONS, body: asking(COMPLETIONS, { [START]: start, ...sampled }) },
            ...{ start, prompt: IDS.length, n, config, ignoring: [...who], hybrid: false },
            shared: { ...shared, format },
          });
        }),
      ),
    ),
  ),
);

/** Models with Mamba or GDN layers, and the row of the last prompt token from decode. */
const seams: Case[] = (['A', 'B'] as const).flatMap((format) =>
  NIXL.flatMap(({ name, config, shared }) =>
    [1, 36, 37].flatMap((start) =>
      ([[], ['prefill'], ['decode']] as const).flatMap((who) =>
        [{ last_prompt_row: 'decode' }, null].map((last) =>
          caseOf(
            `${format}, ${name}, ${last ? 'last row of decode' : 'hybrid'}, from ${start}, ignored by ${who[0] ?? 'none'}`,
            {
              ...{
                path: GENERATE,
                body: asking(GENERATE, { [START]: start }),
                start,
                prompt: IDS.length,
                n: 1,
              },
              config: { ...config, ...last },
              shared: { ...shared, format },
              ...{ ignoring: [...who], hybrid: last === null },
            },
          ),
        ),
      ),
    ),
  ),
);

/** Streams, whose arrays come in events of their own. */
const streams: Case[] = (['A', 'B'] as const).flatMap((format) =>
  NIXL.flatMap(({ name, config, shared }) =>
    ([[], ['prefill'], ['decode']] as const).flatMap((who) =>
      [1, 20, 37].flatMap((start) =>
        (start === 20 ? [1, 2] : [1]).map((n) => {
          const sampled = n > 1 ? { n, temperature: 0.8 } : {};
          return caseOf(`stream, ${format}, ${name}, n=${n}, from ${start}, ignored by ${who[0] ?? 'none'}`, {
            path: GENERATE,
            body: { ...asking(GENERATE, { [START]: start, ...sampled }), stream: true },
            ...{ start, prompt: IDS.length, n, config, ignoring: [...who], hybrid: false },
            shared: { ...shared, format },
          });
        }),
      ),
    ),
  ),
);

/** vLLM 0.21, which answers in full whoever asks; the prompt's rows are a value of their own. */
const split: Case[] = (['nested', 'base64'] as const).flatMap((encoding) =>
  (['top', 'choice'] as const).flatMap((place) =>
    [1, 20, 37].map((start): Case => {
      const request = JSON.stringify(asking(COMPLETIONS, { [START]: start }));
      const shared: Partial<EngineOptions> = { format: 'C', split: { encoding, place } };
      return {
        name: `C, ${encoding} in ${place}, from ${start}`,
        scenario: () => ({
          name: 'split',
          config: {},
          client: post(request),
          ...usedDeployment(COMPLETIONS, request, shared).engines,
        }),
        check(result) {
          expect(result).toMatchObject({ status: 200, complete: true });
          const right = oracleOf(COMPLETIONS, request, shared);
          expect(meaningOf(result.body.toString())).toEqual(meaningOf(right));
          expect(result.logged).toBe(`merged; rows=${IDS.length}; choices=1`);
        },
      };
    }),
  ),
);

// ---- sessions

const TURNS = 10;

interface Turn {
  request: string;
  start: number;
  prompt: number;
  /** Rows of all tokens of this turn and those before it. */
  rows: Buffer;
  rowBytes: number;
}

/**
 * A session as prime-rl's client has it: a turn's prompt is what was said before and more, and from
 * the second turn on the client asks for the rows from the last token on whose row it lacks.
 */
function turnsOf(shared: Partial<EngineOptions>): Turn[] {
  const turns: Turn[] = [];
  let said = IDS.slice(0, 9);
  for (let turn = 0; turn < TURNS; turn++) {
    const start = turn === 0 ? 0 : turns[turn - 1]!.prompt + ANSWER - 1;
    const body = { token_ids: said, sampling_params: { max_tokens: ANSWER } };
    const request = JSON.stringify(asking(GENERATE, turn === 0 ? {} : { [START]: start }, body));
    const oracle = createEngine({ ...shared, role: 'oracle' });
    const { chunks } = oracle({
      ...{ method: 'POST', path: GENERATE, headers: [['content-type', 'application/json']] },
      body: Buffer.from(JSON.stringify(body)),
    });
    const [choice] = (JSON.parse(Buffer.concat(chunks).toString()) as Json)['choices'];
    const { data, shape } = decodeNpy(Buffer.from(choice.routed_experts, 'base64'));
    const prompt = said.length;
    turns.push({ request, start, prompt, rows: data, rowBytes: data.length / shape[0]! });
    said = [...said, ...choice.token_ids, ...IDS.slice(turn, turn + 5 + turn)];
  }
  return turns;
}

const ANSWER = 7;

/** All turns of a session go to the same engines, of which each run of a case has its own. */
function sessionOf({ name, config, shared }: Deploy): Case[] {
  const turns = turnsOf({ ...shared, format: 'A' });
  const deployments: Deployment[] = [];
  return turns.map(({ request, start, prompt, rows, rowBytes }, turn): Case => {
    let runs = 0;
    return {
      name: `turn ${turn + 1} of a session, ${name}`,
      scenario() {
        const deployment = (deployments[runs++] ??= usedDeployment(GENERATE, turns[0]!.request, shared));
        return {
          name,
          config: { connector: shared.connector, ...config },
          client: post(request, { path: GENERATE }),
          ...deployment.engines,
        };
      },
      check(result) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.logged).toBe(`merged; rows=${prompt - start}; choices=1`);
        const [choice] = jsonOf(result)['choices'] as Json[];
        const { data, shape } = decodeNpy(Buffer.from(choice!['routed_experts'], 'base64'));
        expect(shape[0]).toBe(prompt + ANSWER - 1 - start);
        expect(data.equals(rows.subarray(start * rowBytes))).toBe(true);
      },
    };
  });
}

const sessions: Case[] = DEPLOYS.filter(({ shared }) => shared.connector !== 'mooncake').flatMap(sessionOf);

// ---- what is refused

const LP = 5;
const usage = (completion: number) => `{"prompt_tokens":${LP},"completion_tokens":${completion}}`;
const replyOf = (array: string, completion: number, params = PARAMS) =>
  `{"choices":[{"index":0,"finish_reason":"length","routed_experts":${array}}],"usage":${usage(completion)},"kv_transfer_params":${params}}`;

function refusedCase(
  name: string,
  start: number,
  prefill: string,
  decode: string,
  reason: string,
  config: Json = {},
): Case {
  return {
    name,
    scenario: () => ({
      ...{ name, config },
      client: post(`{"prompt":"x","max_tokens":9,"${START}":${start}}`),
      prefill: answering(prefill),
      decode: answering(decode),
    }),
    check: (result) => expectOutcome(result, `rejected; reason=${reason}`),
  };
}

const full = (rows: Rows) => replyOf(inNpy()(rows), 3);
const refused: Case[] = [
  ...[0, 3].map((count) =>
    refusedCase(
      `A: prefill has ${count} rows of those from token 3 on`,
      3,
      replyOf(inNpy()(rowsOf(0, count)), 1),
      full(rowsOf(3, LP + 2)),
      'prompt',
    ),
  ),
  refusedCase(
    'B: prefill begins behind the token that was asked for',
    2,
    replyOf(inObject()(rowsOf(3, LP), 3), 1),
    replyOf(inObject()(rowsOf(2, LP + 2), 2), 3),
    'prompt',
  ),
  refusedCase(
    'A: decode has neither all rows nor those that it was asked for',
    3,
    replyOf(inNpy()(rowsOf(3, LP)), 1),
    full(rowsOf(2, LP + 2)),
    'ambiguous',
  ),
  refusedCase(
    'A: nothing tells what decode has',
    1,
    replyOf(inNpy()(rowsOf(0, LP)), 1),
    full(rowsOf(0, LP + 2)).replace('"completion_tokens":3', '"x":3'),
    'ambiguous',
  ),
  refusedCase(
    'A: nothing tells what prefill has',
    3,
    replyOf(inNpy()(rowsOf(3, LP)), 1).replace('"prompt_tokens":5', '"x":5'),
    full(rowsOf(3, LP + 2)),
    'ambiguous',
  ),
  refusedCase(
    'C: a prompt of another length',
    3,
    `{"prompt_routed_experts":${inLists(rowsOf(3, LP - 1))},"choices":[{"index":0,"finish_reason":"length"}],"usage":${usage(1)},"kv_transfer_params":${PARAMS}}`,
    `{"prompt_routed_experts":null,"choices":[{"index":0,"routed_experts":${inLists(rowsOf(LP, LP + 2))}}],"usage":${usage(3)}}`,
    'prompt',
  ),
];

const MODEL = { model: { layers: 99, top_k: 3, experts: 300 } };
const NO_ROWS: [string, Write][] = [
  ['A', inNpy()],
  ['B', inObject()],
];
for (const [format, write] of NO_ROWS)
  refused.push(
    refusedCase(
      `${format}: rows of another model, none of them prefill's`,
      LP,
      replyOf(write([], LP), 1),
      replyOf(write(rowsOf(LP, LP + 2), LP), 3),
      'layers',
      MODEL,
    ),
  );

/** Starts that engines refuse: the client gets their answer. */
const outOfRange: Case[] = [
  ...[-1, 1000].map((start): Case => {
    const request = JSON.stringify(asking(COMPLETIONS, { [START]: start }));
    return {
      name: `a start of ${start}`,
      scenario: () => ({
        name: 'out of range',
        client: post(request),
        prefill: createEngine({ role: 'prefill' }),
        decode: createEngine({ role: 'decode' }),
      }),
      check(result) {
        expect(result.status).toBe(400);
        expect(jsonOf(result)['error']).toMatchObject({ type: 'BadRequestError', param: START });
        expect(result.decodeRequests).toHaveLength(start < 0 ? 1 : 0);
      },
    };
  }),
  {
    name: 'a start behind the prompt, of a prefill engine that does not know the member',
    scenario: () => ({
      name: 'out of range',
      client: post(`{"prompt":"x","max_tokens":9,"${START}":6}`),
      prefill: answering(replyOf(inNpy()(rowsOf(0, LP)), 1)),
      decode: answering(full(rowsOf(0, LP + 2))),
    }),
    check(result) {
      const text = 'routed_experts_prompt_start exceeds the number of prompt tokens, which is 5';
      expectError(result, 400, 'BadRequestError', text);
      expectOutcome(result, 'rejected');
      expect(result.decodeRequests).toEqual([]);
    },
  },
  {
    // The simulated engine dies of it, as vLLM 0.30 does.
    name: 'a start at the end of a prompt of numbers does not end the prefill engine of a hybrid model',
    scenario: () => {
      const request = JSON.stringify(asking(COMPLETIONS, { [START]: IDS.length }));
      return {
        name: 'hybrid',
        client: post(request),
        ...usedDeployment(COMPLETIONS, request, {}, { prefill: { hybrid: true } }).engines,
      };
    },
    check: (result) => expect(result.logged).toBe('merged; rows=0; choices=1'),
  },
];

export const turns: Suite = {
  name: 'turns',
  cases: [...obeying, ...ignoring, ...seams, ...streams, ...split, ...sessions, ...refused, ...outOfRange],
};
