/**
 * The stats of one Envoy process. Ids belong to a VM; values belong to a name, and all VMs share
 * them.
 */

import { WasmResult } from './abi.ts';

const COUNTER = 0;
const GAUGE = 1;
const HISTOGRAM = 2;
/** `kMetricTypeMask` and `kMetricIdIncrement` in wasm.h: the two low bits of an id are its type. */
const TYPE_MASK = 3;
const ID_INCREMENT = 4;

/** Values by name, without the prefix `wasmcustom.` that Envoy adds. */
export class MetricStore {
  readonly counters = new Map<string, bigint>();
  readonly gauges = new Map<string, bigint>();
  readonly histograms = new Map<string, bigint[]>();
}

export class Metrics {
  readonly #store: MetricStore;
  readonly #onCount: (name: string, by: bigint) => void;
  readonly #names = new Map<number, string>();
  readonly #next = [COUNTER, GAUGE, HISTOGRAM];

  constructor(store: MetricStore, onCount: (name: string, by: bigint) => void) {
    this.#store = store;
    this.#onCount = onCount;
  }

  /**
   * Number of ids handed out: each define makes a new one, even for a name that has one already.
   */
  get defined(): number {
    return this.#names.size;
  }

  define(type: number, name: string): number | null {
    if (type > HISTOGRAM) return null;
    const id = (this.#next[type] += ID_INCREMENT);
    this.#names.set(id, name);
    if (type === COUNTER && !this.#store.counters.has(name)) this.#store.counters.set(name, 0n);
    if (type === GAUGE && !this.#store.gauges.has(name)) this.#store.gauges.set(name, 0n);
    if (type === HISTOGRAM && !this.#store.histograms.has(name)) this.#store.histograms.set(name, []);
    return id;
  }

  increment(id: number, offset: bigint): number {
    const type = id & TYPE_MASK;
    if (type !== COUNTER && type !== GAUGE) return WasmResult.BadArgument;
    const name = this.#names.get(id);
    if (name === undefined) return WasmResult.NotFound;
    if (type === COUNTER) {
      if (offset <= 0n) return WasmResult.BadArgument;
      this.#count(name, offset);
    } else {
      this.#store.gauges.set(name, (this.#store.gauges.get(name) ?? 0n) + offset);
    }
    return WasmResult.Ok;
  }

  record(id: number, value: bigint): number {
    const name = this.#names.get(id);
    if (name === undefined) return WasmResult.NotFound;
    const type = id & TYPE_MASK;
    if (type === COUNTER) this.#count(name, value);
    else if (type === GAUGE) this.#store.gauges.set(name, value);
    else this.#store.histograms.get(name)?.push(value);
    return WasmResult.Ok;
  }

  /** Returns the value, or the result code when there is none. */
  get(id: number): bigint | number {
    const type = id & TYPE_MASK;
    if (type !== COUNTER && type !== GAUGE) return WasmResult.BadArgument;
    const name = this.#names.get(id);
    if (name === undefined) return WasmResult.NotFound;
    return (type === COUNTER ? this.#store.counters : this.#store.gauges).get(name) ?? 0n;
  }

  #count(name: string, by: bigint): void {
    this.#store.counters.set(name, (this.#store.counters.get(name) ?? 0n) + by);
    this.#onCount(name, by);
  }
}
