// Legs with different dtypes, as engines return them that choose the narrowest dtype for the ids of
// each reply: the merged array must have the wider dtype, and the length must be right.

import { expect } from 'vitest';
import type { Protocol, Result, Scenario } from '../scenario.ts';
import { header, type Case, type Suite } from './case.ts';
import {
  COMPLETIONS,
  FULL,
  GENERATE,
  LAYERS,
  PROMPT,
  REQUEST,
  TAIL,
  TOP_K,
  Watch,
  answering,
  cut,
  decodeBody,
  encoded,
  expectLength,
  expectOutcome,
  mergedIn,
  mergedRows,
  post,
  prefillBody,
  quoted,
  rowBytes,
  type ArraySpec,
  type ReplyOptions,
} from './messages.ts';

/** The dtypes of prefill's array, of decode's array, and of the merged array. */
type Three = [prefill: string, decode: string, merged: string];

const TRIPLES: Three[] = [
  ['|u1', '<u2', '<u2'],
  ['|u1', '<i2', '<i2'],
  ['|u1', '<i4', '<i4'],
  ['<u2', '|u1', '<u2'],
  ['<u2', '<i2', '<i4'],
  ['<u2', '<i4', '<i4'],
  ['<i2', '|u1', '<i2'],
  ['<i2', '<u2', '<i4'],
  ['<i2', '<i4', '<i4'],
  ['<i4', '|u1', '<i4'],
  ['<i4', '<u2', '<i4'],
  ['<i4', '<i2', '<i4'],
];
const PROTOCOLS: Protocol[] = ['http1', 'http2'];
const CUTS = [undefined, 1, 40];

interface Spec {
  name: string;
  /** The dtype of prefill's rows. */
  dtype: string;
  decode: string;
  /** The body that the client must get. */
  out: string;
  choices?: number;
  config?: Record<string, unknown>;
  request?: string;
  path?: string;
  prefill?: string;
  options?: ReplyOptions;
  taken?: number;
  cuts?: (number | undefined)[];
  /**
   * Whether the head tells a length; null if that depends on how the body was cut. Default: true.
   */
  announced?: boolean | null;
  /**
   * The number of bytes after which the rest of the body waits until the client has received the
   * first bytes.
   */
  gate?: number;
  events?: boolean;
}

const prompt = (dtype: string): ArraySpec => ({ ...PROMPT, dtype });

function caseOf(spec: Spec, protocol: Protocol, pieces: number | undefined): Case {
  const { choices = 1, taken = PROMPT.rows, announced = true, gate, events = false } = spec;
  const name = `${spec.name}, ${protocol}${pieces === undefined ? '' : `, pieces of ${pieces}`}`;
  const rows = rowBytes({ ...prompt(spec.dtype), rows: taken });
  return {
    name,
    ...(announced === null ? { cutDecidesHead: true } : {}),
    scenario(): Scenario {
      const watch = new Watch();
      const body = Buffer.from(spec.decode);
      const gated: ReplyOptions =
        gate === undefined
          ? pieces === undefined
            ? {}
            : { pieces }
          : {
              pieces: [body.subarray(0, gate), ...cut(body.subarray(gate), pieces ?? body.length)],
              before: (i) => (i === 1 ? watch.seen(1) : undefined),
            };
      return {
        name,
        ...(spec.config ? { config: spec.config } : {}),
        client: post(spec.request ?? REQUEST, { path: spec.path ?? COMPLETIONS }),
        prefill: answering(spec.prefill ?? prefillBody(quoted(encoded(prompt(spec.dtype))))),
        decode: answering(body, { ...gated, ...spec.options }),
        downstream: protocol,
        upstream: protocol,
        onBody: watch.onBody,
      };
    },
    check(result: Result): void {
      expect(result).toMatchObject({ status: 200, complete: true });
      expect(result.body.toString()).toBe(spec.out);
      expectOutcome(result, `merged; rows=${taken}; choices=${choices}`, {
        'routed_experts.spliced_bytes': rows.length * choices,
      });
      if (announced !== null) expectLength(result, announced);
      const length = header(result.headers, 'content-length');
      if (length !== undefined) expect(length).toBe(String(result.body.length));
      if (!events) return;
      expect(header(result.trailers, 'x-routed-experts')).toBe(result.logged);
    },
  };
}

const NAMES: Record<string, string> = { '|u1': 'uint8', '<u2': 'uint16', '<i2': 'int16', '<i4': 'int32' };

function object(spec: ArraySpec, start = 0, data = rowBytes(spec), named = true): string {
  const { rows, dtype = '|u1' } = spec;
  const name = named ? `,"dtype":"${NAMES[dtype]}"` : '';
  return `{"data":"${data.toString('base64')}","shape":[${rows},${LAYERS},${TOP_K}],"start":${start}${name}}`;
}

const casesOf = (specs: Spec[]): Case[] =>
  specs.flatMap((spec) =>
    PROTOCOLS.flatMap((protocol) =>
      (spec.cuts ?? CUTS).map((pieces): Case => caseOf(spec, protocol, pieces)),
    ),
  );

