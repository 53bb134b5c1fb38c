// Rows as engines have them, for messages written by hand: rows that a model's routers give, rows
// that an engine's slots hold from earlier requests, and rows that no router can give.

import type { Dtype } from '../engine/router.ts';
import type { Random } from '../unit/random.ts';
import { itemBytes } from './dialects.ts';

export interface ModelShape {
  layers: number;
  topK: number;
}

/** What an engine's slots hold for tokens that it never forwarded. */
export type Slots = 'zeros' | 'earlier' | 'garbage';

/**
 * `EXPERTS`: numbers of experts for which an engine would choose a dtype. `IDS`: the number of ids
 * that a dtype can hold.
 */
const EXPERTS: Record<Dtype, number[]> = {
  '|u1': [16, 64, 256],
  '<u2': [16, 300, 60_000],
  '<i2': [16, 300],
  '<i4': [16, 300, 200_000],
};
const IDS: Record<Dtype, number> = { '|u1': 256, '<u2': 65_536, '<i2': 32_768, '<i4': 2 ** 31 };

export class Routers {
  readonly experts: number;
  /** Which layers have no router; engines fill them with zeros. */
  private readonly dense: boolean[];
  /** LongCat's zero experts: every row names one of them several times. */
  private readonly repeats: boolean;

  constructor(
    private readonly random: Random,
    readonly shape: ModelShape,
    dtype: Dtype,
  ) {
    const { layers, topK } = shape;
    this.experts = random.pick(EXPERTS[dtype]);
    // The first layers or every second layer are dense, but never all.
    const first = random.chance(0.15) ? random.below(layers) : 0;
    const second = random.chance(0.1);
    this.dense = Array.from({ length: layers }, (_, layer) => layer < first || (second && layer % 2 === 0));
    if (this.dense.every(Boolean)) this.dense.fill(false);
    this.repeats = topK > 1 && random.chance(0.08);
  }

  /** The ids of one row, for a leg that writes all its rows in `dtype`. */
  private row(dtype: Dtype): number[] {
    const { topK } = this.shape;
    const below = Math.min(this.experts, IDS[dtype]);
    return this.dense.flatMap((dense) => {
      if (dense) return Array<number>(topK).fill(0);
      const ids = distinct(this.random, topK, below);
      const id = Math.max(ids.at(-1)!, 1);
      // Where the format does not tell top_k, a row of zeros counts as one that no router can give.
      if (topK === 1) return [id];
      return this.repeats ? [...ids.slice(0, -2), id, id] : ids;
    });
  }

  rows(n: number, dtype: Dtype): number[][] {
    return Array.from({ length: n }, () => this.row(dtype));
  }

  /** Rows of tokens whose KV another engine computed. */
  slots(kind: Slots, n: number, dtype: Dtype): number[][] {
    if (kind === 'earlier') return this.rows(n, dtype);
    const width = this.shape.layers * this.shape.topK;
    const id = () => (kind === 'zeros' ? 0 : this.random.below(128));
    return Array.from({ length: n }, () => Array.from({ length: width }, id));
  }

  /** Changes one or several of the rows to what no router can give; null if there is no row. */
  spoil(rows: number[][]): [rows: number[][], note: string] | null {
    if (rows.length === 0) return null;
    const { random } = this;
    const { topK } = this.shape;
    const last = rows.length - 1;
    const at = random.pick([0, last, last, random.below(rows.length)]);
    const layer = random.pick(this.dense.flatMap((dense, i) => (dense ? [] : [i]))) * topK;
    const out = rows.map((row) => [...row]);
    const row = out[at]!;
    const kind = random.pick([
      'zero row',
      'zero rows',
      'zero layer',
      'repeated',
      'stranger',
      'all zeros',
    ] as const);
    switch (kind) {
      case 'zero row':
        row.fill(0);
        break;
      case 'zero rows':
        out.slice(at, at + random.between(1, rows.length)).forEach((each) => each.fill(0));
        break;
      case 'zero layer':
        row.fill(0, layer, layer + topK);
        break;
      case 'repeated':
        row[layer] = row[layer + topK - 1]!;
        break;
      case 'all zeros':
        out.forEach((each) => each.fill(0));
        break;
      default:
        row[layer] = Math.min(this.experts, 127);
    }
    return [out, kind];
  }
}

function distinct(random: Random, n: number, below: number): number[] {
  const ids = new Set<number>();
  while (ids.size < n) ids.add(random.below(below));
  return [...ids];
}

/** The bytes of the ids in a dtype, little-endian. */
export function bytesOf(rows: number[][], dtype: string): Buffer {
  const size = itemBytes(dtype);
  const ids = rows.flat();
  const out = Buffer.alloc(ids.length * size);
  ids.forEach((id, i) => out.writeUIntLE(id, i * size, size));
  return out;
}
