// The header of a .npy file, compared with what NumPy wrote and read
// (test/fixtures/npy_headers/make.py).

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { npyHeader } from '../../yardstick/npy.ts';
import { withSeeds } from './random.ts';
import { Dtype, Reason, lend, peek, wasm } from './wasm.ts';

interface Golden {
  saved: { rows: number; layers: number; topK: number; dtype: string; header: string }[];
  seen: {
    header: string;
    numpy: { shape: string[]; fortran: boolean; dtype: string; size: number } | null;
  }[];
}

const golden: Golden = JSON.parse(
  readFileSync(new URL('../fixtures/npy_headers/headers.json', import.meta.url), 'utf8'),
);
const DTYPES: Record<string, Dtype> = { '|u1': Dtype.U1, '<u2': Dtype.U2, '<i2': Dtype.I2, '<i4': Dtype.I4 };

const read = (bytes: Buffer): Reason => wasm['npyRead']!(lend(bytes), bytes.length);

function write(dtype: string, rows: number, layers: number, topK: number): Buffer {
  const ptr = lend(Buffer.alloc(256));
  return peek(ptr, wasm['npyWrite']!(ptr, DTYPES[dtype]!, rows, layers, topK));
}

describe('readHeader', () => {
  test('reads every routing array that NumPy reads, and nothing that NumPy refuses', () => {
    const verdicts = { read: 0, refused: 0, bad: 0 };
    for (const { header, numpy } of golden.seen) {
      const bytes = Buffer.from(header, 'hex');
      const text = bytes.toString('latin1');
      const reason = read(bytes);
      if (numpy === null) {
        expect(reason, text).not.toBe(Reason.None);
        verdicts.bad++;
        continue;
      }
      if (reason !== Reason.None) {
        verdicts.refused++;
        continue;
      }
      verdicts.read++;
      const shape = [wasm['npyRows']!(), wasm['npyLayers']!(), wasm['npyTopK']!()];
      expect(
        { shape: shape.map(String), dtype: wasm['npyDtype']!(), size: wasm['npySize']!() },
        text,
      ).toEqual({
        shape: numpy.shape,
        dtype: DTYPES[numpy.dtype],
        size: numpy.size,
      });
      expect(numpy.fortran, text).toBe(false);
    }
    for (const count of Object.values(verdicts)) expect(count).toBeGreaterThan(50);
  });

  test('refuses what NumPy wrote only for a reason', () => {
    for (const { header, numpy } of golden.seen) {
      const bytes = Buffer.from(header, 'hex');
      // The header is as `np.save` writes it: aligned, and with the keys in its order.
      const text = bytes.toString('latin1', bytes[6] === 1 ? 10 : 12);
      const plain = /^\{'descr': '[^']*', 'fortran_order': (True|False), 'shape': \([^)]*\), \} *\n$/.test(
        text,
      );
      if (numpy === null || !plain || bytes.length % 64 !== 0) continue;
      const shape = numpy.shape.map(Number);
      const [, layers = 0, topK = 0] = shape;
      const size = Number(numpy.dtype.slice(2));
      const descr = /'descr': '([^']*)'/.exec(text)![1]!;
      const expected =
        DTYPES[descr] === undefined
          ? Reason.Dtype
          : numpy.fortran
            ? Reason.Order
            : shape.length !== 3 ||
                layers * topK === 0 ||
                layers * topK * size > 1 << 20 ||
                shape[0]! > 2 ** 31
              ? Reason.Shape
              : Reason.None;
      expect(read(bytes), text).toBe(expected);
    }
  });

  test.each([
    ["{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4), }", Reason.Shape],
    ["{'descr': '<u4', 'fortran_order': True, 'shape': (3, 4), }", Reason.Dtype],
    ["{'descr': '|u1', 'fortran_order': True, 'shape': (3, 4), }", Reason.Order],
    ["{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (3, 4, 5), }", Reason.Dtype],
    ["{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 5), 'x': 1}", Reason.Header],
    ["{'shape': (3, 4, 5), 'descr': '|u1', 'fortran_order': False}", Reason.None],
  ])('%s is %i', (text, reason) => {
    const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length, 0]);
    expect(read(Buffer.concat([head, Buffer.from(text)]))).toBe(reason);
  });

  test('refuses other magic and versions, and headers of an impossible length', () => {
    const good = npyHeader('|u1', [3, 4, 5]);
    for (let i = 0; i < 6; i++) {
      const bytes = Buffer.from(good);
      bytes[i]! ^= 1;
      expect(read(bytes)).toBe(Reason.Magic);
    }
    for (const [major, minor] of [
      [0, 0],
      [4, 0],
      [1, 1],
      [255, 255],
    ] as const) {
      const bytes = Buffer.from(good);
      bytes.set([major, minor], 6);
      expect(read(bytes)).toBe(Reason.Version);
    }
    for (const length of [0, 1, 9991, 65535]) {
      const bytes = Buffer.from(good);
      bytes.writeUInt16LE(length, 8);
      expect(read(bytes)).toBe(Reason.Header);
    }
    const long = npyHeader('|u1', [3, 4, 5], { version: 2 });
    long.writeUInt32LE(0xffffffff, 8);
    expect(read(long)).toBe(Reason.Header);
  });

  test('never reads behind the header', () => {
    withSeeds(3000, (random) => {
      const text = "{'descr': '<i4', 'fortran_order': False, 'shape': (31, 4, 5), }";
      const cut = text.slice(0, random.below(text.length));
      const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, Math.max(2, cut.length), 0]);
      // The bytes behind the header would complete it.
      const bytes = Buffer.concat([head, Buffer.from(cut.padEnd(2)), Buffer.from(text.slice(cut.length))]);
      expect(read(bytes)).toBe(Reason.Header);
    });
  });
});

describe('writeHeader', () => {
  test('writes what NumPy writes', () => {
    for (const { rows, layers, topK, dtype, header } of golden.saved) {
      expect(write(dtype, rows, layers, topK).toString('hex')).toBe(header);
    }
  });

  test('writes what the engine of the tests writes, which is proven against NumPy', () => {
    for (let rows = 0; rows <= 100_000; rows += rows < 1200 ? 1 : 997) {
      for (const dtype of Object.keys(DTYPES)) {
        const expected = npyHeader(dtype, [rows, 48, 8]);
        expect(write(dtype, rows, 48, 8).equals(expected)).toBe(true);
      }
    }
    withSeeds(1000, (random) => {
      const shape = [10 ** random.below(7), 1 + random.below(10 ** random.below(5)), 1 + random.below(9)];
      const [rows, layers, topK] = shape as [number, number, number];
      expect(write('<u2', rows, layers, topK).equals(npyHeader('<u2', shape))).toBe(true);
    });
  });

  test('writes what readHeader reads', () => {
    for (const [dtype, id] of Object.entries(DTYPES)) {
      expect(read(write(dtype, 77, 12, 5))).toBe(Reason.None);
      const seen = ['npySize', 'npyDtype', 'npyRows', 'npyLayers', 'npyTopK'].map((name) => wasm[name]!());
      expect(seen).toEqual([128, id, 77, 12, 5]);
    }
  });
});
