// `headers: pass`, with and without the plugin's field `allow_on_headers_stop_iteration`; and heads
// that are held without that field, so that Envoy gives the filter no body.

import { expect } from 'vitest';
import type { Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  BATCH_DECODE,
  COMPLETIONS,
  decodeBody,
  encoded,
  expectError,
  expectOutcome,
  expectSalted,
  FULL,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  jsonOf,
  NO_ARRAY,
  post,
  PROMPT,
  quoted,
  reply,
  type ReplyOptions,
  REQUEST,
  rowBytes,
  TAIL,
} from './messages.ts';

const PASS = { headers: 'pass' };
const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const SPLICED = { 'routed_experts.spliced_bytes': rowBytes(PROMPT).length };

interface Spec {
  name: string;
  config?: Record<string, unknown>;
  scenario?: Partial<Scenario>;
  decode?: string;
  options?: ReplyOptions;
  check(result: Result, protocol: Protocol): void;
}

function cases(specs: Spec[]): Case[] {
  return specs.flatMap((spec) =>
    PROTOCOLS.flatMap((protocol) =>
      [undefined, 1, 40].map((pieces): Case => {
        const name = `${spec.name}, ${protocol}${pieces === undefined ? '' : `, pieces of ${pieces}`}`;
        return {
          name,
          scenario: () => ({
            name,
            config: { ...PASS, ...spec.config },
            client: post(REQUEST),
            prefill: answering(GOOD_PREFILL),
            decode: answering(spec.decode ?? GOOD_DECODE, { ...(pieces ? { pieces } : {}), ...spec.options }),
            downstream: protocol,
            upstream: protocol,
            ...spec.scenario,
          }),
          check: (result) => spec.check(result, protocol),
        };
      }),
    ),
  );
}

const tail = decodeBody([quoted(encoded(TAIL))]);
const both = encoded(
  { ...PROMPT, rows: PROMPT.rows + TAIL.rows },
  Buffer.concat([rowBytes(PROMPT), rowBytes(TAIL)]),
);

const passing: Spec[] = [
  {
    name: 'a merge',
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(GOOD_MERGED);
      expectOutcome(result, `merged; rows=${PROMPT.rows}; choices=1`, SPLICED);
      expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
      expect(header(result.headers, 'content-length')).toBe(String(GOOD_MERGED.length));
      // The head of the request left before the length of the new body was known.
      const [asked] = result.decodeRequests;
      expect(header(asked!.headers, 'content-length')).toBeUndefined();
      expect(jsonOf(asked!)['kv_transfer_params']).toBeDefined();
      expect(jsonOf(result.prefillRequests[0]!)['max_tokens']).toBe(1);
    },
  },
  {
    name: 'a merge of a tail',
    config: { decode_rows: 'tail' },
    decode: tail,
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(decodeBody([quoted(both)]));
      expectOutcome(result, `merged; rows=${PROMPT.rows}; choices=1`, SPLICED);
      expect(header(result.headers, 'content-length')).toBeUndefined();
      expect(header(result.trailers, 'x-routed-experts')).toBe(result.logged);
    },
  },
  {
    name: 'a request that P/D does not serve',
    scenario: { client: post('{"prompt":["a","b"]}') },
    decode: BATCH_DECODE,
    check(result) {
      expect(result.body.toString()).toBe(BATCH_DECODE);
      expectOutcome(result, 'local');
      expectSalted(result.decodeRequests[0]!, '{"prompt":["a","b"]}');
      // The outcome is known only when the rows have been read, and the head has left by then.
      expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
    },
  },
  {
    name: 'a response that can not be merged, reject',
    decode: decodeBody([quoted(encoded({ ...FULL, layers: 5 }))]),
    check(result) {
      expect(result.status).toBe(200);
      expect(result.complete).toBe(false);
      expectOutcome(result, 'rejected; reason=layers');
    },
  },
  {
    name: 'a response that can not be merged, forward',
    config: { on_unmergeable: 'forward' },
    decode: decodeBody([quoted(encoded({ ...FULL, layers: 5 }))]),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(decodeBody([quoted(encoded({ ...FULL, layers: 5 }))]));
      expectOutcome(result, 'unmerged; reason=layers');
    },
  },
  {
    name: 'prefill that fails',
    scenario: { prefill: () => reply('{}', { status: 500 }) },
    config: { prefill: { retries: 0 } },
    check(result) {
      expect(result.body.toString()).toBe(GOOD_DECODE);
      expect(result.logged).toBe('local');
      expectSalted(result.decodeRequests[0]!, REQUEST);
    },
  },
  {
    name: 'prefill that fails, reject',
    scenario: { prefill: () => reply('{}', { status: 500 }) },
    config: { prefill: { retries: 0 }, on_prefill_failure: 'reject' },
    check(result) {
      expectError(result, 502, 'BadGatewayError', 'prefill failed: error status');
      expect(result.logged).toBe('rejected');
    },
  },
];

export const heads: Suite = { name: 'heads that pass', cases: cases(passing) };
export const headsWithoutField: Suite = {
  name: 'heads that pass, without allow_on_headers_stop_iteration',
  limits: { headsCanStop: false },
  cases: cases(passing),
};

const MISSING =
  'Envoy does not give the filter the body: set allow_on_headers_stop_iteration to true in the plugin, ' +
  'or headers to pass in its configuration';

export const heldWithoutField: Suite = {
  name: 'heads that are held, without allow_on_headers_stop_iteration',
  limits: { headsCanStop: false },
  cases: PROTOCOLS.flatMap((protocol): Case[] => [
    {
      name: `a request, ${protocol}`,
      scenario: () => ({
        name: 'held',
        client: post(REQUEST),
        prefill: answering(GOOD_PREFILL),
        decode: answering(GOOD_DECODE),
        downstream: protocol,
        upstream: protocol,
      }),
      check(result) {
        expectError(result, 500, 'InternalServerError', MISSING);
        expectOutcome(result, 'rejected');
        expect(result.decodeRequests).toEqual([]);
        expect(result.prefillRequests).toEqual([]);
      },
    },
    {
      name: `another path, ${protocol}`,
      scenario: () => ({
        name: 'held',
        client: post(REQUEST, { path: `${COMPLETIONS}/x` }),
        prefill: answering(GOOD_PREFILL),
        decode: answering(NO_ARRAY),
        downstream: protocol,
        upstream: protocol,
      }),
      check: (result) => expect(result.body.toString()).toBe(NO_ARRAY),
    },
  ]),
};
