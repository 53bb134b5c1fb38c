// vLLM's replies, their keys in the order in which it writes them.

import type { Answer } from '../api.ts';
import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import { chatLogprobs, completionLogprobs, promptLogprobsOf } from '../openai/logprobs.ts';
import { decode } from '../tokenizer.ts';
import type { Context } from './api.ts';

export function wholeReply(answer: Answer, context: Context): object {
  if (answer.call.endpoint === 'generate') return generateReply(answer, context);
  return answer.call.endpoint === 'chat' ? chatReply(answer, context) : completionReply(answer, context);
}

function completionReply(answer: Answer, context: Context): object {
  const { call, choices } = answer;
  const encoded = choices.map(({ routing }) => context.format.encode(routing));
  const list = choices.map((choice, i) => ({
    index: choice.index,
    text: echoed(call, choice) + (call.maxTokens === 0 ? '' : decode(choice.tokens)),
    logprobs: completionLogprobs(call, choice),
    finish_reason: choice.finish,
    stop_reason: null,
    token_ids: call.returnTokenIds ? choice.tokens : null,
    prompt_logprobs: promptLogprobsOf(call, choice.of.prompt),
    prompt_token_ids: call.returnTokenIds ? choice.of.prompt.tokens : null,
    ...encoded[i]!.choice,
  }));
  return {
    id: answer.id,
    object: 'text_completion',
    created: answer.created,
    ...encoded[0]!.before,
    model: context.model,
    choices: list,
    ...stamp(answer, context),
    ...transfer(answer),
    metrics: null,
    ...encoded[0]!.after,
  };
}

function chatReply(answer: Answer, context: Context): object {
  const { call, choices } = answer;
  const encoded = choices.map(({ routing }) => context.format.encode(routing));
  const list = choices.map((choice, i) => ({
    index: choice.index,
    message: {
      role: 'assistant',
      content: decode(choice.tokens),
      refusal: null,
      annotations: null,
      audio: null,
      function_call: null,
      reasoning: null,
    },
    logprobs: chatLogprobs(call, choice, 0, choice.tokens.length),
    finish_reason: choice.finish,
    stop_reason: null,
    token_ids: call.returnTokenIds ? choice.tokens : null,
    ...encoded[i]!.choice,
  }));
  return {
    id: answer.id,
    object: 'chat.completion',
    created: answer.created,
    ...encoded[0]!.before,
    model: context.model,
    choices: list,
    ...stamp(answer, context),
    prompt_logprobs: promptLogprobsOf(call, choices[0]!.of.prompt),
    prompt_token_ids: call.returnTokenIds ? choices[0]!.of.prompt.tokens : null,
    prompt_text: null,
    ...transfer(answer),
    metrics: null,
    ...encoded[0]!.after,
  };
}

function generateReply(answer: Answer, context: Context): object {
  const { call, choices } = answer;
  const encoded = choices.map(({ routing }) => context.format.encode(routing));
  const list = choices.map((choice, i) => ({
    index: choice.index,
    logprobs: chatLogprobs(call, choice, 0, choice.tokens.length),
    finish_reason: choice.finish,
    token_ids: choice.tokens,
    ...encoded[i]!.choice,
    sampling_mask: null,
  }));
  const { before, after } = encoded[0]!;
  const first = { request_id: answer.id, model: context.model, created: answer.created, ...before };
  const usage = usageOf(call, choices);
  const prompt = {
    prompt_logprobs: promptLogprobsOf(call, choices[0]!.of.prompt),
    prompt_token_ids: null,
    mm_placeholders: null,
  };
  // 0.32 writes the large field last.
  return context.version === '0.32'
    ? { ...first, usage, ...prompt, ...transfer(answer), choices: list, ...after }
    : { ...first, choices: list, usage, ...prompt, ...transfer(answer), ...after };
}

function stamp({ call, choices }: Answer, { fingerprint }: Context): object {
  return { service_tier: null, system_fingerprint: fingerprint, usage: usageOf(call, choices) };
}

function transfer({ kv }: Answer): object {
  return { kv_transfer_params: kv, ec_transfer_params: null };
}

/** The prompt as `echo` repeats it. */
export function echoed(call: Call, { of: { prompt } }: Choice): string {
  if (!call.echo || call.returnTokenIds) return '';
  return prompt.text ?? decode(prompt.tokens);
}

export function usageOf(call: Call, choices: readonly Choice[]) {
  const prompt = call.prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const completion = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return {
    prompt_tokens: prompt,
    total_tokens: prompt + completion,
    completion_tokens: completion,
    prompt_tokens_details: null,
    completion_tokens_details: null,
  };
}
