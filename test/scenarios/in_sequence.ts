// Mooncake's legs one after the other: what a prefill that fails, or that offers no transfer, means
// for decode, which is not asked before prefill has answered.

import { expect } from 'vitest';
import type { Engine, EngineReply, Protocol, Result, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import {
  answering,
  expectError,
  expectOutcome,
  expectSalted,
  GOOD_DECODE,
  GOOD_MERGED,
  jsonOf,
  MOONCAKE_PREFILL,
  post,
  reply,
  REQUEST,
} from './messages.ts';

const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const HOST = '127.0.0.1';
/** Transfers are random, so they differ between runs. So do ports, which are in decode's leg. */
const RANDOM = /xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+/g;

/** Ports of bootstrap servers that no exchange of another suite on the same host has asked. */
let lastPort = 44_000;

interface Legs {
  prefill: Engine;
  decode?: Engine;
  config?: Record<string, unknown>;
  prefillConfig?: Record<string, unknown>;
  protocol?: Protocol;
}

const scenarioOf = ({ prefill, decode, config, prefillConfig, protocol = 'http1' }: Legs): Scenario => ({
  name: 'in sequence',
  config: {
    connector: 'mooncake',
    ...config,
    prefill: { bootstrap_host: HOST, bootstrap_port: ++lastPort, retries: 2, ...prefillConfig },
  },
  client: post(REQUEST),
  prefill,
  bootstrap: answering('{"0":{"engine_id":"a"}}'),
  decode: decode ?? answering(GOOD_DECODE),
  downstream: protocol,
  upstream: protocol,
});

const transferOf = (request: Parameters<Engine>[0]): unknown =>
  (jsonOf(request)['kv_transfer_params'] as Record<string, unknown>)['transfer_id'];

/** Every try of the leg has named a transfer of its own. */
function expectTransfers({ prefillRequests }: Result, tries: number): void {
  expect(prefillRequests).toHaveLength(tries);
  expect(new Set(prefillRequests.map(transferOf)).size).toBe(tries);
}

// ---- prefill fails

interface Failing {
  name: string;
  prefill: EngineReply;
  text: string;
  tries: number;
  status?: number;
  prefillConfig?: Record<string, unknown>;
  config?: Record<string, unknown>;
}

const UNAVAILABLE = 'no connection, or status 502 or 503';
const half = Buffer.from(MOONCAKE_PREFILL).subarray(0, 99);
const SMALL = { max_capture_bytes: 10, max_parked_bytes: 10 };
const FAILING: Failing[] = [
  { name: '500', prefill: reply('{}', { status: 500 }), text: 'error status', tries: 3 },
  { name: '503', prefill: reply('{}', { status: 503 }), text: UNAVAILABLE, tries: 3 },
  // Envoy may not send the leg again: an engine may have seen its transfer.
  { name: 'a reset', prefill: reply('', { fault: 'reset' }), text: UNAVAILABLE, tries: 3 },
  {
    name: 'a reset in the body',
    prefill: reply(MOONCAKE_PREFILL, { fault: 'reset_body', pieces: [half] }),
    text: 'connection reset, or reply too large',
    tries: 3,
  },
  { name: 'not JSON', prefill: reply('<html>'), text: 'the reply is not JSON', tries: 3 },
  {
    name: 'silence',
    prefill: reply('', { fault: 'stall' }),
    text: 'timeout',
    tries: 1,
    status: 504,
    prefillConfig: { timeout_ms: 300 },
  },
  {
    name: 'rows over max_capture_bytes',
    prefill: reply(MOONCAKE_PREFILL),
    text: 'the prompt rows exceed max_capture_bytes',
    tries: 1,
    config: SMALL,
  },
];

const failing: Case[] = FAILING.flatMap((of) =>
  ['decode', 'reject'].flatMap((policy, i) =>
    PROTOCOLS.map((protocol): Case => ({
      name: `prefill fails: ${of.name}: ${policy}, ${protocol}`,
      random: RANDOM,
      scenario: () =>
        scenarioOf({
          prefill: () => of.prefill,
          config: { on_prefill_failure: policy, ...of.config },
          protocol,
          ...(of.prefillConfig ? { prefillConfig: of.prefillConfig } : {}),
        }),
      check(result) {
        expectTransfers(result, of.tries);
        // What the server has said is forgotten with each failure.
        expect(result.bootstrapRequests).toHaveLength(of.tries);
        const failures = { 'routed_experts.prefill_failures': of.tries };
        if (i === 1) {
          const code = of.status ?? 502;
          const type = code === 504 ? 'GatewayTimeoutError' : 'BadGatewayError';
          expectError(result, code, type, `prefill failed: ${of.text}`);
          expect(result.decodeRequests).toEqual([]);
          return expectOutcome(result, 'rejected', failures);
        }
        expect(result.body.toString()).toBe(GOOD_DECODE);
        expect(result.decodeRequests).toHaveLength(1);
        expectSalted(result.decodeRequests[0]!, REQUEST);
        expectOutcome(result, 'local', failures);
      },
    })),
  ),
);

const down: Case[] = ['decode', 'reject'].map((policy): Case => ({
  name: `prefill is down: ${policy}`,
  scenario: () => ({
    ...scenarioOf({ prefill: answering(''), config: { on_prefill_failure: policy, max_model_len: 4096 } }),
    prefill: 'down',
  }),
  check(result) {
    const failures = { 'routed_experts.prefill_failures': 3 };
    if (policy === 'decode') {
      expectSalted(result.decodeRequests[0]!, REQUEST);
      return expectOutcome(result, 'local', failures);
    }
    expectError(result, 502, 'BadGatewayError', `prefill failed: ${UNAVAILABLE}`);
    expect(result.decodeRequests).toEqual([]);
    expectOutcome(result, 'rejected', failures);
  },
}));

/** The first try fails, and the second brings the rows and the transfer. */
const again: Case[] = FAILING.filter(({ tries }) => tries > 1).map((of): Case => ({
  name: `prefill fails once: ${of.name}`,
  random: RANDOM,
  scenario: () => {
    const replies = [of.prefill];
    return scenarioOf({ prefill: () => replies.shift() ?? reply(MOONCAKE_PREFILL) });
  },
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    expectTransfers(result, 2);
    expect(transferOf(result.decodeRequests[0]!)).toBe(transferOf(result.prefillRequests[1]!));
    expectOutcome(result, 'merged; rows=5; choices=1', {
      'routed_experts.prefill_failures': 1,
      'routed_experts.spliced_bytes': 30,
    });
  },
}));

