// vLLM's server-sent events: one token each, choices in turn.

import type { Answer } from '../api.ts';
import type { Endpoint } from '../call.ts';
import { toJson } from '../json.ts';
import { chatLogprobs } from '../openai/logprobs.ts';
import { stepsOf, type Step } from '../steps.ts';
import type { Context } from './api.ts';
import { echoed, usageOf } from './reply.ts';

const OBJECTS: Partial<Record<Endpoint, string>> = {
  completions: 'text_completion',
  chat: 'chat.completion.chunk',
};

export function eventsOf(answer: Answer, context: Context): string[] {
  const { call, choices, id, created } = answer;
  const { endpoint } = call;
  const head =
    endpoint === 'generate'
      ? { request_id: id }
      : { id, object: OBJECTS[endpoint], created, model: context.model };
  const fingerprint = { system_fingerprint: context.fingerprint };
  const events: object[] = [];
  if (endpoint === 'chat') {
    const prompt_token_ids = call.returnTokenIds ? choices[0]!.of.prompt.tokens : null;
    for (const { index } of choices) {
      const first = { index, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null };
      events.push({ ...head, choices: [first], prompt_token_ids });
    }
  }
  for (const step of stepsOf(choices)) {
    if (endpoint === 'generate') {
      events.push(generateEvent(answer, step, context));
      continue;
    }
    const choice = endpoint === 'chat' ? chatChoice(answer, step) : completionChoice(answer, step);
    events.push({ ...head, choices: [choice], ...(step.last && !call.includeUsage ? fingerprint : {}) });
  }
  if (call.includeUsage) {
    const { prompt_tokens, total_tokens, completion_tokens } = usageOf(call, choices);
    const usage = { prompt_tokens, total_tokens, completion_tokens };
    events.push({ ...head, choices: [], usage, ...(endpoint === 'generate' ? {} : fingerprint) });
  }
  return [...events.map((event) => `data: ${toJson(event)}\n\n`), 'data: [DONE]\n\n'];
}

function generateEvent({ call, id }: Answer, { choice, t, last }: Step, context: Context): object {
  const encoded = context.format.encode(last && !context.loseStreamArray ? choice.routing : null);
  const item = {
    index: choice.index,
    logprobs: chatLogprobs(call, choice, t, t + 1),
    finish_reason: last ? choice.finish : null,
    token_ids: [choice.tokens[t]!],
    ...encoded.choice,
    sampling_mask: null,
  };
  return { request_id: id, choices: [item], usage: null };
}

function chatChoice({ call }: Answer, { choice, t, last, text }: Step): object {
  return {
    index: choice.index,
    delta: { content: text },
    logprobs: chatLogprobs(call, choice, t, t + 1),
    finish_reason: last ? choice.finish : null,
    ...(last ? { stop_reason: null } : {}),
    token_ids: call.returnTokenIds ? [choice.tokens[t]!] : null,
  };
}

function completionChoice({ call }: Answer, { choice, t, last, text }: Step): object {
  const shown = (t === 0 ? echoed(call, choice) : '') + (call.maxTokens === 0 ? '' : text);
  return {
    index: choice.index,
    text: shown,
    logprobs: null,
    finish_reason: last ? choice.finish : null,
    stop_reason: null,
    prompt_token_ids: t === 0 && call.returnTokenIds ? choice.of.prompt.tokens : null,
    token_ids: call.returnTokenIds ? [choice.tokens[t]!] : null,
  };
}

/** The engine gave up on a request whose stream has begun. */
export function failureEvents(body: object): string[] {
  return [`data: ${toJson(body)}\n\n`, 'data: [DONE]\n\n'];
}
