/** Shared data and queues: one map per process, copied in and out (cpp-host src/shared_data.cc, shared_queue.cc). */

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

  /** cas 0 overwrites; a missing key is written whatever the cas. */
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
