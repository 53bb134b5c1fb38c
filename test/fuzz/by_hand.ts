// Exchanges written by hand with engines whose routing stands in the choices (formats A, B and C).

import type { Dtype } from '../engine/router.ts';
import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import type { Random } from '../unit/random.ts';
import { DIALECTS, DTYPES, NUMPY_NAMES } from './dialects.ts';
import { EVENTS_TYPE, JSON_TYPE, Raw, Style, type Messages } from './messages.ts';
import { bytesOf, Routers, type Slots } from './routers.ts';

export interface Shape {
  dtype: Dtype;
  /** The dtype of decode's arrays, which may differ from prefill's. */
  decodeDtype: Dtype;
  layers: number;
  topK: number;
  /** Number of tokens of the prompt. */
  prompt: number;
  /**
   * The first row of decode's arrays, in forms that have prompt rows and generated rows in one
   * array.
   */
  from: number;
  /** The same for prefill's. */
  given: number;
  /** Prefill drops the last token of the prompt, as vLLM's does with hybrid models. */
  hybrid: boolean;
  routers: Routers;
  slots: Slots;
  /** The leg one of whose arrays gets rows that no router can give. */
  spoiled: Leg | null;
  /** The number of rows that decode has beyond the right number; negative if rows are missing. */
  extra: number;
}

/** `alone` is the reply of decode to a request that it serves alone. */
export type Leg = 'prefill' | 'decode' | 'alone';

/** Writes the routing of one exchange into its replies. */
export interface Writer {
  note: string;
  /** The members of a choice with `tokens` generated tokens, in the reply of one leg. */
  choice(leg: Leg, tokens: number, prompt?: number): object;
  /** The members beside `choices`. */
  root(leg: Leg): object;
  /** Whether a stream with this routing can be merged. */
  streams: boolean;
  /** What was done to the rows. */
  notes: string[];
}

/** Writes one array per choice, which holds the rows of both legs. */
function arrayWriter(random: Random, shape: Shape): Writer {
  const dialect = random.pick(DIALECTS);
  const npyOf = () => ({
    version: random.chance(0.8) ? (1 as const) : random.pick([2, 3] as const),
    padding: random.chance(0.7) ? 0 : random.between(0, 70),
  });
  const npy = { prefill: npyOf(), decode: npyOf(), alone: npyOf() };
  const { routers, layers, topK, slots } = shape;
  const notes: string[] = [];
  return {
    note: dialect.name,
    streams: true,
    notes,
    root: () => ({}),
    choice(leg, tokens, prompt = shape.prompt) {
      const dtype = leg === 'prefill' ? shape.dtype : shape.decodeDtype;
      const start = leg === 'prefill' ? shape.given : shape.from;
      const more = leg === 'prefill' ? -Number(shape.hybrid) : shape.extra;
      const total = prompt + tokens - 1 + more;
      // Decode forwards the last prompt token itself, so its rows are valid from that token on.
      const foreign = leg === 'decode' ? Math.max(prompt - 1 - start, 0) : 0;
      const own = routers.rows(Math.max(total - start - foreign, 0), dtype);
      const rows = [...routers.slots(slots, foreign, dtype), ...spoil(shape, leg, own, notes)];
      const data = bytesOf(rows, dtype);
      const array = { dtype, layers, topK, rows: rows.length, data, npy: npy[leg], start };
      return { [dialect.key]: new Raw(dialect.write(array)) };
    },
  };
}

function spoil({ routers, spoiled }: Shape, leg: Leg, rows: number[][], notes: string[]): number[][] {
  const done = spoiled === leg ? routers.spoil(rows) : null;
  if (!done) return rows;
  notes.push(`${leg}: ${done[1]}`);
  return done[0];
}

