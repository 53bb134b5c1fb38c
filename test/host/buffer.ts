/** Envoy's body buffers with their watermarks, and what the guest may read and edit in one. */

import { WasmResult } from './abi.ts';

/**
 * As in watermark_buffer.cc: `above` is called once when the buffer grows past the limit, `below`
 * once when it has shrunk to half of the limit.
 */
interface Watermarks {
  limit: number;
  above: () => void;
  below: () => void;
}

export class EnvoyBuffer {
  #slices: Buffer[] = [];
  #length = 0;
  #watermarks: Watermarks | null = null;
  #isAbove = false;

  constructor(bytes?: Uint8Array) {
    if (bytes && bytes.length > 0) this.add(bytes);
  }

  get length(): number {
    return this.#length;
  }

  setWatermarks(limit: number, above: () => void, below: () => void): void {
    this.#watermarks = { limit, above, below };
    this.#check();
  }

  /**
   * Returns bytes that nobody may change: those of a slice where it has all of them, else a copy.
   * The slices of the buffer stay as they are.
   */
  read(start: number, length: number): Buffer {
    let at = start;
    for (const slice of this.#slices) {
      if (at + length <= slice.length) return slice.subarray(at, at + length);
      if (at < slice.length) break;
      at -= slice.length;
    }
    return this.#copyOut(start, length);
  }

  #copyOut(start: number, length: number): Buffer {
    const out = Buffer.allocUnsafe(length);
    let at = 0;
    let skip = start;
    for (const slice of this.#slices) {
      if (at === length) break;
      if (skip >= slice.length) {
        skip -= slice.length;
        continue;
      }
      at += slice.copy(out, at, skip, Math.min(slice.length, skip + length - at));
      skip = 0;
    }
    return out;
  }

  bytes(): Buffer {
    return this.read(0, this.#length);
  }

  /** Takes over the bytes: they are not copied. */
  add(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#slices.push(sliceOf(bytes));
    this.#length += bytes.length;
    this.#check();
  }

  /** Takes over the bytes likewise. */
  prepend(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#slices.unshift(sliceOf(bytes));
    this.#length += bytes.length;
    this.#check();
  }

  drain(length: number): void {
    let left = Math.min(length, this.#length);
    this.#length -= left;
    while (left > 0) {
      const first = this.#slices[0];
      if (first.length > left) {
        this.#slices[0] = first.subarray(left);
        break;
      }
      left -= first.length;
      this.#slices.shift();
    }
    this.#check();
  }

  /** Moves all bytes of `other` to the end of this buffer. */
  move(other: EnvoyBuffer): void {
    this.#slices.push(...other.#slices);
    this.#length += other.#length;
    other.#slices = [];
    other.#length = 0;
    other.#check();
    this.#check();
  }

  #check(): void {
    const marks = this.#watermarks;
    if (marks === null || marks.limit === 0) return;
    if (!this.#isAbove && this.#length > marks.limit) {
      this.#isAbove = true;
      marks.above();
    } else if (this.#isAbove && this.#length <= Math.floor(marks.limit / 2)) {
      this.#isAbove = false;
      marks.below();
    }
  }
}

const sliceOf = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** What `getBuffer` hands out: a body, which the guest may edit, or bytes that it may only read. */
export type GuestBuffer = EnvoyBuffer | Buffer;

export function readBuffer(buffer: GuestBuffer, start: number, length: number): Buffer {
  return buffer instanceof EnvoyBuffer ? buffer.read(start, length) : buffer.subarray(start, start + length);
}

/**
 * Follows `Buffer::copyFrom` in context.cc: the guest may replace a prefix of the body or append to
 * its end, but may not touch the middle.
 */
export function copyFrom(buffer: GuestBuffer, start: number, length: number, data: Uint8Array): number {
  if (!(buffer instanceof EnvoyBuffer)) return WasmResult.BadArgument;
  if (start === 0) {
    if (length !== 0) buffer.drain(length);
    buffer.prepend(data);
    return WasmResult.Ok;
  }
  if (start >= buffer.length) {
    buffer.add(data);
    return WasmResult.Ok;
  }
  return WasmResult.BadArgument;
}
