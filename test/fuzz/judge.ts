// Whether a result is what the reference allows: its outcome, or a refusal; never anything else.

import { isDeepStrictEqual } from 'node:util';
import type { EngineRequest, Header, Result } from '../scenario.ts';
import { GENERATE } from '../scenarios/messages.ts';
import type { FuzzCase, Reply } from './case.ts';
import { all, build, parse, read, type Node } from './json.ts';
import {
  BOOTSTRAP,
  REMOTE_DECODE,
  decodeLeg,
  isConcurrent,
  localLeg,
  prefillLeg,
  readRequest,
  type ConnectorName,
  type Json,
} from './legs.ts';
import * as reference from './reference.ts';

const OUTCOMES = ['merged', 'local', 'absent', 'unmerged', 'rejected', 'aborted'];
/** What the filter may say of a case without damage: bounds of the configuration, and forms that nothing tells apart. */
const BOUNDS = /^(unmerged|rejected); reason=(hold|ambiguous)$/;

const value = (headers: Header[], wanted: string) => headers.find(([name]) => name === wanted)?.[1];
const good = ({ status }: Reply) => status >= 200 && status <= 299;
const encoded = ({ headers }: Reply) =>
  headers.some(
    ([name, text]) => name === 'content-encoding' && text !== '' && text.toLowerCase() !== 'identity',
  );
const events = ({ headers }: Reply) => /^text\/event-stream/i.test(value(headers, 'content-type') ?? '');

/** What is wrong with a result; null: nothing. */
export function judge(of: FuzzCase, result: Result): string | null {
  const logged = result.logged ?? '';
  const outcome = logged.split(';', 1)[0]!;
  const counted = OUTCOMES.filter((name) => result.counters[`routed_experts.${name}`] !== undefined);
  if (counted.length !== 1 || counted[0] !== outcome || result.counters[`routed_experts.${outcome}`] !== 1)
    return `counted ${JSON.stringify(result.counters)}, logged ${logged}`;
  return (
    headOf(of, result, logged) ??
    legsOf(of, result, outcome) ??
    validity(of, result) ??
    bodyOf(of, result, logged, outcome)
  );
}

/** The outcome header is the filter's, whatever an engine says. */
function headOf(of: FuzzCase, { headers, status, complete }: Result, logged: string): string | null {
  const said = headers.filter(([name]) => name === 'x-routed-experts');
  if (said.length > 1) return 'two outcome headers';
  const [, text] = said[0] ?? [];
  if (text === undefined) return null;
  const spliced = of.decode !== 'down' && events(of.decode) && !encoded(of.decode);
  if (spliced && status === 200 && !/^(local|absent|rejected)/.test(text))
    return `a stream's head says ${text}`;
  if (!complete) return null;
  return logged === text || logged.startsWith(`${text}; choices=`)
    ? null
    : `the head says ${text}, the log ${logged}`;
}

// ---- what the engines were sent

const jsonOf = ({ body }: EngineRequest): unknown => read(body.toString('latin1'));
const connectorOf = ({ config }: FuzzCase) => String(config['connector'] ?? 'nixl') as ConnectorName;
const askedOf = (of: FuzzCase) => readRequest(of.path, Buffer.from(of.body, 'latin1'), connectorOf(of));

