// What the legs of one exchange share, beside the client's request. It is filled in before the
// first leg is written.

import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';

/** How many random bytes a session has. */
export const RANDOM_BYTES: i32 = 16;

/**
 * The header by which vLLM's API server is told the data-parallel rank that serves a request. Ranks
 * are an engine's own: one that prefill has may be one that decode refuses, when prefill's KV
 * already waits for it. So a client's own header reaches neither engine of a pair.
 */
export const RANK = new Ascii('x-data-parallel-rank');

/** A header of the prefill leg. */
@final
export class LegHeader {
  /** Takes over `value`. */
  constructor(
    readonly name: Ascii,
    readonly value: Block,
  ) {}
}

/** The values of one exchange that a connector writes into its legs. */
@final
export class Session {
  /** Random bytes of which rooms, ids and salts are made. Both legs are made of the same. */
  readonly random: StaticArray<u8> = new StaticArray<u8>(RANDOM_BYTES);
  /** The host of prefill's bootstrap server as a URL has it (borrowed), and its port. */
  hostPtr: usize = 0;
  hostLen: usize = 0;
  port: i32 = 0;
  /**
   * The rank of the prefill engine that takes the leg, and its engine id by the bootstrap server.
   */
  rank: i32 = 0;
  engineId: StaticArray<u8> = [];
  /**
   * The `kv_transfer_params` of prefill's reply (borrowed); 0 before it has come, or when it has
   * none.
   */
  paramsPtr: usize = 0;
  paramsLen: usize = 0;

  /** Headers of the prefill leg, in place of the client's of the same names. */
  readonly headers: LegHeader[] = [];
  /** What the leg that is being written borrows (owned). */
  private texts: Block[] = [];

  get randomPtr(): usize {
    return changetype<usize>(this.random);
  }

  /** Takes over a text that a leg is written with, and gives it back in `release`. */
  keep(text: Block): Block {
    this.texts.push(text);
    return text;
  }

  /** Adds a header to the prefill leg; its value is taken over, and given back in `release`. */
  addHeader(name: Ascii, value: Block): void {
    this.headers.push(new LegHeader(name, this.keep(value)));
  }

  /** Gives back what a leg was written with, once it has been sent. */
  release(): void {
    for (let i = 0; i < this.texts.length; i++) this.texts[i].free();
    this.texts.length = this.headers.length = 0;
  }
}
