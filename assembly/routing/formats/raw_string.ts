// Format D, SGLang: `meta_info.routed_experts` or `sglext.routed_experts` is base64 of
// little-endian int32 without a header, of shape (rows, layers, top_k) in C order. A reply may be a
// list of elements with such a member each. SGLang's other arrays come in the same way, with rows
// of another length (named_array.ts).
//
// Matched: in every element, prefill's prompt rows are the first of decode's.
// Checked: the size of a row, which follows from prefill's counts of tokens, divides the size of
// both arrays; decode has one row less than tokens, and at least those of the prompt; alphabet and
// padding; sentinels.

import { Block } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { mix } from '../base64';
import { Examination, Leg, UNEXAMINED } from '../examination';
import { NAMED, Name } from '../named_array';
import { Dtype, MAX_ROW_BYTES } from '../npy';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars } from '../rows';
import { DecodeArray, Deferred, PrefillArray, Progress, Site, Wanted, decodedLength } from './format';
import { Run } from './run';

/** Bytes of an id. */
const ITEM: u64 = 4;


@final
export class RawPrefill extends PrefillArray {
  private run: Run = new Run();
  /** The characters of the rows (owned). */
  private chars: RowChars | null = null;
  /** Whether the rows have been asked for. */
  private asked: bool = false;

  /**
   * `start`: the first token whose row was asked for. `experts`: the rows name experts, which the
   * examination (borrowed) judges.
   */
  constructor(
    private start: u64,
    private experts: bool,
    private examination: Examination,
  ) {
    super();
  }

  get format(): Format {
    return Format.Raw;
  }

  begin(scanner: Scanner): bool {
    scanner.enterString();
    this.run.begin();
    return true;
  }

  read(scanner: Scanner): Progress {
    if (!this.asked) {
      this.asked = true;
      const wanted = new Wanted();
      wanted.at = scanner.offset;
      this.wanted = wanted;
      return Progress.Done;
    }
    const progress = this.run.read(scanner);
    if (progress == Progress.Refused) this.reason = Reason.Base64;
    return progress;
  }

  take(scanner: Scanner, chars: RowChars, reason: Reason): void {
    this.wanted = null;
    this.chars = chars;
    this.run.chars = chars.length;
    scanner.skip(chars.length);
    scanner.pass(scanner.skipping);
  }

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32, mayLackLast: bool): PromptRows | null {
    const chars = this.chars;
    if (chars === null || this.reason != Reason.None) return null;
    const bytes = this.run.bytes;
    const start = <i64>this.start;
    // The array is that of the first choice. Of several choices, its length is known only if each
    // of them has the one token that prefill generates.
    const uneven = choices > 1 && completionTokens >= 0 && completionTokens != choices;
    const generated = choices > 1 ? 0 : max<i64>(completionTokens, 1) - 1;
    // If rows were asked for from behind the prompt on, an engine has none of the prompt to send.
    const held = max<i64>(promptTokens - start + generated, 0);
    if (bytes < 0 || uneven) this.reason = Reason.Size;
    else if (promptTokens < 0 || (bytes == 0) != (held == 0)) this.reason = Reason.Prompt;
    else if (held > 0 && (bytes % held != 0 || (bytes / held) % ITEM != 0)) this.reason = Reason.Size;
    if (this.reason != Reason.None) return null;
    const count = max<i64>(promptTokens - start, 0);
    const rows = new PromptRows(chars, 0, start, count, Dtype.I4, 0, 0, held > 0 ? bytes / held : 0);
    if (rows.rows > 0 && this.experts) this.reason = rows.read(this.examination);
    if (this.reason != Reason.None) return null;
    this.chars = null;
    return rows;
  }

  free(): void {
    const chars = this.chars;
    if (chars !== null) chars.free();
    this.chars = null;
  }
}


@final
export class RawDecode extends DecodeArray {
  /** The name of the array that comes next. */
  name: Name = Name.RoutedExperts;
  private run: Run = new Run();
  private plan: RowPlan | null = null;
  /** Whether the plan will be known at the end of the event. */
  private later: bool = false;
  private readonly reader: RowReader = new RowReader();
  /** Offset in the body of the first character. */
  private start: u64 = 0;
  /** Bytes of a row, as prefill's rows tell; 0: not known before the element has ended. */
  private rowBytes: u64 = 0;
  /** How many whole characters prefill's rows replace. */
  private whole: u64 = 0;
  /** How many bits of the next character they replace, and prefill's character with these bits. */
  private mixBits: i32 = 0;
  private mixWith: u8 = 0;
  /** Whether the site has been told that the array's edits are in the rope. */
  private edited: bool = false;

  get format(): Format {
    return Format.Raw;
  }

  begin(site: Site, plan: RowPlan | null, later: bool): bool {
    this.plan = plan;
    this.later = later;
    this.rowBytes = plan === null ? 0 : plan.rows.rowBytes;
    // The array of an event is held as a whole, so that it can still become `null`.
    if (site.events || this.rowBytes == 0) this.heldFrom = <i64>site.position;
    site.scanner.enterString();
    this.start = site.position;
    this.run.begin();
    this.edited = false;
    const bits: u64 = plan === null ? 0 : plan.bytes * 8;
    this.whole = bits / 6;
    this.mixBits = <i32>(bits % 6);
    if (plan === null || this.rowBytes == 0) return true;
    const chars = plan.chars(Dtype.I4, 0)!;
    begin(this.reader, examinationOf(site, this.name), this.rowBytes, this.mixBits, plan.seam, -1);
    if (this.mixBits > 0) {
      if (chars.fetch(this.whole, 1) == 0) {
        this.reason = Reason.Memory;
        return false;
      }
      this.mixWith = load<u8>(chars.ptr);
    }
    site.rope.replaceFrom(this.start, this.whole, chars, 0, this.whole);
    return true;
  }