function legsOf(of: FuzzCase, result: Result, outcome: string): string | null {
  const body = Buffer.from(of.body, 'latin1');
  const asked = askedOf(of);
  const [prefilled, decoded] = [result.prefillRequests, result.decodeRequests];
  const connector = connectorOf(of);
  const readable = parse(of.body)?.kind === 'object';
  if (decoded.length > 1) return 'decode was asked twice';
  // Envoy tries a call again, and the filter makes another.
  const { retries } = of.config['prefill'] as { retries: number };
  if (prefilled.length > (1 + retries) ** 2) return 'too many tries';
  const own = ownOf(of, prefilled, decoded);
  if (typeof own === 'string') return own;
  if (prefilled.length > 0) {
    if (!readable) return 'prefill was sent what is no JSON object';
    if (asked) {
      if (!asked.fit) return 'P/D served what it must not';
      const leg = prefillLeg(asked, own.prefill);
      for (const request of prefilled) {
        if (!isPrefillLeg(jsonOf(request), leg, of.path))
          return `prefill was sent ${request.body.toString('latin1')}`;
      }
    }
  } else if (
    of.prefill[0] !== 'down' &&
    of.leave === undefined &&
    asked?.fit &&
    !of.notes.some((note) => note.startsWith('request')) &&
    outcome !== 'rejected' &&
    !result.counters['routed_experts.prefill_failures']
  )
    return 'P/D did not serve what it can';
  const [request] = decoded;
  if (!request) return null;
  if (!readable) return request.body.equals(body) ? null : 'a body that is no JSON object was changed';
  const sent = ownIn(request.body, of.path, connector);
  if (isConcurrent(connector) && prefilled.length > 0) {
    if (sent.length !== Object.keys(own.decode).length) return `decode was sent ${sent.join()}`;
    if (!asked || isDeepStrictEqual(jsonOf(request), decodeLeg(asked, own.decode, null))) return null;
    return `decode was sent ${request.body.toString('latin1')}`;
  }
  const brought = broughtOf(of, prefilled.length);
  // Broken off, it does not say whether prefill's rows were too large.
  if (outcome === 'aborted' && tooLarge(of) && asked && sent.length === 0) {
    if (isDeepStrictEqual(jsonOf(request), localLeg(asked))) return null;
  }
  if (outcome === 'local' || servesAlone(of, brought)) {
    if (sent.length > 0) return `decode alone was sent ${sent.join()}`;
    if (asked && !isDeepStrictEqual(jsonOf(request), localLeg(asked)))
      return `decode alone was sent ${request.body.toString('latin1')}`;
    return null;
  }
  if (!brought) return 'decode was asked after a prefill that failed';
  if (connector === 'nixl' ? sent.length !== 1 || sent[0] !== brought.params : sent.length > 0)
    return `decode was sent ${sent.join()}`;
  if (!asked) return null;
  const params = connector === 'nixl' ? { kv_transfer_params: read(brought.params ?? 'null') } : {};
  const leg = decodeLeg(asked, params, of.config['decode_rows'] === 'tail' ? brought.promptTokens : null);
  return isDeepStrictEqual(jsonOf(request), leg)
    ? null
    : `decode was sent ${request.body.toString('latin1')}`;
}

const paramsOf = (request: EngineRequest | undefined): Json | undefined =>
  request && ((jsonOf(request) as Json | undefined)?.['kv_transfer_params'] as Json | undefined);

/** Members that only the connector sets: they follow from what prefill was sent. A text says what is wrong with them. */
function ownOf(
  of: FuzzCase,
  prefilled: EngineRequest[],
  decoded: EngineRequest[],
): { prefill: Json; decode: Json } | string {
  const connector = connectorOf(of);
  const first = prefilled[0];
  if (connector === 'nixl') return { prefill: { kv_transfer_params: REMOTE_DECODE }, decode: {} };
  if (!isConcurrent(connector) || !first) return { prefill: {}, decode: {} };
  const { bootstrap_host: host, bootstrap_port: port } = of.config['prefill'] as Json;
  const sent = jsonOf(first) as Json;
  if (connector === 'sglang') {
    const rooms = ownIn(first.body, of.path, connector).at(-1) ?? '';
    const batch = askedOf(of)?.batch ?? 0;
    const texts = rooms.match(/\d+/g) ?? [];
    const form = batch > 0 ? /^\[\d+(,\d+)*\]$/ : /^\d+$/;
    const right = form.test(rooms) && texts.every((room) => BigInt(room) < 1n << 62n);
    if (!right || texts.length !== Math.max(batch, 1) || new Set(texts).size !== texts.length)
      return `rooms ${rooms}`;
    const each = (value: unknown) => (batch > 0 ? texts.map(() => value) : value);
    const own = {
      bootstrap_host: each(host),
      bootstrap_port: each(port),
      bootstrap_room: sent['bootstrap_room'],
    };
    return { prefill: own, decode: own };
  }
  const { transfer_id } = paramsOf(first)!;
  if (!/^xfer-[0-9a-f-]{36}$/.test(String(transfer_id))) return `transfer ${String(transfer_id)}`;
  const rank = value(first.headers, 'x-data-parallel-rank') ?? '';
  // Of a rank that is named twice, either id.
  const told = all(parse(of.bootstrap!.body)!, rank).map(
    (node) => (build(of.bootstrap!.body, node) as Json)?.['engine_id'],
  );
  const asked = paramsOf(decoded[0])?.['remote_engine_id'];
  const prefill = { do_remote_decode: true, do_remote_prefill: false, transfer_id };
  const decode = {
    do_remote_prefill: true,
    do_remote_decode: false,
    transfer_id,
    remote_bootstrap_addr: `http://${String(host)}:${String(port)}`,
    remote_engine_id: told.includes(asked) ? asked : told[0],
  };
  return { prefill: { kv_transfer_params: prefill }, decode: { kv_transfer_params: decode } };
}

