// Formats B, C and D: how both legs' replies are merged, compared with Buffer and JSON. Format A is
// in merge.test.ts.

import { describe, expect, test } from 'vitest';
import { arrayText, DTYPES, promoted, randomRows, rowBytes, widened, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  checkLeaks,
  expectNothingHeld,
  readReply,
  readResponse,
  Reason,
  Treatment,
  wasm,
  type ResponseOptions,
} from './wasm.ts';

checkLeaks();

const NAMES = { '|u1': 'uint8', '<u2': 'uint16', '<i2': 'int16', '<i4': 'int32' } as const;

const randomShape = (random: Random, dtype = random.pick(DTYPES)): Shape => ({
  dtype,
  layers: random.between(1, 5),
  topK: random.between(1, 4),
});

/** How a body is cut into pieces, and how many bytes are held back. */
const cuts = (random: Random): ResponseOptions => ({
  pieces: random.pick([[1e9], [1], [random.between(2, 60)], [random.between(60, 900)]]),
  hold: random.pick([Infinity, 0, 50]),
});

function keep(body: string, random: Random, start = 0): void {
  const windows = random.pick([[1e9], [1], [random.between(2, 60)], [16, 1e9]]);
  const park = random.pick([undefined, 3 * random.between(1, 9)]);
  const reply = readReply(Buffer.from(body), { windows, park, start });
  expect(reply, body).toMatchObject({ json: true, reason: Reason.None });
}

function expectMerged(body: string, expected: string, options: ResponseOptions, choices: number): void {
  const merged = readResponse(Buffer.from(body), options);
  expect({ ...merged, body: merged.body.toString() }).toMatchObject({
    reason: Reason.None,
    body: expected,
    complete: true,
    choices,
    growth: expected.length - body.length,
  });
}

function expectRefused(body: string, reason: Reason, options: ResponseOptions = {}): void {
  for (const pieces of [[1e9], [1], [50]]) {
    const refused = readResponse(Buffer.from(body), { pieces, ...options });
    expect({ reason: refused.reason, body: refused.body.toString() }).toEqual({ reason, body: '' });
    wasm['responseFree']!();
  }
}

// ---- format B

interface Piece {
  shape: Shape;
  start: number;
  data: Buffer;
}

/**
 * An object with its members in the order of `order`, from which members that have a default may be
 * missing. With `coded`, dtypes are named as in a `.npy` header.
 */
function object({ shape, start, data }: Piece, order: readonly string[], coded = false): string {
  const members: Record<string, string> = {
    data: JSON.stringify(data.toString('base64')),
    shape: JSON.stringify([data.length / rowBytes(shape), shape.layers, shape.topK]),
    start: String(start),
    dtype: JSON.stringify(coded ? shape.dtype : NAMES[shape.dtype as keyof typeof NAMES]),
  };
  return `{${order.map((key) => `"${key}":${members[key]}`).join(',')}}`;
}

function order(random: Random, piece: Piece): string[] {
  const keys = ['data', 'shape'];
  if (piece.start > 0 || random.chance(0.6)) keys.push('start');
  if (piece.shape.dtype !== '|u1' || random.chance(0.6)) keys.push('dtype');
  return random.shuffled(keys);
}

const reply = (value: string, prompt: number, members = '') =>
  `{"choices":[{"index":0,"text":" x","routed_experts":${value}${members}}],` +
  `"usage":{"prompt_tokens":${prompt},"completion_tokens":1},"kv_transfer_params":{"a":1}}`;

const response = (values: readonly string[], prompt?: number) =>
  `{"id":"é","choices":[${values.map((value, i) => `{"routed_experts":${value},"index":${i}}`).join(',')}]` +
  `${prompt === undefined ? '' : `,"usage":{"prompt_tokens":${prompt}}`}}`;