  replacedTo(site: Site): u64 {
    return this.start + this.whole;
  }

  read(site: Site): Progress {
    const scanner = site.scanner;
    const from = this.run.chars;
    const at = scanner.cursor;
    const progress = this.run.read(scanner);
    const chars = this.run.chars;
    if (this.mixBits > 0 && from <= this.whole && this.whole < chars) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, mix(this.mixWith, load<u8>(at + <usize>(this.whole - from)), this.mixBits));
      site.rope.replaceOwned(this.start + this.whole, 1, mixed, 1);
    }
    // The rows that are decode's own begin in the character at `whole`.
    if (this.rowBytes > 0 && chars > this.whole) {
      const skipped = <usize>(max(from, this.whole) - from);
      this.reader.push(at + skipped, <usize>(chars - from) - skipped);
    }
    const prompt = this.whole + (this.mixBits > 0 ? 1 : 0);
    if (!this.edited && chars >= prompt) {
      this.edited = true;
      site.edited();
    }
    if (progress == Progress.Done) {
      const bytes = this.run.bytes;
      const rowBytes = this.rowBytes;
      if (bytes < 0 || (rowBytes > 0 && <u64>bytes % rowBytes != 0)) this.reason = Reason.Size;
      else if (chars < prompt) this.reason = Reason.Rows;
      else if (rowBytes == 0)
        site.defer(new Deferred(this.start, chars, this.run.padding, this.name, this.later));
      else {
        this.reader.end();
        this.reason = this.reader.reason;
        site.takeRaw(this.plan!.start + <u64>bytes / rowBytes);
      }
      if (this.reason != Reason.None) return this.refused(site);
      this.heldFrom = -1;
      return Progress.Done;
    }
    if (progress != Progress.Refused) return progress;
    this.reason = Reason.Base64;
    return this.refused(site);
  }

  free(): void {
    this.reader.free();
  }

  /** The array can't be merged. If it is held, its edits are taken back. */
  private refused(site: Site): Progress {
    if (!site.events) return Progress.Broken;
    if (this.edited) site.choices--;
    site.rope.forgetEdits(<u64>this.heldFrom);
    return Progress.Refused;
  }
}

/**
 * Examines a deferred array, of which is now known that it has `rows` rows, the first of them that
 * of token `firstRow`. Returns what is wrong with it.
 */
export function readRaw(site: Site, array: Deferred, rows: u64, firstRow: u64): Reason {
  const bytes = decodedLength(array.chars, array.padding);
  if (bytes < 0) return Reason.Size;
  if (rows == 0 || bytes == 0) return rows == 0 && bytes == 0 ? Reason.None : Reason.Rows;
  const rowBytes = <u64>bytes / rows;
  if (<u64>bytes % rows != 0 || rowBytes % ITEM != 0 || rowBytes > MAX_ROW_BYTES) return Reason.Rows;
  const examination = examinationOf(site, array.name);
  const misfit = examination.misfit(rowBytes / ITEM);
  if (misfit != Reason.None) return misfit;
  const reader = new RowReader();
  begin(reader, examination, rowBytes, 0, firstRow, rows);
  const whole = site.rope.feed(reader, array.at, array.chars);
  reader.end();
  const reason = whole ? reader.reason : Reason.Memory;
  reader.free();
  return reason;
}

/**
 * Merges a deferred array as `plan` (borrowed) says; `rows` is how many rows it must have, -1: not
 * known. Returns what is wrong with it, and nothing has been edited then.
 */
export function mergeRaw(site: Site, array: Deferred, plan: RowPlan, rows: i64): Reason {
  const bytes = decodedLength(array.chars, array.padding);
  const rowBytes = plan.rows.rowBytes;
  if (rowBytes == 0) return rows < 0 ? Reason.None : readRaw(site, array, <u64>rows, plan.start);
  if (bytes < 0 || <u64>bytes % rowBytes != 0) return Reason.Size;
  const has = <u64>bytes / rowBytes;
  if (has < plan.taken || (rows >= 0 && has != <u64>rows)) return Reason.Rows;
  const whole = (plan.bytes * 8) / 6;
  const mixBits = <i32>((plan.bytes * 8) % 6);
  const reader = new RowReader();
  begin(reader, examinationOf(site, array.name), rowBytes, mixBits, plan.seam, -1);
  const held = site.rope.feed(reader, array.at + whole, array.chars - whole);
  reader.end();
  const reason = held ? reader.reason : Reason.Memory;
  reader.free();
  if (reason != Reason.None) return reason;
  const chars = plan.rows.at(0)!;
  if (mixBits > 0) {
    if (chars.fetch(whole, 1) == 0) return Reason.Memory;
    const mixWith = load<u8>(chars.ptr);
    const mixed = Block.alloc(1);
    site.rope.read(array.at + whole, 1, mixed.ptr);
    store<u8>(mixed.ptr, mix(mixWith, load<u8>(mixed.ptr), mixBits));
    site.rope.replaceOwned(array.at + whole, 1, mixed, 1);
  }
  site.rope.replaceFrom(array.at, whole, chars, 0, whole);
  return Reason.None;
}

/** What judges the rows of an array of decode's. */
function examinationOf(site: Site, name: Name): Examination {
  return NAMED[name].experts ? site.examination : UNEXAMINED;
}

/** Makes a reader ready for decode's rows. The format tells neither layers nor top_k. */
function begin(
  reader: RowReader,
  examination: Examination,
  rowBytes: u64,
  lead: i32,
  firstRow: u64,
  rows: i64,
): void {
  reader.begin(examination, Leg.Decode, Dtype.I4, 0, 0, rowBytes, lead, firstRow, rows, false);
}