/** A zero may become 1 where it was written in another way, such as 0.0. */
function isPrefillLeg(sent: unknown, leg: Json, path: string): boolean {
  const small = (value: unknown) => value === 0 || value === 1;
  const strip = (of: Json): Json =>
    Object.fromEntries(
      Object.entries(of).filter(([key, value]) => !(['n', 'min_tokens'].includes(key) && small(value))),
    );
  const comparable = (of: Json) =>
    path === GENERATE ? { ...of, sampling_params: strip(of['sampling_params'] as Json) } : strip(of);
  return isDeepStrictEqual(comparable(sent as Json), comparable(leg));
}

/** The text of every member that an engine could find and that only the connector may set. */
function ownIn(body: Buffer, path: string, connector: ConnectorName): string[] {
  const text = body.toString('latin1');
  const root = parse(text)!;
  const nested =
    path === GENERATE ? all(root, 'sampling_params').flatMap((each) => all(each, 'extra_args')) : [];
  const params = [root, ...all(root, 'vllm_xargs'), ...nested].flatMap((each: Node) =>
    all(each, 'kv_transfer_params'),
  );
  const bootstrap = connector === 'sglang' ? BOOTSTRAP.flatMap((key) => all(root, key)) : [];
  return [...params, ...bootstrap].map(({ start, end }) => text.slice(start, end));
}

/** What the last prefill reply brought; null when that failed. */
function broughtOf(of: FuzzCase, tries: number): reference.Brought | null {
  const reply = of.prefill[Math.min(tries, of.prefill.length) - 1];
  if (!reply || reply === 'down' || reply.fault || !good(reply) || encoded(reply)) return null;
  const lists = connectorOf(of) !== 'nixl' && connectorOf(of) !== 'mooncake';
  return reference.readPrefill(Buffer.from(reply.body, 'latin1'), lists, askedOf(of)?.start);
}

/** Of both legs at once, decode's response is there also when prefill's is not. */
const broughtAtLeast = (of: FuzzCase, tries: number): reference.Brought | null =>
  broughtOf(of, tries) ?? (isConcurrent(connectorOf(of)) ? reference.NOTHING : null);

// ---- what the client got

const parses = (text: string): boolean => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};

/** Valid JSON stays valid JSON, also in events. */
function validity(of: FuzzCase, { status, complete, body, decodeRequests }: Result): string | null {
  if (decodeRequests.length === 0) return null;
  if (of.decode === 'down' || of.decode.fault || status !== of.decode.status || !complete) return null;
  // Of an error either leg's may be it.
  if (encoded(of.decode) || !good(of.decode)) return null;
  // Values of prefill's may be in it; where its reply has NaN, which Python writes, so has the body.
  if (!of.prefill.every((reply) => reply === 'down' || !/NaN|Infinity/.test(reply.body))) return null;
  const text = body.toString('latin1');
  if (!events(of.decode))
    return parses(of.decode.body) && !parses(text) ? 'the body is no JSON any more' : null;
  const documents = (of: string) => reference.documentsOf(of).map(({ start, end }) => of.slice(start, end));
  if (!documents(of.decode.body).every(parses)) return null;
  return documents(text).every(parses) ? null : 'an event is no JSON any more';
}

