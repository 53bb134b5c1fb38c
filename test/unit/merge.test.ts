// The merge of both legs' arrays, compared with arrays merged by NumPy
// (test/fixtures/merge/make.py) and by `arrays.ts`.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import type { Dtype } from '../engine/router.ts';
import { captureNames, loadCapture } from '../engine/replay.ts';
import {
  DTYPES,
  arrayText,
  concatenate,
  overlay,
  randomRows,
  replyBody,
  rowBytes,
  type Shape,
} from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  Reason,
  checkLeaks,
  wasm,
  expectNothingHeld,
  readReply,
  readResponse,
  type ResponseOptions,
} from './wasm.ts';

checkLeaks();

interface Golden {
  dtype: string;
  layers: number;
  topK: number;
  prompt: number;
  generated: number;
  prefill: string;
  full: string;
  fullMerged: string;
  tail: string;
  tailMerged: string;
}

/** Arrays of legs that chose different dtypes. */
interface MixedGolden {
  dtypes: [Dtype, Dtype];
  layers: number;
  topK: number;
  prompt: number;
  generated: number;
  prefill: string;
  full: string;
  tail: string;
  merged: string;
}

const read = (name: string) =>
  JSON.parse(readFileSync(new URL(`../fixtures/merge/${name}.json`, import.meta.url), 'utf8'));
const golden: Golden[] = read('cases');
const mixedGolden: MixedGolden[] = read('dtypes');

function keepRows(prefill: string, promptTokens: number, park?: number): void {
  const reply = readReply(replyBody(prefill, promptTokens), { windows: [4096], park });
  expect(reply).toMatchObject({ json: true, reason: Reason.None, promptTokens, rows: true });
}

/** Checks that the client gets exactly `expected`. */
function expectMerged(body: Buffer, expected: Buffer, options: ResponseOptions, note: string): void {
  const merged = readResponse(body, options);
  if (merged.reason !== Reason.None || !merged.body.equals(expected)) {
    expect({ ...merged, body: merged.body.toString() }, note).toMatchObject({
      reason: Reason.None,
      body: expected.toString(),
    });
  }
  expect(merged.complete).toBe(true);
  expect(merged.growth).toBe(expected.length - body.length);
  if (merged.body.length < 100_000) JSON.parse(merged.body.toString());
}

describe('arrays merged by NumPy', () => {
  const body = (array: string) => Buffer.from(`{"choices":[{"routed_experts":"${array}"}],"usage":null}`);

  test('equal ours, whole and byte by byte', () => {
    for (const entry of golden) {
      keepRows(entry.prefill, entry.prompt);
      const note = `${entry.dtype} ${entry.layers}x${entry.topK} ${entry.prompt}+${entry.generated}`;
      const maxTokens = 1000;
      for (const pieces of [[1e9], [1], [7]]) {
        for (const hold of pieces[0] === 1e9 ? [Infinity] : [Infinity, 0]) {
          const options = { pieces, hold };
          expectMerged(body(entry.full), body(entry.fullMerged), options, note);
          // With as many generated rows as prompt rows, decode's array could be whole or a tail.
          if (entry.generated >= entry.prompt) continue;
          expectMerged(body(entry.tail), body(entry.tailMerged), { ...options, tail: true, maxTokens }, note);
        }
      }
    }
  });

  test('equal ours where the legs chose different dtypes', () => {
    for (const { dtypes, layers, topK, prompt, generated, prefill, full, tail, merged } of mixedGolden) {
      keepRows(prefill, prompt);
      const note = `${dtypes.join(' ')} ${layers}x${topK} ${prompt}+${generated}`;
      for (const pieces of [[1e9], [1], [7]]) {
        for (const hold of pieces[0] === 1e9 ? [Infinity] : [Infinity, 0]) {
          const options = { pieces, hold };
          expectMerged(body(full), body(merged), options, note);
          if (generated >= prompt) continue;
          expectMerged(body(tail), body(merged), { ...options, tail: true, maxTokens: 1000 }, note);
        }
      }
    }
  });

  test('equal the oracle of these tests', () => {
    for (const { prefill, full, tail, merged } of mixedGolden) {
      expect(overlay(prefill, full)).toBe(merged);
      expect(concatenate(prefill, tail)).toBe(merged);
    }
    for (const entry of golden) {
      expect(overlay(entry.prefill, entry.full)).toBe(entry.fullMerged);
      expect(concatenate(entry.prefill, entry.tail)).toBe(entry.tailMerged);
    }
  });
});

