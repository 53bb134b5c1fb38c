// The rows of an array, read from characters in pieces of any length, compared with the rules
// applied one id at a time (rows.ts).

import { describe, expect, test } from 'vitest';
import { DTYPES, itemBytes, rowBytes, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  Leg,
  RowCheck,
  charsOf,
  expected,
  goodRow,
  isDense,
  judge,
  readArrays,
  readRows,
  sampled,
  startExamination,
  type Reading,
  type Rows,
} from './rows.ts';
import { Reason, checkLeaks, lend, wasm } from './wasm.ts';

checkLeaks();

const fixed = new Random(13);
const LEADS = [0, 2, 4];
const MODES = [RowCheck.Sampled, RowCheck.All];

function goodRows(shape: Shape, rows: number, dense: (layer: number) => boolean = isDense.none): Buffer {
  return Buffer.concat(Array.from({ length: rows }, () => goodRow(fixed, shape, dense)));
}

function prefill(shape: Shape, data: Buffer, first = 0): Rows {
  return { leg: Leg.Prefill, first, shape, data };
}

/** Reads arrays and checks that the reader comes to the same verdict as the rules. */
function verdict(arrays: Rows[], reading: Reading, note = ''): Reason {
  const fault = expected(arrays, reading);
  expect(readArrays(arrays, reading, fixed), `${note} ${JSON.stringify(reading)}`).toEqual(fault);
  return fault.reason;
}

describe('a row of zeros is found', () => {
  /** Rows of which exactly one is zero. Each of the others has one byte that is not zero. */
  function almostZero(size: number, rows: number, zero: number): Buffer {
    const data = Buffer.alloc(rows * size);
    for (let row = 0; row < rows; row++) {
      if (row !== zero) data[row * size + fixed.below(size)] = fixed.pick([1, 3, 64, 128, 255]);
    }
    return data;
  }

  test('wherever it is, in rows of any size, at any lead', () => {
    for (const size of [...Array.from({ length: 40 }, (_, i) => i + 1), 384]) {
      const shape: Shape = { dtype: '|u1', layers: 1, topK: size };
      for (const lead of LEADS) {
        for (let zero = 0; zero <= 6; zero++) {
          const rows = prefill(shape, almostZero(size, 6, zero), 7);
          const found = verdict([rows], { lead, shapeless: true }, `${size} bytes, row ${zero}`);
          expect(found).toBe(zero < 6 ? Reason.Experts : Reason.None);
        }
      }
    }
  });

  test('when the array is cut anywhere', () => {
    for (const size of [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 24, 33]) {
      const shape: Shape = { dtype: '|u1', layers: 1, topK: size };
      for (const lead of LEADS) {
        for (let zero = 0; zero <= 4; zero++) {
          const rows = prefill(shape, almostZero(size, 4, zero));
          const chars = Math.ceil((lead + rows.data.length * 8) / 6);
          const reading = { lead, shapeless: true, unknown: fixed.chance(0.5) };
          for (let cut = 1; cut < chars; cut++) verdict([rows], { ...reading, pieces: [cut, 1e9] });
          for (const pieces of [[1], [2], [3], [5]]) verdict([rows], { ...reading, pieces });
        }
      }
    }
  });

  test('by a single bit that it has not', () => {
    for (const size of [1, 2, 5, 6, 7, 8, 16, 31]) {
      const shape: Shape = { dtype: '|u1', layers: 1, topK: size };
      for (const lead of LEADS) {
        for (let bit = 0; bit < size * 8; bit++) {
          const data = Buffer.alloc(3 * size, 0xff);
          data.fill(0, size, 2 * size);
          expect(verdict([prefill(shape, data)], { lead, shapeless: true })).toBe(Reason.Experts);
          data[size + (bit >> 3)] = 0x80 >> (bit & 7);
          for (const pieces of [[1e9], [1], [4]]) {
            expect(verdict([prefill(shape, data)], { lead, shapeless: true, pieces })).toBe(Reason.None);
          }
        }
      }
    }
  });

  test('beside dense layers, in each mode but off, and not where one expert is chosen', () => {
    for (const dense of Object.values(isDense)) {
      for (const dtype of DTYPES) {
        const shape: Shape = { dtype, layers: 7, topK: 4 };
        const size = rowBytes(shape);
        const good = goodRows(shape, 100, dense);
        for (const check of [RowCheck.Sampled, RowCheck.All, RowCheck.Off]) {
          expect(verdict([prefill(shape, good)], { check })).toBe(Reason.None);
          for (const row of [0, 1, 2, 77, 98, 99]) {
            const data = Buffer.from(good);
            data.fill(0, row * size, (row + 1) * size);
            for (const pieces of [[1e9], [1], [size], [1000]]) {
              const found = verdict([prefill(shape, data, 50)], { check, pieces });
              expect(found).toBe(check === RowCheck.Off ? Reason.None : Reason.Experts);
            }
          }
        }
      }
    }
    const one: Shape = { dtype: '|u1', layers: 12, topK: 1 };
    const zeros = prefill(one, Buffer.alloc(12 * 30));
    for (const check of MODES) expect(verdict([zeros], { check })).toBe(Reason.None);
    // Rows of zeros are allowed where top_k is 1. A format without a shape does not say so, but the
    // configured model may.
    expect(verdict([zeros], { shapeless: true })).toBe(Reason.Experts);
    expect(verdict([zeros], { shapeless: true, model: { layers: 12, topK: 1 } })).toBe(Reason.None);
    expect(verdict([zeros], { shapeless: true, model: { layers: 3, topK: 4 } })).toBe(Reason.Experts);
  });
});

