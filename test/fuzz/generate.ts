// Cases from a seed: messages as engines write them (by hand, by the simulated engine, from captures), then damage.

import { createEngine, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { captureNames, loadCapture, type Capture } from '../engine/replay.ts';
import type { Dtype } from '../engine/router.ts';
import type { Header, Protocol } from '../scenario.ts';
import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import { Random } from '../unit/random.ts';
import type { FuzzCase, Reply } from './case.ts';
import { DIALECTS, itemBytes, type Dialect } from './dialects.ts';
import { mutate, mutateStream } from './mutate.ts';
import { decodeLeg, prefillLeg, readPrefill, readRequest } from './reference.ts';

/** Messages of one exchange, without anything wrong in them. */
interface Messages {
  path: string;
  request: string;
  prefill: { headers: Header[]; body: string };
  decode: { headers: Header[]; body: string };
  config: Record<string, unknown>;
  /** False: it is known not to be merged. */
  merges: boolean;
  note: string;
}

const latin1 = (text: string) => Buffer.from(text, 'utf8').toString('latin1');
const isStream = (headers: Header[]) =>
  headers.some(([name, value]) => name === 'content-type' && /^text\/event-stream/i.test(value));

// ---- JSON in any style

/** Text that is put into a document as it is. */
class Raw {
  constructor(readonly text: string) {}
}

type Space = () => string;

function render(value: unknown, space: Space): string {
  if (value instanceof Raw) return value.text;
  const around = (text: string) => space() + text + space();
  if (Array.isArray(value))
    return `[${value.map((item) => around(render(item, space))).join(',')}${space()}]`;
  if (typeof value !== 'object' || value === null) return latin1(JSON.stringify(value));
  const members = Object.entries(value).map(
    ([key, item]) => around(latin1(JSON.stringify(key))) + ':' + around(render(item, space)),
  );
  return `{${members.join(',')}${space()}}`;
}

function shuffled(random: Random, value: object): object {
  return Object.fromEntries(random.shuffled(Object.entries(value)));
}

const TEXTS = [
  ...[
    'hello',
    '',
    'she said "routed_experts":"k05VTVBZ" \\',
    '{"choices":[{"routed_experts":"AAAA"}]}',
    'é\u{1f600}漢',
  ],
  ...['\u0000\u001f\u007f', 'a\nb\tc\r', '\\', '"', 'data: {"x":1}\n\n', 'x'.repeat(300), ']}', '\ud800'],
];

// ---- messages by hand

interface Shape {
  dtype: Dtype;
  layers: number;
  topK: number;
}

function byHand(random: Random): Messages {
  const dialect = random.pick(DIALECTS);
  const path = random.pick([COMPLETIONS, CHAT, GENERATE]);
  const stream = path === GENERATE && random.chance(0.3);
  const shape: Shape = {
    dtype: random.pick(['|u1', '<u2', '<i2', '<i4'] as const),
    layers: random.between(1, 4),
    topK: random.between(1, 4),
  };
  const prompt = random.chance(0.1) ? random.between(50, 400) : random.between(1, 12);
  const n = random.chance(0.6) ? 1 : random.between(2, 4);
  const tail = random.chance(0.5);
  // An engine that does not look at `routed_experts_prompt_start` answers in full.
  const answersTail = tail && random.chance(0.8);
  const lengths = Array.from({ length: n }, () => random.between(1, 6));
  const maxTokens = random.chance(0.6) ? Math.max(...lengths) : null;
  const rest = lengths.reduce((a, b) => a + b, 0);
  const width = shape.layers * shape.topK * itemBytes(shape.dtype);
  const data = (rows: number) => {
    const bytes = random.bytes(rows * width);
    // No row of -1.
    for (let row = 0; row < rows; row++) bytes[row * width]! &= 0x7f;
    return bytes;
  };
  const array = (rows: number, npy: Parameters<Dialect['write']>[0]['npy'], start = 0) =>
    new Raw(dialect.write({ ...shape, rows, data: data(rows), npy, start }));
  const npyOf = () => ({
    version: random.chance(0.8) ? (1 as const) : random.pick([2, 3] as const),
    padding: random.chance(0.7) ? 0 : random.between(0, 70),
  });
  const prefillNpy = npyOf();
  const decodeNpy = npyOf();
  const space: Space = random.chance(0.7) ? () => '' : () => random.pick(['', '', ' ', '\n', '\t ', '\r\n']);
  const order = random.chance(0.5) ? (value: object) => value : (value: object) => shuffled(random, value);
  const words = () => random.pick(TEXTS);

  const sampling = order({
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
    ...(n > 1 || random.chance(0.2) ? { n } : {}),
    ...(random.chance(0.2) ? { min_tokens: random.between(0, 3) } : {}),
    ...(random.chance(0.1) ? { prompt_logprobs: null } : {}),
  });
  const common = {
    ...(random.chance(0.2) ? { kv_transfer_params: { do_remote_prefill: true, remote_host: 'evil' } } : {}),
    ...(random.chance(0.1) ? { vllm_xargs: { kv_transfer_params: { a: 1 }, b: 2 } } : {}),
    ...(random.chance(0.1) ? { cache_hit_threshold: 0.5 } : {}),
    ...(random.chance(0.5) ? { model: words() } : {}),
  };
  const request =
    path === GENERATE
      ? {
          token_ids: Array.from({ length: prompt }, (_, i) => i),
          ...(Object.keys(sampling).length > 0 || random.chance(0.5)
            ? {
                sampling_params: {
                  ...sampling,
                  ...(random.chance(0.1) ? { extra_args: { kv_transfer_params: { x: 1 } } } : {}),
                },
              }
            : {}),
          ...(stream ? { stream: true } : {}),
          ...common,
        }
      : {
          ...(path === CHAT ? { messages: [{ role: 'user', content: words() }] } : { prompt: words() }),
          ...(path === CHAT && maxTokens !== null && random.chance(0.3)
            ? { max_completion_tokens: maxTokens }
            : {}),
          ...sampling,
          ...common,
          ...(random.chance(0.1) ? { stream: false, echo: false } : {}),
        };

  const params = {
    do_remote_prefill: true,
    remote_request_id: words(),
    remote_block_ids: [[random.below(100)]],
    more: words(),
  };
  const usage = (completion: number) =>
    order({ prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion });
  const withUsage = random.chance(0.8);
  const withIds = random.chance(0.4) || path === GENERATE;
  const choice = (index: number, rows: Raw, tokens: number) =>
    order({
      index,
      ...(path === CHAT
        ? { message: order({ role: 'assistant', content: words() }) }
        : path === COMPLETIONS
          ? { text: words() }
          : {}),
      logprobs: random.chance(0.2) ? { content: [{ token: words(), top_logprobs: [] }] } : null,
      ...(withIds ? { token_ids: Array.from({ length: tokens }, (_, i) => i * 1000) } : {}),
      [dialect.key]: rows,
      finish_reason: 'length',
    });
  const prefillBody = order({
    id: words(),
    choices: [choice(0, array(prompt, prefillNpy), 1)],
    ...(random.chance(0.8) ? { usage: usage(1) } : {}),
    kv_transfer_params: params,
  });
  const rowsOf = (tokens: number) => (answersTail ? 0 : prompt) + tokens - 1;
  const type: Header = ['content-type', stream ? 'text/event-stream; charset=utf-8' : 'application/json'];
  let body: string;
  if (stream) {
    const end = random.pick(['\n', '\r\n', '\r']);
    const events = lengths.flatMap((tokens, index) =>
      Array.from({ length: tokens }, (_, t) => {
        const rows = t === tokens - 1 ? array(rowsOf(tokens), decodeNpy, answersTail ? prompt : 0) : null;
        const item = order({ index, token_ids: [t], text: words(), [dialect.key]: rows });
        // A stream's document is on one line.
        return render(order({ request_id: words(), choices: [item] }), () => '');
      }),
    );
    if (withUsage) events.push(render({ choices: [], usage: usage(rest) }, () => ''));
    body = [...events, '[DONE]'].map((event) => `data: ${event}${end}${end}`).join('');
  } else {
    const choices = lengths.map((tokens, i) =>
      choice(i, array(rowsOf(tokens), decodeNpy, answersTail ? prompt : 0), tokens),
    );
    body = render(
      order({ id: words(), choices, ...(withUsage ? { usage: usage(rest) } : {}), kv_transfer_params: null }),
      space,
    );
  }
  return {
    path,
    request: render(order(request), space),
    prefill: { headers: [['content-type', 'application/json']], body: render(prefillBody, space) },
    decode: { headers: [type], body },
    config: { decode_rows: tail ? 'tail' : 'full' },
    merges: true,
    note: `by hand, ${dialect.name}`,
  };
}

// ---- messages of the simulated engine

function bySimulation(random: Random): Messages {
  const path = random.pick([COMPLETIONS, CHAT, GENERATE]);
  const tail = random.chance(0.5);
  const connector = tail ? 'shared_storage' : random.pick(['nixl', 'shared_storage'] as const);
  const stream = random.chance(0.25);
  const n = random.chance(0.7) ? 1 : 2;
  const sampling = { max_tokens: random.between(1, 5), n, ...(n > 1 ? { temperature: 1 } : {}) };
  const prompt = Array.from({ length: random.between(1, 20) }, () => 3 + random.below(400));
  const streaming = stream ? { stream: true, stream_options: { include_usage: true } } : {};
  const request =
    path === GENERATE
      ? { token_ids: prompt, sampling_params: sampling, ...streaming }
      : path === CHAT
        ? { messages: [{ role: 'user', content: 'one two three' }], ...sampling, ...streaming }
        : { prompt, ...sampling, ...streaming };
  const text = JSON.stringify(request);
  const fleet = new Fleet();
  const shared = {
    fleet,
    connector,
    version: tail ? ('0.32' as const) : ('0.30' as const),
    model: { layers: random.between(1, 3), topK: random.between(1, 3), experts: random.pick([16, 300]) },
  };
  const shapes = {
    ...shared,
    model: { ...shared.model, dtype: shared.model.experts > 256 ? ('<u2' as const) : ('|u1' as const) },
  };
  const ask = (engine: SimulatedEngine, value: unknown) => {
    const reply = engine({
      method: 'POST',
      path,
      headers: [['content-type', 'application/json']],
      body: Buffer.from(JSON.stringify(value)),
    });
    // These roles answer at once.
    if (reply instanceof Promise) throw new Error('the simulated engine waits');
    const headers = reply.headers.filter(([name]) => name !== 'content-length');
    return { headers, body: Buffer.concat(reply.chunks).toString('latin1') };
  };
  const asked = readRequest('POST', path, Buffer.from(text))!;
  const prefill = ask(createEngine({ ...shapes, role: 'prefill' }), prefillLeg(asked, connector));
  const brought = readPrefill(Buffer.from(prefill.body, 'latin1'))!;
  const leg = decodeLeg(
    asked,
    connector,
    JSON.parse(brought.params ?? 'null'),
    tail ? brought.promptTokens : null,
  );
  const decode = ask(createEngine({ ...shapes, role: 'decode', promptRows: 'stale' }), leg);
  return {
    path,
    request: text,
    prefill,
    decode,
    config: { connector, decode_rows: tail ? 'tail' : 'full' },
    // Streams of the other endpoints have no routing.
    merges: !stream || path === GENERATE,
    note: `simulated${stream ? ' stream' : ''}`,
  };
}

// ---- captured messages

let captures: Capture[] | undefined;

function byCapture(random: Random): Messages {
  captures ??= captureNames().map(loadCapture);
  const { name, prefill, decode, oracle } = random.pick(captures);
  const tail = name.startsWith('v032');
  const body = ({ body, headers }: { body: Buffer; headers: Header[] }) => ({
    headers: headers.filter(([key]) => key === 'content-type'),
    body: body.toString('latin1'),
  });
  return {
    path: oracle.request.path,
    request: oracle.request.body.toString('latin1'),
    prefill: body(prefill.response),
    decode: body(decode.response),
    config: tail ? { connector: 'shared_storage', decode_rows: 'tail' } : {},
    merges: !/batch2|prompt_logprobs/.test(name),
    note: name,
  };
}

// ---- a case

const FAULTS = ['reset', 'reset_body', 'stall', 'stall_body'] as const;

export function caseOf(seed: number): FuzzCase {
  const random = new Random(seed);
  // Neighbouring seeds begin alike.
  for (let i = 0; i < 3; i++) random.next();
  const from = random.pick([byHand, byHand, byHand, bySimulation, bySimulation, byCapture]);
  const messages = from(random);
  const notes = [messages.note];
  let { request } = messages;
  let [prefillText, decodeText] = [messages.prefill.body, messages.decode.body];
  const damage = random.chance(0.12) ? 0 : random.between(1, 3);
  const stream = isStream(messages.decode.headers);
  for (let i = 0; i < damage; i++) {
    const which = random.next();
    const damaged = (leg: string, [text, note]: [string, string]) => {
      notes.push(`${leg}: ${note}`);
      return text;
    };
    if (which < 0.15) request = damaged('request', mutate(random, request));
    else if (which < 0.45) prefillText = damaged('prefill', mutate(random, prefillText));
    else
      decodeText = damaged('decode', stream ? mutateStream(random, decodeText) : mutate(random, decodeText));
  }
  const downstream: Protocol = random.chance(0.5) ? 'http1' : 'http2';
  const upstream: Protocol = random.chance(0.5) ? 'http1' : 'http2';
  const headsDamaged = random.chance(0.1);
  const reply = (text: string, headers: Header[], first: boolean): Reply => {
    const out = replyOf(random, text, headers);
    if (headsDamaged && random.chance(0.5)) notes.push(damageHead(random, out));
    if (first && random.chance(0.02)) {
      out.fault = random.pick(FAULTS);
      notes.push(`prefill: ${out.fault}`);
    }
    return out;
  };
  const prefill: FuzzCase['prefill'] = [reply(prefillText, messages.prefill.headers, true)];
  if (random.chance(0.04)) {
    const failed = random.pick<Reply | 'down'>([
      'down',
      replyOf(random, '{"error":{}}', [['content-type', 'application/json']], 500),
      replyOf(random, 'x', [], 200),
    ]);
    prefill.unshift(failed);
    notes.push('prefill: fails first');
  }
  const decode = reply(decodeText, messages.decode.headers, false);
  if (random.chance(0.03)) {
    decode.fault = random.pick(FAULTS);
    notes.push(`decode: ${decode.fault}`);
  }
  const leaves = random.chance(0.03);
  if (leaves) notes.push('leaves');
  const body = Buffer.from(request, 'latin1');
  const clean =
    damage === 0 &&
    messages.merges &&
    !headsDamaged &&
    !leaves &&
    !decode.fault &&
    prefill.length === 1 &&
    (prefill[0] as Reply).fault === undefined;
  const hold_bytes = random.pick([0, 0, 1, 64, 300, 1000, 1 << 20]);
  // Heads that are not held: what can't be merged is reset.
  const pass = random.chance(0.15);
  const prefillConfig = { retries: random.below(2), timeout_ms: 1000 };
  return {
    seed,
    clean,
    config: {
      ...messages.config,
      on_unmergeable: random.pick(pass ? ['reject', 'forward'] : ['reject', 'null', 'forward']),
      on_prefill_failure: random.pick(['decode', 'reject']),
      hold_bytes,
      ...(random.chance(0.2) ? { max_hold_bytes: Math.max(hold_bytes, random.pick([0, 200, 2000])) } : {}),
      ...(pass ? { headers: 'pass' } : {}),
      ...(random.chance(0.1) ? { max_capture_bytes: 10 } : {}),
      ...(random.chance(0.1) ? { max_parked_bytes: 10 } : {}),
      prefill: prefillConfig,
    },
    path: messages.path,
    headers: [
      ['content-type', 'application/json'],
      ...(random.chance(0.7) ? [['content-length', String(body.length)] as Header] : []),
      ['x-request-id', 'fuzz'],
    ],
    body: request,
    pieces: random.chance(0.6) ? [] : random.cuts(body.length, random.between(1, 200)),
    ...(random.chance(0.05) && downstream === 'http2' ? { trailers: [['x-end', '1']] } : {}),
    prefill,
    decode,
    downstream,
    upstream,
    ...(leaves
      ? { leave: random.pick<'prefill' | 'decode' | number>(['prefill', 'decode', 0, 1, random.below(500)]) }
      : {}),
    notes,
  };
}

function replyOf(random: Random, text: string, headers: Header[], status = 200): Reply {
  const length = Buffer.byteLength(text, 'latin1');
  const announced = random.chance(0.6);
  const largest = random.pick([1, 3, 7, 20, 64, 200, 1000]);
  return {
    status,
    headers: [...headers, ...(announced ? [['content-length', String(length)] as Header] : [])],
    body: text,
    pieces: random.chance(0.3) || length > largest * 400 ? [] : random.cuts(length, largest),
    ...(!announced && random.chance(0.05) ? { trailers: [['x-end', '1']] as Header[] } : {}),
  };
}

function damageHead(random: Random, reply: Reply): string {
  switch (random.below(4)) {
    case 0:
      reply.status = random.pick([201, 299, 302, 400, 404, 429, 500, 503, 504]);
      return `status ${reply.status}`;
    case 1: {
      const value = random.pick(['gzip', 'identity', '', 'br', 'Identity']);
      reply.headers.push(['content-encoding', value]);
      return `content-encoding ${value}`;
    }
    case 2:
      reply.headers.push(['x-routed-experts', 'merged; rows=1; choices=1']);
      return 'x-routed-experts';
    default: {
      const value = random.pick(['text/event-stream', 'text/plain', 'TEXT/EVENT-STREAM;x', '']);
      reply.headers = [...reply.headers.filter(([name]) => name !== 'content-type'), ['content-type', value]];
      return `content-type ${value}`;
    }
  }
}
