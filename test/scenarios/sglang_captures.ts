// Replays real traffic of SGLang 0.5.23: prefill and decode with NIXL, and a server that does both.
// The engines answer with what SGLang answered, and the client must get the rows of that server.

import { expect } from 'vitest';
import { loadCapture, replayEngine, sglangCaptureNames, type Capture } from '../engine/replay.ts';
import type { Engine, Protocol, Result } from '../scenario.ts';
import type { Case, Suite } from './case.ts';
import { answering, expectOutcome, jsonOf, post } from './messages.ts';

const ARRAY = /"routed_experts":"[^"]*"/g;

/** `max_new_tokens: 1`: prefill's token is the whole answer, and decode returns no array. */
const ONE = 'sglang0523.nixl.gen.one';
/** The events of several prompts are mixed, and only `index` tells which prompt one is of. */
const BATCH_STREAM = 'sglang0523.nixl.gen.batch.stream';

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
    random: /"bootstrap_room":(\d+|\[[\d, ]+\])/,
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
      if (name === BATCH_STREAM) return expectOutcome(result, 'rejected; reason=choices');
      checkLegs(capture, result);
      if (name === ONE) {
        expect(result.logged).toBe('absent');
        return expect(result.body.toString('utf8')).toBe(bodyOf(decode));
      }
      const right = bodyOf(oracle).match(ARRAY)!;
      let at = 0;
      expect(result.body.toString('utf8')).toBe(bodyOf(decode).replace(ARRAY, () => right[at++]!));
      expect(at).toBe(right.length);
      // The filter's count of arrays: of a reply for several prompts each element has one.
      expect(result.logged).toMatch(new RegExp(`^merged; rows=\\d+; choices=${right.length}$`));
    },
  };
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

export const sglangCaptures: Suite = {
  name: 'captured traffic of SGLang',
  cases: sglangCaptureNames().flatMap((name) => {
    const capture = loadCapture(name);
    return (['http1', 'http2'] as Protocol[]).flatMap((protocol) =>
      [undefined, 1, 61].map((chunkBytes) => caseOf(capture, protocol, chunkBytes)),
    );
  }),
};
