// Every reason why routing cannot be merged, under every policy, found before and after bytes have
// left.

import { expect } from 'vitest';
import type { Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  answering,
  type ArraySpec,
  cut,
  decodeBody,
  encoded,
  expectError,
  expectLength,
  expectOutcome,
  FULL,
  GOOD_DECODE,
  GOOD_PREFILL,
  npyFile,
  post,
  prefillBody,
  PROMPT,
  quoted,
  type ReplyOptions,
  REQUEST,
  rowBytes,
  Watch,
} from './messages.ts';

type Policy = 'reject' | 'null' | 'forward';
const POLICIES: Policy[] = ['reject', 'null', 'forward'];

interface Broken {
  name: string;
  reason: string;
  text: string;
  prefill?: string;
  decode: string | Buffer;
  reply?: ReplyOptions;
  /**
   * The size of the first piece. The rest of the body waits until the client has received the
   * response's head.
   */
  firstPiece?: number;
  config?: Record<string, unknown>;
  request?: string;
  /**
   * The body under the policy `null`; `reject` if it cannot be edited. Default: every array becomes
   * null.
   */
  nulled?: string | 'reject';
}

const TEXT: Record<string, string> = {
  json: 'the decode response is not a complete JSON object',
  encoding: 'the decode response is compressed',
  hold: 'no array was found in the first max_hold_bytes of the decode response',
  duplicate: 'a key on the way to the array occurs twice',
  format: 'the value is not one that an array has, or a stream is not one of events with an object each',
  mixed: 'the legs returned routing in different formats',
  base64: 'the string is not plain base64',
  size: 'the data is not as long as its header or shape announces',
  magic: 'the data is not a .npy file',
  version: 'the .npy version is not 1, 2 or 3',
  header: 'the .npy header cannot be read',
  order: 'the array is in Fortran order',
  dtype: 'the dtype is not an 8, 16 or 32 bit integer that engines use',
  shape: 'the shape does not have the three dimensions rows, layers, top_k',
  layers: "the number of layers differs between the legs, or is not the configured model's",
  top_k: "top_k differs between the legs, or is not the configured model's",
  rows: 'the decode array does not have the rows that were asked for',
  prompt: 'the number of prompt rows is not the number of prompt tokens',
  sentinel: 'the prefill array has a row of -1',
  missing: 'the prefill reply has no array',
  choices: 'the arrays are not one for each choice that was asked for',
  ambiguous: 'the decode array may hold all rows or only the generated ones',
};

const broken = (
  name: string,
  reason: string,
  decode: string | Buffer,
  more: Partial<Broken> = {},
): Broken => ({
  name,
  reason,
  text: TEXT[reason]!,
  decode,
  ...more,
});

const one = (array: string) => decodeBody([array]);
const spec = (more: Partial<ArraySpec>) => one(quoted(encoded({ ...FULL, ...more })));
const edited = (headerText: ArraySpec['headerText']) => spec({ ...(headerText ? { headerText } : {}) });
/** The fault is prefill's; decode's array is good. */
const prefills = (name: string, reason: string, array: string | null, promptTokens?: number | null) =>
  broken(`prefill: ${name}`, reason, GOOD_DECODE, { prefill: prefillBody(array, promptTokens) });

const good = encoded(FULL);
const file = npyFile(FULL);
const patched = (at: number, byte: number) => {
  const copy = Buffer.from(file);
  copy[at] = byte;
  return one(quoted(copy.toString('base64')));
};
const int4 = { dtype: '<i4' };
const wide = encoded({ ...FULL, ...int4 });
const unknown = encoded(
  { ...PROMPT, ...int4 },
  Buffer.concat([
    rowBytes({ ...PROMPT, ...int4, rows: 1 }),
    Buffer.alloc(24, 0xff),
    rowBytes({ ...PROMPT, ...int4, rows: 3 }),
  ]),
);

