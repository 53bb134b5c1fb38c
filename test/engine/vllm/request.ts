// What vLLM accepts: turns a body into a `Call`, or throws an `ApiError`. This file knows the API,
// but not the engine's state.

import { ApiError, type Call, type Endpoint, type Limits, type Prompt } from '../call.ts';
import {
  bad,
  bool,
  integer,
  logprobCount,
  object,
  refused,
  parseJson,
  required,
  tokenIds,
  type Json,
} from '../fields.ts';
import { checkPrompts, includesUsage, openAiCall, sampling } from '../openai/request.ts';

export const ENDPOINTS: Record<string, Endpoint> = {
  '/v1/completions': 'completions',
  '/v1/chat/completions': 'chat',
  '/inference/v1/generate': 'generate',
};

/** Parses and validates a request's body. */
export function parseCall(endpoint: Endpoint, contentType: string, body: Buffer, limits: Limits): Call {
  if (contentType.split(';', 1)[0]!.trim().toLowerCase() !== 'application/json') {
    throw bad("Unsupported Media Type: Only 'application/json' is allowed");
  }
  const json = object(parseJson(body), 'body');
  const model = json['model'] ?? null;
  if (model !== null && typeof model !== 'string') throw bad('Input should be a valid string', 'model');

  const call =
    endpoint === 'generate'
      ? generateCall(json, limits)
      : openAiCall(endpoint as 'completions' | 'chat', json, {
          // A beam search is made of requests of its own, which have no such parameters.
          kvTransferParams: bool(json, 'use_beam_search') ? null : transferParams(json),
          cacheSalts: cacheSalts(json),
          returnRoutedExperts: true,
          routedExpertsPromptStart: promptStart(json, limits),
          sglang: null,
        });

  if (model !== null && model !== limits.model) {
    throw new ApiError(404, `The model \`${model}\` does not exist.`, 'NotFoundError', 'model', 'serving');
  }
  if (endpoint !== 'generate') call.prompts = cut(json, call, limits);
  checkPrompts(call, limits);
  return call;
}

function generateCall(json: Json, limits: Limits): Call {
  // Here vLLM takes options of a stream without a stream.
  const stream = bool(json, 'stream') ?? false;
  const params = object(json['sampling_params'], 'sampling_params');
  return {
    endpoint: 'generate',
    prompts: [{ tokens: tokenIds(json['token_ids'], 'token_ids'), text: null }],
    ...caps(params),
    stream,
    includeUsage: includesUsage(json),
    returnTokenIds: true,
    ignoreEos: bool(params, 'ignore_eos') ?? false,
    logprobs: logprobCount(params, 'logprobs'),
    promptLogprobs: logprobCount(params, 'prompt_logprobs'),
    echo: false,
    kvTransferParams: transferParams(json),
    cacheSalts: cacheSalts(json),
    returnRoutedExperts: true,
    routedExpertsPromptStart: promptStart(params, limits),
    sglang: null,
  };
}

/** A request without a cap is compared with one of 16 tokens, and generates until it stops. */
function caps(params: Json) {
  const cap = integer(params, 'max_tokens', 16);
  const checked = sampling(params, cap, required(integer(params, 'n', 1), 'n'));
  return { ...checked, maxTokens: 'max_tokens' in params ? cap : null };
}

/**
 * The prompts as vLLM cuts them, to `truncate_prompt_tokens` or, with -1, to what the cap leaves
 * (`TokenizeParams`).
 */
function cut(json: Json, { prompts, maxTokens }: Call, { maxModelLen }: Limits): Prompt[] {
  const keep = integer(json, 'truncate_prompt_tokens');
  if (keep === null) return prompts;
  if (keep < -1) throw bad('Input should be greater than or equal to -1', 'truncate_prompt_tokens');
  const most = maxModelLen - (maxTokens ?? 0);
  if (keep > most) throw refused('Please request a smaller truncation size.', 'truncate_prompt_tokens');
  return prompts.map(({ tokens, text }) => ({ tokens: tokens.slice(0, keep < 0 ? most : keep), text }));
}

function promptStart(json: Json, limits: Limits): number {
  if (!limits.promptStart) return 0;
  const start = required(integer(json, 'routed_experts_prompt_start', 0), 'routed_experts_prompt_start');
  if (start < 0) throw bad('Input should be greater than or equal to 0', 'routed_experts_prompt_start');
  return start;
}

const MAX_SALT = 128;

/**
 * vLLM takes one salt for all prompts (vllm/entrypoints/generate/base/protocol.py,
 * `validate_cache_salt`).
 */
function cacheSalts(json: Json): readonly string[] {
  const salt = json['cache_salt'] ?? null;
  if (salt === null) return [];
  if (typeof salt !== 'string' || salt === '') {
    throw bad("Parameter 'cache_salt' must be a non-empty string if provided.", 'cache_salt');
  }
  if ([...salt].length > MAX_SALT || /[@/\\\0]/.test(salt)) {
    throw bad(
      "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL.",
      'cache_salt',
    );
  }
  return [salt];
}

function transferParams(json: Json): Json | null {
  const params = json['kv_transfer_params'] ?? null;
  return params === null ? null : object(params, 'kv_transfer_params');
}
