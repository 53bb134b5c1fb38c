// Rows that no router can give, from either leg or from decode alone, in every format; and rows
// that only look so, from models with dense layers, with one expert per token, or with experts that
// repeat by design.

import { expect } from 'vitest';
import type { ClientRequest, Header, Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { GENERATE, PARAMS, answering, cut, expectError, expectOutcome, post, reply } from './messages.ts';
import { changed, inInt32, inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';

const PROMPT = 9;
const TOKENS = 5;
const RIGHT = rowsOf(0, PROMPT + TOKENS - 1);
const ZERO = [0, 0, 0, 0];

interface Reply {
  body: string;
  events?: boolean;
}

/** How both legs reply in one format. The prompt rows of decode are those of an earlier request. */
interface Wire {
  prefill(rows: Rows, tokens?: number): string;
  decode(rows: Rows, prompt: number, tokens: number, more?: string): Reply;
  client?: ClientRequest;
  config?: Record<string, unknown>;
}

const usage = (prompt: number, tokens: number, more = '') =>
  `{"prompt_tokens":${prompt},"completion_tokens":${tokens}${more}}`;

const choices =
  (write: Write, from = 0) =>
  (rows: Rows, prompt: number, tokens: number, more = ''): Reply => ({
    body: `{"choices":[{"index":0,"text":"x","routed_experts":${write(rows.slice(from === 0 ? 0 : prompt), from === 0 ? 0 : prompt)}}],"usage":${usage(prompt, tokens, more)}}`,
  });

const prefillOf = (write: Write) => (rows: Rows) =>
  `{"choices":[{"index":0,"text":"x","finish_reason":"length","routed_experts":${write(rows)}}],"usage":${usage(rows.length, 1)},"kv_transfer_params":${PARAMS}}`;

const native: ClientRequest = post(
  JSON.stringify({ text: 'x', sampling_params: { max_new_tokens: TOKENS }, return_routed_experts: true }),
  { path: '/generate' },
);

const WIRES: Record<string, Wire> = {
  A: { prefill: prefillOf(inNpy()), decode: choices(inNpy()) },
  'A, <u2': { prefill: prefillOf(inNpy('<u2')), decode: choices(inNpy('<u2')) },
  'A, <i4': { prefill: prefillOf(inNpy('<i4')), decode: choices(inNpy('<i4')) },
  'A, tail': {
    prefill: prefillOf(inNpy()),
    decode: choices(inNpy(), 1),
    config: { decode_rows: 'tail' },
  },
  'A, stream': {
    prefill: prefillOf(inNpy()),
    decode: (rows, prompt, tokens) => ({
      events: true,
      body:
        `data: {"choices":[{"index":0,"token_ids":[7],"routed_experts":null}]}\n\n` +
        `data: {"choices":[{"index":0,"token_ids":[${'7,'.repeat(tokens - 2)}7],"finish_reason":"length","routed_experts":${inNpy()(rows)}}]}\n\n` +
        `data: {"choices":[],"usage":${usage(prompt, tokens)}}\n\ndata: [DONE]\n\n`,
    }),
    client: post(
      JSON.stringify({ token_ids: [1, 2], stream: true, sampling_params: { max_tokens: TOKENS } }),
      { path: GENERATE },
    ),
  },
  B: { prefill: prefillOf(inObject()), decode: choices(inObject()) },
  'B, generated rows': { prefill: prefillOf(inObject()), decode: choices(inObject(), 1) },
  C: {
    prefill: (rows) =>
      `{"prompt_routed_experts":${inLists(rows)},"choices":[{"index":0,"finish_reason":"length","routed_experts":[]}],"usage":${usage(rows.length, 1)},"kv_transfer_params":${PARAMS}}`,
    decode: (rows, prompt, tokens) => ({
      body: `{"prompt_routed_experts":${inLists(rows.slice(0, prompt))},"choices":[{"index":0,"routed_experts":${inLists(rows.slice(prompt))}}],"usage":${usage(prompt, tokens)}}`,
    }),
  },
  'C, objects': {
    prefill: (rows) =>
      `{"prompt_routed_experts":${inObject('<u2')(rows)},"choices":[{"index":0,"finish_reason":"length","routed_experts":null}],"usage":${usage(rows.length, 1)},"kv_transfer_params":${PARAMS}}`,
    decode: (rows, prompt, tokens) => ({
      body: `{"prompt_routed_experts":${inObject('<u2')(rows.slice(0, prompt))},"choices":[{"index":0,"routed_experts":${inObject('<u2')(rows.slice(prompt))}}],"usage":${usage(prompt, tokens)}}`,
    }),
  },
  D: {
    prefill: (rows) =>
      `{"text":"x","meta_info":{"prompt_tokens":${rows.length},"completion_tokens":1,"routed_experts":${inInt32(rows)}}}`,
    decode: (rows, prompt, tokens) => ({
      body: `{"text":"x","meta_info":{"prompt_tokens":${prompt},"completion_tokens":${tokens},"routed_experts":${inInt32(rows)}}}`,
    }),
    client: native,
    config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
  },
};

const CLIENT = post('{"model":"m","prompt":"one two three","max_tokens":5}');

interface Exchange {
  name: string;
  wire: string;
  /**
   * The rows of prefill, and the rows of decode from the seam on. Decode's prompt rows are
   * different ones.
   */
  prefill?: Rows;
  generated?: Rows;
  config?: Record<string, unknown>;
  /** Where the fault is; without one, the rows are merged. */
  fault?: string;
  reason?: string;
}

const STALE = 1;

function scenarioOf({
  name,
  wire,
  prefill = RIGHT.slice(0, PROMPT),
  generated = RIGHT.slice(PROMPT),
  config,
}: Exchange): Scenario {
  const of = WIRES[wire]!;
  const prompt = prefill.length;
  // An earlier request's rows come from the same model, so they have its shape and its dense
  // layers.
  const stale = changed(prefill, (_, __, ids) =>
    ids.every((id) => id === 0) ? ids : ids.map((id) => (id + STALE) % 29 || 3),
  );
  const { body, events } = of.decode([...stale, ...generated], prompt, generated.length + 1);
  return {
    name,
    config: { ...of.config, ...config },
    client: of.client ?? CLIENT,
    prefill: answering(of.prefill(prefill)),
    decode: answering(
      body,
      events ? { headers: [['content-type', 'text/event-stream']], contentLength: null } : {},
    ),
  };
}

/** Checks all rows of a response, whatever its format. */
function rowsIn(result: Result, wire: string, prefill: Rows, generated: Rows): void {
  const of = WIRES[wire]!;
  const all = [...prefill, ...generated];
  const whole = wire.includes('tail') || wire.includes('generated');
  const right = (whole ? WIRES[wire[0]!]! : of).decode(all, prefill.length, generated.length + 1).body;
  expect(result.body.toString()).toBe(right);
}

function caseOf(exchange: Exchange): Case {
  const { name, wire, fault, reason = 'experts' } = exchange;
  const { prefill = RIGHT.slice(0, PROMPT), generated = RIGHT.slice(PROMPT) } = exchange;
  return {
    name: `${wire}: ${name}`,
    scenario: () => scenarioOf(exchange),
    ...(wire === 'D' ? { random: /"bootstrap_room":\d+/ } : {}),
    check(result) {
      if (fault === undefined) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.logged).toBe(`merged; rows=${prefill.length}; choices=1`);
        return rowsIn(result, wire, prefill, generated);
      }
      expectOutcome(result, `rejected; reason=${reason}`);
      if (wire.includes('stream')) {
        expect(result.complete).toBe(false);
        return;
      }
      const text =
        reason === 'experts' ? `a row names experts that a router cannot have given (${fault})` : fault;
      expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${text}`);
    },
  };
}

const zeroAt = (rows: Rows, at: number) => changed(rows, (i, _, ids) => (i === at ? ZERO : ids));
const twice = (rows: Rows, at: number, layer: number) =>
  changed(rows, (i, l, ids) => (i === at && l === layer ? [ids[0]!, ids[1]!, ids[0]!, ids[3]!] : ids));
const zeroLayer = (rows: Rows, layer: number, at?: number) =>
  changed(rows, (i, l, ids) => (l === layer && (at === undefined || i === at) ? ZERO : ids));

const P = RIGHT.slice(0, PROMPT);
const G = RIGHT.slice(PROMPT);

/**
 * In format D nothing tells the layers, so only rows of zeros are found unless the model is
 * configured.
 */
const KNOWN = { model: { layers: 3, top_k: 4, experts: 30 } };

const everywhere = (wire: string): Exchange[] => {
  const config = wire === 'D' ? KNOWN : {};
  // The position of the first generated row as messages name it: format C counts the generated rows
  // from 0.
  const g = wire.startsWith('C') && !wire.includes('objects') ? 0 : wire === 'C, objects' ? 0 : PROMPT;
  return [
    { name: 'rows that are right', wire },
    { name: "prefill's first row is zero", wire, prefill: zeroAt(P, 0), fault: 'prefill row 0, all layers' },
    { name: "prefill's row 4 is zero", wire, prefill: zeroAt(P, 4), fault: 'prefill row 4, all layers' },
    { name: "prefill's last row is zero", wire, prefill: zeroAt(P, 8), fault: 'prefill row 8, all layers' },
    {
      name: "prefill's array is zero",
      wire,
      prefill: changed(P, () => ZERO),
      fault: 'prefill row 0, all layers',
    },
    {
      name: 'a generated row is zero',
      wire,
      generated: zeroAt(G, 2),
      fault: `decode row ${g + 2}, all layers`,
    },
    { name: 'the last row is zero', wire, generated: zeroAt(G, 3), fault: `decode row ${g + 3}, all layers` },
    {
      name: 'prefill names an expert twice',
      wire,
      config,
      prefill: twice(P, 0, 1),
      fault: 'prefill row 0, layer 1',
    },
    {
      name: 'decode names an expert twice',
      wire,
      config,
      generated: twice(G, 3, 2),
      fault: `decode row ${g + 3}, layer 2`,
    },
    {
      name: 'a layer is zero in one row',
      wire,
      config,
      prefill: zeroLayer(P, 2, 8),
      fault: 'prefill row 8, layer 2',
    },
    {
      name: 'a layer is zero in decode only',
      wire,
      config,
      generated: zeroLayer(G, 0),
      fault: `decode row ${g}, layer 0`,
    },
    {
      name: 'a layer is zero in prefill only',
      wire,
      config,
      prefill: zeroLayer(P, 0),
      fault: 'prefill row 0, layer 0',
    },
    { name: 'the first layer is dense', wire, config, prefill: zeroLayer(P, 0), generated: zeroLayer(G, 0) },
    {
      name: 'two of three layers are dense',
      wire,
      config,
      prefill: zeroLayer(zeroLayer(P, 0), 2),
      generated: zeroLayer(zeroLayer(G, 0), 2),
    },
    { name: 'a row of zeros, unchecked', wire, config: { check_rows: 'off' }, prefill: zeroAt(P, 4) },
  ];
};

// Id 0 stands for each of the model's zero experts.
const repeated = (rows: Rows) => changed(rows, (_, __, ids) => [ids[0]!, 0, 0, ids[3]!]);
const LONG = rowsOf(0, 400);

const others: Exchange[] = [
  { name: 'one token, so that no row is generated', wire: 'A', generated: [] },
  {
    name: 'one token, and prefill is zero',
    wire: 'A',
    generated: [],
    prefill: zeroAt(P, 8),
    fault: 'prefill row 8, all layers',
  },
  { name: 'a model that repeats experts', wire: 'A', prefill: repeated(P), generated: repeated(G) },
  { name: 'a model that repeats experts, one token', wire: 'A', prefill: repeated(P), generated: [] },
  {
    name: 'prefill repeats experts and decode does not',
    wire: 'A',
    prefill: repeated(P),
    fault: 'prefill row 0, layer 0',
  },
  ...(['A', 'B', 'C'] as const).map((wire): Exchange => {
    const one = changed(RIGHT, (i, l, ids) => [(i + l) % 2 ? 0 : ids[0]!]);
    return {
      name: 'one expert a token, and some are 0',
      wire,
      prefill: one.slice(0, PROMPT),
      generated: one.slice(PROMPT),
    };
  }),
  {
    name: 'a row of 400 that is zero',
    wire: 'A',
    prefill: zeroAt(LONG, 237),
    fault: 'prefill row 237, all layers',
  },
  { name: 'a repeat in a row that no sample has', wire: 'A', prefill: twice(LONG, 1, 1) },
  {
    name: 'a repeat in such a row, all checked',
    wire: 'A',
    config: { check_rows: 'all' },
    prefill: twice(LONG, 1, 1),
    fault: 'prefill row 1, layer 1',
  },
  { name: 'the configured model', wire: 'A', config: KNOWN },
  {
    name: 'an id that the configured model does not have',
    wire: 'A',
    config: { model: { ...KNOWN.model, experts: 29 } },
    prefill: changed(P, (i, l, ids) => (i === 0 && l === 0 ? [29, 30, 31, 28] : ids)),
    fault: 'prefill row 0, layer 0',
  },
  {
    name: 'other layers than the configured model',
    wire: 'A',
    config: { model: { ...KNOWN.model, layers: 4 } },
    reason: 'layers',
    fault: "the number of layers differs between the legs, or is not the configured model's",
  },
  {
    name: 'another top_k than the configured model',
    wire: 'B',
    config: { model: { ...KNOWN.model, top_k: 8 } },
    reason: 'top_k',
    fault: "top_k differs between the legs, or is not the configured model's",
  },
  {
    name: 'another size of rows than the configured model',
    wire: 'D',
    config: { model: { ...KNOWN.model, layers: 4 } },
    reason: 'layers',
    fault: "the number of layers differs between the legs, or is not the configured model's",
  },
];

// ---- rows that are good by themselves, or have nothing beside them

const events = (...documents: string[]) =>
  [...documents, '[DONE]'].map((document) => `data: ${document}\n\n`).join('');
const STREAMED: Partial<Scenario> = {
  client: post('{"token_ids":[1,2],"stream":true,"sampling_params":{"max_tokens":5,"n":2}}', {
    path: GENERATE,
  }),
};
const asEvents = { headers: [['content-type', 'text/event-stream']] as Header[], contentLength: null };

const eventOf = (index: number, array: string) =>
  `{"choices":[{"index":${index},"token_ids":[7,7,7,7,7],"routed_experts":${array}}]}`;
const WRONG = [...rowsOf(0, PROMPT, STALE), ...zeroLayer(G, 0, 1)];
const STALE_ROWS = [...rowsOf(0, PROMPT, STALE), ...G];

/**
 * The filter holds an object to its end. The rows of this one are wrong only in comparison with
 * prefill's rows.
 */
const heldObjects: Case[] = ['B', 'C'].map((format) => {
  const apart = format === 'C';
  const array = (rows: Rows, index: number) =>
    apart
      ? `{"prompt_routed_experts":${inObject()(rows.slice(0, PROMPT))},${eventOf(index, inObject()(rows.slice(PROMPT))).slice(1)}`
      : eventOf(index, inObject()(rows));
  const nulled = (index: number) =>
    apart
      ? `{"prompt_routed_experts":${inObject()(P)},${eventOf(index, 'null').slice(1)}`
      : eventOf(index, 'null');
  return {
    name: `${format}: a layer that is wrong in a stream's first array: the arrays become null`,
    scenario: () => ({
      name: 'null',
      config: { on_unmergeable: 'null' },
      client: STREAMED.client!,
      prefill: answering(
        apart
          ? `{"prompt_routed_experts":${inObject()(P)},${prefillOf(() => 'null')(P).slice(1)}`
          : WIRES['B']!.prefill(P),
      ),
      decode: answering(events(array(WRONG, 0), array(STALE_ROWS, 1)), asEvents),
    }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true, logged: 'unmerged; reason=experts' });
      expect(result.body.toString()).toBe(events(nulled(0), nulled(1)));
    },
  };
});

