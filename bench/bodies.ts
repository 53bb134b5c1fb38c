// The bodies that the mock engines answer with and the client sends. They are rendered once, so
// that nothing is computed during a measurement. Every process renders the same bytes from the same
// workload.

import { npyHeader } from '../yardstick/npy.ts';
import type { Dtype } from '../test/engine/router.ts';

/**
 * What decode returns. `full` (A): all rows, of which the prompt rows are wrong. `tail` (A'): the
 * generated rows only.
 */
export type Format = 'full' | 'tail';

export interface Workload {
  /** Number of tokens, of prompt and generation together. */
  tokens: number;
  layers: number;
  topK: number;
  dtype: Dtype;
  /** Number of choices in the response. Default 1. */
  choices?: number;
  /** The prompt is a list of token ids, as trainers send it, or a text. Default `ids`. */
  prompt?: 'ids' | 'text';
  /** Number of generated tokens. Default: an eighth of all tokens. */
  generated?: number;
  /**
   * The client asks only for the rows of the last `asked` prompt tokens and of what is generated,
   * as it does in each turn of a conversation after the first (`routed_experts_prompt_start`).
   * Default: it asks for all rows.
   */
  asked?: number;
  /** What the legs hand over. Default `nixl`. */
  connector?: Connector;
}

/** `mooncake`: prefill hands nothing over in its reply, since decode asks its bootstrap server. */
export type Connector = 'nixl' | 'mooncake';

export interface Bodies {
  /** The request that the client sends to the filter. */
  request: Buffer;
  /** The legs that the filter makes of it, for a client that runs both legs itself. */
  prefillRequest: Buffer;
  decodeRequest: Buffer;
  prefillReply: Buffer;
  decodeReply: Record<Format, Buffer>;
  /** The response that the client must get from the filter. */
  merged: Record<Format, Buffer>;
}

const GENERATED = 1 / 8;
const REQUEST_ID = '1ed6fcc0-5fd7-4eef-b074-8f77b231735b';
const WORD = ' rows';

const PARAMS = {
  do_remote_prefill: true,
  do_remote_decode: false,
  remote_block_ids: [[1]],
  remote_engine_id: 'ff0b3d61-5d2e-40f1-ab57-5a7b4e049869',
  remote_request_id: `cmpl-${REQUEST_ID}-0-b6182aba`,
  remote_host: 'localhost',
  remote_port: 21080,
  tp_size: 1,
  dcp_size: 1,
  pp_size: 1,
  remote_num_tokens: 0,
  remote_blocks_expiry_time: null,
  transfer_mode: 'pull',
};

const EMPTY_PARAMS = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};

export function split(
  tokens: number,
  generated = Math.max(2, Math.round(tokens * GENERATED)),
): { prompt: number; generated: number } {
  return { prompt: tokens - generated, generated };
}

export function describe(workload: Workload): string {
  const { tokens, layers, topK, dtype, choices = 1, prompt, generated, asked, connector } = workload;
  const parts = [`${tokens} tokens`, `${layers} x ${topK} ${dtype}`];
  if (generated !== undefined) parts[0] = `${tokens - generated} + ${generated} tokens`;
  if (asked !== undefined) parts.push(`rows of the last ${asked + generated!}`);
  if (choices > 1) parts.push(`${choices} choices`);
  if (prompt === 'text') parts.push('text prompt');
  if (connector === 'mooncake') parts.push('mooncake');
  return parts.join(', ');
}

