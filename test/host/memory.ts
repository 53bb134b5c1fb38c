/** The guest's linear memory. The view is taken anew on every access: growth detaches the old ArrayBuffer. */

export class Memory {
  readonly #memory: WebAssembly.Memory;

  constructor(memory: WebAssembly.Memory) {
    this.#memory = memory;
  }

  get pages(): number {
    return this.#memory.buffer.byteLength / 65536;
  }

  /** Borrowed view of `[ptr, ptr + len)`, or null out of bounds; dead after the next call into the guest. */
  view(ptr: number, len: number): Buffer | null {
    const all = this.#memory.buffer;
    return ptr + len > all.byteLength ? null : Buffer.from(all, ptr, len);
  }

  /** Owned copy of `[ptr, ptr + len)`. */
  copy(ptr: number, len: number): Buffer | null {
    const view = this.view(ptr, len);
    return view && Buffer.from(view);
  }

  /** One byte per character: header values and names are bytes to Envoy. */
  text(ptr: number, len: number): string | null {
    return this.view(ptr, len)?.toString('latin1') ?? null;
  }

  write(ptr: number, bytes: Uint8Array): boolean {
    const view = this.view(ptr, bytes.length);
    view?.set(bytes);
    return view !== null;
  }

  /** Fills a heap block of AssemblyScript's runtime behind its first `used` bytes (rt/tlsf.ts: its size is before it). */
  fillSlack(ptr: number, used: number, byte: number): void {
    // Larger ones are not the runtime's (assembly/bytes/arena.ts).
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
