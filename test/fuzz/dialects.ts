// The forms in which engines return routing, for the fuzzer: how one is written, and what the reference reads and writes.
// A form is one entry of `DIALECTS`.

import { npyHeader, type NpyOptions } from '../engine/npy.ts';
import { all, isNull, type Node } from './json.ts';

/** An array as it is found in a value. */
export interface Rows {
  dtype: string;
  rows: number;
  layers: number;
  topK: number;
  data: Buffer;
  /** What stands before the data, kept by an overlay. */
  head: Buffer;
}

export interface Written {
  dtype: string;
  layers: number;
  topK: number;
  rows: number;
  data: Buffer;
  npy: NpyOptions;
}

export interface Dialect {
  name: string;
  /** Member of a choice that holds the array. */
  key: string;
  /** JSON text of an array. */
  write(array: Written): string;
  /** The array in a value's text; null when it is not one that may be merged. */
  read(text: string): Rows | null;
  /**
   * Of a value that begins at `at` of a decode response: from where to where a full array is overwritten by prefill's rows,
   * whatever stands there; null when its head can't be read.
   */
  overwritten(text: string, at: number, prefill: Rows): [from: number, to: number] | null;
  /** Text of the decode array with other data: `like` is what decode sent, `tail` whether its rows follow the data. */
  merged(like: Rows, data: Buffer, tail: boolean): string;
}

const DTYPES = ['|u1', '<u2', '<i2', '<i4'];
export const itemBytes = (dtype: string): number => Number(dtype.slice(2));

/** The dictionary of a `.npy` header; null when it is not as NumPy writes it, whatever the order and the spaces. */
function readDictionary(text: string): { descr: string; shape: number[] } | null {
  const json = text
    .replace(/'/g, '"')
    .replace(/\bFalse\b/g, 'false')
    .replace(/\bTrue\b/g, 'true')
    .replace(/\(/g, '[')
    .replace(/\)/g, ']')
    .replace(/,(\s*[\]}])/g, '$1');
  try {
    const { descr, fortran_order, shape, ...rest } = JSON.parse(json);
    const dimensions = Array.isArray(shape) && shape.length === 3 && shape.every(Number.isSafeInteger);
    if (fortran_order !== false || !dimensions || Object.keys(rest).length > 0) return null;
    if (!DTYPES.includes(descr) || shape.some((axis: number) => axis < 0)) return null;
    return shape[1] > 0 && shape[2] > 0 ? { descr, shape } : null;
  } catch {
    return null;
  }
}

function readNpy(file: Buffer): Rows | null {
  if (file.toString('latin1', 0, 6) !== '\x93NUMPY' || file.length < 12) return null;
  const version = file[6]!;
  if (version < 1 || version > 3 || file[7] !== 0) return null;
  const start = version === 1 ? 10 : 12;
  const size = start + (version === 1 ? file.readUInt16LE(8) : file.readUInt32LE(8));
  if (size > 10_000 || size > file.length) return null;
  const dictionary = readDictionary(file.toString('latin1', start, size));
  if (!dictionary) return null;
  const [rows, layers, topK] = dictionary.shape as [number, number, number];
  const data = file.subarray(size);
  const right = rows * layers * topK * itemBytes(dictionary.descr) === data.length;
  return right ? { dtype: dictionary.descr, rows, layers, topK, data, head: file.subarray(0, size) } : null;
}

/** The bytes of a JSON string that is base64 (RFC 4648, section 4), padded; null for any other value. */
function base64Of(text: string): Buffer | null {
  if (!/^"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"$/.test(text)) return null;
  return Buffer.from(text.slice(1, -1), 'base64');
}

const npy: Dialect = {
  name: 'npy',
  key: 'routed_experts',
  write({ dtype, rows, layers, topK, data, npy: options }) {
    return `"${Buffer.concat([npyHeader(dtype, [rows, layers, topK], options), data]).toString('base64')}"`;
  },
  read(text) {
    const file = base64Of(text);
    return file && readNpy(file);
  },
  overwritten(text, at, { rows, dtype, layers, topK }) {
    const start = Buffer.from(text.slice(at + 1, at + 17), 'base64');
    if (text[at] !== '"' || start.length < 12 || start.toString('latin1', 0, 6) !== '\x93NUMPY') return null;
    const size = start[6] === 1 ? 10 + start.readUInt16LE(8) : 12 + start.readUInt32LE(8);
    const [head, end] = [Math.ceil((size * 8) / 6), size + rows * layers * topK * itemBytes(dtype)];
    return [at + 1 + head, at + 1 + Math.floor((end * 8) / 6)];
  },
  merged(like, data, tail) {
    const rows = data.length / (like.layers * like.topK * itemBytes(like.dtype));
    const head = tail ? npyHeader(like.dtype, [rows, like.layers, like.topK]) : like.head;
    return `"${Buffer.concat([head, data]).toString('base64')}"`;
  },
};

export const DIALECTS: readonly Dialect[] = [npy];

/** Members that hold routing in some form: of a choice, and of the document. */
const OF_CHOICE = [
  ['routed_experts'],
  ['prompt_routed_experts'],
  ['meta_info', 'routed_experts'],
  ['sglext', 'routed_experts'],
];
const OF_ROOT = OF_CHOICE.slice(1);

export interface Place {
  node: Node;
  /** The choice it is in; -1: none. */
  choice: number;
  /** As `choices.0.routed_experts`, without the number. */
  key: string;
}

const follow = (node: Node, path: string[]): Node[] =>
  path.reduce<Node[]>((nodes, key) => nodes.flatMap((each) => all(each, key)), [node]);

/** Every value in a document that is not null and is, or could be, routing; in order. */
export function places(text: string, root: Node): Place[] {
  const found: Place[] = [];
  const add = (node: Node, path: string[], choice: number) => {
    for (const value of follow(node, path))
      if (!isNull(text, value)) found.push({ node: value, choice, key: path.join('.') });
  };
  for (const path of OF_ROOT) add(root, path, -1);
  let choice = 0;
  for (const choices of all(root, 'choices')) {
    for (const item of choices.items) {
      for (const path of OF_CHOICE) add(item, path, choice);
      choice++;
    }
  }
  return found.sort((a, b) => a.node.start - b.node.start);
}
