// Compares the rows of two replies to one prompt, id by id, and says where they differ first.
//
// Two runs of an engine need not give the same rows: sums of floating point numbers depend on what
// else is in a batch, and a router whose two best experts are nearly tied then chooses the other
// one. So a row that differs is told apart from one that is wrong, by the rule of
// yardstick/compare.ts.

import { Block, fits } from '../bytes/block';
import { sameLength } from '../bytes/same';
import { Examination, RowCheck } from './examination';
import { PromptCheck } from './formats/prompt_value';
import { decodeRow } from './base64';
import { Dtype, itemSize } from './npy';
import { Format, Kind, Prompt } from './prompt';
import { Reason } from './reason';
import { RowPlan } from './row_plan';
import { PromptRows, RowChars } from './rows';

/** With fewer experts a token, one that differs may be chance as well as a near tie. */
const FEW_EXPERTS: u64 = 4;
/** A near tie is rare: a row that has one in more than every fourth layer is wrong. */
const NEAR_LAYERS: u64 = 4;


@final
export class RowComparison {
  /** How many rows have been compared, how many of them differ, and how many of these are wrong. */
  rows: u64 = 0;
  differing: u64 = 0;
  wrong: u64 = 0;
  /**
   * The first row that is wrong; if none is, the first one that differs: the prompt of the request
   * that it belongs to, the position of its token, and the first layer that differs; -1 where it is
   * not known where layers begin.
   */
  element: i32 = 0;
  token: u64 = 0;
  layer: i64 = -1;

  /** `topK`: that of the model, for formats that do not tell it; 0: not known. */
  constructor(private readonly topK: u64) {}

  /**
   * Compares the rows that `spliced` has put into a response with those of `other`. Both are
   * borrowed. Returns why they cannot be compared, or `None`.
   */
  compare(spliced: Prompt, other: Prompt): Reason {
    if (!other.routing.came) return other.routing.missing;
    if ((spliced.format == Format.Prompt) != (other.format == Format.Prompt)) return Reason.Mixed;
    if (spliced.format == Format.Prompt) return this.compareValues(spliced, other);
    const ours = spliced.routing.plans;
    const theirs = other.routing.plans;
    if (ours.length != theirs.length) return Reason.Missing;
    for (let i = 0; i < ours.length; i++) {
      const reason = this.comparePlan(i, ours[i], theirs[i].rows);
      if (reason != Reason.None) return reason;
    }
    return Reason.None;
  }

  private comparePlan(element: i32, plan: RowPlan, there: PromptRows): Reason {
    if (plan.taken == 0) return Reason.None;
    if (there.start > plan.start || there.end < plan.seam) return Reason.Rows;
    return this.compareRows(element, plan.rows, there, plan.start, plan.seam);
  }

  /** Compares the rows of the tokens from `from` to before `to`, which both have. */
  private compareRows(element: i32, here: PromptRows, there: PromptRows, from: u64, to: u64): Reason {
    const ids = here.rowBytes / itemSize(here.dtype);
    if (ids != there.rowBytes / itemSize(there.dtype)) return Reason.Shape;
    if (here.topK > 0 && there.topK > 0 && here.topK != there.topK) return Reason.TopK;
    const room = roomFor(here.rowBytes);
    const otherRoom = roomFor(there.rowBytes);
    if (!fits(room + otherRoom)) return Reason.Memory;
    const block = Block.alloc(<usize>(room + otherRoom));
    const one = new Row(block.ptr, here.dtype);
    const two = new Row(block.ptr + <usize>room, there.dtype);
    const topK = here.topK > 0 ? here.topK : this.topK;
    const alike = areAlike(here, there);
    let reason = Reason.None;
    for (let token = from; token < to && reason == Reason.None; token++) {
      if (alike) {
        // As a rule all rows are the same, and then none is decoded.
        const next = firstOther(here, there, token, to);
        this.rows += next - token;
        token = next;
        if (token == to) break;
      }
      const whole = decode(here, token, one.ptr) && decode(there, token, two.ptr);
      if (whole) this.take(element, token, one, two, ids, topK);
      else reason = Reason.Memory;
    }
    block.free();
    return reason;
  }

