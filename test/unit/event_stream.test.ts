// Server-sent events: arrays in them are merged, and everything else passes unchanged.

import { describe, expect, test } from 'vitest';
import { captureNames, loadCapture } from '../engine/replay.ts';
import { DTYPES, arrayText, concatenate, overlay, randomRows, replyBody, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  Reason,
  Treatment,
  checkLeaks,
  expectNothingHeld,
  readReply,
  readResponse,
  type ResponseOptions,
} from './wasm.ts';

checkLeaks();

const SHAPE: Shape = { dtype: '|u1', layers: 2, topK: 2 };
const fixed = new Random(11);
const PREFILL = arrayText(SHAPE, randomRows(fixed, SHAPE, 3));
const ARRAY = arrayText(SHAPE, randomRows(fixed, SHAPE, 5));
const MERGED = overlay(PREFILL, ARRAY);

const event = (value: string) => `{"choices":[{"index":0,"routed_experts":${value}}]}`;

function read(body: string | Buffer, options: ResponseOptions = {}) {
  readReply(replyBody(PREFILL, 3));
  return readResponse(Buffer.from(body as string), { events: true, ...options });
}

/** A stream with every kind of line, and `value` as its array. */
function everything(value: string, end: string): string {
  return [
    ': comment with data: {"choices":[{"routed_experts":1}]}',
    'retry: 10',
    'event: message',
    'id: 7',
    'data: {"choices":[{"index":0,"text":"a\\nb","routed_experts":null}]}',
    '',
    'data:{"usage":null}',
    '',
    'datax: {"choices":[{"routed_experts":1}]}',
    'dat',
    'data',
    'data:',
    'data: "text"',
    'Data: {"choices":[{"routed_experts":1}]}',
    ' data: {"choices":[{"routed_experts":1}]}',
    '',
    `data:   ${event(value)}  `,
    'id: 8',
    '',
    '',
    'data: [DONE]',
    '',
    '',
  ].join(end);
}

