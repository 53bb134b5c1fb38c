// Audits: when the client has its answer, an engine is asked once more for the prompt, and the rows
// that it gives are compared with those that prefill gave. What differs is computed here by the
// yardstick, from the client's answer and from that of the engine that does both legs.

import { expect } from 'vitest';
import { type Captured } from '../../yardstick/arrays.ts';
import { compareRows, Row } from '../../yardstick/compare.ts';
import { readReply } from '../../yardstick/reply.ts';
import type { Faults } from '../../yardstick/faults.ts';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { DEFAULT_MODEL } from '../engine/options.ts';
import type { Engine, EngineRequest, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  CHAT,
  COMPLETIONS,
  encoded,
  FULL,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  jsonOf,
  NATIVE,
  post,
  prefillBody,
  PROMPT,
  quoted,
  REQUEST,
  REQUEST_ID,
  reply,
} from './messages.ts';
import { changed, inLists, inNpy, inObject, rowsOf, type Rows, type Write } from './rows.ts';
import { oracleOf, usedDeployment } from './used.ts';

type Json = Record<string, any>;

const ALL = { audit: { fraction: 1 } };
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
const HOST = '127.0.0.1';
/** Ports of bootstrap servers that no exchange of another suite on the same host has asked. */
let lastPort = 39_000;
/** What differs between two runs of an exchange: rooms, transfers, ids and ports. */
const RANDOM =
  /(?<="(?:request_|remote_engine_)?id":)"[^"]*"|"bootstrap_room":(\d+|\[[\d,]+\])|xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+|(?<="bootstrap_port":)[\d,[\]]+/g;

const IDS = Array.from({ length: 37 }, (_, i) => 3 + ((i * 29 + (i >> 2)) % 500));
const OTHERS = IDS.map((id) => 3 + ((id * 7) % 499)).slice(0, 21);

// ---- what an audit must find

/** The counters of the filter on audits, by their names without the prefix. */
function auditCounters({ counters }: Result): Record<string, number> {
  const prefix = 'routed_experts.audit.';
  const own = Object.entries(counters).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(own.map(([name, by]) => [name.slice(prefix.length), by]));
}

interface Model {
  layers: number;
  topK: number;
}

interface Difference {
  rows: number;
  differing: number;
  wrong: number;
  /** The line of the log; null when no row differs. */
  said: RegExp | null;
}

/** Compares the rows of the tokens from `from` to before `seam`, of the answer to each prompt. */
function differenceOf(
  own: Captured[],
  right: Captured[],
  seams: number[],
  from: number,
  model: Model | null,
): Difference {
  const found: Difference = { rows: 0, differing: 0, wrong: 0, said: null };
  let first: { place: string; wrong: boolean } | null = null;
  own.forEach((array, element) => {
    const rows = seams[element]! - from;
    found.rows += rows;
    const width = (array.shape?.[1] ?? DEFAULT_MODEL.layers) * (array.shape?.[2] ?? DEFAULT_MODEL.topK);
    // Without a shape, a row is one layer of which no expert is near another.
    const [layers, topK] = array.shape?.slice(1) ?? (model ? [model.layers, model.topK] : [1, width]);
    const shape = {
      layers: layers!,
      topK: topK!,
      dense: new Set<number>(),
      repeatsZero: true,
      experts: null,
    };
    const positioned = ({ ids }: Captured) => ({ ids, start: from, count: rows });
    const kinds = compareRows(positioned(array), positioned(right[element]!), seams[element]!, shape).rows;
    const known = array.shape !== null || model !== null;
    kinds.forEach((kind, i) => {
      if (kind === Row.Equal) return;
      const wrong = kind === Row.Wrong || !known;
      found.differing++;
      if (wrong) found.wrong++;
      if (first && (first.wrong || !wrong)) return;
      const at = Array.from({ length: width }, (_, k) => i * width + k);
      const id = at.find((k) => array.ids[k] !== right[element]!.ids[k])! - i * width;
      const layer = known ? `, in layer ${Math.floor(id / topK!)}` : '';
      first = { place: `${from + i}${element > 0 ? ` of prompt ${element}` : ''}${layer}`, wrong };
    });
  });
  if (first !== null) {
    const { place, wrong } = first as { place: string; wrong: boolean };
    found.said = new RegExp(
      `^audit: ${found.differing} of ${found.rows} rows differ from those of cluster \\w+, and ${found.wrong} of ` +
        `these by more than numerics\\. The first ${wrong ? 'wrong one' : 'one'} is that of token ${place}\\. ` +
        `Request ${REQUEST_ID}$`,
    );
  }
  return found;
}

