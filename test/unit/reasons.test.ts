// Every reason why a merge fails, each with an input that has no other fault, before and after
// bytes have been sent to the client.

import { describe, expect, test } from 'vitest';
import { npyHeader } from '../../yardstick/npy.ts';
import { arrayText, overlay, randomRows, replyBody, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  Reason,
  Treatment,
  checkLeaks,
  expectNothingHeld,
  readReply,
  readResponse,
  wasm,
  type ResponseOptions,
} from './wasm.ts';

checkLeaks();

const SHAPE: Shape = { dtype: '<i2', layers: 2, topK: 2 };
const fixed = new Random(5);
const PREFILL = arrayText(SHAPE, randomRows(fixed, SHAPE, 6));
const GOOD = arrayText(SHAPE, randomRows(fixed, SHAPE, 9));
const OTHER = arrayText(SHAPE, randomRows(fixed, SHAPE, 8));

const body = (...values: string[]) =>
  `{"choices":[${values.map((v) => `{"routed_experts":${v}}`).join(',')}]}`;
const quoted = (text: string) => `"${text}"`;

function read(text: string, options: ResponseOptions = {}) {
  expect(readReply(replyBody(PREFILL, 6)).rows).toBe(true);
  return readResponse(Buffer.from(text), options);
}

/** Base64 of a `.npy` file with this dictionary in its header. */
function file(dictionary: string, data = Buffer.alloc(72), version = 1): string {
  const text = dictionary.padEnd(117) + '\n';
  const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, version, 0, text.length, 0]);
  return quoted(Buffer.concat([head, Buffer.from(text), data]).toString('base64'));
}

const dictionary = (descr: string, shape: string, order = 'False') =>
  `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }`;

/** Values of `routed_experts` that cannot be merged. No byte of them may be sent to the client. */
const BAD: [string, string, Reason][] = [
  ['an object', '{"data":"AAAA","shape":[9,2,2],"start":0}', Reason.Mixed],
  ['nested lists', '[[[1,2],[3,4]]]', Reason.Mixed],
  ['a number', '5', Reason.Format],
  ['true', 'true', Reason.Format],
  ['an empty string', '""', Reason.Size],
  ['a string that ends in the header', quoted(GOOD.slice(0, 80)), Reason.Size],
  ['padding in the header', quoted(GOOD.slice(0, 40) + '=' + GOOD.slice(41)), Reason.Base64],
  ['an escape in the header', quoted(GOOD.slice(0, 40) + '\\u0041' + GOOD.slice(41)), Reason.Base64],
  ['other base64', quoted(Buffer.alloc(300, 7).toString('base64')), Reason.Magic],
  ['int32 without a header', quoted(Buffer.alloc(300).toString('base64')), Reason.Magic],
  ['version 4', file(dictionary('<i2', '(9, 2, 2)'), undefined, 4), Reason.Version],
  ['a header that is none', file('rubbish'), Reason.Header],
  ['a negative dimension', file(dictionary('<i2', '(-9, 2, 2)')), Reason.Header],
  ['Fortran order', file(dictionary('<i2', '(9, 2, 2)', 'True')), Reason.Order],
  ['a strange dtype', file(dictionary('<f4', '(9, 2, 2)')), Reason.Dtype],
  ['two dimensions', file(dictionary('<i2', '(9, 4)')), Reason.Shape],
  ['four dimensions', file(dictionary('<i2', '(9, 2, 2, 1)')), Reason.Shape],
  ['other layers', file(dictionary('<i2', '(9, 4, 1)')), Reason.Layers],
  ['other top_k', file(dictionary('<i2', '(9, 2, 3)')), Reason.TopK],
  ['fewer rows than the prompt', file(dictionary('<i2', '(5, 2, 2)'), Buffer.alloc(40)), Reason.Rows],
];

/**
 * Faults behind the header. They are known before the array ends, but possibly after its first
 * bytes have been sent.
 */
const LATE: [string, string, Reason][] = [
  ['a row too few', quoted(GOOD.slice(0, -12)), Reason.Size],
  ['a row too many', quoted(GOOD.slice(0, -4) + 'AAAAAAAA'), Reason.Size],
  ['a character too few', quoted(GOOD.slice(0, -1)), Reason.Size],
  ['a character too many', quoted(GOOD + 'A'), Reason.Size],
  ['padding too much', quoted(GOOD + '='), Reason.Size],
  ['a stranger in the generated rows', quoted(GOOD.slice(0, -9) + '-' + GOOD.slice(-8)), Reason.Base64],
  ['an escape in the generated rows', quoted(GOOD.slice(0, -9) + '\\n' + GOOD.slice(-7)), Reason.Base64],
];