export function render(workload: Workload): Bodies {
  const { tokens, layers, topK, dtype, choices = 1, connector = 'nixl' } = workload;
  const { prompt, generated } = split(tokens, workload.generated);
  // The first row that the client asks for. Engines that know the member return no row before it.
  const start = workload.asked === undefined ? 0 : prompt - workload.asked;
  const input = workload.prompt === 'text' ? WORD.repeat(prompt) : ids(prompt);
  const rowBytes = layers * topK * Number(dtype[2]);
  // The last token is sampled but never forwarded, so it has no row.
  const rows = tokens - 1;
  const right = experts(rows * layers, topK, dtype, 1);
  const array = (data: Buffer, count: number) =>
    Buffer.from(Buffer.concat([npyHeader(dtype, [count, layers, topK]), data]).toString('base64'), 'latin1');
  const startBytes = start * rowBytes;
  const promptBytes = prompt * rowBytes;
  const wrong = Buffer.concat([
    experts((prompt - start) * layers, topK, dtype, 2),
    right.subarray(promptBytes),
  ]);

  const usage = { prompt_tokens: prompt, completion_tokens: generated * choices };
  const text = WORD.repeat(generated);
  const reply = (rowsOfAll: Buffer) =>
    completion({ array: rowsOfAll, choices, text, usage, kv_transfer_params: null });
  const merged = reply(array(right.subarray(startBytes), rows - start));

  const params = connector === 'nixl' ? { ...PARAMS, remote_num_tokens: prompt } : null;
  const request = {
    model: 'bench',
    prompt: input,
    max_tokens: generated,
    temperature: 1,
    ...(start > 0 ? { routed_experts_prompt_start: start } : {}),
  };
  return {
    request: json(choices === 1 ? request : { ...request, n: choices }),
    prefillRequest: json({ ...request, max_tokens: 1, stream: false, kv_transfer_params: EMPTY_PARAMS }),
    decodeRequest: json({ ...request, kv_transfer_params: params }),
    prefillReply: completion({
      array: array(right.subarray(startBytes, promptBytes), prompt - start),
      choices: 1,
      text: WORD,
      usage: { prompt_tokens: prompt, completion_tokens: 1 },
      kv_transfer_params: params,
    }),
    decodeReply: {
      full: reply(array(wrong, rows - start)),
      tail: reply(array(right.subarray(promptBytes), rows - prompt)),
    },
    merged: { full: merged, tail: merged },
  };
}

interface Completion {
  array: Buffer;
  choices: number;
  text: string;
  usage: { prompt_tokens: number; completion_tokens: number };
  kv_transfer_params: object | null;
}

/**
 * A completion with the keys of vLLM in their order. The arrays are copied as bytes, without
 * becoming part of a string.
 */
function completion({ array, choices, text, usage, kv_transfer_params }: Completion): Buffer {
  const mark = '@array@';
  const { prompt_tokens, completion_tokens } = usage;
  const whole = JSON.stringify({
    id: `cmpl-${REQUEST_ID}`,
    object: 'text_completion',
    created: 1795426920,
    model: 'bench',
    choices: Array.from({ length: choices }, (_, index) => ({
      index,
      text,
      logprobs: null,
      finish_reason: 'length',
      stop_reason: null,
      token_ids: null,
      prompt_logprobs: null,
      prompt_token_ids: null,
      routed_experts: mark,
    })),
    service_tier: null,
    system_fingerprint: 'vllm-0.30.0-8c7231a3',
    usage: {
      prompt_tokens,
      total_tokens: prompt_tokens + completion_tokens,
      completion_tokens,
      prompt_tokens_details: null,
      completion_tokens_details: null,
    },
    kv_transfer_params,
    ec_transfer_params: null,
    metrics: null,
  });
  const parts = whole.split(mark).flatMap((part, i) => (i === 0 ? [] : [array]).concat(Buffer.from(part)));
  return Buffer.concat(parts);
}

const json = (value: unknown) => Buffer.from(JSON.stringify(value));

function ids(count: number): number[] {
  const next = random(3);
  return Array.from({ length: count }, () => next() % 150_000);
}

/**
 * Expert ids as a router names them, for `lines` layers of rows: `topK` different experts of 256,
 * or of 512 where the dtype is wider.
 */
function experts(lines: number, topK: number, dtype: Dtype, seed: number): Buffer {
  const item = Number(dtype[2]);
  const mask = item === 1 ? 0xff : 0x1ff;
  const count = lines * topK;
  const ids =
    item === 1 ? new Uint8Array(count) : item === 2 ? new Uint16Array(count) : new Uint32Array(count);
  const next = random(seed);
  for (let i = 0; i < count;) {
    const bits = next();
    // With an odd step, all experts are visited before one repeats.
    const step = ((bits >>> 9) << 1) | 1;
    let id = bits;
    for (const end = i + topK; i < end; id += step) ids[i++] = id & mask;
  }
  return Buffer.from(ids.buffer);
}

/** A random number generator: xorshift32. */
function random(seed: number): () => number {
  let state = (seed * 0x9e3779b9) >>> 0;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>>= 0);
  };
}