/** Checks the counters and the log of an audit that has compared rows. */
function expectFound(result: Result, { rows, differing, wrong, said }: Difference): void {
  expect(auditCounters(result)).toEqual({
    requests: 1,
    rows,
    ...(differing > 0 ? { rows_differing: differing } : {}),
    ...(wrong > 0 ? { rows_wrong: wrong, requests_wrong: 1 } : {}),
  });
  expect(result.auditLog).toEqual(said ? [expect.stringMatching(said)] : []);
}

/** The body of the audit for a client's request, apart from its salt. */
function auditOf(path: string, body: Json): Json {
  // Only routing is compared, and SGLang's positions are long.
  const { stream: _, stream_options: __, return_indexer_topk: ___, ...asked } = body;
  const { sampling_params: params = {}, ...rest } = asked;
  if (path === GENERATE) return { ...rest, sampling_params: oneToken(params) };
  if (path === NATIVE) return { ...rest, stream: false, sampling_params: { ...params, max_new_tokens: 1 } };
  return { ...oneToken(asked), stream: false };
}

function oneToken({ prompt_logprobs: _, ...params }: Json): Json {
  const capped = Object.entries(params).map(([key, value]): [string, unknown] => [
    key,
    ['max_completion_tokens', 'n', 'min_tokens'].includes(key) ? 1 : value,
  ]);
  return { ...Object.fromEntries(capped), max_tokens: 1 };
}

/** Checks what the engine is asked. */
function expectAsked(request: EngineRequest, path: string, body: Json, more: Json = {}): void {
  const { cache_salt, extra_key, ...asked } = jsonOf(request);
  const [salt, other] = path === NATIVE ? [extra_key, cache_salt] : [cache_salt, extra_key];
  expect(salt).toMatch(UUID);
  expect(other).toBeUndefined();
  const { cache_salt: _, ...expected } = auditOf(path, body);
  expect(asked).toEqual({ ...expected, ...more });
  expect(request).toMatchObject({ method: 'POST', path });
  expect(header(request.headers, 'content-type')).toBe('application/json');
  expect(header(request.headers, 'x-request-id')).toBe(`audit-${REQUEST_ID}`);
}

// ---- simulated engines

interface Spec {
  path: string;
  body: Json;
  config?: Json;
  engine?: Partial<EngineOptions>;
  /** What is wrong with prefill's rows. */
  faults?: Faults;
  /** Options of prefill and of the engine that is asked. */
  prefill?: Partial<EngineOptions>;
  audit?: Partial<EngineOptions>;
  hybrid?: boolean;
  start?: number;
  /** Prefill itself is asked. */
  itself?: boolean;
}

function arraysOf(body: Buffer, type = 'application/json'): Captured[] {
  return readReply(body, type).choices.map(({ array }) => array!);
}