describe('an array can not be merged that is', () => {
  test.each([...BAD, ...LATE])('%s', (_, value, reason) => {
    for (const pieces of [[1e9], [1], [33]]) {
      for (const text of [body(value), body(quoted(GOOD), value), body('null', value)]) {
        const { body: left, ...response } = read(text, { pieces, choices: 2 });
        expect(response.reason).toBe(reason);
        expect(left.length).toBe(0);
      }
    }
  });

  test.each(BAD)('%s, after another was merged and has left', (_, value, reason) => {
    const text = body(quoted(GOOD), value);
    const merged = body(quoted(overlay(PREFILL, GOOD)), value);
    for (const pieces of [[1], [33]]) {
      const response = read(text, { pieces, choices: 2, hold: 0 });
      expect(response).toMatchObject({ reason, committed: true, choices: 1, complete: false });
      expect(merged.startsWith(response.body.toString())).toBe(true);
      // The client must not be able to take what it got for a complete response.
      expect(() => JSON.parse(response.body.toString())).toThrow();
    }
  });

  test.each(LATE)('%s, after its own rows have left', (_, value, reason) => {
    for (const pieces of [[1], [33]]) {
      const response = read(body(value), { pieces, hold: 0 });
      expect(response).toMatchObject({ reason, committed: true, complete: false });
      expect(() => JSON.parse(response.body.toString())).toThrow();
    }
  });

  test.each(BAD)('%s, and becomes null when all do', (_, value) => {
    const text = body(value, quoted(GOOD), 'null');
    for (const pieces of [[1e9], [1]]) {
      const response = read(text, { pieces, choices: 3, treatment: Treatment.Null });
      expect(response.body.toString()).toBe(body('null', 'null', 'null'));
      expect(response).toMatchObject({ reason: Reason.None, complete: true });
      expect(response.growth).toBe(response.body.length - text.length);
    }
  });

  test.each(BAD)('%s, and leaves as it came when it is to', (_, value) => {
    const text = body(quoted(GOOD), value);
    readReply(replyBody(PREFILL, 6));
    wasm['clearOutput']!();
    wasm['responseStart']!(0, 2, -1, 0, Treatment.Merge, 0, 0);
    const ptr = wasm['alloc']!(text.length) >>> 0;
    const memory = (wasm as unknown as { memory: WebAssembly.Memory }).memory;
    new Uint8Array(memory.buffer, ptr, text.length).set(Buffer.from(text));
    for (let at = 0; at < text.length; at += 50)
      wasm['responsePush']!(ptr + at, Math.min(50, text.length - at));
    wasm['responseForward']!();
    const out = new Uint8Array(memory.buffer, wasm['outputPtr']!(), wasm['outputLen']!());
    expect(Buffer.from(out).toString()).toBe(text);
    wasm['free']!(ptr);
  });
});

