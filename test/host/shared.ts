/**
 * Shared data and queues: one map for the process, whose values are copied in and out
 * (shared_data.cc and shared_queue.cc in src/ of proxy-wasm-cpp-host).
 */

import { WasmResult } from './abi.ts';

export class SharedData {
  readonly #values = new Map<string, { bytes: Buffer; cas: number }>();
  #cas = 0;

  get bytes(): number {
    return [...this.#values.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
  }

  get(key: string): { bytes: Buffer; cas: number } | null {
    return this.#values.get(key) ?? null;
  }

  /** A cas of 0 overwrites the value; a key that is missing is written whatever the cas is. */
  set(key: string, bytes: Buffer, cas: number): number {
    const present = this.#values.get(key);
    if (present && cas !== 0 && cas !== present.cas) return WasmResult.CasMismatch;
    this.#values.set(key, { bytes, cas: ++this.#cas });
    return WasmResult.Ok;
  }
}

export class SharedQueues {
  readonly #tokens = new Map<string, number>();
  readonly #queues = new Map<number, Buffer[]>();

  register(name: string): number {
    const known = this.#tokens.get(name);
    if (known !== undefined) return known;
    const token = this.#tokens.size + 1;
    this.#tokens.set(name, token);
    this.#queues.set(token, []);
    return token;
  }

  resolve(name: string): number | null {
    return this.#tokens.get(name) ?? null;
  }

  enqueue(token: number, bytes: Buffer): number {
    const queue = this.#queues.get(token);
    queue?.push(bytes);
    return queue ? WasmResult.Ok : WasmResult.NotFound;
  }

  dequeue(token: number): Buffer | number {
    const queue = this.#queues.get(token);
    if (!queue) return WasmResult.NotFound;
    return queue.shift() ?? WasmResult.Empty;
  }
}
