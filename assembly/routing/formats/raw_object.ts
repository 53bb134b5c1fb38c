// Format B, prime-rl and Dynamo: `choices[i].routed_experts` is an object
//   {"data": base64, "shape": [rows, layers, top_k], "start": first token, "dtype": "uint8"}
// with its keys in any order. Without `start` the first token is 0, without `dtype` the dtype is
// uint8.
//
// Matched: rows by token. Prefill's rows replace decode's for the same tokens of the prompt. Where
// decode's begin behind the prompt, prefill's go before them, and `shape` and `start` are edited.
// Where the legs chose different dtypes, the rows of the narrower one are widened, and decode's
// `dtype` is edited.
// Checked: the same layers and top_k, the length of the data, its alphabet, sentinels; that every
// token of the prompt has a row, and that no row is missing between those of the legs.

import { writeDecimal } from '../../bytes/ascii';
import { Block, fits } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { mix } from '../base64';
import { Examination, Leg } from '../examination';
import { Place } from '../places';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { HeldChars, PromptRows, RowChars, move } from '../rows';
import { Dtype } from '../npy';
import { Widener, commonDtype } from '../widen';
import { DecodeArray, PrefillArray, Progress, Site, Wanted, endsPrompt } from './format';
import { Members, dtypeName } from './members';

/** Room for the digits of a number of 64 bits. */
const NUMBER_BYTES: usize = 20;
const DTYPE_KEY = ',"dtype":';


@final
export class ObjectPrefill extends PrefillArray {
  /** `examination` is borrowed. */
  constructor(private examination: Examination) {
    super();
  }

  private members: Members = new Members();
  private chars: RowChars | null = null;

  get format(): Format {
    return Format.Object;
  }

  begin(scanner: Scanner): bool {
    this.members.begin();
    return false;
  }

  onValue(scanner: Scanner, place: Place): bool {
    const members = this.members;
    if (!members.onValue(scanner, place)) return false;
    if (members.inData) {
      const wanted = new Wanted();
      wanted.at = scanner.offset;
      this.wanted = wanted;
    }
    return true;
  }

  onValueEnd(scanner: Scanner, place: Place): void {
    this.members.onValueEnd(scanner, place);
  }

  read(scanner: Scanner): Progress {
    return this.wanted !== null ? Progress.Done : this.members.read(scanner);
  }

  take(scanner: Scanner, chars: RowChars, reason: Reason): void {
    this.wanted = null;
    this.chars = chars;
    this.members.run.chars = chars.length;
    scanner.skip(chars.length);
    scanner.pass(scanner.skipping);
  }

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32, mayLackLast: bool): PromptRows | null {
    const members = this.members;
    const chars = this.chars;
    this.reason = members.judge();
    if (this.reason != Reason.None || chars === null) return null;
    const end = <u64>(members.start + members.rows);
    if (members.rows == 0 || !endsPrompt(end, promptTokens, mayLackLast)) {
      this.reason = Reason.Prompt;
      return null;
    }
    const rows = members.rowsOf(chars);
    this.reason = rows.read(this.examination);
    if (this.reason != Reason.None) return null;
    this.chars = null;
    return rows;
  }

  free(): void {
    this.members.free();
    const chars = this.chars;
    if (chars !== null) chars.free();
    this.chars = null;
  }
}

/** An object is held up to its end, as only then all of its members are known. */
@final
export class ObjectDecode extends DecodeArray {
  private members: Members = new Members();
  private plan: RowPlan | null = null;
  private readonly reader: RowReader = new RowReader();
  private readonly widener: Widener = new Widener();

  get format(): Format {
    return Format.Object;
  }

  begin(site: Site, plan: RowPlan | null): bool {
    this.plan = plan;
    this.heldFrom = <i64>site.position;
    this.members.begin();
    return false;
  }

  onValue(site: Site, place: Place): bool {
    return this.members.onValue(site.scanner, place);
  }

  onValueEnd(site: Site, place: Place): void {
    this.members.onValueEnd(site.scanner, place);
  }

  read(site: Site): Progress {
    return this.members.read(site.scanner);
  }

  end(site: Site): Reason {
    const reason = this.finish(site);
    if (reason == Reason.None) this.heldFrom = -1;
    return reason;
  }

  free(): void {
    this.members.free();
    this.reader.free();
  }

