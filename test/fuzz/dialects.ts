// The forms in which the array of a choice holds the rows of both legs: how the fuzzer writes such
// an array, and how the reference reads and merges it. Each form is one entry of `DIALECTS`; forms
// of other shapes are in split.ts and raw.ts.

import { npyHeader, type NpyOptions } from '../../yardstick/npy.ts';
import type { Dtype } from '../engine/router.ts';
import { all, integer, isNull, parse, type Node } from './json.ts';

/** An array that was read from a value. */
export interface Rows {
  dtype: string;
  rows: number;
  layers: number;
  topK: number;
  data: Buffer;
  /** The position of the token of the first row. */
  start: number;
  /** The bytes before the data, which an overlay keeps. */
  head: Buffer;
  /** The JSON text of the value. */
  text: string;
}

export interface Written {
  dtype: string;
  layers: number;
  topK: number;
  rows: number;
  /** The position of the token of the first row. */
  start: number;
  data: Buffer;
  npy: NpyOptions;
}

export interface Dialect {
  name: string;
  /**
   * `key` is the member of a choice that holds the array; `first` is the first character of its
   * value.
   */
  key: string;
  first: string;
  /** Whether an array itself tells the position of its first token. */
  tellsStart: boolean;
  /** Writes an array as JSON text. */
  write(array: Written): string;
  /** Reads the array from a value's text; null if it is not an array that may be merged. */
  read(text: string): Rows | null;
  /**
   * The range of text that prefill's rows replace in a full array whose value begins at `at` in a
   * decode response, whatever stands in that range; null if the array's head cannot be read.
   */
  overwritten(text: string, at: number, prefill: Rows): [from: number, to: number] | null;
  /**
   * The text of the decode array with other data, whose first row is that of token `start`. `moved`
   * means that it began with another row before. If `dtype` is not the array's own, `prefill` shows
   * how prefill writes dtypes.
   */
  merged(like: Rows, data: Buffer, moved: boolean, start: number, dtype: string, prefill: Rows): string;
}

export const DTYPES: readonly Dtype[] = ['|u1', '<u2', '<i2', '<i4'];
export const itemBytes = (dtype: string): number => Number(dtype.slice(2));

/**
 * Reads the dictionary of a `.npy` header. The order of the keys and the spaces are free; null if
 * anything else differs from what NumPy writes.
 */
function readDictionary(text: string): { descr: string; shape: number[] } | null {
  // The dictionary has Python's names, not those of JSON.
  if (/\b(false|true|null)\b/.test(text)) return null;
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
    if (!DTYPES.includes(descr as Dtype) || shape.some((axis: number) => axis < 0)) return null;
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
  const head = file.subarray(0, size);
  return right ? { dtype: dictionary.descr, rows, layers, topK, data, start: 0, head, text: '' } : null;
}

/**
 * The bytes of a JSON string that is padded base64 (RFC 4648, section 4); null for any other value.
 */
export function base64Of(text: string): Buffer | null {
  const inner = text.slice(1, -1);
  return /^"[A-Za-z0-9+/]*={0,2}"$/.test(text) && inner.length % 4 === 0
    ? Buffer.from(inner, 'base64')
    : null;
}

const npy: Dialect = {
  name: 'npy',
  key: 'routed_experts',
  first: '"',
  tellsStart: false,
  write({ dtype, rows, layers, topK, data, npy: options }) {
    return `"${Buffer.concat([npyHeader(dtype, [rows, layers, topK], options), data]).toString('base64')}"`;
  },
  read(text) {
    const file = base64Of(text);
    const rows = file && readNpy(file);
    return rows && { ...rows, text };
  },
  overwritten(text, at, { rows, layers, topK }) {
    const start = Buffer.from(text.slice(at + 1, at + 17), 'base64');
    if (text[at] !== '"' || start.length < 12 || start.toString('latin1', 0, 6) !== '\x93NUMPY') return null;
    const size = start[6] === 1 ? 10 + start.readUInt16LE(8) : 12 + start.readUInt32LE(8);
    const head = Math.ceil((size * 8) / 6);
    const file = Buffer.from(text.slice(at + 1, at + 1 + head), 'base64');
    const dictionary = readDictionary(file.toString('latin1', start[6] === 1 ? 10 : 12, size));
    if (!dictionary) return null;
    const end = size + rows * layers * topK * itemBytes(dictionary.descr);
    return [at + 1 + head, at + 1 + Math.floor((end * 8) / 6)];
  },
  merged(like, data, moved, _start, dtype) {
    const rows = data.length / (like.layers * like.topK * itemBytes(dtype));
    const written = moved || dtype !== like.dtype;
    const head = written ? npyHeader(dtype, [rows, like.layers, like.topK]) : like.head;
    return `"${Buffer.concat([head, data]).toString('base64')}"`;
  },
};