// ---- prefill answers

const NOT_FOUND = '{"error":{"message":"no such model","type":"NotFoundError","param":"model","code":404}}';

const passed: Case[] = PROTOCOLS.map((protocol): Case => ({
  name: `prefill’s 404 goes to the client, and decode is not asked, ${protocol}`,
  random: RANDOM,
  scenario: () => scenarioOf({ prefill: answering(NOT_FOUND, { status: 404 }), protocol }),
  check(result) {
    expect(result).toMatchObject({ status: 404, complete: true });
    expect(result.body.toString()).toBe(NOT_FOUND);
    expect(result.decodeRequests).toEqual([]);
    expectOutcome(result, 'absent');
  },
}));

const LENGTH = '"finish_reason":"length"';

/** Decode would wait for a transfer that prefill does not offer. */
const uncapped: Case[] = ['"finish_reason":"stop"', '"finish_reason":null', '"x":0'].map((member): Case => ({
  name: `prefill did not end at its cap, ${member}: decode alone`,
  scenario: () => scenarioOf({ prefill: answering(MOONCAKE_PREFILL.replace(LENGTH, member)) }),
  random: RANDOM,
  check(result) {
    expect(result.body.toString()).toBe(GOOD_DECODE);
    expectSalted(result.decodeRequests[0]!, REQUEST);
    expectOutcome(result, 'local');
  },
}));

const capped: Case = {
  name: 'prefill ended at its cap with a tool call',
  random: RANDOM,
  scenario: () =>
    scenarioOf({ prefill: answering(MOONCAKE_PREFILL.replace(LENGTH, '"finish_reason":"tool_calls"')) }),
  check(result) {
    expect(result.body.toString()).toBe(GOOD_MERGED);
    expectOutcome(result, 'merged; rows=5; choices=1', { 'routed_experts.spliced_bytes': 30 });
  },
};

/** Nothing of prefill’s waits for decode’s error, and decode’s answer is the client’s. */
const decodeFails: Case[] = [404, 500, 503].map((status): Case => ({
  name: `decode’s ${status}`,
  random: RANDOM,
  scenario: () =>
    scenarioOf({
      prefill: answering(MOONCAKE_PREFILL),
      decode: answering('{"error":{}}', { status }),
    }),
  check(result) {
    expect(result).toMatchObject({ status, complete: true });
    expect(result.body.toString()).toBe('{"error":{}}');
    expectOutcome(result, 'absent');
  },
}));

export const inSequence: Suite = {
  name: 'Mooncake’s legs one after the other',
  cases: [...failing, ...down, ...again, ...passed, ...uncapped, capped, ...decodeFails],
};
