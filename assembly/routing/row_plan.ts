// The row plan says which rows of a merged array come from which leg. Nothing else decides it.
//
//   merged = prefill[start .. seam)  ++  decode[seam .. N - 1)
//
// Rows are numbered by the position of their token. N is the number of tokens, of the prompt and
// generated; the last of them has no row, because no engine has forwarded it. A leg's array covers
// a range of positions of its own, [first row, first row + rows). Prefill's must begin at `start`
// or before it, decode's at `seam` or before it and end with N - 1. Rows outside of the plan are
// dropped.

import { Dtype, itemSize } from './npy';
import { PromptRows, RowChars } from './rows';

/** Which rows decode's arrays have. */
export const enum Form {
  Unknown,
  /** All rows from token 0 on: the engine does not know that it can be asked for fewer. */
  Full,
  /** The rows that decode was asked for, from `RowPlan.asked` on. */
  Asked,
}


@final
export class RowPlan {
  /** The first row of the merged array. */
  readonly start: u64;
  /** The first row that is taken from decode; `start`, where that lies behind prefill's rows. */
  readonly seam: u64;
  /** Whether rows before `start` are dropped, because the client asked for none of them. */
  readonly drops: bool;

  /**
   * `rows` are prefill's (taken over), `promptEnd` is the number of tokens of the prompt, and
   * `wanted` the first row that the client asks for; if that is 0, the array begins with prefill's.
   * `lastRowOfDecode`: the row of the last prompt token, which both legs forward, is taken from
   * decode.
   */
  constructor(
    readonly rows: PromptRows,
    readonly promptEnd: u64,
    wanted: u64,
    lastRowOfDecode: bool,
  ) {
    const start = wanted > 0 ? wanted : rows.start;
    const seam = lastRowOfDecode && promptEnd > 0 ? promptEnd - 1 : promptEnd;
    this.start = start;
    this.seam = max(min(seam, rows.end), start);
    this.drops = wanted > 0;
  }

  /** How many rows are taken from prefill. */
  get taken(): u64 {
    return this.seam - this.start;
  }

  /** Bytes of these rows, in the dtype in which prefill sent them. */
  get bytes(): u64 {
    return this.taken * this.rows.rowBytes;
  }

  /** Whether prefill has the rows that are taken from it. */
  get isCovered(): bool {
    return this.taken == 0 || this.rows.start <= this.start;
  }

  /**
   * The rows that are taken from prefill, and any behind them, in `dtype`: the first of them begins
   * `lead` bits into the first character. Borrowed; null when memory is short, or pieces are lost.
   */
  chars(dtype: Dtype, lead: i32): RowChars | null {
    return this.rows.from(this.start - this.rows.start, dtype, lead);
  }

  /** Bytes of a row in another dtype. The format must tell the shape. */
  rowBytesIn(dtype: Dtype): u64 {
    return this.rows.layers * this.rows.topK * itemSize(dtype);
  }

  /** The first row that decode is asked for. `tail`: for none that is prefill's. */
  asked(tail: bool): u64 {
    return tail ? this.seam : this.start;
  }

  /** N - 1, the position behind the last row, with `tokens` generated tokens (at least one). */
  end(tokens: u64): u64 {
    return this.promptEnd + tokens - 1;
  }

  free(): void {
    this.rows.free();
  }
}
