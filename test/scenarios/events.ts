// Bodies of type `text/event-stream` that are not quite event streams, or none at all. What a
// client can find in them is merged, or the stream is refused.

import { expect } from 'vitest';
import type { Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import {
  FULL,
  GENERATE,
  GOOD_PREFILL,
  PROMPT,
  answering,
  decodeBody,
  encoded,
  expectOutcome,
  merged,
  post,
  quoted,
} from './messages.ts';

const event = (text: string) => `data: ${text}\n\n`;
const MARK = '\ufeff';
const DONE = event('[DONE]');
const object = (array: string) => decodeBody([quoted(array)]);
const OBJECT = object(encoded(FULL));
const MERGED = object(merged(PROMPT, FULL));
const TOKEN = event('{"choices":[{"index":0,"token_ids":[1]}]}');
const PRETTY = JSON.stringify(JSON.parse(OBJECT), null, 2);
const SPLICED = { 'routed_experts.spliced_bytes': 30 };

const PIECES = [undefined, 1, 5];

function scenarioOf(
  name: string,
  body: string,
  pieces: number | undefined,
  more: Partial<Scenario> = {},
): Scenario {
  return {
    name,
    config: { prefill: { retries: 0 } },
    client: post('{"token_ids":[1,2,3,4,5],"sampling_params":{"max_tokens":3},"stream":true}', {
      path: GENERATE,
    }),
    prefill: answering(GOOD_PREFILL),
    decode: answering(body, {
      headers: [['content-type', 'text/event-stream; charset=utf-8']],
      contentLength: null,
      ...(pieces === undefined ? {} : { pieces }),
    }),
    ...more,
  };
}

const cases = (name: string, check: (result: Result) => void, scenario: (pieces?: number) => Scenario) =>
  PIECES.map((pieces): Case => ({
    name: `${name}, pieces of ${pieces ?? 'all'}`,
    scenario: () => scenario(pieces),
    check,
    // The salt of a request that decode serves alone.
    random: /"cache_salt":"[^"]*"/g,
  }));

const whole = (body: string, outcome: string, counters = {}) => {
  return (result: Result): void => {
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(body);
    expectOutcome(result, outcome, counters);
  };
};
const reset = (outcome: string, counters = {}) => {
  return (result: Result): void => {
    expect(result).toMatchObject({ status: 200, complete: false });
    expectOutcome(result, outcome, counters);
  };
};

/** The standard for event streams says that one byte order mark is not part of the first line. */
const marked: Case[] = [
  [MARK + event(OBJECT) + DONE, MARK + event(MERGED) + DONE],
  [`${MARK}\n\n${event(OBJECT)}`, `${MARK}\n\n${event(MERGED)}`],
  [`${MARK}: ping\r\n\r\ndata:${OBJECT}\r\n\r\n`, `${MARK}: ping\r\n\r\ndata:${MERGED}\r\n\r\n`],
].flatMap(([body, out], i) => {
  const name = `a byte order mark, ${i}`;
  return cases(name, whole(out!, 'merged; rows=5; choices=1', SPLICED), (pieces) =>
    scenarioOf(name, body!, pieces),
  );
});

/** No field name begins with these bytes, so an array behind them belongs to no event. */
const otherMarks: Case[] = [`\xef${event(OBJECT)}`, `\xef\xbb${event(OBJECT)}`].flatMap((text, i) => {
  const body = Buffer.from(text, 'latin1');
  return cases(
    `some of a byte order mark, ${i}`,
    (result) => {
      expect(result.complete).toBe(true);
      expect(result.body).toEqual(body);
      expectOutcome(result, 'absent');
    },
    (pieces) => ({
      ...scenarioOf('some', '', pieces),
      decode: answering(body, {
        headers: [['content-type', 'text/event-stream']],
        contentLength: null,
        ...(pieces === undefined ? {} : { pieces }),
      }),
    }),
  );
});

