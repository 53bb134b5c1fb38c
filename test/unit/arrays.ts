// Arrays as engines send them, merged independently of the filter: decoded with Buffer, joined, encoded again.

import { decodeNpy, encodeNpy, npyHeader, type NpyOptions } from '../engine/npy.ts';
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

/** Base64 of a `.npy` file with these rows. */
export function arrayText(shape: Shape, data: Buffer, options: NpyOptions = {}): string {
  const rows = data.length / rowBytes(shape);
  return encodeNpy(data, shape.dtype, [rows, shape.layers, shape.topK], options).toString('base64');
}

/** Rows that are no sentinel: the first byte of each is below 0x80. */
export function randomRows(random: Random, shape: Shape, rows: number): Buffer {
  const data = random.bytes(rows * rowBytes(shape));
  for (let row = 0; row < rows; row++) data[row * rowBytes(shape)]! &= 0x7f;
  return data;
}

/** Prefill's rows over decode's; everything else of decode's array stays. */
export function overlay(prefill: string, decode: string): string {
  const rows = decodeNpy(Buffer.from(prefill, 'base64')).data;
  const file = Buffer.from(decode, 'base64');
  rows.copy(file, decodeNpy(file).headerBytes);
  return file.toString('base64');
}

/** Prefill's rows before decode's, with the header that NumPy gives them. */
export function concatenate(prefill: string, decode: string): string {
  const [first, second] = [prefill, decode].map((text) => decodeNpy(Buffer.from(text, 'base64')));
  const shape = [first!.shape[0]! + second!.shape[0]!, ...second!.shape.slice(1)];
  return Buffer.concat([npyHeader(second!.descr, shape), first!.data, second!.data]).toString('base64');
}

/** A prefill reply around an array. */
export function replyBody(array: string, promptTokens: number): Buffer {
  return Buffer.from(
    `{"id":"p","choices":[{"index":0,"text":" x","routed_experts":"${array}"}],` +
      `"usage":{"prompt_tokens":${promptTokens},"completion_tokens":1},"kv_transfer_params":{"remote_block_ids":[[1]]}}`,
  );
}
