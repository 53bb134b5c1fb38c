// Inputs that other routers answer with a panic, with wrong rows, or with unmerged rows and no sign
// of it. Here each of them gives the right rows or an outcome that reports the failure, and there
// is always an answer.

import { gzipSync } from 'node:zlib';
import { expect } from 'vitest';
import type { Result } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  COMPLETIONS,
  FULL,
  GENERATE,
  GOOD_DECODE,
  GOOD_MERGED,
  GOOD_PREFILL,
  PARAMS,
  PROMPT,
  REQUEST,
  answering,
  decodeBody,
  encoded,
  expectOutcome,
  merged,
  mergedIn,
  npyFile,
  post,
  prefillBody,
  quoted,
  rowBytes,
  type ArraySpec,
  type ReplyOptions,
} from './messages.ts';

/** What other routers do with the input. */
type Peers = 'no answer' | 'wrong rows' | 'silently unmerged' | 'an error' | 'an invalid 200';

interface Input {
  name: string;
  peers: Peers;
  prefill?: string | Buffer;
  prefillReply?: ReplyOptions;
  decode?: string | Buffer;
  decodeReply?: ReplyOptions;
  request?: string;
  path?: string;
  /**
   * The outcome: `merged`, `local` and `absent` with the body, the reason of a refusal, or the
   * status of prefill's error.
   */
  gives:
    { merged: string } | { local: string } | { reason: string } | { absent: string } | { status: number };
}

// ---- arrays that are broken in either leg

interface BrokenArray {
  name: string;
  peers: Peers;
  reason: string;
  /** The reason for the same array in decode's response, if it is a different one. */
  decodeReason?: string;
  /** The JSON text of the array's value. */
  value: (of: ArraySpec) => string;
}

const header_ =
  (edit: (text: string) => string) =>
  (of: ArraySpec): string =>
    quoted(encoded({ ...of, headerText: edit }));
const file = (edit: (file: Buffer) => Buffer) => (of: ArraySpec) =>
  quoted(edit(npyFile(of)).toString('base64'));

const ARRAYS: BrokenArray[] = [
  {
    name: 'a .npy cut in its header',
    peers: 'no answer',
    reason: 'size',
    value: file((of) => of.subarray(0, 60)),
  },
  {
    name: 'a header without shape',
    peers: 'no answer',
    reason: 'header',
    value: header_((text) => text.replace(/'shape': \([^)]*\), /, '')),
  },
  {
    name: 'data shorter than its shape',
    peers: 'no answer',
    reason: 'size',
    value: file((of) => of.subarray(0, -5)),
  },
  {
    name: 'data longer than its shape',
    peers: 'wrong rows',
    reason: 'size',
    value: file((of) => Buffer.concat([of, Buffer.alloc(6)])),
  },
  {
    name: 'Fortran order',
    peers: 'wrong rows',
    reason: 'order',
    value: header_((text) => text.replace('False', 'True')),
  },
  {
    name: 'broken base64',
    peers: 'silently unmerged',
    reason: 'base64',
    value: (of) => quoted(`${encoded(of).slice(0, -3)}*A=`),
  },
  {
    name: 'base64 for URLs',
    peers: 'silently unmerged',
    reason: 'base64',
    value: (of) =>
      quoted(
        encoded(of, Buffer.alloc(rowBytes(of).length, 0xfb))
          .replaceAll('+', '-')
          .replaceAll('/', '_'),
      ),
  },
  {
    name: 'an object',
    peers: 'silently unmerged',
    reason: 'size',
    decodeReason: 'mixed',
    value: () => '{"data":"AAAA","shape":[5,2,3]}',
  },
  {
    name: 'a list',
    peers: 'silently unmerged',
    reason: 'format',
    decodeReason: 'mixed',
    value: () => '[[[1,2,3],[4,5,6]]]',
  },
  { name: 'an empty string', peers: 'no answer', reason: 'size', value: () => '""' },
];

const broken: Input[] = ARRAYS.flatMap(({ name, peers, reason, decodeReason = reason, value }): Input[] => [
  { name: `prefill: ${name}`, peers, prefill: prefillBody(value(PROMPT)), gives: { reason } },
  { name: `decode: ${name}`, peers, decode: decodeBody([value(FULL)]), gives: { reason: decodeReason } },
]);

// ---- legs that do not fit each other

const spec = (more: Partial<ArraySpec>) => decodeBody([quoted(encoded({ ...FULL, ...more }))]);

