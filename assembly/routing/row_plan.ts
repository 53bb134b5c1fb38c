// The row plan says which rows of a merged array come from which leg. Nothing else decides it.
//
//   merged = prefill[start .. seam)  ++  decode[seam .. N - 1)
//
// Rows are numbered by the position of their token. N is the number of tokens, of the prompt and
// generated; the last of them has no row, because no engine has forwarded it. A leg's array covers
// a range of positions of its own, [start, start + rows).

import { Dtype, itemSize } from './npy';
import { PromptRows } from './rows';


@final
export class RowPlan {
  /** The first row that is taken from decode. */
  readonly seam: u64;

  /**
   * `rows` are prefill's (taken over), and `promptEnd` is the number of tokens of the prompt.
   * `lastRowOfDecode`: the row of the last prompt token, which both legs forward, is taken from
   * decode.
   */
  constructor(
    readonly rows: PromptRows,
    readonly promptEnd: u64,
    lastRowOfDecode: bool,
  ) {
    const seam = lastRowOfDecode && promptEnd > 0 ? promptEnd - 1 : promptEnd;
    this.seam = max(min(seam, rows.end), rows.start);
  }

  /** The first row of the merged array. */
  get start(): u64 {
    return this.rows.start;
  }

  /** How many rows are taken from prefill: its first ones. */
  get taken(): u64 {
    return this.seam - this.rows.start;
  }

  /** Bytes of these rows, in the dtype in which prefill sent them. */
  get bytes(): u64 {
    return this.taken * this.rows.rowBytes;
  }

  /** Bytes of a row in another dtype. The format must tell the shape. */
  rowBytesIn(dtype: Dtype): u64 {
    return this.rows.layers * this.rows.topK * itemSize(dtype);
  }

  /** How many rows from the seam on a choice with `tokens` generated tokens (at least one) has. */
  generated(tokens: u64): u64 {
    return this.end(tokens) - this.seam;
  }

  /** N - 1, the position behind the last row, with `tokens` generated tokens (at least one). */
  end(tokens: u64): u64 {
    return this.promptEnd + tokens - 1;
  }

  free(): void {
    this.rows.free();
  }
}
