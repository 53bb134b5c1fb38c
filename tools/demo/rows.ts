/** Routing arrays as engines return them, and how they differ. */

import { decodeNpy } from '../../yardstick/npy.ts';

export interface Rows {
  dtype: string;
  count: number;
  rowBytes: number;
  data: Buffer;
}

export function decodeRows(base64: string): Rows {
  const { descr, shape, data } = decodeNpy(Buffer.from(base64, 'base64'));
  const [count = 0] = shape;
  return { dtype: descr, count, rowBytes: count ? data.length / count : 0, data };
}

/**
 * The indices below `end` at which `rows` and `reference` differ. A row that one of them does not
 * have differs.
 */
export function differing(rows: Rows, reference: Rows, end: number): number[] {
  const same = rows.dtype === reference.dtype;
  return Array.from({ length: end }, (_, i) => i).filter((i) => {
    if (!same || i >= rows.count || i >= reference.count) return true;
    return !row(rows, i).equals(row(reference, i));
  });
}

const row = ({ data, rowBytes }: Rows, i: number) => data.subarray(i * rowBytes, (i + 1) * rowBytes);
