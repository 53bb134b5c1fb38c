// Format A, vLLM: `choices[i].routed_experts` is base64 of a .npy file, version 1 to 3, C order.
//
// Matched: prefill's rows are the first of decode's, or go before them (only generated rows came).
// Rows before those that the client asked for are dropped. Where the legs chose different dtypes,
// the rows of the narrower one are widened.
// Checked: the header of both, the same layers and top_k, the length of the strings, their
// alphabet, sentinels, the number of rows.
//
//   Head ─┬▶ Overlay ─▶ Tail ─▶ Close   prefill's rows are written over decode's; where decode's
//         │                             must be widened, the whole array is written anew
//         ├▶ Dropped ─▶ Tail ─▶ Close   decode's rows begin before those that were asked for
//         └▶ Tail ─▶ Close              only generated rows came: prefill's go before them

import { Block } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { Examination, Leg } from '../examination';
import { ArrayClose, ArrayHead, CloseProgress, HeadProgress } from '../array_head';
import { carriers, encode, encodedLength, leadOf, mix } from '../base64';
import { Dtype, NpyHeader, WRITTEN_HEADER_BYTES, writeHeader } from '../npy';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { Form, RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { HeldChars, PromptRows, RowChars, firstCarrier, rowCarriers } from '../rows';
import { commonDtype } from '../widen';
import { DecodeArray, PrefillArray, Progress, Site, Wanted, firstTokenOf } from './format';
import { NpyTail, beginRows } from './npy_tail';

/** Characters of a piece of prefill's rows, as they are fetched and kept. */
const PIECE: u64 = 512 << 10;


@final
export class NpyPrefill extends PrefillArray {
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  /** Whether the rows have been taken, and the end of the string is read. */
  private closing: bool = false;
  /** The characters of the rows (owned until they are given). */
  private chars: RowChars | null = null;
  private readonly reader: RowReader = new RowReader();

  /**
   * `size`: bytes of the whole reply; `start`: the first token whose row was asked for;
   * `examination` is borrowed.
   */
  constructor(
    private size: u64,
    private start: u64,
    private examination: Examination,
  ) {
    super();
  }

  get format(): Format {
    return Format.Npy;
  }

  begin(scanner: Scanner): bool {
    scanner.enterString();
    this.head.begin(scanner);
    return true;
  }

  read(scanner: Scanner): Progress {
    if (this.closing) {
      const progress = this.close.read(scanner);
      if (progress == CloseProgress.More) return Progress.More;
      if (progress == CloseProgress.Ready) return Progress.Done;
      return this.refuse(this.close.reason);
    }
    const progress = this.head.read(scanner);
    if (progress == HeadProgress.More) return Progress.More;
    if (progress == HeadProgress.Bad) return this.refuse(this.head.reason);
    return this.askForRows(scanner);
  }

  take(scanner: Scanner, chars: RowChars, reason: Reason): void {
    const header = this.head.header;
    const wanted = this.wanted!;
    this.wanted = null;
    this.reason = reason;
    if (reason == Reason.Base64 || reason == Reason.Size) {
      // The scanner finds where the string ends.
      chars.free();
      return;
    }
    // The first of the characters may have been read with the header.
    const known = this.head.length - firstCarrier(header);
    scanner.skip(wanted.len - known);
    scanner.pass(scanner.skipping);
    this.keep(chars);
  }

  /** Keeps the characters of the rows (taken over). The end of the string comes next. */
  private keep(chars: RowChars): void {
    const header = this.head.header;
    this.chars = chars;
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.closing = true;
  }

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32, mayLackLast: bool): PromptRows | null {
    const chars = this.chars;
    const header = this.head.header;
    const first = firstTokenOf(header.rows, this.start, promptTokens, mayLackLast);
    this.examination.prefillStart = max<i64>(first, 0);
    if (this.reason == Reason.None) this.reason = this.reader.reason;
    if (chars === null || this.reason != Reason.None) return null;
    if (promptTokens < 0 && this.start > 0) this.reason = Reason.Ambiguous;
    else if (first < 0) this.reason = Reason.Prompt;
    if (this.reason != Reason.None) return null;
    this.chars = null;
    return PromptRows.ofNpy(header, chars, first);
  }

  free(): void {
    this.head.free();
    this.reader.free();
    const chars = this.chars;
    if (chars !== null) chars.free();
    this.chars = null;
  }

  /** The header is known: says which characters the caller is to fetch. */
  private askForRows(scanner: Scanner): Progress {
    const header = this.head.header;
    if (header.rows == 0 && this.start == 0) return this.refuse(Reason.Prompt);
    const misfit = this.examination.misfits(header.layers, header.topK);
    if (misfit != Reason.None) return this.refuse(misfit);
    if (header.rows == 0) {
      // Rows were asked for from behind the prompt on.
      this.keep(new HeldChars(1));
      return this.read(scanner);
    }
    const wanted = new Wanted();
    wanted.at = this.head.start + firstCarrier(header);
    wanted.len = rowCarriers(header);
    if (wanted.at + wanted.len > this.size) return this.refuse(Reason.Size);
    beginRows(this.reader, this.examination, Leg.Prefill, header, leadOf(header.size), 0, header.rows);
    wanted.reader = this.reader;
    wanted.pieceLen = PIECE;
    this.wanted = wanted;
    return Progress.Done;
  }

  private refuse(reason: Reason): Progress {
    this.reason = reason;
    return Progress.Refused;
  }
}