/** Pairs of different dtypes: prefill's, then decode's. */
const PAIRS: [Dtype, Dtype][] = DTYPES.flatMap((a) =>
  DTYPES.filter((b) => a !== b).map((b): [Dtype, Dtype] => [a, b]),
);

// ---- documents

/** JSON of a value, with white space in random places. */
function written(value: unknown, random: Random, spaces: boolean): string {
  const gap = () => (spaces && random.chance(0.3) ? random.pick([' ', '\n', '\t', '\r\n', '  ']) : '');
  if (Array.isArray(value)) {
    return `[${gap()}${value.map((item) => written(item, random, spaces) + gap()).join(',' + gap())}]`;
  }
  if (typeof value === 'object' && value !== null) {
    const members = Object.entries(value).map(
      ([key, item]) => `${escapedKey(key, random)}${gap()}:${gap()}${written(item, random, spaces)}${gap()}`,
    );
    return `{${gap()}${members.join(',' + gap())}}`;
  }
  return JSON.stringify(value);
}

function escapedKey(key: string, random: Random): string {
  if (!random.chance(0.05)) return JSON.stringify(key);
  const at = random.below(key.length);
  const hex = key.charCodeAt(at).toString(16).padStart(4, '0');
  return `"${key.slice(0, at)}\\u${hex}${key.slice(at + 1)}"`;
}

const NOISE = [
  'routed_experts":"',
  '"routed_experts":"k05VTVBZ',
  'é漢😀',
  '\\',
  'a"b\\"c',
  '\n\t',
  'x'.repeat(100),
  '}]}',
  '',
];

interface Document {
  body: Buffer;
  expected: Buffer;
  /** `max_tokens` of the request, an upper bound of the tokens that decode generates. */
  maxTokens: number;
}

interface Plan {
  shape: Shape;
  /** The dtype of each choice's array. */
  dtypes: Dtype[];
  prompt: number;
  generated: number[];
  tail: boolean;
  padding: number;
}

/** A response with these arrays, and the same response with the merged ones. */
function document(random: Random, prefill: string, plan: Plan): Document {
  const { shape, prompt, generated, tail } = plan;
  const texts: string[] = [];
  const choices = generated.map((rows, index) => {
    const own = { ...shape, dtype: plan.dtypes[index]! };
    const data = randomRows(random, own, tail ? rows : prompt + rows);
    texts.push(arrayText(own, data, { padding: plan.padding, version: random.pick([1, 1, 1, 2, 3]) }));
    const members: [string, unknown][] = [
      ['index', index],
      ['text', random.pick(NOISE)],
      [
        'logprobs',
        random.chance(0.5) ? null : { tokens: ['a', random.pick(NOISE)], top_logprobs: [{ a: -0.5 }] },
      ],
      ['finish_reason', 'stop'],
      ['message', { role: 'assistant', content: random.pick(NOISE), routed_experts: 'not this one' }],
      ['prompt_token_ids', random.chance(0.5) ? null : Array.from({ length: prompt }, (_, i) => i)],
      ['routed_experts', `@${index}@`],
    ];
    if (random.chance(0.7)) {
      const tokens = Array.from({ length: rows + 1 }, (_, i) => i * 7);
      members.push(['token_ids', random.chance(0.5) ? tokens : null]);
    }
    return Object.fromEntries(random.shuffled(members));
  });
  const sum = generated.reduce((total, rows) => total + rows + 1, 0);
  const usage = { prompt_tokens: prompt, completion_tokens: sum, total_tokens: prompt + sum };
  const root = Object.fromEntries(
    random.shuffled<[string, unknown]>([
      ['id', 'cmpl-1'],
      ['note', random.pick(NOISE)],
      ['choices', choices],
      ['usage', usage],
      ['kv_transfer_params', null],
      ['routed_experts', { choices: [{ routed_experts: 'nor this' }] }],
    ]),
  );
  const template = written(root, random, random.chance(0.5)) + random.pick(['', '\n', '  ']);
  const merge = tail ? concatenate : overlay;
  const fill = (text: string, index: number) => (whole: string) => whole.replace(`@${index}@`, () => text);
  const body = texts.reduce((whole, text, i) => fill(text, i)(whole), template);
  const expected = texts.reduce((whole, text, i) => fill(merge(prefill, text), i)(whole), template);
  return {
    body: Buffer.from(body),
    expected: Buffer.from(expected),
    maxTokens: Math.max(...generated) + 1 + random.below(3),
  };
}

