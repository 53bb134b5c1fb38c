// Exchanges of engines whose routing stands in choices, by hand.

import type { Dtype } from '../engine/router.ts';
import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import type { Random } from '../unit/random.ts';
import { DIALECTS, DTYPES, itemBytes, NUMPY_NAMES } from './dialects.ts';
import { EVENTS_TYPE, JSON_TYPE, Raw, Style, type Messages } from './messages.ts';

interface Shape {
  dtype: Dtype;
  /** Of decode, where it chose another one. */
  decodeDtype: Dtype;
  layers: number;
  topK: number;
  /** Tokens of the prompt. */
  prompt: number;
  /** Decode answers with the generated rows only, where the form has them together. */
  answersTail: boolean;
}

/** What the routing of one exchange adds to its replies. */
interface Writer {
  note: string;
  /** Members of a choice with so many tokens, on one leg. */
  choice(leg: 'prefill' | 'decode', tokens: number): object;
  /** Members beside `choices`. */
  root(leg: 'prefill' | 'decode'): object;
  /** Whether a stream can be merged. */
  streams: boolean;
}

function dataOf(random: Random, { dtype, layers, topK }: Shape, rows: number): Buffer {
  const width = layers * topK * itemBytes(dtype);
  const bytes = random.bytes(rows * width);
  // No row of -1.
  for (let row = 0; row < rows; row++) bytes[row * width]! &= 0x7f;
  return bytes;
}

/** One array a choice, with rows of both legs. */
function arrayWriter(random: Random, shape: Shape): Writer {
  const dialect = random.pick(DIALECTS);
  const npyOf = () => ({
    version: random.chance(0.8) ? (1 as const) : random.pick([2, 3] as const),
    padding: random.chance(0.7) ? 0 : random.between(0, 70),
  });
  const npy = { prefill: npyOf(), decode: npyOf() };
  const { prompt, answersTail } = shape;
  return {
    note: dialect.name,
    streams: true,
    root: () => ({}),
    choice(leg, tokens) {
      const tail = leg === 'decode' && answersTail;
      const rows = (tail ? 0 : prompt) + tokens - 1;
      const start = tail ? prompt : 0;
      const own = leg === 'decode' ? { ...shape, dtype: shape.decodeDtype } : shape;
      const data = dataOf(random, own, rows);
      return { [dialect.key]: new Raw(dialect.write({ ...own, rows, data, npy: npy[leg], start })) };
    },
  };
}

/** The prompt's rows apart from the generated ones. */
function splitWriter(random: Random, shape: Shape): Writer {
  const { layers, topK, dtype, prompt } = shape;
  const nested = random.chance(0.5);
  const inChoice = random.chance(0.5);
  const remote = random.pick(['invalid', 'null', 'missing'] as const);
  const list = (length: number, of: () => unknown) => Array.from({ length }, of);
  const rowsOf = (rows: number): unknown =>
    nested
      ? list(rows, () => list(layers, () => list(topK, () => random.below(300))))
      : {
          ...(random.chance(0.9) ? { encoding: 'base64' } : {}),
          dtype: NUMPY_NAMES[dtype],
          shape: [rows, layers, topK],
          data: dataOf(random, shape, rows).toString('base64'),
        };
  const value = (leg: string): object => {
    if (leg === 'prefill' || remote === 'invalid') return { prompt_routed_experts: rowsOf(prompt) };
    return remote === 'null' ? { prompt_routed_experts: null } : {};
  };
  return {
    note: 'split',
    streams: remote !== 'missing',
    root: (leg) => (inChoice ? {} : value(leg)),
    choice: (leg, tokens) => ({ ...(inChoice ? value(leg) : {}), routed_experts: rowsOf(tokens - 1) }),
  };
}

