// The rows of an array, read from characters in any pieces, against the rules one id at a time (rows.ts).

import { describe, expect, test } from 'vitest';
import { DTYPES, rowBytes, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import { Leg, RowCheck, expected, goodRow, isDense, readArrays, type Reading, type Rows } from './rows.ts';
import { Reason, checkLeaks } from './wasm.ts';

checkLeaks();

const fixed = new Random(13);
const LEADS = [0, 2, 4];

function expectLikeRules(arrays: Rows[], reading: Reading, note = ''): Reason {
  const fault = expected(arrays, reading);
  expect(readArrays(arrays, reading, fixed), note).toEqual(fault);
  return fault.reason;
}

describe('a row of zeros', () => {
  test('is found wherever it is, in rows of any size, at any lead, cut anywhere', () => {
    const sizes = [...Array.from({ length: 40 }, (_, i) => i + 1), 384];
    for (const size of sizes) {
      const shape: Shape = { dtype: '|u1', layers: 1, topK: size };
      for (const lead of LEADS) {
        for (let zero = 0; zero < 5; zero++) {
          // Ids are not looked at: only what is not zero.
          const data = Buffer.alloc(5 * size);
          for (let row = 0; row < 5; row++)
            if (row !== zero) data[row * size + fixed.below(size)] = fixed.pick([1, 64, 128, 255]);
          const rows = { leg: Leg.Decode, first: 7, shape, data };
          const reading = { lead, shapeless: true };
          expectLikeRules([rows], reading, `${size} bytes, lead ${lead}, row ${zero}`);
          const pieces = size > 40 ? [[1], [511], [513]] : [[1], [2], [3], [7]];
          for (const unknown of [false, true]) {
            for (const cut of pieces) expectLikeRules([rows], { ...reading, unknown, pieces: cut });
          }
          if (size > 12) continue;
          for (let cut = 1; cut * 6 < data.length * 8; cut++) {
            expectLikeRules([rows], { ...reading, pieces: [cut, 1e9] });
          }
        }
      }
    }
  });
});

test('says the same as the rules of anything', () => {
  withSeeds(3000, (random) => {
    const dtype = random.pick(DTYPES);
    const shape: Shape = {
      dtype,
      layers: random.between(1, 9),
      topK: random.pick([1, 1, 2, 3, 4, 6, 8, 10, 12, 17, 30]),
    };
    const dense = random.pick(Object.values(isDense));
    const size = rowBytes(shape);
    const arrays = Array.from({ length: random.between(1, 3) }, (_, i) => {
      const rows = random.pick([0, 1, 2, 5, 66, 67, 130, 300]);
      const data = Buffer.concat(Array.from({ length: rows }, () => goodRow(random, shape, dense)));
      for (let n = random.below(3); n > 0 && rows > 0; n--) {
        const row = random.below(rows) * size;
        const item = (i: number) => row + (i * size) / (shape.layers * shape.topK);
        const kind = random.below(5);
        if (kind === 0) data.fill(0, row, row + size);
        else if (kind === 1) data.fill(255, row, row + size);
        else if (kind === 2) data[row + random.below(size)] = random.below(256);
        else {
          // A layer of zeros, or one that repeats an id.
          const at = random.below(shape.layers) * shape.topK;
          if (kind === 3) data.fill(0, item(at), item(at + shape.topK));
          else if (shape.topK > 1) data.copy(data, item(at), item(at + 1), item(at + 2));
        }
      }
      return { leg: i === 0 ? random.pick([0, 1]) : Leg.Decode, first: random.below(1000), shape, data };
    });
    const reading: Reading = {
      check: random.pick([RowCheck.Sampled, RowCheck.Sampled, RowCheck.All, RowCheck.Off]),
      lead: random.pick(LEADS),
      unknown: random.chance(0.3),
      shapeless: random.chance(0.2),
      sentinels: random.chance(0.5),
      pieces: random.pick([[1e9], [1], [random.between(1, 50)], random.cuts(size * 150, size * 3)]),
      model: random.pick([
        {},
        {},
        { experts: 256 },
        { layers: shape.layers, topK: shape.topK },
        { layers: shape.layers, topK: shape.topK, experts: 1024 },
      ]),
    };
    expect(readArrays(arrays, reading, random)).toEqual(expected(arrays, reading));
  });
});
