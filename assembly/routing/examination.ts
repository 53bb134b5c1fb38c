// Whether the rows of an exchange can be what a router gave. In an MoE layer a router names top_k
// different experts. But engines size their arrays by `num_hidden_layers` and fill them with zeros
// first, so that a dense layer is zero in every row; and a model may name one expert several times
// by design. What a layer may be in a row is therefore known only from the other rows.
//
//   in an examined row, a layer is one of     zero      all ids are 0
//                                             repeated  some id occurs twice, and not all ids are 0
//                                             distinct  all ids differ

import { Block, fits } from '../bytes/block';
import { decodeRow } from './base64';
import { Distinct, firstStranger, isZero, roomFor } from './distinct';
import { Dtype, itemSize } from './npy';
import { Reason } from './reason';

/** Which rows are examined for distinct ids. Unless `Off`, zeros are looked for in all rows. */
export const enum RowCheck {
  /** The first row of each array, its last one, and 64 spread between them. */
  Sampled,
  All,
  Off,
}

/** The leg whose reply has the rows: that of decode also where it serves a request alone. */
export const enum Leg {
  Prefill,
  Decode,
}

/** What the configuration says of the model; 0: it does not say. */
@final
export class Model {
  constructor(
    readonly layers: u64,
    readonly topK: u64,
    readonly experts: u64,
  ) {}
}

/**
 * A tally has for each layer: the number of rows in which it is zero and in which it is repeated
 * (u32 each), and the first of these rows of either kind (i64 each). These are the offsets.
 */
const TALLY_BYTES: usize = 24;
const REPEATED: usize = 4;
const FIRST_ZERO: usize = 8;
const FIRST_REPEATED: usize = 16;

/** What the examined rows of one leg are, layer by layer. */
@final
class Tally {
  /** Rows that have been examined. A layer that is neither zero nor repeated in one is distinct. */
  rows: u64 = 0;
  /** Layers for which there is memory; 0 as long as all layers have been distinct. */
  layers: usize = 0;
  private block: Block | null = null;

  /** Makes room for the counts of `layers` layers. Returns false when memory is short. */
  reserve(layers: usize): bool {
    if (layers <= this.layers) return true;
    const size = layers * TALLY_BYTES;
    if (!fits(size)) return false;
    const block = Block.alloc(size);
    memory.fill(block.ptr, 0, size);
    const old = this.block;
    if (old !== null) {
      memory.copy(block.ptr, old.ptr, old.len);
      old.free();
    }
    this.block = block;
    this.layers = layers;
    return true;
  }

  /** Counts a layer, for which there is room, in the row of token `row`. */
  count(layer: usize, row: i64, zero: bool): void {
    const at = this.block!.ptr + layer * TALLY_BYTES + (zero ? 0 : REPEATED);
    const before = load<u32>(at);
    // The first row's offset counts from the layer's entry, and `at` is REPEATED behind that if not
    // `zero`.
    if (before == 0) store<i64>(zero ? at + FIRST_ZERO : at + FIRST_REPEATED - REPEATED, row);
    store<u32>(at, before + 1);
  }

  zeros(layer: usize): u64 {
    return layer < this.layers ? load<u32>(this.block!.ptr + layer * TALLY_BYTES) : 0;
  }

  repeated(layer: usize): u64 {
    return layer < this.layers ? load<u32>(this.block!.ptr + layer * TALLY_BYTES, REPEATED) : 0;
  }

  firstZero(layer: usize): i64 {
    return load<i64>(this.block!.ptr + layer * TALLY_BYTES, FIRST_ZERO);
  }

  firstRepeated(layer: usize): i64 {
    return load<i64>(this.block!.ptr + layer * TALLY_BYTES, FIRST_REPEATED);
  }

  free(): void {
    const block = this.block;
    if (block !== null) block.free();
    this.block = null;
    this.layers = 0;
  }
}

/**
 * What the rows of both legs of one exchange say. It holds memory from the first row that is
 * examined on, until `free`.
 */
@final
export class Examination {
  /** Where the fault is: the leg, the row's token, and the layer (from 0 on; -1: all layers). */
  leg: Leg = Leg.Prefill;
  row: i64 = -1;
  /** The token whose row was examined as prefill's row 0, where that was not known before. */
  prefillStart: i64 = 0;
  layer: i64 = -1;

  /** A fault that no other row can excuse. */
  private certain: Reason = Reason.None;
  private prefill: Tally = new Tally();
  private decode: Tally = new Tally();
  private distinct: Distinct = new Distinct();
  private scratch: Block | null = null;
  /**
   * How many rows had been examined when `judge` last found no fault, in all of them and early; -1:
   * it has not yet.
   */
  private judged: i64 = -1;
  private judgedEarly: i64 = -1;

