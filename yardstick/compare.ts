// Compares the rows of one choice with those that another answer to the same request has, and finds
// rows that no router gives. docs/verify.md explains the words.

import type { Captured } from './arrays.ts';
import type { RowData } from './rows.ts';

/** What the arrays of a model have in common. */
export interface Shape {
  layers: number;
  topK: number;
  /** Layers that are zero in every row: dense layers, which have no experts. */
  dense: ReadonlySet<number>;
  /** Whether rows are known in which expert 0 stands twice: zero experts, as LongCat has them. */
  repeatsZero: boolean;
  /** The number of experts, if it is known. */
  experts: number | null;
}

/** Rows by position: `ids` begins with the row of the token at `start`. */
export interface Positioned {
  ids: RowData;
  start: number;
  count: number;
}

/** What is said of one row. */
export enum Row {
  Equal,
  /** It differs as numerics make rows differ: the same experts in another order, or a near tie. */
  Numerics,
  Wrong,
  /** There is nothing to compare it with. */
  Unknown,
}

/** Where a row stands. The last row of the prompt is the one that decode computes as well. */
export type Place = 'prompt' | 'last' | 'generated';

export const placeOf = (position: number, promptTokens: number): Place =>
  position < promptTokens - 1 ? 'prompt' : position === promptTokens - 1 ? 'last' : 'generated';

/**
 * The array with the positions of its rows. Throws an error that says what is wrong where it has
 * another number of rows, or another shape, than the request asks for.
 */
export function positioned(array: Captured, expected: number, start: number, shape: Shape): Positioned {
  const rowLength = shape.layers * shape.topK;
  const [rows, layers, topK] = array.shape ?? [array.ids.length / rowLength, shape.layers, shape.topK];
  if (array.start !== null && array.start !== start) {
    throw new Error(`the first row is that of token ${array.start} instead of ${start}`);
  }
  if (rows !== expected) throw new Error(`${rows} rows instead of ${expected}`);
  if (rows > 0 && (layers !== shape.layers || topK !== shape.topK)) {
    throw new Error(`rows of ${layers} x ${topK} instead of ${shape.layers} x ${shape.topK}`);
  }
  return { ids: array.ids, start, count: rows };
}

/** Why no router can have given a row; null if one can. */
export function impossible(ids: RowData, row: number, { layers, topK, dense, ...of }: Shape): string | null {
  const at = row * layers * topK;
  let zero = 0;
  let routed = 0;
  for (let layer = 0; layer < layers; layer++) {
    if (dense.has(layer)) continue;
    routed++;
    const named = new Set<number>();
    let repeats = 0;
    for (let k = 0; k < topK; k++) {
      const id = ids[at + layer * topK + k]!;
      if (id < 0) return `expert ${id} in layer ${layer}`;
      if (of.experts !== null && id >= of.experts) return `expert ${id} of ${of.experts} in layer ${layer}`;
      if (named.has(id) && (id !== 0 || !of.repeatsZero)) repeats++;
      named.add(id);
    }
    if (named.size === 1 && named.has(0)) zero++;
    else if (repeats > 0) return `an expert twice in layer ${layer}`;
  }
  // One expert a token may be expert 0 in each of a few layers.
  if (zero === routed && routed > 0 && (topK > 1 || routed >= FEW_LAYERS)) return 'zeros in every layer';
  return zero > 0 && topK > 1 && !of.repeatsZero ? 'zeros in a layer that has experts' : null;
}

const FEW_LAYERS = 8;

export interface Differences {
  /** By row. */
  rows: Row[];
  /** The layers in which wrong rows differ, and in how many rows. */
  layers: Map<number, number>;
}

/**
 * Compares each row of `own` with that of the same token in `right`. Rows from the position `end`
 * on are not compared: their tokens differ.
 */
