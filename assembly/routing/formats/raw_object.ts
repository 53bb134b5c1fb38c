// Format B, prime-rl and Dynamo: `choices[i].routed_experts` is an object
//   {"data": base64, "shape": [rows, layers, top_k], "start": first token, "dtype": "uint8"}
// with its keys in any order. Without `start` the first token is 0, without `dtype` the dtype is
// uint8.
//
// Matched: rows by token. Prefill's rows replace decode's for the same tokens of the prompt. Where
// decode's begin behind the first row of the plan, prefill's go before them; where they begin
// before it, the rows up to it are dropped. Then `shape` and `start` are edited. Where the legs
// chose different dtypes, the rows of the narrower one are widened, and decode's `dtype` is edited.
// Checked: the same layers and top_k, the length of the data, its alphabet, sentinels; that every
// token of the prompt has a row, and that no row is missing between those of the legs.

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

const DTYPE_KEY = ',"dtype":';
const START_KEY = ',"start":';


@final
export class ObjectPrefill extends PrefillArray {
  /** `start`: the first token whose row was asked for; `examination` is borrowed. */
  constructor(
    private start: u64,
    private examination: Examination,
  ) {
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
    // There are none where they were asked for from behind the prompt on.
    const empty = members.rows == 0 && this.start == 0;
    if (empty || !endsPrompt(end, promptTokens, mayLackLast)) {
      this.reason = Reason.Prompt;
      return null;
    }
    const rows = members.rowsOf(chars);
    // Decode's array is compared with the shape of prefill's, also where prefill gives no row.
    this.reason =
      rows.rows > 0
        ? rows.read(this.examination)
        : this.examination.misfits(<u64>members.layers, <u64>members.topK);
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

  begin(site: Site, plan: RowPlan | null, later: bool): bool {
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
    if (start > plan.seam || end < max(plan.promptEnd, plan.seam)) return Reason.Rows;
    if (start < plan.start && !plan.drops) return Reason.Rows;
    site.covers(start, <u64>members.rows);
    const wronged = this.readFrom(site, plan.seam - start, plan.seam);
    if (wronged != Reason.None) return wronged;
    const at = site.base + members.dataAt;
    let reason = Reason.None;
    const dtype = plan.taken == 0 ? members.dtype : commonDtype(rows.dtype, members.dtype);
    if (start != plan.start || dtype != members.dtype) reason = this.rewrite(site, plan, at, start, dtype);
    else if (plan.taken > 0) reason = this.overlay(site, plan, at);
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

  /** Prefill's rows replace decode's, of which the first one is that of `plan.start`. */
  private overlay(site: Site, plan: RowPlan, at: u64): Reason {
    const chars = plan.chars(this.members.dtype, 0);
    if (chars === null) return Reason.Memory;
    const bits = plan.taken * this.members.rowBytes * 8;
    const whole = bits / 6;
    const rest = <i32>(bits % 6);
    site.rope.replaceFrom(at, whole, chars, 0, whole);
    if (rest == 0) return Reason.None;
    const mixed = Block.alloc(1);
    const read = chars.fetch(whole, 1) > 0 && site.rope.read(at + whole, 1, mixed.ptr);
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
    const rowBytes = plan.taken > 0 ? plan.rowBytesIn(dtype) : members.rowBytes;
    const chars = plan.taken > 0 ? plan.chars(dtype, 0) : null;
    if (chars === null && plan.taken > 0) return Reason.Memory;
    const held = members.run.chars;
    const count = start + <u64>members.rows - plan.start;
    const total = count * rowBytes;
    const bits = plan.taken * rowBytes * 8;
    const whole = bits / 6;
    const rest = <i32>(bits % 6);
    const left = (total * 8 + 5) / 6 - whole;
    const padding = ((total + 2) / 3) * 4 - (whole + left);
    if (!fits(held + left + 8)) return Reason.Memory;
    let last: u8 = 0x41;
    if (chars !== null && rest > 0) {
      if (chars.fetch(whole, 1) == 0) return Reason.Memory;
      last = load<u8>(chars.ptr);
    }
    const tail = Block.alloc(<usize>(left + padding));
    const gone = (plan.seam - start) * members.rowBytes * 8;
    const made =
      dtype == members.dtype
        ? this.moveTail(site, at, gone, tail, <usize>left, rest)
        : this.widenTail(site, at, gone, tail, dtype, rest, last);
    if (!made) {
      tail.free();
      return Reason.Memory;
    }
    if (rest > 0) store<u8>(tail.ptr, mix(last, load<u8>(tail.ptr), rest));
    memory.fill(tail.ptr + <usize>left, 0x3d, <usize>padding);
    this.replaceMembers(site, chars, whole, tail, dtype, plan.start, count);
    return Reason.None;
  }

  /**
   * The JSON text of a dtype, named the way this object names its own, else as prefill's does. One
   * of the two has a name, because the dtypes differ and the one without a name is uint8.
   */
  private nameOf(dtype: Dtype): string {
    const members = this.members;
    return '"' + dtypeName(dtype, members.named ? members.coded : this.plan!.rows.coded) + '"';
  }

  /** Puts the edits of all members into the rope, in the order of the body. */
  private replaceMembers(
    site: Site,
    chars: RowChars | null,
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
    // A member that is missing becomes the last one, before the closing brace, which has been read.
    const brace = site.position - 1 - site.base;
    const start = !moved ? 0 : members.startAt > 0 ? members.startAt : brace;
    const name = !wider ? 0 : members.dtypeAt > 0 ? members.dtypeAt : brace;
    const text = this.nameOf(dtype);
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
        if (chars !== null) site.rope.replaceFrom(at, 0, chars, 0, whole);
        site.rope.replaceOwned(at, old, tail, tail.len);
        site.growth += <i64>(whole + tail.len) - <i64>old;
      } else if (next == shape) writeNumber(site, at, members.rowsEnd - shape, '', count);
      if (next == start) {
        const known = members.startAt > 0;
        writeNumber(site, at, known ? members.startEnd - start : 0, known ? '' : START_KEY, first);
      }
      if (next == name) {
        if (members.dtypeAt > 0) writeText(site, at, members.dtypeEnd - name, text);
        else writeText(site, at, 0, DTYPE_KEY + text);
      }
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
   * Copies decode's rows, which begin `gone` bits into the data, into `left` characters of `tail`,
   * so that they begin `lead` bits into them.
   */
  private moveTail(site: Site, at: u64, gone: u64, tail: Block, left: usize, lead: i32): bool {
    const skipped = gone / 6;
    const from = <i32>(gone % 6);
    const held = this.members.run.chars - skipped;
    if (left > 0) store<u8>(tail.ptr, 0x41);
    if (held == 0 || left == 0) return true;
    // Where the rows stand as they are to stand, no more characters are left than decode has.
    if (from == lead) return site.rope.read(at + skipped, left, tail.ptr);
    const copied = Block.alloc(<usize>held);
    const whole = site.rope.read(at + skipped, held, copied.ptr);
    const chars = new HeldChars(held);
    chars.add(copied);
    const moved = whole && move(chars, from, tail.ptr, tail.ptr + left, lead);
    chars.free();
    return moved;
  }
}

/** Writes a number behind `key`. */
function writeNumber(site: Site, at: u64, remove: u64, key: string, value: u64): void {
  writeText(site, at, remove, key + value.toString());
}

/** Writes ASCII characters in the place of `remove` bytes. */
function writeText(site: Site, at: u64, remove: u64, text: string): void {
  const len = <usize>text.length;
  const block = Block.alloc(len);
  for (let i: i32 = 0; i < text.length; i++) store<u8>(block.ptr + i, <u8>text.charCodeAt(i));
  site.replaceText(at, remove, block);
}
