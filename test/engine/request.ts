// What vLLM accepts: a body becomes a `Call` or an `ApiError`. Knows the API, not the engine's state.

import { encode, encodeChat } from './tokenizer.ts';

export type Endpoint = 'completions' | 'chat' | 'generate';

export const ENDPOINTS: Record<string, Endpoint> = {
  '/v1/completions': 'completions',
  '/v1/chat/completions': 'chat',
  '/inference/v1/generate': 'generate',
};

export interface Prompt {
  tokens: readonly number[];
  /** As the client wrote it; null where it sent token ids. */
  text: string | null;
}

/** A request that vLLM takes. */
export interface Call {
  endpoint: Endpoint;
  prompts: Prompt[];
  n: number;
  /** Null: until the model stops by itself. */
  maxTokens: number | null;
  minTokens: number;
  ignoreEos: boolean;
  stream: boolean;
  includeUsage: boolean;
  returnTokenIds: boolean;
  /** How many alternatives beside the chosen token; null: no logprobs. */
  logprobs: number | null;
  promptLogprobs: number | null;
  echo: boolean;
  kvTransferParams: Record<string, unknown> | null;
  routedExpertsPromptStart: number;
}

export interface Limits {
  model: string;
  vocab: number;
  maxModelLen: number;
  /** 0.30 does not know `routed_experts_prompt_start`. */
  promptStart: boolean;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly type = 'BadRequestError',
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

type Json = Record<string, unknown>;

function bad(message: string, param: string | null = null): ApiError {
  return new ApiError(400, message, 'BadRequestError', param);
}

/** Parses and validates a request's body. */
export function parseCall(endpoint: Endpoint, contentType: string, body: Buffer, limits: Limits): Call {
  if (contentType.split(';', 1)[0]!.trim().toLowerCase() !== 'application/json') {
    throw bad("Unsupported Media Type: Only 'application/json' is allowed");
  }
  const json = object(parseJson(body), 'body');
  const model = json['model'] ?? null;
  if (model !== null && typeof model !== 'string') throw bad('Input should be a valid string', 'model');

  const call = endpoint === 'generate' ? generateCall(json, limits) : openAiCall(endpoint, json, limits);

  if (model !== null && model !== limits.model) {
    throw new ApiError(404, `The model \`${model}\` does not exist.`, 'NotFoundError', 'model');
  }
  checkPrompts(call, limits);
  return call;
}

function openAiCall(endpoint: 'completions' | 'chat', json: Json, limits: Limits): Call {
  const stream = bool(json, 'stream') ?? false;
  const streamOptions = json['stream_options'] ?? null;
  if (streamOptions !== null && truthy(streamOptions) && !stream) {
    throw bad('Stream options can only be defined when `stream=True`.', 'stream_options');
  }
  const promptLogprobs = logprobCount(json, 'prompt_logprobs');
  if (stream && promptLogprobs !== null && promptLogprobs !== 0) {
    throw bad('`prompt_logprobs` are not available when `stream=True`.', 'prompt_logprobs');
  }
  const shared = {
    stream,
    includeUsage:
      streamOptions === null
        ? false
        : (bool(object(streamOptions, 'stream_options'), 'include_usage') ?? false),
    returnTokenIds: bool(json, 'return_token_ids') ?? false,
    ignoreEos: bool(json, 'ignore_eos') ?? false,
    kvTransferParams: transferParams(json),
    routedExpertsPromptStart: promptStart(json, limits),
  };
  if (endpoint === 'chat') {
    const maxTokens = integer(json, 'max_completion_tokens') ?? integer(json, 'max_tokens');
    return {
      ...shared,
      endpoint,
      prompts: [{ tokens: encodeChat(messages(json)), text: null }],
      ...sampling(json, maxTokens, integer(json, 'n') ?? 1),
      logprobs: chatLogprobs(json),
      promptLogprobs,
      echo: false,
    };
  }
  const echo = bool(json, 'echo') ?? false;
  const logprobs = logprobCount(json, 'logprobs');
  const maxTokens = integer(json, 'max_tokens') ?? 16;
  // The prompt alone: vLLM generates one token and keeps it for itself.
  const echoOnly = echo && maxTokens === 0;
  return {
    ...shared,
    endpoint,
    prompts: prompts(json),
    ...sampling(json, echoOnly ? 1 : maxTokens, required(integer(json, 'n', 1), 'n')),
    ...(echoOnly ? { maxTokens: 0 } : {}),
    logprobs,
    promptLogprobs: promptLogprobs ?? (echo ? logprobs : null),
    echo,
  };
}

function generateCall(json: Json, limits: Limits): Call {
  const stream = bool(json, 'stream') ?? false;
  const streamOptions = json['stream_options'] ?? null;
  if (streamOptions !== null && truthy(streamOptions) && !stream) {
    throw bad('Stream options can only be defined when `stream=True`.', 'stream_options');
  }
  const params = object(json['sampling_params'], 'sampling_params');
  return {
    endpoint: 'generate',
    prompts: [{ tokens: tokenIds(json['token_ids'], 'token_ids'), text: null }],
    ...sampling(params, integer(params, 'max_tokens'), required(integer(params, 'n', 1), 'n')),
    stream,
    includeUsage:
      streamOptions === null
        ? false
        : (bool(object(streamOptions, 'stream_options'), 'include_usage') ?? false),
    returnTokenIds: true,
    ignoreEos: bool(params, 'ignore_eos') ?? false,
    logprobs: logprobCount(params, 'logprobs'),
    promptLogprobs: logprobCount(params, 'prompt_logprobs'),
    echo: false,
    kvTransferParams: transferParams(json),
    routedExpertsPromptStart: promptStart(params, limits),
  };
}

function sampling(
  json: Json,
  maxTokens: number | null,
  n: number,
): Pick<Call, 'n' | 'maxTokens' | 'minTokens'> {
  if (n < 1) throw bad(`n must be at least 1, got ${n}.`, 'n');
  if (maxTokens !== null && maxTokens < 1) {
    throw bad(`max_tokens must be at least 1, got ${maxTokens}.`, 'max_tokens');
  }
  const minTokens = required(integer(json, 'min_tokens', 0), 'min_tokens');
  if (minTokens < 0)
    throw bad(`min_tokens must be greater than or equal to 0, got ${minTokens}.`, 'min_tokens');
  if (maxTokens !== null && minTokens > maxTokens) {
    throw bad(
      `min_tokens must be less than or equal to max_tokens=${maxTokens}, got ${minTokens}.`,
      'min_tokens',
    );
  }
  const temperature = json['temperature'] ?? 1;
  if (typeof temperature !== 'number') throw bad('Input should be a valid number', 'temperature');
  if (temperature < 0) throw bad(`temperature must be non-negative, got ${temperature}.`, 'temperature');
  if (n > 1 && temperature < 1e-5) throw bad(`n must be 1 when using greedy sampling, got ${n}.`, 'n');
  return { n, maxTokens, minTokens };
}

function checkPrompts(call: Call, limits: Limits): void {
  for (const { tokens } of call.prompts) {
    if (tokens.length === 0) throw bad('The decoder prompt cannot be empty', 'prompt');
    const largest = tokens.reduce((a, b) => Math.max(a, b), 0);
    if (largest >= limits.vocab) throw bad(`Token id ${largest} is out of vocabulary`, 'prompt');
    const output = Math.max(call.maxTokens ?? 1, 1);
    if (tokens.length + output > limits.maxModelLen) {
      throw bad(
        `This model's maximum context length is ${limits.maxModelLen} tokens. However, you requested ${output} ` +
          `output tokens and your prompt contains ${tokens.length} input tokens.`,
        'input_tokens',
      );
    }
    if (call.routedExpertsPromptStart > tokens.length) {
      throw bad('routed_experts_prompt_start must not exceed the prompt', 'routed_experts_prompt_start');
    }
  }
}

function promptStart(json: Json, limits: Limits): number {
  if (!limits.promptStart) return 0;
  const start = required(integer(json, 'routed_experts_prompt_start', 0), 'routed_experts_prompt_start');
  if (start < 0) throw bad('Input should be greater than or equal to 0', 'routed_experts_prompt_start');
  return start;
}

function transferParams(json: Json): Json | null {
  const params = json['kv_transfer_params'] ?? null;
  return params === null ? null : object(params, 'kv_transfer_params');
}

function prompts(json: Json): Prompt[] {
  const prompt = json['prompt'] ?? null;
  if (prompt === null || prompt === '') {
    throw bad('Either prompt or prompt_embeds must be provided and non-empty.', 'prompt');
  }
  if (typeof prompt === 'string') return [textPrompt(prompt)];
  if (!Array.isArray(prompt)) throw bad('Input should be a valid string or list', 'prompt');
  if (prompt.length === 0) throw bad('Please provide at least one prompt', 'prompt');
  if (prompt.every((item) => typeof item === 'string')) return prompt.map(textPrompt);
  if (prompt.every((item) => Array.isArray(item))) {
    return prompt.map((ids) => ({ tokens: tokenIds(ids, 'prompt'), text: null }));
  }
  return [{ tokens: tokenIds(prompt, 'prompt'), text: null }];
}

function textPrompt(text: string): Prompt {
  return { tokens: encode(text), text };
}

function tokenIds(value: unknown, param: string): number[] {
  if (!Array.isArray(value)) throw bad('Input should be a valid list', param);
  for (const id of value) {
    if (!Number.isInteger(id)) throw bad('Input should be a valid integer', param);
    if (id < 0) throw bad('Input should be greater than or equal to 0', param);
  }
  return value;
}

function messages(json: Json): { role: string; content: string }[] {
  const list = json['messages'];
  if (!Array.isArray(list)) throw bad('Input should be a valid list', 'messages');
  if (list.length === 0) throw bad('Please provide at least one message', 'messages');
  return list.map((item) => {
    const message = object(item, 'messages');
    if (typeof message['role'] !== 'string') throw bad('Field required', 'messages');
    return { role: message['role'], content: content(message['content'] ?? '') };
  });
}

function content(value: unknown): string {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) throw bad('Input should be a valid string or list', 'messages');
  return value
    .map((item) => {
      const text = object(item, 'messages')['text'];
      if (typeof text !== 'string') throw bad('Only text parts are supported', 'messages');
      return text;
    })
    .join('\n');
}

