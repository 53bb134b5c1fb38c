// Replays real traffic of SGLang 0.5.23: prefill and decode with NIXL, and a server that does both.
// The engines answer with what SGLang answered, and the client must get the rows of that server.

import { expect } from 'vitest';
import { loadCapture, replayEngine, sglangCaptureNames, type Capture } from '../engine/replay.ts';
import type { Engine, Protocol, Result } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { answering, expectOutcome, jsonOf, post } from './messages.ts';

const ARRAY = /"routed_experts":"[^"]*"/g;
/** What the filter draws for each exchange. */
const ROOMS = /"bootstrap_room":(\d+|\[[\d, ]+\])/;
const ENGINES_OWN =
  /"(id|created|e2e_latency|response_sent_to_client_ts|cached_tokens|cached_tokens_details)":("[^"]*"|[\d.]+|null|\{[^}]*\})/g;

const bodyOf = (leg: Capture['oracle']): string => leg.response.body.toString('utf8');

/**
 * What prefill answers to the filter, which asks for no stream. Where the captured prefill was
 * asked for one, its last event of a prompt is the same object as the reply.
 */
function prefillOf({ prefill }: Capture): Engine {
  const text = bodyOf(prefill);
  if (!text.startsWith('data:')) return replayEngine(prefill.response);
  const events = [...text.matchAll(/^data: (\{.*\})$/gm)].map(([, event]) => event!);
  const indexOf = (event: string) => (JSON.parse(event) as { index?: number }).index;
  const last = new Map(events.map((event) => [indexOf(event), event]));
  const whole = [...last].sort(([a = 0], [b = 0]) => a - b).map(([, event]) => event);
  return answering(last.has(undefined) ? whole[0]! : `[${whole.join(',')}]`);
}

/** The members of the captured legs that the filter chose when the traffic was captured. */
const HANDSHAKE = { bootstrap_host: 'p', bootstrap_port: 8998, bootstrap_room: expect.any(Number) };

function caseOf(capture: Capture, protocol: Protocol, chunkBytes: number | undefined): Case {
  const { name, decode, oracle } = capture;
  return {
    name: `${name}, ${protocol}${chunkBytes === undefined ? '' : `, pieces of ${chunkBytes}`}`,
    random: ROOMS,
    scenario: () => ({
      name,
      config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
      client: post(oracle.request.body.toString(), { path: oracle.request.path }),
      prefill: prefillOf(capture),
      decode: replayEngine(decode.response, chunkBytes === undefined ? {} : { chunkBytes }),
      downstream: protocol,
      upstream: protocol,
    }),
    check(result) {
      checkLegs(capture, result);
      const got = result.body.toString('utf8');
      expect(documentsOf(got)).toEqual(documentsOf(bodyOf(oracle)));
      // Beside the arrays, every byte is decode's. Where it has no array, one was put in.
      const bare = (text: string) => text.replace(ARRAY, '"routed_experts":""');
      const without = bare(got).replace(/"routed_experts":"",/g, '');
      expect([bare(bodyOf(decode)), bodyOf(decode)]).toContain(
        ARRAY.test(bodyOf(decode)) ? bare(got) : without,
      );
      const right = bodyOf(oracle).match(ARRAY)!;
      // The filter's count of arrays: of a reply for several prompts each element has one.
      expect(result.logged).toMatch(new RegExp(`^merged; rows=\\d+; choices=${right.length}$`));
    },
  };
}

/**
 * The documents of a body in the order of their prompts, without what two runs of an engine never
 * have alike: ids, times, and what came from its cache. Their members stay in order.
 */
function documentsOf(body: string): string[] {
  const stripped = body.replace(ENGINES_OWN, '"$1":0');
  if (!stripped.startsWith('data:')) return [stripped];
  const events = [...stripped.matchAll(/^data: (.*)$/gm)].map(([, event]) => event!);
  const promptOf = (event: string) => Number(/"index":(\d+)\}$/.exec(event)?.[1] ?? 0);
  return events
    .map((event, i) => [promptOf(event), i, event] as const)
    .sort(([a, i], [b, j]) => (events[i] === '[DONE]' ? 1 : events[j] === '[DONE]' ? -1 : a - b || i - j))
    .map(([, , event]) => event.replace(/,"response_sent_to_client_ts":0/, ''));
}

/** Both engines get the client's request and the handshake, as SGLang's own router sends it. */
function checkLegs({ decode, oracle }: Capture, result: Result): void {
  const asked = jsonOf({ body: oracle.request.body });
  const batch = Array.isArray(asked['text']) ? asked['text'].length : 0;
  const each = (value: unknown) => (batch > 0 ? Array.from({ length: batch }, () => value) : value);
  const members = Object.fromEntries(Object.entries(HANDSHAKE).map(([key, value]) => [key, each(value)]));
  const [leg] = result.decodeRequests;
  expect(jsonOf(leg!)).toEqual({ ...asked, ...members });
  // The handshake's members are those that the captured leg had.
  expect(Object.keys(jsonOf(leg!)).sort()).toEqual(Object.keys(jsonOf({ body: decode.request.body })).sort());
}

/** Where it is not known that prefill's rows are all rows of the answer, none are put in. */
const bare: Case[] = (
  [
    ['was broken off', '"type":"length","length":1', '"type":"abort","message":"gone"'],
    ['goes on', '"finish_reason":{"type":"length","length":1}', '"finish_reason":null'],
    ['says that it has two tokens', '"completion_tokens":1', '"completion_tokens":2'],
    ['says nothing of its tokens', '"completion_tokens":1,', ''],
    ['is of another prompt', '"prompt_tokens":10', '"prompt_tokens":11'],
    ['has an array that is null', '"dp_rank"', '"routed_experts":null,"dp_rank"'],
  ] as const
).map(([what, from, to]) => {
  const capture = loadCapture('sglang0523.nixl.gen.one');
  const body = bodyOf(capture.decode).replace(from, to);
  return {
    name: `an answer without an array that ${what} stays as it is`,
    random: ROOMS,
    scenario: () => ({
      name: what,
      config: { connector: 'sglang', prefill: { bootstrap_host: 'p' } },
      client: post(capture.oracle.request.body.toString(), { path: capture.oracle.request.path }),
      prefill: replayEngine(capture.prefill.response),
      decode: answering(body),
    }),
    check(result) {
      expect(body).not.toBe(bodyOf(capture.decode));
      expect(result.body.toString('utf8')).toBe(body);
      expectOutcome(result, 'absent');
    },
  };
});

export const sglangCaptures: Suite = {
  name: 'captured traffic of SGLang',
  cases: [
    ...sglangCaptureNames().flatMap((name) => {
      const capture = loadCapture(name);
      return (['http1', 'http2'] as Protocol[]).flatMap((protocol) =>
        [undefined, 1, 61].map((chunkBytes) => caseOf(capture, protocol, chunkBytes)),
      );
    }),
    ...bare,
  ],
};
