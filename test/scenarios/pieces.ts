// `max_piece_bytes`: what leaves at once, for a filter that sees responses after this one.

import { expect } from 'vitest';
import type { Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  decodeBody,
  encoded,
  expectError,
  expectOutcome,
  merged,
  mergedIn,
  post,
  prefillBody,
  quoted,
  REQUEST,
  type ArraySpec,
  type ReplyOptions,
} from './messages.ts';

const LIMIT = 65_536;
const TEXT =
  'routed_experts can not be merged: more than max_piece_bytes of the response would have to leave in one piece';

/**
 * Envoy reads at most this much at once. What is held must be more than that, since a piece of
 * decode's own may have any size.
 */
const READ = 1 << 20;
/** Rows of 3,200,000 characters, of 96,000, which are more than the limit, too, and of 48,000. */
const HUGE: ArraySpec = { rows: 400_000, from: 100 };
const LONG: ArraySpec = { rows: 12_000, from: 100 };
const SHORT: ArraySpec = { rows: 6000, from: 100 };
const TAIL: ArraySpec = { rows: 2, from: 50 };
const full = (prompt: ArraySpec): ArraySpec => ({ rows: prompt.rows + 2, from: 3 });

const bodyWith = (array: string | null, prompt: ArraySpec, before?: string) =>
  decodeBody([array === null ? 'null' : quoted(array)], {
    promptTokens: prompt.rows,
    ...(before === undefined ? {} : { before }),
  });
const eventsOf = (body: string) => `data: ${body}\n\ndata: [DONE]\n\n`;
const EVENTS: ReplyOptions = { headers: [['content-type', 'text/event-stream']], contentLength: null };
const STREAMED = REQUEST.replace('{', '{"stream":true,');

interface Spec {
  name: string;
  prompt: ArraySpec;
  /** What decode answers. */
  decode: string;
  options?: ReplyOptions;
  config?: Record<string, unknown>;
  events?: boolean;
  prefillDown?: boolean;
  check(result: Result): void;
}

const caseOf = ({ name, prompt, decode, options, config, events, prefillDown, check }: Spec): Case => ({
  name,
  cutDecidesHead: true,
  scenario: (): Scenario => ({
    name,
    config: { max_piece_bytes: LIMIT, ...config },
    client: post(events ? STREAMED : REQUEST),
    prefill: prefillDown ? 'down' : answering(prefillBody(quoted(encoded(prompt)), prompt.rows)),
    decode: answering(events ? eventsOf(decode) : decode, { ...(events ? EVENTS : {}), ...options }),
  }),
  check,
});

const refused = (decodeAsked: boolean) => (result: Result) => {
  expectError(result, 502, 'BadGatewayError', TEXT);
  expectOutcome(result, 'rejected; reason=piece');
  expect(result.decodeRequests).toHaveLength(decodeAsked ? 1 : 0);
};

/** Without a trailer, and with the outcome in the access log. */
const isUntold = (result: Result, body: string, outcome: string) => {
  expect([result.status, result.complete]).toEqual([200, true]);
  expect(result.body.toString('latin1') === body).toBe(true);
  expect(header(result.trailers, 'x-routed-experts')).toBeUndefined();
  expect(result.logged).toBe(outcome);
};

const TAILS = { decode_rows: 'tail' };
const tailOf = (prompt: ArraySpec) => bodyWith(encoded(TAIL), prompt);
const joined = (prompt: ArraySpec) => bodyWith(mergedIn(prompt, TAIL, '|u1', true), prompt);
const overlaid = (prompt: ArraySpec, before?: string) =>
  bodyWith(merged(prompt, full(prompt)), prompt, before);
const LATE = 'y'.repeat(3 * READ);
const HELD = { hold_bytes: 16 << 20 };

