// Damages the rows of a reply in the ways that real engines have done it.

import type { Faults } from './options.ts';
import type { MoeModel, Rows } from './router.ts';

interface Position {
  /** The position of the token of the first row. */
  start: number;
  promptTokens: number;
}

/** Returns `rows` with the given faults. The memory of `rows` is overwritten. */
export function applyFaults(rows: Rows, faults: Faults = {}, model: MoeModel, at: Position): Rows {
  const { layers, topK } = model;
  const rowLength = layers * topK;
  const { zeros, repeats, extraRows = 0 } = faults;
  const zero = (from: number, to: number) => rows.data.fill(0, from * rowLength, to * rowLength);
  const promptRows = Math.min(Math.max(at.promptTokens - at.start, 0), rows.count);
  if (zeros === 'all') zero(0, rows.count);
  if (zeros === 'prompt') zero(0, promptRows);
  if (typeof zeros === 'object') for (const row of inside(zeros, at, rows)) zero(row, row + 1);
  for (const row of inside(repeats ?? [], at, rows)) {
    // The last layer is never a dense layer.
    const first = (row + 1) * rowLength - topK;
    rows.data[first + topK - 1] = rows.data[first]!;
  }
  if (extraRows === 0) return rows;
  const count = Math.max(rows.count + extraRows, 0);
  const Data = rows.data.constructor as new (length: number) => Rows['data'];
  const data = new Data(count * rowLength);
  for (let row = 0; row < count; row++) {
    const from = Math.min(row, rows.count - 1) * rowLength;
    data.set(rows.data.subarray(from, from + rowLength), row * rowLength);
  }
  return { data, count };
}

/** The indices of the rows of these tokens, for those tokens that the array covers. */
function inside(tokens: readonly number[], { start }: Position, { count }: Rows): number[] {
  return tokens.map((token) => token - start).filter((row) => row >= 0 && row < count);
}
