// Exchanges of SGLang's engines, by hand: its own endpoint with one element or a list, and the OpenAI endpoints.

import type { Random } from '../unit/random.ts';
import { CHAT, COMPLETIONS, NATIVE } from '../scenarios/messages.ts';
import { EVENTS_TYPE, JSON_TYPE, Raw, Style, type Messages } from './messages.ts';

/** One sample of one prompt. */
interface Sample {
  prompt: number;
  tokens: number;
  index: number;
}

export function sglangByHand(random: Random): Messages {
  const style = new Style(random);
  const path = random.pick([NATIVE, NATIVE, COMPLETIONS, CHAT]);
  const slots = random.between(1, 4) * random.between(1, 4);
  const batch = path === CHAT || random.chance(0.6) ? 0 : random.between(1, 3);
  const n = random.chance(0.8) ? 1 : random.between(2, 3);
  const stream = random.chance(0.25);
  const prompts = Array.from({ length: Math.max(batch, 1) }, () =>
    random.between(1, random.pick([3, 12, 300])),
  );
  const start = random.chance(0.8) ? 0 : random.below(Math.min(...prompts));
  const samples = prompts.flatMap((prompt, p) =>
    Array.from({ length: n }, (_, i): Sample => ({ prompt, tokens: random.between(1, 6), index: p * n + i })),
  );
  const array = ({ prompt }: Sample, tokens: number) => {
    const data = random.bytes((prompt - start + tokens - 1) * slots * 4);
    // No row of -1.
    for (let at = 0; at < data.length; at += slots * 4) data[at]! &= 0x7f;
    return new Raw(`"${data.toString('base64')}"`);
  };
  const meta = (sample: Sample, tokens: number, rows: Raw | null) =>
    style.order({
      id: style.words(),
      finish_reason: rows ? style.order({ type: 'length', length: tokens }) : null,
      prompt_tokens: sample.prompt,
      completion_tokens: tokens,
      cached_tokens: random.below(3),
      ...(rows ? { routed_experts: rows } : {}),
    });
  const native = (sample: Sample, tokens: number, last = true) =>
    style.order({
      text: style.words(),
      output_ids: Array.from({ length: tokens }, (_, i) => i),
      meta_info: meta(sample, tokens, last ? array(sample, tokens) : null),
    });
  const sum = (of: number[]) => of.reduce((a, b) => a + b, 0);
  const usage = (tokens: number[]) =>
    style.order({
      prompt_tokens: sum(prompts),
      completion_tokens: sum(tokens),
      prompt_tokens_details: null,
    });
  const withMeta = path === CHAT && random.chance(0.4);
  const openAi = (tokens: number[]) => {
    const rows = samples.map((sample, i) => array(sample, tokens[i]!));
    const choices = samples.map((sample, i) =>
      style.order({
        index: i,
        ...(path === CHAT
          ? { message: { role: 'assistant', content: style.words() } }
          : { text: style.words() }),
        ...(withMeta ? { meta_info: meta(sample, tokens[i]!, rows[i]!) } : {}),
        finish_reason: 'length',
      }),
    );
    return style.order({
      id: style.words(),
      choices,
      usage: usage(tokens),
      sglext: { routed_experts: rows[0] },
    });
  };
  const reply = (tokens: number[]): unknown => {
    if (path !== NATIVE) return openAi(tokens);
    const elements = samples.map((sample, i) => native(sample, tokens[i]!));
    return batch > 0 || n > 1 ? elements : elements[0];
  };
  const events = (tokens: number[]): unknown[] => {
    if (path === NATIVE)
      return samples.flatMap((sample, i) =>
        Array.from({ length: tokens[i]! }, (_, t) => native(sample, t + 1, t + 1 === tokens[i])),
      );
    const chunks = samples.flatMap((_, index) =>
      Array.from({ length: tokens[index]! }, () =>
        style.order({ choices: [{ index, text: style.words(), finish_reason: null }], usage: null }),
      ),
    );
    const rows = style.order({ choices: [], sglext: { routed_experts: array(samples[0]!, tokens[0]!) } });
    return [...chunks, rows, ...(random.chance(0.5) ? [{ choices: [], usage: usage(tokens) }] : [])];
  };
  const tokens = samples.map((sample) => sample.tokens);
  const ids = (length: number) => Array.from({ length }, (_, i) => i);
  const prompt = batch > 0 ? prompts.map(ids) : path === CHAT ? undefined : ids(prompts[0]!);
  const sampling = style.order({
    [path === NATIVE ? 'max_new_tokens' : 'max_tokens']: Math.max(...tokens),
    ...(n > 1 ? { n } : {}),
  });
  const listed = batch > 0 && random.chance(0.3) ? prompts.map(() => sampling) : sampling;
  const request = style.order({
    ...(path === NATIVE
      ? { input_ids: prompt, sampling_params: listed }
      : path === CHAT
        ? { messages: [{ role: 'user', content: style.words() }], ...sampling }
        : { prompt, ...sampling }),
    return_routed_experts: true,
    ...(start > 0 || random.chance(0.1) ? { routed_experts_start_len: start } : {}),
    ...(stream ? { stream: true } : {}),
    ...(stream && random.chance(0.3) ? { stream_options: { include_usage: true } } : {}),
    ...(random.chance(0.2) ? { bootstrap_host: 'evil', bootstrap_room: 1 } : {}),
    ...(random.chance(0.1) ? { bootstrap_pair_key: 'evil', disagg_prefill_dp_rank: 1 } : {}),
    ...(random.chance(0.1) ? { kv_transfer_params: { x: 1 } } : {}),
  });
  return {
    path,
    request: style.write(request),
    prefill: { headers: JSON_TYPE, body: style.write(reply(samples.map(() => 1))) },
    decode: stream
      ? { headers: EVENTS_TYPE, body: style.events(events(tokens)) }
      : { headers: JSON_TYPE, body: style.write(reply(tokens)) },
    config: { connector: 'sglang' },
    // One array says nothing of several prompts, and an event nothing of which element it is of.
    merges: path === NATIVE ? !stream || samples.length === 1 : prompts.length === 1,
    note: `by hand, SGLang${stream ? ' stream' : ''}`,
  };
}