function caseOf(name: string, spec: Spec): Case {
  const { path, body, config = {}, engine = {}, faults, start = 0 } = spec;
  const request = JSON.stringify(body);
  const { connector = 'nixl' } = engine;
  const meets = connector === 'sglang' || connector === 'mooncake';
  return {
    name,
    cutDecidesHead: true,
    ...(meets ? { random: RANDOM } : {}),
    scenario(): Scenario {
      const address = { host: HOST, port: ++lastPort };
      const shared = { ...engine, ...(meets ? { bootstrap: address, patience: 5000 } : {}) };
      const { engines } = usedDeployment(path, request, shared, {
        prefill: { ...(faults ? { faults } : {}), ...(spec.hybrid ? { hybrid: true } : {}), ...spec.prefill },
      });
      return {
        name,
        config: {
          connector,
          ...ALL,
          ...config,
          ...(meets ? { prefill: { bootstrap_host: HOST, bootstrap_port: address.port } } : {}),
        },
        client: post(request, { path }),
        ...engines,
        ...(connector === 'mooncake' ? { bootstrap: engines.prefill } : {}),
        audit: spec.itself
          ? engines.prefill
          : createEngine({ ...shared, ...spec.audit, role: 'oracle', ...(spec.audit ?? {}) }),
      };
    },
    check(result) {
      expect(result, result.body.toString()).toMatchObject({ status: 200, complete: true });
      expect(result.logged).toMatch(/^merged/);
      const type = header(result.headers, 'content-type')!;
      const whole = JSON.stringify({ ...body, stream: false });
      const n = body['n'] ?? body['sampling_params']?.n ?? 1;
      const own = arraysOf(result.body, type).filter((_, i) => i % n === 0);
      const right = arraysOf(Buffer.from(oracleOf(path, whole, engine))).filter((_, i) => i % n === 0);
      const lengths = lengthsOf(path, body, engine);
      const less = spec.hybrid || config['last_prompt_row'] === 'decode' ? 1 : 0;
      const seams = lengths.map((length) => length - less);
      const model = config['model'] ? { layers: MODEL.layers, topK: MODEL.top_k } : null;
      expectFound(result, differenceOf(own, right, seams, start, model));
      expect(result.auditRequests).toHaveLength(1);
      // From token 1 on all rows are asked for, as of prefill.
      const asked = start === 1 ? { [PROMPT_START]: undefined } : {};
      // An entry of LMCache inside vLLM has the tags of a request in its key.
      const tag = { 'lmcache.tag.routed_experts': expect.any(String), 'lmcache.skip_save': true };
      const tagged = connector === 'shared_storage' ? { kv_transfer_params: tag } : {};
      expectAsked(result.auditRequests[0]!, path, body, { ...asked, ...tagged });
    },
  };
}

const PROMPT_START = 'routed_experts_prompt_start';

/** The tokens of each prompt, as the engine that does both counts them. */
function lengthsOf(path: string, body: Json, engine: Partial<EngineOptions>): number[] {
  const text = oracleOf(path, JSON.stringify({ ...body, stream: false }), engine);
  const counts = [...text.matchAll(/"prompt_tokens":(\d+)/g)].map(([, count]) => Number(count));
  return counts.slice(0, Array.isArray(JSON.parse(text)) ? counts.length : 1);
}

const NIXL: Record<string, Spec> = {
  'a completion': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 } },
  'a completion of one token': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 1 } },
  'a completion with other members': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, min_tokens: 3, seed: 7, cache_salt: 'mine', logprobs: 1 },
  },
  'a chat': {
    path: CHAT,
    body: { messages: [{ role: 'user', content: 'Which layers?' }], max_completion_tokens: 6 },
  },
  'a generate': { path: GENERATE, body: { token_ids: IDS, sampling_params: { max_tokens: 6 } } },
  'a stream': { path: GENERATE, body: { token_ids: IDS, stream: true, sampling_params: { max_tokens: 6 } } },
  'three samples': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6, n: 3, temperature: 0.8 } },
  'logprobs of the prompt': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 4, prompt_logprobs: 2 } },
  'rows from token 9 on': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, [PROMPT_START]: 9 },
    start: 9,
  },
  'rows from token 1 on': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, [PROMPT_START]: 1 },
    start: 1,
  },
};

const SGLANG: Record<string, Spec> = {
  'a native request': { path: NATIVE, body: { input_ids: IDS, sampling_params: { max_new_tokens: 6 } } },
  'a native request without sampling_params': { path: NATIVE, body: { text: 'one two three' } },
  'a native stream': {
    path: NATIVE,
    body: { input_ids: IDS, stream: true, sampling_params: { max_new_tokens: 6 } },
  },
  'a native request for two prompts': {
    path: NATIVE,
    body: { input_ids: [IDS, OTHERS], sampling_params: { max_new_tokens: 4 } },
  },
  'native rows from token 9 on': {
    path: NATIVE,
    body: { input_ids: IDS, routed_experts_start_len: 9, sampling_params: { max_new_tokens: 4 } },
    start: 9,
  },
  'a native request for positions, too': {
    path: NATIVE,
    body: { input_ids: IDS, return_indexer_topk: true, sampling_params: { max_new_tokens: 4 } },
    engine: { indexer: { layers: 2, topK: 5, ofPrefill: true } },
  },
  'a completion': { path: COMPLETIONS, body: { prompt: IDS, max_tokens: 6 } },
  'a chat': {
    path: CHAT,
    body: { messages: [{ role: 'user', content: 'Which layers?' }], max_tokens: 6 },
  },
};

const ROUTED = { return_routed_experts: true };
const MODEL = { layers: DEFAULT_MODEL.layers, top_k: DEFAULT_MODEL.topK, experts: DEFAULT_MODEL.experts };

