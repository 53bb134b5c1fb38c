// The row plan: which rows of a merged array come from which leg. Nothing else decides it.
//
//   merged = prefill[start .. seam)  ++  decode[seam .. N - 1)
//
// Rows are numbered by token position; N is the number of tokens, prompt and generated, and the last token of all has no
// row, since nobody has forwarded it. A leg's array covers a range of positions of its own, [start, start + rows).

import { Dtype, itemSize } from './npy';
import { PromptRows } from './rows';


@final
export class RowPlan {
  /** First row that is decode's. */
  readonly seam: u64;

  /**
   * `rows` are prefill's (taken over); `promptEnd` is the number of tokens of the prompt, Lp. `lastRowOfDecode`: the row of
   * the last prompt token, which both legs forward, is taken from decode.
   */
  constructor(
    readonly rows: PromptRows,
    readonly promptEnd: u64,
    lastRowOfDecode: bool,
  ) {
    const seam = lastRowOfDecode && promptEnd > 0 ? promptEnd - 1 : promptEnd;
    this.seam = max(min(seam, rows.end), rows.start);
  }

  /** First row of the merged array. */
  get start(): u64 {
    return this.rows.start;
  }

  /** Rows of prefill's that are taken: its first ones. */
  get taken(): u64 {
    return this.seam - this.rows.start;
  }

  /** Bytes of these, as prefill sent them. */
  get bytes(): u64 {
    return this.taken * this.rows.rowBytes;
  }

  /** Bytes of a row in another dtype, of formats that tell the shape. */
  rowBytesIn(dtype: Dtype): u64 {
    return this.rows.layers * this.rows.topK * itemSize(dtype);
  }

  /** Rows of decode's from the seam on that a choice of so many generated tokens has (at least one). */
  generated(tokens: u64): u64 {
    return this.end(tokens) - this.seam;
  }

  /** Position behind the last row of a choice of so many generated tokens (at least one): N - 1. */
  end(tokens: u64): u64 {
    return this.promptEnd + tokens - 1;
  }

  free(): void {
    this.rows.free();
  }
}
