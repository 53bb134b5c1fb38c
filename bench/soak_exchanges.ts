// What a soak sends: exchanges of many sizes and forms, the response that an independent merge
// expects of each, and faults.

import { npyHeader } from '../yardstick/npy.ts';
import { NUMPY_NAMES } from '../test/fuzz/dialects.ts';
import { readRequest } from '../test/fuzz/legs.ts';
import { readPrefill } from '../test/fuzz/prefill.ts';
import { verdictOf } from '../test/fuzz/reference.ts';
import { streamVerdict } from '../test/fuzz/streams.ts';
import type { EngineReply } from '../test/scenario.ts';
import { Random } from '../test/unit/random.ts';

export interface Soaked {
  name: string;
  path: string;
  /** The connector that serves the exchange. */
  connector: (typeof CONNECTORS)[number];
  request: Buffer;
  prefill: Buffer;
  decode: Buffer;
  stream: boolean;
  /** The response that the client must get. */
  merged: Buffer;
}

/** The connectors, each of which has a listener of its own. */
export const CONNECTORS = ['nixl', 'sglang'] as const;

interface Model {
  dtype: '|u1' | '<u2';
  layers: number;
  topK: number;
}

const MODELS: Model[] = [
  { dtype: '|u1', layers: 48, topK: 8 },
  { dtype: '<u2', layers: 27, topK: 6 },
];
const SIZES = [7, 100, 1000, 4000, 16_000];
/**
 * The longest prompts, in tokens, for formats that take several times the bytes of a row: int32 and
 * numbers as text.
 */
const LARGEST = { raw: 4000, lists: 1000 };

type Messages = Omit<Soaked, 'name' | 'merged'>;
/** Makes an exchange of one kind; null when the kind does not have this size. */
type Kind = (random: Random, model: Model, prompt: number) => Messages | null;

const tokensOf = (prompt: number) => Math.max(2, prompt >> 3);
const array = (length: number, text: string) => `[${Array(length).fill(text).join(',')}]`;

/** Rows as a router gives them: each layer names experts with consecutive ids. */
function rowsOf(random: Random, { layers, topK }: Model, rows: number, itemBytes: number): Buffer {
  const ids = rows * layers * topK;
  const data = Buffer.alloc(ids * itemBytes);
  const first = random.below(120);
  for (let i = 0; i < ids; i++) data[i * itemBytes] = ((first + Math.floor(i / topK)) % 120) + (i % topK);
  return data;
}

const itemOf = ({ dtype }: Model) => Number(dtype.slice(2));

interface Replies {
  /** The members of a choice that hold `rows` rows from token `start` on. */
  choice(rows: number, start: number): string;
  /** Members beside `choices`. */
  root?(leg: 'prefill' | 'decode'): string;
  /** Decode sends only its own rows. */
  tail: boolean;
  stream?: boolean;
}

/** Replies of vLLM. */
function choices(random: Random, prompt: number, { choice, root, tail, stream = false }: Replies): Messages {
  const n = random.pick([1, 1, 1, 2]);
  const tokens = tokensOf(prompt);
  const usage = (completion: number) =>
    `"usage":{"prompt_tokens":${prompt},"completion_tokens":${completion}}${root ? ',' : ''}`;
  const of = (index: number) =>
    `{"index":${index},"text":"${'word '.repeat(tokens)}","token_ids":${array(tokens, '7')},` +
    `${choice((tail ? 0 : prompt) + tokens - 1, tail ? prompt : 0)}}`;
  const all = Array.from({ length: n }, (_, i) => of(i));
  const params = '"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[1]]}';
  const sampling = `"max_tokens":${tokens},"n":${n}`;
  const ids = array(prompt, '11');
  return {
    path: stream ? '/inference/v1/generate' : '/v1/completions',
    connector: 'nixl',
    request: Buffer.from(
      stream
        ? `{"token_ids":${ids},"sampling_params":{${sampling}},"stream":true}`
        : `{"prompt":${ids},${sampling}}`,
    ),
    prefill: Buffer.from(
      `{"choices":[{"index":0,${choice(prompt, 0)}}],${usage(1)}${root?.('prefill') ?? ''},${params}}`,
    ),
    decode: Buffer.from(
      stream
        ? [...all.map((each) => `{"choices":[${each}]}`), '[DONE]']
            .map((data) => `data: ${data}\n\n`)
            .join('')
        : `{"choices":[${all.join(',')}],${usage(tokens * n)}${root?.('decode') ?? ''},"kv_transfer_params":null}`,
    ),
    stream,
  };
}

const npy =
  (tail: boolean, stream = false): Kind =>
  (random, model, prompt) => {
    const { dtype, layers, topK } = model;
    const choice = (rows: number) => {
      const file = Buffer.concat([
        npyHeader(dtype, [rows, layers, topK]),
        rowsOf(random, model, rows, itemOf(model)),
      ]);
      return `"routed_experts":"${file.toString('base64')}"`;
    };
    return choices(random, prompt, { choice, tail, stream });
  };

function rawBytes(random: Random, model: Model, rows: number, more: object): string {
  const { dtype, layers, topK } = model;
  const data = rowsOf(random, model, rows, itemOf(model)).toString('base64');
  return JSON.stringify({ data, shape: [rows, layers, topK], dtype: NUMPY_NAMES[dtype], ...more });
}

const object: Kind = (random, model, prompt) =>
  choices(random, prompt, {
    choice: (rows, start) => `"routed_experts":${rawBytes(random, model, rows, { start })}`,
    tail: true,
  });