function chatLogprobs(json: Json): number | null {
  const top = integer(json, 'top_logprobs') ?? 0;
  const wanted = bool(json, 'logprobs') ?? false;
  if (top < -1) throw bad('`top_logprobs` must be a positive value or -1.', 'top_logprobs');
  if (top !== 0 && !wanted)
    throw bad('when using `top_logprobs`, `logprobs` must be set to true.', 'top_logprobs');
  return wanted ? top : null;
}

function logprobCount(json: Json, key: string): number | null {
  const value = json[key] ?? null;
  if (value === null) return null;
  if (typeof value !== 'number' || !Number.isInteger(value)) throw bad(`\`${key}\` must be an integer.`, key);
  if (value < -1) throw bad(`\`${key}\` must be a positive value or -1.`, key);
  return value;
}

/** Pydantic's lax integer: also `"5"` and `true`. Null where the value is null, or absent without a default. */
function integer(json: Json, key: string, absent: number | null = null): number | null {
  if (!(key in json)) return absent;
  const value = json[key];
  if (value === null) return null;
  if (typeof value === 'boolean') return Number(value);
  if (typeof value === 'string' && /^\s*[+-]?\d+\s*$/.test(value)) return Number(value);
  if (typeof value === 'number' && Number.isInteger(value)) return value;
  throw bad('Input should be a valid integer', key);
}

const BOOLEANS: Record<string, boolean> = {
  ...{ true: true, t: true, yes: true, y: true, on: true, '1': true },
  ...{ false: false, f: false, no: false, n: false, off: false, '0': false },
};

/** Pydantic's lax boolean: also 0, 1 and a few words. */
function bool(json: Json, key: string): boolean | null {
  const value = json[key] ?? null;
  if (value === null || typeof value === 'boolean') return value;
  const word =
    typeof value === 'string' || typeof value === 'number'
      ? BOOLEANS[String(value).toLowerCase()]
      : undefined;
  if (word === undefined) throw bad('Input should be a valid boolean', key);
  return word;
}

function required<T>(value: T | null, key: string): T {
  if (value === null) throw bad('Input should be a valid integer', key);
  return value;
}

function object(value: unknown, param: string): Json {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw bad('Input should be a valid dictionary', param);
  }
  return value as Json;
}

/** As Python sees it: an empty dictionary is false. */
function truthy(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.keys(value).length > 0;
  return Boolean(value);
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body));
  } catch {
    throw bad('JSON decode error');
  }
}
