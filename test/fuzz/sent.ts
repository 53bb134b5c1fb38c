// Checks for the judge that the engines were sent what they must be sent.

import { isDeepStrictEqual } from 'node:util';
import type { EngineRequest, Result } from '../scenario.ts';
import { CHAT, GENERATE } from '../scenarios/messages.ts';
import type { FuzzCase } from './case.ts';
import {
  askedOf,
  broughtOf,
  connectorOf,
  encoded,
  isSalted,
  isTail,
  jsonOf,
  lacksHandshake,
  lastIsDecodes,
  rulesOf,
  servedBy,
  tooLarge,
  value,
} from './exchange.ts';
import { all, build, parse, read, type Node } from './json.ts';
import {
  BOOTSTRAP,
  REMOTE_DECODE,
  asksSamples,
  decodeLeg,
  exceeds,
  isBootstrapped,
  isConcurrent,
  isServed,
  localLeg,
  prefillLeg,
  type Asked,
  type ConnectorName,
  type Json,
} from './legs.ts';
import { prefillFault, type Brought } from './prefill.ts';

/** What is wrong with what the engines were sent; null if nothing is. */
export function sentWrong(of: FuzzCase, result: Result, outcome: string): string | null {
  const body = Buffer.from(of.body, 'latin1');
  const asked = askedOf(of);
  const [prefilled, decoded] = [result.prefillRequests, result.decodeRequests];
  const connector = connectorOf(of);
  const readable = parse(of.body)?.kind === 'object';
  if (decoded.length > 1) return 'decode was asked twice';
  // An empty body has nothing that a content-encoding could hide, so the filter does not refuse it.
  if (isServed(of.path, connector) && encoded(of) && of.body !== '') {
    if (prefilled.length + decoded.length > 0) return 'an engine was sent a request with a content-encoding';
    return of.leave !== undefined || result.status === 415 ? null : `answered ${result.status}, not 415`;
  }
  if (connector === 'sglang' && asked && asksSamples(of.body, parse(of.body)!, of.path)) {
    if (prefilled.length + decoded.length > 0) return 'an engine was asked for several choices';
    return of.leave !== undefined || result.status === 400 ? null : `answered ${result.status}, not 400`;
  }
  const refused = asked?.fit ? refusedWrong(of, asked, result) : null;
  if (refused !== null) return refused === RIGHT ? null : refused;
  // Envoy retries each call, and the filter makes further calls itself.
  const { retries } = of.config['prefill'] as { retries: number };
  if (prefilled.length > (1 + retries) ** 2) return 'too many tries';
  const own = ownOf(of, prefilled, decoded);
  if (typeof own === 'string') return own;
  if (prefilled.length > 0) {
    if (!readable) return 'prefill was sent what is no JSON object';
    if (asked) {
      if (!asked.fit) return 'P/D served what it must not';
      for (const [i, request] of prefilled.entries()) {
        const leg = prefillLeg(asked, own.prefill[i]!);
        if (!isPrefillLeg(jsonOf(request), leg, of.path))
          return `prefill was sent ${request.body.toString('latin1')}`;
      }
    }
  } else if (
    of.prefill[0] !== 'down' &&
    of.leave === undefined &&
    asked?.fit &&
    asked.refusal.verdict === 'served' &&
    !of.notes.some((note) => note.startsWith('request')) &&
    outcome !== 'rejected' &&
    !result.counters['routed_experts.prefill_failures']
  )
    return 'P/D did not serve what it can';
  const [request] = decoded;
  if (!request) return null;
  if (!readable || !asked) return request.body.equals(body) ? null : 'a body that is no request was changed';
  if (value(request.headers, 'accept-encoding') !== undefined) return 'decode may compress its response';
  const sent = ownIn(request.body, of.path, connector);
  if (isConcurrent(of.config) && prefilled.length > 0) {
    if (sent.length !== Object.keys(own.decode).length) return `decode was sent ${sent.join()}`;
    if (isDeepStrictEqual(jsonOf(request), decodeLeg(asked, own.decode, null))) return null;
    return `decode was sent ${request.body.toString('latin1')}`;
  }
  const brought = broughtOf(of, prefilled.length);
  const by = servedBy(of, result);
  const alone = aloneWrong(of, asked, request);
  if (outcome === 'local' || by === 'decode') {
    if (lacksHandshake(of, brought) && !tooLarge(of) && asked.fit)
      return 'decode was asked although nothing was handed over';
    return alone;
  }
  if (by === 'unsure' && alone === null) return null;
  if (!brought) return 'decode was asked after a prefill that failed';
  if (brought.usage >= 0 && exceeds(asked, of.config, brought.usage))
    return alone === null && of.path === CHAT ? null : 'decode was asked for more than the model takes';
  if (
    connector === 'nixl'
      ? sent.length !== 1 || sent[0] !== brought.params
      : sent.length !== Object.keys(own.decode).length
  )
    return `decode was sent ${sent.join()}`;
  // The seam does not fit into a JavaScript number, so the reference does not know it.
  if (isTail(of) && !Number.isSafeInteger(brought.seam + 1)) return null;
  const params = connector === 'nixl' ? { kv_transfer_params: read(brought.params ?? 'null') } : own.decode;
  const leg = decodeLeg(asked, params, isTail(of) ? seamOf(of, brought) : null);
  return isDeepStrictEqual(jsonOf(request), leg)
    ? null
    : `decode was sent ${request.body.toString('latin1')}`;
}