  constructor(
    readonly check: RowCheck,
    readonly model: Model | null,
  ) {}

  /** Why an array with rows of this shape is not the configured model's; `None`: it may be. */
  misfits(layers: u64, topK: u64): Reason {
    const model = this.model;
    if (model === null) return Reason.None;
    if (layers != model.layers) return Reason.Layers;
    return topK != model.topK ? Reason.TopK : Reason.None;
  }

  /** The same where the format only tells the number of ids in a row. */
  misfit(ids: u64): Reason {
    const model = this.model;
    return model === null || ids == model.layers * model.topK ? Reason.None : Reason.Layers;
  }

  /** Forgets what the rows of a leg have said, because they are read again. */
  forget(leg: Leg): void {
    const tally = leg == Leg.Prefill ? this.prefill : this.decode;
    tally.free();
    tally.rows = 0;
    this.judged = this.judgedEarly = -1;
    if (this.leg == leg) this.certain = Reason.None;
  }

  /** Whether a row of zeros is a fault. `topK` is 0 where the format does not tell it. */
  refusesZeros(topK: u64): bool {
    const model = this.model;
    if (topK == 0 && model !== null) topK = model.topK;
    return this.check != RowCheck.Off && topK != 1;
  }

  /** Whether there is anything to examine in rows of this shape. */
  examines(layers: u64, topK: u64): bool {
    if (this.check == RowCheck.Off || layers == 0 || topK == 0) return false;
    return topK > 1 || this.experts > 0;
  }

  /** The row of token `row` is zero in all layers, which is a fault. */
  zeroRow(leg: Leg, row: i64): Reason {
    return this.fail(Reason.Experts, leg, row, -1);
  }

  /**
   * Examines the row of token `row`, which is in base64: it begins `lead` (0, 2, 4) bits into the
   * first of the characters at `chars` (borrowed). Returns a fault that no other row can excuse, or
   * `Memory`.
   */
  examineChars(leg: Leg, row: i64, chars: usize, lead: i32, dtype: Dtype, layers: u64, topK: u64): Reason {
    const ids = <usize>(layers * topK);
    const bytes = this.room(dtype, ids);
    if (bytes == 0) return this.fail(Reason.Memory, leg, row, -1);
    decodeRow(chars, lead, bytes, ids * <usize>itemSize(dtype));
    return this.classify(leg, row, bytes, dtype, <usize>layers, <usize>topK);
  }

  /**
   * Examines the row of token `row`: `layers` x `topK` ids at `bytes` (borrowed, little-endian). It
   * must not be zero in all layers, either. Returns a fault that no other row can excuse, or
   * `Memory`.
   */
  examineRow(leg: Leg, row: i64, bytes: usize, dtype: Dtype, layers: u64, topK: u64): Reason {
    if (this.check == RowCheck.Off) return Reason.None;
    const size = <usize>(layers * topK * itemSize(dtype));
    if (this.refusesZeros(topK) && isZero(bytes, size)) return this.zeroRow(leg, row);
    if (!this.examines(layers, topK)) return this.certain;
    const copy = this.room(dtype, <usize>(layers * topK));
    if (copy == 0) return this.fail(Reason.Memory, leg, row, -1);
    memory.copy(copy, bytes, size);
    return this.classify(leg, row, copy, dtype, <usize>layers, <usize>topK);
  }

  /**
   * Whether the rows examined so far can be what a router gave: `None`, `Experts` or `Memory`.
   * `early`: all of prefill's rows have been examined, but not all of decode's, so that only what
   * these cannot excuse is a fault.
   */
  judge(early: bool = false): Reason {
    if (this.certain != Reason.None) return this.certain;
    const rows = <i64>(this.prefill.rows + this.decode.rows);
    // Nothing has changed where no rows have been examined since.
    if (rows == this.judged || (early && rows == this.judgedEarly)) return Reason.None;
    const fault = this.judgeLayers(early);
    if (fault) return Reason.Experts;
    if (early) this.judgedEarly = rows;
    else this.judged = rows;
    return Reason.None;
  }

  /** Where the fault is, for people. */
  describe(): string {
    const leg = this.leg == Leg.Prefill ? 'prefill' : 'decode';
    const layer = this.layer < 0 ? 'all layers' : 'layer ' + this.layer.toString();
    const row = this.leg == Leg.Prefill ? this.row + this.prefillStart : this.row;
    return leg + ' row ' + row.toString() + ', ' + layer;
  }

  free(): void {
    this.prefill.free();
    this.decode.free();
    this.distinct.free();
    const scratch = this.scratch;
    if (scratch !== null) scratch.free();
    this.scratch = null;
  }

