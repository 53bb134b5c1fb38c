// Reads `routed_experts` in every format that engines write: a `.npy` file in base64, an object
// with raw bytes, nested lists, and raw int32 in base64. docs/formats.md says which engine writes
// which.

import { decodeNpy } from './npy.ts';
import { DTYPE_NAMES, idsOf, type Dtype, type RowData } from './rows.ts';

/** An array as it came. The ids are in C order. */
export interface Captured {
  ids: RowData;
  /** Rows, layers and top_k; null where the format does not tell, as in raw int32. */
  shape: [rows: number, layers: number, topK: number] | null;
  /** The position of the first row's token, where the format tells. */
  start: number | null;
}

type Json = Record<string, unknown>;

/** Reads the value of one array. Throws an error that says what is wrong with it. */
export function readArray(value: unknown): Captured {
  if (typeof value === 'string') return readText(value);
  if (Array.isArray(value)) return readLists(value);
  if (typeof value === 'object' && value !== null) return readObject(value as Json);
  throw new Error(`routed_experts is ${JSON.stringify(value)}`);
}

const NPY_MAGIC = 0x93;

function readText(text: string): Captured {
  const bytes = fromBase64(text);
  if (bytes[0] !== NPY_MAGIC || bytes.toString('latin1', 1, 6) !== 'NUMPY') {
    if (bytes.length % 4 !== 0) throw new Error(`${bytes.length} bytes are not int32`);
    return { ids: idsOf(bytes, '<i4'), shape: null, start: null };
  }
  const { descr, shape, data, fortranOrder } = decodeNpy(bytes);
  if (!(descr in DTYPE_NAMES)) throw new Error(`dtype ${descr}`);
  if (fortranOrder) throw new Error('the array is in Fortran order');
  return { ids: idsOf(data, descr as Dtype), shape: threeOf(shape), start: null };
}

function readObject({ data, shape, dtype = 'uint8', start = null }: Json): Captured {
  if (typeof data !== 'string') throw new Error('an object without data');
  const found = Object.entries(DTYPE_NAMES).find(([, name]) => name === dtype);
  if (!found) throw new Error(`dtype ${JSON.stringify(dtype)}`);
  const three = threeOf(shape);
  const ids = idsOf(fromBase64(data), found[0] as Dtype);
  const [rows, layers, topK] = three;
  if (ids.length !== rows * layers * topK)
    throw new Error(`${ids.length} ids in the shape ${three.join(' x ')}`);
  if (start !== null && !Number.isInteger(start)) throw new Error(`start ${JSON.stringify(start)}`);
  return { ids, shape: three, start: start as number | null };
}

function readLists(rows: unknown[]): Captured {
  const first = rows[0];
  const layers = Array.isArray(first) ? first.length : 0;
  const topK = Array.isArray(first) && Array.isArray(first[0]) ? first[0].length : 0;
  const ids = (rows as number[][][]).flat(2);
  if (ids.length !== rows.length * layers * topK || !ids.every(Number.isInteger)) {
    throw new Error('lists of different lengths, or of other things than numbers');
  }
  return { ids: Int32Array.from(ids), shape: [rows.length, layers, topK], start: null };
}

function fromBase64(text: string): Buffer {
  const bytes = Buffer.from(text, 'base64');
  // Buffer skips what is not in the alphabet; the engines' Python would not.
  if (text.length % 4 !== 0 || bytes.toString('base64') !== text) throw new Error('this is not base64');
  return bytes;
}

function threeOf(shape: unknown): [number, number, number] {
  if (
    Array.isArray(shape) &&
    shape.length === 3 &&
    shape.every((axis) => Number.isInteger(axis) && axis >= 0)
  ) {
    return shape as [number, number, number];
  }
  throw new Error(`shape ${JSON.stringify(shape)}`);
}

/** Two arrays of one choice, the prompt rows and the rows behind them, as one. */
export function joined(prompt: Captured, generated: Captured): Captured {
  // An empty list does not tell its layers and top_k.
  const [layers, topK] = [prompt, generated].find(({ shape }) => shape![0] > 0)?.shape!.slice(1) ?? [0, 0];
  for (const { shape } of [prompt, generated]) {
    if (shape![0] > 0 && (shape![1] !== layers || shape![2] !== topK)) {
      throw new Error(`prompt rows of another shape than generated ones: ${shape!.slice(1).join(' x ')}`);
    }
  }
  const ids = Int32Array.from([...prompt.ids, ...generated.ids]);
  return { ids, shape: [prompt.shape![0] + generated.shape![0], layers!, topK!], start: prompt.start };
}