const FOREIGN: Record<string, Faults> = { 'of another request': { foreign: 'prompt' } };
const OTHER_FAULTS: Record<string, Faults> = {
  'that are right': {},
  'of which the last is of another request': { foreign: 'last' },
  'with a layer shifted': { shiftedLayer: 2 },
};

const ofNixl = (format: 'A' | 'B'): Case[] =>
  Object.entries(NIXL).map(([name, spec]) =>
    caseOf(`sound: nixl, ${format}, ${name}`, { ...spec, engine: { connector: 'nixl', format } }),
  );

const sound: Case[] = [
  ...ofNixl('A'),
  ...Object.entries(SGLANG).map(([name, spec]) =>
    caseOf(`sound: sglang, ${name}`, {
      ...spec,
      body: { ...spec.body, ...ROUTED },
      engine: { connector: 'sglang', ...spec.engine },
    }),
  ),
];

// ---- defects of prefill, which nothing in one response shows

const BY_CONNECTOR: Record<string, Spec> = {
  nixl: { ...NIXL['a completion']!, engine: { connector: 'nixl' } },
  'nixl, format B': { ...NIXL['a generate']!, engine: { connector: 'nixl', format: 'B' } },
  'nixl, a stream': { ...NIXL['a stream']!, engine: { connector: 'nixl' } },
  'nixl, three samples': { ...NIXL['three samples']!, engine: { connector: 'nixl' } },
  'nixl, tail': {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    config: { decode_rows: 'tail' },
  },
  'shared_storage, 0.32': {
    ...NIXL['a chat']!,
    engine: { connector: 'shared_storage', version: '0.32' },
    config: { decode_rows: 'tail' },
  },
  mooncake: { ...NIXL['a completion']!, engine: { connector: 'mooncake' } },
  'mooncake, both legs at once': {
    ...NIXL['a chat']!,
    engine: { connector: 'mooncake' },
    config: { handshake: 'concurrent' },
  },
  'nixl, from token 9 on': { ...NIXL['rows from token 9 on']!, engine: { connector: 'nixl' } },
  'nixl, 300 experts': {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl', model: { experts: 300, dtype: '<u2' } },
  },
  'nixl, format C': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, ...ROUTED },
    engine: { connector: 'nixl', format: 'C' },
  },
  'nixl, format C in base64': {
    path: COMPLETIONS,
    body: { prompt: IDS, max_tokens: 6, ...ROUTED },
    engine: { connector: 'nixl', format: 'C', split: { encoding: 'base64' } },
  },
  sglang: {
    path: NATIVE,
    body: { ...SGLANG['a native request']!.body, ...ROUTED },
    engine: { connector: 'sglang' },
    config: { model: MODEL },
  },
  'sglang, two prompts': {
    path: NATIVE,
    body: { ...SGLANG['a native request for two prompts']!.body, ...ROUTED },
    engine: { connector: 'sglang' },
  },
  'sglang, a completion': {
    path: COMPLETIONS,
    body: { ...SGLANG['a completion']!.body, ...ROUTED },
    engine: { connector: 'sglang' },
  },
};

/** Each deployment, with what is wrong with prefill's rows. */
const defects = (faults: Record<string, Faults>): Case[] =>
  Object.entries(BY_CONNECTOR).flatMap(([where, spec]) =>
    Object.entries(faults).map(([what, fault]) =>
      caseOf(`${where}: rows ${what}`, { ...spec, ...(fault ? { faults: fault } : {}) }),
    ),
  );

const others: Case[] = [
  caseOf('a hybrid model: the rows that prefill gave are compared, without that of the last token', {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    hybrid: true,
  }),
  caseOf('a hybrid model: wrong rows are found', {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    hybrid: true,
    faults: { foreign: 'prompt' },
  }),
  caseOf('last_prompt_row of decode: that row is not compared', {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    config: { last_prompt_row: 'decode' },
    faults: { foreign: 'last' },
  }),
  caseOf('prefill itself is asked', { ...NIXL['a chat']!, engine: { connector: 'nixl' }, itself: true }),
  caseOf('the engine that is asked has a store: it is kept from what the exchange has stored', {
    ...NIXL['a completion']!,
    engine: { connector: 'shared_storage', store: 'lmcache' },
    itself: true,
  }),
  caseOf('arrays of another dtype are compared by their ids', {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    audit: { model: { dtype: '<i4' } },
    faults: { foreign: 'last' },
  }),
  caseOf('headers of other lengths shift the rows in base64', {
    ...NIXL['a completion']!,
    engine: { connector: 'nixl' },
    audit: { npy: { padding: 1 } },
    prefill: { npy: { padding: 2 } },
    faults: { shiftedLayer: 0 },
  }),
];