const BROKEN: Broken[] = [
  broken('a body that is cut short', 'json', GOOD_DECODE.slice(0, -20), { nulled: 'reject' }),
  broken('a body cut inside the array', 'json', GOOD_DECODE.slice(0, 200), { nulled: 'reject' }),
  broken('a body of white space', 'json', ' \n', { nulled: 'reject', reply: { contentLength: null } }),
  broken('not JSON', 'json', '<html>', { nulled: 'reject' }),
  broken('an array at the root', 'json', `[${GOOD_DECODE}]`, { nulled: 'reject' }),
  broken('text behind the document', 'json', `${GOOD_DECODE}x`, { nulled: 'reject' }),
  broken('two documents', 'json', `${GOOD_DECODE}${GOOD_DECODE}`, { nulled: 'reject' }),
  broken('a compressed body', 'encoding', Buffer.from([0x1f, 0x8b, 8, 0]), {
    reply: { headers: [['content-encoding', 'gzip']] },
    nulled: 'reject',
  }),
  broken('a long text before the array', 'hold', decodeBody([quoted(good)], { before: 'y'.repeat(3000) }), {
    config: { hold_bytes: 100, max_hold_bytes: 1000 },
    firstPiece: 1500,
  }),
  broken('the key twice', 'duplicate', one(`${quoted(good)},"routed_experts":${quoted(good)}`)),
  broken(
    'the key twice, the second escaped',
    'duplicate',
    one(`${quoted(good)},"routed\\u005fexperts":${quoted(good)}`),
  ),
  broken('the key twice, null first', 'duplicate', one(`null,"routed_experts":${quoted(good)}`)),
  broken('choices twice', 'duplicate', GOOD_DECODE.replace('"usage"', `"choices":[],"usage"`)),
  broken('an object', 'mixed', one(`{"data":"AAAA","shape":[7,2,3],"start":0}`)),
  broken('nested lists', 'mixed', one('[[[1,2,3],[4,5,6]]]')),
  broken(
    'prompt_routed_experts in the choice',
    'mixed',
    one(`${quoted(good)},"prompt_routed_experts":[[1]]`),
  ),
  broken(
    'prompt_routed_experts at the root',
    'mixed',
    GOOD_DECODE.replace('{"id"', '{"prompt_routed_experts":[[1]],"id"'),
  ),
  broken('meta_info', 'mixed', GOOD_DECODE.replace('{"id"', '{"meta_info":{"routed_experts":"AAAA"},"id"')),
  broken('a stranger in the header', 'base64', one(quoted(`!${good.slice(1)}`))),
  broken('a stranger in the generated rows', 'base64', one(quoted(`${good.slice(0, -3)}-${good.slice(-2)}`))),
  broken(
    'an escape in the generated rows',
    'base64',
    one(quoted(`${good.slice(0, -3)}\\/${good.slice(-2)}`)),
  ),
  broken('a string that is too short', 'size', one(quoted(good.slice(0, -4)))),
  broken('a string that is too long', 'size', one(quoted(`${good}AAAA`))),
  broken('a string that is cut in its header', 'size', one(quoted(good.slice(0, 40)))),
  broken('an empty string', 'size', one('""')),
  broken('another magic', 'magic', patched(1, 0x6e)),
  broken(
    'another magic, and much behind it',
    'magic',
    patched(1, 0x6e).replace('"usage"', `"x":"${'y'.repeat(40_000)}","usage"`),
  ),
  broken('version 4', 'version', patched(6, 4)),
  broken(
    'a header that is no dictionary',
    'header',
    edited((text) => text.replace('{', '(')),
  ),
  broken(
    'a header without descr',
    'header',
    edited((text) => text.replace("'descr': '|u1', ", '')),
  ),
  broken(
    'Fortran order',
    'order',
    edited((text) => text.replace('False', 'True')),
  ),
  broken('float64', 'dtype', spec({ dtype: '<f8' })),
  broken('big endian', 'dtype', spec({ dtype: '>u2' })),
  broken(
    'two dimensions',
    'shape',
    edited((text) => text.replace('(7, 2, 3)', '(7, 6)')),
  ),
  broken(
    'four dimensions',
    'shape',
    edited((text) => text.replace('(7, 2, 3)', '(7, 2, 3, 1)')),
  ),
  broken('other layers', 'layers', spec({ layers: 3 })),
  broken('another top_k', 'top_k', spec({ topK: 2 })),
  broken('fewer rows than the prompt', 'rows', spec({ rows: 4 })),
  broken('no rows', 'rows', spec({ rows: 0 })),
  broken('another prompt', 'prompt', decodeBody([quoted(good)], { promptTokens: 6 })),
  broken('two arrays for one choice', 'choices', decodeBody([quoted(good), quoted(good)])),
  broken(
    'as many rows as either form could have',
    'ambiguous',
    decodeBody([quoted(encoded({ ...FULL, rows: 6 }))], { completionTokens: 9 }),
    {
      config: { decode_rows: 'tail' },
      request: '{"prompt":"one two three","max_tokens":30}',
    },
  ),
  prefills('no array', 'missing', null),
  prefills('null', 'missing', 'null'),
  prefills('an object', 'shape', '{"data":"AAAA"}'),
  prefills('a stranger', 'base64', quoted(encoded(PROMPT).replace(/.{4}$/, 'A*AA'))),
  prefills('a string that is too short', 'size', quoted(encoded(PROMPT).slice(0, -4))),
  prefills('another magic', 'magic', quoted(`A${encoded(PROMPT).slice(1)}`)),
  prefills('fewer rows than tokens', 'prompt', quoted(encoded(PROMPT)), 7),
  prefills('no rows', 'prompt', quoted(encoded({ ...PROMPT, rows: 0 })), null),
  broken('prefill: a row of -1', 'sentinel', one(quoted(wide)), {
    prefill: prefillBody(quoted(unknown)),
  }),
  broken('prefill: two choices', 'choices', GOOD_DECODE, {
    prefill: decodeBody([quoted(encoded(PROMPT)), quoted(encoded(PROMPT))]).replace('null}', '{"a":1}}'),
  }),
];

