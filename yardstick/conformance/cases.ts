// What a P/D router is asked, with which engines behind it, and what it must do.

import type { EngineOptions } from '../../test/engine/engine.ts';
import type { Asked } from '../requests.ts';

export type ConnectorName = 'nixl' | 'shared_storage' | 'mooncake' | 'sglang';

export interface Case {
  level: 1 | 2 | 3;
  name: string;
  connector: ConnectorName;
  /** What the router must do with each request: rows that are right, or a refusal that is seen. */
  must: 'right' | 'refuse or right';
  /** Why it is so, and which engine does it. */
  why: string;
  engine?: Partial<EngineOptions>;
  prefill?: Partial<EngineOptions>;
  decode?: Partial<EngineOptions>;
  asked: Asked[];
  /** All requests are sent at once. Default: one after the other. */
  atOnce?: boolean;
  /** Members that the client adds to its requests. */
  more?: Record<string, unknown>;
}

const ids = (tokens: number, from = 0): number[] =>
  Array.from({ length: tokens }, (_, i) => 300 + ((from + i * 37) % 997));
const completion = (tokens: number, more: Partial<Asked> = {}): Asked => ({
  endpoint: 'completions',
  prompt: ids(tokens),
  maxTokens: 8,
  ...more,
});
const chat = (content: string): Asked => ({
  endpoint: 'chat',
  prompt: [{ role: 'user', content }],
  maxTokens: 8,
});
const generate = (tokens: number, more: Partial<Asked> = {}): Asked => ({
  ...completion(tokens, more),
  endpoint: 'generate',
});
const native = (tokens: number, more: Partial<Asked> = {}): Asked => ({
  ...completion(tokens, more),
  endpoint: 'native',
});

const PULLED =
  'Decode pulls the KV of the prompt and never forwards it, so its own rows of the prompt are zeros or those of an earlier request (vLLM 0.30, captured).';
const SLOTS =
  'Rows are kept by KV slot (vLLM, routed_experts_capturer.py); a pulled block enters the prefix cache with rows that are not its own.';
const ZEROS =
  'Engines have returned zeros with right text (SGLang under P/D, fused kernels of vLLM); a router of a model never gives such a row.';
const COUNTS = 'There is a row for each token but the last; an array of another length cannot be joined.';

type Short = Omit<Case, 'connector'> & { connector?: ConnectorName };
const nixl = (of: Short): Case => ({ connector: 'nixl', ...of });

const ROWS: Short[] = [
  { level: 1, name: 'one completion', must: 'right', why: PULLED, asked: [completion(50)] },
  { level: 1, name: 'a prompt of one token', must: 'right', why: PULLED, asked: [completion(1)] },
  { level: 1, name: 'a prompt of 3,000 tokens', must: 'right', why: PULLED, asked: [completion(3000)] },
  { level: 1, name: 'chat', must: 'right', why: PULLED, asked: [chat('Which expert is it?')] },
  {
    level: 1,
    name: 'one token to generate',
    must: 'right',
    why: PULLED,
    asked: [completion(60, { maxTokens: 1 })],
  },
  {
    level: 1,
    name: 'the same prompt three times',
    must: 'right',
    why: SLOTS,
    asked: [completion(200), completion(200), completion(200)],
  },
  {
    level: 1,
    name: 'prompts that begin alike',
    must: 'right',
    why: SLOTS,
    asked: [100, 150, 333].map((n) => completion(n)),
  },
  {
    ...{ level: 1, name: 'blocks that are used again', must: 'right', why: SLOTS, engine: { kvBlocks: 24 } },
    asked: Array.from({ length: 12 }, (_, i) => completion(150, { prompt: ids(150, i * 31) })),
  },
  {
    ...{ level: 1, name: '48 requests, 16 tokens to 800, at once', must: 'right', why: PULLED, atOnce: true },
    asked: Array.from({ length: 48 }, (_, i) => completion(16, { prompt: ids(16 + ((i * 211) % 784), i) })),
  },
];

