// vLLM's server-sent events: one token per event, the choices in turn.

import type { Answer } from '../api.ts';
import type { Endpoint } from '../call.ts';
import { NOWHERE, type Encoded, type Members } from '../formats/format.ts';
import { toJson } from '../json.ts';
import { chatLogprobs } from '../openai/logprobs.ts';
import { countsOf, detailsOf } from '../openai/usage.ts';
import { stepsOf, type Step } from '../steps.ts';
import type { Context } from './api.ts';
import { echoed } from './reply.ts';

const OBJECTS: Partial<Record<Endpoint, string>> = {
  completions: 'text_completion',
  chat: 'chat.completion.chunk',
};

export function eventsOf(answer: Answer, context: Context): string[] {
  const { call, choices, id, created } = answer;
  const { endpoint } = call;
  const headOf = ({ before }: Encoded) =>
    endpoint === 'generate'
      ? { request_id: id, ...before }
      : { id, object: OBJECTS[endpoint], created, ...before, model: context.model };
  const head = headOf(NOWHERE);
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
    const { choice, last } = step;
    const shows = last && (endpoint === 'generate' || context.streamArrays);
    const captured = context.loseStreamArray ? null : choice.routing;
    const encoded = shows ? context.format.encode(captured) : NOWHERE;
    if (endpoint === 'generate') {
      const members = shows ? encoded.choice : context.format.encode(null).choice;
      const item = generateChoice(answer, step, members);
      events.push({ ...headOf(encoded), choices: [item], usage: null, ...encoded.after });
      continue;
    }
    const item = endpoint === 'chat' ? chatChoice(answer, step) : completionChoice(answer, step);
    events.push({
      ...headOf(encoded),
      choices: [{ ...item, ...encoded.choice }],
      ...(last && !call.includeUsage ? fingerprint : {}),
      ...encoded.after,
    });
  }
  if (call.includeUsage) {
    const details = detailsOf(call, choices, context.cachedTokens);
    const usage = { ...countsOf(call, choices), ...(details && { prompt_tokens_details: details }) };
    events.push({ ...head, choices: [], usage, ...(endpoint === 'generate' ? {} : fingerprint) });
  }
  return [...events.map((event) => `data: ${toJson(event)}\n\n`), 'data: [DONE]\n\n'];
}

function generateChoice({ call }: Answer, { choice, t, last }: Step, routing: Members): object {
  return {
    index: choice.index,
    logprobs: chatLogprobs(call, choice, t, t + 1),
    finish_reason: last ? choice.finish : null,
    token_ids: [choice.tokens[t]!],
    ...routing,
    sampling_mask: null,
  };
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

/** The events that end a stream that has begun when the engine fails. */
export function failureEvents(body: object): string[] {
  return [`data: ${toJson(body)}\n\n`, 'data: [DONE]\n\n'];
}
