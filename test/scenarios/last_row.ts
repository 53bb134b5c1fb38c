// `last_prompt_row`: both legs forward the last prompt token, and this setting says whose row it
// gets. The rows of the two legs differ here, so every answer shows which leg its row came from.
// Also tested is a start of SGLang's that equals the prompt's length, so that all rows are
// decode's.

import { expect } from 'vitest';
import type { ClientRequest, Engine, Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import {
  GENERATE,
  PARAMS,
  answering,
  cut,
  expectError,
  expectOutcome,
  jsonOf,
  post,
  type ReplyOptions,
} from './messages.ts';
import { inInt32, inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';

const LP = 9;
const TOKENS = 5;
/**
 * Decode's rows before the last prompt token belong to no request. Its row of the last prompt token
 * comes from the pass that gave the first generated token.
 */
const prefillRows = (lp: number): Rows => rowsOf(0, lp);
const decodeRows = (lp: number, tokens: number): Rows => [
  ...rowsOf(0, lp - 1, 1),
  ...rowsOf(lp - 1, lp, 2),
  ...rowsOf(lp, lp + tokens - 1),
];

type Setting = 'prefill' | 'decode';

/**
 * The right rows: the formula, with the row of the last prompt token from the leg that the setting
 * names.
 */
const merged = (setting: Setting, lp: number, tokens: number): Rows => {
  const seam = setting === 'decode' ? lp - 1 : lp;
  return [...prefillRows(lp).slice(0, seam), ...decodeRows(lp, tokens).slice(seam)];
};

interface Wire {
  prefill(lp: number): string;
  /** `rows` begin with the row of token `start`. */
  decode(rows: Rows, start: number, lp: number, tokens: number, choices: number): string;
  /** The position of the first row of the merged array. */
  start?: number;
  events?: boolean;
  client(tokens: number, choices: number): ClientRequest;
  config?: Record<string, unknown>;
}

/** The member with which decode is asked for its own rows only. */
const START = 'routed_experts_prompt_start';

const completion = (tokens: number, choices: number): ClientRequest =>
  post(JSON.stringify({ prompt: 'one two', max_tokens: tokens, ...(choices > 1 ? { n: choices } : {}) }));

const usage = (prompt: number, tokens: number) => `{"prompt_tokens":${prompt},"completion_tokens":${tokens}}`;

const choicesOf = (write: Write): Wire => ({
  prefill: (lp) =>
    `{"choices":[{"index":0,"text":"x","finish_reason":"length","routed_experts":${write(prefillRows(lp))}}],` +
    `"usage":${usage(lp, 1)},"kv_transfer_params":${PARAMS}}`,
  decode: (rows, start, lp, tokens, choices) =>
    `{"choices":[${Array.from(
      { length: choices },
      (_, i) => `{"index":${i},"text":"x","routed_experts":${write(rows, start)}}`,
    ).join(',')}],"usage":${usage(lp, tokens * choices)}}`,
  client: completion,
});

const A = choicesOf(inNpy());

const WIRES: Record<string, Wire> = {
  A,
  'A, <u2': choicesOf(inNpy('<u2')),
  'A, stream': {
    ...A,
    decode: (rows, _, lp, tokens) =>
      `data: {"choices":[{"index":0,"token_ids":[7],"routed_experts":null}]}\n\n` +
      `data: {"choices":[{"index":0,"token_ids":[${'7,'.repeat(tokens - 2)}7],"finish_reason":"length","routed_experts":${inNpy()(rows)}}]}\n\n` +
      `data: {"choices":[],"usage":${usage(lp, tokens)}}\n\ndata: [DONE]\n\n`,
    events: true,
    client: (tokens) =>
      post(JSON.stringify({ token_ids: [1, 2], stream: true, sampling_params: { max_tokens: tokens } }), {
        path: GENERATE,
      }),
  },
  B: choicesOf(inObject()),
  'B, <i4': choicesOf(inObject('<i4')),
  D: {
    prefill: (lp) =>
      `{"text":"x","meta_info":{"prompt_tokens":${lp},"completion_tokens":1,"routed_experts":${inInt32(prefillRows(lp))}}}`,
    decode: (rows, _, lp, tokens) =>
      `{"text":"x","meta_info":{"prompt_tokens":${lp},"completion_tokens":${tokens},"routed_experts":${inInt32(rows)}}}`,
    client: (tokens) =>
      post(
        JSON.stringify({
          text: 'x',
          sampling_params: { max_new_tokens: tokens },
          return_routed_experts: true,
        }),
        { path: '/generate' },
      ),
    config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
  },
};

interface Spec {
  name: string;
  wire: string;
  setting: Setting;
  lp?: number;
  tokens?: number;
  choices?: number;
  /** Decode is asked for its own rows only, and returns these. */
  tail?: boolean;
  /** Decode returns only its own rows although it was asked for all rows, as format B allows. */
  own?: boolean;
  /**
   * The number of rows that are missing at the start of decode's own rows; negative if there are
   * too many.
   */
  shift?: number;
  pieces?: number;
}

const replyOf = (of: Wire, body: string, pieces?: number): Engine => {
  const options: ReplyOptions = {
    ...(of.events ? { headers: [['content-type', 'text/event-stream']], contentLength: null } : {}),
    ...(pieces === undefined ? {} : { pieces: cut(Buffer.from(body), pieces) }),
  };
  return answering(body, options);
};

function caseOf(spec: Spec): Case {
  const { wire, setting, lp = LP, tokens = TOKENS, choices = 1, tail, own, shift = 0, pieces } = spec;
  const of = WIRES[wire]!;
  const seam = setting === 'decode' ? lp - 1 : lp;
  const name = `${wire}: ${spec.name}, ${setting}`;
  return {
    name,
    ...(wire === 'D' ? { random: /"bootstrap_room":\d+/ } : {}),
    ...(pieces === undefined ? {} : { cutDecidesHead: true }),
    scenario(): Scenario {
      const start = tail || own ? seam : 0;
      const rows = decodeRows(lp, tokens).slice(start + shift);
      return {
        name,
        config: { ...of.config, ...(tail ? { decode_rows: 'tail' } : {}), last_prompt_row: setting },
        client: of.client(tokens, choices),
        prefill: answering(of.prefill(lp)),
        decode: replyOf(of, of.decode(rows, start, lp, tokens, choices), pieces),
      };
    },
    check(result: Result): void {
      const asked = jsonOf(result.decodeRequests[0]!);
      expect((of.events ? (asked['sampling_params'] as Record<string, unknown>) : asked)[START]).toBe(
        tail ? seam : undefined,
      );
      if (shift !== 0) {
        expectOutcome(result, 'rejected; reason=rows');
        const text = 'the decode array does not have the rows that were asked for';
        return expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${text}`);
      }
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(
        of.decode(merged(setting, lp, tokens), of.start ?? 0, lp, tokens, choices),
      );
      expect(result.logged).toBe(`merged; rows=${seam}; choices=${choices}`);
    },
  };
}

const SETTINGS: Setting[] = ['prefill', 'decode'];

/**
 * The formats that a setting is possible with. SGLang's decode does not forward the last prompt
 * token, so the filter refuses the setting `decode` with its connector (configuration.ts).
 */
const wiresOf = (setting: Setting) =>
  Object.keys(WIRES).filter((wire) => setting === 'prefill' || wire !== 'D');

const specs: Spec[] = SETTINGS.flatMap((setting) => [
  ...wiresOf(setting).flatMap((wire): Spec[] => [
    { name: 'all rows', wire, setting },
    { name: 'all rows in pieces of 7', wire, setting, pieces: 7 },
    { name: 'all rows, one token', wire: wire === 'A, stream' ? 'A' : wire, setting, tokens: 1 },
    { name: 'all rows, a prompt of one token', wire, setting, lp: 1 },
    { name: 'a prompt of two tokens', wire, setting, lp: 2 },
  ]),
  ...['A', 'A, <u2', 'A, stream', 'B'].flatMap((wire): Spec[] => [
    { name: 'decode’s own rows', wire, setting, tail: true },
    { name: 'decode’s own rows in pieces of 7', wire, setting, tail: true, pieces: 7 },
    // Left out for `prefill`: with so few rows, a stream's tail cannot be told from a full array,
    // and the outcome is `ambiguous`. For `decode`, no row is prefill's, so it does not matter.
    ...(wire === 'A, stream' && setting === 'prefill'
      ? []
      : [{ name: 'decode’s own rows of a prompt of one token', wire, setting, tail: true, lp: 1 }]),
  ]),
  ...['B', 'B, <i4'].map((wire): Spec => ({
    name: 'rows from a start of decode’s',
    wire,
    setting,
    own: true,
  })),
  ...['A', 'B'].flatMap((wire): Spec[] => [
    { name: 'two choices', wire, setting, choices: 2 },
    { name: 'decode’s own rows, two choices', wire, setting, choices: 2, tail: true },
  ]),
  // With `decode`, these are the rows that decode would be asked for under the setting `prefill`.
  { name: 'one row less than was asked for', wire: 'A', setting, tail: true, shift: 1 },
  { name: 'one row less than was asked for', wire: 'B', setting, tail: true, shift: 1 },
]);

// Some specs are listed twice, because not every format has variants. Each runs once.
const unique = [...new Map(specs.map((spec) => [JSON.stringify(spec), spec])).values()];

/** Prefill's `prompt_routed_experts` is a member of its own, into which no row of decode can go. */
const apart: Case[] = ['lists', 'objects'].map((form): Case => {
  const write = form === 'lists' ? inLists : inObject();
  return {
    name: `C, ${form}: the row of the last prompt token can’t be decode’s`,
    scenario: () => ({
      name: form,
      config: { last_prompt_row: 'decode' },
      client: completion(TOKENS, 1),
      prefill: answering(
        `{"prompt_routed_experts":${write(prefillRows(LP))},"choices":[{"index":0,"finish_reason":"length",` +
          `"routed_experts":${form === 'lists' ? '[]' : 'null'}}],"usage":${usage(LP, 1)},"kv_transfer_params":${PARAMS}}`,
      ),
      decode: answering(
        `{"prompt_routed_experts":${write(rowsOf(0, LP, 1))},"choices":[{"index":0,` +
          `"routed_experts":${write(rowsOf(LP, LP + TOKENS - 1))}}],"usage":${usage(LP, TOKENS)}}`,
      ),
    }),
    check: (result) => expectOutcome(result, 'rejected; reason=rows'),
  };
});

/**
 * The client asks for rows from `start` on. SGLang 0.5.23 returns the rows from there on, and
 * prefill has none of them if `start` is the prompt's length.
 */
function started(start: number, prefill: string | null): Case {
  const wire = WIRES['D']!;
  const taken = Math.max(LP - start, 0);
  // Decode is asked for the same start. Its first rows belong to no request.
  const rows = decodeRows(LP, TOKENS).slice(start);
  const routed = prefill === null ? '' : `,"routed_experts":${prefill}`;
  const right = merged('prefill', LP, TOKENS).slice(start);
  return {
    name: `D: a start of ${start}, of which prefill says ${prefill === null ? 'nothing' : `${taken} rows`}`,
    random: /"bootstrap_room":\d+/,
    scenario: () => ({
      name: 'start',
      config: wire.config!,
      client: post(
        JSON.stringify({
          text: 'x',
          sampling_params: { max_new_tokens: TOKENS },
          return_routed_experts: true,
          routed_experts_start_len: start,
        }),
        { path: '/generate' },
      ),
      prefill: answering(`{"text":"x","meta_info":{"prompt_tokens":${LP},"completion_tokens":1${routed}}}`),
      decode: answering(wire.decode(rows, start, LP, TOKENS, 1)),
    }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(wire.decode(right, start, LP, TOKENS, 1));
      expect(result.logged).toBe(`merged; rows=${taken}; choices=1`);
    },
  };
}

const starts: Case[] = [
  started(3, inInt32(prefillRows(LP).slice(3))),
  started(LP - 1, inInt32(prefillRows(LP).slice(LP - 1))),
  started(LP, '""'),
];

export const lastRow: Suite = {
  name: 'last prompt row',
  cases: [...unique.map(caseOf), ...apart, ...starts],
};
