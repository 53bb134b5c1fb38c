// How an engine writes captured routing into its replies.

import type { Routing } from '../compute.ts';
import type { MoeModel } from '../router.ts';

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
export function bytesOf({ rows: { data } }: Routing): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}
