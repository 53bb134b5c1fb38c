// Creates a case from a seed: messages as engines write them (by hand, by the simulated engine, or
// from captures), then damage.

import { createEngine, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { captureNames, loadCapture, type Capture } from '../engine/replay.ts';
import type { Header, Protocol } from '../scenario.ts';
import { CHAT, COMPLETIONS, GENERATE, NATIVE } from '../scenarios/messages.ts';
import { Random } from '../unit/random.ts';
import { aloneByHand } from './alone_by_hand.ts';
import type { FuzzCase, Reply } from './case.ts';
import { choicesByHand } from './by_hand.ts';
import {
  decodeLeg,
  isBootstrapped,
  isConcurrent,
  prefillLeg,
  readRequest,
  REMOTE_DECODE,
  type ConnectorName,
} from './legs.ts';
import { JSON_TYPE, ranksOf, type Messages } from './messages.ts';
import { mutate, mutateStream } from './mutate.ts';
import { readPrefill } from './prefill.ts';
import { sglangByHand } from './sglang.ts';

const isStream = (headers: Header[]) =>
  headers.some(([name, value]) => name === 'content-type' && /^text\/event-stream/i.test(value));

// ---- messages of the simulated engine

function ask(engine: SimulatedEngine, path: string, value: unknown) {
  const reply = engine({
    method: 'POST',
    path,
    headers: JSON_TYPE,
    body: Buffer.from(JSON.stringify(value)),
  });
  // The roles used here reply without waiting for another engine.
  if (reply instanceof Promise) throw new Error('the simulated engine waits');
  const headers = reply.headers.filter(([name]) => name !== 'content-length');
  return { headers, body: Buffer.concat(reply.chunks).toString('latin1') };
}

function bySimulation(random: Random): Messages {
  const path = random.pick([COMPLETIONS, CHAT, GENERATE]);
  const tail = random.chance(0.5);
  const connector = tail ? 'shared_storage' : random.pick(['nixl', 'shared_storage'] as const);
  const format = random.pick(tail ? (['A', 'B'] as const) : (['A', 'B', 'C'] as const));
  const remotePrompt = random.pick(['invalid', 'null', 'missing'] as const);
  const stream = random.chance(0.25);
  const streamArrays = random.chance(0.5);
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
  const experts = format === 'A' ? random.pick([16, 300]) : 16;
  const shared = {
    fleet: new Fleet(),
    connector,
    format,
    streamArrays,
    ...(format === 'C' ? {} : { version: tail ? ('0.32' as const) : ('0.30' as const) }),
    split: {
      encoding: random.pick(['nested', 'base64'] as const),
      place: random.pick(['top', 'choice'] as const),
      remotePrompt,
    },
    model: {
      layers: random.between(1, 3),
      topK: random.between(1, 3),
      experts,
      dtype: experts > 256 ? ('<u2' as const) : ('|u1' as const),
    },
  };
  const asked = readRequest(path, Buffer.from(text), connector)!;
  const own = connector === 'nixl' ? { kv_transfer_params: REMOTE_DECODE } : {};
  const prefill = ask(createEngine({ ...shared, role: 'prefill' }), path, prefillLeg(asked, own));
  // vLLM 0.32 dies of a request for a tail that begins before the first generated row.
  const last = !tail && random.chance(0.2);
  const rules = { check: 'off' as const, model: null };
  const brought = readPrefill(Buffer.from(prefill.body, 'latin1'), { rules, last })!;
  const params = connector === 'nixl' ? { kv_transfer_params: JSON.parse(brought.params!) as unknown } : {};
  const leg = decodeLeg(asked, params, tail ? brought.seam : null);
  const decode = ask(createEngine({ ...shared, role: 'decode', promptRows: 'stale' }), path, leg);
  return {
    path,
    request: text,
    prefill,
    decode,
    config: {
      connector,
      decode_rows: tail ? 'tail' : 'full',
      ...(last ? { last_prompt_row: 'decode' } : {}),
    },
    model: { layers: shared.model.layers, top_k: shared.model.topK, experts },
    // Streams of the OpenAI endpoints carry no routing unless `streamArrays` is set, and a stream
    // of format C may have no place for the prompt rows.
    merges: (!stream || (format !== 'C' && (path === GENERATE || streamArrays))) && !(last && format === 'C'),
    note: `simulated ${format}${stream ? ' stream' : ''}`,
  };
}

/**
 * SGLang's prefill and decode wait for each other. So one oracle engine writes what each of them
 * would, for prompts of the same length.
 */
function bySglang(random: Random): Messages {
  const path = random.pick([NATIVE, COMPLETIONS]);
  const stream = random.chance(0.25);
  const length = random.between(1, 20);
  const requestOf = (tokens: number, streams: boolean) => {
    const prompt = Array.from({ length }, () => 3 + random.below(400));
    const more = { return_routed_experts: true, ...(streams ? { stream: true } : {}) };
    return path === NATIVE
      ? { input_ids: prompt, sampling_params: { max_new_tokens: tokens }, ...more }
      : { prompt, max_tokens: tokens, ...more };
  };
  // With a single expert per layer, a row of expert 0 could not be told from a row of zeros.
  const model = { layers: random.between(1, 3), topK: random.between(2, 3) };
  const engine = createEngine({ role: 'oracle', api: 'sglang', model });
  const tokens = random.between(1, 5);
  return {
    path,
    request: JSON.stringify(requestOf(tokens, stream)),
    prefill: ask(engine, path, requestOf(1, false)),
    decode: ask(engine, path, requestOf(tokens, stream)),
    config: { connector: 'sglang' },
    merges: true,
    note: `simulated SGLang${stream ? ' stream' : ''}`,
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
  // Neighbouring seeds give similar first numbers, so these are skipped.
  for (let i = 0; i < 3; i++) random.next();
  const from = random.pick([
    ...[choicesByHand, choicesByHand, choicesByHand, choicesByHand, sglangByHand, sglangByHand],
    ...[aloneByHand, aloneByHand],
    ...[bySimulation, bySimulation, bySglang, byCapture],
  ]);
  const messages = from(random);
  const notes = [messages.note];
  let { request } = messages;
  const rows = rowsConfig(random, messages);
  const { ends = 'merged' } = messages;
  let [prefillText, decodeText] = [messages.prefill.body, messages.decode.body];
  const damage = random.chance(0.2) ? 0 : random.between(1, 3);
  const stream = isStream(messages.decode.headers);
  if (stream && random.chance(0.1)) decodeText = `\xef\xbb\xbf${decodeText}`;
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
  if (messages.fails) {
    prefill[0] = random.pick<Reply | 'down'>(['down', replyOf(random, '{"error":{}}', JSON_TYPE, 500)]);
  } else if (random.chance(0.04)) {
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
  const connector = (messages.config['connector'] ?? 'nixl') as ConnectorName;
  const bootstrap = connector === 'mooncake' ? bootstrapOf(random, notes) : null;
  const body = Buffer.from(request, 'latin1');
  const encoding = random.chance(0.02) ? random.pick(['gzip', 'identity', 'br, gzip', 'Identity']) : null;
  if (encoding !== null) notes.push(`request: content-encoding ${encoding}`);
  // Some models are so short that prompt and generation exceed them.
  const limit = connector === 'sglang' || random.chance(0.9) ? null : random.between(1, 64);
  const clean =
    damage === 0 &&
    encoding === null &&
    messages.merges &&
    limit === null &&
    rows.fits &&
    !headsDamaged &&
    !leaves &&
    !decode.fault &&
    prefill.length === 1 &&
    !notes.includes(RANKS) &&
    (messages.fails || (prefill[0] as Reply).fault === undefined);
  const hold_bytes = random.pick([0, 0, 1, 64, 300, 1000, 1 << 20]);
  // With `headers: pass` the head is not held, so a response that cannot be merged is reset.
  const pass = !isConcurrent(messages.config) && random.chance(0.15);
  const prefillConfig = {
    retries: random.below(2),
    timeout_ms: 1000,
    // The filter remembers what a bootstrap server answered, so each case gets an address of its
    // own.
    ...(isBootstrapped(connector)
      ? { bootstrap_host: `p${seed}`, bootstrap_port: random.between(1, 65_535) }
      : {}),
  };
  const audit = auditOf(seed, prefillText, messages.prefill.headers);
  return {
    seed,
    clean,
    ...(ends === 'merged' ? {} : { ends }),
    config: {
      on_unmergeable: random.pick(pass ? ['reject', 'forward'] : ['reject', 'null', 'forward']),
      on_prefill_failure: random.pick(['decode', 'reject']),
      ...rows.config,
      ...messages.config,
      hold_bytes,
      ...(random.chance(0.2) ? { max_hold_bytes: Math.max(hold_bytes, random.pick([0, 200, 2000])) } : {}),
      ...(pass ? { headers: 'pass' } : {}),
      ...(limit === null ? {} : { max_model_len: limit }),
      ...(random.chance(0.1) ? { max_capture_bytes: 10 } : {}),
      ...(random.chance(0.1) ? { max_parked_bytes: 10 } : {}),
      prefill: prefillConfig,
    },
    path: messages.path,
    headers: [
      ['content-type', 'application/json'],
      ...(random.chance(0.7) ? [['content-length', String(body.length)] as Header] : []),
      ['x-request-id', 'fuzz'],
      ...(random.chance(0.2) ? [['accept-encoding', 'gzip'] as Header] : []),
      ...(encoding === null ? [] : [['content-encoding', encoding] as Header]),
    ],
    body: request,
    pieces: random.chance(0.6) ? [] : random.cuts(body.length, random.between(1, 200)),
    ...(random.chance(0.05) && downstream === 'http2' ? { trailers: [['x-end', '1']] } : {}),
    prefill,
    decode,
    ...(bootstrap ? { bootstrap } : {}),
    ...(audit ? { audit } : {}),
    downstream,
    upstream,
    ...(leaves
      ? { leave: random.pick<'prefill' | 'decode' | number>(['prefill', 'decode', 0, 1, random.below(500)]) }
      : {}),
    notes,
  };
}

/**
 * The part of the configuration that is about rows. `fits` means that all of it is right for the
 * model.
 */
function rowsConfig(random: Random, { model }: Messages): { config: Record<string, unknown>; fits: boolean } {
  const config: Record<string, unknown> = {};
  if (random.chance(0.5)) config['check_rows'] = random.pick(['sampled', 'all', 'off']);
  if (random.chance(0.1)) config['local_prefix_cache'] = 'fresh';
  let fits = true;
  if (model && random.chance(0.25)) {
    config['model'] = model;
    if (random.chance(0.2)) {
      const key = random.pick(['layers', 'top_k', 'experts'] as const);
      config['model'] = { ...model, [key]: Math.max(1, random.pick([model[key] - 1, model[key] + 1, 1])) };
      fits = false;
    }
  }
  return { config, fits };
}

/**
 * The reply to an audit, which is prefill's, or that damaged; undefined for cases that are not
 * audited. It is drawn apart from the case.
 */
function auditOf(seed: number, text: string, headers: Header[]): FuzzCase['audit'] {
  const random = new Random(seed ^ 0x5bd1e995);
  for (let i = 0; i < 3; i++) random.next();
  if (random.chance(0.5)) return undefined;
  const same = random.chance(0.4);
  let body = text;
  for (let i = same ? 0 : random.between(1, 3); i > 0; i--) body = mutate(random, body)[0];
  const reply = replyOf(random, body, headers);
  if (!same && random.chance(0.1)) damageHead(random, reply);
  if (!same && random.chance(0.05)) reply.fault = random.pick(FAULTS);
  return { reply, same };
}

const RANKS = 'bootstrap: damaged';

/** The reply of a bootstrap server, which is damaged now and then. */
function bootstrapOf(random: Random, notes: string[]): Reply {
  const damaged = random.chance(0.05);
  const ranks = ranksOf(random);
  if (damaged) notes.push(RANKS);
  const status = damaged && random.chance(0.5) ? random.pick([404, 500, 503]) : 200;
  return replyOf(random, damaged ? mutate(random, ranks)[0] : ranks, JSON_TYPE, status);
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