describe('B, an object', () => {
  /** The tokens whose rows come first: those that the client asks for, prefill's and decode's. */
  const starts = (random: Random, prompt: number) => {
    const start = random.chance(0.5) ? 0 : random.between(0, prompt);
    const prefill = random.chance(0.5) ? 0 : random.between(0, Math.min(start, prompt - 1));
    return { start, prefill, decode: () => random.between(0, prompt) };
  };

  test('has rows matched by token, whatever its keys, its start and the pieces it comes in', () => {
    withSeeds(600, (random) => {
      const shape = randomShape(random);
      const size = rowBytes(shape);
      const prompt = random.between(1, 20);
      const total = prompt + random.between(0, 20);
      const truth = randomRows(random, shape, total);
      const first = starts(random, prompt);
      const prefill = {
        shape,
        start: first.prefill,
        data: truth.subarray(first.prefill * size, prompt * size),
      };
      keep(reply(object(prefill, order(random, prefill)), prompt), random, first.start);
      const choices = random.between(1, 3);
      const [values, expected]: string[][] = [[], []];
      for (let i = 0; i < choices; i++) {
        const start = first.decode();
        const sent = Buffer.from(truth.subarray(start * size, total * size));
        random.bytes(sent.length).copy(sent, 0, 0, (prompt - start) * size);
        const decode = { shape, start, data: sent };
        const keys = order(random, decode);
        values!.push(object(decode, keys));
        // Without `start` an object begins with token 0; the merged one may begin behind it.
        const all = keys.includes('start') || first.start === 0 ? keys : [...keys, 'start'];
        const merged = { shape, start: first.start, data: truth.subarray(first.start * size) };
        expected!.push(object(merged, all));
      }
      const usage = random.pick([undefined, prompt]);
      const options = { choices, ...cuts(random) };
      expectMerged(response(values!, usage), response(expected!, usage), options, choices);
      expectNothingHeld();
    });
  });

  test('is widened, or gets wider rows, where the legs chose different dtypes', () => {
    withSeeds(900, (random) => {
      const shape = randomShape(random);
      const prompt = random.between(1, random.chance(0.1) ? 300 : 20);
      const first = starts(random, prompt);
      const given = randomRows(random, shape, prompt - first.prefill);
      const coded = random.chance(0.3);
      const prefill = { shape, start: first.prefill, data: given };
      keep(reply(object(prefill, order(random, prefill), coded), prompt), random, first.start);
      const choices = random.between(1, 3);
      const [values, expected]: string[][] = [[], []];
      for (let i = 0; i < choices; i++) {
        const own = { ...shape, dtype: random.pick(DTYPES) };
        const start = random.chance(0.4) ? prompt : first.decode();
        const rows = prompt - start + random.pick([0, 0, 1, 2, 9, 30]);
        const decode = { shape: own, start, data: randomRows(random, own, rows) };
        const keys = order(random, decode);
        const style = random.chance(0.3);
        values!.push(object(decode, keys, style));
        // Where no row is prefill's, its dtype does not matter.
        const none = first.start === prompt;
        const to = { ...shape, dtype: none ? own.dtype : promoted(shape.dtype, own.dtype) };
        const data = Buffer.concat([
          widened(given.subarray((first.start - first.prefill) * rowBytes(shape)), shape.dtype, to.dtype),
          widened(decode.data.subarray((prompt - start) * rowBytes(own)), own.dtype, to.dtype),
        ]);
        // When decode named no dtype and the merged array needs one, it comes last, and is named as
        // prefill names it.
        const said = keys.includes('dtype');
        const all = [...keys];
        if (!keys.includes('start') && first.start > 0) all.push('start');
        if (!said && to.dtype !== own.dtype) all.push('dtype');
        expected!.push(object({ shape: to, start: first.start, data }, all, said ? style : coded));
      }
      expectMerged(response(values!), response(expected!), { choices, ...cuts(random) }, choices);
      expectNothingHeld();
    });
  });

  test('is widened by the rows behind those that prefill gives', () => {
    withSeeds(100, (random) => {
      const shape = randomShape(random);
      const own = { ...shape, dtype: random.pick(DTYPES) };
      const prompt = random.between(2, 20);
      const given = randomRows(random, shape, prompt);
      wasm['keepLastRow']!(1);
      keep(reply(object({ shape, start: 0, data: given }, ['data', 'shape', 'dtype']), prompt), random);
      wasm['keepLastRow']!(0);
      const keys = random.shuffled(['data', 'shape', 'start', 'dtype']);
      const start = random.below(prompt);
      const sent = randomRows(random, own, prompt - start + random.below(9));
      const to = { ...shape, dtype: promoted(shape.dtype, own.dtype) };
      const data = Buffer.concat([
        widened(given.subarray(0, (prompt - 1) * rowBytes(shape)), shape.dtype, to.dtype),
        widened(sent.subarray((prompt - 1 - start) * rowBytes(own)), own.dtype, to.dtype),
      ]);
      expectMerged(
        response([object({ shape: own, start, data: sent }, keys)]),
        response([object({ shape: to, start: 0, data }, keys)]),
        cuts(random),
        1,
      );
    });
  });

  test.each([
    ['null', '"dtype":null', '"dtype":"<u2"'],
    ['not there', '"x":1 ', '"x":1 ,"dtype":"<u2"'],
    ['an escaped key', '"d\\u0074ype" : "uint8"', '"d\\u0074ype" : "uint16"'],
  ])("with a dtype that is %s gets prefill's", (_, member, wide) => {
    const body = (of: string, dtype: string) => `{"data":"${of}","shape":[3,1,1],${dtype}}`;
    expect(readReply(Buffer.from(reply(body('AQACAAMA', '"dtype":"<u2"'), 3)))).toMatchObject({ rows: true });
    for (const hold of [0, Infinity]) {
      for (const pieces of [[1], [1e9], [9]]) {
        const sent = body('AAAA', member);
        const wanted = body('AQACAAMA', wide);
        expectMerged(response([sent]), response([wanted]), { hold, pieces }, 1);
      }
    }
  });

  const shape: Shape = { dtype: '|u1', layers: 2, topK: 2 };
  const rows = (n: number) => Buffer.from(Array.from({ length: n * 4 }, (_, i) => i));
  const data = (n: number) => rows(n).toString('base64');
  const good = object({ shape, start: 0, data: rows(6) }, ['data', 'shape', 'start', 'dtype']);
  const prefill = (start = 0) =>
    readReply(
      Buffer.from(reply(object({ shape, start, data: rows(4) }, ['start', 'shape', 'data']), start + 4)),
    );

  test.each<[string, string, Reason]>([
    ['has another dtype than its bytes', good.replace('uint8', 'int32'), Reason.Size],
    ['is of a dtype that nobody has', good.replace('uint8', 'float16'), Reason.Dtype],
    ['has a dtype that is no name', good.replace('"uint8"', '8'), Reason.Dtype],
    ['has other layers', good.replace('[6,2,2]', '[6,1,4]'), Reason.Layers],
    ['has another top_k', good.replace('[6,2,2]', '[6,2,1]'), Reason.TopK],
    ['has two dimensions', good.replace('[6,2,2]', '[6,4]'), Reason.Layers],
    ['has four dimensions', good.replace('[6,2,2]', '[6,2,2,1]'), Reason.Shape],
    ['has no shape', good.replace('"shape":[6,2,2],', ''), Reason.Shape],
    ['has a shape that is no list', good.replace('[6,2,2]', '6'), Reason.Shape],
    ['has a negative dimension', good.replace('[6,2,2]', '[-6,2,2]'), Reason.Shape],
    ['has fewer bytes than its shape', good.replace('[6,', '[7,'), Reason.Size],
    ['has more bytes than its shape', good.replace('[6,', '[5,'), Reason.Size],
    ['has no data', good.replace(`"data":"${data(6)}",`, ''), Reason.Format],
    ['has data that is null', good.replace(`"${data(6)}"`, 'null'), Reason.Format],
    ['is not base64', good.replace(data(6), `${data(6).slice(0, -4)}AB$=`), Reason.Base64],
    ['has an escape', good.replace(data(6), `\\u0041${data(6).slice(1)}`), Reason.Base64],
    ['has a member twice', good.replace('"start":0', '"start":0,"start":0'), Reason.Duplicate],
    ['begins behind the prompt', good.replace('"start":0', '"start":5'), Reason.Rows],
    ['ends in the prompt', good.replace(data(6), data(3)).replace('[6,', '[3,'), Reason.Rows],
    ['has a start that is no number', good.replace('"start":0', '"start":"0"'), Reason.Rows],
    ['is a string', `"${arrayText(shape, rows(6))}"`, Reason.Mixed],
  ])('is refused when it %s', (_, value, reason) => {
    prefill();
    expectRefused(response([value]), reason);
    const nulled = readResponse(Buffer.from(response([value])), { treatment: Treatment.MergeOrNull });
    expect(nulled).toMatchObject({ reason: Reason.None, nulled: reason, complete: true });
    expect(nulled.body.toString()).toBe(response(['null']));
  });

  test('is refused when it begins before prefill does, and nobody asked for that', () => {
    expect(prefill(2)).toMatchObject({ reason: Reason.None, rows: true });
    expectRefused(response([good]), Reason.Rows);
  });

  test.each<[string, string, Reason]>([
    ['is of another prompt', reply(good, 5), Reason.Prompt],
    ['has no rows', reply('{"data":"","shape":[0,2,2]}', 0), Reason.Prompt],
    [
      'has a row of -1',
      reply(`{"data":"${'/'.repeat(32)}","shape":[3,1,2],"dtype":"int32"}`, 3),
      Reason.Sentinel,
    ],
    ['is longer than its shape', reply(good.replace('[6,', '[5,'), 5), Reason.Size],
    ['is two', `{"choices":[{"routed_experts":${good}},{"routed_experts":${good}}]}`, Reason.Choices],
    ['is beside a string', `{"sglext":{"routed_experts":"AAAA"},${reply(good, 6).slice(1)}`, Reason.Mixed],
  ])('gives no rows when prefill %s', (_, body, reason) => {
    for (const windows of [[1e9], [1], [33]]) {
      expect(readReply(Buffer.from(body), { windows })).toMatchObject({ json: true, reason, rows: false });
    }
  });
});