const CASES: Spec[] = [
  {
    name: 'tail, rows that fit',
    ...{ prompt: SHORT, decode: tailOf(SHORT), config: TAILS },
    check(result) {
      expectOutcome(result, 'merged; rows=6000; choices=1', { 'routed_experts.spliced_bytes': 36_000 });
      expect(result.body.toString('latin1') === joined(SHORT)).toBe(true);
    },
  },
  ...['hold', 'pass'].flatMap((headers) =>
    [false, true].map((events): Spec => ({
      name: `tail, rows that do not fit, headers ${headers}${events ? ', events' : ''}`,
      ...{ prompt: LONG, decode: tailOf(LONG), config: { ...TAILS, headers }, events },
      check: refused(false),
    })),
  ),
  {
    name: 'tail, rows that do not fit, on_unmergeable null',
    ...{ prompt: LONG, decode: tailOf(LONG), config: { ...TAILS, on_unmergeable: 'null' } },
    check(result) {
      expectOutcome(result, 'unmerged; reason=piece');
      expect(result.body.toString('latin1')).toBe(bodyWith(null, LONG));
    },
  },
  {
    name: 'tail, rows that do not fit, on_unmergeable forward',
    ...{ prompt: LONG, decode: tailOf(LONG), config: { ...TAILS, on_unmergeable: 'forward' } },
    check(result) {
      expectOutcome(result, 'unmerged; reason=piece');
      expect(result.body.toString('latin1')).toBe(tailOf(LONG));
    },
  },
  {
    name: 'full, in decode’s pieces',
    ...{ prompt: LONG, decode: bodyWith(encoded(full(LONG)), LONG), config: { hold_bytes: 20_000 } },
    options: { pieces: 16_384 },
    check(result) {
      expectOutcome(result, 'merged; rows=12000; choices=1', { 'routed_experts.spliced_bytes': 72_000 });
      expect(result.body.toString('latin1') === overlaid(LONG)).toBe(true);
    },
  },
  {
    name: 'full, held until its end',
    ...{ prompt: HUGE, decode: bodyWith(encoded(full(HUGE)), HUGE), options: { pieces: READ } },
    config: HELD,
    check: refused(true),
  },
  {
    name: 'full, an array behind a long text',
    ...{ prompt: SHORT, decode: bodyWith(encoded(full(SHORT)), SHORT, LATE), options: { pieces: READ } },
    check: refused(true),
  },
  {
    name: 'full, an array behind a long text, forwarded',
    ...{ prompt: SHORT, decode: bodyWith(encoded({ ...full(SHORT), rows: 9 }), SHORT, LATE) },
    ...{ config: { on_unmergeable: 'forward' }, options: { pieces: READ } },
    check: refused(true),
  },
  {
    name: 'full, heads pass, held until its end',
    ...{ prompt: HUGE, decode: bodyWith(encoded(full(HUGE)), HUGE), options: { pieces: READ } },
    config: { ...HELD, headers: 'pass' },
    check(result) {
      expect([result.status, result.complete]).toEqual([200, false]);
      expect(result.logged).toBe('rejected; reason=piece');
    },
  },
  {
    name: 'heads pass: no trailer has the outcome',
    ...{ prompt: SHORT, decode: tailOf(SHORT), config: { ...TAILS, headers: 'pass' } },
    check: (result) => isUntold(result, joined(SHORT), 'merged; rows=6000; choices=1'),
  },
  {
    name: 'events: no trailer has the outcome',
    ...{ prompt: SHORT, decode: tailOf(SHORT), config: TAILS, events: true },
    check: (result) => isUntold(result, eventsOf(joined(SHORT)), 'merged; rows=6000; choices=1'),
  },
  {
    name: 'events of decode alone: no trailer has the outcome',
    ...{ prompt: SHORT, decode: bodyWith(null, SHORT), events: true, prefillDown: true },
    check: (result) => isUntold(result, eventsOf(bodyWith(null, SHORT)), 'local'),
  },
];

export const pieces: Suite = { name: 'pieces', cases: CASES.map(caseOf) };
