// Format A, vLLM: `choices[i].routed_experts` is base64 of a .npy file, version 1 to 3, C order.
//
// Matched: prefill's rows are the first of decode's (all rows came), or go before them (only
// generated rows came). Where the legs chose different dtypes, the rows of the narrower one are
// widened.
// Checked: the header of both, the same layers and top_k, the length of the strings, their
// alphabet, sentinels, the number of rows.
//
//   Head ─┬▶ Overlay ─▶ Tail ─▶ Close   all rows came: prefill's are written over decode's; where
//         │                             decode's must be widened, the whole array is written anew
//         └▶ Tail ─▶ Close              only generated rows came: prefill's go before them

import { Block } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { Examination, Leg } from '../examination';
import { ArrayClose, ArrayHead, CloseProgress, HeadProgress } from '../array_head';
import { carriers, encode, encodedLength, leadOf, mix } from '../base64';
import { Dtype, NpyHeader, WRITTEN_HEADER_BYTES, writeHeader } from '../npy';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars, firstCarrier, rowCarriers } from '../rows';
import { commonDtype } from '../widen';
import { DecodeArray, Form, PrefillArray, Progress, Site, Wanted, endsPrompt } from './format';
import { NpyTail, beginRows } from './npy_tail';

/** Characters of a piece of prefill's rows, as they are fetched and kept. */
const PIECE: u64 = 512 << 10;


@final
export class NpyPrefill extends PrefillArray {
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  /** Whether the rows have been taken, and the end of the string is read. */
  private closing: bool = false;
  /** The rows (owned until they are given). */
  private rows: PromptRows | null = null;
  private readonly reader: RowReader = new RowReader();