export const NUMPY_NAMES: Record<string, string> = {
  '|u1': 'uint8',
  '<u2': 'uint16',
  '<i2': 'int16',
  '<i4': 'int32',
};

/** The text with which an object names its dtype; null if it names none. */
function dtypeText(text: string): string | null {
  const member = all(parse(text)!, 'dtype')[0];
  return member?.kind === 'string' ? text.slice(member.start, member.end) : null;
}

/**
 * The form of prime-rl and Dynamo: raw bytes, with the shape and the position of the first token
 * beside them.
 */
const object: Dialect = {
  name: 'object',
  key: 'routed_experts',
  first: '{',
  tellsStart: true,
  write({ dtype, rows, layers, topK, data, start }) {
    const members = {
      data: data.toString('base64'),
      shape: [rows, layers, topK],
      start,
      dtype: NUMPY_NAMES[dtype],
    };
    return JSON.stringify(members);
  },
  read(text) {
    const root = parse(text);
    if (root?.kind !== 'object') return null;
    const [data, shape, start, dtype] = ['data', 'shape', 'start', 'dtype'].map((key) => all(root, key));
    if ([data, shape, start, dtype].some((each) => each!.length > 1) || shape![0]?.kind !== 'array')
      return null;
    const of = (node: Node | undefined) => (node ? text.slice(node.start, node.end) : 'null');
    const bytes = base64Of(of(data![0]));
    const [rows, layers, topK] = shape![0].items.map((item) => integer(text, item)) as [
      number,
      number,
      number,
    ];
    const first = isNull(text, start![0]) ? 0 : integer(text, start![0]);
    const name = isNull(text, dtype![0]) ? '"uint8"' : of(dtype![0]);
    const code = Object.keys(NUMPY_NAMES).find((each) =>
      [`"${each}"`, `"${NUMPY_NAMES[each]}"`].includes(name),
    );
    if (!bytes || !code || shape![0].items.length !== 3 || rows < 0 || layers < 1 || topK < 1 || first < 0)
      return null;
    if (rows * layers * topK * itemBytes(code) !== bytes.length) return null;
    return { dtype: code, rows, layers, topK, data: bytes, start: first, head: Buffer.alloc(0), text };
  },
  overwritten: () => null,
  merged({ text, layers, topK, dtype: was }, data, moved, start, dtype, prefill) {
    const root = parse(text)!;
    const edits: [Node, string][] = [[all(root, 'data')[0]!, `"${data.toString('base64')}"`]];
    const rows = data.length / (layers * topK * itemBytes(dtype));
    if (moved) edits.push([all(root, 'shape')[0]!.items[0]!, String(rows)]);
    const first = all(root, 'start')[0];
    // Members that the object does not have become its last ones.
    let last = moved && !first ? `,"start":${start}` : '';
    if (moved && first) edits.push([first, String(start)]);
    if (dtype !== was) {
      const name = dtypeText(text) ?? dtypeText(prefill.text)!;
      const member = all(root, 'dtype')[0];
      const written = JSON.stringify(name.includes('int') ? NUMPY_NAMES[dtype] : dtype);
      if (member) edits.push([member, written]);
      else last += `,"dtype":${written}`;
    }
    edits.push([{ ...root, start: root.end - 1, end: root.end - 1 }, last]);
    edits.sort(([a], [b]) => b.start - a.start);
    return edits.reduce((out, [node, by]) => out.slice(0, node.start) + by + out.slice(node.end), text);
  },
};

export const DIALECTS: readonly Dialect[] = [npy, object];

/**
 * Whether some row has all bits set, which is -1 in a signed type: an engine writes this for a row
 * that it does not know.
 */
export function hasSentinel(data: Buffer, width: number): boolean {
  for (let at = 0; at < data.length; at += width) {
    if (data.subarray(at, at + width).every((byte) => byte === 0xff)) return true;
  }
  return false;
}
