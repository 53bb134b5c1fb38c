// Turns: a client that has the rows of earlier turns asks for those from a token on. Format A does
// not tell where its rows begin, so the numbers of rows do, on both legs.

import { expect, test } from 'vitest';
import { DTYPES, arrayText, promoted, randomRows, replyBody, rowBytes, widened } from './arrays.ts';
import { withSeeds } from './random.ts';
import { Reason, checkLeaks, readReply, readResponse, wasm } from './wasm.ts';

checkLeaks();

const document = (array: string, completion: number) =>
  Buffer.from(
    `{"usage":{"completion_tokens":${completion}},"choices":[{"index":0,"routed_experts":"${array}"}],"x":"é"}`,
  );

test.each([
  ['all of its rows', false],
  ['its own rows', true],
])('a merge begins with the row that was asked for, where decode was asked for %s', (_, tail) => {
  withSeeds(200, (random) => {
    const shape = {
      dtype: random.pick(DTYPES),
      layers: random.between(1, 7),
      topK: random.pick([1, 1, 2, 3, 8]),
    };
    const own = { ...shape, dtype: random.chance(0.7) ? shape.dtype : random.pick(DTYPES) };
    const prompt = random.pick([1, 2, 3, 4, 5, 12, 40]);
    const start = random.between(0, prompt);
    const last = random.chance(0.3);
    // With hybrid models prefill drops the last token of the prompt.
    const hybrid = !last && prompt > 1 && random.chance(0.2);
    const has = hybrid ? prompt - 1 : prompt;
    const seam = Math.max(last || hybrid ? prompt - 1 : prompt, start);
    const asked = start <= 1 ? 0 : start;
    const given = randomRows(random, shape, has);
    const from = random.chance(0.7) ? Math.min(asked, has) : 0;
    const sent = given.subarray(from * rowBytes(shape));
    const note = JSON.stringify({ shape, own, prompt, start, last, hybrid, from, tail });

    wasm['keepLastRow']!(+last);
    wasm['keepForwarded']!(+hybrid);
    const prefill = replyBody(arrayText(shape, sent, { padding: random.below(3) }), prompt);
    const reply = readReply(prefill, { start, asked, windows: random.pick([[1e9], [1], [40]]) });
    wasm['keepLastRow']!(0);
    wasm['keepForwarded']!(0);
    expect(reply, note).toMatchObject({ json: true, reason: Reason.None, rows: true });

    const tokens = random.pick([1, 1, 2, 3, 9, 30]);
    const total = prompt + tokens - 1;
    const first = random.chance(0.7) ? (tail ? seam : start) : 0;
    const rows = randomRows(random, own, total);
    const written = { padding: random.below(4), version: random.pick([1, 1, 2, 3] as const) };
    const array = arrayText(own, rows.subarray(first * rowBytes(own)), written);
    const to = { ...shape, dtype: seam > start ? promoted(shape.dtype, own.dtype) : own.dtype };
    const data = Buffer.concat([
      widened(given.subarray(start * rowBytes(shape), seam * rowBytes(shape)), shape.dtype, to.dtype),
      widened(rows.subarray(seam * rowBytes(own)), own.dtype, to.dtype),
    ]);
    // Where decode's array begins with the merged one and has its dtype, its header stays.
    const stays = first === start && to.dtype === own.dtype;
    const body = document(array, tokens);
    const merged = document(arrayText(to, data, stays ? written : {}), tokens);
    for (const pieces of [[1e9], [1], random.cuts(body.length, 30)]) {
      const options = { tail, pieces, hold: random.pick([Infinity, 0]), unread: random.chance(0.7) };
      const got = readResponse(body, options);
      expect({ ...got, body: got.body.toString() }, note).toMatchObject({
        reason: Reason.None,
        complete: true,
        growth: merged.length - body.length,
        body: merged.toString(),
      });
    }
  });
});

test.each<[string, number, number, number, Reason]>([
  ['a row less than it was asked for', 9, 4, 4, Reason.Prompt],
  ['a row more than it was asked for', 9, 4, 6, Reason.Prompt],
  ['a row less than the prompt has tokens', 9, 4, 8, Reason.Prompt],
  ['no rows of a prompt that has some', 9, 4, 0, Reason.Prompt],
  ['a prompt of unknown length', -1, 4, 5, Reason.Ambiguous],
])('no rows are taken from a prefill that has %s', (_, prompt, start, count, reason) => {
  const shape = { dtype: '|u1', layers: 2, topK: 2 } as const;
  const array = arrayText(shape, Buffer.alloc(count * rowBytes(shape), 7));
  const body = replyBody(array, prompt).toString().replace('"prompt_tokens":-1,', '');
  expect(readReply(Buffer.from(body), { start })).toMatchObject({ reason, rows: false });
});