const shapes: Input[] = [
  {
    name: 'more prefill rows than decode rows',
    peers: 'no answer',
    decode: spec({ rows: 4 }),
    gives: { reason: 'rows' },
  },
  {
    name: 'more prefill rows than tokens of the prompt',
    peers: 'wrong rows',
    prefill: prefillBody(quoted(encoded({ ...PROMPT, rows: 6 })), 5),
    gives: { reason: 'prompt' },
  },
  {
    name: 'fewer prefill rows than tokens of the prompt',
    peers: 'wrong rows',
    prefill: prefillBody(quoted(encoded({ ...PROMPT, rows: 3 })), 5),
    gives: { reason: 'prompt' },
  },
  {
    name: 'a wider dtype in decode',
    peers: 'no answer',
    decode: spec({ dtype: '<u2' }),
    gives: { merged: decodeBody([quoted(mergedIn(PROMPT, { ...FULL, dtype: '<u2' }, '<u2'))]) },
  },
  {
    name: 'a narrower dtype in decode',
    peers: 'wrong rows',
    prefill: prefillBody(quoted(encoded({ ...PROMPT, dtype: '<u2' }))),
    gives: { merged: decodeBody([quoted(mergedIn({ ...PROMPT, dtype: '<u2' }, FULL, '<u2'))]) },
  },
  { name: 'half the layers', peers: 'no answer', decode: spec({ layers: 1 }), gives: { reason: 'layers' } },
  { name: 'twice the layers', peers: 'wrong rows', decode: spec({ layers: 4 }), gives: { reason: 'layers' } },
  { name: 'another top_k', peers: 'wrong rows', decode: spec({ topK: 4 }), gives: { reason: 'top_k' } },
  {
    name: 'layers and top_k exchanged',
    peers: 'wrong rows',
    decode: spec({ layers: 3, topK: 2 }),
    gives: { reason: 'layers' },
  },
];

// ---- versions

/** The array with a header of this version. */
const versioned = (of: ArraySpec, version: 2 | 3) => ({ ...of, npy: { version } });
const file2 = (of: ArraySpec, version: 2 | 3, data?: Buffer) => {
  const { rows } = of;
  const text = `{'descr': '|u1', 'fortran_order': False, 'shape': (${rows}, 2, 3), }`;
  const padded = `${text.padEnd(64 * 2 - 12 - 1)}\n`;
  const head = Buffer.from(`\x93NUMPY${String.fromCharCode(version)}\0\0\0\0\0`, 'latin1');
  head.writeUInt32LE(padded.length, 8);
  return quoted(Buffer.concat([head, Buffer.from(padded), data ?? rowBytes(of)]).toString('base64'));
};
const overlaid = Buffer.concat([rowBytes(PROMPT), rowBytes(FULL).subarray(rowBytes(PROMPT).length)]);

const versions: Input[] = ([2, 3] as const).flatMap((version): Input[] => [
  {
    name: `prefill: .npy version ${version}`,
    peers: 'wrong rows',
    prefill: prefillBody(file2(versioned(PROMPT, version), version)),
    gives: { merged: GOOD_MERGED },
  },
  {
    name: `decode: .npy version ${version}`,
    peers: 'wrong rows',
    decode: decodeBody([file2(versioned(FULL, version), version)]),
    gives: { merged: decodeBody([file2(FULL, version, overlaid)]) },
  },
]);

// ---- arrays that are not there

const absent: Input[] = [
  {
    name: 'prefill: no array',
    peers: 'silently unmerged',
    prefill: prefillBody(null),
    gives: { reason: 'missing' },
  },
  {
    name: 'prefill: null',
    peers: 'silently unmerged',
    prefill: prefillBody('null'),
    gives: { reason: 'missing' },
  },
  {
    name: 'decode: null',
    peers: 'silently unmerged',
    decode: decodeBody(['null']),
    gives: { absent: decodeBody(['null']) },
  },
  {
    name: 'decode: no array',
    peers: 'silently unmerged',
    decode: '{"choices":[{"index":0,"text":"x"}]}',
    gives: { absent: '{"choices":[{"index":0,"text":"x"}]}' },
  },
];

// ---- choices

const TWO = '{"prompt":"one two three","max_tokens":3,"n":2}';
const arrays = [quoted(encoded(FULL)), quoted(encoded({ ...FULL, from: 9 }))];
const mergedArrays = [quoted(merged(PROMPT, FULL)), quoted(merged(PROMPT, { ...FULL, from: 9 }))];
const withoutIndex = (body: string) => body.replace(/"index":\d,/g, '');
const reversed = (list: string[]) =>
  decodeBody(list).replace(/"index":(\d)/g, (_, index: string) => `"index":${1 - Number(index)}`);

const choices: Input[] = [
  {
    name: 'choice 1, and one choice of prefill',
    peers: 'silently unmerged',
    request: TWO,
    decode: decodeBody(arrays),
    gives: { merged: decodeBody(mergedArrays) },
  },
  {
    name: 'choices without index',
    peers: 'wrong rows',
    request: TWO,
    decode: withoutIndex(decodeBody(arrays)),
    gives: { merged: withoutIndex(decodeBody(mergedArrays)) },
  },
  {
    name: 'choices in another order',
    peers: 'wrong rows',
    request: TWO,
    decode: reversed(arrays),
    gives: { merged: reversed(mergedArrays) },
  },
  {
    name: 'two choices of prefill',
    peers: 'wrong rows',
    prefill: decodeBody([quoted(encoded(PROMPT)), quoted(encoded(PROMPT))]).replace(
      '"kv_transfer_params":null',
      `"kv_transfer_params":${PARAMS}`,
    ),
    gives: { reason: 'choices' },
  },
];