function bodyOf(of: FuzzCase, result: Result, logged: string, outcome: string): string | null {
  const { decode } = of;
  const { complete, status, prefillRequests } = result;
  const body = result.body.toString('latin1');
  const faulty = decode === 'down' || decode.fault !== undefined || of.leave !== undefined;
  if (of.clean && outcome !== 'merged' && !BOUNDS.test(logged) && !tooLarge(of))
    return `a clean case: ${logged}`;
  switch (outcome) {
    case 'aborted':
      return faulty ? null : 'nobody broke off';
    case 'rejected':
      return rejected(result);
    case 'local': {
      const brought = prefillRequests.length > 0 ? broughtOf(of, prefillRequests.length) : null;
      // Only the array says how long the prompt is, and it is damaged: the filter may be stricter than the reference.
      const unsure = brought?.usage === -1 && of.notes.some((note) => note.startsWith('prefill'));
      if (!servesAlone(of, brought) && !tooLarge(of) && !unsure) return 'prefill did not fail';
      if (faulty) return null;
      return status === decode.status && complete && body === decode.body
        ? null
        : 'a local response was changed';
    }
    case 'absent':
      return absent(of, result, body, faulty);
    default:
  }
  if (faulty && !complete) return null;
  if (decode === 'down') return `${outcome} without decode`;
  const brought = broughtAtLeast(of, prefillRequests.length);
  if (!brought) return `${outcome} although prefill failed`;
  if (!good(decode)) return `${outcome} of a ${decode.status}`;
  if (outcome === 'merged') return merged(of, decode, brought, logged, body);
  // unmerged
  if (!complete || status !== decode.status) return 'a response that was let go is not whole';
  if (of.config['on_unmergeable'] === 'forward')
    return body === decode.body || (brought.values && events(decode) && isSameButValues(body, decode.body))
      ? null
      : 'a forwarded body was changed';
  if (of.config['on_unmergeable'] !== 'null') return 'unmerged under reject';
  return nulled(of, decode, brought, body);
}

/** Whether decode has to do without what this prefill reply brought, or did not. */
function servesAlone(of: FuzzCase, brought: reference.Brought | null): boolean {
  if (!brought) return true;
  const nixl = connectorOf(of) === 'nixl';
  return (
    (nixl && brought.params === null) || (of.config['decode_rows'] === 'tail' && brought.promptTokens === -1)
  );
}

/** Rows that there is no room for; other values of prefill's are not parked. */
const tooLarge = ({ config, prefill }: FuzzCase) =>
  config['max_capture_bytes'] !== undefined &&
  (config['max_parked_bytes'] !== undefined ||
    prefill.some(
      (reply) => reply !== 'down' && /prompt_(logprobs|tokens_details|routed_experts)/.test(reply.body),
    ));

function rejected({ complete, status, body, headers }: Result): string | null {
  if (!complete) return null;
  if (status < 400) return `a rejected exchange has status ${status} and a whole body`;
  const { error } = JSON.parse(body.toString()) as { error: { message: string; code: number } };
  const right = error.code === status && error.message.length > 0;
  return right && value(headers, 'content-type') === 'application/json' ? null : 'an error of another shape';
}

function absent(of: FuzzCase, result: Result, body: string, faulty: boolean): string | null {
  const { decode } = of;
  const tried = result.prefillRequests.length;
  const reply = of.prefill[Math.min(tried, of.prefill.length) - 1];
  const answers = tried > 0 && reply && reply !== 'down' && !reply.fault;
  const refused = answers && reply.status >= 400 && reply.status < 500;
  // Of both legs at once, decode's error may have come first.
  const first = isConcurrent(connectorOf(of)) && decode !== 'down' && !good(decode);
  if (refused && result.status === reply.status && body === reply.body) return null;
  if (refused && !first) return "prefill's answer was changed";
  if (faulty || decode === 'down') return null;
  const brought = broughtAtLeast(of, tried);
  const same = body === decode.body || (brought?.values && isSameButValues(body, decode.body));
  if (result.status !== decode.status || !same || !result.complete) return 'an absent response was changed';
  if (!good(decode) || body === '') return null;
  if (!brought) return 'absent although prefill failed';
  // The filter may be stricter about a value than the reference, which would put it where decode has nothing.
  const bare = brought.split !== null && verdict(of, decode, reference.NOTHING).absent;
  return bare || verdict(of, decode, brought).absent ? null : 'routing was taken for absent';
}