  /** Compares the values of `prompt_routed_experts`. */
  private compareValues(spliced: Prompt, other: Prompt): Reason {
    const ours = spliced.value(Kind.PromptExperts)!.text;
    const theirs = other.value(Kind.PromptExperts)!.text;
    if (spliced.layers != other.layers) return Reason.Layers;
    if (spliced.topK != other.topK) return Reason.TopK;
    if (spliced.valueRows != other.valueRows) return Reason.Rows;
    const here = rowsIn(ours);
    const there = rowsIn(theirs);
    if (here !== null && there !== null) {
      if (here.start != there.start) return Reason.Rows;
      return this.compareRows(0, here, there, here.start, here.end);
    }
    if (here !== null || there !== null) return Reason.Mixed;
    if (isSame(ours, theirs)) {
      this.rows += spliced.valueRows;
      return Reason.None;
    }
    return this.compareLists(new Numbers(ours), new Numbers(theirs), spliced);
  }

  /** Compares nested lists of one shape. */
  private compareLists(ours: Numbers, theirs: Numbers, shape: Prompt): Reason {
    const ids = shape.layers * shape.topK;
    const bytes = ids * itemSize(Dtype.I4);
    if (!fits(2 * bytes)) return Reason.Memory;
    const block = Block.alloc(<usize>(2 * bytes));
    const one = new Row(block.ptr, Dtype.I4);
    const two = new Row(block.ptr + <usize>bytes, Dtype.I4);
    for (let row: u64 = 0; row < shape.valueRows; row++) {
      ours.fill(one.ptr, ids);
      theirs.fill(two.ptr, ids);
      this.take(0, row, one, two, ids, shape.topK);
    }
    block.free();
    return Reason.None;
  }

  /** Compares two rows of `ids` ids, of which each layer has `topK`; 0: not known. */
  private take(element: i32, token: u64, one: Row, two: Row, ids: u64, topK: u64): void {
    this.rows++;
    if (one.isLike(two, ids)) return;
    // Where it is not known where layers begin, the whole row is taken for one. None is near then.
    const known = topK > 0 && ids % topK == 0;
    const each = known ? topK : ids;
    let first: i64 = -1;
    let near = known && topK >= FEW_EXPERTS;
    let layers: u64 = 0;
    for (let at: u64 = 0; at < ids; at += each) {
      const missing = one.missing(two, at, each);
      if (missing < 0) continue;
      if (layers++ == 0) first = <i64>(at / each);
      if (missing > 1) near = false;
    }
    near = near && layers <= (ids / each + NEAR_LAYERS - 1) / NEAR_LAYERS;
    this.note(element, token, known ? first : -1, near);
  }

  /** Notes a row that differs, in this layer first. */
  private note(element: i32, token: u64, layer: i64, near: bool): void {
    const isFirst = near ? this.differing == 0 : this.wrong == 0;
    this.differing++;
    if (!near) this.wrong++;
    if (!isFirst) return;
    this.element = element;
    this.token = token;
    this.layer = layer;
  }
}

/** A row that has been decoded. */
@final
class Row {
  /** `ptr` is borrowed. */
  constructor(
    readonly ptr: usize,
    private readonly dtype: Dtype,
  ) {}

  /** Whether `ids` ids are the same as those of another row. */
  isLike(other: Row, ids: u64): bool {
    if (this.dtype == other.dtype) {
      return memory.compare(this.ptr, other.ptr, <usize>(ids * itemSize(this.dtype))) == 0;
    }
    for (let i: u64 = 0; i < ids; i++) if (this.id(i) != other.id(i)) return false;
    return true;
  }

  /**
   * How many of the `count` ids from `at` on another row does not have among those from `at` on. -1
   * where these ids are the same, in the same order.
   */
  missing(other: Row, at: u64, count: u64): i64 {
    let same: u64 = 0;
    while (same < count && this.id(at + same) == other.id(at + same)) same++;
    if (same == count) return -1;
    let missing: i64 = 0;
    for (let i: u64 = 0; i < count; i++) {
      const id = this.id(at + i);
      let j: u64 = 0;
      while (j < count && other.id(at + j) != id) j++;
      if (j == count) missing++;
    }
    return missing;
  }

  private id(i: u64): i32 {
    const at = this.ptr + <usize>(i * itemSize(this.dtype));
    switch (this.dtype) {
      case Dtype.U1:
        return load<u8>(at);
      case Dtype.U2:
        return load<u16>(at);
      case Dtype.I2:
        return load<i16>(at);
      default:
        return load<i32>(at);
    }
  }
}