/** Writes the prompt rows apart from the generated rows. */
function splitWriter(random: Random, shape: Shape): Writer {
  const { layers, topK, dtype, prompt, routers, slots } = shape;
  const nested = random.chance(0.5);
  const inChoice = random.chance(0.5);
  const remote = random.pick(['invalid', 'null', 'missing'] as const);
  const notes: string[] = [];
  const chunks = (ids: number[], size: number) =>
    Array.from({ length: ids.length / size }, (_, i) => ids.slice(i * size, (i + 1) * size));
  const rowsOf = (rows: number[][]): unknown =>
    nested
      ? rows.map((row) => chunks(row, topK))
      : {
          ...(random.chance(0.9) ? { encoding: 'base64' } : {}),
          dtype: NUMPY_NAMES[dtype],
          shape: [rows.length, layers, topK],
          data: bytesOf(rows, dtype).toString('base64'),
        };
  // If the reply of decode alone is spoiled, only one of the two values is: the prompt rows or the
  // generated rows.
  const apart = random.chance(0.5);
  const value = (leg: Leg, tokens = prompt): object => {
    if (leg !== 'decode') {
      const rows = routers.rows(tokens - (leg === 'prefill' ? shape.given : 0), dtype);
      const spoiled = leg === 'prefill' || apart ? spoil(shape, leg, rows, notes) : rows;
      return { prompt_routed_experts: rowsOf(spoiled) };
    }
    if (remote === 'invalid') return { prompt_routed_experts: rowsOf(routers.slots(slots, prompt, dtype)) };
    return remote === 'null' ? { prompt_routed_experts: null } : {};
  };
  return {
    note: 'split',
    streams: remote !== 'missing',
    notes,
    root: (leg) => (inChoice ? {} : value(leg)),
    choice: (leg, tokens, length = prompt) => {
      const extra = leg === 'prefill' ? 0 : shape.extra;
      const rows = routers.rows(Math.max(tokens - 1 + extra, 0), dtype);
      const spoiled = leg === 'decode' || (leg === 'alone' && !apart) ? spoil(shape, leg, rows, notes) : rows;
      return { ...(inChoice ? value(leg, length) : {}), routed_experts: rowsOf(spoiled) };
    },
  };
}

export const writerOf = (random: Random, shape: Shape): Writer =>
  random.chance(0.7) ? arrayWriter(random, shape) : splitWriter(random, shape);

/** Chooses a model for a prompt of `prompt` tokens, and how its engines write routing. */
export function shapeOf(random: Random, prompt: number, spoilable: Leg[]): Shape {
  const dtype = random.pick(DTYPES);
  const size = { layers: random.between(1, 4), topK: random.between(1, 4) };
  return {
    ...size,
    dtype,
    decodeDtype: random.chance(0.2) ? random.pick(DTYPES) : dtype,
    prompt,
    from: 0,
    given: 0,
    hybrid: false,
    routers: new Routers(random, size, dtype),
    slots: random.pick(['zeros', 'earlier', 'garbage'] as const),
    spoiled: random.chance(0.15) ? random.pick(spoilable) : null,
    extra: random.chance(0.04) ? random.pick([-5, -1, 1, 2, prompt]) : 0,
  };
}

export const modelOf = ({ layers, topK, routers }: Shape) => ({
  layers,
  top_k: topK,
  experts: routers.experts,
});

/** Writes the replies of engines that capture no routing. */
function bareWriter(random: Random): Writer {
  const value = random.chance(0.5) ? { routed_experts: null } : {};
  return { note: 'no routing', choice: () => value, root: () => ({}), streams: true, notes: [] };
}

/** The order of a connector's legs, where the configuration may choose it. */
export function handshakeOf(random: Random, connector: string): Record<string, unknown> {
  if (connector !== 'mooncake') return {};
  return random.pick([
    {},
    { handshake: 'sequential' },
    { handshake: 'concurrent' },
    { handshake: 'concurrent' },
  ]);
}