describe('a response can not be merged', () => {
  const g = quoted(GOOD);
  test.each<[string, string, Reason, ResponseOptions?]>([
    ['that is a list', `[${body(g)}]`, Reason.Json],
    ['that is a text', '"x"', Reason.Json],
    ['that is broken', body(g).replace('}]}', '}]]'), Reason.Json],
    ['with something behind it', `${body(g)} x`, Reason.Json],
    ['with choices twice', `{"choices":[],"choices":[{"routed_experts":${g}}]}`, Reason.Duplicate],
    [
      'with choices twice, once escaped',
      `{"choices":[{"routed_experts":${g}}],"ch\\u006fices":null}`,
      Reason.Duplicate,
    ],
    [
      'with an array twice',
      `{"choices":[{"routed_experts":${g},"routed_experts":${g}}]}`,
      Reason.Duplicate,
      { choices: 2 },
    ],
    [
      'with an array and null',
      `{"choices":[{"routed_experts":${g},"routed_experts":null}]}`,
      Reason.Duplicate,
    ],
    [
      'with null and an array',
      `{"choices":[{"routed_experts":null,"routed_experts":${g}}]}`,
      Reason.Duplicate,
    ],
    [
      'with an array twice, once escaped',
      `{"choices":[{"routed_experts":${g},"routed\\u005fexperts":null}]}`,
      Reason.Duplicate,
    ],
    ['with more arrays than were asked for', body(g, g), Reason.Choices],
    [
      'with prompt_routed_experts',
      `{"prompt_routed_experts":[[[1]]],"choices":[{"routed_experts":null}]}`,
      Reason.Mixed,
    ],
    ['with prompt_routed_experts in a choice', '{"choices":[{"prompt_routed_experts":{}}]}', Reason.Mixed],
    ["in SGLang's form", '{"text":"x","meta_info":{"routed_experts":"AAAA"}}', Reason.Mixed],
    ["in SGLang's other form", '{"choices":[],"sglext":{"routed_experts":"AAAA"}}', Reason.Mixed],
    ["in SGLang's form in a choice", '{"choices":[{"meta_info":{"routed_experts":"AAAA"}}]}', Reason.Mixed],
    ['of another prompt', `${body(g).slice(0, -1)},"usage":{"prompt_tokens":7}}`, Reason.Prompt],
    ['of another prompt, said first', `{"usage":{"prompt_tokens":7},${body(g).slice(1)}`, Reason.Prompt],
  ])('%s', (_, text, reason, options) => {
    for (const pieces of [[1e9], [1], [50]]) {
      const response = read(text, { pieces, ...options });
      expect(response.reason).toBe(reason);
      expect(response.body.length).toBe(0);
    }
  });

  test('without rows of prefill, for the reason that prefill gave', () => {
    for (const missing of [Reason.Missing, Reason.Sentinel, Reason.Format]) {
      wasm['freeRows']!();
      expect(readResponse(Buffer.from(body(quoted(GOOD))), { missing }).reason).toBe(missing);
      const without = readResponse(Buffer.from(body('null')), { missing });
      expect(without).toMatchObject({ reason: Reason.None, complete: true, choices: 0 });
      expect(without.body.toString()).toBe(body('null'));
    }
  });

  test('when memory is short', () => {
    const padded = arrayText(SHAPE, randomRows(fixed, SHAPE, 6), { padding: 1 });
    // A tail that has fewer rows than the prompt.
    const tail = arrayText(SHAPE, Buffer.alloc(8 * 5));
    for (const [array, isTail] of [
      [GOOD, false],
      [tail, true],
    ] as const) {
      expect(readReply(replyBody(padded, 6)).rows).toBe(true);
      wasm['holdBallast']!((768 << 20) - wasm['heldBytes']!());
      const { reason, body: left } = readResponse(Buffer.from(body(quoted(array))), { tail: isTail });
      wasm['dropBallast']!();
      expect([reason, left.length]).toEqual([Reason.Memory, 0]);
    }
  });

  test('when parked rows are lost on their way', () => {
    const text = Buffer.from(body(quoted(GOOD)));
    for (const lost of [0, 1]) {
      readReply(replyBody(PREFILL, 6), { park: 3 });
      expect(wasm['parkedPieces']!()).toBe(6);
      wasm['responseStart']!(0, 1, -1, 0, 0, 0, 0);
      const ptr = wasm['alloc']!(text.length) >>> 0;
      const memory = (wasm as unknown as { memory: WebAssembly.Memory }).memory;
      new Uint8Array(memory.buffer, ptr, text.length).set(text);
      wasm['responsePush']!(ptr, text.length);
      wasm['loseParked']!(lost);
      wasm['responseRelease']!();
      wasm['loseParked']!(-1);
      expect(wasm['responseBroken']!()).toBe(1);
      wasm['free']!(ptr);
      expectNothingHeld();
    }
  });
});