// ---- A

const strings: Spec[] = TRIPLES.flatMap(([prefill, decode, dtype]): Spec[] => [
  {
    name: `A, ${prefill} and all rows in ${decode}`,
    dtype: prefill,
    decode: decodeBody([quoted(encoded({ ...FULL, dtype: decode }))]),
    out: decodeBody([quoted(mergedIn(prompt(prefill), { ...FULL, dtype: decode }, dtype))]),
  },
  {
    name: `A, ${prefill} and a tail in ${decode}`,
    dtype: prefill,
    config: { decode_rows: 'tail' },
    decode: decodeBody([quoted(encoded({ ...TAIL, dtype: decode }))]),
    out: decodeBody([quoted(mergedIn(prompt(prefill), { ...TAIL, dtype: decode }, dtype, true))]),
  },
]);

/** With one generated token the tail is empty, and an empty array has the narrowest dtype. */
const empty: Spec[] = ['<u2', '<i2', '<i4'].map((dtype) => ({
  name: `A, ${dtype} and an empty tail`,
  dtype,
  config: { decode_rows: 'tail' },
  request: '{"prompt":"one two three","max_tokens":1}',
  decode: decodeBody([quoted(encoded({ ...TAIL, rows: 0 }))], { completionTokens: 1 }),
  out: decodeBody([quoted(mergedIn(prompt(dtype), { ...TAIL, rows: 0 }, dtype, true))], {
    completionTokens: 1,
  }),
}));

const THREE = '{"prompt":"one two three","max_tokens":3,"n":3}';
const dtypes = ['<u2', '|u1', '<i4'];
const several = (to: string[], spec: ArraySpec, prefill: string, tail = false) => ({
  decode: decodeBody(dtypes.map((dtype) => quoted(encoded({ ...spec, dtype })))),
  out: decodeBody(
    dtypes.map((dtype, i) => quoted(mergedIn(prompt(prefill), { ...spec, dtype }, to[i]!, tail))),
  ),
});

/** With several arrays, each has a dtype of its own. */
const choices: Spec[] = [
  {
    name: 'A, three choices, held to the end',
    dtype: '<u2',
    request: THREE,
    choices: 3,
    ...several(['<u2', '<u2', '<i4'], FULL, '<u2'),
  },
  {
    name: 'A, three choices, a tail, held to the end',
    dtype: '<u2',
    config: { decode_rows: 'tail' },
    request: THREE,
    choices: 3,
    ...several(['<u2', '<u2', '<i4'], TAIL, '<u2', true),
  },
  {
    // A later array may grow, so the head tells no length.
    name: 'A, three choices, when the first has left',
    dtype: '<u2',
    config: { hold_bytes: 0 },
    request: THREE,
    choices: 3,
    gate: 280,
    announced: false,
    ...several(['<u2', '<u2', '<i4'], FULL, '<u2'),
  },
  {
    // No dtype is narrower than prefill's, so no array grows and the head tells the length.
    name: 'A, three choices of wider dtypes, when the first has left',
    dtype: '|u1',
    config: { hold_bytes: 0 },
    request: THREE,
    choices: 3,
    gate: 280,
    ...several(['<u2', '|u1', '<i4'], FULL, '|u1'),
  },
  {
    name: 'A, one choice, when its header has left',
    dtype: '<i4',
    config: { hold_bytes: 0 },
    gate: 280,
    decode: decodeBody([quoted(encoded(FULL))]),
    out: decodeBody([quoted(mergedIn(prompt('<i4'), FULL, '<i4'))]),
  },
];

const passed: Spec[] = [
  {
    // Nothing is known of decode's array when the head passes, so the head tells no length.
    name: 'A, a head that passes',
    dtype: '<u2',
    config: { headers: 'pass' },
    announced: false,
    decode: decodeBody([quoted(encoded(FULL))]),
    out: decodeBody([quoted(mergedIn(prompt('<u2'), FULL, '<u2'))]),
  },
  {
    name: 'A, a head that passes, and wider rows of decode',
    dtype: '|u1',
    config: { headers: 'pass' },
    decode: decodeBody([quoted(encoded({ ...FULL, dtype: '<i2' }))]),
    out: decodeBody([quoted(mergedIn(PROMPT, { ...FULL, dtype: '<i2' }, '<i2'))]),
  },
  {
    name: 'B, a head that passes',
    dtype: '<u2',
    config: { headers: 'pass' },
    announced: false,
    prefill: prefillBody(object(prompt('<u2'))),
    decode: decodeBody([object(FULL)]),
    out: decodeBody([object({ ...FULL, dtype: '<u2' }, 0, mergedRows(prompt('<u2'), FULL, '<u2'))]),
  },
];

