// What a soak sends: exchanges of many sizes and forms with what must come of each, as an independent merge says; and faults.

import { npyHeader } from '../test/engine/npy.ts';
import { readPrefill, streamVerdict, verdictOf } from '../test/fuzz/reference.ts';
import type { EngineReply } from '../test/scenario.ts';
import { Random } from '../test/unit/random.ts';

export interface Soaked {
  name: string;
  path: string;
  request: Buffer;
  prefill: Buffer;
  decode: Buffer;
  stream: boolean;
  /** What the client must get. */
  merged: Buffer;
}

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
type Kind = 'full' | 'tail' | 'object' | 'stream';
const KINDS: Kind[] = ['full', 'tail', 'object', 'stream'];
const NAMES = { '|u1': 'uint8', '<u2': 'uint16' };

function exchange(random: Random, kind: Kind, model: Model, prompt: number): Soaked {
  const n = random.pick([1, 1, 1, 2]);
  const tokens = Math.max(2, prompt >> 3);
  const { dtype, layers, topK } = model;
  const width = layers * topK * Number(dtype.slice(2));
  const array = (rows: number, start: number) => {
    const data = Buffer.alloc(rows * width);
    for (let i = 0; i < data.length; i += 997) data[i] = random.below(128);
    if (kind !== 'object')
      return `"${Buffer.concat([npyHeader(dtype, [rows, layers, topK]), data]).toString('base64')}"`;
    const members = {
      data: data.toString('base64'),
      shape: [rows, layers, topK],
      start,
      dtype: NAMES[dtype],
    };
    return JSON.stringify(members);
  };
  const tail = kind === 'tail' || kind === 'object';
  const rows = (tail ? 0 : prompt) + tokens - 1;
  const usage = `"usage":{"prompt_tokens":${prompt},"completion_tokens":${tokens * n}}`;
  const choice = (index: number) =>
    `{"index":${index},"text":"${'word '.repeat(tokens)}","token_ids":[${Array(tokens).fill(7).join(',')}],` +
    `"routed_experts":${array(rows, tail ? prompt : 0)}}`;
  const params = '"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[[1]]}';
  const prefill = Buffer.from(
    `{"choices":[{"index":0,"routed_experts":${array(prompt, 0)}}],"usage":{"prompt_tokens":${prompt},"completion_tokens":1},${params}}`,
  );
  const choices = Array.from({ length: n }, (_, i) => choice(i));
  const stream = kind === 'stream';
  const decode = Buffer.from(
    stream
      ? [...choices.map((each) => `{"choices":[${each}]}`), '[DONE]']
          .map((data) => `data: ${data}\n\n`)
          .join('')
      : `{"choices":[${choices.join(',')}],${usage},"kv_transfer_params":null}`,
  );
  const sampling = `"max_tokens":${tokens},"n":${n}`;
  const ids = `[${Array(prompt).fill(11).join(',')}]`;
  const request = Buffer.from(
    stream
      ? `{"token_ids":${ids},"sampling_params":{${sampling}},"stream":true}`
      : `{"prompt":${ids},${sampling}}`,
  );
  const expected = { brought: readPrefill(prefill)!, prompts: 1, n, maxTokens: tokens, tail: true };
  const { merged, why } = stream ? streamVerdict(decode, expected) : verdictOf(decode, expected);
  if (merged.length !== 1) throw new Error(`${kind} of ${prompt}: ${why}`);
  return {
    name: `${kind}, ${prompt} tokens`,
    path: stream ? '/inference/v1/generate' : '/v1/completions',
    request,
    prefill,
    decode,
    stream,
    merged: Buffer.from(merged[0]!.body, 'latin1'),
  };
}

/** One of each form, model and size; the larger, the rarer when they are picked. */
export function exchanges(seed: number): Soaked[] {
  const random = new Random(seed);
  return SIZES.flatMap((prompt) =>
    MODELS.flatMap((model) => KINDS.map((kind) => exchange(random, kind, model, prompt))),
  );
}

export function pick(random: Random, all: Soaked[]): Soaked {
  const perSize = all.length / SIZES.length;
  const size = Math.min(SIZES.length - 1, Math.floor(-Math.log2(1 - random.next() * 0.97)));
  return all[size * perSize + random.below(perSize)]!;
}

/** A reply, in pieces of some size. */
export function replyOf(random: Random, body: Buffer, stream: boolean): EngineReply {
  const bytes = random.pick([body.length, body.length, 65_536, 4000]);
  const chunks: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) chunks.push(body.subarray(at, at + bytes));
  const type = stream ? 'text/event-stream' : 'application/json';
  const length: [string, string][] =
    stream || random.chance(0.2) ? [] : [['content-length', String(body.length)]];
  return { status: 200, headers: [['content-type', type], ...length], chunks };
}

/** Something else than that reply. */
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
      // Not JSON, and of the right length.
      return { ...good, chunks: [Buffer.from(body).fill(0x7d, body.length - 30)] };
    default: {
      // An array that is no array.
      const at = body.indexOf('k05VTVBZ');
      const copy = Buffer.from(body);
      if (at >= 0) copy.write('k05WTVBZ', at);
      return { ...good, chunks: [copy] };
    }
  }
}
