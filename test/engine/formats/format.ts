// The interface of a wire format, which writes captured routing into a reply, and what the formats
// share.

import type { Routing } from '../compute.ts';
import type { Rows } from '../../../yardstick/rows.ts';
import type { MoeModel } from '../router.ts';

export type Members = Record<string, unknown>;

/**
 * The members that one choice's routing adds to a reply, grouped by the object that they belong to.
 */
export interface Encoded {
  choice: Members;
  /** Members beside `choices`: `before` stand in front of it, `after` behind it. */
  before: Members;
  after: Members;
  /** Members of SGLang's `meta_info`. */
  meta: Members;
}

export interface Format {
  /** Encodes one choice's routing; null means that nothing was captured. */
  encode(routing: Routing | null): Encoded;
}

export const NOWHERE: Encoded = { choice: {}, before: {}, after: {}, meta: {} };

/** The array's shape `(rows, layers, top_k)` for `count` rows. */
export function shapeOf({ layers, topK }: MoeModel, count: number): [number, number, number] {
  return [count, layers, topK];
}

/** The part of the routing from position `first` on; it shares the memory of `routing`. */
export function from(routing: Routing, first: number, { layers, topK }: MoeModel): Routing {
  const { data, count } = routing.rows;
  const skipped = Math.min(Math.max(first - routing.start, 0), count);
  const rows = { data: data.subarray(skipped * layers * topK), count: count - skipped };
  return { ...routing, rows, start: routing.start + skipped };
}

/**
 * Chooses the dtype as prime-rl and SkyRL do: by the largest id of each array, so that an empty
 * array is uint8.
 */
export function narrowed(format: Format): Format {
  return { encode: (routing) => format.encode(routing && { ...routing, rows: narrow(routing.rows) }) };
}

function narrow({ data, count }: Rows): Rows {
  const largest = (data as Uint8Array).reduce((a, b) => Math.max(a, b), 0);
  const signed = (data as Uint8Array).some((id) => id < 0);
  const Data = largest < 0x100 && !signed ? Uint8Array : largest < 0x8000 ? Int16Array : Int32Array;
  return { data: Data.from(data), count };
}