const KINDS: Short[] = [
  { level: 2, name: 'generate, token ids', must: 'right', why: PULLED, asked: [generate(80)] },
  {
    ...{ level: 2, name: 'a stream of generate', must: 'right', asked: [generate(80, { stream: true })] },
    why: 'vLLM puts the array on the last event of each choice (/inference/v1/generate).',
  },
  {
    ...{ level: 2, name: 'three choices', must: 'right', asked: [completion(90, { n: 3, seed: 5 })] },
    why: "Prefill's one array serves every choice (vLLM 0.30, captured with n = 2 and n = 3).",
  },
  {
    ...{ level: 2, name: 'turns, each with rows from its last known token on', must: 'right' },
    why: 'Clients of trainers send routed_experts_prompt_start with each turn after the first (prime-rl).',
    asked: [
      completion(120),
      completion(160, { start: 127 }),
      generate(200, { start: 167 }),
      completion(240, { start: 207, n: 2, seed: 5 }),
    ],
  },
  {
    ...{
      level: 2,
      name: 'prompt_logprobs',
      must: 'refuse or right',
      more: { prompt_logprobs: 1 },
      asked: [completion(60)],
    },
    why: 'A decode engine of vLLM 0.30 dies if it is asked for them with KV that it has pulled.',
  },
  {
    ...{ level: 2, name: 'a client with kv_transfer_params of its own', must: 'refuse or right' },
    why: 'They would name blocks of another request; only the router may set them.',
    more: {
      kv_transfer_params: { do_remote_prefill: true, do_remote_decode: false, remote_request_id: 'x' },
    },
    asked: [completion(60)],
  },
  {
    ...{ level: 2, name: 'dense layers', must: 'right', asked: [completion(100)] },
    engine: { model: { layers: 6, topK: 4, experts: 32, dense: (layer) => layer < 2 } },
    why: 'A dense layer is zero in every row (num_hidden_layers counts it), and that is right.',
  },
  {
    ...{ level: 2, name: '300 experts', must: 'right', asked: [completion(100)] },
    engine: { model: { layers: 4, topK: 8, experts: 300, dtype: '<u2' } },
    why: 'Above 256 experts vLLM writes <u2.',
  },
  {
    ...{
      level: 2,
      name: 'a hybrid model',
      must: 'refuse or right',
      engine: { hybrid: true },
      asked: [completion(100)],
    },
    why: "Prefill drops the prompt's last token (nixl/base_scheduler.py), and has one row less than usage counts.",
  },
  {
    ...{
      level: 2,
      name: 'legs whose headers are padded differently',
      must: 'right',
      asked: [completion(100)],
    },
    prefill: { npy: { padding: 1 } },
    why: 'The length of a .npy header is not fixed, so rows begin at different phases of base64.',
  },
  {
    ...{
      level: 2,
      name: 'objects with shape and start',
      must: 'right',
      engine: { format: 'B' },
      asked: [completion(100)],
    },
    why: 'prime-rl and Dynamo write routing so.',
  },
  {
    ...{
      level: 2,
      name: 'a text that ends with its first token',
      must: 'refuse or right',
      asked: [completion(100)],
    },
    engine: { eosAfter: 1 },
    why: 'vLLM before 0.30 hands out no KV then, and decode serves the request alone.',
  },
];