// ---- format D

describe('D, int32 without a header', () => {
  const shapeOf = (random: Random) => randomShape(random, '<i4');
  const info = (data: Buffer, prompt: number, generated: number, random: Random) => {
    const members = random.shuffled([
      `"prompt_tokens":${prompt}`,
      `"completion_tokens":${generated}`,
      `"routed_experts":"${data.toString('base64')}"`,
      '"finish_reason":{"type":"length","length":3}',
    ]);
    return `{${members.join(',')}}`;
  };

  /** One prompt and its rows, as prefill, decode and an engine that does both return them. */
  const made = (random: Random) => {
    const shape = shapeOf(random);
    const size = rowBytes(shape);
    const prompt = random.between(1, 20);
    const generated = random.between(1, 20);
    const truth = randomRows(random, shape, prompt + generated - 1);
    const sent = Buffer.from(truth);
    random.bytes(prompt * size).copy(sent);
    const seed = random.below(1e9);
    const again = () => new Random(seed);
    return {
      prefill: info(truth.subarray(0, prompt * size), prompt, 1, random),
      decode: info(sent, prompt, generated, again()),
      merged: info(truth, prompt, generated, again()),
    };
  };

  const native = (of: string) => `{"text":"é","output_ids":[1,2],"meta_info":${of}}`;

  test('is overlaid in meta_info', () => {
    withSeeds(400, (random) => {
      const { prefill, decode, merged } = made(random);
      keep(native(prefill), random);
      expectMerged(native(decode), native(merged), cuts(random), 1);
      expectNothingHeld();
    });
  });

  test('is overlaid element by element of a list', () => {
    withSeeds(300, (random) => {
      const all = Array.from({ length: random.between(1, 4) }, () => made(random));
      const list = (of: 'prefill' | 'decode' | 'merged') =>
        `[${all.map((one) => native(one[of])).join(', ')}]`;
      keep(list('prefill'), random);
      expectMerged(list('decode'), list('merged'), cuts(random), all.length);
      expectNothingHeld();
    });
  });

  test('is overlaid in sglext', () => {
    withSeeds(200, (random) => {
      const shape = shapeOf(random);
      const size = rowBytes(shape);
      const prompt = random.between(1, 20);
      const generated = random.between(1, 20);
      const truth = randomRows(random, shape, prompt + generated - 1);
      const sent = Buffer.from(truth);
      random.bytes(prompt * size).copy(sent);
      const chat = (data: Buffer, tokens: number) =>
        `{"choices":[{"index":0,"message":{"content":"x"}}],"usage":{"prompt_tokens":${prompt},` +
        `"completion_tokens":${tokens}},"sglext":{"routed_experts":"${data.toString('base64')}"}}`;
      keep(chat(truth.subarray(0, prompt * size), 1), random);
      expectMerged(chat(sent, generated), chat(truth, generated), cuts(random), 1);
      expectNothingHeld();
    });
  });

  test('is overlaid in both places of a chat', () => {
    const both = (rows: number, generated: number, value = text(rows)) =>
      `{"choices":[{"meta_info":{"routed_experts":"${value}"}}],"usage":{"prompt_tokens":4,` +
      `"completion_tokens":${generated}},"sglext":{"routed_experts":"${value}"}}`;
    expect(readReply(Buffer.from(both(4, 1)))).toMatchObject({ reason: Reason.None, rows: true });
    const stale = Buffer.alloc(7 * 8, 7)
      .fill(3, 0, 32)
      .toString('base64');
    expectMerged(both(7, 4, stale), both(7, 4), {}, 2);
  });

  test('is overlaid from the token on that was asked for', () => {
    const rows = Buffer.from(Array.from({ length: 9 * 8 }, (_, i) => i));
    const of = (from: number, to: number, generated: number) =>
      native(
        `{"prompt_tokens":6,"completion_tokens":${generated},` +
          `"routed_experts":"${rows.subarray(from * 8, to * 8).toString('base64')}"}`,
      );
    expect(readReply(Buffer.from(of(2, 6, 1)), { start: 2 })).toMatchObject({ reason: Reason.None });
    const stale = of(2, 9, 4).replace(
      /"[^"]*"}}$/,
      `"${Buffer.concat([Buffer.alloc(32), rows.subarray(48)]).toString('base64')}"}}`,
    );
    expectMerged(stale, of(2, 9, 4), {}, 1);
    expectRefused(of(0, 9, 4), Reason.Rows);
    wasm['freeRows']!();
    // When the client asks only for rows behind the prompt, prefill has no row to give, and all
    // rows are decode's.
    for (const start of [6, 7]) {
      expect(readReply(Buffer.from(of(6, 6, 1)), { start })).toMatchObject({ reason: Reason.None });
      expectMerged(of(start, 9, 4), of(start, 9, 4), {}, 1);
      expectRefused(of(start, 9, 5), Reason.Rows);
    }
    expect(readReply(Buffer.from(of(5, 6, 1)), { start: 6 })).toMatchObject({ reason: Reason.Prompt });
  });

  const text = (rows: number) => Buffer.alloc(rows * 8, 7).toString('base64');
  const meta = (rows: number, prompt: number, generated: number) =>
    native(`{"prompt_tokens":${prompt},"completion_tokens":${generated},"routed_experts":"${text(rows)}"}`);

  test.each<[string, string, Reason]>([
    ['has fewer rows than the prompt', meta(3, 4, 1), Reason.Rows],
    ['has fewer rows than tokens', meta(6, 4, 4), Reason.Rows],
    ['has more rows than tokens', meta(8, 4, 4), Reason.Rows],
    [
      'has half a row',
      meta(7, 4, 4).replace(text(7), Buffer.alloc(7 * 8 + 4).toString('base64')),
      Reason.Size,
    ],
    ['is of another prompt', meta(7, 5, 3), Reason.Prompt],
    ['is cut off', meta(7, 4, 4).replace(text(7), text(7).slice(0, -1)), Reason.Size],
    ['is not base64', meta(7, 4, 4).replace(text(7), `${text(7).slice(0, -2)}$$`), Reason.Base64],
    [
      'has an escape',
      meta(7, 4, 4).replace(text(7), `${text(7).slice(0, 9)}\\n${text(7).slice(9)}`),
      Reason.Base64,
    ],
    ['is no string', meta(7, 4, 4).replace(`"${text(7)}"`, '[1]'), Reason.Format],
    ['is there twice', meta(7, 4, 4).replace('}}', `,"routed_experts":"${text(7)}"}}`), Reason.Duplicate],
    ['is a list of two', `[${meta(7, 4, 4)},${meta(7, 4, 4)}]`, Reason.Choices],
  ])('is refused when it %s', (_, body, reason) => {
    expect(readReply(Buffer.from(meta(4, 4, 1)))).toMatchObject({ reason: Reason.None, rows: true });
    wasm['expectPrompts']!(reason === Reason.Choices ? 2 : 1);
    expectRefused(body, reason);
    wasm['expectPrompts']!(1);
  });

  describe('beside another array', () => {
    /** `meta_info` with both arrays, or one, in any order and with rows of other lengths. */
    const two = (random: Random, names: readonly string[]) => {
      const prompt = random.between(1, 20);
      const generated = random.between(1, 20);
      const seed = random.below(1e9);
      const arrays = names.map((name) => {
        const size = rowBytes(shapeOf(random));
        const all = random.bytes((prompt + generated - 1) * size);
        // Experts must be such as a router gives, and the positions of an indexer need not be.
        const truth = name === 'routed_experts' ? all.map((byte) => byte | 1) : all.fill(255, 0, size);
        const sent = Buffer.from(truth);
        random.bytes(prompt * size).copy(sent);
        return {
          name,
          prefill: Buffer.from(truth).subarray(0, prompt * size),
          sent,
          truth: Buffer.from(truth),
        };
      });
      const of = (which: 'prefill' | 'sent' | 'truth', tokens: number) => {
        const members = new Random(seed).shuffled([
          `"prompt_tokens":${prompt}`,
          `"completion_tokens":${tokens}`,
          ...arrays.map((array) => `"${array.name}":"${array[which].toString('base64')}"`),
        ]);
        return native(`{${members.join(',')}}`);
      };
      return { prefill: of('prefill', 1), decode: of('sent', generated), merged: of('truth', generated) };
    };

    test.each([
      [['routed_experts', 'indexer_topk']],
      [['indexer_topk', 'routed_experts']],
      [['indexer_topk']],
    ])('%j', (names) => {
      withSeeds(200, (random) => {
        const { prefill, decode, merged } = two(random, names);
        keep(prefill, random);
        expectMerged(decode, merged, cuts(random), names.length);
        expectNothingHeld();
      });
    });

    test('and element by element of a list', () => {
      withSeeds(200, (random) => {
        const all = Array.from({ length: random.between(1, 4) }, () =>
          two(random, ['routed_experts', 'indexer_topk']),
        );
        const list = (of: 'prefill' | 'decode' | 'merged') => `[${all.map((one) => one[of]).join(',')}]`;
        keep(list('prefill'), random);
        expectMerged(list('decode'), list('merged'), cuts(random), 2 * all.length);
        expectNothingHeld();
      });
    });

    test('is refused where prefill lacks one of them', () => {
      withSeeds(50, (random) => {
        const seed = random.below(1e9);
        const { prefill, decode } = two(new Random(seed), ['routed_experts', 'indexer_topk']);
        keep(prefill.replace(/"indexer_topk":"[^"]*"/, '"x":0'), random);
        expectRefused(decode, Reason.Missing);
        keep(prefill.replace(/"routed_experts":"[^"]*"/, '"x":0'), random);
        expectRefused(decode, Reason.Missing);
        expectNothingHeld();
      });
    });

    test('becomes null alone where prefill lacks it', () => {
      withSeeds(100, (random) => {
        const { prefill, decode, merged } = two(random, ['routed_experts', 'indexer_topk']);
        keep(prefill.replace(/"indexer_topk":"[^"]*"/, '"x":0'), random);
        const out = readResponse(Buffer.from(decode), { ...cuts(random), treatment: Treatment.MergeOrNull });
        expect(out.body.toString()).toBe(merged.replace(/"indexer_topk":"[^"]*"/, '"indexer_topk":null'));
        expect(out).toMatchObject({ reason: Reason.None, nulled: Reason.Missing });
        expectNothingHeld();
      });
    });

    test('a row less in one of them is found', () => {
      withSeeds(50, (random) => {
        const { prefill, decode } = two(random, ['routed_experts', 'indexer_topk']);
        keep(prefill, random);
        const arrays = [...decode.matchAll(/"(?:routed_experts|indexer_topk)":"([^"]*)"/g)];
        const { index, 0: member, 1: value } = arrays[random.below(2)]!;
        const rows = Buffer.from(value!, 'base64');
        const counted = Number(/"prompt_tokens":(\d+)/.exec(decode)![1]) - 1;
        const tokens = counted + Number(/"completion_tokens":(\d+)/.exec(decode)![1]);
        const short = rows.subarray(0, rows.length - rows.length / tokens).toString('base64');
        const damaged =
          decode.slice(0, index) + member!.replace(value!, short) + decode.slice(index + member!.length);
        expectRefused(damaged, Reason.Rows);
        expectNothingHeld();
      });
    });
  });

  test('is refused when prefill had another number of elements', () => {
    expect(readReply(Buffer.from(`[${meta(4, 4, 1)},${meta(4, 4, 1)}]`))).toMatchObject({ rows: true });
    expectRefused(meta(7, 4, 4), Reason.Choices);
    expectRefused(`[${meta(7, 4, 4)},${meta(7, 4, 4)},${meta(7, 4, 4)}]`, Reason.Choices);
  });

  test('nothing that is replaced is kept, where it is not read again', () => {
    const rows = 20_000;
    readReply(Buffer.from(meta(rows, rows, 1)));
    wasm['responseSparing']!(1);
    const body = meta(rows + 2, rows, 3);
    const merged = readResponse(Buffer.from(body), { pieces: [1000], hold: Infinity });
    wasm['responseSparing']!(0);
    expect(merged.body.toString()).toBe(body);
    expect(merged.mostHeld).toBeLessThan(5_000);
  });

  test.each<[string, string, Reason]>([
    ['has no counts', native(`{"routed_experts":"${text(4)}"}`), Reason.Prompt],
    ['has rows that the tokens do not divide', meta(4, 3, 1), Reason.Size],
    [
      'has a row of -1',
      meta(2, 2, 1).replace(
        text(2),
        Buffer.concat([Buffer.alloc(8, 0xff), Buffer.alloc(8)]).toString('base64'),
      ),
      Reason.Sentinel,
    ],
    ['is a list with an element that has none', `[${meta(4, 4, 1)},${native('{}')}]`, Reason.Missing],
    ['is a list that ends with one that has none', `[${native('{}')},${meta(4, 4, 1)}]`, Reason.Missing],
    ['is cut off', meta(4, 4, 1).replace(text(4), text(4).slice(0, -1)), Reason.Size],
    ['is not base64', meta(4, 4, 1).replace(text(4), `${text(4).slice(0, -3)}\\n==`), Reason.Base64],
  ])('gives no rows when prefill %s', (_, body, reason) => {
    for (const windows of [[1e9], [1], [33]]) {
      const read = readReply(Buffer.from(body), { windows });
      expect(read).toMatchObject({ json: true, rows: false });
      expect(read.reason).toBe(reason === Reason.Missing ? Reason.None : reason);
    }
  });
});

// ---- format C

describe('C, prompt_routed_experts', () => {
  const lists = (random: Random, rows: number, layers: number, topK: number) =>
    Array.from({ length: rows }, () =>
      Array.from({ length: layers }, () => Array.from({ length: topK }, () => random.below(300))),
    );
  const packed = (rows: number[][][]) => {
    const data = Buffer.alloc(rows.flat(2).length * 2);
    rows.flat(2).forEach((value, i) => data.writeUInt16LE(value, i * 2));
    const shape = [rows.length, rows[0]?.length ?? 1, rows[0]?.[0]?.length ?? 1];
    return { encoding: 'base64', dtype: 'uint16', shape, data: data.toString('base64') };
  };

  test("is prefill's, wherever decode has it or has none", () => {
    withSeeds(500, (random) => {
      const [layers, topK] = [random.between(1, 4), random.between(1, 4)];
      const prompt = lists(random, random.between(1, 12), layers, topK);
      const write = random.chance(0.5) ? packed : (rows: number[][][]) => rows;
      const inChoice = random.chance(0.5);
      const choices = random.between(1, 3);
      const body = (value: unknown, generated: unknown[], tokens: number) => {
        const member = value === undefined ? {} : { prompt_routed_experts: value };
        const text = JSON.stringify({
          ...(inChoice ? {} : member),
          choices: generated.map((rows, index) => ({
            ...(inChoice ? member : {}),
            index,
            routed_experts: rows,
          })),
          usage: { prompt_tokens: prompt.length, completion_tokens: tokens },
        });
        return text;
      };
      keep(body(write(prompt), [write(lists(random, 0, layers, topK))], 1), random);
      const lengths = Array.from({ length: choices }, () => random.between(1, 5));
      const generated = lengths.map((rows) => write(lists(random, rows, layers, topK)));
      // The last token of a choice has no row.
      const tokens = lengths.reduce((sum, rows) => sum + rows + 1, 0);
      const theirs = random.pick([undefined, null, write(lists(random, prompt.length, layers, topK))]);
      const sent = body(theirs, generated, tokens);
      const got = readResponse(Buffer.from(sent), { choices, ...cuts(random) });
      expect(got).toMatchObject({ reason: Reason.None, complete: true, choices });
      const text = got.body.toString();
      expect(JSON.parse(text)).toEqual(JSON.parse(body(write(prompt), generated, tokens)));
      expect(got.growth).toBe(text.length - sent.length);
      // All that decode sent is still there, in the same order.
      if (theirs !== undefined) expect(text).toBe(body(write(prompt), generated, tokens));
      expectNothingHeld();
    });
  });

  const body = (value: string, generated: string) =>
    `{"prompt_routed_experts":${value},"choices":[{"routed_experts":${generated}}],"usage":{"prompt_tokens":2}}`;

  test.each<[string, string, Reason]>([
    ['has other layers', body('null', '[[[1],[2],[3]]]'), Reason.Layers],
    ['has another top_k', body('null', '[[[1,2],[2,3]]]'), Reason.TopK],
    ['has other layers in an object', body('null', '{"shape":[1,3,1],"data":"AAAA"}'), Reason.Layers],
    ['is there twice', body('null,"prompt_routed_experts":null', '[[[1],[2]]]'), Reason.Duplicate],
    ['is at another place', body('null', '[[[1],[2]]],"prompt_routed_experts":[[[1]]]'), Reason.Mixed],
    [
      'has a string',
      body('null', `"${arrayText({ dtype: '|u1', layers: 2, topK: 1 }, Buffer.alloc(4))}"`),
      Reason.Mixed,
    ],
  ])('is refused when decode %s', (_, text, reason) => {
    expect(readReply(Buffer.from(body('[[[1],[2]],[[3],[4]]]', '[]')))).toMatchObject({ rows: true });
    expectRefused(text, reason);
  });

  test.each<[string, string, Reason]>([
    ['is of another prompt', '[[[1],[2]]]', Reason.Prompt],
    ['has rows of different layers', '[[[1],[2]],[[3]]]', Reason.Shape],
    ['has layers of different top_k', '[[[1],[2]],[[3],[4,5]]]', Reason.Shape],
    ['has a negative number', '[[[1],[2]],[[-1],[-1]]]', Reason.Sentinel],
    ['has a fraction', '[[[1],[2]],[[3.5],[4]]]', Reason.Format],
    ['has a text', '[[[1],[2]],"ab"]', Reason.Format],
    ['has no layers', '[[],[]]', Reason.Shape],
    ['has no lists', '[1,2]', Reason.Shape],
    ['is a text', '"AAAA"', Reason.Format],
    ['is an object of another prompt', '{"shape":[3,1,1],"data":"AAAA","dtype":"uint8"}', Reason.Prompt],
    ['is an object that is too short', '{"shape":[2,1,1],"data":"AAAA","dtype":"uint8"}', Reason.Size],
    ['has a row of -1', '{"shape":[2,1,1],"data":"AAD//w==","dtype":"int16"}', Reason.Sentinel],
  ])('gives no rows when it %s', (_, value, reason) => {
    for (const windows of [[1e9], [1]]) {
      expect(readReply(Buffer.from(body(value, '[]')), { windows })).toMatchObject({ reason, rows: false });
    }
  });
});

describe('what only prefill knows', () => {
  test("prompt_logprobs and cached_tokens are prefill's", () => {
    withSeeds(300, (random) => {
      const logprobs = [null, { '5': { logprob: -random.next(), rank: 1, decoded_token: 'é' } }];
      const top = random.chance(0.5);
      const body = (value: unknown, cached: unknown) => {
        const member = value === undefined ? {} : { prompt_logprobs: value };
        return JSON.stringify({
          choices: [{ index: 0, ...(top ? {} : member), text: 'x' }],
          ...(top ? member : {}),
          usage: { prompt_tokens: 2, completion_tokens: 3, prompt_tokens_details: cached },
        });
      };
      const cached = random.pick([{ cached_tokens: random.below(3000) }, null]);
      const theirs = random.pick([{ cached_tokens: random.below(3000) }, null]);
      keep(body(logprobs, cached), random);
      const sent = body(random.pick([null, undefined]), theirs);
      const expected = JSON.parse(body(logprobs, cached ?? theirs));
      const got = readResponse(Buffer.from(sent), cuts(random));
      expect(JSON.parse(got.body.toString())).toEqual(expected);
      expect(got.growth).toBe(got.body.length - Buffer.byteLength(sent));
      expect(got).toMatchObject({ reason: Reason.None, choices: 0, complete: true });
      expectNothingHeld();
    });
  });
});