  private get experts(): u64 {
    const model = this.model;
    return model === null ? 0 : model.experts;
  }

  private fail(reason: Reason, leg: Leg, row: i64, layer: i64): Reason {
    if (this.certain == Reason.None) {
      this.certain = reason;
      this.at(leg, row, layer);
    }
    return this.certain;
  }

  private at(leg: Leg, row: i64, layer: i64): void {
    this.leg = leg;
    this.row = row;
    this.layer = layer;
  }

  /** Room for a row of `n` ids (owned by the examination); 0 when memory is short. */
  private room(dtype: Dtype, n: usize): usize {
    const size = roomFor(dtype, n);
    let scratch = this.scratch;
    if (scratch === null || scratch.len < size) {
      if (scratch !== null) scratch.free();
      this.scratch = null;
      if (!fits(size)) return 0;
      scratch = Block.alloc(size);
      this.scratch = scratch;
    }
    return scratch.ptr;
  }

  /** Counts what the layers of a row are; the row lies in `room`. */
  private classify(leg: Leg, row: i64, bytes: usize, dtype: Dtype, layers: usize, topK: usize): Reason {
    if (this.certain != Reason.None) return this.certain;
    const tally = leg == Leg.Prefill ? this.prefill : this.decode;
    const distinct = this.distinct;
    const experts = this.experts;
    if (experts > 0) {
      const stranger = firstStranger(bytes, dtype, layers * topK, experts);
      if (stranger >= 0) return this.fail(Reason.Experts, leg, row, stranger / <i64>topK);
    }
    if (topK == 1) return Reason.None;
    tally.rows++;
    distinct.begin(bytes, dtype, layers, topK);
    for (let layer = distinct.next(); layer >= 0; layer = distinct.next()) {
      if (!tally.reserve(layers)) return this.fail(Reason.Memory, leg, row, -1);
      tally.count(<usize>layer, row, distinct.zero);
    }
    return distinct.short ? this.fail(Reason.Memory, leg, row, -1) : Reason.None;
  }

  /** Whether there is a fault. `leg`, `row` and `layer` then tell the first, prefill's first. */
  private judgeLayers(early: bool): bool {
    const prefill = this.prefill;
    const decode = this.decode;
    const layers = max(prefill.layers, decode.layers);
    const both = prefill.rows > 0 && decode.rows > 0;
    // The layers in which most of prefill's rows are repeated, and those of them in which some of
    // decode's are, too.
    let usual: usize = 0;
    let shared: usize = 0;
    if (both) {
      for (let layer: usize = 0; layer < layers; layer++) {
        if (prefill.repeated(layer) * 2 <= prefill.rows) continue;
        usual++;
        if (decode.repeated(layer) > 0) shared++;
      }
    }
    let found = false;
    for (let layer: usize = 0; layer < layers; layer++) {
      const prefillZeros = prefill.zeros(layer);
      const decodeZeros = decode.zeros(layer);
      const inPrefill = prefill.repeated(layer);
      const inDecode = decode.repeated(layer);
      const zeros = prefillZeros + decodeZeros;
      const mixed = zeros > 0 && zeros < prefill.rows + decode.rows;
      if (!mixed && inPrefill + inDecode == 0) continue;
      // Whether the model names experts twice in this layer by design.
      let byDesign: bool;
      if (both) {
        const most = inPrefill * 2 > prefill.rows;
        byDesign = (inPrefill > 0 && inDecode > 0) || (most && shared * 2 > usual);
      } else byDesign = inPrefill * 2 > prefill.rows || inDecode * 2 > decode.rows;
      if (byDesign) continue;
      // Decode's rows to come may show that repeats of prefill's in this layer are by design, which
      // also excuses zeros beside them.
      if (early && (inPrefill > 0 || prefill.rows == 0)) continue;
      if (mixed) {
        if (prefillZeros > 0) found = this.earlier(found, Leg.Prefill, prefill.firstZero(layer), layer);
        else found = this.earlier(found, Leg.Decode, decode.firstZero(layer), layer);
      }
      if (inPrefill > 0) found = this.earlier(found, Leg.Prefill, prefill.firstRepeated(layer), layer);
      if (inDecode > 0) found = this.earlier(found, Leg.Decode, decode.firstRepeated(layer), layer);
    }
    return found;
  }

  /** Keeps the fault that comes first: the one `found` before, or this one. */
  private earlier(found: bool, leg: Leg, row: i64, layer: usize): bool {
    if (!found || leg < this.leg || (leg == this.leg && row < this.row)) this.at(leg, row, <i64>layer);
    return true;
  }
}

/** Judges nothing: for rows that name no experts. */
export const UNEXAMINED: Examination = new Examination(RowCheck.Off, null);
