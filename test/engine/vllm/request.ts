// What vLLM accepts: turns a body into a `Call`, or throws an `ApiError`. This file knows the API,
// but not the engine's state.

import { ApiError, type Call, type Endpoint, type Limits } from '../call.ts';
import {
  bad,
  bool,
  integer,
  logprobCount,
  object,
  parseJson,
  required,
  tokenIds,
  truthy,
  type Json,
} from '../fields.ts';
import { checkPrompts, openAiCall, sampling } from '../openai/request.ts';

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
          kvTransferParams: transferParams(json),
          cacheSalts: cacheSalts(json),
          returnRoutedExperts: true,
          routedExpertsPromptStart: promptStart(json, limits),
          sglang: null,
        });

  if (model !== null && model !== limits.model) {
    throw new ApiError(404, `The model \`${model}\` does not exist.`, 'NotFoundError', 'model');
  }
  checkPrompts(call, limits);
  return call;
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
    cacheSalts: cacheSalts(json),
    returnRoutedExperts: true,
    routedExpertsPromptStart: promptStart(params, limits),
    sglang: null,
  };
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