/** Matches every value of the member that occurs in these scenarios. */
const VALUE = /"((?:prompt_)?routed(?:_|\\u005f)experts)":("[^"]*"|\{[^}]*\}|\[\[.*?\]\](?:\])?)/g;

function scenarioOf(
  of: Broken,
  policy: Policy,
  more: Partial<Scenario> = {},
  config: Record<string, unknown> = {},
): Scenario {
  const watch = new Watch();
  const body = Buffer.from(of.decode);
  const gated: ReplyOptions =
    of.firstPiece === undefined
      ? {}
      : {
          pieces: [body.subarray(0, of.firstPiece), body.subarray(of.firstPiece)],
          before: (i) => (i === 1 ? watch.seen(0) : undefined),
        };
  return {
    name: of.name,
    config: { ...of.config, on_unmergeable: policy, ...config },
    client: post(of.request ?? REQUEST),
    prefill: answering(of.prefill ?? GOOD_PREFILL),
    decode: answering(body, { ...gated, ...of.reply }),
    onBody: watch.onBody,
    ...more,
  };
}

function checkReject(of: Broken, result: Result): void {
  expectError(result, 502, 'BadGatewayError', `routed_experts can not be merged: ${of.text}`);
  expectLength(result, true);
  const outcome = `rejected; reason=${of.reason}`;
  expect(header(result.headers, 'x-routed-experts')).toBe(outcome);
  expectOutcome(result, outcome);
}

function check(of: Broken, policy: Policy, result: Result): void {
  expect(result.prefillRequests).toHaveLength(1);
  expect(result.decodeRequests).toHaveLength(1);
  const { nulled = String(of.decode).replace(VALUE, '"$1":null') } = of;
  if (policy === 'reject' || (policy === 'null' && nulled === 'reject')) return checkReject(of, result);
  expect(result).toMatchObject({ status: 200, complete: true });
  if (policy === 'null') expect(result.body.toString()).toBe(nulled);
  else expect(result.body).toEqual(Buffer.from(of.decode));
  const outcome = `unmerged; reason=${of.reason}`;
  expect(header(result.headers, 'x-routed-experts')).toBe(outcome);
  expectOutcome(result, outcome);
  // If the head leaves before the whole body is known, later edits could change the length, so the
  // head has none.
  const known =
    of.reply?.contentLength !== null && !(policy === 'null' && of.config?.['hold_bytes'] !== undefined);
  expectLength(result, known);
}

/** The fault is found after the head has left, so the stream is reset, whatever the policy. */
function checkReset(of: Late, result: Result): void {
  expect(result.complete).toBe(false);
  expect(result.status).toBe(200);
  expect(result.body.length).toBeLessThanOrEqual(of.decode.length);
  const outcome = `rejected; reason=${of.reason}`;
  expectOutcome(result, outcome);
}