const RIGHT = 'right';

/**
 * What is wrong with a request that vLLM would refuse although prefill could not tell; `RIGHT` if
 * the filter has refused it, null if it is to be served.
 */
function refusedWrong(of: FuzzCase, asked: Asked, result: Result): string | null {
  const { verdict } = asked.refusal;
  const sent = result.prefillRequests.length + result.decodeRequests.length;
  const answered = result.status === 400 && sent === 0;
  const tooLong = verdict === 'served' && exceeds(asked, of.config, Math.max(asked.tokens, 0));
  if (verdict === 'refused' || tooLong) {
    if (sent > 0) return 'an engine was sent what vLLM refuses';
    return of.leave !== undefined || answered ? RIGHT : `answered ${result.status}, not 400`;
  }
  // A token below zero is none, and vLLM refuses it, too; it may have been counted before that.
  const { prompt, token_ids: ids = prompt } = asked.value;
  const odd = Array.isArray(ids) && exceeds(asked, of.config, ids.length);
  const right = verdict !== 'served' || odd || !isUtf8(of.body);
  return answered && !right ? 'refused what vLLM serves' : null;
}

function isUtf8(latin1: string): boolean {
  try {
    new TextDecoder('utf8', { fatal: true }).decode(Buffer.from(latin1, 'latin1'));
    return true;
  } catch {
    return false;
  }
}

/**
 * The first row that decode is asked for. Nobody knows where rows end that are refused, so the
 * length of the prompt decides, as if prefill had sent none.
 */
function seamOf(of: FuzzCase, brought: Brought): number {
  const { seam, usage } = brought;
  if (usage < 0 || prefillFault(rulesOf(of), brought) === null) return seam;
  const start = askedOf(of)?.start ?? 0;
  return Math.max(lastIsDecodes(of) && usage > 0 ? usage - 1 : usage, start);
}

/** The salts of all cases in this process; each must be unique. */
const salts = new Set<unknown>();

/** What is wrong with a request that decode serves alone; null if nothing is. */
function aloneWrong(of: FuzzCase, asked: Asked, request: EngineRequest): string | null {
  const sent = jsonOf(request) as Json;
  const wrong = `decode alone was sent ${request.body.toString('latin1')}`;
  const added: Json = {};
  if (isSalted(of)) {
    const salt = sent['cache_salt'];
    // vLLM's `validate_cache_salt` must accept the salt, and it must be long enough to be unique.
    if (typeof salt !== 'string' || !/^[\w.-]{32,128}$/.test(salt)) return wrong;
    if (salts.has(salt)) return `the salt ${salt} was sent before`;
    salts.add(salt);
    added['cache_salt'] = salt;
    if (connectorOf(of) === 'shared_storage') {
      const { 'lmcache.tag.routed_experts': tag, ...rest } = (sent['kv_transfer_params'] ?? {}) as Json;
      if (typeof tag !== 'string' || !/^[A-Za-z0-9]{16,}$/.test(tag)) return wrong;
      if (!isDeepStrictEqual(rest, { 'lmcache.skip_save': true })) return wrong;
      added['kv_transfer_params'] = sent['kv_transfer_params'];
    }
  }
  if (!isDeepStrictEqual(sent, { ...localLeg(asked), ...added })) return wrong;
  // If no member had to be removed, every byte of the client's body stays where it was.
  if (ownIn(Buffer.from(of.body, 'latin1'), of.path, connectorOf(of)).length > 0) return null;
  if (asked.connector === 'sglang' && Object.keys(localLeg(asked)).length < Object.keys(asked.value).length)
    return null;
  return keepsBytes(of.body, request.body.toString('latin1'), added) ? null : wrong;
}