describe('a stream', () => {
  test.each([
    ['LF', '\n'],
    ['CR', '\r'],
    ['CRLF', '\r\n'],
  ])('with lines that end in %s is merged, split at any byte', (_, end) => {
    const body = everything(`"${ARRAY}"`, end);
    const expected = everything(`"${MERGED}"`, end);
    for (let cut = 0; cut <= body.length; cut++) {
      const pieces = cut === 0 ? [1] : [cut, body.length];
      const merged = read(body, { pieces });
      expect(merged.body.toString(), `cut at ${cut}`).toBe(expected);
      expect(merged).toMatchObject({ reason: Reason.None, complete: true, choices: 1 });
    }
  });

  test('with choices in events of their own is merged, whatever the arrays, lines and pieces', () => {
    withSeeds(150, (random) => {
      const shape = { dtype: random.pick(DTYPES), layers: random.between(1, 5), topK: random.between(1, 3) };
      const tail = random.chance(0.5);
      const prompt = random.between(1, 9);
      const prefill = arrayText(shape, randomRows(random, shape, prompt), { padding: random.below(3) });
      readReply(replyBody(prefill, prompt));
      const n = random.between(1, 4);
      const merge = tail ? concatenate : overlay;
      let body = '';
      let expected = '';
      for (let index = 0; index < n; index++) {
        // An array with fewer rows than the prompt can only be a tail.
        const rows = tail ? random.below(prompt) : prompt + random.below(9);
        const own = { ...shape, dtype: random.chance(0.5) ? shape.dtype : random.pick(DTYPES) };
        const array = arrayText(own, randomRows(random, own, rows), { padding: random.below(4) });
        const end = random.pick(['\n', '\r', '\r\n']);
        const write = (text: string) =>
          `: ping${end}${end}data: {"choices":[{"index":${index},"token_ids":[1,2]}]}${end}${end}` +
          `data: {"choices":[{"index":${index},"routed_experts":"${text}","text":"\\u00e9é"}]}${end}${end}`;
        body += write(array);
        expected += write(merge(prefill, array));
      }
      for (const pieces of [
        [body.length + 99],
        [1],
        random.cuts(body.length, 30),
        random.cuts(body.length, 400),
      ]) {
        const options = { events: true, tail, choices: n, pieces, unread: random.chance(0.7) };
        const merged = readResponse(Buffer.from(body), options);
        expect(merged.body.toString()).toBe(expected);
        expect(merged).toMatchObject({ reason: Reason.None, complete: true, choices: n });
        expect(merged.growth).toBe(Buffer.byteLength(expected) - Buffer.byteLength(body));
      }
    });
  });

  test.each([
    ['one', '\ufeff', MERGED],
    ['two', '\ufeff\ufeff', ARRAY],
    ['some', Buffer.from([0xef, 0xbb]), ARRAY],
    ['some, and a line', Buffer.from([0xef, 0x0a]), MERGED],
    ['one, and lines', '\ufeff\n\r\n', MERGED],
  ])('may begin with a byte order mark, split at any byte: %s', (_, mark, array) => {
    const bytes = (text: string) => Buffer.concat([Buffer.from(mark as Buffer), Buffer.from(text)]);
    const body = bytes(`data: ${event(`"${ARRAY}"`)}\n\ndata: [DONE]\n\n`);
    const expected = bytes(`data: ${event(`"${array}"`)}\n\ndata: [DONE]\n\n`);
    for (let cut = 0; cut <= body.length; cut++) {
      const merged = read(body, { pieces: cut === 0 ? [1] : [cut, body.length] });
      expect(merged.body.equals(expected), `cut at ${cut}`).toBe(true);
      expect(merged).toMatchObject({ reason: Reason.None, complete: true });
    }
  });

  test('lets events leave as they come, and holds back only a header that is not whole', () => {
    const start = 'data: {"choices":[{"index":0,"routed_experts":"';
    for (let until = 0; until < start.length + 100; until++) {
      const { body, reason } = read(`${start}${ARRAY}"}]}\n\n`, { until, pieces: [13] });
      expect(reason).toBe(Reason.None);
      // The opening quote is held together with the string that it opens.
      expect(body.length).toBe(until < start.length ? until : start.length - 1);
    }
  });

  test('that ends anywhere is whole only where no event is cut', () => {
    const body = `data: ${event(`"${ARRAY}"`)}\n\ndata: [DONE]\n\n`;
    const from = 'data: '.length;
    const to = body.indexOf('\n');
    for (let until = 0; until <= body.length; until++) {
      const { complete, reason } = read(body, { until, pieces: [17] });
      expect(reason).toBe(Reason.None);
      expect(complete, `until ${until}`).toBe(until <= from || until >= to);
      expectNothingHeld();
    }
  });

  test('of an engine that was captured is merged', () => {
    let streams = 0;
    for (const name of captureNames().filter((name) => name.includes('stream'))) {
      const { prefill, decode } = loadCapture(name);
      const reply = readReply(prefill.response.body, { windows: [999] });
      const body = decode.response.body;
      const arrays = (bytes: Buffer) => bytes.toString().match(/"routed_experts":"[^"]*"/g) ?? [];
      for (const pieces of [[1e9], [1], [777]]) {
        const merged = readResponse(body, { events: true, pieces });
        expect(merged).toMatchObject({ reason: Reason.None, complete: true });
        if (arrays(body).length === 0) expect(merged.body.equals(body)).toBe(true);
        else expect(reply.rows && merged.choices > 0).toBe(true);
      }
      streams++;
    }
    expect(streams).toBeGreaterThan(0);
  });
});

describe('is refused', () => {
  test.each<[string, string, Reason]>([
    ['an event that is no JSON', 'data: {"choices":[}\n\n', Reason.Json],
    ['an event that is cut by a blank line', 'data: {"choices":[\n\n', Reason.Json],
    ['a document over several lines', 'data: {"choices":\ndata: []}\n\n', Reason.Json],
    [
      'a string over several lines',
      `data: {"choices":[{"routed_experts":"${ARRAY.slice(0, 60)}\ndata: `,
      Reason.Json,
    ],
    ['something behind a document', 'data: {"choices":[]} x\n\n', Reason.Json],
    ['a JSON document', event(`"${ARRAY}"`), Reason.Format],
    ['a JSON document behind a mark', `\ufeff${event('null')}`, Reason.Format],
    ['a JSON document behind events and white space', `data: {}\n\n \t \n\t {"a":1}`, Reason.Format],
    ['a list', '[1]', Reason.Format],
    ['an event that is a list', 'data: {}\n\ndata: []\n\n', Reason.Format],
    ['an event that is a list in several lines', 'data:[\rdata:1]\r\r', Reason.Format],
    ['an event that is nearly the end', 'data: [ DONE]\n\n', Reason.Format],
    [
      'two arrays for one choice that was asked for',
      `data: ${event(`"${ARRAY}"`)}\n\ndata: ${event(`"${ARRAY}"`)}\n\n`,
      Reason.Choices,
    ],
    [
      'an array twice in a choice',
      `data: {"choices":[{"routed_experts":null,"routed_experts":"${ARRAY}"}]}\n\n`,
      Reason.Duplicate,
    ],
    ['choices twice in an event', 'data: {"choices":[],"choices":[]}\n\n', Reason.Duplicate],
    [
      'another prompt',
      `data: ${event(`"${ARRAY}"`).slice(0, -1)},"usage":{"prompt_tokens":4}}\n\n`,
      Reason.Prompt,
    ],
  ])('%s', (_, body, reason) => {
    for (const pieces of [[1e9], [1]]) expect(read(body, { pieces }).reason).toBe(reason);
  });
});