function verdict(of: FuzzCase, decode: Reply, brought: reference.Brought): reference.Verdict {
  const body = Buffer.from(decode.body, 'latin1');
  const asked = askedOf(of);
  const expected = {
    brought,
    prompts: Math.max(asked?.batch ?? 1, 1),
    n: asked?.n ?? 1,
    maxTokens: asked?.maxTokens ?? -1,
    tail: of.config['decode_rows'] === 'tail',
  };
  return events(decode) ? reference.streamVerdict(body, expected) : reference.verdictOf(body, expected);
}

/** Base64 with zeros in the bits that no byte needs. */
const canonical = (text: string) =>
  text.replace(
    /"([A-Za-z0-9+/]{16,}={0,2})"|(?<="(?:routed_experts|data)"\s*:\s*)"([A-Za-z0-9+/]+={0,2})"/g,
    (_, long?: string, short?: string) => `"${Buffer.from(long ?? short!, 'base64').toString('base64')}"`,
  );

function merged(
  of: FuzzCase,
  decode: Reply,
  brought: reference.Brought,
  logged: string,
  body: string,
): string | null {
  if (encoded(decode)) return 'a compressed body was merged';
  const { merged: allowed, why } = verdict(of, decode, brought);
  if (allowed.length === 0) return `merged, but ${why}`;
  const loose = [decode.body, ...reference.filled(decode.body, brought)].some(
    (sent) => canonical(sent) !== sent,
  );
  const same = (right: string) =>
    right === body ||
    (loose && canonical(right) === canonical(body)) ||
    (brought.values && isSameButValues(right, body));
  const found = allowed.find((each) => same(each.body));
  if (!found) return 'another merge than the reference’s';
  const says = `merged; rows=${reference.rowCount(brought)}; choices=${found.choices}`;
  return logged === says || says.startsWith(`${logged};`) ? null : `logged ${logged}, not ${says}`;
}

/** The same but for values that are prefill's: in documents of a stream, or a whole body. */
function isSameButValues(a: string, b: string): boolean {
  const documents = (text: string) =>
    parse(text) ? [text] : reference.documentsOf(text).map(({ start, end }) => text.slice(start, end));
  const values = (text: string) =>
    documents(text).map((each) => reference.withoutValues(read(canonical(each))));
  return isDeepStrictEqual(values(a), values(b));
}

function nulled(of: FuzzCase, decode: Reply, brought: reference.Brought, body: string): string | null {
  if (encoded(decode)) return 'a compressed body was edited';
  const expected = verdict(of, decode, brought);
  if (expected.nulled === null) return `edited, but ${expected.why}`;
  if (!events(decode))
    return body === expected.nulled ? null : 'not every value is null, or more than them changed';
  // An event's array is null, or merged as if it were alone.
  const [was, is] = [reference.documentsOf(decode.body), reference.documentsOf(body)];
  if (was.length !== is.length) return 'events are lost';
  const around = (text: string, of: { start: number; end: number }[]) =>
    [
      ...of.map(({ start }, i) => text.slice(of[i - 1]?.end ?? 0, start)),
      text.slice(of.at(-1)?.end ?? 0),
    ].join('\0');
  if (!brought.values && around(decode.body, was) !== around(body, is)) return 'bytes between events changed';
  for (const [i, { start, end }] of was.entries()) {
    const out = body.slice(is[i]!.start, is[i]!.end);
    const sent = decode.body.slice(start, end);
    if (brought.values) continue;
    const right = [sent, ...reference.filled(sent, brought)].some(
      (each) =>
        reference.nullsOrMerges(each, out, brought) ||
        reference.nullsOrMerges(canonical(each), canonical(out), brought),
    );
    if (!right) return 'an array is neither null nor merged';
  }
  return null;
}