/**
 * Whether `is` is the document `was` with members inserted right after its opening brace, or with
 * the salt in the place of the client's.
 */
function keepsBytes(was: string, is: string, added: Json): boolean {
  if (Object.keys(added).length === 0) return was === is;
  const root = parse(was)!;
  const salted = all(root, 'cache_salt');
  // If the salt is given several times, all but the last are removed.
  if (salted.length > 1) return true;
  const [own] = salted;
  const { cache_salt: salt, ...others } = added;
  const inserted = own ? others : added;
  const text = own ? was.slice(0, own.start) + JSON.stringify(salt) + was.slice(own.end) : was;
  const at = root.start + 1;
  if (!is.startsWith(text.slice(0, at)) || !is.endsWith(text.slice(at))) return false;
  const between = is.slice(at, at + is.length - text.length);
  if (Object.keys(inserted).length === 0) return between === '';
  const comma = root.members.length > 0 ? ',' : '';
  return (
    between.endsWith(comma) &&
    isDeepStrictEqual(read(`{${between.slice(0, between.length - comma.length)}}`), inserted)
  );
}

const paramsOf = (request: EngineRequest | undefined): Json | undefined =>
  request && ((jsonOf(request) as Json | undefined)?.['kv_transfer_params'] as Json | undefined);

/**
 * The members that only the connector sets, which follow from what prefill was sent: of each
 * request to prefill, and of decode's. A string says what is wrong with them.
 */
function ownOf(
  of: FuzzCase,
  prefilled: EngineRequest[],
  decoded: EngineRequest[],
): { prefill: Json[]; decode: Json } | string {
  const connector = connectorOf(of);
  const first = prefilled[0];
  const each = (own: Json) => prefilled.map(() => own);
  if (connector === 'nixl') return { prefill: each({ kv_transfer_params: REMOTE_DECODE }), decode: {} };
  if (!isBootstrapped(connector) || !first) return { prefill: each({}), decode: {} };
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
    const one = (value: unknown) => (batch > 0 ? texts.map(() => value) : value);
    const own = {
      bootstrap_host: one(host),
      bootstrap_port: one(port),
      bootstrap_room: sent['bootstrap_room'],
    };
    return { prefill: each(own), decode: own };
  }
  const transfers = prefilled.map((request) => String(paramsOf(request)?.['transfer_id']));
  // A transfer is offered once, so a further try of the leg must name another.
  const right = transfers.every((id) => /^xfer-[0-9a-f-]{36}$/.test(id));
  if (!right || new Set(transfers).size !== transfers.length) return `transfers ${transfers.join()}`;
  const transfer_id = transfers.at(-1);
  const rank = value(prefilled.at(-1)!.headers, 'x-data-parallel-rank') ?? '';
  // If the bootstrap server names a rank twice, either id is right.
  const told = all(parse(of.bootstrap!.body)!, rank).map(
    (node) => (build(of.bootstrap!.body, node) as Json)?.['engine_id'],
  );
  const asked = paramsOf(decoded[0])?.['remote_engine_id'];
  const prefill = transfers.map((id) => ({
    kv_transfer_params: { do_remote_decode: true, do_remote_prefill: false, transfer_id: id },
  }));
  const decode = {
    do_remote_prefill: true,
    do_remote_decode: false,
    transfer_id,
    remote_bootstrap_addr: `http://${String(host)}:${String(port)}`,
    remote_engine_id: told.includes(asked) ? asked : told[0],
  };
  return { prefill, decode: { kv_transfer_params: decode } };
}

/**
 * Compares the request of the prefill leg with `leg`. A zero that is written in another way, such
 * as 0.0, may have become 1.
 */
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

/** The text of every member that an engine could read and that only the connector may set. */
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
