// What the examined rows show together: which layers are dense, which ones repeat experts by
// design, and which rows are wrong.

import { describe, expect, test } from 'vitest';
import { DTYPES, itemBytes, rowBytes, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import {
  DTYPE_IDS,
  Leg,
  RowCheck,
  choose,
  decodeIds,
  encodeRow,
  faultOfRow,
  faultOfRows,
  judge,
  kindOf,
  startExamination,
  describeFault,
  type Fault,
  type Model,
} from './rows.ts';
import { Reason, checkLeaks, lend, wasm } from './wasm.ts';

checkLeaks();

const fixed = new Random(14);
const NONE: Fault = { reason: Reason.None };
const fault = (text: string): Fault => ({ reason: Reason.Experts, text });

/** Examines the bytes of one row. */
function examineBytes(leg: Leg, token: number, shape: Shape, row: Buffer): Reason {
  const { layers, topK } = shape;
  return wasm['examinationRow']!(leg, token, lend(row), DTYPE_IDS[shape.dtype], layers, topK);
}

/** Examines rows given as one letter for each layer: Zero, Double or Good. */
function examine(leg: Leg, rows: string[], first = 0): Reason {
  let reason = Reason.None;
  rows.forEach((row, i) => {
    const ids = [...row].map((kind) => {
      const good = choose(fixed, 4, 256);
      return kind === 'Z' ? [0, 0, 0, 0] : kind === 'D' ? [good[0]!, good[1]!, 0, 0] : good;
    });
    const shape: Shape = { dtype: '|u1', layers: row.length, topK: 4 };
    reason ||= examineBytes(leg, first + i, shape, encodeRow('|u1', ids));
  });
  return reason;
}

/** What the rows of two legs show. With `early`, decode's rows have not all arrived. */
function verdict(prefill: string[], decode: string[], early = false): Fault {
  startExamination(RowCheck.Sampled);
  examine(Leg.Prefill, prefill);
  examine(Leg.Decode, decode, 100);
  const found = judge(early);
  wasm['examinationFree']!();
  return found;
}

describe('the rows of two legs', () => {
  test.each<[string, string[], string[], Fault]>([
    ['that differ everywhere', ['GGG', 'GGG'], ['GGG'], NONE],
    ['with a dense layer', ['ZGG', 'ZGG'], ['ZGG', 'ZGG'], NONE],
    ['with a dense layer each second', ['GZGZ', 'GZGZ'], ['GZGZ'], NONE],
    ['without any', [], [], NONE],
    ['a layer zero in one row of prefill', ['GGG', 'GZG', 'GZG'], ['GGG'], fault('prefill row 1, layer 1')],
    ['a layer zero in one row of decode', ['GGG'], ['GGG', 'GGZ'], fault('decode row 101, layer 2')],
    ['a layer zero in one leg only', ['ZGG', 'ZGG'], ['GGG'], fault('prefill row 0, layer 0')],
    ['a layer zero in the other leg only', ['GGG', 'GGG'], ['ZGG'], fault('decode row 100, layer 0')],
    ['a layer zero but in one row', ['ZGG', 'ZGG'], ['ZGG', 'GGG'], fault('prefill row 0, layer 0')],
    ['an id twice in prefill', ['GGG', 'GGG', 'GDG'], ['GGG'], fault('prefill row 2, layer 1')],
    ['an id twice in decode', ['GGG'], ['GGG', 'DGG'], fault('decode row 101, layer 0')],
    ['an id twice in a layer that is dense', ['ZGG', 'ZGG'], ['DGG'], fault('prefill row 0, layer 0')],
    ['repeats in both legs', ['DGG', 'GGG', 'GGG'], ['GGG', 'DGG'], NONE],
    ['repeats in both, in other layers', ['DGG', 'GGG'], ['GGG', 'GDG'], fault('prefill row 0, layer 0')],
    ['repeats in most rows, that decode has in most layers', ['DDD', 'DDD'], ['DDG'], NONE],
    [
      'repeats in most rows, that decode has in few layers',
      ['DDD', 'DDD'],
      ['DGG'],
      fault('prefill row 0, layer 1'),
    ],
    [
      'repeats in most rows, that decode has in half of them',
      ['DDGG', 'DDGG'],
      ['DGGG'],
      fault('prefill row 0, layer 1'),
    ],
    ['repeats in most rows, that decode never has', ['DDD', 'DDD'], ['GGG'], fault('prefill row 0, layer 0')],
    ['repeats in half of the rows', ['DDDG', 'DDDD'], ['DDDG'], fault('prefill row 1, layer 3')],
    ['zeros among repeats', ['DDG', 'ZDG', 'DDG'], ['DDG', 'ZDG'], NONE],
    ['zeros among repeats of one leg only', ['DDG', 'ZDG'], ['GDG'], fault('prefill row 0, layer 0')],
    ['several faults', ['GGG', 'GGD', 'DGG'], ['ZGG'], fault('prefill row 1, layer 2')],
    ['several faults in one row', ['GGG', 'GDZ'], ['GDG'], fault('prefill row 1, layer 2')],
    ['only of prefill: few repeats', ['GDG', 'GGG'], [], fault('prefill row 0, layer 1')],
    ['only of prefill: most repeat', ['GDG', 'GGG', 'GDG'], [], NONE],
    ['only of prefill: half repeat', ['GDG', 'GGG', 'GDG', 'GGG'], [], fault('prefill row 0, layer 1')],
    ['only of decode: few repeats', [], ['GGG', 'GGD'], fault('decode row 101, layer 2')],
    ['only of decode: most repeat', [], ['GGD', 'GGD', 'GGZ'], NONE],
  ])('%s', (_, prefill, decode, expected) => {
    expect(verdict(prefill, decode)).toEqual(expected);
  });

  test.each<[string, string[], string[], Fault]>([
    ['prefill repeats', ['GDG', 'GGG'], [], NONE],
    ['prefill repeats, and has zeros there', ['DGG', 'ZGG', 'GGG'], [], NONE],
    ['zeros without repeats', ['GGG', 'ZGG'], [], fault('prefill row 1, layer 0')],
    ['decode has an id twice where prefill never has', ['GGG'], ['GDG'], fault('decode row 100, layer 1')],
    ['decode serves alone', [], ['GDG', 'GGG', 'ZGG'], NONE],
  ])('are judged before all of decode has come: %s', (_, prefill, decode, expected) => {
    expect(verdict(prefill, decode, true)).toEqual(expected);
    if (expected.reason === Reason.Experts) expect(verdict(prefill, decode)).toEqual(expected);
  });

  test('are judged anew when there are more', () => {
    startExamination(RowCheck.All);
    examine(Leg.Prefill, ['ZGD', 'ZGG']);
    expect(judge(true)).toEqual(NONE);
    expect(judge()).toEqual(fault('prefill row 0, layer 2'));
    examine(Leg.Decode, ['ZGD'], 2);
    expect(judge(true)).toEqual(NONE);
    expect(judge()).toEqual(NONE);
    examine(Leg.Decode, ['GGG'], 3);
    expect(judge(true)).toEqual(fault('prefill row 0, layer 0'));
    expect(judge()).toEqual(fault('prefill row 0, layer 0'));
    wasm['examinationFree']!();
  });

  test('say what the rules say', () => {
    withSeeds(4000, (random) => {
      const layers = random.between(1, 5);
      // Each layer has a kind of its own, which most rows follow.
      const ways = Array.from({ length: layers }, () => random.pick(['G', 'G', 'Z', 'D']));
      const stray = random.pick([0, 0.05, 0.3]);
      const rows = (most: number) =>
        Array.from({ length: random.below(most) }, () =>
          ways.map((way) => (random.chance(stray) ? random.pick(['Z', 'D', 'G']) : way)).join(''),
        ).filter((row) => !/^Z+$/.test(row));
      const prefill = rows(8);
      const decode = rows(5);
      const seen = [
        ...prefill.map((kinds, token) => ({ leg: Leg.Prefill, token, kinds: [...kinds] as never })),
        ...decode.map((kinds, i) => ({ leg: Leg.Decode, token: 100 + i, kinds: [...kinds] as never })),
      ];
      for (const early of [false, true]) {
        const text = faultOfRows(seen, early);
        const note = `${prefill} | ${decode} ${early}`;
        expect(verdict(prefill, decode, early), note).toEqual(text === undefined ? NONE : fault(text));
        // A fault that is found early is still a fault at the end.
        if (text !== undefined) expect(verdict(prefill, decode).reason, note).toBe(Reason.Experts);
      }
    });
  });
});

describe('a row by itself', () => {
  test('is a fault when it is zero in all layers, whatever other rows are', () => {
    for (const mode of [RowCheck.Sampled, RowCheck.All]) {
      startExamination(mode);
      expect(examine(Leg.Prefill, ['ZZZ'], 7)).toBe(Reason.Experts);
      expect(judge(true)).toEqual(fault('prefill row 7, all layers'));
      // The first fault is the one that is reported.
      expect(examine(Leg.Decode, ['ZZZ'], 9)).toBe(Reason.Experts);
      expect(judge()).toEqual(fault('prefill row 7, all layers'));
      wasm['examinationFree']!();
    }
  });

  test('is anything when rows are not checked', () => {
    startExamination(RowCheck.Off, { layers: 3, topK: 4, experts: 8 });
    expect(examine(Leg.Prefill, ['ZZZ', 'GDZ', 'GGG'])).toBe(Reason.None);
    expect(judge()).toEqual(NONE);
    wasm['examinationFree']!();
  });

  test('of one expert a layer may be zero, and has ids of the model', () => {
    const shape: Shape = { dtype: '<i2', layers: 3, topK: 1 };
    const read = (ids: number[], model?: Model) => {
      startExamination(RowCheck.All, model);
      const row = encodeRow(
        '<i2',
        ids.map((id) => [id]),
      );
      examineBytes(Leg.Decode, 5, shape, row);
      const found = judge();
      wasm['examinationFree']!();
      return found;
    };
    for (const model of [{}, { experts: 8 }]) {
      for (const ids of [
        [0, 0, 0],
        [7, 0, 7],
        [1, 2, 3],
      ]) {
        expect(read(ids, model)).toEqual(NONE);
      }
    }
    expect(read([-1, 8, 300])).toEqual(NONE);
    expect(read([7, 8, 300], { experts: 8 })).toEqual(fault('decode row 5, layer 1'));
    expect(read([7, 0, -1], { experts: 8 })).toEqual(fault('decode row 5, layer 2'));
  });

  test('may have negative ids where no model is given', () => {
    startExamination(RowCheck.All);
    const shape: Shape = { dtype: '<i4', layers: 1, topK: 3 };
    for (const ids of [
      [-1, -2, 5],
      [-65_536, 65_536, 0],
      [-65_537, 65_535, -1],
    ]) {
      expect(examineBytes(Leg.Prefill, 0, shape, encodeRow('<i4', [ids]))).toBe(Reason.None);
      expect(judge()).toEqual(NONE);
    }
    wasm['examinationFree']!();
  });

  test('has ids below the number of experts, in every place, dtype and size', () => {
    for (const dtype of DTYPES) {
      const signed = dtype[1] === 'i';
      const bits = itemBytes(dtype) * 8;
      const highest = 2 ** (signed ? bits - 1 : bits) - 1;
      for (const experts of [3, 128, 255, 256, 257, 32_768, 65_536, 70_000, 2 ** 31, 2 ** 32, 2 ** 40]) {
        for (const [layers, topK] of [
          [1, 2],
          [3, 3],
          [5, 8],
        ] as const) {
          const shape: Shape = { dtype, layers, topK };
          const limit = Math.min(experts, highest + 1);
          const good = Array.from({ length: layers }, () =>
            Array.from({ length: topK }, (_, i) => (limit <= topK ? i % limit : limit - 1 - i)),
          );
          const place = fixed.below(layers * topK);
          const layer = Math.floor(place / topK);
          for (const id of [experts - 1, experts, experts + 1, highest, -1, -highest - 1]) {
            if (id > highest || (id < 0 && !signed)) continue;
            const ids = good.map((row) => [...row]);
            ids[layer]![place % topK] = id;
            const row = encodeRow(dtype, ids);
            startExamination(RowCheck.Sampled, { experts });
            const wrong = faultOfRow(row, shape, true, { experts });
            expect(wrong).toBe(id < 0 || id >= experts ? layer : undefined);
            const reason = examineBytes(Leg.Prefill, 3, shape, row);
            expect(reason, `${dtype} ${id} of ${experts}`).toBe(
              wrong === undefined ? Reason.None : Reason.Experts,
            );
            if (wrong !== undefined) expect(judge()).toEqual(fault(describeFault(Leg.Prefill, 3, wrong)));
            wasm['examinationFree']!();
          }
        }
      }
    }
  });
});

test('examineRow knows what each layer is, of any shape', () => {
  withSeeds(2000, (random) => {
    const dtype = random.pick(DTYPES);
    const topK = random.between(2, random.pick([4, 9, 20, 100]));
    const shape: Shape = { dtype, layers: random.between(1, 40), topK };
    const size = itemBytes(dtype);
    const row = random.bytes(rowBytes(shape));
    // The ids come from a small range, and some layers are all zeros, so that each kind occurs.
    const experts = random.pick([topK, topK * 2, topK * 20]);
    const ids = decodeIds(shape, row).map((layer) =>
      random.chance(0.3)
        ? layer.fill(0)
        : layer.map(() => random.below(Math.min(experts, 2 ** (8 * size - 1)))),
    );
    const bytes = encodeRow(dtype, random.chance(0.5) ? ids : decodeIds(shape, row));
    const kinds = decodeIds(shape, bytes).map(kindOf);
    startExamination(RowCheck.All);
    const leg = random.pick([Leg.Prefill, Leg.Decode]);
    const other = leg === Leg.Prefill ? Leg.Decode : Leg.Prefill;
    const reason = examineBytes(leg, 0, shape, bytes);
    // In the other leg's rows all ids of a layer differ. So each layer of zeros and each repeated
    // id of this row is a fault, and the first one is reported.
    const differ = Array.from({ length: shape.layers }, () => Array.from({ length: topK }, (_, i) => i + 1));
    for (let i = 0; i < 3; i++) examineBytes(other, i, shape, encodeRow(dtype, differ));
    if (kinds.every((kind) => kind === 'Z')) {
      expect(reason).toBe(Reason.Experts);
      expect(judge()).toEqual(fault(describeFault(leg, 0, -1)));
    } else {
      expect(reason).toBe(Reason.None);
      const first = kinds.findIndex((kind) => kind !== 'G');
      expect(judge()).toEqual(first < 0 ? NONE : fault(describeFault(leg, 0, first)));
    }
    wasm['examinationFree']!();
  });
});

test('says when memory is short', () => {
  const shape: Shape = { dtype: '|u1', layers: 1000, topK: 2 };
  const zero = Buffer.alloc(rowBytes(shape));
  zero[1999] = 1;
  // The room is too small for the row, too small for the counts of its layers, and large enough.
  for (const [room, expected] of [
    [1000, Reason.Memory],
    [10_000, Reason.Memory],
    [40_000, Reason.None],
  ] as const) {
    startExamination(RowCheck.All);
    wasm['holdBallast']!((768 << 20) - room);
    const reason = examineBytes(Leg.Decode, 0, shape, zero);
    wasm['dropBallast']!();
    expect(reason).toBe(expected);
    expect(judge().reason).toBe(expected);
    wasm['examinationFree']!();
  }
});