// ---- exchanges by hand

interface ByHand extends Partial<Scenario> {
  /** What the access log says of the exchange. */
  logged?: RegExp;
  counters: Record<string, number>;
  said: RegExp[];
  asked: number;
}

function byHand(name: string, make: () => ByHand, more: Partial<Case> = {}): Case {
  return {
    name,
    scenario: () => {
      const { logged: _, counters: __, said: ___, asked: ____, ...scenario } = make();
      return {
        name,
        client: post(REQUEST),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
        audit: answering(GOOD_PREFILL),
        ...scenario,
        config: { ...ALL, ...scenario.config },
      };
    },
    check(result) {
      const { logged = /^merged/, counters, said, asked } = make();
      expect(result.logged).toMatch(logged);
      expect(auditCounters(result)).toEqual(counters);
      expect(result.auditRequests).toHaveLength(asked);
      expect(result.auditLog).toEqual(said.map((line) => expect.stringMatching(line)));
    },
    ...more,
  };
}

const FAILED = { requests: 1, failed: 1 };
const failing = (name: string, audit: Engine, why: string, config: Json = {}): Case =>
  byHand(name, () => ({
    audit,
    config,
    counters: FAILED,
    said: [new RegExp(`^audit failed: ${why}. Request ${REQUEST_ID}$`)],
    asked: 1,
  }));

const five = (array: string, tokens = PROMPT.rows) => answering(prefillBody(array, tokens));
const tooFew = encoded({ ...PROMPT, rows: 4 });
const reason = (token: string) => `its rows can not be compared, reason ${token}`;
const NO_ANSWER = 'no whole answer: a timeout, a reset, or more bytes than Envoy takes';

const failures: Case[] = [
  failing('a status of the engine is a failure', answering('{}', { status: 400 }), 'status 400'),
  failing('a reset is a failure', answering('', { fault: 'reset' }), 'status 503'),
  failing(
    'an answer that breaks off is a failure',
    answering(GOOD_PREFILL, { fault: 'reset_body', pieces: [Buffer.from(GOOD_PREFILL.slice(0, 90))] }),
    NO_ANSWER,
  ),
  failing('a slow engine is a failure', answering('', { fault: 'stall' }), 'status 504', {
    audit: { fraction: 1, timeout_ms: 50 },
  }),
  failing('garbage is a failure', answering('routed experts'), 'the answer is not JSON'),
  failing('half of an answer is a failure', answering(GOOD_PREFILL.slice(0, 100)), 'the answer is not JSON'),
  failing(
    'a compressed answer is a failure',
    answering(GOOD_PREFILL, { headers: [['content-encoding', 'gzip']] }),
    'the answer has a content-encoding',
  ),
  failing('an answer without rows is a failure', five('null'), reason('missing')),
  failing('an answer with fewer rows is a failure', five(quoted(tooFew), 4), reason('rows')),
  failing('rows of another prompt are a failure', five(quoted(tooFew), 5), reason('rows')),
  failing(
    'rows of another shape are a failure',
    five(quoted(encoded({ ...PROMPT, layers: 3, topK: 2 }))),
    reason('top_k'),
  ),
  failing(
    'rows of zeros are a failure: the engine has not forwarded the prompt',
    five(quoted(encoded(PROMPT, Buffer.alloc(30)))),
    reason('experts'),
  ),
  failing(
    'tokens out of a cache are a failure',
    answering(
      GOOD_PREFILL.replace(
        '"completion_tokens":1',
        '"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":4}',
      ),
    ),
    'the engine took tokens out of a cache',
  ),
  byHand('no engine listens', () => ({
    audit: 'down',
    counters: FAILED,
    said: [/^audit failed: status 503. Request client-1$/],
    asked: 0,
  })),
  byHand('the cluster does not exist', () => ({
    config: { audit: { fraction: 1, cluster: 'no_such_cluster' } },
    counters: FAILED,
    said: [/^audit failed: no healthy host. Request client-1$/],
    asked: 0,
  })),
];

