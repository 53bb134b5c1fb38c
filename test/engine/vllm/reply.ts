// vLLM's replies, with their keys in the order in which vLLM writes them.

import type { Answer } from '../api.ts';
import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import { chatLogprobs, completionLogprobs, promptLogprobsOf } from '../openai/logprobs.ts';
import { countsOf, detailsOf } from '../openai/usage.ts';
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
    ...transfer(answer, context),
    ...(context.version === '0.21' ? {} : { metrics: null }),
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
    ...transfer(answer, context),
    ...(context.version === '0.21' ? {} : { metrics: null }),
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
  const usage = usageOf(answer, context);
  const prompt = {
    prompt_logprobs: promptLogprobsOf(call, choices[0]!.of.prompt),
    prompt_token_ids: null,
    mm_placeholders: null,
  };
  // vLLM 0.32 writes the largest member, `choices`, last.
  return context.version === '0.32'
    ? { ...first, usage, ...prompt, ...transfer(answer, context), choices: list, ...after }
    : { ...first, choices: list, usage, ...prompt, ...transfer(answer, context), ...after };
}

function stamp(answer: Answer, context: Context): object {
  const { fingerprint } = context;
  return { service_tier: null, system_fingerprint: fingerprint, usage: usageOf(answer, context) };
}

function transfer({ kv }: Answer, { version }: Context): object {
  return { kv_transfer_params: kv, ...(version === '0.21' ? {} : { ec_transfer_params: null }) };
}

/** The prompt, if the client asked for `echo` and the reply has no token ids. */
export function echoed(call: Call, { of: { prompt } }: Choice): string {
  if (!call.echo || call.returnTokenIds) return '';
  return prompt.text ?? decode(prompt.tokens);
}

export function usageOf({ call, choices }: Answer, { cachedTokens }: Context) {
  return {
    ...countsOf(call, choices),
    prompt_tokens_details: detailsOf(call, choices, cachedTokens),
    completion_tokens_details: null,
  };
}
