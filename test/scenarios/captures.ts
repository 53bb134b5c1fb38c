// Replays real traffic: the engines answer with what vLLM answered, and the client must get the
// rows of the non-disaggregated engine.

import { expect } from 'vitest';
import { captureNames, loadCapture, replayEngine, type Capture } from '../engine/replay.ts';
import type { EngineRequest, Header, Protocol, Result } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import { decodeNpy } from '../../yardstick/npy.ts';
import { expectError, expectSalted, ofOutcome } from './messages.ts';

/** Captures of requests that decode serves alone. */
const LOCAL = ['v030.nixl.completions.batch2'];
/**
 * The decode engine was asked for prompt logprobs, too, and died. What it would have answered is
 * derived from the oracle's answer.
 */
const LOGPROBS = 'v030.nixl.x.prompt_logprobs';
/** The prefill legs of these captures were sent by a script that leaves `stream` out. */
const NO_STREAM = /^v030\.nixl\.x\./;

const ARRAY = /"routed_experts":("[^"]*"|null)/g;

export const captures: Suite = {
  name: 'captured traffic of vLLM',
  cases: [
    ...captureNames().flatMap((name) => {
      const capture = loadCapture(name);
      return (['http1', 'http2'] as Protocol[]).flatMap((protocol) =>
        [undefined, 1, 61].map((chunkBytes) => caseOf(capture, protocol, chunkBytes)),
      );
    }),
    ...LOCAL.map((name) => pulledCase(loadCapture(name))),
  ],
};

/**
 * Replays what vLLM's decode answered after it had pulled the KV of these prompts. Its prompt rows
 * are zeros, so the response must be refused although decode served the request alone.
 */
