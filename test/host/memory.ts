/**
 * The guest's linear memory. Every access makes a new view, because growth detaches the old
 * ArrayBuffer.
 */

export class Memory {
  readonly #memory: WebAssembly.Memory;

  constructor(memory: WebAssembly.Memory) {
    this.#memory = memory;
  }

  get pages(): number {
    return this.#memory.buffer.byteLength / 65536;
  }

  /**
   * A borrowed view of `[ptr, ptr + len)`, valid until the next call into the guest; null when out
   * of bounds.
   */
  view(ptr: number, len: number): Buffer | null {
    const all = this.#memory.buffer;
    return ptr + len > all.byteLength ? null : Buffer.from(all, ptr, len);
  }

  /** A copy of `[ptr, ptr + len)` that the caller owns; null when out of bounds. */
  copy(ptr: number, len: number): Buffer | null {
    const view = this.view(ptr, len);
    return view && Buffer.from(view);
  }

  /**
   * The bytes as text, one byte in each character: names and values of headers are bytes to Envoy.
   */
  text(ptr: number, len: number): string | null {
    return this.view(ptr, len)?.toString('latin1') ?? null;
  }

  write(ptr: number, bytes: Uint8Array): boolean {
    const view = this.view(ptr, bytes.length);
    view?.set(bytes);
    return view !== null;
  }

  /**
   * Fills the unused end of a heap block of AssemblyScript's runtime, which holds `used` bytes. The
   * runtime stores the size of a block before it (rt/tlsf.ts).
   */
  fillSlack(ptr: number, used: number, byte: number): void {
    // Larger blocks do not come from the runtime (assembly/bytes/arena.ts).
    if (used >= 16 * 1024) return;
    const size = (this.view(ptr - 4, 4)?.readUInt32LE(0) ?? 0) & ~3;
    this.view(ptr + used, Math.max(0, size - used))?.fill(byte);
  }

  setU32(ptr: number, value: number): boolean {
    const view = this.view(ptr, 4);
    view?.writeUInt32LE(value >>> 0);
    return view !== null;
  }

  setU64(ptr: number, value: bigint): boolean {
    const view = this.view(ptr, 8);
    view?.writeBigUInt64LE(BigInt.asUintN(64, value));
    return view !== null;
  }
}
