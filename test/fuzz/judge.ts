// Judges a result: it must have the outcome that the reference allows, or be a refusal; anything
// else is a find.

import { isDeepStrictEqual } from 'node:util';
import type { Result } from '../scenario.ts';
import { aloneVerdict } from './alone.ts';
import type { FuzzCase, Reply } from './case.ts';
import {
  aloneOf,
  askedOf,
  broughtAtLeast,
  broughtOf,
  encoded,
  events,
  good,
  isTail,
  lacksHandshake,
  lastIsDecodes,
  rulesOf,
  servedBy,
  tooLarge,
  value,
} from './exchange.ts';
import { parse, read } from './json.ts';
import { isConcurrent } from './legs.ts';
import { NOTHING, rowCount, withoutValues, type Brought } from './prefill.ts';
import * as reference from './reference.ts';
import { sentWrong } from './sent.ts';
import { soleEdits } from './sole.ts';
import { documentsOf, streamVerdict } from './streams.ts';

const OUTCOMES = ['merged', 'local', 'absent', 'unmerged', 'rejected', 'aborted'];
/**
 * Outcomes that are right even for a clean case: a bound of the configuration was reached, or
 * nothing tells two forms apart.
 */
const BOUNDS = /^(unmerged|rejected); reason=(hold|ambiguous)$/;

/** What is wrong with a result; null if nothing is. */
export function judge(of: FuzzCase, result: Result): string | null {
  const logged = result.logged ?? '';
  const outcome = logged.split(';', 1)[0]!;
  const counted = OUTCOMES.filter((name) => result.counters[`routed_experts.${name}`] !== undefined);
  if (counted.length !== 1 || counted[0] !== outcome || result.counters[`routed_experts.${outcome}`] !== 1)
    return `counted ${JSON.stringify(result.counters)}, logged ${logged}`;
  return (
    headOf(of, result, logged) ??
    sentWrong(of, result, outcome) ??
    validity(of, result) ??
    bodyOf(of, result, logged, outcome)
  );
}

/** The outcome header must come from the filter, whatever an engine sends under its name. */
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

// ---- what the client got

const parses = (text: string): boolean => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};

/** A response that was valid JSON must still be valid JSON, and so must each event of a stream. */
function validity(of: FuzzCase, { status, complete, body, decodeRequests }: Result): string | null {
  if (decodeRequests.length === 0) return null;
  if (of.decode === 'down' || of.decode.fault || status !== of.decode.status || !complete) return null;
  // An error response may be that of either leg, so it is not compared.
  if (encoded(of.decode) || !good(of.decode)) return null;
  // The body may hold values of prefill's reply. If that reply has NaN, which Python writes, so has
  // the body.
  if (!of.prefill.every((reply) => reply === 'down' || !/NaN|Infinity/.test(reply.body))) return null;
  const text = body.toString('latin1');
  if (!events(of.decode))
    return parses(of.decode.body) && !parses(text) ? 'the body is no JSON any more' : null;
  const documents = (of: string) => documentsOf(of).map(({ start, end }) => of.slice(start, end));
  if (!documents(of.decode.body).every(parses)) return null;
  return documents(text).every(parses) ? null : 'an event is no JSON any more';
}

function bodyOf(of: FuzzCase, result: Result, logged: string, outcome: string): string | null {
  const { decode } = of;
  const { complete, status, prefillRequests } = result;
  const body = result.body.toString('latin1');
  const faulty = decode === 'down' || decode.fault !== undefined || of.leave !== undefined;
  const wrong = cleanWrong(of, logged, outcome);
  if (wrong) return wrong;
  const by = servedBy(of, result);
  switch (outcome) {
    case 'aborted':
      return faulty ? null : 'nobody broke off';
    case 'rejected':
      return rejected(of, result);
    case 'local':
      if (by === 'both') return 'prefill did not fail';
      if (faulty) return null;
      if (status !== decode.status || !complete || body !== decode.body)
        return 'a local response was changed';
      return localWrong(of, decode);
    case 'absent':
      return absent(of, result, body, faulty);
    default:
  }
  if (faulty && !complete) return null;
  if (decode === 'down') return `${outcome} without decode`;
  if (!good(decode)) return `${outcome} of a ${decode.status}`;
  const alone = by !== 'both' && outcome === 'unmerged' ? unmergedAlone(of, decode, result, body) : null;
  if (by === 'decode') return outcome === 'merged' ? 'merged although decode was alone' : alone;
  if (by === 'unsure' && outcome === 'unmerged' && alone === null) return null;
  const brought = broughtAtLeast(of, prefillRequests.length);
  if (!brought) return `${outcome} although prefill failed`;
  if (outcome === 'merged') return merged(of, decode, brought, logged, body);
  // The outcome is `unmerged`.
  if (!complete || status !== decode.status) return 'a response that was let go is not whole';
  if (of.config['on_unmergeable'] === 'forward')
    return body === decode.body || (brought.values && events(decode) && isSameButValues(body, decode.body))
      ? null
      : 'a forwarded body was changed';
  if (of.config['on_unmergeable'] !== 'null') return 'unmerged under reject';
  return nulled(of, decode, brought, body);
}