export function choicesByHand(random: Random): Messages {
  const style = new Style(random);
  const path = random.pick([COMPLETIONS, CHAT, GENERATE]);
  const stream = path === GENERATE && random.chance(0.3);
  const prompt = random.chance(0.12) ? random.between(50, 400) : random.between(1, 12);
  const n = random.chance(0.6) ? 1 : random.between(2, 4);
  const connector = random.pick(['nixl', 'nixl', 'nixl', 'shared_storage', 'mooncake'] as const);
  const handshake = handshakeOf(random, connector);
  const tail = handshake['handshake'] !== 'concurrent' && random.chance(0.5);
  const last = random.chance(0.25);
  const shape = shapeOf(random, prompt, ['prefill', 'decode']);
  shape.hybrid = prompt > 1 && random.chance(0.15);
  const seam = last || shape.hybrid ? prompt - 1 : prompt;
  const start = random.chance(0.7) ? 0 : random.between(1, prompt);
  // In the remaining cases the engine ignores `routed_experts_prompt_start` and returns all rows.
  if (random.chance(0.8)) shape.from = tail ? Math.max(seam, start) : start;
  // A prompt that is sent as numbers is one whose length the filter knows.
  const asked = start === prompt && path === GENERATE ? start - 1 : start;
  if (asked > 1 && random.chance(0.8)) shape.given = Math.min(asked, prompt - Number(shape.hybrid));
  const bare = connector !== 'mooncake' && random.chance(0.04);
  const writer = bare ? bareWriter(random) : writerOf(random, shape);
  const lengths = Array.from({ length: n }, () => random.between(1, 6));
  const maxTokens = random.chance(0.6) ? Math.max(...lengths) : null;
  const rest = lengths.reduce((a, b) => a + b, 0);

  const sampling = style.order({
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    ...(n > 1 || random.chance(0.2) ? { n } : {}),
    // Engines refuse more than `max_tokens`.
    ...(random.chance(0.2) ? { min_tokens: random.between(0, Math.min(3, maxTokens ?? 3)) } : {}),
    ...(random.chance(0.1) ? { prompt_logprobs: null } : {}),
    ...(start > 0 || random.chance(0.05) ? { routed_experts_prompt_start: start } : {}),
  });
  const common = {
    ...(random.chance(0.2) ? { kv_transfer_params: { do_remote_prefill: true, remote_host: 'evil' } } : {}),
    ...(random.chance(0.1) ? { vllm_xargs: { kv_transfer_params: { a: 1 }, b: 2 } } : {}),
    ...(random.chance(0.1) ? { cache_hit_threshold: 0.5 } : {}),
    ...(random.chance(0.5) ? { model: style.words() } : {}),
  };
  const extra = random.chance(0.1) ? { extra_args: { kv_transfer_params: { x: 1 } } } : {};
  const request =
    path === GENERATE
      ? {
          token_ids: Array.from({ length: prompt }, (_, i) => i),
          sampling_params: { ...sampling, ...extra },
          ...(stream ? { stream: true } : {}),
          ...common,
        }
      : {
          ...(path === CHAT
            ? { messages: [{ role: 'user', content: style.words() }] }
            : { prompt: style.words() }),
          // `/v1/completions` has no such member and ignores it.
          ...(maxTokens !== null && random.chance(0.3)
            ? { max_completion_tokens: path === CHAT ? maxTokens : random.between(0, 3) }
            : {}),
          ...sampling,
          ...common,
          ...(random.chance(0.1) ? { stream: false, echo: false } : {}),
        };

  const handless = connector === 'nixl' && random.chance(0.03);
  const params = {
    do_remote_prefill: true,
    remote_request_id: style.words(),
    remote_block_ids: [[random.below(100)]],
    more: style.words(),
  };
  const details = bare || random.chance(0.1);
  const usage = (completion: number) =>
    style.order({
      prompt_tokens: prompt,
      completion_tokens: completion,
      total_tokens: prompt + completion,
      ...(details ? { prompt_tokens_details: { cached_tokens: random.below(prompt + 1) } } : {}),
    });
  // Without `usage` nothing tells the prompt's length, and the prompt rows of the split form cannot
  // be checked.
  const withUsage = random.chance(0.8) || writer.note === 'split' || bare || shape.hybrid || start > 0;
  const withIds = random.chance(0.4) || path === GENERATE;
  const long = 'word '.repeat(bare ? random.between(50, 1000) : 0);
  const choice = (leg: Leg, index: number, tokens: number) =>
    style.order({
      index,
      ...(path === CHAT
        ? { message: style.order({ role: 'assistant', content: style.words() + long }) }
        : path === COMPLETIONS
          ? { text: style.words() + long }
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
    // A prefill engine that runs another connector hands out no parameters.
    kv_transfer_params: connector === 'mooncake' ? null : handless ? random.pick([null, {}]) : params,
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
    config: {
      connector,
      ...handshake,
      decode_rows: tail ? 'tail' : 'full',
      ...(last ? { last_prompt_row: 'decode' } : {}),
    },
    merges:
      (!stream || writer.streams) &&
      writer.notes.length === 0 &&
      !handless &&
      (shape.extra === 0 || bare) &&
      // A Mooncake transfer can be taken only once, so P/D does not serve several choices.
      (connector !== 'mooncake' || n === 1) &&
      // The prompt rows of the split form are a value of their own, into which no row of decode can
      // go, and which must have some row.
      !(writer.note === 'split' && (last || start === prompt)),
    ...(bare ? { ends: 'absent' as const } : {}),
    model: modelOf(shape),
    note: [
      'by hand',
      writer.note,
      ...(shape.hybrid ? ['hybrid'] : []),
      ...(start > 0 ? [`from ${start}`] : []),
      ...(handless ? ['no handshake'] : []),
      ...writer.notes,
    ].join(', '),
  };
}
