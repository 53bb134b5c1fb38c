// Rows of expert ids, in whatever dtype they came.

/** The dtypes of rows, as `.npy` headers name them. */
export type Dtype = '|u1' | '<u2' | '<i2' | '<i4';

export type RowData = Uint8Array | Uint16Array | Int16Array | Int32Array;

/** Rows of `layers * topK` expert ids each, in C order. */
export interface Rows {
  data: RowData;
  count: number;
}

export const ARRAYS = { '|u1': Uint8Array, '<u2': Uint16Array, '<i2': Int16Array, '<i4': Int32Array };

/** The names of the dtypes in formats that do not have NumPy's. */
export const DTYPE_NAMES: Record<Dtype, string> = {
  '|u1': 'uint8',
  '<u2': 'uint16',
  '<i2': 'int16',
  '<i4': 'int32',
};

export const itemBytes = (dtype: Dtype): number => ARRAYS[dtype].BYTES_PER_ELEMENT;

/** The NumPy dtype of the rows. */
export function dtypeOf({ data }: Rows): Dtype {
  if (data instanceof Uint8Array) return '|u1';
  if (data instanceof Uint16Array) return '<u2';
  return data instanceof Int16Array ? '<i2' : '<i4';
}

/** The bytes of the rows, little-endian; they share the rows' memory. */
export function bytesOf({ data }: Rows): Buffer {
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
}

/** The ids in little-endian bytes, as an array of this dtype. The ids are copied. */
export function idsOf(bytes: Buffer, dtype: Dtype): RowData {
  const Ids = ARRAYS[dtype];
  // A view needs an offset that is a multiple of its item's size, which a body does not promise.
  const copy = Uint8Array.from(bytes);
  return new Ids(copy.buffer, 0, Math.floor(copy.length / Ids.BYTES_PER_ELEMENT));
}

/** Writes indices as ranges: `[0, 1, 2, 5]` as `0-2, 5`. */
export function ranges(indices: readonly number[]): string {
  const found: [first: number, last: number][] = [];
  for (const i of indices) {
    const open = found.at(-1);
    if (open && open[1] === i - 1) open[1] = i;
    else found.push([i, i]);
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}