describe('where null is better than nothing', () => {
  const treatment = Treatment.MergeOrNull;

  test('an array that cannot be merged becomes null, split at any byte', () => {
    const wrong = arrayText({ ...SHAPE, layers: 3 }, Buffer.alloc(5 * 6));
    const body = everything(`"${wrong}"`, '\n');
    const expected = everything('null', '\n');
    for (let cut = 0; cut <= body.length; cut++) {
      const pieces = cut === 0 ? [1] : [cut, body.length];
      const nulled = read(body, { pieces, treatment });
      expect(nulled.body.toString(), `cut at ${cut}`).toBe(expected);
      expect(nulled).toMatchObject({ reason: Reason.None, nulled: Reason.Layers, complete: true });
    }
  });

  test.each<[string, string, Reason]>([
    ['an object', '{"data":"x","shape":[1,2]}', Reason.Mixed],
    ['a list', '[[1,2],[3]]', Reason.Mixed],
    ['a number', '17', Reason.Format],
    ['rubbish', '"not base64 \\" at all"', Reason.Base64],
    ['a short string', '""', Reason.Size],
    ['another file', `"${Buffer.alloc(99).toString('base64')}"`, Reason.Magic],
  ])('%s becomes null', (_, value, reason) => {
    for (const pieces of [[1e9], [1]]) {
      const nulled = read(`data: ${event(value)}\n\n`, { pieces, treatment });
      expect(nulled.body.toString()).toBe(`data: ${event('null')}\n\n`);
      expect([nulled.reason, nulled.nulled]).toEqual([Reason.None, reason]);
    }
  });

  test('one event can be merged and another not', () => {
    const two = (a: string, b: string) => `data: ${event(a)}\n\ndata: ${event(b)}\n\n`;
    const nulled = read(two(`"${ARRAY}"`, '{}'), { treatment, choices: 2, pieces: [20] });
    expect(nulled.body.toString()).toBe(two(`"${MERGED}"`, 'null'));
    expect(nulled).toMatchObject({ choices: 1, nulled: Reason.Mixed });
  });

  test('an array of which some has left is refused all the same', () => {
    const cut = ARRAY.slice(0, -8);
    for (const pieces of [[1e9], [1]]) {
      expect(read(`data: ${event(`"${cut}"`)}\n\n`, { treatment, pieces }).reason).toBe(Reason.Size);
    }
  });
});

test('no bytes make it trap, leak, or let more out than came in order', () => {
  const parts = [
    'data: ',
    'data:',
    '{"choices":[',
    '{"routed_experts":"',
    ARRAY,
    ARRAY.slice(0, 100),
    '"}',
    ']}',
    '\n',
    '\r',
    '\r\n\r\n',
    '{',
    '"',
    '\\',
    ': x',
    ' ',
    'null',
    '[DONE]',
    '[',
    '\ufeff',
  ];
  withSeeds(2000, (random) => {
    readReply(replyBody(PREFILL, 3));
    const body = Array.from({ length: random.between(1, 25) }, () => random.pick(parts)).join('');
    const common = { events: true, choices: random.between(1, 3), tail: random.chance(0.3) };
    const treatment = random.pick([Treatment.Merge, Treatment.MergeOrNull]);
    const whole = readResponse(Buffer.from(body), { ...common, treatment });
    const cut = readResponse(Buffer.from(body), {
      ...common,
      treatment,
      pieces: random.cuts(body.length, 40),
    });
    expect(cut.reason, body).toBe(whole.reason);
    if (whole.reason === Reason.None) expect(cut.body.toString(), body).toBe(whole.body.toString());
    expectNothingHeld();
  });
});