describe('sentinels', () => {
  test('are found where they are asked for, in every mode, and only of signed ids', () => {
    for (const dtype of DTYPES) {
      for (const [layers, topK] of [
        [1, 1],
        [1, 2],
        [3, 1],
        [5, 8],
      ] as const) {
        const shape: Shape = { dtype, layers, topK };
        const size = rowBytes(shape);
        const good = goodRows(shape, 9);
        for (const check of [RowCheck.Sampled, RowCheck.All, RowCheck.Off]) {
          for (let row = 0; row < 9; row++) {
            const data = Buffer.from(good);
            data.fill(0xff, row * size, (row + 1) * size);
            const lead = fixed.pick(LEADS);
            const signed = dtype === '<i2' || dtype === '<i4';
            for (const pieces of [[1e9], [1], [7]]) {
              const found = verdict([prefill(shape, data)], { check, lead, pieces, sentinels: true });
              if (signed) expect(found).toBe(Reason.Sentinel);
              expect(verdict([prefill(shape, data)], { check, lead, pieces })).not.toBe(Reason.Sentinel);
            }
            // With one bit less set, it is a row, not a sentinel.
            const bit = fixed.below(size * 8);
            data[row * size + (bit >> 3)]! ^= 0x80 >> (bit & 7);
            verdict([prefill(shape, data)], { check, lead, sentinels: true });
          }
        }
      }
    }
  });
});