function pulledCase(captured: Capture): Case {
  const of = caseOf(captured, 'http1', undefined);
  return {
    name: `${captured.name}, rows that decode never forwarded`,
    scenario: () => ({ ...of.scenario(), decode: replayEngine(captured.decode.response) }),
    check(result) {
      expect(result.logged).toBe('rejected; reason=experts');
      const found = 'a row names experts that a router cannot have given (decode row 0, all layers)';
      expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${found}`);
    },
  };
}

function caseOf(captured: Capture, protocol: Protocol, chunkBytes: number | undefined): Case {
  const capture = captured.name === LOGPROBS ? withDecode(captured) : captured;
  const { name, prefill, decode, oracle } = capture;
  const pieces = chunkBytes === undefined ? '' : `, pieces of ${chunkBytes}`;
  const tail = name.startsWith('v032');
  const alone = LOCAL.includes(name);
  return {
    name: `${name}, ${protocol}${pieces}`,
    scenario: () => ({
      name,
      config: tail ? { connector: 'shared_storage', decode_rows: 'tail' } : {},
      client: {
        method: oracle.request.method,
        path: oracle.request.path,
        headers: [
          ['content-type', 'application/json'],
          ['content-length', String(oracle.request.body.length)],
          ['accept-encoding', 'gzip'],
          ['x-request-id', header(decode.request.headers, 'x-request-id')!],
        ],
        chunks: [oracle.request.body],
      },
      prefill: replayEngine(prefill.response),
      // A decode engine that serves a request alone answers what the oracle answers.
      decode: replayEngine(
        alone ? oracle.response : decode.response,
        chunkBytes === undefined ? {} : { chunkBytes },
      ),
      downstream: protocol,
      upstream: protocol,
    }),
    check(result) {
      expect(result).toMatchObject({ status: decode.response.status, complete: true });
      const length = header(result.headers, 'content-length');
      if (length !== undefined) expect(Number(length)).toBe(result.body.length);
      else expect(header(decode.response.headers, 'content-length')).toBeUndefined();
      if (alone) checkLocal(capture, result);
      else checkMerged(capture, result);
    },
  };
}

/**
 * The capture with a decode response that has no prompt logprobs and whose prompt rows are zeros.
 */
function withDecode(captured: Capture): Capture {
  const { prefill, decode, oracle } = captured;
  const answer = JSON.parse(oracle.response.body.toString('utf8'));
  const [choice] = answer.choices;
  choice.prompt_logprobs = null;
  const file = Buffer.from(choice.routed_experts, 'base64');
  const rows = decodeNpy(file);
  const own = decodeNpy(Buffer.from(jsonOf(prefill.response)['choices'][0].routed_experts, 'base64'));
  file.fill(0, rows.headerBytes, rows.headerBytes + own.data.length);
  choice.routed_experts = file.toString('base64');
  const body = Buffer.from(JSON.stringify(answer));
  const headers = oracle.response.headers.map(([key, value]): Header => [
    key,
    key === 'content-length' ? String(body.length) : value,
  ]);
  const asked = jsonOf(decode.request);
  delete asked['prompt_logprobs'];
  return {
    ...captured,
    decode: {
      request: { ...decode.request, body: Buffer.from(JSON.stringify(asked)) },
      response: { ...oracle.response, headers, body, chunks: [body] },
    },
  };
}

function checkLocal({ oracle }: Capture, result: Result): void {
  expect(result.body).toEqual(oracle.response.body);
  expect(result.prefillRequests).toEqual([]);
  expect(result.decodeRequests).toHaveLength(1);
  expectSalted(result.decodeRequests[0]!, oracle.request.body);
  expect(header(result.headers, 'x-routed-experts')).toBe('local');
  expect(result.logged).toBe('local');
  expect(result.counters).toEqual({ 'routed_experts.local': 1 });
}

function checkMerged({ name, prefill, decode, oracle }: Capture, result: Result): void {
  const arrays = arraysOf(oracle.response.body);
  let at = 0;
  const merged = decode.response.body
    .toString('utf8')
    .replace(ARRAY, () => arrays[at++]!)
    .replace('"prompt_logprobs":null', logprobsOf(prefill.response.body));
  expect(at).toBe(arrays.length);
  expect(result.body.toString('utf8')).toBe(merged);

  expect(result.prefillRequests).toHaveLength(1);
  expect(result.decodeRequests).toHaveLength(1);
  expect(jsonOf(result.decodeRequests[0]!)).toEqual(jsonOf(decode.request));
  const sent = jsonOf(result.prefillRequests[0]!);
  if (NO_STREAM.test(name)) delete sent['stream'];
  expect(sent).toEqual(jsonOf(prefill.request));
  for (const request of [...result.prefillRequests, ...result.decodeRequests]) {
    expect(header(request.headers, 'x-request-id')).toBe(header(decode.request.headers, 'x-request-id'));
    expect(header(request.headers, 'accept-encoding')).toBeUndefined();
    expect(request.path).toBe(oracle.request.path);
  }

  const stream = header(decode.response.headers, 'content-type')!.startsWith('text/event-stream');
  const filled = arrays.filter((array) => !array.endsWith('null')).length;
  const outcome = expect.stringMatching(new RegExp(`^merged; rows=\\d+; choices=${filled}$`));
  expect(result.logged).toEqual(outcome);
  // The head of a stream leaves before its array has come.
  if (stream) expect(header(result.headers, 'x-routed-experts')).toBeUndefined();
  else expect(header(result.headers, 'x-routed-experts')).toBe(result.logged);
  expect(ofOutcome(result.counters)).toEqual({
    'routed_experts.merged': 1,
    'routed_experts.spliced_bytes': expect.any(Number),
  });
}

/** The text of prefill's prompt logprobs, as it is written. */
const logprobsOf = (body: Buffer) =>
  body.toString('utf8').match(/"prompt_logprobs":(null|\[.*?\](?=,"prompt_token))/)![0];

/** The array members as they are written, in order. */
function arraysOf(body: Buffer): string[] {
  return body.toString('utf8').match(ARRAY) ?? [];
}

function jsonOf({ body }: Pick<EngineRequest, 'body'>): any {
  return JSON.parse(body.toString('utf8'));
}
