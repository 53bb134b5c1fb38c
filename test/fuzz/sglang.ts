// Exchanges with SGLang's engines, written by hand: its own endpoint with one element or a list,
// and the OpenAI endpoints.

import type { Random } from '../unit/random.ts';
import { CHAT, COMPLETIONS, NATIVE } from '../scenarios/messages.ts';
import { EVENTS_TYPE, JSON_TYPE, Raw, Style, type Messages } from './messages.ts';
import { bytesOf, Routers } from './routers.ts';

/** One sample of one prompt. */
interface Sample {
  prompt: number;
  tokens: number;
  index: number;
}

export function sglangByHand(random: Random): Messages {
  const style = new Style(random);
  const path = random.pick([NATIVE, NATIVE, COMPLETIONS, CHAT]);
  const size = { layers: random.between(1, 4), topK: random.between(1, 4) };
  const routers = new Routers(random, size, '<i4');
  const batch = path === CHAT || random.chance(0.6) ? 0 : random.between(1, 3);
  const n = random.chance(0.8) ? 1 : random.between(2, 3);
  const stream = random.chance(0.25);
  const prompts = Array.from({ length: Math.max(batch, 1) }, () =>
    random.between(1, random.pick([3, 12, 300])),
  );
  // P/D does not serve a request that does not plainly say where its rows start, such as one with
  // `0.0`.
  const alone = random.chance(0.12);
  const start = alone || random.chance(0.75) ? 0 : random.below(Math.min(...prompts) + 1);
  const hit = alone && random.chance(0.2);
  const spoiled = random.chance(0.12)
    ? alone
      ? 'decode'
      : random.pick(['prefill', 'decode'] as const)
    : null;
  const slots = random.pick(['zeros', 'earlier', 'garbage'] as const);
  const extra = random.chance(0.04) ? random.pick([-2, -1, 1, 2]) : 0;
  const spoils: string[] = [];
  const samples = prompts.flatMap((prompt, p) =>
    Array.from({ length: n }, (_, i): Sample => ({ prompt, tokens: random.between(1, 6), index: p * n + i })),
  );
  // For a single token decode has no array, as SGLang 0.5.23 has none; other engines may have one.
  const lone = !alone && random.chance(0.8);
  const hasArray = (tokens: number, leg: 'prefill' | 'decode') => !(leg === 'decode' && lone && tokens === 1);
  const array = ({ prompt }: Sample, tokens: number, leg: 'prefill' | 'decode') => {
    // Decode begins with the token that prefill has generated: no row of the prompt is its own.
    const foreign = leg === 'decode' && !alone ? Math.max(prompt - start, 0) : 0;
    const more = leg === 'decode' ? extra : 0;
    let own = routers.rows(Math.max(prompt - start + tokens - 1 - foreign + more, 0), '<i4');
    const done = spoiled === leg ? routers.spoil(own) : null;
    if (done) spoils.push(`${leg}: ${done[1]}`);
    own = done?.[0] ?? own;
    const rows = [...routers.slots(slots, foreign, '<i4'), ...own];
    return new Raw(`"${bytesOf(rows, '<i4').toString('base64')}"`);
  };
  const ranked = random.chance(0.7);
  const meta = (sample: Sample, tokens: number, rows: Raw | null, ends = true) =>
    style.order({
      id: style.words(),
      finish_reason: ends ? style.order({ type: random.pick(['length', 'stop']), length: tokens }) : null,
      prompt_tokens: sample.prompt,
      completion_tokens: tokens,
      cached_tokens: alone ? Number(hit) : random.below(3),
      ...(rows ? { routed_experts: rows } : {}),
      ...(ranked ? { dp_rank: null } : {}),
    });
  const native = (sample: Sample, tokens: number, leg: 'prefill' | 'decode', ends = true) =>
    style.order({
      text: style.words(),
      output_ids: Array.from({ length: tokens }, (_, i) => i),
      meta_info: meta(
        sample,
        tokens,
        ends && hasArray(tokens, leg) ? array(sample, tokens, leg) : null,
        ends,
      ),
      ...(stream && leg === 'decode' && batch > 0 ? { index: sample.index } : {}),
    });
  const sum = (of: number[]) => of.reduce((a, b) => a + b, 0);
  const usage = (tokens: number[]) =>
    style.order({
      prompt_tokens: sum(prompts),
      completion_tokens: sum(tokens),
      prompt_tokens_details: alone ? { cached_tokens: Number(hit) } : null,
    });
  const withMeta = path === CHAT && random.chance(0.4);
  const openAi = (tokens: number[], leg: 'prefill' | 'decode') => {
    const rows = samples.map((sample, i) =>
      hasArray(tokens[i]!, leg) ? array(sample, tokens[i]!, leg) : null,
    );
    const choices = samples.map((sample, i) =>
      style.order({
        index: i,
        ...(path === CHAT
          ? { message: { role: 'assistant', content: style.words() } }
          : { text: style.words() }),
        ...(withMeta ? { meta_info: meta(sample, tokens[i]!, rows[i] ?? null) } : {}),
        finish_reason: 'length',
      }),
    );
    return style.order({
      id: style.words(),
      choices,
      usage: usage(tokens),
      // SGLang leaves out an empty array.
      ...(!rows[0] || rows[0].text === '""'
        ? random.chance(0.2)
          ? { sglext: { cached_tokens_details: { device: 1 } } }
          : {}
        : { sglext: { routed_experts: rows[0] } }),
    });
  };
  const reply = (tokens: number[], leg: 'prefill' | 'decode'): unknown => {
    if (path !== NATIVE) return openAi(tokens, leg);
    const elements = samples.map((sample, i) => native(sample, tokens[i]!, leg));
    return batch > 0 || n > 1 ? elements : elements[0];
  };
  const events = (tokens: number[]): unknown[] => {
    if (path === NATIVE)
      return samples.flatMap((sample, i) =>
        Array.from({ length: tokens[i]! }, (_, t) => native(sample, t + 1, 'decode', t + 1 === tokens[i])),
      );
    const chunks = samples.flatMap((_, index) =>
      Array.from({ length: tokens[index]! }, (_, t) =>
        style.order({
          id: style.words(),
          model: 'tiny',
          choices: [{ index, text: style.words(), finish_reason: t + 1 === tokens[index] ? 'length' : null }],
          usage: null,
        }),
      ),
    );
    const first = hasArray(tokens[0]!, 'decode') ? [array(samples[0]!, tokens[0]!, 'decode')] : [];
    const rows = first.map((routed_experts) => style.order({ choices: [], sglext: { routed_experts } }));
    return [...chunks, ...rows, ...(random.chance(0.5) ? [{ choices: [], usage: usage(tokens) }] : [])];
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
    ...(alone
      ? { routed_experts_start_len: new Raw('0.0') }
      : start > 0 || random.chance(0.1)
        ? { routed_experts_start_len: start }
        : {}),
    ...(stream ? { stream: true } : {}),
    ...(stream && random.chance(0.3) ? { stream_options: { include_usage: true } } : {}),
    ...(random.chance(0.2) ? { bootstrap_host: 'evil', bootstrap_room: 1 } : {}),
    ...(random.chance(0.1) ? { bootstrap_pair_key: 'evil', disagg_prefill_dp_rank: 1 } : {}),
    ...(random.chance(0.1) ? { kv_transfer_params: { x: 1 } } : {}),
  });
  const prefill = style.write(
    reply(
      samples.map(() => 1),
      'prefill',
    ),
  );
  const decode = stream ? style.events(events(tokens)) : style.write(reply(tokens, 'decode'));
  const behind = prompts.some((length) => length === start);
  return {
    path,
    request: style.write(request),
    prefill: { headers: JSON_TYPE, body: prefill },
    decode: { headers: stream ? EVENTS_TYPE : JSON_TYPE, body: decode },
    config: { connector: 'sglang' },
    merges:
      n > 1 ||
      (extra === 0 &&
        spoils.length === 0 &&
        (alone
          ? // An event with an array does not tell that nothing was cached.
            !hit && (path === NATIVE || !stream)
          : // One array cannot serve several prompts.
            (path === NATIVE || prompts.length === 1) &&
            // If there are no rows, there may be no array.
            !(behind && tokens.includes(1)))),
    // SGLang has no answer to a request for several choices.
    ...(n > 1 ? { ends: 'rejected' as const } : alone ? { ends: 'local' as const } : {}),
    model: { layers: size.layers, top_k: size.topK, experts: routers.experts },
    note: ['by hand', `SGLang${alone ? ' alone' : ''}${stream ? ' stream' : ''}`, ...spoils].join(', '),
  };
}
