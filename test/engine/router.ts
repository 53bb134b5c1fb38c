// The simulated MoE router: which experts a token visits, as a function of the tokens up to and
// including it. It knows no protocol.

import { ARRAYS, type Dtype, type Rows } from '../../yardstick/rows.ts';

export type { Dtype, RowData, Rows } from '../../yardstick/rows.ts';

export interface MoeModel {
  /** The name under which the model is served. */
  name: string;
  layers: number;
  topK: number;
  experts: number;
  /**
   * Which layers are dense, that is, have no experts. The array has room for all layers, so the
   * part of a dense layer is zero in every row. Default: none.
   */
  dense?: (layer: number) => boolean;
  /**
   * The number of zero experts, as LongCat has them: the router may choose them too, and their ids
   * follow those of the real experts.
   */
  zeroExperts?: number;
  /**
   * How a zero expert is captured: as id 0, which vLLM writes, or with its own id, as SGLang does.
   * Default: as 0.
   */
  zeroIds?: 'zero' | 'own';
  dtype: Dtype;
  /** Token ids at or above this number are refused. */
  vocab: number;
}

const MAX_EXPERTS = { '|u1': 0x100, '<u2': 0x10000, '<i2': 0x8000, '<i4': 0x80000000 };

/** The state of a prefix without tokens. */
export const EMPTY_PREFIX = 0x2545f491;
/** The state of a sequence that no request has: the source of plausible but wrong rows. */
export const FOREIGN_PREFIX = 0x6c62272e;

/**
 * Generated ids stay below this bound, whatever the vocabulary, so that each of them has a text.
 */
const FIRST_GENERATED = 3;
const GENERATED = 509;

function mix(value: number): number {
  let x = value;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** The state after one more token. */
export function step(state: number, token: number): number {
  let k = Math.imul(token + 1, 0xcc9e2d51);
  k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
  const h = state ^ k;
  return (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0;
}

/** The state after each token of `tokens`, in order. */
export function prefixStates(tokens: ArrayLike<number>, from = EMPTY_PREFIX): Int32Array {
  const states = new Int32Array(tokens.length);
  let state = from;
  for (let i = 0; i < tokens.length; i++) states[i] = state = step(state, tokens[i]!);
  return states;
}

/**
 * A number that depends on `state` and `salt` alone, for everything that must look random and be
 * repeatable.
 */
export function derive(state: number, salt: number): number {
  return mix(state ^ Math.imul(salt + 1, 0x9e3779b1));
}

/**
 * The token that follows the prefix. The choices of one prompt differ from their first token on.
 */
export function nextToken(state: number, choice: number): number {
  return FIRST_GENERATED + ((mix(state) + choice * 7) % GENERATED);
}

export class Router {
  readonly rowLength: number;
  /**
   * `#chosen`: the number of ids that the router chooses among. `#named`: ids below it are captured
   * as they are, the others as 0.
   */
  readonly #chosen: number;
  readonly #named: number;
  readonly #dense: boolean[];
  readonly #strides: Int32Array;
  readonly #layerSalts: Int32Array;

  constructor(readonly model: MoeModel) {
    const { layers, topK, zeroExperts = 0, zeroIds, dense, dtype } = model;
    const chosen = model.experts + zeroExperts;
    const experts = zeroIds === 'own' ? chosen : model.experts;
    if (experts > MAX_EXPERTS[dtype]) throw new RangeError(`${experts} experts do not fit ${dtype}`);
    if (topK < 1 || topK > experts) throw new RangeError(`top_k ${topK} of ${experts} experts`);
    this.#named = experts;
    this.#chosen = chosen;
    this.#dense = Array.from({ length: layers }, (_, layer) => dense?.(layer) ?? false);
    this.rowLength = layers * topK;
    // A stride that is coprime to the number of experts visits each expert once, so the top_k ids
    // are distinct without a check.
    this.#strides = Int32Array.from(coprimes(chosen));
    this.#layerSalts = Int32Array.from({ length: layers }, (_, layer) => mix(layer + 1));
  }

  /** Allocates `count` rows of zeros. */
  allocate(count: number): Rows {
    return { data: new ARRAYS[this.model.dtype](count * this.rowLength), count };
  }

  /**
   * Writes the row of the token whose prefix, including the token itself, has the state `state`.
   */
  fill(rows: Rows, row: number, state: number): void {
    const { topK } = this.model;
    const experts = this.#chosen;
    const named = this.#named;
    const dense = this.#dense;
    const { data } = rows;
    const strides = this.#strides;
    const salts = this.#layerSalts;
    let at = row * this.rowLength;
    for (let layer = 0; layer < salts.length; layer++) {
      if (dense[layer]) {
        data.fill(0, at, (at += topK));
        continue;
      }
      const hash = mix(state ^ salts[layer]!);
      let expert = hash % experts;
      const stride = strides[(hash >>> 11) % strides.length]!;
      for (let k = 0; k < topK; k++) {
        data[at++] = expert < named ? expert : 0;
        expert += stride;
        if (expert >= experts) expert -= experts;
      }
    }
  }

  /** The rows of all `tokens`. */
  rows(tokens: ArrayLike<number>, from = EMPTY_PREFIX): Rows {
    const rows = this.allocate(tokens.length);
    const states = prefixStates(tokens, from);
    for (let i = 0; i < states.length; i++) this.fill(rows, i, states[i]!);
    return rows;
  }

  /** The rows from row `start` on; they share the memory of `rows`. */
  slice(rows: Rows, start: number): Rows {
    return { data: rows.data.subarray(start * this.rowLength), count: rows.count - start };
  }
}

function coprimes(n: number): number[] {
  const found: number[] = [];
  for (let stride = 1; stride < n && found.length < 64; stride++)
    if (gcd(stride, n) === 1) found.push(stride);
  return found.length > 0 ? found : [1];
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}