describe("prefill's reply", () => {
  const choice = (value: string) => `{"choices":[{"routed_experts":${value}}],"usage":{"prompt_tokens":6}}`;
  const reply = (text: string, windows = [1e9]) => readReply(Buffer.from(text), { windows });

  test('is read the same in windows of any size', () => {
    const text = `{"a":"é","choices":[{"index":0,"routed_experts":"${PREFILL}"}],"kv_transfer_params": {"b":[[1]]} ,"usage":{"prompt_tokens":6}}`;
    const whole = reply(text);
    expect(whole).toEqual({
      json: true,
      reason: Reason.None,
      promptTokens: 6,
      kv: '{"b":[[1]]}',
      rows: true,
    });
    const decoded = body(quoted(GOOD));
    for (let cut = 1; cut < Buffer.byteLength(text); cut++) {
      expect(reply(text, [cut, 1e9]), `cut at ${cut}`).toEqual(whole);
      const merged = readResponse(Buffer.from(decoded)).body.toString();
      expect(merged).toBe(body(quoted(overlay(PREFILL, GOOD))));
    }
    for (const windows of [[1], [2], [7], [100]]) expect(reply(text, windows)).toEqual(whole);
  });

  test.each(
    [...BAD, ...LATE].filter(
      ([, , reason]) => ![Reason.Layers, Reason.TopK, Reason.Rows, Reason.Mixed].includes(reason),
    ),
  )('has no rows to use when its array is %s', (name, value, reason) => {
    // This array is a fault only beside prefill's.
    if (name === 'another dtype than prefill') return;
    for (const windows of [[1e9], [1], [33]]) {
      const text = choice(value).replace(':6}', ':9}');
      expect(reply(text, windows)).toMatchObject({ json: true, reason, rows: false, promptTokens: 9 });
    }
  });

  test.each<[string, string, Reason]>([
    ['is of another prompt than it says', choice(quoted(GOOD)), Reason.Prompt],
    ['has an object that is too short', choice('{"data":"AAAA","shape":[9,2,2],"start":0}'), Reason.Size],
    ['has lists without the prompt', choice('[[[1,2],[3,4]]]'), Reason.Format],
    ['has no rows at all', choice(file(dictionary('<i2', '(0, 2, 2)'), Buffer.alloc(0))), Reason.Prompt],
    ['has a second array', body(quoted(PREFILL), quoted(OTHER)), Reason.Choices],
    [
      'has an array twice',
      `{"choices":[{"routed_experts":${quoted(PREFILL)},"routed_experts":${quoted(PREFILL)}}]}`,
      Reason.Duplicate,
    ],
    [
      'has an array twice, once null',
      `{"choices":[{"routed_experts":null,"r\\u006futed_experts":${quoted(PREFILL)}}]}`,
      Reason.Duplicate,
    ],
    [
      'has choices twice',
      `{"choices":[{"routed_experts":${quoted(PREFILL)}}],"choices":[]}`,
      Reason.Duplicate,
    ],
    [
      'has an array and prompt_routed_experts',
      `{"prompt_routed_experts":[[[1]]],${choice(quoted(PREFILL)).slice(1)}`,
      Reason.Mixed,
    ],
    [
      'has prompt_routed_experts and no count',
      '{"prompt_routed_experts":[[[1]]],"choices":[{}]}',
      Reason.Prompt,
    ],
    ["is in SGLang's form and has no count", '{"meta_info":{"routed_experts":"AAAA"}}', Reason.Prompt],
    ['announces more than the reply has', choice(file(dictionary('<i2', '(2147483647, 2, 2)'))), Reason.Size],
  ])('has no rows to use when it %s', (_, text, reason) => {
    for (const windows of [[1e9], [1]])
      expect(reply(text, windows)).toMatchObject({ json: true, reason, rows: false });
  });

  test('has no rows to use when one of them is all -1', () => {
    for (const dtype of ['<i2', '<i4'] as const) {
      for (const [layers, topK] of [
        [1, 1],
        [1, 3],
        [2, 2],
        [5, 1],
      ] as const) {
        const shape: Shape = { dtype, layers, topK };
        const bytes = layers * topK * Number(dtype[2]);
        for (let row = 0; row < 7; row++) {
          for (const padding of [0, 1, 2]) {
            const rows = randomRows(fixed, shape, 7);
            const text = (data: Buffer) =>
              choice(quoted(arrayText(shape, data, { padding }))).replace(':6}', ':7}');
            rows.fill(0xff, row * bytes, (row + 1) * bytes);
            expect(reply(text(rows)).reason).toBe(Reason.Sentinel);
            // With one bit less set, it is a row, not a sentinel.
            for (const bit of [0, bytes * 8 - 1, 9]) {
              const near = Buffer.from(rows);
              near[row * bytes + (bit >> 3)]! ^= 0x80 >> (bit & 7);
              expect(reply(text(near)).reason).toBe(Reason.None);
            }
          }
        }
      }
    }
  });

  test('may have rows of 255 where these are experts', () => {
    const shape: Shape = { dtype: '|u1', layers: 2, topK: 2 };
    expect(reply(choice(quoted(arrayText(shape, Buffer.alloc(24, 0xff))))).rows).toBe(true);
  });

  test.each<[string, string, number, string, boolean]>([
    [
      'no routing',
      '{"choices":[{"text":"x"}],"usage":{"prompt_tokens":6},"kv_transfer_params":{"a":1}}',
      6,
      '{"a":1}',
      false,
    ],
    ['null', choice('null'), 6, '', false],
    ['no usage', body(quoted(PREFILL)), 6, '', true],
    ['usage twice', '{"usage":{"prompt_tokens":9},"usage":{"prompt_tokens":6}}', 6, '', false],
    ['usage twice, then null', '{"usage":{"prompt_tokens":9},"usage":null}', -1, '', false],
    ['parameters twice', '{"kv_transfer_params":{"a":1},"kv_transfer_params":{"b":2}}', -1, '{"b":2}', false],
    ['parameters, then null', '{"kv_transfer_params":{"a":1},"kv_transfer_params":null}', -1, '', false],
    ['parameters that are no object', '{"kv_transfer_params":[1]}', -1, '', false],
    ['parameters below', '{"x":{"kv_transfer_params":{"a":1}}}', -1, '', false],
  ])('with %s is good', (_, text, promptTokens, kv, rows) => {
    for (const windows of [[1e9], [1]]) {
      expect(reply(text, windows)).toEqual({ json: true, reason: Reason.None, promptTokens, kv, rows });
    }
  });

  test.each([
    '',
    '7',
    '[{"choices":[]}]',
    '"x"',
    '{',
    '{"choices":[',
    '{}x',
    '{]',
    `${choice(quoted(PREFILL))}x`,
    choice(quoted(PREFILL)).slice(0, -1),
  ])('%s is no reply', (text) => {
    for (const windows of [[1e9], [1]])
      expect(reply(text, windows)).toMatchObject({ json: false, rows: false });
  });

  test('leaks nothing when it ends anywhere', () => {
    const text = choice(quoted(PREFILL));
    for (let end = 0; end < text.length; end++) {
      expect(reply(text.slice(0, end), [50]).json).toBe(false);
      expectNothingHeld();
    }
  });
});