const refusing: Engine = answering('{"error":{}}', { status: 400 });
const none = { counters: {}, said: [], asked: 0 };

const notAudited: Case[] = [
  byHand('fraction 0 audits nothing', () => ({ config: { audit: { fraction: 0 } }, ...none })),
  byHand('what decode serves alone is not audited', () => ({
    prefill: answering('{}', { status: 500 }),
    config: { prefill: { retries: 0 } },
    logged: /^local$/,
    ...none,
  })),
  byHand('what prefill refuses is not audited', () => ({ prefill: refusing, logged: /^absent$/, ...none })),
  byHand('what cannot be merged is not audited', () => ({
    decode: answering(GOOD_DECODE.replace(encoded(FULL), encoded({ ...FULL, layers: 3 }))),
    logged: /^rejected; reason=layers$/,
    ...none,
  })),
  byHand('an answer without routing is not audited', () => ({
    prefill: answering(prefillBody('null')),
    decode: answering(GOOD_DECODE.replace(quoted(encoded(FULL)), 'null')),
    logged: /^absent$/,
    ...none,
  })),
  byHand('an exchange whose client leaves is not audited', () => {
    let reach = () => {};
    const leave = new Promise<void>((resolve) => (reach = resolve));
    return {
      leave,
      decode: () => {
        reach();
        return reply('', { fault: 'stall' });
      },
      logged: /^aborted$/,
      ...none,
    };
  }),
  byHand('a path that P/D does not serve is not audited', () => ({
    client: post(REQUEST, { path: '/v1/embeddings' }),
    decode: answering('{}'),
    logged: /^local$/,
    ...none,
  })),
  byHand('rows that are parked are not audited: the VM is full', () => ({
    config: { max_capture_bytes: 0 },
    counters: { skipped: 1 },
    said: [],
    asked: 0,
  })),
  byHand('a request that exceeds max_bytes is not audited', () => ({
    client: post(REQUEST.replace('three', 'x'.repeat(1 << 20))),
    config: { audit: { fraction: 1, max_bytes: 1 << 20 } },
    counters: { skipped: 1 },
    said: [],
    asked: 0,
  })),
  byHand(
    'rows that exceed max_bytes are not audited',
    () => {
      const [prompt, full] = [
        { rows: 100_000, from: 100 },
        { rows: 100_002, from: 3 },
      ];
      const tokens = { promptTokens: prompt.rows, completionTokens: 3 };
      return {
        prefill: answering(prefillBody(quoted(encoded(prompt)), prompt.rows)),
        decode: answering(
          GOOD_DECODE.replace(encoded(FULL), encoded(full)).replace(
            /"prompt_tokens":\d+/,
            `"prompt_tokens":${tokens.promptTokens}`,
          ),
        ),
        config: { audit: { fraction: 1, max_bytes: 1 << 20 } },
        counters: { skipped: 1 },
        said: [],
        asked: 0,
      };
    },
    { cutDecidesHead: true },
  ),
];

// ---- rows by hand: what is said of them

const WIDE = { layers: 8, topK: 4 };
const PROMPT_ROWS = rowsOf(0, 6, 0, WIDE);

interface Compared {
  write: Write;
  /** How the engine that is asked writes its rows. Default: as prefill does. */
  writes?: Write;
  /** The rows of prefill, which are also the first six of decode's. */
  ours?: Rows;
  /** The rows that the audit finds. */
  theirs: Rows;
  counters: Json;
  said: RegExp[];
}

/** An exchange whose rows are these, and an audit that finds others. */
function rowsCase(
  name: string,
  { write, writes = write, ours = PROMPT_ROWS, theirs, ...found }: Compared,
): Case {
  const split = write === inLists;
  const prefilled = (rows: Rows, written: Write) => {
    const text = prefillBody(split ? null : written(rows), rows.length);
    return split ? text.replace('"choices"', `"prompt_routed_experts":${written(rows)},"choices"`) : text;
  };
  const generated = ours.slice(0, 2);
  const decoded = GOOD_DECODE.replace('"prompt_tokens":5', '"prompt_tokens":6').replace(
    quoted(encoded(FULL)),
    write(split ? generated : [...ours, ...generated]),
  );
  return byHand(name, () => ({
    prefill: answering(prefilled(ours, write)),
    decode: answering(
      split ? decoded.replace('"choices"', '"prompt_routed_experts":null,"choices"') : decoded,
    ),
    audit: answering(prefilled(theirs, writes)),
    counters: { requests: 1, rows: 6, ...found.counters },
    said: found.said,
    asked: 1,
  }));
}

