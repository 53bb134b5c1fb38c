/**
 * Reads the signatures of a module's imports and exports. Envoy checks them, and
 * `WebAssembly.Module` does not show them.
 */

/**
 * A signature is `params:results`, one letter for each value: i = i32, I = i64, f = f32, F = f64, ?
 * = any other type.
 */
export type Signature = string;

export interface FunctionTypes {
  imports: { module: string; name: string; type: Signature }[];
  exports: Map<string, Signature>;
  hasStart: boolean;
}

const LETTERS: Record<number, string> = { 0x7f: 'i', 0x7e: 'I', 0x7d: 'f', 0x7c: 'F' };
const SECTION = { type: 1, import: 2, function: 3, export: 7, start: 8 } as const;
const KIND = { function: 0, table: 1, memory: 2, global: 3, tag: 4 } as const;

class Reader {
  at = 0;
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  get done(): boolean {
    return this.at >= this.bytes.length;
  }

  byte(): number {
    return this.bytes[this.at++];
  }

  u32(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.byte();
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  }

  take(length: number): Uint8Array {
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  name(): string {
    return Buffer.from(this.take(this.u32())).toString();
  }

  limits(): void {
    const flags = this.byte();
    this.u32();
    if (flags & 1) this.u32();
  }
}

export function functionTypes(wasm: Uint8Array): FunctionTypes {
  const types: Signature[] = [];
  /** The type of each function: first the imported functions, then those of the module. */
  const functions: Signature[] = [];
  const found: FunctionTypes = { imports: [], exports: new Map(), hasStart: false };
  const reader = new Reader(wasm);
  reader.take(8);
  while (!reader.done) {
    const id = reader.byte();
    const section = new Reader(reader.take(reader.u32()));
    if (id === SECTION.type) {
      const values = (): string =>
        Array.from({ length: section.u32() }, () => LETTERS[section.byte()] ?? '?').join('');
      for (let n = section.u32(); n > 0; n--) {
        // Types of the GC proposal cannot occur in the ABI.
        if (section.byte() !== 0x60) return found;
        const params = values();
        types.push(`${params}:${values()}`);
      }
    } else if (id === SECTION.import) {
      for (let n = section.u32(); n > 0; n--) {
        const module = section.name();
        const name = section.name();
        const kind = section.byte();
        if (kind === KIND.function) {
          const type = types[section.u32()];
          functions.push(type);
          found.imports.push({ module, name, type });
        } else if (kind === KIND.table) {
          section.byte();
          section.limits();
        } else if (kind === KIND.memory) {
          section.limits();
        } else if (kind === KIND.global) {
          section.take(2);
        } else if (kind === KIND.tag) {
          section.byte();
          section.u32();
        }
      }
    } else if (id === SECTION.function) {
      for (let n = section.u32(); n > 0; n--) functions.push(types[section.u32()]);
    } else if (id === SECTION.export) {
      for (let n = section.u32(); n > 0; n--) {
        const name = section.name();
        const kind = section.byte();
        const index = section.u32();
        if (kind === KIND.function) found.exports.set(name, functions[index]);
      }
    } else if (id === SECTION.start) {
      found.hasStart = true;
    }
  }
  return found;
}