const BROKEN: Short[] = [
  {
    level: 3,
    name: 'zeros of prefill',
    must: 'refuse or right',
    why: ZEROS,
    prefill: { faults: { zeros: 'prompt' } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'one row of zeros of prefill',
    must: 'refuse or right',
    why: ZEROS,
    prefill: { faults: { zeros: [40] } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'an expert twice in a row of prefill',
    must: 'refuse or right',
    why: ZEROS,
    prefill: { faults: { repeats: [40] } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'a row of which prefill knows nothing (-1)',
    must: 'refuse or right',
    why: 'An engine marks such a row with -1 in every layer.',
    engine: { model: { dtype: '<i2' } },
    prefill: { unknownRows: [3] },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'two rows of prefill too few',
    must: 'refuse or right',
    why: COUNTS,
    prefill: { faults: { extraRows: -2 } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'a row of prefill too many',
    must: 'refuse or right',
    why: COUNTS,
    prefill: { faults: { extraRows: 1 } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'a row of decode too few',
    must: 'refuse or right',
    why: COUNTS,
    decode: { faults: { extraRows: -1 } },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'prefill captures nothing',
    must: 'refuse or right',
    why: 'It was started without --enable-return-routed-experts.',
    prefill: { capture: false },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'half a reply of prefill',
    must: 'refuse or right',
    why: 'A connection breaks off in a body.',
    prefill: { fail: () => ({ fault: 'reset_body' }) },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'prefill answers 500',
    must: 'refuse or right',
    why: 'Decode alone is right only if nothing of the prompt is in its cache by P/D.',
    prefill: { fail: (n) => (n > 1 ? { status: 500 } : undefined) },
    asked: [completion(200), completion(200)],
  },
  {
    level: 3,
    name: 'prefill is gone',
    must: 'refuse or right',
    why: 'Decode alone is right only if nothing of the prompt is in its cache by P/D.',
    prefill: { fail: (n) => (n > 1 ? { fault: 'reset' } : undefined) },
    asked: [completion(200), completion(200)],
  },
  {
    level: 3,
    name: 'prefill answers 200 with something else',
    must: 'refuse or right',
    why: 'A proxy between answers in its place.',
    prefill: { fail: () => ({ body: '{"choices":[' }) },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'decode answers 503',
    must: 'refuse or right',
    why: 'The client must learn of it.',
    decode: { fail: () => ({ status: 503 }) },
    asked: [completion(80)],
  },
  {
    level: 3,
    name: 'half a reply of decode',
    must: 'refuse or right',
    why: 'A connection breaks off in a body.',
    decode: { fail: () => ({ fault: 'reset_body' }) },
    asked: [completion(80)],
  },
];

const TAIL: Case = {
  ...{
    level: 2,
    name: 'vLLM 0.32: decode returns the generated rows only',
    connector: 'shared_storage',
    must: 'right',
  },
  engine: { version: '0.32', connector: 'shared_storage', store: 'lmcache_mp' },
  why: 'Its decode dies on rows that it has not computed, so the router must ask it with routed_experts_prompt_start.',
  asked: [completion(100), generate(64), completion(100, { n: 2, seed: 5 })],
};

const MEETING: Case[] = [
  {
    ...{
      level: 2,
      name: 'Mooncake',
      connector: 'mooncake',
      must: 'right',
      engine: { connector: 'mooncake' },
    },
    why: 'Legs share a transfer_id. Prefill keeps its KV for decode, so they may go in sequence or at once (vLLM 0.30, run).',
    asked: [completion(100), chat('Both legs.'), completion(100)],
  },
  ...['max_tokens', 'min_tokens'].map((member): Case => ({
    ...{
      level: 3,
      name: `Mooncake: ${member} that decode refuses and a capped prefill takes`,
      connector: 'mooncake',
      must: 'refuse or right',
      engine: { connector: 'mooncake' },
    },
    why: 'A decode engine of vLLM 0.30 dies if it refuses a request whose transfer prefill has taken (vLLM issue 43226).',
    more: { [member]: 1_000_000 },
    asked: [completion(100), completion(50)],
  })),
  {
    ...{
      level: 2,
      name: 'SGLang: both legs at once',
      connector: 'sglang',
      must: 'right',
      engine: { connector: 'sglang', format: 'D' },
    },
    why: 'The engines meet in a bootstrap_room, and rows are raw int32.',
    asked: [native(100), native(100), completion(50), chat('Both at once.'), native(70, { stream: true })],
  },
  {
    ...{
      level: 2,
      name: 'SGLang: one token to generate',
      connector: 'sglang',
      must: 'right',
      engine: { connector: 'sglang', format: 'D' },
    },
    why: "Decode returns no array then, and prefill's rows are the whole answer (SGLang 0.5.23, captured).",
    asked: [native(90, { maxTokens: 1 }), completion(90, { maxTokens: 1 })],
  },
  {
    ...{
      level: 2,
      name: 'SGLang: two choices',
      connector: 'sglang',
      must: 'refuse or right',
      engine: { connector: 'sglang', format: 'D' },
    },
    why: 'SGLang 0.5.23 under P/D never answers such a request; a client must not be left waiting.',
    asked: [native(90, { n: 2 }), completion(90, { n: 2, seed: 5 })],
  },
];

export const CASES: Case[] = [...[...ROWS, ...KINDS, ...BROKEN].map(nixl), TAIL, ...MEETING];
