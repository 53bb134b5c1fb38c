// Hybrid models (Mamba, GDN). vLLM's prefill drops the last token of the prompt for them, so its
// array has one row less than the prompt has tokens, and decode forwards that token itself. Right
// is prefill[:Lp - 1] ++ decode[Lp - 1:].

import { expect } from 'vitest';
import type { EngineOptions } from '../engine/engine.ts';
import { hybridCaptureNames, loadCapture, replayEngine } from '../engine/replay.ts';
import type { Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  CHAT,
  COMPLETIONS,
  expectOutcome,
  GENERATE,
  HANDSHAKES,
  jsonOf,
  PARAMS,
  post,
} from './messages.ts';
import { inInt32, inNpy, inObject, rowsOf } from './rows.ts';
import { meaningOf } from '../../yardstick/meaning.ts';
import { oracleOf, usedDeployment } from './used.ts';

type Json = Record<string, any>;

// ---- captured traffic

const ARRAY = /"routed_experts":"[^"]*"/;

/**
 * What vLLM 0.30's engines answered on its Mooncake connector's hybrid path. The handshake is left
 * out: the connector of these exchanges needs none, and the bodies are the same.
 */
const captured: Case[] = hybridCaptureNames().flatMap((name) =>
  [undefined, 1, 61].map((chunkBytes): Case => {
    const { prefill, decode, oracle } = loadCapture(name);
    const rows = (JSON.parse(prefill.response.body.toString()) as Json)['usage'].prompt_tokens - 1;
    return {
      name: `${name}${chunkBytes === undefined ? '' : `, pieces of ${chunkBytes}`}`,
      scenario: () => ({
        name,
        config: { connector: 'shared_storage' },
        client: post(oracle.request.body.toString(), { path: oracle.request.path }),
        prefill: replayEngine(prefill.response),
        decode: replayEngine(decode.response, chunkBytes === undefined ? {} : { chunkBytes }),
      }),
      check(result) {
        const right = oracle.response.body.toString().match(ARRAY)![0];
        expect(result.body.toString()).toBe(decode.response.body.toString().replace(ARRAY, () => right));
        expect(result.logged).toBe(`merged; rows=${rows}; choices=1`);
        expect(header(result.headers, 'x-routed-experts')).toBe(result.logged);
      },
    };
  }),
);

// ---- simulated engines

/** Ports of bootstrap servers that no exchange of another suite on the same host has asked. */
let lastPort = 36_000;
const HOST = '127.0.0.1';
const IDS = Array.from({ length: 37 }, (_, i) => 3 + ((i * 29 + (i >> 2)) % 500));

/** What differs between two runs of an exchange: the transfer, the engine's id and its port. */
const RANDOM = /(?<="(?:remote_engine_)?id":)"[^"]*"|xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+/g;

interface Ask {
  path: string;
  body: Json;
  /** A Mooncake transfer can be taken once, so P/D does not serve several choices. */
  several?: boolean;
}

const ASKS: Record<string, Ask> = {
  'a completion': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 } },
  'one token': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 1 } },
  'two prompt tokens': { path: COMPLETIONS, body: { prompt: IDS.slice(0, 2), max_tokens: 3 } },
  'a chat': { path: CHAT, body: { messages: [{ role: 'user', content: 'Which layers?' }], max_tokens: 6 } },
  'two samples': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, n: 2, temperature: 0.8 },
    several: true,
  },
  'a generate': { path: GENERATE, body: { token_ids: IDS, sampling_params: { max_tokens: 6 } } },
  'a stream': {
    path: GENERATE,
    body: { token_ids: IDS, stream: true, sampling_params: { max_tokens: 6 } },
  },
};

function simulatedCase(
  name: string,
  { path, body }: Ask,
  format: 'A' | 'B',
  connector: 'nixl' | 'mooncake',
  config: Json,
): Case {
  const request = JSON.stringify(body);
  const title = `${format}, ${connector}, ${name}, ${JSON.stringify(config)}`;
  const options: Partial<EngineOptions> = { format, connector };
  return {
    name: title,
    cutDecidesHead: true,
    ...(connector === 'mooncake' ? { random: RANDOM } : {}),
    scenario(): Scenario {
      const mooncake = connector === 'mooncake';
      const address = { host: HOST, port: mooncake ? ++lastPort : 0 };
      const shared = { ...options, ...(mooncake ? { bootstrap: address, patience: 5000 } : {}) };
      const { engines } = usedDeployment(path, request, shared, { prefill: { hybrid: true } });
      const prefill = { bootstrap_host: HOST, bootstrap_port: address.port };
      return {
        name: title,
        config: { connector, ...config, ...(mooncake ? { prefill } : {}) },
        client: post(request, { path }),
        ...engines,
        ...(mooncake ? { bootstrap: engines.prefill } : {}),
      };
    },
    check(result: Result): void {
      expect(result).toMatchObject({ status: 200, complete: true });
      const right = oracleOf(path, request, options);
      expect(right).toContain('"routed_experts"');
      expect(meaningOf(result.body.toString())).toEqual(meaningOf(right));
      const prompt = promptTokens(result);
      expect(result.logged).toMatch(new RegExp(`^merged; rows=${prompt - 1}; choices=[12]$`));
      if (config['decode_rows'] !== 'tail') return;
      const leg = jsonOf(result.decodeRequests[0]!);
      const asked = path === GENERATE ? leg['sampling_params'] : leg;
      expect(asked).toMatchObject({ routed_experts_prompt_start: prompt - 1 });
    },
  };
}

