// SGLang's second array with a row for each token, `indexer_topk`: merged like routing where
// prefill returns it, and refused where prefill lacks it, as SGLang 0.5.23 does.

import { expect } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import type { Indexer } from '../engine/indexer.ts';
import type { Engine, EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { caseOf } from './connectors.ts';
import { CHAT, NATIVE, answering, expectError, expectOutcome, post } from './messages.ts';
import { usedDeployment } from './used.ts';

type Json = Record<string, any>;

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const HOST = '127.0.0.1';
const RANDOM =
  /(?<="(?:request_)?id":)"[^"]*"|"bootstrap_room":(\d+|\[[\d,]+\])|(?<="bootstrap_port":)[\d,[\]]+/g;
let lastPort = 20_000;

/** Rows of another size than the experts', which begin at every place of a quantum of base64. */
const INDEXER: Indexer = { layers: 2, topK: 5 };

const both = (body: Json): Json => ({ ...body, return_routed_experts: true, return_indexer_topk: true });
const only = (body: Json): Json => ({ ...body, return_indexer_topk: true });
const native = (prompt: Json, max_new_tokens = 7): Json => ({
  ...prompt,
  sampling_params: { max_new_tokens },
});
const chat = (max_tokens = 7): Json =>
  both({ messages: [{ role: 'user', content: 'Go' }], max_tokens, return_meta_info: true });

// ---- a prefill that returns it, as a later version may

const ASKED: [string, string, Json][] = [
  ['a text', NATIVE, both(native({ text: 'The quick brown fox' }))],
  ['the array alone', NATIVE, only(native({ text: 'The quick brown fox' }))],
  ['a long prompt', NATIVE, both(native({ input_ids: Array.from({ length: 3000 }, (_, i) => i % 500) }))],
  ['a list of one text', NATIVE, both(native({ text: ['The quick'] }))],
  ['three lists of tokens', NATIVE, both(native({ input_ids: [[1, 2, 3], [4], [5, 6]] }))],
  ['the array alone, of two texts', NATIVE, only(native({ text: ['The quick', 'brown fox jumps'] }))],
  // The start is that of the experts: `indexer_topk` has all rows all the same.
  ['experts from a token on', NATIVE, both(native({ input_ids: [5, 6, 7, 8], routed_experts_start_len: 2 }))],
  [
    'experts from behind the prompt on',
    NATIVE,
    both(native({ input_ids: [5, 6, 7, 8], routed_experts_start_len: 4 })),
  ],
  ['one generated token', NATIVE, both(native({ text: 'The quick' }, 1))],
  ['one generated token, the array alone', NATIVE, only(native({ text: 'The quick' }, 1))],
  ['one token each of two texts', NATIVE, both(native({ text: ['The', 'quick fox'] }, 1))],
  ['a chat with meta_info', CHAT, chat()],
  ['a chat of one token', CHAT, chat(1)],
];

const engine: Partial<EngineOptions> = { indexer: { ...INDEXER, ofPrefill: true, inChat: true } };

const merged: Case[] = ASKED.flatMap(([name, path, body]) =>
  PROTOCOLS.flatMap((protocol) => [
    ...[0, 1 << 20].map((hold_bytes) =>
      caseOf('sglang', {
        name: `prefill has it: ${name}, hold_bytes ${hold_bytes}, ${protocol}`,
        ...{ path, body, protocol, engine, config: { hold_bytes } },
      }),
    ),
    // A chat that is streamed has no `meta_info`.
    ...(path === CHAT
      ? []
      : [
          caseOf('sglang', {
            name: `prefill has it: a stream, ${name}, ${protocol}`,
            ...{ path, body: { ...body, stream: true }, protocol, engine },
          }),
        ]),
  ]),
);

const parked = caseOf('sglang', {
  name: 'prefill has it: rows that are parked',
  ...{ path: NATIVE, body: both(native({ input_ids: [...Array(400).keys()] })), protocol: 'http1', engine },
  config: { max_capture_bytes: 1000 },
});

// ---- a prefill that lacks it (SGLang 0.5.23)