/** The prompt rows stand apart from the generated rows. */
const split =
  (nested: boolean): Kind =>
  (random, model, prompt) => {
    if (nested && prompt > LARGEST.lists) return null;
    const { layers, topK } = model;
    const rowsIn = (rows: number) => {
      const experts = (first: number) => `[${Array.from({ length: topK }, (_, k) => first + k).join(',')}]`;
      return nested
        ? `[${Array.from({ length: rows }, () => array(layers, experts(random.below(120)))).join(',')}]`
        : rawBytes(random, model, rows, { encoding: 'base64' });
    };
    return choices(random, prompt, {
      choice: (rows) => `"routed_experts":${rowsIn(Math.min(rows, tokensOf(prompt) - 1))}`,
      root: (leg) =>
        `"prompt_routed_experts":${leg === 'prefill' || random.chance(0.5) ? rowsIn(prompt) : null}`,
      tail: true,
    });
  };

/** Replies of SGLang's own endpoint: one element, a list of two, or events. */
const raw =
  (elements: 0 | 2, stream = false): Kind =>
  (random, model, prompt) => {
    if (prompt > LARGEST.raw) return null;
    const tokens = tokensOf(prompt);
    const element = (made: number) => {
      const rows = rowsOf(random, model, prompt + made - 1, 4).toString('base64');
      const counts = `"prompt_tokens":${prompt},"completion_tokens":${made}`;
      return `{"text":"${'word '.repeat(made)}","meta_info":{${counts},"routed_experts":"${rows}"}}`;
    };
    const reply = (made: number) =>
      elements === 0 ? element(made) : `[${Array.from({ length: elements }, () => element(made)).join(',')}]`;
    const ids = array(prompt, '11');
    const prompts = elements === 0 ? ids : array(elements, ids);
    return {
      path: '/generate',
      connector: 'sglang',
      request: Buffer.from(
        `{"input_ids":${prompts},"sampling_params":{"max_new_tokens":${tokens}},"stream":${stream}}`,
      ),
      prefill: Buffer.from(reply(1)),
      decode: Buffer.from(stream ? `data: ${reply(tokens)}\n\ndata: [DONE]\n\n` : reply(tokens)),
      stream,
    };
  };

const KINDS: Record<string, Kind> = {
  full: npy(false),
  tail: npy(true),
  stream: npy(false, true),
  object,
  'prompt apart': split(false),
  'prompt apart, in lists': split(true),
  raw: raw(0),
  'list of raw': raw(2),
  'stream of raw': raw(0, true),
};

function exchange(random: Random, name: string, kind: Kind, model: Model, prompt: number): Soaked | null {
  const messages = kind(random, model, prompt);
  if (!messages) return null;
  const { prefill, decode, stream, connector, request, path } = messages;
  const asked = readRequest(path, request, connector)!;
  // These rules are those of the soak's configuration.
  const rules = { check: 'sampled' as const, model: null };
  const brought = readPrefill(prefill, { rules, lists: connector === 'sglang' })!;
  const prompts = Math.max(asked.batch, 1);
  const { n, maxTokens } = asked;
  const expected = { brought, prompts, n, maxTokens, tail: true, last: false, rules };
  const { merged, why } = stream ? streamVerdict(decode, expected) : verdictOf(decode, expected);
  if (merged.length !== 1) throw new Error(`${name} of ${prompt}: ${why}`);
  return { ...messages, name: `${name}, ${prompt} tokens`, merged: Buffer.from(merged[0]!.body, 'latin1') };
}

/** The exchanges by size: for each size, one of each form and model. */
export function exchanges(seed: number): Soaked[][] {
  const random = new Random(seed);
  return SIZES.map((prompt) =>
    MODELS.flatMap((model) =>
      Object.entries(KINDS).flatMap(([name, kind]) => exchange(random, name, kind, model, prompt) ?? []),
    ),
  );
}

/** Picks an exchange. The larger a size is, the rarer. */
export function pick(random: Random, all: Soaked[][]): Soaked {
  const size = Math.min(all.length - 1, Math.floor(-Math.log2(1 - random.next() * 0.97)));
  return random.pick(all[size]!);
}

/** A reply with this body, in pieces of a random size. */
export function replyOf(random: Random, body: Buffer, stream: boolean): EngineReply {
  const bytes = random.pick([body.length, body.length, 65_536, 4000]);
  const chunks: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) chunks.push(body.subarray(at, at + bytes));
  const type = stream ? 'text/event-stream' : 'application/json';
  const length: [string, string][] =
    stream || random.chance(0.2) ? [] : [['content-length', String(body.length)]];
  return { status: 200, headers: [['content-type', type], ...length], chunks };
}

/** A faulty reply in the place of one with this body. */
export function faultOf(random: Random, body: Buffer, stream: boolean): EngineReply {
  const good = replyOf(random, body, stream);
  const cut = { ...good, chunks: [body.subarray(0, random.below(body.length))] };
  switch (random.below(5)) {
    case 0:
      return { ...good, fault: 'reset' };
    case 1:
      return { ...cut, fault: 'reset_body' };
    case 2:
      return {
        status: 500,
        headers: [['content-type', 'application/json']],
        chunks: [Buffer.from('{"error":{}}')],
      };
    case 3:
      // The body is no JSON, but has the right length.
      return { ...good, chunks: [Buffer.from(body).fill(0x7d, body.length - 30)] };
    default: {
      // The array is not valid base64.
      const at = body.indexOf('routed_experts":');
      const copy = Buffer.from(body);
      copy.write('"-', at + 'routed_experts":'.length);
      return { ...good, chunks: [copy] };
    }
  }
}