const ALONE = '{"model":"m","prompt":"one two three","max_tokens":5,"echo":true}';

const lone: Case[] = [
  {
    name: 'decode alone: a body that is no JSON behind an array that becomes null',
    scenario: () => ({
      name: 'broken',
      config: { on_unmergeable: 'null' },
      client: post(ALONE),
      prefill: answering('{}'),
      decode: answering(`{"choices":[{"index":0,"routed_experts":${inNpy()(zeroAt(RIGHT, 2))}}],}`),
    }),
    check: (result) => expectOutcome(result, 'rejected; reason=json'),
  },
  ...[false, true].map((stream): Case => {
    const body = `{"prompt_routed_experts":null,"choices":[{"index":0,"routed_experts":null}]}`;
    return {
      name: `C: prefill names an expert twice, and decode${stream ? ', in a stream,' : ''} has no rows`,
      scenario: () => ({
        name: 'no rows',
        config: {},
        client: stream ? STREAMED.client! : CLIENT,
        prefill: answering(WIRES['C']!.prefill(twice(P, 0, 1))),
        decode: stream ? answering(events(body), asEvents) : answering(body),
      }),
      check(result) {
        expectOutcome(result, 'rejected; reason=experts');
        expect(result.complete).toBe(!stream);
      },
    };
  }),
  {
    name: 'D: an empty array where none of the rows is prefill’s',
    scenario: () => ({
      name: 'empty',
      config: WIRES['D']!.config!,
      client: post(
        JSON.stringify({
          text: 'x',
          sampling_params: { max_new_tokens: TOKENS },
          return_routed_experts: true,
          routed_experts_start_len: 1,
        }),
        { path: '/generate' },
      ),
      prefill: answering(
        '{"text":"x","meta_info":{"prompt_tokens":1,"completion_tokens":1,"routed_experts":""}}',
      ),
      decode: answering(WIRES['D']!.decode([], 1, 2).body),
    }),
    random: /"bootstrap_room":\d+/,
    check: (result) => expectOutcome(result, 'rejected; reason=rows'),
  },
  {
    name: 'D: rows of the configured model in pieces, of which nothing is held at the end',
    scenario: () => ({
      ...scenarioOf({ name: 'pieces', wire: 'D', config: KNOWN }),
      decode: () => {
        const body = Buffer.from(WIRES['D']!.decode(RIGHT, PROMPT, TOKENS).body);
        return { ...reply(body), chunks: cut(body, 50) };
      },
    }),
    random: /"bootstrap_room":\d+/,
    check: (result) => expect(result.logged).toBe(`merged; rows=${PROMPT}; choices=1`),
  },
];

export const experts: Suite = {
  name: 'rows that a router cannot have given',
  cases: [...Object.keys(WIRES).flatMap(everywhere), ...others].map(caseOf).concat(heldObjects, lone),
};
