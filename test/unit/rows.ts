// Rows as routers give them, and what is wrong with rows: the rules applied literally, with Buffer
// and one id at a time.

import type { Dtype } from '../engine/router.ts';
import { itemBytes, rowBytes, type Shape } from './arrays.ts';
import type { Random } from './random.ts';
import { Dtype as DtypeId, Reason, lend, takeOutput, view, wasm } from './wasm.ts';

// Numbered as in the AssemblyScript sources.
export enum RowCheck {
  Sampled,
  All,
  Off,
}
export enum Leg {
  Prefill,
  Decode,
}

export const DTYPE_IDS: Record<Dtype, DtypeId> = {
  '|u1': DtypeId.U1,
  '<u2': DtypeId.U2,
  '<i2': DtypeId.I2,
  '<i4': DtypeId.I4,
};

export interface Model {
  layers?: number;
  topK?: number;
  experts?: number;
}

/** The ids of one row: a list for each layer. */
export type Ids = number[][];

export function encodeRow(dtype: string, ids: Ids): Buffer {
  const size = itemBytes(dtype);
  const flat = ids.flat();
  const out = Buffer.alloc(flat.length * size);
  flat.forEach((id, i) => {
    if (id < 0) out.writeIntLE(id, i * size, size);
    else out.writeUIntLE(id, i * size, size);
  });
  return out;
}

export function decodeIds({ dtype, layers, topK }: Shape, row: Buffer): Ids {
  const size = itemBytes(dtype);
  const signed = dtype[1] === 'i';
  const at = (i: number) => (signed ? row.readIntLE(i * size, size) : row.readUIntLE(i * size, size));
  return Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: topK }, (_, k) => at(layer * topK + k)),
  );
}

/** `topK` different ids below `experts`. */
export function choose(random: Random, topK: number, experts: number): number[] {
  const chosen = new Set<number>();
  while (chosen.size < topK) chosen.add(random.below(experts));
  return [...chosen];
}

/** A row of a model whose layers are dense, that is, without experts, where `dense` says so. */
export function goodRow(random: Random, { dtype, layers, topK }: Shape, dense: (layer: number) => boolean) {
  const most = { '|u1': 256, '<u2': 1024, '<i2': 1024, '<i4': 1024 }[dtype];
  const ids = Array.from({ length: layers }, (_, layer) =>
    dense(layer) ? Array<number>(topK).fill(0) : choose(random, topK, Math.max(topK, most)),
  );
  return encodeRow(dtype, ids);
}

export const isDense = {
  none: () => false,
  first: (layer: number) => layer === 0,
  first3: (layer: number) => layer < 3,
  second: (layer: number) => layer % 2 === 1,
  even: (layer: number) => layer % 2 === 0,
};

/** Indices of the rows that are examined. */
export function sampled(check: RowCheck, rows: number, known: boolean): number[] {
  const all = Array.from({ length: rows }, (_, i) => i);
  if (check === RowCheck.Off) return [];
  if (check === RowCheck.All) return all;
  if (!known) {
    const spaced = all.filter((i) => i < 128 || i % 2 ** (Math.floor(Math.log2(i)) - 6) === 0);
    return spaced.at(-1) === rows - 1 || rows === 0 ? spaced : [...spaced, rows - 1];
  }
  if (rows <= 66) return all;
  return Array.from({ length: 66 }, (_, i) => Math.floor((i * (rows - 1)) / 65));
}

export interface Fault {
  reason: Reason;
  text?: string;
}

/** An array that was read: a run of rows of one leg. */
export interface Rows {
  leg: Leg;
  first: number;
  shape: Shape;
  data: Buffer;
}

/**
 * The layer in which a row is wrong by itself, or -1 when it is wrong in all layers; undefined when
 * nothing is wrong.
 */
