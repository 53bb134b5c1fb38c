// Decides for the reference whether rows can come from a router, independently of the filter's
// code: it names each layer of each row zero, repeated or distinct, and counts these.

import { itemBytes } from './dialects.ts';

/** What the configuration says about the checks, with its own keys. */
export interface Rules {
  check: 'sampled' | 'all' | 'off';
  model: { layers: number; top_k: number; experts: number } | null;
}

/** The rows of one array that are to be checked; each row is a list of ids, layer after layer. */
export interface RowSet {
  rows: number[][];
  /** 0 means that the format does not tell. */
  layers: number;
  topK: number;
  /** The filter reads these rows one by one (they are nested lists), so it examines all of them. */
  every?: boolean;
}

/** The number of rows between the first and the last row that are examined. */
const SPREAD = 64;

/** The ids of the rows in an array's data; `width` is the number of bytes of a row. */
export function rowsOf(data: Buffer, dtype: string, width: number): number[][] {
  const size = itemBytes(dtype);
  const signed = dtype[1] === 'i';
  return Array.from({ length: width > 0 ? Math.floor(data.length / width) : 0 }, (_, row) =>
    Array.from({ length: width / size }, (_, i) => {
      const at = row * width + i * size;
      return signed ? data.readIntLE(at, size) : data.readUIntLE(at, size);
    }),
  );
}

/**
 * Why the arrays do not have the shape of the configured model; null if they have it or no model is
 * configured.
 */
export function misfit({ model }: Rules, layers: number, topK: number): string | null {
  if (!model || (layers === model.layers && topK === model.top_k)) return null;
  return "not the model's shape";
}

/** The same for rows of which only the number of ids is known. */
export function misfitOfIds({ model }: Rules, ids: number): string | null {
  return model && ids !== model.layers * model.top_k ? "not the model's number of ids" : null;
}

/** The rows in which the ids are examined. */
function examined({ rows, every }: RowSet, { check }: Rules): number[][] {
  const last = rows.length - 1;
  if (check === 'all' || every || last <= SPREAD + 1) return rows;
  const places = Array.from({ length: SPREAD + 2 }, (_, turn) => Math.floor((turn * last) / (SPREAD + 1)));
  return [...new Set(places)].map((place) => rows[place]!);
}

type Kind = 'zero' | 'repeated' | 'distinct';

function kindOf(ids: number[]): Kind {
  if (ids.every((id) => id === 0)) return 'zero';
  return new Set(ids).size < ids.length ? 'repeated' : 'distinct';
}

/** The kinds of each layer in the examined rows of one leg. */
class Leg {
  rows = 0;
  private layers: Kind[][] = [];

  add(row: number[], layers: number, topK: number): void {
    this.rows++;
    for (let layer = 0; layer < layers; layer++)
      (this.layers[layer] ??= []).push(kindOf(row.slice(layer * topK, (layer + 1) * topK)));
  }

  get count(): number {
    return this.layers.length;
  }

  of(layer: number, kind: Kind): number {
    return this.layers[layer]?.filter((each) => each === kind).length ?? 0;
  }

  repeatsMostly(layer: number): boolean {
    return this.of(layer, 'repeated') > this.rows / 2;
  }
}

/**
 * What in the rows of an exchange no router can give; null if nothing. `early` means that decode's
 * rows are still to come: they may show that the model repeats experts where prefill's rows do.
 */
export function faultOf(
  rules: Rules,
  sets: { prefill: RowSet[]; decode: RowSet[] },
  early = false,
): string | null {
  if (rules.check === 'off') return null;
  const legs = { prefill: new Leg(), decode: new Leg() };
  for (const name of ['prefill', 'decode'] as const) {
    for (const set of sets[name]) {
      const fault = look(set, rules, legs[name]);
      if (fault) return `${name}: ${fault}`;
    }
  }
  return layersFault(legs.prefill, legs.decode, early);
}

function look(set: RowSet, rules: Rules, leg: Leg): string | null {
  const { model } = rules;
  const told = set.topK || model?.top_k;
  if (told !== 1 && set.rows.some((row) => row.every((id) => id === 0))) return 'a row of zeros';
  const ids = set.rows[0]?.length ?? 0;
  const [layers, topK] = set.topK ? [set.layers, set.topK] : [model?.layers ?? 0, model?.top_k ?? 0];
  if (layers * topK !== ids) return null;
  for (const row of examined(set, rules)) {
    if (model && row.some((id) => id < 0 || id >= model.experts)) return 'an expert that there is not';
    if (topK > 1) leg.add(row, layers, topK);
  }
  return null;
}

/**
 * A layer is dense if it is zero in every row, and routed if it names different experts in every
 * row. Any other layer is a fault, unless the model repeats experts in it.
 */
function layersFault(prefill: Leg, decode: Leg, early: boolean): string | null {
  const layers = Array.from({ length: Math.max(prefill.count, decode.count) }, (_, layer) => layer);
  const total = (layer: number, kind: Kind) => prefill.of(layer, kind) + decode.of(layer, kind);
  const usual = layers.filter((layer) => prefill.repeatsMostly(layer));
  // If both legs have rows, decode's own rows show what the model does.
  const both = prefill.rows > 0 && decode.rows > 0;
  const confirmed = usual.filter((layer) => decode.of(layer, 'repeated') > 0).length > usual.length / 2;
  const repeats = (layer: number): boolean => {
    if (!both) return prefill.repeatsMostly(layer) || decode.repeatsMostly(layer);
    if (prefill.of(layer, 'repeated') > 0 && decode.of(layer, 'repeated') > 0) return true;
    return prefill.repeatsMostly(layer) && confirmed;
  };
  for (const layer of layers) {
    const rows = total(layer, 'zero') + total(layer, 'repeated') + total(layer, 'distinct');
    const dense = total(layer, 'zero') === rows;
    const routed = total(layer, 'distinct') === rows;
    const excusable = early && prefill.of(layer, 'repeated') > 0;
    if (!dense && !routed && !excusable && !repeats(layer)) return `layer ${layer}`;
  }
  return null;
}