describe('rows are examined:', () => {
  const shape: Shape = { dtype: '|u1', layers: 2, topK: 3 };
  const size = rowBytes(shape);

  /** Indices of the rows in which a repeated id would be found. */
  function examined(rows: number, reading: Reading): number[] {
    const good = goodRows(shape, rows);
    const found: number[] = [];
    for (let row = 0; row < rows; row++) {
      const data = Buffer.from(good);
      data[row * size + 5] = data[row * size + 4]!;
      if (readArrays([prefill(shape, data)], reading, fixed).reason === Reason.Experts) found.push(row);
    }
    return found;
  }

  test('the first, the last and 64 between them at even distances', () => {
    for (const rows of [2, 3, 65, 66, 67, 68, 130, 131, 400]) {
      const found = examined(rows, {});
      expect(found).toEqual(sampled(RowCheck.Sampled, rows, true));
      expect(found.length).toBe(Math.min(rows, 66));
      expect([found[0], found.at(-1)]).toEqual([0, rows - 1]);
      const gaps = found.slice(1).map((row, i) => row - found[i]!);
      expect(Math.max(0, ...gaps) - Math.min(1e9, ...gaps)).toBeLessThanOrEqual(1);
    }
  });

  test('each, in the mode all', () => {
    for (const rows of [2, 67, 300]) {
      for (const unknown of [false, true]) {
        for (const pieces of [[1e9], [5]]) {
          const found = examined(rows, { check: RowCheck.All, unknown, pieces });
          expect(found).toEqual(sampled(RowCheck.All, rows, true));
        }
      }
    }
  });

  test('none, in the mode off', () => {
    expect(examined(70, { check: RowCheck.Off })).toEqual([]);
  });

  test('of so many as will come, 64 or more at even distances, and the last', () => {
    for (const rows of [2, 64, 127, 128, 129, 130, 257, 400]) {
      for (const pieces of [[1e9], [1], [9]]) {
        const found = examined(rows, { unknown: true, pieces });
        expect(found).toEqual(sampled(RowCheck.Sampled, rows, false));
        expect(found.at(-1)).toBe(rows - 1);
      }
    }
    const many = sampled(RowCheck.Sampled, 100_000, false);
    expect(many.filter((row) => row % 1024 === 0).length).toBeGreaterThanOrEqual(64);
  });

  test('where layers and top_k are known, from the format or the model', () => {
    const data = goodRows(shape, 5);
    data[size + 1] = data[size + 2]!;
    for (const pieces of [[1e9], [3]]) {
      expect(verdict([prefill(shape, data)], { pieces })).toBe(Reason.Experts);
      expect(verdict([prefill(shape, data)], { pieces, shapeless: true })).toBe(Reason.None);
      const model = { layers: 2, topK: 3 };
      expect(verdict([prefill(shape, data)], { pieces, shapeless: true, model })).toBe(Reason.Experts);
      // These rows do not have the shape of the configured model.
      const other = { layers: 2, topK: 4 };
      expect(verdict([prefill(shape, data)], { pieces, shapeless: true, model: other })).toBe(Reason.None);
    }
  });
});

describe('an id twice in a layer is found', () => {
  test('in any two places, of any top_k, in every dtype', () => {
    for (const dtype of DTYPES) {
      for (let topK = 2; topK <= 40; topK++) {
        const shape: Shape = { dtype, layers: fixed.between(1, 7), topK };
        const item = itemBytes(dtype);
        const good = goodRows(shape, 3);
        // There are three rows, so that the other two show that the model does not repeat ids by
        // design.
        expect(verdict([prefill(shape, good)], {})).toBe(Reason.None);
        for (let a = 0; a < topK; a++) {
          for (let b = a + 1; b < topK; b++) {
            if (topK > 12 && fixed.chance(0.9)) continue;
            const data = Buffer.from(good);
            const layer = fixed.below(shape.layers) * topK;
            data.copy(data, (layer + a) * item, (layer + b) * item, (layer + b + 1) * item);
            const lead = fixed.pick(LEADS);
            expect(verdict([prefill(shape, data)], { lead })).toBe(Reason.Experts);
          }
        }
      }
    }
  });

  test('of top_k up to 100 and of ids that have bytes in common', () => {
    for (const dtype of ['<u2', '<i2', '<i4'] as const) {
      const item = itemBytes(dtype);
      for (let topK = 2; topK <= 100; topK += topK < 20 ? 1 : 7) {
        const shape: Shape = { dtype, layers: 3, topK };
        const row = Buffer.alloc(rowBytes(shape));
        // The ids of a layer differ in one byte only.
        for (let byte = 0; byte < item; byte++) {
          row.fill(5);
          for (let i = 0; i < 3 * topK; i++) row[i * item + byte] = i % topK;
          expect(verdict([prefill(shape, row)], {})).toBe(Reason.None);
          const same = Buffer.from(row);
          const place = fixed.below(topK - 1);
          same.copy(same, (topK + place) * item, (topK + place + 1) * item, (topK + place + 2) * item);
          expect(verdict([prefill(shape, Buffer.concat([row, same]))], {})).toBe(Reason.Experts);
        }
      }
    }
  });

  test('in one layer of many', () => {
    for (const topK of [2, 3, 5, 8, 9, 16, 17]) {
      for (const layers of [1, 2, 7, 8, 15, 64, 65, 130, 600]) {
        const shape: Shape = { dtype: '|u1', layers, topK };
        const good = goodRows(shape, 3);
        for (const layer of new Set([0, 1, 6, 7, 63, 64, 127, 128, 511, 512, layers - 2, layers - 1])) {
          if (layer < 0 || layer >= layers) continue;
          const data = Buffer.from(good);
          data[layer * topK] = data[layer * topK + 1]!;
          expect(verdict([prefill(shape, data)], {}), `${layer} of ${layers} x ${topK}`).toBe(Reason.Experts);
        }
      }
    }
  });
});