test('no response makes it trap, leak, or leave as anything but JSON', () => {
  const header = npyHeader('<i2', [9, 2, 2]).toString('base64');
  const parts = [
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"',
    '\\',
    'null',
    '1',
    ' ',
    '"choices"',
    '"routed_experts"',
    GOOD,
    PREFILL,
    header,
    GOOD.slice(0, 200),
    '"usage":{"prompt_tokens":6,"completion_tokens":4}',
    '"token_ids":[1,2,3,4]',
    '=',
    '{"routed_experts":"',
  ];
  withSeeds(3000, (random) => {
    readReply(replyBody(PREFILL, 6));
    let text = body(
      ...Array.from({ length: random.between(1, 3) }, () =>
        random.pick(['null', quoted(GOOD), quoted(OTHER)]),
      ),
    );
    for (let n = random.below(3); n > 0; n--) {
      const at = random.below(text.length);
      text = text.slice(0, at) + random.pick(parts) + text.slice(at + random.pick([0, 0, 1, 3, 30]));
    }
    const common = {
      choices: random.between(1, 3),
      tail: random.chance(0.3),
      maxTokens: random.pick([-1, 4, 8, 100]),
    };
    const treatment = random.pick([Treatment.Merge, Treatment.Merge, Treatment.Null]);
    const whole = readResponse(Buffer.from(text), { ...common, treatment });
    const options = { ...common, treatment, hold: random.pick([0, 300, Infinity]) };
    const cut = readResponse(Buffer.from(text), { ...options, pieces: random.cuts(text.length, 60) });
    expect(cut.reason, text).toBe(whole.reason);
    if (whole.reason === Reason.None && whole.complete) {
      expect(cut.body.toString(), text).toBe(whole.body.toString());
      JSON.parse(whole.body.toString());
    }
    expectNothingHeld();
  });
});
