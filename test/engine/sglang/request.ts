// What SGLang accepts: turns a body into a `Call`, or throws an `ApiError`.

import type { Call, Endpoint, Limits, Prompt } from '../call.ts';
import { bad, bool, integer, object, parseJson, required, tokenIds, type Json } from '../fields.ts';
import { checkPrompts, openAiCall, sampling, textPrompt } from '../openai/request.ts';
import { parseBootstrap } from './bootstrap.ts';

export const ENDPOINTS: Record<string, Endpoint> = {
  '/generate': 'native',
  '/v1/completions': 'completions',
  '/v1/chat/completions': 'chat',
};

/** Parses and validates a request's body. Unlike vLLM, SGLang accepts any model name. */
export function parseCall(endpoint: Endpoint, contentType: string, body: Buffer, limits: Limits): Call {
  if (contentType.split(';', 1)[0]!.trim().toLowerCase() !== 'application/json') {
    throw bad("Unsupported Media Type: Only 'application/json' is allowed");
  }
  const json = object(parseJson(body), 'body');
  const call = endpoint === 'native' ? nativeCall(json) : openAi(endpoint as 'completions' | 'chat', json);
  checkPrompts(call, limits);
  const { sglang, prompts } = call;
  const bootstrap = parseBootstrap(body.toString(), json, prompts.length, sglang!.batch);
  return { ...call, sglang: { ...sglang!, bootstrap } };
}

function openAi(endpoint: 'completions' | 'chat', json: Json): Call {
  const prompt = json['prompt'];
  const batch = endpoint === 'completions' && Array.isArray(prompt) && typeof prompt[0] !== 'number';
  // SGLang has no such field and ignores it.
  const { prompt_logprobs: _, ...rest } = json;
  return openAiCall(endpoint, rest, ownFields(json, batch));
}

function nativeCall(json: Json): Call {
  const { prompts, batch } = nativePrompts(json);
  const params = samplingParams(json, prompts.length);
  const maxTokens = integer(params, 'max_new_tokens', 128);
  const minTokens = integer(params, 'min_new_tokens', 0);
  return {
    endpoint: 'native',
    prompts,
    ...sampling({ ...params, min_tokens: minTokens }, maxTokens, required(integer(params, 'n', 1), 'n')),
    stream: bool(json, 'stream') ?? false,
    includeUsage: false,
    returnTokenIds: true,
    ignoreEos: bool(params, 'ignore_eos') ?? false,
    logprobs: null,
    promptLogprobs: null,
    echo: false,
    // This endpoint has no `cache_salt` (`GenerateReqInput` in sglang/srt/managers/io_struct.py).
    ...ownFields({ ...json, cache_salt: [] }, batch),
  };
}

function nativePrompts(json: Json): { prompts: Prompt[]; batch: boolean } {
  const text = json['text'] ?? null;
  const ids = json['input_ids'] ?? null;
  if ((text === null) === (ids === null)) throw bad('Either text or input_ids must be given, not both.');
  if (typeof text === 'string') return { prompts: [textPrompt(text)], batch: false };
  if (text !== null) {
    if (!Array.isArray(text) || text.length === 0 || text.some((item) => typeof item !== 'string')) {
      throw bad('Input should be a valid string or list of strings', 'text');
    }
    return { prompts: text.map(textPrompt), batch: true };
  }
  const batch = Array.isArray(ids) && Array.isArray(ids[0]);
  const lists = batch ? (ids as unknown[]) : [ids];
  return { prompts: lists.map((list) => ({ tokens: tokenIds(list, 'input_ids'), text: null })), batch };
}

/**
 * One dictionary, or one per prompt. The simulated engine requires those to be equal, as it samples
 * all prompts alike.
 */
function samplingParams(json: Json, prompts: number): Json {
  const params = json['sampling_params'] ?? {};
  if (!Array.isArray(params)) return object(params, 'sampling_params');
  const [first, ...others] = params.map((item) => JSON.stringify(object(item, 'sampling_params')));
  if (params.length !== prompts || others.some((other) => other !== first)) {
    throw bad('one sampling_params per prompt, all alike', 'sampling_params');
  }
  return object(params[0], 'sampling_params');
}

/**
 * The salts of the prompts. `cache_salt` and `extra_key` are each a string or one string per
 * prompt, and both are part of the radix tree's keys.
 */
function saltsOf(json: Json): string[] {
  const [salts, keys] = ['cache_salt', 'extra_key'].map((name) => {
    const value = json[name] ?? [];
    const list: unknown[] = Array.isArray(value) ? value : [value];
    if (!list.every((item) => typeof item === 'string')) throw bad('Input should be a valid string', name);
    return list;
  });
  const longest = Math.max(salts!.length, keys!.length);
  const at = (list: string[], i: number) => (list.length === 1 ? list[0] : list[i]) ?? '';
  return Array.from({ length: longest }, (_, i) => at(salts!, i) + at(keys!, i));
}

function ownFields(json: Json, batch: boolean) {
  const { model = 'default', rid = null } = json;
  if (typeof model !== 'string') throw bad('Input should be a valid string', 'model');
  if (rid !== null && typeof rid !== 'string') throw bad('Input should be a valid string', 'rid');
  const start = required(integer(json, 'routed_experts_start_len', 0), 'routed_experts_start_len');
  if (start < 0) throw bad('Input should be greater than or equal to 0', 'routed_experts_start_len');
  return {
    kvTransferParams: null,
    cacheSalts: saltsOf(json),
    returnRoutedExperts: bool(json, 'return_routed_experts') ?? false,
    routedExpertsPromptStart: start,
    sglang: {
      model,
      requestId: rid,
      bootstrap: null,
      batch,
      returnIndexerTopk: bool(json, 'return_indexer_topk') ?? false,
      returnMetaInfo: bool(json, 'return_meta_info') ?? false,
      returnLogprob: bool(json, 'return_logprob') ?? false,
      prefillOnly: false,
    },
  };
}