test('an id is not taken for one of a row long before', () => {
  // The reader numbers layers with 16 bits, and compares up to 16 places with vectors.
  const shape: Shape = { dtype: '<u2', layers: 1, topK: 17 };
  const size = rowBytes(shape);
  const rows = 65_540;
  const data = Buffer.alloc(rows * size);
  for (let i = 0; i < data.length / 2; i++) data.writeUInt16LE(i % 17, i * 2);
  for (let row = 0; row < rows; row++)
    if (row % 65_535 < 4 || row % 65_536 < 4) data.writeUInt16LE(500 + (row & 7), row * size);
  startExamination(RowCheck.All);
  expect(readRows(prefill(shape, data), {}, fixed)).toBe(Reason.None);
  expect(judge()).toEqual({ reason: Reason.None });
  wasm['examinationFree']!();
});

describe('rows as long as they may be', () => {
  const MOST = 1 << 20;
  const SHAPES: Shape[] = [
    { dtype: '|u1', layers: 1, topK: MOST },
    { dtype: '|u1', layers: MOST / 2, topK: 2 },
    { dtype: '|u1', layers: MOST / 64, topK: 64 },
    { dtype: '<i2', layers: 1, topK: 500_000 },
    { dtype: '<u2', layers: 8, topK: 65_536 },
    { dtype: '<i4', layers: 1, topK: MOST / 4 },
    { dtype: '<i4', layers: 2048, topK: 128 },
    { dtype: '<i4', layers: 4096, topK: 64 },
  ];

  test.each(SHAPES)('take time in proportion: $dtype, $layers layers of $topK', (shape) => {
    const size = rowBytes(shape);
    const item = itemBytes(shape.dtype);
    // As far as the dtype allows, the ids have the same low 16 bits.
    const data = Buffer.alloc(size * 3);
    for (let i = 0; i < data.length / item; i++) {
      if (item === 4) data.writeUInt32LE(((i * 0x10000 + (i >> 16)) >>> 0) + 1, i * 4);
      else data.writeUIntLE(i & (2 ** (8 * item) - 1), i * item, item);
    }
    const text = Buffer.from(charsOf(data, 2, fixed));
    startExamination(RowCheck.All);
    const ptr = lend(text);
    const dtype = DTYPES.indexOf(shape.dtype) + 1;
    const started = performance.now();
    wasm['rowsStart']!(Leg.Decode, dtype, shape.layers, shape.topK, size, 2, 0, -1, 1);
    for (let at = 0; at < text.length; at += 100_003) {
      expect(wasm['rowsPush']!(ptr + at, Math.min(100_003, text.length - at))).toBe(Reason.None);
    }
    expect(wasm['rowsEnd']!()).toBe(Reason.None);
    wasm['examinationJudge']!(0);
    // The rows have 3 MiB. Comparing every pair of ids would take minutes.
    expect(performance.now() - started).toBeLessThan(3000);
    expect(wasm['heldBytes']!()).toBeLessThan(32 * MOST);
    wasm['examinationFree']!();
  });

  test('say what the rules say', () => {
    for (const shape of SHAPES.slice(3)) {
      const size = rowBytes(shape);
      const good = Buffer.alloc(size * 2);
      const item = itemBytes(shape.dtype);
      const bits = item === 4 ? 0x10001 : 1;
      for (let i = 0; i < good.length / item; i++) {
        good.writeUIntLE(((i % shape.topK) * bits) % 2 ** (8 * item), i * item, item);
      }
      verdict([prefill(shape, good)], { pieces: [300_000] });
      good.copy(good, size, size + item, size + 2 * item);
      const found = verdict([prefill(shape, good)], { pieces: [300_000] });
      // A row with more places in a layer than there are ids repeats ids in every row, so this
      // counts as the model's design.
      expect(found).toBe(shape.topK <= 65_536 || item === 4 ? Reason.Experts : Reason.None);
    }
  });

  test('are not held when memory is short', () => {
    const shape: Shape = { dtype: '<i4', layers: 2, topK: 100_000 };
    const size = rowBytes(shape);
    const data = Buffer.alloc(size * 2);
    for (let i = 0; i < data.length / 4; i++) data.writeUInt32LE((i * 65_536 + (i >> 16)) >>> 0, i * 4);
    const rows = prefill(shape, data);
    // The room is too small for the copy of a row, for its decoded ids, or for sorting them; the
    // last one is large enough.
    for (const [cut, rooms] of [
      [1e9, [0, 0.5, 1.5]],
      [500_000, [0, 1, 2, 3]],
    ] as const) {
      for (const room of [...rooms, 4]) {
        startExamination(RowCheck.Sampled);
        wasm['holdBallast']!((768 << 20) - wasm['heldBytes']!() - room * size);
        const reason = readRows(rows, { pieces: [cut] }, fixed);
        wasm['dropBallast']!();
        wasm['examinationFree']!();
        expect(reason, `${room} rows`).toBe(room === 4 ? Reason.None : Reason.Memory);
      }
    }
  });
});