interface Late extends Omit<Broken, 'decode'> {
  decode: string;
}

const two = (array: string, more: Parameters<typeof decodeBody>[1] = {}) =>
  decodeBody([quoted(good), array], more);
const late = (name: string, reason: string, decode: string): Late => ({
  name,
  reason,
  text: TEXT[reason]!,
  decode,
  request: '{"prompt":"one two three","max_tokens":3,"n":2}',
});

/** The first array is good, and what leaves with it is right. */
const LATE: Late[] = [
  late('a body that is cut short', 'json', two('null').slice(0, -20)),
  late('a body cut inside the second array', 'json', two(quoted(good)).slice(0, 500)),
  late('text behind the document', 'json', `${two(quoted(good))}x`),
  late('a bracket of the wrong kind', 'json', two(quoted(good)).replace(/\]/, '}')),
  late('the key twice', 'duplicate', two(`${quoted(good)},"routed_experts":${quoted(good)}`)),
  late('choices twice', 'duplicate', two(quoted(good)).replace('"usage"', '"choices":[],"usage"')),
  late('an object', 'mixed', two('{"data":"AAAA"}')),
  late('a stranger', 'base64', two(quoted(`${good.slice(0, -3)}-${good.slice(-2)}`))),
  late(
    'a stranger in the first array',
    'base64',
    decodeBody([quoted(`${good.slice(0, -3)}-${good.slice(-2)}`), 'null']),
  ),
  late('a string that is too short', 'size', two(quoted(good.slice(0, -4)))),
  late('a string that is too long', 'size', two(quoted(`${good}AAAA`))),
  late('another magic', 'magic', two(quoted(`A${good.slice(1)}`))),
  late('other layers', 'layers', two(quoted(encoded({ ...FULL, layers: 3 })))),
  late('fewer rows than the prompt', 'rows', two(quoted(encoded({ ...FULL, rows: 4 })))),
  late('another prompt', 'prompt', two(quoted(good), { promptTokens: 6 })),
  late('three arrays for two choices', 'choices', decodeBody([quoted(good), quoted(good), quoted(good)])),
];

/** The first piece ends in the first array, behind its header, and leaves before the rest comes. */
const FIRST = 280;

function lateScenario(of: Late, policy: Policy, pieces: number, more: Partial<Scenario> = {}): Scenario {
  const watch = new Watch();
  const body = Buffer.from(of.decode);
  const decode = answering(body, {
    pieces: [body.subarray(0, FIRST), ...cut(body.subarray(FIRST), pieces)],
    before: (i) => (i === 1 ? watch.seen(1) : undefined),
    ...of.reply,
  });
  return scenarioOf(of, policy, { decode, onBody: watch.onBody, ...more }, { hold_bytes: 0 });
}

export const reasons: Suite = {
  name: 'what can not be merged',
  cases: [
    ...BROKEN.flatMap((of) =>
      POLICIES.map((policy): Case => ({
        name: `${of.name}: ${policy}`,
        scenario: () => scenarioOf(of, policy),
        check: (result) => check(of, policy, result),
      })),
    ),
    ...LATE.flatMap((of) =>
      POLICIES.flatMap((policy) =>
        [1000, 20].map((pieces): Case => ({
          name: `${of.name}, when some has left, pieces of ${pieces}: ${policy}`,
          scenario: () => lateScenario(of, policy, pieces),
          check: (result) => checkReset(of, result),
        })),
      ),
    ),
    ...LATE.map((of): Case => ({
      name: `${of.name}, when some has left, HTTP/2 without a length`,
      scenario: () =>
        lateScenario({ ...of, reply: { contentLength: null } }, 'forward', 30, {
          downstream: 'http2',
          upstream: 'http2',
        }),
      check: (result) => checkReset(of, result),
    })),
    // A fault behind the document is found only after the document has left.
    ...BROKEN.filter(({ reply, name }) => !reply && !/text behind|two documents/.test(name)).map(
      (of): Case => ({
        name: `${of.name}: null, HTTP/2, byte by byte`,
        scenario: () =>
          scenarioOf(of, 'null', {
            decode: answering(of.decode, { pieces: 1 }),
            downstream: 'http2',
            upstream: 'http2',
          }),
        check: (result) => check(of, 'null', result),
      }),
    ),
  ],
};
