// What the legs of one exchange have between them, beyond the client's request. Filled in before the first leg is written.

import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';

export const RANDOM_BYTES: i32 = 16;

/** A header of the prefill leg. */
@final
export class LegHeader {
  /** Takes over `value`. */
  constructor(
    readonly name: Ascii,
    readonly value: Block,
  ) {}
}


@final
export class Session {
  /** Random bytes, of which rooms and ids are made; the same for both legs. */
  readonly random: StaticArray<u8> = new StaticArray<u8>(RANDOM_BYTES);
  /** Host of prefill's bootstrap server, as URLs write it (borrowed), and its port. */
  hostPtr: usize = 0;
  hostLen: usize = 0;
  port: i32 = 0;
  /** The prefill engine's rank that takes the leg, and the id that its bootstrap server tells for it. */
  rank: i32 = 0;
  engineId: StaticArray<u8> = [];
  /** Prefill's `kv_transfer_params` (borrowed); 0 when it has not come or has none. */
  paramsPtr: usize = 0;
  paramsLen: usize = 0;

  /** Headers of the prefill leg, instead of the client's. */
  readonly headers: LegHeader[] = [];
  private texts: Block[] = [];

  get randomPtr(): usize {
    return changetype<usize>(this.random);
  }

  /** Takes over a text that a leg is written with, until `release`. */
  keep(text: Block): Block {
    this.texts.push(text);
    return text;
  }

  /** Takes over a header's value, until `release`. */
  addHeader(name: Ascii, value: Block): void {
    this.headers.push(new LegHeader(name, this.keep(value)));
  }

  /** A leg has been written and sent: gives back what it was written with. */
  release(): void {
    for (let i = 0; i < this.texts.length; i++) this.texts[i].free();
    this.texts.length = this.headers.length = 0;
  }
}
