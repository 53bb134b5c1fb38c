// SGLang's server-sent events. On the OpenAI endpoints the routing has an event of its own, which
// follows the last event of the choices.

import type { Answer } from '../api.ts';
import type { ApiError, Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import { NOWHERE } from '../formats/format.ts';
import { toJson } from '../json.ts';
import { stepsOf, type Step } from '../steps.ts';
import type { Context } from './api.ts';
import { SENT, WEIGHT_VERSION, echoed, ending, isList, metaInfo, usageOf } from './reply.ts';

const DONE = 'data: [DONE]\n\n';
const event = (value: object) => `data: ${toJson(value)}\n\n`;

export function eventsOf(answer: Answer, context: Context): string[] {
  const events = answer.call.endpoint === 'native' ? nativeEvents(answer, context) : openAi(answer, context);
  return [...events.map(event), DONE];
}

/** The events of `/generate`; each repeats all of the text so far. */
function nativeEvents({ call, choices, id }: Answer, context: Context): object[] {
  const ids = choices.map((_, i) => (i === 0 ? id : context.newId()));
  const texts = choices.map(() => '');
  return [...stepsOf(choices)].map(({ choice, t, last, text }) => {
    const encoded = context.format.encode(last ? choice.routing : null);
    return {
      text: (texts[choice.index] += text),
      output_ids: choice.tokens.slice(0, t + 1),
      meta_info: {
        ...metaInfo(call, choice, ids[choice.index]!, encoded, t + 1),
        ...(t === 0 ? SENT : {}),
      },
      ...(isList(call) ? { index: choice.index } : {}),
    };
  });
}

function openAi(answer: Answer, context: Context): object[] {
  const { call, choices, id, created } = answer;
  const chat = call.endpoint === 'chat';
  const head = { id, object: chat ? 'chat.completion.chunk' : 'text_completion', created };
  const chunk = (list: object[], more: object = {}, before: object = {}) => ({
    ...head,
    ...before,
    model: call.sglang!.model,
    choices: list,
    usage: null,
    ...more,
  });
  const events: object[] = chat ? choices.map((choice) => chunk([opening(choice)])) : [];
  for (const step of stepsOf(choices)) {
    const encoded = step.last && context.streamArrays ? context.format.encode(step.choice.routing) : NOWHERE;
    const item = chat ? chatChoice(step) : completionChoice(call, step);
    events.push(chunk([{ ...item, ...encoded.choice }], encoded.after, encoded.before));
  }
  const { after } = context.streamArrays ? NOWHERE : context.format.encode(choices[0]!.routing);
  if (Object.keys(after).length > 0) events.push(chunk([], after));
  if (call.includeUsage) {
    const {
      prompt_tokens_details: details,
      completion_tokens_details: own,
      ...counts
    } = usageOf(answer, context);
    // The event of completions is written without what is null, that of chat with it.
    const usage = chat
      ? { ...counts, prompt_tokens_details: details, completion_tokens_details: own }
      : { ...counts, ...(details && { prompt_tokens_details: details }) };
    events.push(chunk([], { usage }));
  }
  return events;
}

function opening({ index }: Choice): object {
  const delta = { role: 'assistant', content: '', reasoning_content: null, tool_calls: null };
  return { index, delta, logprobs: null, finish_reason: null, matched_stop: null };
}

function chatChoice({ choice, last, text }: Step): object {
  return {
    index: choice.index,
    delta: { role: null, content: text, reasoning_content: null, tool_calls: null },
    logprobs: null,
    ...(last ? ending(choice) : { finish_reason: null, matched_stop: null }),
  };
}

function completionChoice(call: Call, { choice, t, last, text }: Step): object {
  return {
    index: choice.index,
    text: (t === 0 ? echoed(call, choice) : '') + text,
    logprobs: null,
    ...(last ? ending(choice) : { finish_reason: null, matched_stop: null }),
    ...(call.returnTokenIds ? { token_ids: [choice.tokens[t]!] } : {}),
    ...(call.returnTokenIds && t === 0 ? { prompt_token_ids: choice.of.prompt.tokens } : {}),
  };
}

/** The events that end a stream that has begun when the engine fails. */
export function failureEvents({ message, status }: ApiError, call: Call, id: string): string[] {
  if (call.endpoint !== 'native') {
    const type = 'INTERNAL_SERVER_ERROR';
    return [event({ error: { object: 'error', message, type, param: null, code: status } }), DONE];
  }
  const meta_info = {
    id,
    finish_reason: { type: 'abort', message, status_code: status, err_type: null },
    prompt_tokens: call.prompts[0]!.tokens.length,
    weight_version: WEIGHT_VERSION,
    num_retractions: 0,
    reasoning_tokens: 0,
    completion_tokens: 0,
    cached_tokens: 0,
  };
  return [event({ text: '', output_ids: [], meta_info }), DONE];
}