const enum Stage {
  /** The header. */
  Head,
  /** Characters that prefill's rows replace, one by one. */
  Overlay,
  /** Characters of rows before the seam, most of which go without anything in their place. */
  Dropped,
  /** The rows behind them, see `NpyTail`. */
  Tail,
  /** Padding and the closing quote. */
  Close,
}


@final
export class NpyDecode extends DecodeArray {
  private head: ArrayHead = new ArrayHead();
  private tail: NpyTail = new NpyTail();
  private close: ArrayClose = new ArrayClose();
  private stage: Stage = Stage.Head;
  private plan: RowPlan | null = null;

  get format(): Format {
    return Format.Npy;
  }

  begin(site: Site, plan: RowPlan | null, later: bool): bool {
    this.plan = plan;
    this.heldFrom = <i64>site.position;
    site.scanner.enterString();
    this.head.begin(site.scanner);
    this.stage = Stage.Head;
    return true;
  }

  replacedAhead(site: Site): u64 {
    return this.stage == Stage.Overlay ? site.scanner.skipping : 0;
  }

  get paddingAhead(): u64 {
    return this.stage == Stage.Tail || this.stage == Stage.Close ? this.close.padding : 0;
  }

  read(site: Site): Progress {
    const scanner = site.scanner;
    while (true) {
      switch (this.stage) {
        case Stage.Head: {
          const progress = this.head.read(scanner);
          if (progress == HeadProgress.More) return Progress.More;
          this.reason = progress == HeadProgress.Bad ? this.head.reason : this.prepare(site);
          if (this.reason != Reason.None) return Progress.Refused;
          this.heldFrom = -1;
          if (site.again != Form.Unknown) return Progress.More;
          break;
        }
        case Stage.Overlay:
        case Stage.Dropped: {
          if (!scanner.resume()) return Progress.More;
          this.stage = Stage.Tail;
          break;
        }
        case Stage.Tail: {
          const tail = this.tail;
          if (tail.left > 0 && scanner.rest == 0) return Progress.More;
          this.reason = tail.read(site);
          if (this.reason != Reason.None) return Progress.Broken;
          if (tail.left == 0) this.stage = Stage.Close;
          break;
        }
        default:
          return this.readClose(site);
      }
    }
  }

  free(): void {
    this.head.free();
    this.tail.free();
  }

  /** Reads the end of the string. Where the array is written anew, its padding is, too. */
  private readClose(site: Site): Progress {
    const from = site.position;
    const progress = this.close.read(site.scanner);
    const rewritten = this.tail.isRewritten;
    if (rewritten) this.tail.dropPadding(site, from, site.position - from);
    if (progress == CloseProgress.More) return Progress.More;
    if (progress == CloseProgress.Bad) {
      this.reason = this.close.reason;
      return Progress.Broken;
    }
    if (rewritten) this.tail.writePadding(site);
    return Progress.Done;
  }

