// Damages the rows of a reply in the ways that real engines and routers have done it. Nothing in
// such a reply says that its rows are wrong, apart from zeros, repeats and counts.

import type { Rows } from './rows.ts';

/** What is wrong with the rows of replies. A row is named by the position of its token. */
export interface Faults {
  /** Rows that are all zero. */
  zeros?: 'all' | 'prompt' | readonly number[];
  /** Rows that name one expert twice, in the last layer. */
  repeats?: readonly number[];
  /**
   * The number of rows beyond what the token counts say; they repeat the last row. A negative
   * number removes rows.
   */
  extraRows?: number;
  /** Rows that belong to another request: those of the prompt, or of its last token alone. */
  foreign?: 'prompt' | 'last';
  /** The layer that has the experts of the layer behind it, in each row of the prompt. */
  shiftedLayer?: number;
  /** The array has the generated rows only. */
  tail?: boolean;
  /** Damages only one in so many arrays. Default: each of them. */
  every?: number;
}

interface Position {
  /** The position of the token of the first row. */
  start: number;
  promptTokens: number;
}

/** The router of the engine whose rows are damaged. */
interface Source {
  readonly model: { readonly layers: number; readonly topK: number };
  /** Writes the row of a token whose prefix has this state. */
  fill(rows: Rows, row: number, state: number): void;
}

/** The state of a prefix that no request has. */
const OTHER_REQUEST = 0x3c6ef372;

/** Returns `rows` with the given faults. The memory of `rows` is overwritten. */
export function applyFaults(rows: Rows, faults: Faults = {}, source: Source, at: Position): Rows {
  const { layers, topK } = source.model;
  const rowLength = layers * topK;
  const { zeros, repeats, extraRows = 0, foreign, shiftedLayer, tail } = faults;
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
  const firstForeign = foreign === 'prompt' ? 0 : foreign === 'last' ? promptRows - 1 : promptRows;
  for (let row = Math.max(firstForeign, 0); row < promptRows; row++)
    source.fill(rows, row, OTHER_REQUEST + row);
  if (shiftedLayer !== undefined) {
    for (let row = 0; row < promptRows; row++) {
      const layer = (row * layers + shiftedLayer) * topK;
      rows.data.copyWithin(layer, layer + topK, layer + 2 * topK);
    }
  }
  const kept = tail
    ? { data: rows.data.subarray(promptRows * rowLength), count: rows.count - promptRows }
    : rows;
  return extraRows === 0 ? kept : resized(kept, Math.max(kept.count + extraRows, 0), rowLength);
}

/** The first `count` rows; rows that are not there repeat the last one. */
function resized(rows: Rows, count: number, rowLength: number): Rows {
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
