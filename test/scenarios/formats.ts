// Every format of routing: simulated engines that write it, compared with their oracle, in whole
// replies and in streams.

import { expect } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import type { SequentialOptions } from '../engine/options.ts';
import type { EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import { CHAT, COMPLETIONS, GENERATE, post } from './messages.ts';
import { usedDeployment } from './used.ts';

const MODEL = { layers: 3, topK: 2, experts: 8 };
const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const PROMPT = Array.from({ length: 61 }, (_, i) => 3 + i * 7);

interface Spec {
  name: string;
  path: string;
  engine: SequentialOptions extends infer O ? Omit<O & object, 'role'> : never;
  request?: Record<string, unknown>;
  config?: Record<string, unknown>;
  choices: number;
  /** The protocols and the sizes of pieces with which the case runs; each has a default. */
  protocols?: Protocol[];
  chunks?: (number | undefined)[];
}

function requestOf({ path, request }: Spec): string {
  const sampling = { max_tokens: 9 };
  const of =
    path === GENERATE
      ? { token_ids: PROMPT, sampling_params: sampling }
      : path === CHAT
        ? { messages: [{ role: 'user', content: 'Which experts?' }], ...sampling }
        : { prompt: PROMPT, ...sampling };
  return JSON.stringify({ ...of, ...request });
}

const oracleOf = (spec: Spec): EngineReply =>
  createEngine({ ...spec.engine, model: MODEL, role: 'oracle' } as SequentialOptions)({
    method: 'POST',
    path: spec.path,
    headers: [['content-type', 'application/json']],
    body: Buffer.from(requestOf(spec)),
  }) as EngineReply;

/**
 * Members that identify one reply, that P/D adds, or that depend on what an engine has served
 * before.
 */
const OWN = new Set([
  ...['id', 'request_id', 'created', 'kv_transfer_params', 'system_fingerprint'],
  'cached_tokens',
]);

/** The content of a reply without these members. */
function meaning(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(meaning);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => !OWN.has(key))
      .map(([key, inner]) => [key, meaning(inner)]),
  );
}

const events = (body: string) =>
  body
    .split(/\r?\n\r?\n/)
    .map((event) => event.replace(/^data: ?/, ''))
    .filter((data) => data.startsWith('{'))
    .map((data) => JSON.parse(data) as unknown);

function casesOf(spec: Spec): Case[] {
  const stream = spec.request?.['stream'] === true;
  return (spec.protocols ?? PROTOCOLS).flatMap((protocol) =>
    (spec.chunks ?? [undefined, 1, 97]).map((chunkBytes): Case => {
      const pieces = chunkBytes === undefined ? '' : `, pieces of ${chunkBytes}`;
      const name = `${spec.name}, ${protocol}${pieces}`;
      let prefilled: EngineReply | undefined;
      return {
        name,
        scenario: (): Scenario => {
          const shared = { ...spec.engine, model: MODEL };
          const request = requestOf(spec);
          const { prefill, decode } = usedDeployment(spec.path, request, shared, {
            decode: { chunkBytes },
          }).engines;
          return {
            name,
            config: spec.config,
            client: post(request, { path: spec.path }),
            prefill: async (received) => (prefilled = await prefill(received)),
            decode,
            downstream: protocol,
            upstream: protocol,
          };
        },
        check(result: Result): void {
          expect(result).toMatchObject({ status: 200, complete: true });
          const body = result.body.toString();
          const right = Buffer.concat(oracleOf(spec).chunks).toString();
          const read = stream ? events : (text: string) => JSON.parse(text) as unknown;
          expect(meaning(read(body))).toEqual(meaning(read(right)));
          const told = /"cached_tokens":\d+/.exec(Buffer.concat(prefilled!.chunks).toString())?.[0];
          expect(/"cached_tokens":\d+/.exec(body)?.[0]).toBe(told);
          if (spec.engine.cachedTokens) expect(Number(told?.split(':')[1])).toBeGreaterThan(0);
          expect(result.logged).toMatch(new RegExp(`^merged; rows=\\d+; choices=${spec.choices}$`));
          expect(result.counters['routed_experts.merged']).toBe(1);
          expect(result.prefillRequests).toHaveLength(1);
          expect(result.decodeRequests).toHaveLength(1);
          const said = header(stream ? result.trailers : result.headers, 'x-routed-experts');
          expect(said).toBe(result.logged);
          const length = header(result.headers, 'content-length');
          if (length !== undefined) expect(Number(length)).toBe(result.body.length);
        },
      };
    }),
  );
}

const KEYS = [
  ['data', 'shape', 'start', 'dtype'],
  ['start', 'dtype', 'shape', 'data'],
  ['shape', 'data'],
] as const;

const objects: Spec[] = [COMPLETIONS, CHAT, GENERATE].flatMap((path) =>
  KEYS.map((keys) => ({
    name: `B, ${keys.join(' ')}, ${path}`,
    path,
    engine: { format: 'B' as const, object: { keys } },
    choices: 1,
  })),
);

const splits: Spec[] = (['nested', 'base64'] as const).flatMap((encoding) =>
  (['top', 'choice'] as const).flatMap((place) =>
    (['invalid', 'null', 'missing'] as const).map((remotePrompt) => ({
      name: `C, ${encoding}, ${place}, decode's ${remotePrompt}`,
      path: COMPLETIONS,
      engine: { format: 'C' as const, split: { encoding, place, remotePrompt } },
      choices: 1,
    })),
  ),
);

const choices = { n: 3, temperature: 0.8 };

export const formats: Suite = {
  name: 'formats of routing',
  cases: [
    ...objects,
    {
      name: 'B, three choices',
      path: COMPLETIONS,
      engine: { format: 'B' as const },
      request: choices,
      choices: 3,
    },
    {
      name: 'B, tail',
      path: COMPLETIONS,
      engine: { format: 'B' as const, version: '0.32' as const, connector: 'shared_storage' as const },
      config: { decode_rows: 'tail', connector: 'shared_storage' },
      choices: 1,
    },
    {
      name: 'B, a start that nobody asked for',
      path: COMPLETIONS,
      engine: { format: 'B' as const, object: { start: 5 } },
      choices: 1,
    },
    ...splits,
    {
      name: 'C, three choices',
      path: COMPLETIONS,
      engine: { format: 'C' as const },
      request: choices,
      choices: 3,
    },
    ...[COMPLETIONS, CHAT, GENERATE].flatMap((path): Spec[] =>
      (['A', 'B'] as const).map((format) => ({
        name: `${format}, a stream of ${path}`,
        path,
        engine: { format, streamArrays: true },
        request: { stream: true },
        choices: 1,
      })),
    ),
    ...[COMPLETIONS, CHAT].map((path): Spec => ({
      name: `prompt_logprobs of ${path}`,
      path,
      engine: {},
      request: { prompt_logprobs: 2 },
      choices: 1,
    })),
    {
      name: 'prompt_logprobs of a generate',
      path: GENERATE,
      engine: {},
      request: { sampling_params: { max_tokens: 9, prompt_logprobs: 2 } },
      choices: 1,
    },
    ...(['all', 'null'] as const).map((remote): Spec => ({
      name: `cached_tokens, decode says ${remote}`,
      path: COMPLETIONS,
      engine: { cachedTokens: { remote, zero: 'object' } },
      choices: 1,
    })),
  ].flatMap(casesOf),
};