  private finish(site: Site): Reason {
    const members = this.members;
    const plan = this.plan;
    if (plan === null) return this.leave(site);
    const rows = plan.rows;
    if (members.layers > 0 && <u64>members.layers != rows.layers) return Reason.Layers;
    if (members.topK > 0 && <u64>members.topK != rows.topK) return Reason.TopK;
    const wrong = members.judge();
    if (wrong != Reason.None) return wrong;
    const start = <u64>members.start;
    const end = start + <u64>members.rows;
    if (start < plan.start || start > plan.seam || end < plan.promptEnd) return Reason.Rows;
    site.covers(start, <u64>members.rows);
    const wronged = this.readFrom(site, plan.seam - start, plan.seam);
    if (wronged != Reason.None) return wronged;
    const at = site.base + members.dataAt;
    // Where decode's rows begin at the seam, prefill's go before them.
    let reason = Reason.None;
    const dtype = commonDtype(rows.dtype, members.dtype);
    if (start < plan.seam && dtype == members.dtype) reason = this.overlay(site, plan, at, start);
    else if (plan.taken > 0) reason = this.rewrite(site, plan, at, start, dtype);
    if (reason == Reason.None) site.edited();
    return reason;
  }

  /** No rows of prefill's are merged with the array. Its own are examined, and stay. */
  private leave(site: Site): Reason {
    const members = this.members;
    let wrong = members.judge();
    if (wrong == Reason.None) wrong = site.examination.misfits(<u64>members.layers, <u64>members.topK);
    if (wrong != Reason.None) return wrong;
    site.covers(<u64>members.start, <u64>members.rows);
    const reason = this.readFrom(site, 0, <u64>members.start);
    if (reason == Reason.None) site.edited();
    return reason;
  }

  /** Examines decode's rows behind the first `skipped`, from that of token `firstRow` on. */
  private readFrom(site: Site, skipped: u64, firstRow: u64): Reason {
    const members = this.members;
    const before = skipped * members.rowBytes * 8;
    const reader = this.reader;
    const rows = <u64>members.rows - skipped;
    const layers = <u64>members.layers;
    const topK = <u64>members.topK;
    const lead = <i32>(before % 6);
    reader.begin(
      site.examination,
      Leg.Decode,
      members.dtype,
      layers,
      topK,
      members.rowBytes,
      lead,
      firstRow,
      rows,
      false,
    );
    const from = before / 6;
    const whole = site.rope.feed(reader, site.base + members.dataAt + from, members.run.chars - from);
    if (!whole) return Reason.Memory;
    reader.end();
    return reader.reason;
  }

  /** Prefill's rows replace decode's, from that of token `start` on, which is decode's first. */
  private overlay(site: Site, plan: RowPlan, at: u64, start: u64): Reason {
    const rowBytes = this.members.rowBytes;
    const before = (start - plan.start) * rowBytes * 8;
    // Of the positions at which prefill's rows can be had, this is the one where the row of `start`
    // begins a character, so that whole characters can be copied.
    const lead = <i32>((6 - (before % 6)) % 6);
    const chars = plan.rows.inDtype(this.members.dtype, lead);
    if (chars === null) return Reason.Memory;
    const from = (before + lead) / 6;
    const bits = (plan.seam - start) * rowBytes * 8;
    const whole = bits / 6;
    const rest = <i32>(bits % 6);
    site.rope.replaceFrom(at, whole, chars, from, whole);
    if (rest == 0) return Reason.None;
    const mixed = Block.alloc(1);
    const read = chars.fetch(from + whole, 1) > 0 && site.rope.read(at + whole, 1, mixed.ptr);
    if (!read) {
      mixed.free();
      return Reason.Memory;
    }
    store<u8>(mixed.ptr, mix(load<u8>(chars.ptr), load<u8>(mixed.ptr), rest));
    site.rope.replaceOwned(at + whole, 1, mixed, 1);
    return Reason.None;
  }

  /**
   * The data is written anew in `dtype`: prefill's rows, then decode's from the seam on. Decode's
   * first row is that of token `start`.
   */
  private rewrite(site: Site, plan: RowPlan, at: u64, start: u64, dtype: Dtype): Reason {
    const members = this.members;
    const first = start < plan.seam ? start : plan.start;
    const rowBytes = plan.rowBytesIn(dtype);
    const before = (first - plan.start) * rowBytes * 8;
    const lead = <i32>((6 - (before % 6)) % 6);
    const chars = plan.rows.inDtype(dtype, lead);
    if (chars === null) return Reason.Memory;
    const from = (before + lead) / 6;
    const held = members.run.chars;
    const count = start + <u64>members.rows - first;
    const total = count * rowBytes;
    const bits = (plan.seam - first) * rowBytes * 8;
    const whole = bits / 6;
    const rest = <i32>(bits % 6);
    const left = (total * 8 + 5) / 6 - whole;
    const padding = ((total + 2) / 3) * 4 - (whole + left);
    if (!fits(held + left + 8)) return Reason.Memory;
    let last: u8 = 0x41;
    if (rest > 0) {
      if (chars.fetch(from + whole, 1) == 0) return Reason.Memory;
      last = load<u8>(chars.ptr);
    }
    const tail = Block.alloc(<usize>(left + padding));
    const gone = (plan.seam - start) * members.rowBytes * 8;
    const made =
      dtype == members.dtype
        ? this.moveTail(site, at, held, tail, <usize>left, rest)
        : this.widenTail(site, at, gone, tail, dtype, rest, last);
    if (!made) {
      tail.free();
      return Reason.Memory;
    }
    if (rest > 0) store<u8>(tail.ptr, mix(last, load<u8>(tail.ptr), rest));
    memory.fill(tail.ptr + <usize>left, 0x3d, <usize>padding);
    this.replaceMembers(site, chars, from, whole, tail, dtype, first, count);
    return Reason.None;
  }