/** Nothing is wrong with a clean case, so its outcome is known. */
function cleanWrong(of: FuzzCase, logged: string, outcome: string): string | null {
  const ends = of.ends ?? 'merged';
  if (!of.clean || outcome === ends || BOUNDS.test(logged) || tooLarge(of)) return null;
  // The report that nothing was cached may stand beyond the most bytes that the filter holds.
  if (ends === 'local' && of.config['max_hold_bytes'] !== undefined && logged.endsWith('reason=cached'))
    return null;
  return `a clean case: ${logged}, not ${ends}`;
}

// ---- what decode served alone

/** Why the arrays of a response that decode served alone may not pass; null if they may. */
function localWrong(of: FuzzCase, decode: Reply): string | null {
  // An empty body is no request, and no engine replies to it with arrays.
  if (!good(decode) || of.body === '') return null;
  const alone = aloneOf(of);
  const type = value(decode.headers, 'content-type') ?? '';
  const readable = (/^application\/json/i.test(type) || events(decode)) && !encoded(decode);
  if (!alone.counted && !readable) return null;
  if (encoded(decode)) return decode.body === '' ? null : 'a compressed body passed as local';
  const { merged, why } = aloneVerdict(decode.body, events(decode), alone);
  return merged.length > 0 ? null : `local, but ${why}`;
}

function unmergedAlone(of: FuzzCase, decode: Reply, { status, complete }: Result, body: string) {
  if (!complete || status !== decode.status) return 'a response that was let go is not whole';
  if (of.config['on_unmergeable'] === 'forward')
    return body === decode.body ? null : 'a forwarded body was changed';
  if (of.config['on_unmergeable'] !== 'null') return 'unmerged under reject';
  if (encoded(decode)) return 'a compressed body was edited';
  if (!events(decode))
    return body === aloneVerdict(decode.body, false, aloneOf(of)).nulled
      ? null
      : 'not every value is null, or more than them changed';
  return nulledEvents(decode.body, body, NOTHING, true);
}

// ---- what both legs made

function rejected(of: FuzzCase, result: Result): string | null {
  const { complete, status, body, headers, prefillRequests } = result;
  if (!complete) return null;
  if (status < 400) return `a rejected exchange has status ${status} and a whole body`;
  const said = JSON.parse(body.toString()) as { error?: FilterError } & FilterError;
  // On `/generate` SGLang's errors have nothing but a message.
  const error = said.error ?? said;
  const right = (error.code ?? status) === status && error.message.length > 0;
  const named = /connector: nixl/.test(error.message);
  if (
    lacksHandshake(of, broughtOf(of, prefillRequests.length)) &&
    !named &&
    !tooLarge(of) &&
    !of.config['max_capture_bytes']
  )
    return 'an error that does not name the setting';
  return right && value(headers, 'content-type') === 'application/json' ? null : 'an error of another shape';
}

interface FilterError {
  message: string;
  code?: number;
}

function absent(of: FuzzCase, result: Result, body: string, faulty: boolean): string | null {
  const { decode } = of;
  const tried = result.prefillRequests.length;
  const reply = of.prefill[Math.min(tried, of.prefill.length) - 1];
  const answers = tried > 0 && reply && reply !== 'down' && !reply.fault;
  const refused = answers && reply.status >= 400 && reply.status < 500;
  // If both legs run at the same time, decode's error may have come first.
  const first = isConcurrent(of.config) && decode !== 'down' && !good(decode);
  if (refused && result.status === reply.status && body === reply.body) return null;
  if (refused && !first) return "prefill's answer was changed";
  if (faulty || decode === 'down') return null;
  const brought = broughtAtLeast(of, tried);
  const same = body === decode.body || (brought?.values && isSameButValues(body, decode.body));
  if (result.status !== decode.status || !same || !result.complete) return 'an absent response was changed';
  if (!good(decode) || body === '') return null;
  if (!brought) return 'absent although prefill failed';
  // The filter may refuse a value of prefill that the reference accepts and would insert where
  // decode has none, or have no room for it.
  const bare = (brought.split !== null || tooLarge(of)) && verdict(of, decode, NOTHING).absent;
  return bare || verdict(of, decode, brought).absent ? null : 'routing was taken for absent';
}

