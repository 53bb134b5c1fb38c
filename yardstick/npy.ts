// The `.npy` format as `np.save` writes it. This file knows nothing of what the array means.

import type { Dtype } from './rows.ts';

export interface NpyOptions {
  /** Version of the format; `np.save` writes 1 unless the header does not fit. */
  version?: 1 | 2 | 3;
  /** Spaces beyond NumPy's own padding; they move the data to another base64 phase. */
  padding?: number;
}

export interface Npy {
  version: number;
  descr: string;
  shape: number[];
  fortranOrder: boolean;
  /** Number of bytes before the data. */
  headerBytes: number;
  data: Buffer;
}

const MAGIC = Buffer.from('\x93NUMPY', 'latin1');
const ALIGN = 64;
/** NumPy pads the header so that the first axis can grow in place to this many digits. */
const GROWTH_AXIS_MAX_DIGITS = 21;

/** The magic, version, length and dictionary of an array in C order. */
export function npyHeader(descr: string, shape: readonly number[], options: NpyOptions = {}): Buffer {
  const { version = 1, padding = 0 } = options;
  const lengthBytes = version === 1 ? 2 : 4;
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(', ')})`;
  let text = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${tuple}, }`;
  if (shape.length > 0) text += ' '.repeat(GROWTH_AXIS_MAX_DIGITS - String(shape[0]).length);
  const unpadded = MAGIC.length + 2 + lengthBytes + text.length + 1;
  // If the header is already aligned, NumPy appends a whole block of 64 spaces; so does this line.
  text += ' '.repeat(ALIGN - (unpadded % ALIGN) + padding) + '\n';
  const head = Buffer.alloc(MAGIC.length + 2 + lengthBytes);
  MAGIC.copy(head);
  head[MAGIC.length] = version;
  if (version === 1) head.writeUInt16LE(text.length, MAGIC.length + 2);
  else head.writeUInt32LE(text.length, MAGIC.length + 2);
  return Buffer.concat([head, Buffer.from(text, 'latin1')]);
}

/** The file that `np.save` writes for `data`, whose memory is little-endian. */
export function encodeNpy(
  data: ArrayBufferView,
  descr: Dtype,
  shape: readonly number[],
  options?: NpyOptions,
): Buffer {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return Buffer.concat([npyHeader(descr, shape, options), bytes]);
}

/** Reads a `.npy` file; throws where `np.load` would. */
export function decodeNpy(file: Buffer): Npy {
  if (!file.subarray(0, MAGIC.length).equals(MAGIC)) throw new Error('not a .npy file');
  const version = file[MAGIC.length]!;
  if (version < 1 || version > 3) throw new Error(`.npy version ${version}`);
  const start = MAGIC.length + 2 + (version === 1 ? 2 : 4);
  const length = version === 1 ? file.readUInt16LE(8) : file.readUInt32LE(8);
  const headerBytes = start + length;
  const text = file.toString('latin1', start, headerBytes);
  const match = /^\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n$/.exec(
    text,
  );
  if (!match) throw new Error(`.npy header ${JSON.stringify(text)}`);
  const shape = match[3]!
    .split(',')
    .filter((part) => part.trim() !== '')
    .map(Number);
  const data = file.subarray(headerBytes);
  const itemBytes = Number(match[1]!.slice(2));
  const expected = shape.reduce((product, axis) => product * axis, itemBytes);
  if (data.length !== expected) throw new Error(`.npy data has ${data.length} bytes, its shape ${expected}`);
  return { version, descr: match[1]!, shape, fortranOrder: match[2] === 'True', headerBytes, data };
}