/** Another expert in the place of one in these layers of row 4. */
const near = (...layers: number[]) =>
  changed(PROMPT_ROWS, (i, layer, ids) =>
    i === 4 && layers.includes(layer) ? [...ids.slice(0, 3), 40] : ids,
  );
const line = (first: string, wrong: number, differing = 1) =>
  new RegExp(
    `^audit: ${differing} of 6 rows differ from those of cluster \\w+, and ${wrong} of these by more than ` +
      `numerics\\. The first ${wrong > 0 ? 'wrong one' : 'one'} is that of token ${first}\\. Request ${REQUEST_ID}$`,
  );
const WRONG = { rows_differing: 1, rows_wrong: 1, requests_wrong: 1 };

const DIFFERS = { rows_differing: 1 };
const written = (form: 'npy' | 'object' | 'lists'): Case[] => {
  const write = { npy: inNpy(), object: inObject(), lists: inLists }[form];
  const two = changed(PROMPT_ROWS, (i, layer, ids) =>
    i === 4 && layer === 5 ? [41, 40, ...ids.slice(2)] : ids,
  );
  const reversed = changed(PROMPT_ROWS, (i, layer, ids) =>
    i === 4 && layer === 7 ? [...ids].reverse() : ids,
  );
  const later = changed(near(0), (i, layer, ids) => (i === 5 && layer === 3 ? [40, 41, 42, 43] : ids));
  const found = (what: string, theirs: Rows, counters: Json, ...said: RegExp[]): Case =>
    rowsCase(`${form}: ${what}`, { write, theirs, counters, said });
  return [
    found('one expert of a layer differs as numerics differ', near(6), DIFFERS, line('4, in layer 6', 0)),
    found('experts in another order differ as numerics differ', reversed, DIFFERS, line('4, in layer 7', 0)),
    found('near ties in a quarter of the layers are numerics', near(2, 5), DIFFERS, line('4, in layer 2', 0)),
    found('near ties in more layers are wrong', near(2, 5, 6), WRONG, line('4, in layer 2', 1)),
    found('two other experts in a layer are wrong', two, WRONG, line('4, in layer 5', 1)),
    found(
      'the first wrong row is named before rows that only differ',
      later,
      { ...WRONG, rows_differing: 2 },
      line('5, in layer 3', 1, 2),
    ),
  ];
};

/**
 * Every row of arrays whose rows begin anywhere in a character of base64. The first bits of the row
 * differ, or the last one alone, which may stand in a character with bits of the next row.
 */
const places: Case[] = [
  { layers: 1, topK: 5 },
  { layers: 1, topK: 7 },
  { layers: 2, topK: 4 },
].flatMap((shape) =>
  Array.from({ length: 12 }, (_, i) => {
    const [at, end] = [i >> 1, i & 1];
    const ours = changed(rowsOf(0, 6, 0, shape), (_, __, ids) => ids.map((id) => 2 * id));
    const theirs = changed(ours, (row, layer, ids) => {
      if (row !== at || layer !== (end ? shape.layers - 1 : 0)) return ids;
      return end ? [...ids.slice(0, -1), ids.at(-1)! ^ 1] : [ids[0]! ^ 0x81, ...ids.slice(1)];
    });
    return rowsCase(`${shape.layers} x ${shape.topK}: the ${end ? 'end' : 'begin'} of row ${at} differs`, {
      write: inNpy(),
      ours,
      theirs,
      counters: DIFFERS,
      said: [line(`${at}, in layer ${end ? shape.layers - 1 : 0}`, 0)],
    });
  }),
);

/** Ids that differ in their high byte only. */
const high = changed(PROMPT_ROWS, (i, layer, ids) =>
  i === 3 && layer === 1 ? [ids[0]! + 256, ...ids.slice(1)] : ids,
);
const dtypes: Case[] = (['<u2', '<i2', '<i4'] as const).flatMap((dtype) => [
  rowsCase(`${dtype}: an id differs in its high byte`, {
    write: inNpy(dtype),
    theirs: high,
    counters: DIFFERS,
    said: [line('3, in layer 1', 0)],
  }),
  rowsCase(`|u1 beside ${dtype}: an id differs in its high byte`, {
    write: inNpy(),
    writes: inNpy(dtype),
    theirs: high,
    counters: DIFFERS,
    said: [line('3, in layer 1', 0)],
  }),
  rowsCase(`|u1 beside ${dtype}: the same ids`, {
    write: inNpy(),
    writes: inNpy(dtype),
    theirs: PROMPT_ROWS,
    counters: {},
    said: [],
  }),
]);

