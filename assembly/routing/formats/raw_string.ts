// Format D, SGLang: `meta_info.routed_experts` or `sglext.routed_experts` is base64 of little-endian int32 without a header,
// (rows, layers, top_k) in C order; a reply may be a list of such elements.
//
// Matched: prefill's prompt rows are the first of decode's, element by element.
// Checked: the row's size, which follows from prefill's token counts, divides both; decode has as many rows as tokens less
// one, at least those of the prompt; alphabet and padding; sentinels.

import { Block } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { mix } from '../base64';
import { Examination, Leg } from '../examination';
import { Dtype, MAX_ROW_BYTES } from '../npy';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars } from '../rows';
import { DecodeArray, Deferred, PrefillArray, Progress, Site, Wanted, decodedLength } from './format';
import { Run } from './run';

const ITEM: u64 = 4;


@final
export class RawPrefill extends PrefillArray {
  private run: Run = new Run();
  private chars: RowChars | null = null;
  private asked: bool = false;

  /** `start`: the first token whose row was asked for; `examination` is borrowed. */
  constructor(
    private start: u64,
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

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32): PromptRows | null {
    const chars = this.chars;
    if (chars === null || this.reason != Reason.None) return null;
    const bytes = this.run.bytes;
    const start = <i64>this.start;
    // The array is the first choice's: of several, only where each has the one token of a prefill is its length known.
    const uneven = choices > 1 && completionTokens >= 0 && completionTokens != choices;
    const generated = choices > 1 ? 0 : max<i64>(completionTokens, 1) - 1;
    // Asked from behind the prompt on, an engine has no row of it to send.
    const held = max<i64>(promptTokens - start + generated, 0);
    if (bytes < 0 || uneven) this.reason = Reason.Size;
    else if (promptTokens < 0 || (bytes == 0) != (held == 0)) this.reason = Reason.Prompt;
    else if (held > 0 && (bytes % held != 0 || (bytes / held) % ITEM != 0)) this.reason = Reason.Size;
    if (this.reason != Reason.None) return null;
    const count = max<i64>(promptTokens - start, 0);
    const rows = new PromptRows(chars, 0, start, count, Dtype.I4, 0, 0, held > 0 ? bytes / held : 0);
    if (rows.rows > 0) this.reason = rows.read(this.examination);
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
  private run: Run = new Run();
  private plan: RowPlan | null = null;
  private readonly reader: RowReader = new RowReader();
  private start: u64 = 0;
  /** Bytes of a row, as prefill's rows tell; 0: they are known when the element has ended, and the array is read then. */
  private rowBytes: u64 = 0;
  /** Characters that are prefill's as a whole, bits of the next one that are, and prefill's character for these. */
  private whole: u64 = 0;
  private mixBits: i32 = 0;
  private mixWith: u8 = 0;
  private edited: bool = false;

  get format(): Format {
    return Format.Raw;
  }

  begin(site: Site, plan: RowPlan | null): bool {
    this.plan = plan;
    this.rowBytes = plan === null ? 0 : plan.rows.rowBytes;
    // An event's array is all or nothing.
    if (site.events || this.rowBytes == 0) this.heldFrom = <i64>site.position;
    site.scanner.enterString();
    this.start = site.position;
    this.run.begin();
    this.edited = false;
    const bits: u64 = plan === null ? 0 : plan.bytes * 8;
    this.whole = bits / 6;
    this.mixBits = <i32>(bits % 6);
    if (plan === null || this.rowBytes == 0) return true;
    const chars = plan.rows.at(0)!;
    begin(this.reader, site.examination, this.rowBytes, this.mixBits, plan.seam, -1);
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
    // Decode's own rows begin in the character at `whole`.
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
      else if (rowBytes == 0) site.defer(this.start, chars);
      else {
        this.reader.end();
        this.reason = this.reader.reason;
        site.takeRaw(<u64>bytes / rowBytes);
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

  private refused(site: Site): Progress {
    if (!site.events) return Progress.Broken;
    if (this.edited) site.choices--;
    site.rope.forgetEdits(<u64>this.heldFrom);
    return Progress.Refused;
  }
}

/** Reads an array in the body of which only now is known that it has `rows` rows, the first one that of token `firstRow`. */
export function readRaw(site: Site, array: Deferred, rows: u64, firstRow: u64): Reason {
  const bytes = decodedLength(array.chars, array.chars % 4 == 0 ? 0 : 4 - (array.chars % 4));
  if (bytes < 0) return Reason.Size;
  if (rows == 0 || bytes == 0) return rows == 0 && bytes == 0 ? Reason.None : Reason.Rows;
  const rowBytes = <u64>bytes / rows;
  if (<u64>bytes % rows != 0 || rowBytes % ITEM != 0 || rowBytes > MAX_ROW_BYTES) return Reason.Rows;
  const misfit = site.examination.misfit(rowBytes / ITEM);
  if (misfit != Reason.None) return misfit;
  const reader = new RowReader();
  begin(reader, site.examination, rowBytes, 0, firstRow, rows);
  const whole = site.rope.feed(reader, array.at, array.chars);
  reader.end();
  const reason = whole ? reader.reason : Reason.Memory;
  reader.free();
  return reason;
}

/** The format tells neither layers nor top_k. */
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