interface Refused {
  name: string;
  body: string;
}

const REFUSED: Refused[] = [
  { name: 'a JSON document', body: OBJECT },
  { name: 'a JSON document behind a mark', body: MARK + OBJECT },
  { name: 'a JSON document in many lines, behind white space', body: `\r\n \t\n\t ${PRETTY}` },
  { name: 'a list', body: `[${OBJECT}]` },
  { name: 'documents in lines of their own', body: `${TOKEN}${OBJECT}\n${OBJECT}\n` },
  { name: 'an event that is a list', body: TOKEN + event(`[${OBJECT}]`) + DONE },
  { name: 'an event that is a list, without a space', body: `data:[${OBJECT}]\n\n` },
  { name: 'an event that is a list, behind white space', body: `data: \t [ ${OBJECT} ]\n\n` },
  { name: 'an event that is a list in several lines', body: `data: [\ndata: ${OBJECT}\ndata: ]\n\n` },
  { name: 'an event that is an empty list', body: event('[]') + event(OBJECT) },
];

const refused: Case[] = REFUSED.flatMap(({ name, body }) =>
  ['reject', 'null', 'forward'].flatMap((policy) =>
    cases(
      `${name}: ${policy}`,
      policy === 'forward' ? whole(body, 'unmerged; reason=format') : reset('rejected; reason=format'),
      (pieces) => scenarioOf(name, body, pieces, { config: { on_unmergeable: policy } }),
    ),
  ),
);

/**
 * Prefill's rows have already left, so the rest of the stream must not go on as if nothing were
 * missing.
 */
const late: Case[] = cases(
  'a list behind an array that was merged: forward',
  reset('rejected; reason=format'),
  (pieces) =>
    scenarioOf('late', event(OBJECT) + event('[1]') + DONE, pieces, {
      config: { on_unmergeable: 'forward' },
    }),
);

const cachedTokens = (n: number) =>
  OBJECT.replace('"completion_tokens"', `"prompt_tokens_details":{"cached_tokens":${n}},"completion_tokens"`);
const element = (cached: number) =>
  `{"text":"x","meta_info":{"prompt_tokens":5,"completion_tokens":3,"cached_tokens":${cached}}}`;
const FAILED = { 'routed_experts.prefill_failures': 1 };

/**
 * Responses that decode serves alone are read in the same way. An event that is a list does not end
 * them, because no rows of prefill have to go into it.
 */
const alone: Case[] = [
  ...[
    ['behind a mark', MARK + event(cachedTokens(0)) + DONE],
    ['an event that is a list', event('[ 1,{"a":[]}]') + event(`[${element(0)}]`) + event('["D"]') + DONE],
  ].flatMap(([name, body]) =>
    cases(`decode alone, ${name}`, whole(body!, 'local', FAILED), (pieces) =>
      scenarioOf(name!, body!, pieces, { prefill: 'down' }),
    ),
  ),
  ...[
    ['behind a mark', 'cached', MARK + event(cachedTokens(4)) + DONE],
    ['an event that is a list', 'cached', event(`[${element(0)},${element(4)}]`) + DONE],
    ['a JSON document', 'format', OBJECT],
  ].flatMap(([name, reason, body]) =>
    cases(`decode alone, not its own rows, ${name}`, reset(`rejected; reason=${reason}`, FAILED), (pieces) =>
      scenarioOf(name!, body!, pieces, { prefill: 'down' }),
    ),
  ),
  ...cases(
    'another path, events that are lists',
    whole(event('["a",{"b":[1]}]') + event('[]') + DONE, 'local'),
    (pieces) =>
      scenarioOf('other', event('["a",{"b":[1]}]') + event('[]') + DONE, pieces, {
        client: post('{"input":"x"}', { path: '/v1/other' }),
      }),
  ),
];

export const events: Suite = {
  name: 'what is no stream of events',
  cases: [...marked, ...otherMarks, ...refused, ...late, ...alone],
};
