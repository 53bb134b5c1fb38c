// Arrays whose rows are written out, in every format, for scenarios about which rows an array has
// and what is in them.

import { DTYPE_NAMES, itemBytes, type Dtype } from '../../yardstick/rows.ts';
import { encoded, type ArraySpec } from './messages.ts';

/** Rows x layers x top_k. */
export type Rows = number[][][];

const MEMBERS = { layers: 3, topK: 4 };

/**
 * Row `i` of a token sequence, whose layers all name different experts. `salt` distinguishes the
 * engines.
 */
export const row = (i: number, salt = 0, { layers, topK } = MEMBERS): number[][] =>
  Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: topK }, (_, k) => 1 + ((i * 5 + layer * 11 + k * 7 + salt * 3) % 29)),
  );

/** The rows of the tokens from `from` up to but not including `to`. */
export const rowsOf = (from: number, to: number, salt = 0, of = MEMBERS): Rows =>
  Array.from({ length: to - from }, (_, i) => row(from + i, salt, of));

/** The rows with some of their layers changed. */
export const changed = (rows: Rows, change: (row: number, layer: number, ids: number[]) => number[]): Rows =>
  rows.map((layers, i) => layers.map((ids, layer) => change(i, layer, ids)));

const specOf = (rows: Rows, dtype: Dtype): ArraySpec => ({
  rows: rows.length,
  layers: rows[0]?.length ?? MEMBERS.layers,
  topK: rows[0]?.[0]?.length ?? MEMBERS.topK,
  dtype,
});

/** The bytes of the rows, little-endian. */
export function bytesOf(rows: Rows, dtype: Dtype = '|u1'): Buffer {
  const size = itemBytes(dtype);
  const ids = rows.flat(2);
  const data = Buffer.alloc(ids.length * size);
  ids.forEach((id, i) =>
    data.writeIntLE(size === 4 || id < 1 << (size * 8 - 1) ? id : id - (1 << (size * 8)), i * size, size),
  );
  return data;
}

/** Writes rows as the JSON text of an array's value. */
export type Write = (rows: Rows, start?: number) => string;

export const inNpy =
  (dtype: Dtype = '|u1'): Write =>
  (rows) =>
    JSON.stringify(encoded(specOf(rows, dtype), bytesOf(rows, dtype)));

export const inObject =
  (dtype: Dtype = '|u1'): Write =>
  (rows, start = 0) => {
    const { layers, topK } = specOf(rows, dtype);
    const shape = [rows.length, layers, topK];
    return JSON.stringify({
      data: bytesOf(rows, dtype).toString('base64'),
      shape,
      start,
      dtype: DTYPE_NAMES[dtype],
    });
  };

export const inLists: Write = (rows) => JSON.stringify(rows);

export const inInt32: Write = (rows) => JSON.stringify(bytesOf(rows, '<i4').toString('base64'));