const TEXT = 'the prefill reply has no array (indexer_topk)';
const MISSING = {
  reject: 'rejected; reason=missing',
  null: 'unmerged; reason=missing',
  forward: 'unmerged; reason=missing',
};
type Policy = keyof typeof MISSING;

interface Lacking {
  name: string;
  body: Json;
  policy: Policy;
  config?: Json;
  stream?: boolean;
  check(result: Result, seen: { decode: Json; oracle: Json }): void;
}

const documents = (text: string, stream: boolean): Json[] =>
  stream
    ? text
        .split('\n\n')
        .flatMap((event) => (/^data: \{/.test(event) ? [JSON.parse(event.slice(6)) as Json] : []))
    : [JSON.parse(text) as Json];

/** The arrays of the last document, of each element where it is a list. */
const arraysIn = (body: Buffer, stream = false): Json[] => {
  const last = documents(body.toString(), stream).at(-1)!;
  return (Array.isArray(last) ? last : [last]).map(({ meta_info }: Json) => ({
    routed_experts: meta_info.routed_experts,
    indexer_topk: meta_info.indexer_topk,
  }));
};

function lackingCase(of: Lacking): Case {
  const stream = of.stream === true;
  const request = JSON.stringify(stream ? { ...of.body, stream: true } : of.body);
  const options = (port: number): Partial<EngineOptions> => ({
    connector: 'sglang',
    bootstrap: { host: HOST, port },
    patience: 5000,
    model: { layers: 3, topK: 2, experts: 9 },
    indexer: INDEXER,
  });
  let sent: EngineReply | undefined;
  return {
    name: `prefill lacks it, ${of.policy}: ${of.name}`,
    scenario(): Scenario {
      const port = ++lastPort;
      const { engines } = usedDeployment(NATIVE, request, options(port), { decode: { chunkBytes: 101 } });
      const decode: Engine = async (received) => (sent = await engines.decode(received));
      return {
        name: of.name,
        config: {
          connector: 'sglang',
          on_unmergeable: of.policy,
          ...of.config,
          prefill: { bootstrap_host: HOST, bootstrap_port: port },
        },
        client: post(request, { path: NATIVE }),
        prefill: engines.prefill,
        decode,
        bootstrap: engines.prefill,
      };
    },
    check(result) {
      const oracle = createEngine({ ...options(1), role: 'oracle' });
      const { chunks } = oracle({
        method: 'POST',
        path: NATIVE,
        headers: [['content-type', 'application/json']],
        body: Buffer.from(request),
      }) as EngineReply;
      of.check(result, {
        decode: arraysIn(Buffer.concat(sent!.chunks), stream),
        oracle: arraysIn(Buffer.concat(chunks), stream),
      });
    },
    random: RANDOM,
    cutDecidesHead: true,
  };
}

const refused = (result: Result): void => {
  expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${TEXT}`);
  expectOutcome(result, MISSING.reject);
};
/** Routing is the oracle's, and the other array is null. */
const nulled = (result: Result, { oracle }: { oracle: Json }, stream = false): void => {
  expect(result).toMatchObject({ status: 200, complete: true });
  expect(arraysIn(result.body, stream)).toEqual(
    oracle.map((each: Json) => ({ ...each, indexer_topk: null })),
  );
  expectOutcome(result, MISSING.null);
};
const forwarded = (result: Result, { decode }: { decode: Json }): void => {
  expect(result).toMatchObject({ status: 200, complete: true });
  expect(arraysIn(result.body)).toEqual(decode);
  expectOutcome(result, MISSING.forward);
};

const TWO = both(native({ text: ['The quick', 'brown fox jumps'] }));
const ONE = both(native({ text: 'The quick brown fox' }));
/** Routing of 3,000 tokens: what is held of it alone is more than `hold_bytes`. */
const LONG = both(native({ input_ids: Array.from({ length: 3000 }, (_, i) => i % 500) }, 50));
const REQUESTS = { 'a text': ONE, 'two texts': TWO, 'a long prompt': LONG };

const lacking: Case[] = [
  ...Object.entries(REQUESTS).flatMap(([name, body]) =>
    [0, 1 << 20].flatMap((hold_bytes) => [
      lackingCase({
        name: `${name}, hold_bytes ${hold_bytes}`,
        body,
        policy: 'reject',
        config: { hold_bytes },
        check: refused,
      }),
      lackingCase({
        name: `${name}, hold_bytes ${hold_bytes}`,
        body,
        policy: 'null',
        config: { hold_bytes },
        check: nulled,
      }),
      lackingCase({
        name: `${name}, hold_bytes ${hold_bytes}`,
        body,
        policy: 'forward',
        config: { hold_bytes },
        check: forwarded,
      }),
    ]),
  ),
  lackingCase({
    name: 'the array alone',
    body: only(native({ text: 'The quick' })),
    policy: 'reject',
    check: refused,
  }),
  lackingCase({
    name: 'the array alone',
    body: only(native({ text: 'The quick' })),
    policy: 'null',
    check(result) {
      expect(arraysIn(result.body)).toEqual([{ indexer_topk: null }]);
      expectOutcome(result, MISSING.null);
    },
  }),
  lackingCase({
    name: 'a stream',
    body: ONE,
    stream: true,
    policy: 'reject',
    check(result) {
      expect(result.complete).toBe(false);
      expectOutcome(result, MISSING.reject);
    },
  }),
  lackingCase({
    name: 'a stream',
    body: ONE,
    stream: true,
    policy: 'null',
    check: (result, seen) => nulled(result, seen, true),
  }),
  // Decode forwards nothing, and returns neither array. Prefill's experts are put in; the client
  // does not get positions that nobody has.
  lackingCase({
    name: 'one generated token',
    body: both(native({ text: 'The quick' }, 1)),
    policy: 'reject',
    check(result, { oracle }) {
      expect(arraysIn(result.body)).toEqual([{ routed_experts: oracle[0].routed_experts }]);
      expect(result.logged).toMatch(/^merged; rows=\d+; choices=1$/);
    },
  }),
];

// ---- messages by hand

const ROW = 24;
const PROMPT = 4;
const GENERATED = 3;
const text = (value: Buffer) => `"${value.toString('base64')}"`;
/** Zeros and -1, which a router never gives, are positions like others, in all of the rows. */
const truth = (rows: number) =>
  Buffer.concat(Array.from({ length: rows }, (_, row) => Buffer.alloc(ROW, [0, 0xff, 5, 5][row % 4])));
const all = PROMPT + GENERATED - 1;
/** Rows of one layer with two experts. */
const EXPERTS = Buffer.from(Int32Array.from([1, 2, 3, 1, 2, 0, 4, 5]).buffer);
const RIGHT = truth(all);
const STALE = Buffer.concat([Buffer.alloc(PROMPT * ROW, 9), RIGHT.subarray(PROMPT * ROW)]);

const info = (member: string, generated: number, prompt = PROMPT) =>
  `{"meta_info":{"prompt_tokens":${prompt},"completion_tokens":${generated},"finish_reason":{"type":"length"}${member}}}`;
const topk = (value: string) => `,"indexer_topk":${value}`;
const PREFILL = info(topk(text(truth(PROMPT))), 1);
/** The two places in which no engine has it today. */
const completion = (member: string, generated: number, beside = '') =>
  `{"choices":[{"index":0,"text":"x","finish_reason":"length"${member}}],"usage":{"prompt_tokens":${PROMPT},` +
  `"completion_tokens":${generated}}${beside}}`;

interface ByHand {
  name: string;
  prefill?: string;
  decode: string;
  /** What the client gets; else the reason why it gets nothing. */
  out?: string;
  reason?: string;
  config?: Json;
}

const BY_HAND: ByHand[] = [
  {
    name: 'rows of zeros and of -1',
    decode: info(topk(text(STALE)), GENERATED),
    out: info(topk(text(RIGHT)), GENERATED),
  },
  {
    name: 'check_rows: all',
    config: { check_rows: 'all' },
    decode: info(topk(text(STALE)), GENERATED),
    out: info(topk(text(RIGHT)), GENERATED),
  },
  {
    name: 'a model, whose experts it has nothing to do with',
    config: { model: { layers: 2, top_k: 2, experts: 4 } },
    decode: info(topk(text(STALE)), GENERATED),
    out: info(topk(text(RIGHT)), GENERATED),
  },
  {
    name: 'one token, and no member behind those that are put in',
    prefill: info(`,"routed_experts":${text(EXPERTS)}${topk(text(truth(PROMPT)))}`, 1),
    decode: info('', 1),
    out: info(`,"routed_experts":${text(EXPERTS)}${topk(text(truth(PROMPT)))}`, 1),
  },
  { name: 'null', decode: info(topk('null'), GENERATED), out: info(topk('null'), GENERATED) },
  { name: 'a list', decode: info(topk('[[[1]]]'), GENERATED), reason: 'format' },
  { name: 'an object', decode: info(topk('{"data":""}'), GENERATED), reason: 'format' },
  { name: 'twice', decode: info(topk(text(STALE)) + topk(text(STALE)), GENERATED), reason: 'duplicate' },
  { name: 'a row too few', decode: info(topk(text(STALE.subarray(ROW))), GENERATED), reason: 'rows' },
  { name: 'half a row', decode: info(topk(text(STALE.subarray(12))), GENERATED), reason: 'size' },
  { name: 'no base64', decode: info(topk('"AAA$"'), GENERATED), reason: 'base64' },
  { name: 'of another prompt', decode: info(topk(text(STALE)), GENERATED - 1, PROMPT + 1), reason: 'prompt' },
  {
    name: 'prefill has a number of rows that its tokens do not divide',
    prefill: info(topk(text(Buffer.alloc(PROMPT * ROW + 4))), 1),
    decode: info(topk(text(STALE)), GENERATED),
    reason: 'size',
  },
  {
    name: 'prefill has a list',
    prefill: info(topk('[]'), 1),
    decode: info(topk(text(STALE)), GENERATED),
    reason: 'format',
  },
  {
    name: 'in a choice, as another engine might write it',
    prefill: completion(topk(text(truth(PROMPT))), 1),
    decode: completion(topk(text(STALE)), GENERATED),
    out: completion(topk(text(RIGHT)), GENERATED),
  },
  {
    name: 'in a choice, of which prefill has none',
    prefill: completion('', 1),
    decode: completion(topk(text(STALE)), GENERATED),
    reason: 'missing',
  },
  {
    name: 'in sglext, of which prefill has none',
    prefill: completion('', 1),
    decode: completion('', GENERATED, `,"sglext":{"indexer_topk":${text(STALE)}}`),
    reason: 'missing',
  },
  {
    name: 'beside choices, of which prefill has none',
    prefill: completion('', 1),
    decode: completion('', GENERATED, topk(text(STALE))),
    reason: 'missing',
  },
];

const SENTENCES: Record<string, string> = {
  missing: TEXT,
  format: 'the value is not one that an array has',
};

const byHand = BY_HAND.flatMap((of) =>
  [undefined, 1].map((pieces): Case => ({
    name: `by hand: ${of.name}, pieces of ${pieces ?? 'all'}`,
    random: RANDOM,
    scenario: () => ({
      name: of.name,
      config: { connector: 'sglang', ...of.config, prefill: { bootstrap_host: HOST } },
      client: post(JSON.stringify(only(native({ input_ids: [1, 2, 3, 4] }))), { path: NATIVE }),
      prefill: answering(of.prefill ?? PREFILL),
      decode: answering(of.decode, pieces === undefined ? {} : { pieces }),
    }),
    check(result) {
      if (of.out !== undefined) {
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.body.toString()).toBe(of.out);
        expect(result.logged).toMatch(/^merged; rows=4; choices=1$|^absent$/);
        return;
      }
      expect(result.status).toBe(502);
      expectOutcome(result, `rejected; reason=${of.reason}`);
      const sentence = SENTENCES[of.reason!];
      if (sentence !== undefined) expect(result.body.toString()).toContain(sentence);
    },
  })),
);

export const indexer: Suite = { name: 'indexer_topk', cases: [...merged, parked, ...lacking, ...byHand] };