export function faultOfRow(
  row: Buffer,
  shape: Shape,
  examined: boolean,
  model: Model = {},
): number | undefined {
  if (shape.topK !== 1 && row.every((byte) => byte === 0)) return -1;
  if (!examined || !model.experts) return undefined;
  const layer = decodeIds(shape, row).findIndex((ids) => ids.some((id) => id < 0 || id >= model.experts!));
  return layer < 0 ? undefined : layer;
}

type Kind = 'Z' | 'D' | 'G';

export function kindOf(ids: number[]): Kind {
  if (ids.every((id) => id === 0)) return 'Z';
  return new Set(ids).size < ids.length ? 'D' : 'G';
}

interface Seen {
  leg: Leg;
  token: number;
  kinds: Kind[];
}

/**
 * What is wrong with the examined rows of one exchange taken together; undefined when nothing is.
 */
export function faultOfRows(seen: Seen[], early = false): string | undefined {
  const legs = [Leg.Prefill, Leg.Decode].map((leg) => seen.filter((row) => row.leg === leg));
  const [prefill, decode] = legs as [Seen[], Seen[]];
  const layers = Math.max(0, ...seen.map((row) => row.kinds.length));
  const count = (rows: Seen[], layer: number, kind: Kind) =>
    rows.filter((row) => row.kinds[layer] === kind).length;
  const most = (rows: Seen[], layer: number) => count(rows, layer, 'D') > rows.length / 2;
  const all = Array.from({ length: layers }, (_, layer) => layer);
  const usual = all.filter((layer) => most(prefill, layer));
  const shared = usual.filter((layer) => count(decode, layer, 'D') > 0);
  const faults: { leg: Leg; token: number; layer: number }[] = [];
  for (const layer of all) {
    const repeats = legs.map((rows) => count(rows, layer, 'D'));
    let byDesign = most(prefill, layer) || most(decode, layer);
    if (prefill.length > 0 && decode.length > 0) {
      byDesign = repeats[0]! > 0 && repeats[1]! > 0;
      byDesign ||= usual.includes(layer) && shared.length > usual.length / 2;
    }
    if (byDesign || (early && (repeats[0]! > 0 || prefill.length === 0))) continue;
    const mixed = count(seen, layer, 'Z') < seen.length;
    // Among the rows of one leg, the first one is reported.
    for (const rows of legs) {
      for (const kind of mixed ? ['D', 'Z'] : ['D']) {
        const first = rows.find(({ kinds }) => kinds[layer] === kind);
        if (first !== undefined) faults.push({ leg: first.leg, token: first.token, layer });
      }
    }
  }
  faults.sort((a, b) => a.leg - b.leg || a.token - b.token || a.layer - b.layer);
  const [fault] = faults;
  return fault && describeFault(fault.leg, fault.token, fault.layer);
}

export function describeFault(leg: Leg, token: number, layer: number): string {
  const where = layer < 0 ? 'all layers' : `layer ${layer}`;
  return `${leg === Leg.Prefill ? 'prefill' : 'decode'} row ${token}, ${where}`;
}

export interface Reading {
  check?: RowCheck;
  model?: Model;
  /** Number of bits before the first row that belong to something else. */
  lead?: number;
  /** The reader is not told how many rows there are. */
  unknown?: boolean;
  /** The reader is told neither the number of layers nor top_k. */
  shapeless?: boolean;
  sentinels?: boolean;
  /** Lengths of the pieces in turn. The last length holds for all further pieces. */
  pieces?: readonly number[];
}