function randomPlan(random: Random, tail: boolean, mixed: boolean): Plan {
  const generated = Array.from({ length: random.pick([1, 1, 1, 2, 3, 5]) }, () =>
    random.pick([0, 0, 1, 2, 3, 4, 10, 40]),
  );
  const shape = {
    dtype: random.pick(DTYPES),
    layers: random.between(1, 7),
    topK: random.pick([1, 1, 2, 3, 8]),
  };
  return {
    shape,
    dtypes: generated.map(() => (mixed ? random.pick(DTYPES) : shape.dtype)),
    prompt: random.pick([1, 1, 2, 3, 4, 5, 12, 40]),
    generated,
    tail,
    padding: random.pick([0, 0, 1, 2, 3, 64]),
  };
}

describe.each([
  ['overlay', false, false],
  ['concatenation', true, false],
  ['overlay of legs with different dtypes', false, true],
  ['concatenation of legs with different dtypes', true, true],
])('%s', (_, tail, mixed) => {
  test('changes the arrays and nothing else, whatever the document and its pieces', () => {
    withSeeds(250, (random) => {
      const plan = randomPlan(random, tail, mixed);
      const { shape, prompt } = plan;
      const rows = randomRows(random, shape, prompt);
      const prefill = arrayText(shape, rows, { padding: random.pick([0, 0, 1, 2]) });
      keepRows(prefill, prompt);
      const { body, expected, maxTokens } = document(random, prefill, plan);
      const common = { tail, choices: plan.generated.length, maxTokens };
      const cuts = [[body.length], [1], random.cuts(body.length, 9), random.cuts(body.length, 300)];
      for (const pieces of cuts) {
        const hold = random.pick([Infinity, 0, 100]);
        const unread = random.chance(0.7);
        expectMerged(body, expected, { ...common, pieces, hold, unread }, `${JSON.stringify(plan)} ${hold}`);
      }
    });
  });

  test('is the same when the body is split at any byte', () => {
    withSeeds(3, (random) => {
      const plan = randomPlan(random, tail, mixed);
      const prefill = arrayText(plan.shape, randomRows(random, plan.shape, plan.prompt));
      keepRows(prefill, plan.prompt);
      const { body, expected, maxTokens } = document(random, prefill, plan);
      const options = { tail, choices: plan.generated.length, maxTokens };
      for (let cut = 1; cut < body.length; cut++) {
        const pieces = [cut, body.length];
        expectMerged(body, expected, { ...options, pieces, hold: 0 }, `cut at ${cut}`);
      }
    });
  });

  test('works at every phase of header, rows and tail', () => {
    const pairs = mixed ? PAIRS : [['|u1', '|u1'] as const];
    withSeeds(1, (random) => {
      for (const [dtype, other] of pairs) {
        for (let layers = 1; layers <= (mixed ? 3 : 7); layers++) {
          for (const [prompt, generated] of [
            [1, 0],
            [1, 1],
            [1, 2],
            [2, 1],
            [3, 0],
            [3, 2],
            [4, 4],
            [5, 7],
          ] as const) {
            const shape: Shape = { dtype, layers, topK: 1 };
            const theirs: Shape = { dtype: other, layers, topK: 1 };
            for (const padding of [0, 1, 2]) {
              const prefill = arrayText(shape, randomRows(random, shape, prompt), { padding });
              keepRows(prefill, prompt);
              for (const shift of mixed ? [0, 1, 2] : [0, 1, 2, 3]) {
                const data = randomRows(random, theirs, tail ? generated : prompt + generated);
                const array = arrayText(theirs, data, { padding: shift });
                const merged = (tail ? concatenate : overlay)(prefill, array);
                const body = (text: string) =>
                  Buffer.from(
                    `{"usage":{"completion_tokens":${generated + 1}},"choices":[{"routed_experts":"${text}"}]}`,
                  );
                for (const pieces of [[1e9], [1], [5]]) {
                  for (const hold of [Infinity, 0]) {
                    expectMerged(
                      body(array),
                      body(merged),
                      { tail, pieces, hold },
                      `${dtype} ${other} ${layers} ${prompt} ${generated}`,
                    );
                  }
                }
              }
            }
          }
        }
      }
    });
  });

  test('takes the row of the last prompt token from decode, where it is kept', () => {
    withSeeds(60, (random) => {
      const { shape, dtypes, prompt } = randomPlan(random, tail, mixed);
      wasm['keepLastRow']!(1);
      const prefill = arrayText(shape, randomRows(random, shape, prompt), { padding: random.below(3) });
      keepRows(prefill, prompt);
      wasm['keepLastRow']!(0);
      const theirs = { ...shape, dtype: dtypes[0]! };
      const generated = random.below(9);
      const data = randomRows(random, theirs, tail ? generated + 1 : prompt + generated);
      const array = arrayText(theirs, data, { padding: random.below(4) });
      // With a prompt of one token, its only row is kept from decode, so all rows are decode's.
      const merged = prompt === 1 ? array : (tail ? concatenate : overlay)(prefill, array, prompt - 1);
      const body = (text: string) =>
        Buffer.from(
          `{"usage":{"completion_tokens":${generated + 1}},"choices":[{"routed_experts":"${text}"}]}`,
        );
      for (const pieces of [[1e9], [1], random.cuts(400, 40)]) {
        const options = { tail, pieces, hold: random.pick([Infinity, 0]) };
        expectMerged(body(array), body(merged), options, `${shape.dtype} ${theirs.dtype} ${prompt}`);
      }
    });
  });

  test('is the same of large arrays', () => {
    withSeeds(1, (random) => {
      for (const [dtype, other] of mixed ? PAIRS : [['<u2', '<u2'] as const]) {
        const shape: Shape = { dtype, layers: 7, topK: 5 };
        const theirs: Shape = { dtype: other, layers: 7, topK: 5 };
        for (const park of [undefined, 300]) {
          // The padding puts prefill's rows at another offset modulo 3 than decode's. Parked rows
          // cannot be moved, but can be widened.
          const padding = park === undefined ? 1 : 0;
          const prefill = arrayText(shape, randomRows(random, shape, 400), { padding });
          keepRows(prefill, 400, park);
          const array = arrayText(theirs, randomRows(random, theirs, tail ? 399 : 799));
          const merged = (tail ? concatenate : overlay)(prefill, array);
          const body = (text: string) => Buffer.from(`{"choices":[{"routed_experts":"${text}"}]}`);
          for (const pieces of [[1e9], [1000], [9_000, 1, 500]]) {
            const options = { tail, pieces, hold: pieces[0] === 1e9 ? Infinity : 0 };
            expectMerged(body(array), body(merged), options, `${dtype} ${other}`);
          }
        }
      }
    });
  });

  test('gives rows from where they are parked', () => {
    withSeeds(40, (random) => {
      const plan = { ...randomPlan(random, tail, mixed), padding: 0 };
      const prefill = arrayText(plan.shape, randomRows(random, plan.shape, plan.prompt));
      keepRows(prefill, plan.prompt, 3 * random.between(1, 3));
      const { body, expected, maxTokens } = document(random, prefill, plan);
      const options = { tail, choices: plan.generated.length, maxTokens };
      for (const pieces of [[body.length], [1], random.cuts(body.length, 40)]) {
        const merged = readResponse(body, { ...options, pieces, hold: 0 });
        // Parked rows cannot be moved to another offset modulo 3.
        if (merged.reason === Reason.Memory) continue;
        expect(merged.body.toString()).toBe(expected.toString());
      }
    });
  });

  test('holds nothing after an end at any byte', () => {
    withSeeds(3, (random) => {
      const plan = randomPlan(random, tail, mixed);
      const prefill = arrayText(plan.shape, randomRows(random, plan.shape, plan.prompt));
      const { body, maxTokens } = document(random, prefill, plan);
      for (let until = 0; until < body.length; until += random.between(1, 9)) {
        keepRows(prefill, plan.prompt);
        const options = {
          tail,
          choices: plan.generated.length,
          maxTokens,
          until,
          hold: random.pick([0, 1e9]),
        };
        const { reason } = readResponse(body, { ...options, pieces: random.cuts(body.length, 50) });
        expect(reason).toBe(Reason.None);
        expectNothingHeld();
      }
    });
  });
});

