// How an engine writes captured routing into its replies.

import type { Routing } from '../compute.ts';
import type { Dtype, MoeModel, Rows } from '../router.ts';

export type Members = Record<string, unknown>;

/** The members that one choice's routing adds to a reply, by where they stand. */
export interface Encoded {
  choice: Members;
  /** Beside `choices`, in front of it and behind it. */
  before: Members;
  after: Members;
  /** Of SGLang's `meta_info`. */
  meta: Members;
}

export interface Format {
  /** Null: nothing was captured. */
  encode(routing: Routing | null): Encoded;
}

export const NOWHERE: Encoded = { choice: {}, before: {}, after: {}, meta: {} };

/** `(rows, layers, top_k)` of `count` rows. */
export function shapeOf({ layers, topK }: MoeModel, count: number): [number, number, number] {
  return [count, layers, topK];
}

/** The rows' memory, little-endian. */
export function bytesOf({ data }: Rows): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** What there is from token `first` on; shares its memory. */
export function from(routing: Routing, first: number, { layers, topK }: MoeModel): Routing {
  const { data, count } = routing.rows;
  const skipped = Math.min(Math.max(first - routing.start, 0), count);
  const rows = { data: data.subarray(skipped * layers * topK), count: count - skipped };
  return { ...routing, rows, start: routing.start + skipped };
}

/** How the rows' memory is read. */
export function dtypeOf({ data }: Rows): Dtype {
  if (data instanceof Uint8Array) return '|u1';
  if (data instanceof Uint16Array) return '<u2';
  return data instanceof Int16Array ? '<i2' : '<i4';
}

/** As prime-rl and SkyRL choose the dtype: by the largest id of one array, so that an empty one is uint8. */
export function narrowed(format: Format): Format {
  return { encode: (routing) => format.encode(routing && { ...routing, rows: narrow(routing.rows) }) };
}

function narrow({ data, count }: Rows): Rows {
  const largest = (data as Uint8Array).reduce((a, b) => Math.max(a, b), 0);
  const signed = (data as Uint8Array).some((id) => id < 0);
  const Data = largest < 0x100 && !signed ? Uint8Array : largest < 0x8000 ? Int16Array : Int32Array;
  return { data: Data.from(data), count };
}

export const DTYPES: Record<Dtype, string> = {
  '|u1': 'uint8',
  '<u2': 'uint16',
  '<i2': 'int16',
  '<i4': 'int32',
};