  /** The header is known: checks every precondition, and puts edits into the rope. */
  private prepare(site: Site): Reason {
    const header = this.head.header;
    this.stage = Stage.Tail;
    this.tail.begin(carriers(header.fileBytes) - this.head.length);
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    const plan = this.plan;
    if (plan === null) return this.leave(site, header);
    const rows = plan.rows;
    if (header.layers != rows.layers) return Reason.Layers;
    if (header.topK != rows.topK) return Reason.TopK;
    const form = this.formOf(site, header, plan);
    const first = form == Form.Full ? 0 : plan.asked(site.tail);
    const least = max(plan.promptEnd, plan.seam);
    if (form != Form.Unknown && first + header.rows < least) return Reason.Rows;
    site.covers(first, header.rows);
    // Where the choice's tokens come before its array, a wrong count is found while nothing of the
    // array has left.
    const counted = site.tokens > 0 && form != Form.Unknown;
    if (counted && first + header.rows != plan.end(site.tokens)) return Reason.Rows;
    if (form == Form.Unknown) {
      // In a stream the end of the document can't be waited for.
      if (site.events) return Reason.Ambiguous;
      site.undecided++;
      site.undecidedRows += header.rows;
      return Reason.None;
    }
    site.form = form;
    if (site.undecided > 0) {
      site.again = form;
      return Reason.None;
    }
    const reason = this.edit(site, header, plan, form);
    if (reason == Reason.None) site.edited();
    return reason;
  }

  /** The form of the array whose header was read, from what is known by now. */
  private formOf(site: Site, header: NpyHeader, plan: RowPlan): Form {
    if (site.form != Form.Unknown) return site.form;
    const asked = plan.asked(site.tail);
    if (asked == 0) return Form.Full;
    const held = header.rows;
    const limit = site.maxTokens;
    if (held < plan.promptEnd) return Form.Asked;
    if (limit >= 0 && asked + held > plan.end(max<i64>(limit, 1))) return Form.Full;
    let tokens = site.tokens;
    if (tokens <= 0 && site.choicesAsked == 1) tokens = site.counts.completion;
    if (tokens > 0) {
      if (asked + held == plan.end(tokens)) return Form.Asked;
      if (held == plan.end(tokens)) return Form.Full;
    }
    return Form.Unknown;
  }

  /** No rows of prefill's are merged with the array. Its own are examined, and stay. */
  private leave(site: Site, header: NpyHeader): Reason {
    const misfit = site.examination.misfits(header.layers, header.topK);
    if (misfit != Reason.None) return misfit;
    site.covers(0, header.rows);
    this.examineAll(site, header, 0, header.rows);
    site.edited();
    return Reason.None;
  }

  /** All rows of the array are examined. */
  private examineAll(site: Site, header: NpyHeader, firstRow: u64, rows: u64): void {
    this.tail.examine(site, header, leadOf(header.size), firstRow, rows, this.head.shared);
  }

  /** Plans the edits of an array whose form is known. */
  private edit(site: Site, header: NpyHeader, plan: RowPlan, form: Form): Reason {
    const first = form == Form.Full ? 0 : plan.asked(site.tail);
    const taken = plan.taken;
    if (first == plan.start && taken == 0) {
      // The array is the merged one, without rows of prefill's.
      this.examineAll(site, header, plan.seam, header.rows);
      return Reason.None;
    }
    const dtype = taken == 0 ? header.dtype : commonDtype(plan.rows.dtype, header.dtype);
    if (first == plan.start && dtype == header.dtype) return this.planOverlay(site, header, plan);
    return this.planRewrite(site, header, plan, plan.seam - first, dtype);
  }