/** What the oracle's usage says, or, of a stream, which has none, the request's prompt. */
function promptTokens(result: Result): number {
  const told = /"prompt_tokens":(\d+)/.exec(result.body.toString());
  return told ? Number(told[1]) : IDS.length;
}

const CONFIGS: Json[] = [{}, { last_prompt_row: 'decode' }, { decode_rows: 'tail' }];
/** Mooncake's legs are sent in both orders, of which only one lets decode be asked for a tail. */
const CONFIGS_OF: Record<'nixl' | 'mooncake', Json[]> = {
  nixl: CONFIGS,
  mooncake: HANDSHAKES.flatMap((handshake) =>
    CONFIGS.filter((config) => handshake === 'sequential' || config['decode_rows'] === undefined).map(
      (config) => ({ handshake, ...config }),
    ),
  ),
};

const simulated: Case[] = (['A', 'B'] as const).flatMap((format) =>
  (['nixl', 'mooncake'] as const).flatMap((connector) =>
    Object.entries(ASKS).flatMap(([name, ask]) =>
      CONFIGS_OF[connector]
        .filter(() => connector === 'nixl' || !ask.several)
        .map((config) => simulatedCase(name, ask, format, connector, config)),
    ),
  ),
);

// ---- what is refused

const LP = 5;
const usage = (prompt: number, completion: number) =>
  `{"prompt_tokens":${prompt},"completion_tokens":${completion}}`;
const PROMPT = rowsOf(0, LP);
const DECODED = rowsOf(0, LP + 2);

const npy = (rows: typeof PROMPT) =>
  `{"choices":[{"index":0,"finish_reason":"length","routed_experts":${inNpy()(rows)}}],"usage":${usage(LP, 1)},"kv_transfer_params":${PARAMS}}`;
const object = (rows: typeof PROMPT) =>
  `{"choices":[{"index":0,"finish_reason":"length","routed_experts":${inObject()(rows)}}],"usage":${usage(LP, 1)},"kv_transfer_params":${PARAMS}}`;

const refused: Case[] = [
  ...[npy, object].flatMap((write, i) =>
    [-2, 1].map((more): Case => {
      const rows = more < 0 ? PROMPT.slice(0, LP + more) : rowsOf(0, LP + more);
      return {
        name: `${i === 0 ? 'A' : 'B'}: ${LP + more} rows of a prompt of ${LP} tokens`,
        scenario: () => ({
          name: 'rows',
          config: {},
          client: post('{"prompt":"x","max_tokens":3}'),
          prefill: answering(write(rows)),
          decode: answering(write(DECODED).replace('"completion_tokens":1', '"completion_tokens":3')),
        }),
        check: (result) => expectOutcome(result, 'rejected; reason=prompt'),
      };
    }),
  ),
  ...[npy, object].map((write, i): Case => ({
    // SGLang's decode begins with the token that prefill has generated, whatever the format.
    name: `${i === 0 ? 'A' : 'B'}: connector sglang, one row less than the prompt has tokens`,
    random: /"bootstrap_room":\d+/,
    scenario: () => ({
      name: 'sglang',
      config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
      client: post('{"prompt":"x","max_tokens":3}'),
      prefill: answering(write(PROMPT.slice(1))),
      decode: answering(write(DECODED).replace('"completion_tokens":1', '"completion_tokens":3')),
    }),
    check: (result) => expectOutcome(result, 'rejected; reason=prompt'),
  })),
  {
    // SGLang's decode begins with the token that prefill has generated.
    name: 'D: SGLang, one row less than the prompt has tokens',
    random: /"bootstrap_room":\d+/,
    scenario: () => ({
      name: 'sglang',
      config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
      client: post('{"text":"x","sampling_params":{"max_new_tokens":3},"return_routed_experts":true}', {
        path: '/generate',
      }),
      prefill: answering(
        `{"text":"x","meta_info":{"prompt_tokens":${LP},"completion_tokens":1,"routed_experts":${inInt32(PROMPT.slice(1))}}}`,
      ),
      decode: answering(
        `{"text":"x","meta_info":{"prompt_tokens":${LP},"completion_tokens":3,"routed_experts":${inInt32(DECODED)}}}`,
      ),
    }),
    check: (result) => expectOutcome(result, 'rejected; reason=size'),
  },
];

export const hybrid: Suite = { name: 'hybrid models', cases: [...captured, ...simulated, ...refused] };