function expectedOf(of: FuzzCase, brought: Brought): reference.Expected {
  const asked = askedOf(of);
  return {
    brought,
    prompts: Math.max(asked?.batch ?? 1, 1),
    n: asked?.n ?? 1,
    maxTokens: asked?.maxTokens ?? -1,
    tail: isTail(of),
    last: lastIsDecodes(of),
    rules: rulesOf(of),
  };
}

function verdict(of: FuzzCase, decode: Reply, brought: Brought): reference.Verdict {
  const body = Buffer.from(decode.body, 'latin1');
  const expected = expectedOf(of, brought);
  return events(decode) ? streamVerdict(body, expected) : reference.verdictOf(body, expected);
}

/** Rewrites base64 so that the bits that encode no byte are zero. */
const canonical = (text: string) =>
  text.replace(
    /"([A-Za-z0-9+/]{16,}={0,2})"|(?<="(?:routed_experts|data)"\s*:\s*)"([A-Za-z0-9+/]+={0,2})"/g,
    (_, long?: string, short?: string) => `"${Buffer.from(long ?? short!, 'base64').toString('base64')}"`,
  );

function merged(of: FuzzCase, decode: Reply, brought: Brought, logged: string, body: string): string | null {
  if (encoded(decode)) return 'a compressed body was merged';
  const { merged: allowed, why } = verdict(of, decode, brought);
  if (allowed.length === 0) return `merged, but ${why}`;
  // Rows that are put in are prefill's characters, whatever the last of them has behind its bytes.
  const prefilled = of.prefill.flatMap((reply) => (reply === 'down' ? [] : [reply.body]));
  const loose = [decode.body, ...prefilled, ...reference.filled(decode.body, brought)].some(
    (sent) => canonical(sent) !== sent,
  );
  const same = (right: string) =>
    right === body ||
    (loose && canonical(right) === canonical(body)) ||
    (brought.values && isSameButValues(right, body));
  const found = allowed.find((each) => same(each.body));
  if (!found) return 'another merge than the reference’s';
  const says = `merged; rows=${rowCount(brought)}; choices=${found.choices}`;
  return logged === says || says.startsWith(`${logged};`) ? null : `logged ${logged}, not ${says}`;
}

/**
 * Whether two bodies, each a whole document or a stream, differ only in values that are taken from
 * prefill.
 */
function isSameButValues(a: string, b: string): boolean {
  const documents = (text: string) =>
    parse(text) ? [text] : documentsOf(text).map(({ start, end }) => text.slice(start, end));
  const values = (text: string) => documents(text).map((each) => withoutValues(read(canonical(each))));
  return isDeepStrictEqual(values(a), values(b));
}

function nulled(of: FuzzCase, decode: Reply, brought: Brought, body: string): string | null {
  if (encoded(decode)) return 'a compressed body was edited';
  const expected = verdict(of, decode, brought);
  if (expected.nulled === null) return `edited, but ${expected.why}`;
  if (!events(decode))
    return body === expected.nulled ? null : 'not every value is null, or more than them changed';
  return nulledEvents(decode.body, body, brought, false, expectedOf(of, brought));
}

/**
 * Each array of an event must be null, or merged as if it were the only one. With `alone` it must
 * be null or unchanged.
 */
function nulledEvents(
  sent: string,
  got: string,
  brought: Brought,
  alone: boolean,
  expected: reference.Expected | null = null,
): string | null {
  const [was, is] = [documentsOf(sent), documentsOf(got)];
  if (was.length !== is.length) return 'events are lost';
  const around = (text: string, of: { start: number; end: number }[]) =>
    [
      ...of.map(({ start }, i) => text.slice(of[i - 1]?.end ?? 0, start)),
      text.slice(of.at(-1)?.end ?? 0),
    ].join('\0');
  if (!brought.values && around(sent, was) !== around(got, is)) return 'bytes between events changed';
  if (brought.values) return null;
  for (const [i, { start, end }] of was.entries()) {
    const out = got.slice(is[i]!.start, is[i]!.end);
    const own = sent.slice(start, end);
    const root = expected && parse(own);
    const sole = root ? [reference.edited(own, soleEdits(own, root, expected, true))] : [];
    const right = [own, ...sole, ...reference.filled(own, brought)].some(
      (each) =>
        reference.nullsOrMerges(each, out, brought, alone) ||
        reference.nullsOrMerges(canonical(each), canonical(out), brought, alone),
    );
    if (!right) return 'an array is neither null nor merged';
  }
  return null;
}