const kept: Spec[] = TRIPLES.filter((_, i) => i % 3 === 0).flatMap(([prefill, decode, dtype]): Spec[] => {
  const first = { ...prompt(prefill), rows: PROMPT.rows - 1 };
  const tail = { ...TAIL, rows: TAIL.rows + 1, dtype: decode };
  return [
    {
      name: `A, ${prefill} and all rows in ${decode}, the last row of the prompt is decode's`,
      dtype: prefill,
      config: { last_prompt_row: 'decode' },
      taken: first.rows,
      decode: decodeBody([quoted(encoded({ ...FULL, dtype: decode }))]),
      out: decodeBody([quoted(mergedIn(first, { ...FULL, dtype: decode }, dtype))]),
    },
    {
      name: `A, ${prefill} and a tail in ${decode}, the last row of the prompt is decode's`,
      dtype: prefill,
      config: { decode_rows: 'tail', last_prompt_row: 'decode' },
      taken: first.rows,
      decode: decodeBody([quoted(encoded(tail))]),
      out: decodeBody([quoted(mergedIn(first, tail, dtype, true))]),
    },
  ];
});

// ---- streams

const event = (text: string) => `data: {"choices":[{"index":0,"token_ids":[1]${text}}]}\n\n`;
const array = (text: string) => `,"routed_experts":"${text}"`;
const STREAM = '{"token_ids":[1,2,3,4,5],"sampling_params":{"max_tokens":3},"stream":true}';

const streams: Spec[] = TRIPLES.map(([prefill, decode, dtype]) => {
  const body = (text: string) => `${event('')}${event('')}${event(array(text))}data: [DONE]\n\n`;
  return {
    name: `A, a stream, ${prefill} and ${decode}`,
    dtype: prefill,
    path: GENERATE,
    request: STREAM,
    events: true,
    announced: false,
    cuts: [undefined, 7],
    options: { headers: [['content-type', 'text/event-stream']], contentLength: null },
    decode: body(encoded({ ...FULL, dtype: decode })),
    out: body(mergedIn(prompt(prefill), { ...FULL, dtype: decode }, dtype)),
  };
});

// ---- B

const objects: Spec[] = TRIPLES.flatMap(([prefill, decode, dtype]): Spec[] => {
  const shared = { dtype: prefill, prefill: prefillBody(object(prompt(prefill))) };
  const [full, tail] = [FULL, TAIL].map((spec) => ({ ...spec, dtype: decode })) as [ArraySpec, ArraySpec];
  const all = { ...tail, rows: PROMPT.rows + TAIL.rows, dtype };
  const rows = mergedRows(prompt(prefill), full, dtype);
  const whole = mergedRows(prompt(prefill), tail, dtype, true);
  return [
    {
      ...shared,
      name: `B, ${prefill} and all rows in ${decode}`,
      decode: decodeBody([object(full)]),
      out: decodeBody([object({ ...full, dtype }, 0, rows)]),
    },
    {
      ...shared,
      name: `B, ${prefill} and the generated rows in ${decode}`,
      decode: decodeBody([object(tail, PROMPT.rows)]),
      out: decodeBody([object(all, 0, whole)]),
    },
  ];
});

const unnamed: Spec[] = [
  {
    name: 'B, decode names no dtype',
    dtype: '<i2',
    prefill: prefillBody(object(prompt('<i2'))),
    decode: decodeBody([object(FULL, 0, undefined, false)]),
    out: decodeBody([object({ ...FULL, dtype: '<i2' }, 0, mergedRows(prompt('<i2'), FULL, '<i2'))]),
  },
  {
    name: 'B, decode names no dtype of no rows',
    dtype: '<i2',
    request: '{"prompt":"one two three","max_tokens":1}',
    prefill: prefillBody(object(prompt('<i2'))),
    decode: decodeBody([object({ ...TAIL, rows: 0 }, PROMPT.rows, undefined, false)], {
      completionTokens: 1,
    }),
    out: decodeBody([object(prompt('<i2'))], { completionTokens: 1 }),
  },
];

// ---- what goes wrong later

const broken = encoded(FULL).replace(/.{3}$/, '-AA');
const late = decodeBody([quoted(broken)]);

const failing: Case[] = PROTOCOLS.map((protocol): Case => {
  const spec: Spec = { name: '', dtype: '<u2', config: { hold_bytes: 0 }, gate: 280, decode: late, out: '' };
  return {
    ...caseOf(spec, protocol, 20),
    name: `A, a stranger in rows that are widened, when some have left, ${protocol}`,
    check(result) {
      expect(result).toMatchObject({ status: 200, complete: false });
      const right = decodeBody([quoted(mergedIn(prompt('<u2'), FULL, '<u2'))]);
      expect(right.startsWith(result.body.toString())).toBe(true);
      expectOutcome(result, 'rejected; reason=base64');
    },
  };
});

export const legDtypes: Suite = {
  name: 'legs of different dtypes',
  cases: [
    ...casesOf([...strings, ...empty, ...choices, ...passed, ...kept, ...streams, ...objects, ...unnamed]),
    ...failing,
  ],
};