// ---- heads

const heads: Case[] = [
  {
    ...byHand('the request has the headers of the client, a fresh id, and no rank', () => ({
      client: post(REQUEST, {
        headers: [
          ...post(REQUEST).headers,
          ['authorization', 'Bearer key'],
          ['x-data-parallel-rank', '3'],
          ['x-envoy-max-retries', '5'],
          ['accept-encoding', 'gzip'],
        ],
      }),
      counters: { requests: 1, rows: 5 },
      said: [],
      asked: 1,
    })),
    check(result) {
      const { headers } = result.auditRequests[0]!;
      expect(header(headers, 'authorization')).toBe('Bearer key');
      expect(header(headers, 'x-request-id')).toBe(`audit-${REQUEST_ID}`);
      for (const name of ['x-data-parallel-rank', 'x-envoy-max-retries', 'accept-encoding'])
        expect(header(headers, name)).toBeUndefined();
      expect(result.body.toString()).toBe(GOOD_MERGED);
    },
  },
  {
    ...byHand('the id that the filter makes is the one in the log', () => ({
      client: post(REQUEST, { headers: post(REQUEST).headers.slice(0, 2) }),
      audit: answering('{}', { status: 400 }),
      counters: FAILED,
      said: [],
      asked: 1,
    })),
    ownId: true,
    check(result) {
      const id = header(result.decodeRequests[0]!.headers, 'x-request-id')!;
      expect(id).toMatch(/^[0-9a-f-]{36}$/);
      expect(header(result.auditRequests[0]!.headers, 'x-request-id')).toBe(`audit-${id}`);
      expect(result.auditLog).toEqual([`audit failed: status 400. Request ${id}`]);
    },
  },
  {
    ...byHand('prefill itself is asked at the endpoint that the request names', () => ({
      client: post(REQUEST, { headers: [...post(REQUEST).headers, ['x-to', '{prefill:1}']] }),
      prefill: [answering('{}', { status: 500 }), answering(GOOD_PREFILL)],
      config: {
        prefill: { endpoint_header: 'x-to', allowed_endpoints: ['127.0.0.1:1-65535'] },
        audit: { fraction: 1, cluster: 'original_dst_http1' },
      },
      counters: { requests: 1, rows: 5 },
      said: [],
      asked: 0,
    })),
    check(result) {
      expect(auditCounters(result)).toEqual({ requests: 1, rows: 5 });
      const ids = result.prefillRequests.map(({ headers }) => header(headers, 'x-request-id'));
      expect(ids).toEqual([REQUEST_ID, `audit-${REQUEST_ID}`]);
      expect(header(result.prefillRequests[1]!.headers, 'x-to')).toBeUndefined();
    },
  },
  {
    ...byHand('a cache_hit_threshold of the client asks for nothing out of a cache', () => ({
      client: post(REQUEST.replace('}', ',"cache_hit_threshold":0.5}')),
      counters: { requests: 1, rows: 5 },
      said: [],
      asked: 1,
    })),
    check(result) {
      expect(jsonOf(result.auditRequests[0]!)['cache_hit_threshold']).toBe(0);
      expect(auditCounters(result)).toEqual({ requests: 1, rows: 5 });
    },
  },
  byHand('heads that pass are audited, too', () => ({
    config: { headers: 'pass' },
    counters: { requests: 1, rows: 5 },
    said: [],
    asked: 1,
  })),
];

export const audit: Suite = {
  name: 'audits',
  cases: [...sound, ...defects(FOREIGN), ...others, ...failures, ...notAudited, ...written('npy'), ...heads],
};

/** The same questions in every format and deployment. */
export const auditMatrix: Suite = {
  name: 'audits of every format',
  cases: [
    ...ofNixl('B'),
    ...defects(OTHER_FAULTS),
    ...written('object'),
    ...written('lists'),
    ...places,
    ...dtypes,
  ],
};
