// Arrays as engines send them, and their merge independently of the filter: decoded with Buffer,
// joined, and encoded again.

import { decodeNpy, encodeNpy, npyHeader, type NpyOptions } from '../../yardstick/npy.ts';
import type { Dtype } from '../engine/router.ts';
import type { Random } from './random.ts';

export const DTYPES: readonly Dtype[] = ['|u1', '<u2', '<i2', '<i4'];

export interface Shape {
  dtype: Dtype;
  layers: number;
  topK: number;
}

export const itemBytes = (dtype: string) => Number(dtype.slice(2));
export const rowBytes = ({ dtype, layers, topK }: Shape) => layers * topK * itemBytes(dtype);

/** Base64 of a `.npy` file that has these rows. */
export function arrayText(shape: Shape, data: Buffer, options: NpyOptions = {}): string {
  const rows = data.length / rowBytes(shape);
  return encodeNpy(data, shape.dtype, [rows, shape.layers, shape.topK], options).toString('base64');
}

/** Random rows of which none is a sentinel: the first byte of each is below 0x80. */
export function randomRows(random: Random, shape: Shape, rows: number): Buffer {
  const data = random.bytes(rows * rowBytes(shape));
  for (let row = 0; row < rows; row++) data[row * rowBytes(shape)]! &= 0x7f;
  return data;
}

/** The narrowest dtype that holds every value of both dtypes, as in `numpy.result_type`. */
export function promoted(a: Dtype, b: Dtype): Dtype {
  const order: Dtype[] = ['|u1', '<u2', '<i2', '<i4'];
  const [low, high] = [a, b].sort((one, two) => order.indexOf(one) - order.indexOf(two)) as [Dtype, Dtype];
  return low === '<u2' && high === '<i2' ? '<i4' : high;
}

/** The same ids in a dtype that holds all of them. */
export function widened(data: Buffer, from: Dtype, to: Dtype): Buffer {
  const [size, wide] = [itemBytes(from), itemBytes(to)];
  const out = Buffer.alloc((data.length / size) * wide);
  for (let i = 0; i * size < data.length; i++) {
    const id = from[1] === 'i' ? data.readIntLE(i * size, size) : data.readUIntLE(i * size, size);
    if (id < 0) out.writeIntLE(id, i * wide, wide);
    else out.writeUIntLE(id, i * wide, wide);
  }
  return out;
}

const opened = (text: string) => decodeNpy(Buffer.from(text, 'base64'));

/**
 * Decode's array with prefill's rows in the place of its own. Everything else of it stays, unless
 * the ids have to be widened. `taken` is the number of rows that come from prefill; by default, all
 * of prefill's.
 */
export function overlay(prefill: string, decode: string, taken = opened(prefill).shape[0]!): string {
  const [first, second] = [opened(prefill), opened(decode)];
  const to = promoted(first.descr as Dtype, second.descr as Dtype);
  const before = taken * (first.data.length / first.shape[0]!);
  const rows = widened(first.data.subarray(0, before), first.descr as Dtype, to);
  if (to !== second.descr) {
    const gone = taken * (second.data.length / second.shape[0]!);
    const kept = widened(second.data.subarray(gone), second.descr as Dtype, to);
    return Buffer.concat([npyHeader(to, second.shape), rows, kept]).toString('base64');
  }
  const file = Buffer.from(decode, 'base64');
  rows.copy(file, second.headerBytes);
  return file.toString('base64');
}

/** Prefill's rows followed by decode's, with the header that NumPy writes for them. */
export function concatenate(prefill: string, decode: string, taken = opened(prefill).shape[0]!): string {
  const [first, second] = [opened(prefill), opened(decode)];
  const to = promoted(first.descr as Dtype, second.descr as Dtype);
  const before = taken * (first.data.length / first.shape[0]!);
  const rows = widened(first.data.subarray(0, before), first.descr as Dtype, to);
  const shape = [taken + second.shape[0]!, ...second.shape.slice(1)];
  const kept = widened(second.data, second.descr as Dtype, to);
  return Buffer.concat([npyHeader(to, shape), rows, kept]).toString('base64');
}

/** A prefill reply that holds an array. */
export function replyBody(array: string, promptTokens: number): Buffer {
  return Buffer.from(
    `{"id":"p","choices":[{"index":0,"text":" x","routed_experts":"${array}"}],` +
      `"usage":{"prompt_tokens":${promptTokens},"completion_tokens":1},"kv_transfer_params":{"remote_block_ids":[[1]]}}`,
  );
}