export function choicesByHand(random: Random): Messages {
  const style = new Style(random);
  const path = random.pick([COMPLETIONS, CHAT, GENERATE]);
  const stream = path === GENERATE && random.chance(0.3);
  const prompt = random.chance(0.1) ? random.between(50, 400) : random.between(1, 12);
  const n = random.chance(0.6) ? 1 : random.between(2, 4);
  const connector = random.pick(['nixl', 'nixl', 'nixl', 'shared_storage', 'mooncake'] as const);
  const tail = connector !== 'mooncake' && random.chance(0.5);
  const dtype = random.pick(DTYPES);
  const shape: Shape = {
    dtype,
    decodeDtype: random.chance(0.2) ? random.pick(DTYPES) : dtype,
    layers: random.between(1, 4),
    topK: random.between(1, 4),
    prompt,
    // An engine that does not look at `routed_experts_prompt_start` answers in full.
    answersTail: tail && random.chance(0.8),
  };
  const writer = random.chance(0.7) ? arrayWriter(random, shape) : splitWriter(random, shape);
  const lengths = Array.from({ length: n }, () => random.between(1, 6));
  const maxTokens = random.chance(0.6) ? Math.max(...lengths) : null;
  const rest = lengths.reduce((a, b) => a + b, 0);

  const sampling = style.order({
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    ...(n > 1 || random.chance(0.2) ? { n } : {}),
    ...(random.chance(0.2) ? { min_tokens: random.between(0, 3) } : {}),
    ...(random.chance(0.1) ? { prompt_logprobs: null } : {}),
  });
  const common = {
    ...(random.chance(0.2) ? { kv_transfer_params: { do_remote_prefill: true, remote_host: 'evil' } } : {}),
    ...(random.chance(0.1) ? { vllm_xargs: { kv_transfer_params: { a: 1 }, b: 2 } } : {}),
    ...(random.chance(0.1) ? { cache_hit_threshold: 0.5 } : {}),
    ...(random.chance(0.5) ? { model: style.words() } : {}),
  };
  const extra = random.chance(0.1) ? { extra_args: { kv_transfer_params: { x: 1 } } } : {};
  const given = Object.keys(sampling).length > 0 || random.chance(0.5);
  const request =
    path === GENERATE
      ? {
          token_ids: Array.from({ length: prompt }, (_, i) => i),
          ...(given ? { sampling_params: { ...sampling, ...extra } } : {}),
          ...(stream ? { stream: true } : {}),
          ...common,
        }
      : {
          ...(path === CHAT
            ? { messages: [{ role: 'user', content: style.words() }] }
            : { prompt: style.words() }),
          ...(path === CHAT && maxTokens !== null && random.chance(0.3)
            ? { max_completion_tokens: maxTokens }
            : {}),
          ...sampling,
          ...common,
          ...(random.chance(0.1) ? { stream: false, echo: false } : {}),
        };

  const params = {
    do_remote_prefill: true,
    remote_request_id: style.words(),
    remote_block_ids: [[random.below(100)]],
    more: style.words(),
  };
  const usage = (completion: number) =>
    style.order({ prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion });
  // Without a length, such a value can't be checked.
  const withUsage = random.chance(0.8) || writer.note === 'split';
  const withIds = random.chance(0.4) || path === GENERATE;
  const choice = (leg: 'prefill' | 'decode', index: number, tokens: number) =>
    style.order({
      index,
      ...(path === CHAT
        ? { message: style.order({ role: 'assistant', content: style.words() }) }
        : path === COMPLETIONS
          ? { text: style.words() }
          : {}),
      logprobs: random.chance(0.2) ? { content: [{ token: style.words(), top_logprobs: [] }] } : null,
      ...(withIds ? { token_ids: Array.from({ length: tokens }, (_, i) => i * 1000) } : {}),
      ...writer.choice(leg, tokens),
      finish_reason: 'length',
    });
  const prefill = style.order({
    id: style.words(),
    choices: [choice('prefill', 0, 1)],
    ...writer.root('prefill'),
    ...(withUsage || random.chance(0.8) ? { usage: usage(1) } : {}),
    kv_transfer_params: params,
  });
  const events = () => [
    ...lengths.flatMap((tokens, index) =>
      Array.from({ length: tokens }, (_, t) => {
        const last = t === tokens - 1;
        const routing = last ? writer.choice('decode', tokens) : { routed_experts: null };
        const item = style.order({ index, token_ids: [t], text: style.words(), ...routing });
        const beside = last ? writer.root('decode') : {};
        return style.order({ request_id: style.words(), choices: [item], ...beside });
      }),
    ),
    ...(withUsage ? [{ choices: [], usage: usage(rest) }] : []),
  ];
  const whole = () =>
    style.order({
      id: style.words(),
      choices: lengths.map((tokens, i) => choice('decode', i, tokens)),
      ...writer.root('decode'),
      ...(withUsage ? { usage: usage(rest) } : {}),
      kv_transfer_params: null,
    });
  return {
    path,
    request: style.write(style.order(request)),
    prefill: { headers: JSON_TYPE, body: style.write(prefill) },
    decode: stream
      ? { headers: EVENTS_TYPE, body: style.events(events()) }
      : { headers: JSON_TYPE, body: style.write(whole()) },
    config: { connector, decode_rows: tail ? 'tail' : 'full' },
    // A transfer is taken once.
    merges: (!stream || writer.streams) && (connector !== 'mooncake' || n === 1),
    note: `by hand, ${writer.note}`,
  };
}