test.each<[string, Dtype, Dtype]>([
  ['that are written over', '|u1', '|u1'],
  ['that are written over by wider ones', '|u1', '<i4'],
  ['that are left out', '<u2', '|u1'],
])('the rows of a large array %s pass without being read', (_, dtype, other) => {
  const shape: Shape = { dtype, layers: 48, topK: 8 };
  const theirs: Shape = { dtype: other, layers: 48, topK: 8 };
  const random = new Random(1);
  const prefill = arrayText(shape, randomRows(random, shape, 500));
  keepRows(prefill, 500);
  const array = arrayText(theirs, randomRows(random, theirs, 520));
  const body = (text: string) => Buffer.from(`{"choices":[{"routed_experts":"${text}"}]}`);
  const merged = readResponse(body(array), { pieces: [1000], hold: 0 });
  expect(merged.body.equals(body(overlay(prefill, array)))).toBe(true);
  expect(merged.passed).toBeGreaterThan(((500 * rowBytes(theirs)) / 3) * 4 - 3000);
});

test('captured traffic of real engines merges to what one engine alone returns', () => {
  let merged = 0;
  for (const name of captureNames()) {
    if (/stream|batch|sampled/.test(name)) continue;
    const { prefill, decode, oracle } = loadCapture(name);
    const tail = name.includes('pstart');
    const reply = readReply(prefill.response.body, { windows: [1024] });
    expect(reply.json, name).toBe(true);
    if (!reply.rows || decode.response.status !== 200) continue;
    const request = JSON.parse(decode.request.body.toString());
    const maxTokens = (request.sampling_params ?? request).max_tokens ?? -1;
    for (const pieces of [[1e9], [1], [100]]) {
      const { body, reason } = readResponse(decode.response.body, { tail, maxTokens, pieces, hold: 0 });
      expect(reason, name).toBe(Reason.None);
      const rows = (bytes: Buffer) => JSON.parse(bytes.toString()).choices[0].routed_experts;
      expect(rows(body), name).toBe(rows(oracle.response.body));
    }
    merged++;
  }
  expect(merged).toBeGreaterThan(5);
});