/** What the rules say of arrays that are read one after the other. */
export function expected(arrays: Rows[], reading: Reading = {}): Fault {
  const { check = RowCheck.Sampled, model = {}, unknown, shapeless, sentinels } = reading;
  const seen: Seen[] = [];
  for (const { leg, first, shape, data } of arrays) {
    const size = rowBytes(shape);
    const rows = data.length / size;
    const known = !shapeless || (model.layers === shape.layers && model.topK === shape.topK);
    const topK = shapeless ? (model.topK ?? 0) : shape.topK;
    const examined = new Set(known ? sampled(check, rows, !unknown) : []);
    for (let row = 0; row < rows; row++) {
      const bytes = data.subarray(row * size, (row + 1) * size);
      if (sentinels && shape.dtype[1] === 'i' && bytes.every((byte) => byte === 0xff)) {
        return { reason: Reason.Sentinel };
      }
      if (check === RowCheck.Off) continue;
      const layer = faultOfRow(bytes, { ...shape, topK }, examined.has(row), model);
      if (layer !== undefined) {
        return { reason: Reason.Experts, text: describeFault(leg, first + row, layer) };
      }
      if (!examined.has(row) || topK === 1) continue;
      seen.push({ leg, token: first + row, kinds: decodeIds(shape, bytes).map(kindOf) });
    }
  }
  const text = faultOfRows(seen);
  return text === undefined ? { reason: Reason.None } : { reason: Reason.Experts, text };
}

export function startExamination(check: RowCheck, { layers = 0, topK = 0, experts = 0 }: Model = {}): void {
  wasm['examinationStart']!(check, layers, topK, experts);
}

/** The verdict of the examination at this point. */
export function judge(early = false): Fault {
  const reason: Reason = wasm['examinationJudge']!(+early);
  return reason === Reason.Experts ? { reason, text: description() } : { reason };
}

function description(): string {
  wasm['clearOutput']!();
  wasm['examinationDescribe']!();
  return takeOutput().toString();
}

/**
 * Base64, without padding, of rows that begin `lead` bits into the first character and have other
 * bits around them.
 */
export function charsOf(data: Buffer, lead: number, random: Random): string {
  const before = random.bytes((4 * lead) % 3 === 0 ? 0 : lead / 2).map((byte) => byte | 1);
  const text = Buffer.concat([before, data, random.bytes(3)]).toString('base64');
  const first = Math.floor((before.length * 8) / 6);
  return text.slice(first, Math.ceil(((before.length + data.length) * 8) / 6));
}

/**
 * Reads one array with the test module. `Experts` is not returned here for a fault that other rows
 * may still excuse.
 */
export function readRows({ leg, first, shape, data }: Rows, reading: Reading, random: Random): Reason {
  const { lead = 0, unknown = false, shapeless = false, sentinels = false, pieces = [1e9] } = reading;
  const size = rowBytes(shape);
  const { layers, topK } = shapeless ? { layers: 0, topK: 0 } : shape;
  const rows = unknown ? -1 : data.length / size;
  wasm['rowsStart']!(leg, DTYPE_IDS[shape.dtype], layers, topK, size, lead, first, rows, +sentinels);
  const text = Buffer.from(charsOf(data, lead, random));
  // The bytes before and behind a piece must not influence the result.
  const around = Buffer.alloc(32, random.pick(['A', '/', '"', 'Q']));
  for (let at = 0, i = 0; at < text.length; i++) {
    const len = Math.min(pieces[Math.min(i, pieces.length - 1)]!, text.length - at);
    const ptr = lend(Buffer.concat([around, text.subarray(at, at + len), around]));
    const reason: Reason = wasm['rowsPush']!(ptr + around.length, len);
    // The bytes of a piece are gone after the call.
    view(ptr, len + 2 * around.length).fill(random.pick([0x41, 0x2f, 0x51]));
    if (reason !== Reason.None) return reason;
    at += len;
  }
  return wasm['rowsEnd']!();
}

/** Reads arrays one after the other as one exchange, and frees everything. */
export function readArrays(arrays: Rows[], reading: Reading, random: Random): Fault {
  startExamination(reading.check ?? RowCheck.Sampled, reading.model);
  let reason = Reason.None;
  for (const array of arrays) {
    if (reason === Reason.None) reason = readRows(array, reading, random);
  }
  const fault = reason === Reason.None || reason === Reason.Experts ? judge() : { reason };
  wasm['examinationFree']!();
  return fault;
}
