// Headers of .npy files, read and written.

import { Dtype, NpyHeader, PREFIX_BYTES, readHeader, readPrefix, writeHeader } from '../routing/npy';
import { Reason } from '../routing/reason';

/** The header that was read last. */
const npy = new NpyHeader();

/**
 * Reads the header of a file of which the first `len` bytes are at `ptr`. Returns `Size` when the
 * header does not end in them.
 */
export function npyRead(ptr: usize, len: usize): Reason {
  if (len < PREFIX_BYTES) return Reason.Size;
  const reason = readPrefix(ptr, npy);
  if (reason != Reason.None) return reason;
  return npy.size > <u64>len ? Reason.Size : readHeader(ptr, npy);
}

export function npySize(): f64 {
  return <f64>npy.size;
}

export function npyDtype(): Dtype {
  return npy.dtype;
}

export function npyRows(): f64 {
  return <f64>npy.rows;
}

export function npyLayers(): f64 {
  return <f64>npy.layers;
}

export function npyTopK(): f64 {
  return <f64>npy.topK;
}

/** Writes a header at `ptr`, which has room for 256 bytes; returns its length. */
export function npyWrite(ptr: usize, dtype: Dtype, rows: f64, layers: f64, topK: f64): usize {
  const like = new NpyHeader();
  like.layers = <u64>layers;
  like.topK = <u64>topK;
  return writeHeader(ptr, like, dtype, <u64>rows);
}