/** The rows of a value that is an object; null when it is lists. The value has been checked. */
function rowsIn(text: RowChars): PromptRows | null {
  const examination = new Examination(RowCheck.Off, null);
  const check = new PromptCheck(examination);
  check.check(text, -1, 0);
  examination.free();
  return check.rowsIn(text);
}

/** Whether two texts are the same, byte by byte. */
function isSame(one: RowChars, two: RowChars): bool {
  if (one.length != two.length) return false;
  for (let at: u64 = 0; at < one.length;) {
    const got = min(one.fetch(at, one.length - at), two.fetch(at, two.length - at));
    if (got == 0 || sameLength(one.ptr, two.ptr, <usize>got) != got) return false;
    at += got;
  }
  return true;
}

/**
 * Decodes the row of a token to `target`. Behind the row, there must be room for its characters.
 * Returns false when some of them are lost.
 */
function decode(rows: PromptRows, token: u64, target: usize): bool {
  const bits = <u64>rows.lead + (token - rows.start) * rows.rowBytes * 8;
  const lead = <i32>(bits % 6);
  const len = (<u64>lead + rows.rowBytes * 8 + 5) / 6;
  const chars = rows.chars;
  let from = target + <usize>rows.rowBytes;
  for (let at: u64 = 0; at < len;) {
    const got = chars.fetch(bits / 6 + at, len - at);
    if (got == 0) return false;
    // A row whose characters are in one piece is decoded where it is.
    if (got == len) from = chars.ptr;
    else memory.copy(from + <usize>at, chars.ptr, <usize>got);
    at += got;
  }
  decodeRow(from, lead, target, <usize>rows.rowBytes);
  return true;
}

/** Whether the rows of two arrays stand at the same places in base64, in one dtype. */
function areAlike(one: PromptRows, two: PromptRows): bool {
  const same = one.lead == two.lead && one.start == two.start;
  return same && one.dtype == two.dtype && one.rowBytes == two.rowBytes;
}

/**
 * The first token, from `from` to before `to`, of which two arrays that are alike do not have the
 * same characters; `to` when there is none. Its rows may be the same all the same, as a character
 * can have bits of two rows.
 */
function firstOther(one: PromptRows, two: PromptRows, from: u64, to: u64): u64 {
  const bits = one.rowBytes * 8;
  const lead = <u64>one.lead;
  const ours = one.chars;
  const theirs = two.chars;
  const end = (lead + (to - one.start) * bits + 5) / 6;
  for (let at = (lead + (from - one.start) * bits) / 6; at < end;) {
    const got = min(ours.fetch(at, end - at), theirs.fetch(at, end - at));
    const same = sameLength(ours.ptr, theirs.ptr, <usize>got);
    at += same;
    // Where characters are lost, decoding the row will tell.
    if (got > 0 && same == got) continue;
    return max(from, one.start + (at * 6 > lead ? (at * 6 - lead) / bits : 0));
  }
  return to;
}

/** Room for a row, and for the characters that it is decoded from. */
function roomFor(rowBytes: u64): u64 {
  return rowBytes + (rowBytes * 8) / 6 + 2;
}

/** The numbers in nested lists, in their order. The lists have been checked. */
@final
class Numbers {
  private offset: u64 = 0;
  private at: usize = 0;
  private end: usize = 0;

  constructor(private readonly text: RowChars) {}

  /** Writes the next `count` numbers to `ptr`, as int32. */
  fill(ptr: usize, count: u64): void {
    for (let i: u64 = 0; i < count; i++, ptr += sizeof<i32>()) store<i32>(ptr, this.next());
  }

  /** The next number; -1 when there is none. */
  private next(): i32 {
    let c = this.char();
    while (c != 0 && c - 0x30 > 9) c = this.char();
    if (c == 0) return -1;
    let value: i32 = 0;
    for (; c - 0x30 <= 9; c = this.char()) value = value * 10 + (c - 0x30);
    return value;
  }

  /** The next character; 0 when there is none. */
  private char(): u8 {
    if (this.at == this.end) {
      const text = this.text;
      const got = this.offset < text.length ? text.fetch(this.offset, text.length - this.offset) : 0;
      if (got == 0) return 0;
      this.offset += got;
      this.at = text.ptr;
      this.end = text.ptr + <usize>got;
    }
    return load<u8>(this.at++);
  }
}
