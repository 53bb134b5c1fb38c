// The second array of SGLang's replies, `indexer_topk`: the positions that the indexer of a model
// with sparse attention (DSA) has chosen for each token (SGLang 0.5.23,
// sglang/srt/state_capturer/indexer_topk.py). It is kept in the same slots as the experts and has
// the same faults, so what is simulated of it follows from what a slot holds of these: a slot that
// nobody has forwarded into has zeros, or positions of an earlier request.

import type { Rows } from './router.ts';

export interface Indexer {
  /** The number of layers that have an indexer. */
  layers: number;
  /** The number of positions that a layer chooses (`index_topk`). */
  topK: number;
  /**
   * Prefill returns the array, too. SGLang 0.5.23 does not: `process_batch_result_disagg_prefill`
   * in sglang/srt/disaggregation/prefill.py collects routed experts only.
   */
  ofPrefill?: boolean;
  /**
   * A chat can ask for it. With SGLang 0.5.23 only `/generate` can
   * (sglang/srt/entrypoints/openai/protocol.py has no such member).
   */
  inChat?: boolean;
}

/** The positions, by the experts in the same slots, of `width` ids each. -1 is none. */
export function indexerRows({ data, count }: Rows, width: number, { layers, topK }: Indexer): Int32Array {
  const size = layers * topK;
  const positions = new Int32Array(count * size);
  for (let row = 0; row < count; row++) {
    const experts = Array.from(data.subarray(row * width, (row + 1) * width));
    if (experts.every((id) => id === 0)) continue;
    for (let i = 0; i < size; i++) {
      const seed = experts.reduce((hash, id, k) => (Math.imul(hash, 31) + id * (k + 7)) | 0, i + 1);
      positions[row * size + i] = (Math.abs(seed) % 11) - 1;
    }
  }
  return positions;
}