test('says what the rules say, of anything', () => {
  withSeeds(700, (random) => {
    const dtype = random.pick(DTYPES);
    const topK = random.pick([1, 1, 2, 3, 4, 6, 8, 10, 12, 17, 30]);
    let shape: Shape = { dtype, layers: random.between(1, 9), topK };
    const dense = random.pick(Object.values(isDense));
    const arrays = Array.from({ length: random.between(1, 3) }, (_, i) => {
      // Other code refuses legs of different shapes. Here they only must do no harm.
      if (i > 0 && random.chance(0.1)) shape = { ...shape, layers: random.between(1, 40) };
      const size = rowBytes(shape);
      const rows = random.pick([0, 1, 2, 5, 66, 67, 130, 200]);
      const data = Buffer.concat(Array.from({ length: rows }, () => goodRow(random, shape, dense)));
      for (let n = random.below(3); n > 0 && rows > 0; n--) {
        const row = random.below(rows) * size;
        const item = (place: number) => row + place * itemBytes(dtype);
        const kind = random.below(5);
        const layer = random.below(shape.layers) * topK;
        if (kind === 0) data.fill(0, row, row + size);
        else if (kind === 1) data.fill(255, row, row + size);
        else if (kind === 2) data[row + random.below(size)] = random.below(256);
        else if (kind === 3) data.fill(0, item(layer), item(layer + topK));
        else if (topK > 1) data.copy(data, item(layer), item(layer + 1), item(layer + 2));
      }
      // A model that repeats ids by design.
      if (topK > 1 && random.chance(0.2)) {
        for (let row = 0; row < data.length; row += size) {
          if (random.chance(0.7)) data.copy(data, row, row + itemBytes(dtype), row + 2 * itemBytes(dtype));
        }
      }
      const leg = i === 0 ? random.pick([Leg.Prefill, Leg.Decode]) : Leg.Decode;
      return { leg, first: random.below(1000), shape, data };
    });
    const reading: Reading = {
      check: random.pick([RowCheck.Sampled, RowCheck.Sampled, RowCheck.All, RowCheck.Off]),
      lead: random.pick(LEADS),
      unknown: random.chance(0.3),
      shapeless: random.chance(0.2),
      sentinels: random.chance(0.5),
      pieces: random.pick([[1e9], [1], [random.between(1, 50)], random.cuts(9000, 300)]),
      model: random.pick([
        {},
        {},
        { experts: 256 },
        { layers: shape.layers, topK },
        { layers: shape.layers, topK, experts: 1024 },
      ]),
    };
    expect(readArrays(arrays, reading, random)).toEqual(expected(arrays, reading));
  });
});
