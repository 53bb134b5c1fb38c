// SGLang's replies, with the members and their order of SGLang 0.5.23 (tokenizer_manager.py,
// entrypoints/openai/). On `/generate`, routing stands in `meta_info`. On the OpenAI endpoints
// there is one array only, that of the first choice, and it stands beside `choices`; but a chat
// that returns `meta_info` has it there.

import type { Answer } from '../api.ts';
import type { Call } from '../call.ts';
import type { Choice } from '../compute.ts';
import type { Encoded } from '../formats/format.ts';
import { chatLogprobs, completionLogprobs, outputLogprobs } from '../openai/logprobs.ts';
import { countsOf, detailsOf } from '../openai/usage.ts';
import { EOS, decode } from '../tokenizer.ts';
import type { Context } from './api.ts';

export const WEIGHT_VERSION = 'default';
/** When a whole reply, or the first event of a stream, was sent. */
export const SENT = { response_sent_to_client_ts: 1_750_000_000.25 };

const versionsOf = (tokens: number) => [{ version: WEIGHT_VERSION, start: 0, end: tokens }];

export function wholeReply(answer: Answer, context: Context): object {
  const { call, choices } = answer;
  const encoded = choices.map(({ routing }) => context.format.encode(routing));
  if (call.endpoint === 'native') {
    const items = choices.map((choice, i) => nativeItem(answer, choice, encoded[i]!, context));
    return isList(call) ? items : items[0]!;
  }
  const item = call.endpoint === 'chat' ? chatChoice : completionChoice;
  const inMeta = call.endpoint === 'chat' && call.sglang!.returnMetaInfo;
  return {
    id: answer.id,
    object: call.endpoint === 'chat' ? 'chat.completion' : 'text_completion',
    created: answer.created,
    ...encoded[0]!.before,
    model: call.sglang!.model,
    choices: choices.map((choice, i) => item(answer, choice, encoded[i]!)),
    usage: usageOf(answer, context),
    metadata: { weight_version: WEIGHT_VERSION, weight_versions: versionsOf(choices[0]!.tokens.length) },
    // SGLang tests the encoded array with Python's truth value. An empty text is false, so the
    // reply has no `sglext` here, although a stream has one.
    ...(inMeta || choices[0]!.routing?.rows.count === 0 ? {} : encoded[0]!.after),
  };
}

function nativeItem(answer: Answer, choice: Choice, encoded: Encoded, context: Context): object {
  const id = choice.index === 0 ? answer.id : context.newId();
  return {
    text: decode(choice.tokens),
    output_ids: choice.tokens,
    meta_info: { ...metaInfo(answer.call, choice, id, encoded), ...SENT },
  };
}

function completionChoice({ call }: Answer, choice: Choice, encoded: Encoded): object {
  return {
    index: choice.index,
    text: echoed(call, choice) + decode(choice.tokens),
    logprobs: completionLogprobs(call, choice),
    ...ending(choice),
    ...(call.returnTokenIds ? { token_ids: choice.tokens, prompt_token_ids: choice.of.prompt.tokens } : {}),
    ...encoded.choice,
  };
}

function chatChoice(answer: Answer, choice: Choice, encoded: Encoded): object {
  const { call, id } = answer;
  return {
    index: choice.index,
    message: {
      role: 'assistant',
      content: decode(choice.tokens),
      reasoning_content: null,
    },
    logprobs: chatLogprobs(call, choice, 0, choice.tokens.length),
    ...ending(choice),
    ...(call.returnTokenIds ? { prompt_token_ids: choice.of.prompt.tokens, token_ids: choice.tokens } : {}),
    ...(call.sglang!.returnMetaInfo
      ? { meta_info: { ...metaInfo(call, choice, id, encoded), ...SENT } }
      : {}),
    ...encoded.choice,
  };
}

/**
 * The `meta_info` of a whole reply; or, in a stream, of an event that has the first `tokens`
 * tokens.
 */
export function metaInfo(
  call: Call,
  choice: Choice,
  id: string,
  encoded: Encoded,
  tokens = choice.tokens.length,
): object {
  const done = tokens === choice.tokens.length;
  const cached = choice.of.cached ?? 0;
  return {
    id,
    finish_reason: done ? finishReason(call, choice) : null,
    prompt_tokens: choice.of.prompt.tokens.length,
    weight_version: WEIGHT_VERSION,
    num_retractions: 0,
    // By default the prompt's are not computed (`logprob_start_len`).
    ...(call.sglang!.returnLogprob && done
      ? { input_token_logprobs: [], output_token_logprobs: outputLogprobs(choice) }
      : {}),
    reasoning_tokens: 0,
    completion_tokens: tokens,
    cached_tokens: cached,
    ...(done ? { weight_versions: versionsOf(tokens) } : {}),
    cached_tokens_details: cached > 0 ? { device: cached, host: 0 } : null,
    ...(done ? encoded.meta : {}),
    ...(done && choice.indexerTopk ? { indexer_topk: inBase64(choice.indexerTopk) } : {}),
    dp_rank: null,
    ...(done ? { e2e_latency: 0.125 } : {}),
  };
}

const inBase64 = ({ buffer, byteOffset, byteLength }: Int32Array): string =>
  Buffer.from(buffer, byteOffset, byteLength).toString('base64');

function finishReason(call: Call, { finish, tokens }: Choice): object {
  if (finish === 'stop') return { type: 'stop', matched: EOS };
  return { type: 'length', length: call.sglang!.prefillOnly ? 0 : (call.maxTokens ?? tokens.length) };
}

export function ending({ finish }: Choice) {
  return { finish_reason: finish, matched_stop: finish === 'stop' ? EOS : null };
}

/** Whether the reply of `/generate` is a list. */
export function isList(call: Call): boolean {
  return call.sglang!.batch || call.n > 1;
}

export function echoed(call: Call, { of: { prompt } }: Choice): string {
  return call.echo ? (prompt.text ?? decode(prompt.tokens)) : '';
}

export function usageOf({ call, choices }: Answer, { cachedTokens }: Context) {
  return {
    ...countsOf(call, choices),
    prompt_tokens_details: detailsOf(call, choices, cachedTokens),
    reasoning_tokens: 0,
    completion_tokens_details: null,
  };
}