export function compareRows(own: Positioned, right: Positioned, end: number, shape: Shape): Differences {
  const rowLength = shape.layers * shape.topK;
  const layers = new Map<number, number>();
  const rows = Array.from({ length: own.count }, (_, row): Row => {
    const position = own.start + row;
    const other = position - right.start;
    if (position >= end || other < 0 || other >= right.count) return Row.Unknown;
    const [a, b] = [row * rowLength, other * rowLength];
    const differing: number[] = [];
    let far = 0;
    for (let layer = 0; layer < shape.layers; layer++) {
      const cell = layer * shape.topK;
      const missing = missingOf(own.ids, a + cell, right.ids, b + cell, shape.topK);
      if (missing === 0) continue;
      differing.push(layer);
      if (missing > 1 || shape.topK < FEW_EXPERTS) far++;
    }
    if (differing.length === 0) return Row.Equal;
    const near = far === 0 && differing.length <= Math.ceil(shape.layers * NEAR_LAYERS);
    if (near) return Row.Numerics;
    for (const layer of differing) layers.set(layer, (layers.get(layer) ?? 0) + 1);
    return Row.Wrong;
  });
  return { rows, layers };
}

/** With fewer experts a token, one that differs may be chance as well as a near tie. */
const FEW_EXPERTS = 4;
/** A near tie is rare, so a row that has one in more than this share of its layers is wrong. */
const NEAR_LAYERS = 0.25;

/** 0 for equal cells; else the number of experts that only one has, and at least 0.5 for order. */
function missingOf(a: RowData, from: number, b: RowData, other: number, topK: number): number {
  let same = true;
  for (let k = 0; k < topK && same; k++) same = a[from + k] === b[other + k];
  if (same) return 0;
  let missing = 0;
  for (let k = 0; k < topK; k++) {
    let found = false;
    for (let j = 0; j < topK && !found; j++) found = a[from + k] === b[other + j];
    if (!found) missing++;
  }
  return Math.max(missing, 0.5);
}

/**
 * The number of generated tokens that two answers have in common, from the first one on; null if
 * they cannot be compared because the replies have no ids.
 */
export function commonTokens(a: readonly number[] | null, b: readonly number[] | null): number | null {
  if (!a || !b) return null;
  let common = 0;
  while (common < a.length && common < b.length && a[common] === b[common]) common++;
  return common;
}

/**
 * Finds the shape in arrays that are right, or at least right behind the prompt: `rows` are the
 * rows by which a layer is known to be dense.
 */
export function learnShape(arrays: readonly Captured[], rowLength: number, experts: number | null): Shape {
  const told = arrays.find(({ shape }) => shape && shape[0] > 0)?.shape;
  const topK = told ? told[2] : topKOf(arrays, rowLength);
  const layers = told ? told[1] : rowLength / topK;
  const zero = new Set(Array.from({ length: layers }, (_, layer) => layer));
  let repeatsZero = false;
  for (const { ids } of arrays) {
    for (let at = 0; at < ids.length; at += topK) {
      const cell = ids.subarray(at, at + topK);
      const zeros = [...cell].filter((id) => id === 0).length;
      if (zeros < topK) zero.delete((at / topK) % layers);
      if (zeros > 1 && zeros < topK) repeatsZero = true;
    }
  }
  return { layers, topK, dense: zero, repeatsZero, experts };
}

/**
 * Raw int32 does not tell its shape. No expert stands twice in a layer, so top_k is the largest
 * divisor of the row's length for which this holds.
 */
function topKOf(arrays: readonly Captured[], rowLength: number): number {
  for (let topK = rowLength; topK > 1; topK--) {
    if (rowLength % topK === 0 && arrays.every(({ ids }) => distinctIn(ids, topK))) return topK;
  }
  return 1;
}

function distinctIn(ids: RowData, topK: number): boolean {
  for (let at = 0; at < ids.length; at += topK) {
    const cell = ids.subarray(at, at + topK);
    const named = new Set(cell);
    if (named.size < topK && !(named.size === 1 && named.has(0))) return false;
  }
  return true;
}