// ---- streams

const events = (array: string) =>
  `data: {"choices":[{"index":0,"token_ids":[1],"text":"x","routed_experts":null}]}\n\n` +
  `data: {"choices":[{"index":0,"token_ids":[2,3],"text":"y","routed_experts":${array}}]}\n\ndata: [DONE]\n\n`;
const STREAM: ReplyOptions = { headers: [['content-type', 'text/event-stream']], contentLength: null };

const streams: Input[] = [GENERATE, COMPLETIONS].map((path): Input => ({
  name: `a stream that carries the array, ${path}`,
  peers: 'silently unmerged',
  path,
  request:
    path === GENERATE
      ? '{"token_ids":[1,2,3,4,5],"sampling_params":{},"stream":true}'
      : '{"prompt":"x","stream":true}',
  decode: events(quoted(encoded(FULL))),
  decodeReply: STREAM,
  gives: { merged: events(quoted(merged(PROMPT, FULL))) },
}));

// ---- bodies that can't be read, and prefill's errors

const failed = (status: number): Input => ({
  name: `prefill: ${status}`,
  peers: 'an invalid 200',
  prefill: '{"error":{"message":"no","type":"X","param":null,"code":1}}',
  prefillReply: { status },
  gives: status < 500 ? { status } : { local: GOOD_DECODE },
});

const answers: Input[] = [
  {
    name: 'prefill: a gzip reply',
    peers: 'an error',
    prefill: gzipSync(GOOD_PREFILL),
    prefillReply: { headers: [['content-encoding', 'gzip']] },
    gives: { local: GOOD_DECODE },
  },
  {
    name: 'decode: a gzip reply',
    peers: 'an error',
    decode: gzipSync(GOOD_DECODE),
    decodeReply: { headers: [['content-encoding', 'gzip']] },
    gives: { reason: 'encoding' },
  },
  failed(400),
  failed(500),
  failed(503),
  { name: 'prefill: no JSON', peers: 'an error', prefill: '<html>', gives: { local: GOOD_DECODE } },
  { name: 'decode: no JSON', peers: 'an error', decode: '<html>', gives: { reason: 'json' } },
  {
    name: 'prefill: no kv_transfer_params',
    peers: 'wrong rows',
    prefill: GOOD_PREFILL.replace(PARAMS, 'null'),
    gives: { local: GOOD_DECODE },
  },
];

const INPUTS: Input[] = [...broken, ...shapes, ...versions, ...absent, ...choices, ...streams, ...answers];

function check({ gives }: Input, policy: string, result: Result): void {
  const said = header(result.headers, 'x-routed-experts');
  const body = result.body.toString();
  expect(result.complete).toBe(true);
  if ('reason' in gives) {
    const outcome = `${policy === 'reject' ? 'rejected' : 'unmerged'}; reason=${gives.reason}`;
    expect(result.status).toBe(policy === 'reject' ? 502 : 200);
    expect(said).toBe(outcome);
    return expectOutcome(result, outcome);
  }
  if ('status' in gives) {
    expect(result.status).toBe(gives.status);
    expect(result.decodeRequests).toEqual([]);
    return expectOutcome(result, 'absent');
  }
  expect(result.status).toBe(200);
  if ('merged' in gives) {
    expect(body).toBe(gives.merged);
    expect(result.logged).toMatch(/^merged; rows=5; choices=[12]$/);
  } else if ('local' in gives) {
    expect(body).toBe(gives.local);
    expect(said).toBe('local');
    expect(result.logged).toBe('local');
  } else {
    expect(body).toBe(gives.absent);
    expect(said).toBe('absent');
    expectOutcome(result, 'absent');
  }
}

export const peerInputs: Suite = {
  name: 'inputs on which other routers fail',
  cases: INPUTS.flatMap((of) =>
    ['reject', 'forward'].map((policy): Case => ({
      name: `${of.name} (others: ${of.peers}): ${policy}`,
      scenario: () => ({
        name: of.name,
        config: { on_unmergeable: policy },
        client: post(of.request ?? REQUEST, { path: of.path ?? COMPLETIONS }),
        prefill: answering(of.prefill ?? GOOD_PREFILL, of.prefillReply),
        decode: answering(of.decode ?? GOOD_DECODE, of.decodeReply),
      }),
      check: (result) => check(of, policy, result),
    })),
  ),
};