  /** Prefill's rows are written over decode's, which has the same dtype and begins with `start`. */
  private planOverlay(site: Site, header: NpyHeader, plan: RowPlan): Reason {
    const lead = leadOf(header.size);
    const chars = plan.chars(header.dtype, lead);
    if (chars === null) return Reason.Memory;
    const tail = this.tail;
    const first = firstCarrier(header);
    const bits = (header.size + plan.taken * header.rowBytes) * 8;
    const whole = bits / 6;
    const outLead = <i32>(bits % 6);
    if (!tail.mixAt(chars, whole - first, outLead)) return Reason.Memory;
    const read = this.head.length;
    const start = site.base + this.head.start;
    // The character in which the rows start was read with the header when it has bits of both.
    if (read > first) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, mix(this.head.lastChar, chars.first, lead));
      site.rope.replaceOwned(start + first, 1, mixed, 1);
    }
    const replaced = whole - read;
    site.rope.replaceFrom(start + read, replaced, chars, read - first, replaced);
    this.skip(site, replaced, Stage.Overlay);
    tail.examine(site, header, outLead, plan.seam, header.rows - plan.taken, 0);
    return Reason.None;
  }

  /** The next `n` characters have nothing but rows before the seam, and are not looked at. */
  private skip(site: Site, n: u64, stage: Stage): void {
    this.tail.left -= n;
    site.scanner.skip(n);
    this.stage = stage;
  }

  /**
   * The array is written anew in `dtype`: a header, prefill's rows, and decode's from the seam on.
   * `gone`: how many rows decode's array has before the seam.
   */
  private planRewrite(site: Site, header: NpyHeader, plan: RowPlan, gone: u64, dtype: Dtype): Reason {
    const tail = this.tail;
    const kept = header.rows - gone;
    const made = Block.alloc(WRITTEN_HEADER_BYTES * 3);
    const text = made.ptr + WRITTEN_HEADER_BYTES * 2;
    const size = <u64>writeHeader(text, header, dtype, plan.taken + kept);
    let headChars = <u64>(encode(text, <usize>size, made.ptr) - made.ptr);
    const start = site.base + this.head.start;
    const read = this.head.length;
    const bits = (size + plan.taken * plan.rowBytesIn(dtype)) * 8;
    const whole = bits / 6;
    const outLead = <i32>(bits % 6);
    const lead = leadOf(size);
    let chars: RowChars | null = null;
    if (plan.taken > 0) {
      chars = plan.chars(dtype, lead);
      if (chars === null || !tail.mixAt(chars, whole - (size * 8) / 6, outLead)) {
        made.free();
        return Reason.Memory;
      }
      const last = made.ptr + <usize>headChars - 1;
      if (lead > 0) store<u8>(last, mix(load<u8>(last), chars.first, lead));
    } else if (lead > 0) {
      // The header's last character has bits of the first of decode's rows.
      headChars--;
      tail.mixBits(load<u8>(made.ptr + <usize>headChars), lead);
    }
    site.rope.replaceOwned(start, read, made, headChars);
    // Characters of decode's that have nothing but rows before the seam, and its bits of these rows
    // in the next character.
    const goneBits = (header.size + gone * header.rowBytes) * 8;
    const skipped = gone > 0 ? goneBits / 6 - read : 0;
    const inLead = <i32>(goneBits % 6);
    if (chars !== null) {
      site.rope.replaceFrom(start + read, skipped, chars, lead > 0 ? 1 : 0, whole - headChars);
    } else site.rope.replace(start + read, skipped, made.ptr, 0);
    const total = size + (plan.taken + kept) * plan.rowBytesIn(dtype);
    tail.rewrite(carriers(total) - whole, encodedLength(total) - carriers(total));
    site.growth += <i64>encodedLength(total) - <i64>encodedLength(header.fileBytes);
    // Rows that are dropped are not all replaced, so their bytes must come all the same.
    if (gone > 0) this.skip(site, skipped, skipped <= whole - headChars ? Stage.Overlay : Stage.Dropped);
    const shared: usize = gone > 0 ? 0 : this.head.shared;
    tail.examine(site, header, inLead, plan.seam, kept, shared);
    if (dtype != header.dtype) tail.widen(header.dtype, dtype, inLead, outLead, shared);
    else if (gone > 0) tail.cut(inLead, outLead);
    else tail.move(site, start + read, inLead, outLead, this.head.lastChar, header.rows);
    return Reason.None;
  }
}