  /** Puts the edits of all members into the rope, in the order of the body. */
  private replaceMembers(
    site: Site,
    chars: RowChars,
    from: u64,
    whole: u64,
    tail: Block,
    dtype: Dtype,
    first: u64,
    count: u64,
  ): void {
    const members = this.members;
    const moved = first != <u64>members.start;
    const wider = dtype != members.dtype;
    const data = members.dataAt;
    const shape = moved ? members.rowsAt : 0;
    const start = moved ? members.startAt : 0;
    // A dtype that is missing becomes the last member, before the closing brace, which has been
    // read.
    const known = members.dtypeAt > 0;
    const name = !wider ? 0 : known ? members.dtypeAt : site.position - 1 - site.base;
    // The dtype is named the way this object names its own, else as prefill's does. One of the two
    // has a name, because the dtypes differ and the one without a name is uint8.
    const text = dtypeName(dtype, members.named ? members.coded : this.plan!.rows.coded);
    for (let done: u64 = 0; ;) {
      let next = u64.MAX_VALUE;
      if (data > done) next = data;
      if (shape > done) next = min(next, shape);
      if (start > done) next = min(next, start);
      if (name > done) next = min(next, name);
      if (next == u64.MAX_VALUE) return;
      const at = site.base + next;
      if (next == data) {
        const old = members.run.chars + members.run.padding;
        site.rope.replaceFrom(at, 0, chars, from, whole);
        site.rope.replaceOwned(at, old, tail, tail.len);
        site.growth += <i64>(whole + tail.len) - <i64>old;
      } else if (next == shape) writeNumber(site, at, members.rowsEnd - shape, count);
      else if (next == start) writeNumber(site, at, members.startEnd - start, first);
      else writeDtype(site, at, known ? members.dtypeEnd - name : 0, known ? '' : DTYPE_KEY, text);
      done = next;
    }
  }

  /**
   * Widens decode's rows, which begin `gone` bits into the data, behind the first `lead` bits of
   * `last` into `tail`.
   */
  private widenTail(site: Site, at: u64, gone: u64, tail: Block, dtype: Dtype, lead: i32, last: u8): bool {
    const members = this.members;
    const widener = this.widener;
    widener.begin(members.dtype, dtype, <i32>(gone % 6), lead, last);
    widener.out = tail.ptr;
    const skipped = gone / 6;
    if (!site.rope.feed(widener, at + skipped, members.run.chars - skipped)) return false;
    widener.end();
    return true;
  }

  /**
   * Copies decode's `held` characters into `left` characters of `tail`, so that the rows begin
   * `lead` bits into them.
   */
  private moveTail(site: Site, at: u64, held: u64, tail: Block, left: usize, lead: i32): bool {
    if (lead == 0) return site.rope.read(at, held, tail.ptr);
    store<u8>(tail.ptr, 0x41);
    if (held == 0) return true;
    const copied = Block.alloc(<usize>held);
    const whole = site.rope.read(at, held, copied.ptr);
    const chars = new HeldChars(held);
    chars.add(copied);
    const moved = whole && move(chars, 0, tail.ptr, tail.ptr + left, lead);
    chars.free();
    return moved;
  }
}

function writeNumber(site: Site, at: u64, remove: u64, value: u64): void {
  const digits = Block.alloc(NUMBER_BYTES);
  site.replaceNumber(at, remove, digits, writeDecimal(value, digits.ptr));
}

/** Writes the name of a dtype as a JSON string, behind `key`. */
function writeDtype(site: Site, at: u64, remove: u64, key: string, name: string): void {
  const text = key + '"' + name + '"';
  const len = <usize>text.length;
  const block = Block.alloc(len);
  for (let i: i32 = 0; i < text.length; i++) store<u8>(block.ptr + i, <u8>text.charCodeAt(i));
  site.rope.replaceOwned(at, remove, block, len);
  site.growth += <i64>len - <i64>remove;
}
