// Mooncake's legs at once: which leg answers first, what a leg that fails does to the other, and
// clients that leave. Behind the handshake of the legs this is what `racing.ts` has for SGLang, so
// each kind of exchange is here once.

import { expect } from 'vitest';
import type { Engine, EngineReply, Scenario } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import {
  answering,
  Event,
  expectError,
  expectOutcome,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  MOONCAKE_PREFILL,
  post,
  reply,
  REQUEST,
  Watch,
} from './messages.ts';
import {
  decodeReply,
  eventStream,
  FAILED,
  FIRST,
  LEAVING,
  legs,
  MERGED,
  NAMES,
  PROTOCOLS,
  SPLICED,
  STREAM,
  STREAM_MERGED,
  type First,
} from './racing.ts';

const HOST = '127.0.0.1';
/** The port of a bootstrap server that is asked by several exchanges, which remember its ranks. */
const KNOWN = 26_000;
/** Ports of servers of which nothing is remembered: prefill's leg waits for their ranks. */
let lastPort = KNOWN;

/** Transfers are random, so they differ between runs. So do ports, which are in decode's leg. */
const RANDOM = /xfer-[0-9a-f-]{36}|(?<=http:\/\/127\.0\.0\.1:)\d+/g;

interface Racing {
  port: number;
  engines: { prefill: Engine; decode: Engine };
  config?: Record<string, unknown>;
  /** For the timeout of the calls to prefill and to its bootstrap server. */
  prefill?: Record<string, unknown>;
  more?: Partial<Scenario>;
}

const scenarioOf = ({ port, engines, config, prefill, more }: Racing): Scenario => ({
  name: 'racing, Mooncake',
  config: {
    ...{ connector: 'mooncake', handshake: 'concurrent', ...config },
    prefill: { bootstrap_host: HOST, bootstrap_port: port, ...prefill },
  },
  client: post(REQUEST),
  ...engines,
  bootstrap: answering('{"0":{"engine_id":"a"}}'),
  ...more,
});

const inTurn = (first: First, decode: EngineReply, prefill: EngineReply = reply(MOONCAKE_PREFILL)) =>
  legs(first, { prefill, decode });
const protocolOf = (i: number): Partial<Scenario> => {
  const protocol = PROTOCOLS[i % PROTOCOLS.length]!;
  return { downstream: protocol, upstream: protocol };
};

const bodies: Case[] = ['known', 'new'].flatMap((server) =>
  FIRST.map((first, i): Case => ({
    name: `${NAMES[first]}, a ${server} bootstrap server`,
    cutDecidesHead: true,
    scenario: () =>
      scenarioOf({
        port: server === 'known' ? KNOWN : ++lastPort,
        engines: inTurn(first, decodeReply(GOOD_DECODE, { pieces: 100 })),
        more: protocolOf(i),
      }),
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(GOOD_MERGED);
      expect(result.bootstrapRequests).toHaveLength(1);
      expectOutcome(result, MERGED, SPLICED);
    },
  })),
);

const events: Case[] = FIRST.map((first, i): Case => ({
  name: `events, ${NAMES[first]}`,
  scenario: () =>
    scenarioOf({
      port: KNOWN,
      engines: inTurn(first, eventStream(STREAM)),
      more: {
        client: post('{"token_ids":[1],"stream":true,"sampling_params":{"max_tokens":3}}', {
          path: GENERATE,
        }),
        ...protocolOf(i + 1),
      },
    }),
  check(result) {
    expect(result).toMatchObject({ status: 200, complete: true });
    expect(result.body.toString()).toBe(STREAM_MERGED);
    expectOutcome(result, MERGED, SPLICED);
  },
}));

/** Decode has its leg by the time that prefill fails, so `on_unmergeable` decides. */
const fails: Case[] = FIRST.flatMap((first, i) =>
  (first === 'end' ? ['reject', 'forward'] : ['reject']).map((policy): Case => ({
    name: `prefill fails, ${NAMES[first]}: ${policy}`,
    cutDecidesHead: true,
    scenario: () =>
      scenarioOf({
        port: ++lastPort,
        engines: inTurn(first, decodeReply(), reply('{}', { status: 500 })),
        config: { on_unmergeable: policy },
        more: protocolOf(i),
      }),
    check(result) {
      expect(result.prefillRequests).toHaveLength(1);
      if (policy === 'reject') {
        expectError(result, 502, 'BadGatewayError', 'prefill failed: error status');
        return expectOutcome(result, 'rejected; reason=prefill', FAILED);
      }
      expect(result.body.toString()).toBe(GOOD_DECODE);
      expectOutcome(result, 'unmerged; reason=prefill', FAILED);
    },
  })),
);

/** An error of decode's passes at once. Nothing waits for prefill's reply. */
const decodeFails: Case[] = (['prefill', 'end'] as const).map((first, i): Case => ({
  name: `decode’s 500, ${NAMES[first]}`,
  scenario: () => {
    const watch = new Watch();
    const decode = reply('{"error":{}}', { status: 500 });
    const prefill = reply(MOONCAKE_PREFILL);
    const until = () => watch.seen(12);
    return scenarioOf({
      port: ++lastPort,
      engines: legs(first, { prefill, decode, ...(first === 'end' ? { until } : {}) }),
      more: { ...protocolOf(i), onBody: watch.onBody },
    });
  },
  check(result) {
    expect(result).toMatchObject({ status: 500, complete: true });
    expect(result.body.toString()).toBe('{"error":{}}');
    expectOutcome(result, 'absent');
  },
}));

const leaving: Case[] = LEAVING.map((of, i): Case => ({
  name: `the client leaves ${of.name}`,
  scenario: () => {
    const left = new Event();
    return scenarioOf({
      port: ++lastPort,
      engines: of.make(left.happen, reply(MOONCAKE_PREFILL)),
      prefill: { timeout_ms: 2000 },
      more: { leave: left.happened, ...protocolOf(i) },
    });
  },
  check(result) {
    expect(result.complete).toBe(false);
    expectOutcome(result, 'aborted');
  },
}));

export const racingMooncake: Suite = {
  name: 'both legs at once, Mooncake',
  cases: [...bodies, ...events, ...fails, ...decodeFails, ...leaving].map((of) => ({
    ...of,
    random: RANDOM,
  })),
};
