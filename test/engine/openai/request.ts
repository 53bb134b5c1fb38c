// Reads requests to the OpenAI endpoints that vLLM and SGLang share, and has the checks that hold
// on every endpoint.

import type { Call, Limits, Prompt } from '../call.ts';
import {
  bad,
  bool,
  float,
  integer,
  logprobCount,
  object,
  refused,
  required,
  tokenIds,
  truthy,
  type Json,
} from '../fields.ts';
import { encode, encodeChat } from '../tokenizer.ts';

/** The fields that each engine reads in its own way. */
export type Own = Pick<
  Call,
  'kvTransferParams' | 'cacheSalts' | 'returnRoutedExperts' | 'routedExpertsPromptStart' | 'sglang'
>;

/** Reads a call of `/v1/completions` or `/v1/chat/completions`. */
export function openAiCall(endpoint: 'completions' | 'chat', json: Json, own: Own): Call {
  // Python asks for the truth of both as they came: any text is true.
  if (truthy(json['stream_options']) && !truthy(json['stream'])) {
    throw bad('Stream options can only be defined when `stream=True`.', 'stream_options');
  }
  const stream = bool(json, 'stream') ?? false;
  const promptLogprobs = logprobCount(json, 'prompt_logprobs');
  if (stream && promptLogprobs !== null && promptLogprobs !== 0) {
    throw bad('`prompt_logprobs` are not available when `stream=True`.', 'prompt_logprobs');
  }
  const beams = bool(json, 'use_beam_search') ?? false;
  const shared = {
    stream,
    includeUsage: includesUsage(json),
    returnTokenIds: bool(json, 'return_token_ids') ?? false,
    ignoreEos: bool(json, 'ignore_eos') ?? false,
    ...own,
  };
  if (endpoint === 'chat') {
    const cap = integer(json, 'max_tokens');
    const maxTokens = integer(json, 'max_completion_tokens') ?? cap;
    return {
      ...shared,
      endpoint,
      prompts: [{ tokens: encodeChat(messages(json)), text: null }],
      ...sampling(json, maxTokens, integer(json, 'n') ?? 1, beams),
      logprobs: chatLogprobs(json),
      promptLogprobs,
      echo: false,
    };
  }
  const echo = bool(json, 'echo') ?? false;
  const logprobs = logprobCount(json, 'logprobs');
  const maxTokens = integer(json, 'max_tokens') ?? 16;
  // The client asks for the prompt alone: vLLM then generates one token and does not return it.
  const echoOnly = echo && maxTokens === 0;
  return {
    ...shared,
    endpoint,
    prompts: prompts(json),
    ...sampling(json, echoOnly ? 1 : maxTokens, required(integer(json, 'n', 1), 'n'), beams),
    ...(echoOnly ? { maxTokens: 0 } : {}),
    logprobs,
    promptLogprobs: promptLogprobs ?? (echo ? logprobs : null),
    echo,
  };
}

/** Whether the options of a stream ask for its usage. */
export function includesUsage(json: Json): boolean {
  const options = json['stream_options'] ?? null;
  if (options === null) return false;
  const members = object(options, 'stream_options');
  bool(members, 'continuous_usage_stats');
  return bool(members, 'include_usage') ?? false;
}

export function sampling(
  json: Json,
  maxTokens: number | null,
  n: number,
  beams = false,
): Pick<Call, 'n' | 'maxTokens' | 'minTokens'> {
  const minTokens = required(integer(json, 'min_tokens', 0), 'min_tokens');
  const temperature = float(json, 'temperature', 1);
  // vLLM has no checks of its own for a beam search (`BeamSearchParams`).
  if (beams) return { n, maxTokens, minTokens };
  if (n < 1) throw refused(`n must be at least 1, got ${n}.`, 'n');
  if (maxTokens !== null && maxTokens < 1) {
    throw refused(`max_tokens must be at least 1, got ${maxTokens}.`, 'max_tokens');
  }
  if (minTokens < 0)
    throw refused(`min_tokens must be greater than or equal to 0, got ${minTokens}.`, 'min_tokens');
  if (maxTokens !== null && minTokens > maxTokens) {
    throw refused(
      `min_tokens must be less than or equal to max_tokens=${maxTokens}, got ${minTokens}.`,
      'min_tokens',
    );
  }
  if (temperature < 0) throw refused(`temperature must be non-negative, got ${temperature}.`, 'temperature');
  // vLLM makes a temperature between 0 and 0.01 the latter.
  if (n > 1 && temperature === 0) throw refused(`n must be 1 when using greedy sampling, got ${n}.`, 'n');
  return { n, maxTokens, minTokens };
}

/** The checks that need the prompts as tokens. */
export function checkPrompts(call: Call, limits: Limits): void {
  for (const { tokens } of call.prompts) {
    if (tokens.length === 0) throw refused('The decoder prompt cannot be empty', 'prompt');
    const largest = tokens.reduce((a, b) => Math.max(a, b), 0);
    if (largest >= limits.vocab) throw refused(`Token id ${largest} is out of vocabulary`, 'prompt');
    // Of a request by token ids vLLM does not add the cap to the prompt (`GenerateRequest`,
    // `build_tok_params`).
    const output = call.endpoint === 'generate' ? 1 : Math.max(call.maxTokens ?? 1, 1);
    const room = limits.maxModelLen - tokens.length;
    if (output > room) {
      throw refused(
        `This model's maximum context length is ${limits.maxModelLen} tokens. However, you requested ${output} ` +
          `output tokens and your prompt contains ${tokens.length} input tokens.`,
        'input_tokens',
      );
    }
    if (call.maxTokens === null && call.endpoint === 'chat' && call.minTokens > room) {
      throw refused(`min_tokens must be less than or equal to max_tokens=${room}.`, 'min_tokens');
    }
    if (call.routedExpertsPromptStart > tokens.length) {
      throw refused('routed_experts_prompt_start must not exceed the prompt', 'routed_experts_prompt_start');
    }
  }
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

export function textPrompt(text: string): Prompt {
  return { tokens: encode(text), text };
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