  /** `size`: bytes of the whole reply; `examination` is borrowed. */
  constructor(
    private size: u64,
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
    return progress == HeadProgress.Bad ? this.refuse(this.head.reason) : this.askForRows();
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
    this.rows = PromptRows.ofNpy(header, chars);
    // The first of the characters may have been read with the header.
    const known = this.head.length - firstCarrier(header);
    scanner.skip(wanted.len - known);
    scanner.pass(scanner.skipping);
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.closing = true;
  }

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32, mayLackLast: bool): PromptRows | null {
    const rows = this.rows;
    if (this.reason == Reason.None) this.reason = this.reader.reason;
    if (rows === null || this.reason != Reason.None) return null;
    if (!endsPrompt(rows.rows, promptTokens, mayLackLast)) {
      this.reason = Reason.Prompt;
      return null;
    }
    this.rows = null;
    return rows;
  }

  free(): void {
    this.head.free();
    this.reader.free();
    const rows = this.rows;
    if (rows !== null) rows.free();
    this.rows = null;
  }

  /** The header is known: says which characters the caller is to fetch. */
  private askForRows(): Progress {
    const header = this.head.header;
    if (header.rows == 0) return this.refuse(Reason.Prompt);
    const misfit = this.examination.misfits(header.layers, header.topK);
    if (misfit != Reason.None) return this.refuse(misfit);
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
  /** Characters that prefill's rows replace. */
  Overlay,
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

  begin(site: Site, plan: RowPlan | null): bool {
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
        case Stage.Overlay: {
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
    if (form == Form.Full && header.rows < plan.promptEnd) return Reason.Rows;
    site.covers(form == Form.Tail ? plan.seam : plan.start, header.rows);
    // Where the choice's tokens come before its array, a wrong count is found while nothing of the
    // array has left.
    const counted = !site.events && site.tokens > 0 && form != Form.Unknown;
    if (counted && site.firstRow + site.rows != plan.end(site.tokens)) return Reason.Rows;
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
    // Where no row is prefill's, all rows are the generated ones.
    if (plan.taken == 0) return Form.Full;
    const held = header.rows;
    const limit = site.maxTokens;
    if (held < plan.promptEnd) return Form.Tail;
    if (limit >= 0 && held > plan.generated(max<i64>(limit, 1))) return Form.Full;
    // In a stream an event's `token_ids` are only those of the event.
    let tokens = site.events ? -1 : site.tokens;
    if (tokens <= 0 && site.choicesAsked == 1) tokens = site.counts.completion;
    if (tokens > 0) {
      if (held == plan.generated(tokens)) return Form.Tail;
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
    if (plan.taken == 0) {
      // Without rows of prefill's the array is decode's as it is.
      this.examineAll(site, header, plan.seam, header.rows);
      return Reason.None;
    }
    const full = form == Form.Full;
    const dtype = commonDtype(plan.rows.dtype, header.dtype);
    if (full && dtype == header.dtype) return this.planOverlay(site, header, plan);
    return this.planRewrite(site, header, plan, full, dtype);
  }

  /** Prefill's rows are written over decode's, which has the same dtype and all rows. */
  private planOverlay(site: Site, header: NpyHeader, plan: RowPlan): Reason {
    const lead = leadOf(header.size);
    const chars = plan.rows.inDtype(header.dtype, lead);
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
    tail.left -= replaced;
    site.scanner.skip(replaced);
    this.stage = Stage.Overlay;
    tail.examine(site, header, outLead, plan.seam, header.rows - plan.taken, 0);
    return Reason.None;
  }

  /**
   * The array is written anew in `dtype`: a header, prefill's rows, and decode's from the seam on.
   * `full`: decode's array has rows before the seam, in whose place prefill's go.
   */
  private planRewrite(site: Site, header: NpyHeader, plan: RowPlan, full: bool, dtype: Dtype): Reason {
    const tail = this.tail;
    const kept = full ? header.rows - plan.taken : header.rows;
    const made = Block.alloc(WRITTEN_HEADER_BYTES * 3);
    const text = made.ptr + WRITTEN_HEADER_BYTES * 2;
    const size = <u64>writeHeader(text, header, dtype, plan.taken + kept);
    const rowBytes = plan.rowBytesIn(dtype);
    const bits = (size + plan.taken * rowBytes) * 8;
    const whole = bits / 6;
    const outLead = <i32>(bits % 6);
    const lead = leadOf(size);
    const chars = plan.rows.inDtype(dtype, lead);
    if (chars === null || !tail.mixAt(chars, whole - (size * 8) / 6, outLead)) {
      made.free();
      return Reason.Memory;
    }
    const headEnd = encode(text, <usize>size, made.ptr);
    if (lead > 0) store<u8>(headEnd - 1, mix(load<u8>(headEnd - 1), chars.first, lead));
    const headChars = <u64>(headEnd - made.ptr);
    const start = site.base + this.head.start;
    const read = this.head.length;
    site.rope.replaceOwned(start, read, made, headChars);
    // Characters of decode's that have nothing but rows before the seam, and its bits of these rows
    // in the next character.
    const goneBits = (header.size + (header.rows - kept) * header.rowBytes) * 8;
    const gone = full ? goneBits / 6 - read : 0;
    const inLead = <i32>(goneBits % 6);
    site.rope.replaceFrom(start + read, gone, chars, lead > 0 ? 1 : 0, whole - headChars);
    const total = size + (plan.taken + kept) * rowBytes;
    tail.rewrite(carriers(total) - whole, encodedLength(total) - carriers(total));
    site.growth += <i64>encodedLength(total) - <i64>encodedLength(header.fileBytes);
    if (full) {
      tail.left -= gone;
      site.scanner.skip(gone);
      this.stage = Stage.Overlay;
    }
    const shared: usize = full ? 0 : this.head.shared;
    tail.examine(site, header, inLead, plan.seam, kept, shared);
    if (dtype != header.dtype) tail.widen(header.dtype, dtype, inLead, outLead, shared);
    else tail.move(site, start + read, inLead, outLead, this.head.lastChar, header.rows);
    return Reason.None;
  }
}
