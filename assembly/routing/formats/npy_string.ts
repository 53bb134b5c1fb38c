// Format A, vLLM: `choices[i].routed_experts` is base64 of a .npy file, version 1 to 3, C order.
//
// Matched: prefill's rows are the first of decode's (all rows came), or go before them (only generated rows came). Where the
// legs chose different dtypes, the rows of the narrower are widened.
// Checked: the header of both, layers and top_k the same, length of the strings, alphabet, sentinels, row counts.
//
//   Head ─┬▶ Overlay ─▶ Tail ─▶ Close     all rows came: prefill's are written over decode's; or, where decode's must be
//         │                               widened, go in their place, and the array is rewritten
//         └▶ Tail ─▶ Close                only generated rows came: prefill's go before them

import { Block, fits } from '../../bytes/block';
import { Scanner } from '../../json/scanner';
import { Examination, Leg } from '../examination';
import { ArrayClose, ArrayHead, CloseProgress, HeadProgress, stranger } from '../array_head';
import { carriers, encode, encodedLength, inAlphabet, joined, leadOf, mix, shiftLeft } from '../base64';
import { Dtype, NpyHeader, WRITTEN_HEADER_BYTES, writeHeader } from '../npy';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars, firstCarrier, rowCarriers } from '../rows';
import { Widener, commonDtype } from '../widen';
import { DecodeArray, Form, PrefillArray, Progress, Site, Wanted } from './format';

const PADDING = memory.data<u8>([0x3d, 0x3d]);
/** Characters of a piece of rows. */
const PIECE: u64 = 512 << 10;

const enum Stage {
  Head,
  Overlay,
  Tail,
  Close,
}

const enum Edit {
  /** It leaves as it came. */
  None,
  /** Prefill's rows are written over decode's. */
  Overlay,
  /** Header, prefill's rows, decode's rows from the seam on: all of it is new. */
  Rewrite,
  /** As `Rewrite`, and decode's rows are widened. */
  Widen,
}


@final
export class NpyPrefill extends PrefillArray {
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  private closing: bool = false;
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
      // Where the string ends is for the scanner to find.
      chars.free();
      return;
    }
    this.rows = PromptRows.ofNpy(header, chars);
    // The first carrier may have been read with the header.
    const known = this.head.length - firstCarrier(header);
    scanner.skip(wanted.len - known);
    scanner.pass(scanner.skipping);
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.closing = true;
  }

  giveRows(promptTokens: i64, completionTokens: i64, choices: i32): PromptRows | null {
    const rows = this.rows;
    if (this.reason == Reason.None) this.reason = this.reader.reason;
    if (rows === null || this.reason != Reason.None) return null;
    if (promptTokens >= 0 && <u64>promptTokens != rows.rows) {
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

  private askForRows(): Progress {
    const header = this.head.header;
    if (header.rows == 0) return this.refuse(Reason.Prompt);
    const misfit = this.examination.misfits(header.layers, header.topK);
    if (misfit != Reason.None) return this.refuse(misfit);
    const wanted = new Wanted();
    wanted.at = this.head.start + firstCarrier(header);
    wanted.len = rowCarriers(header);
    if (wanted.at + wanted.len > this.size) return this.refuse(Reason.Size);
    begin(this.reader, this.examination, Leg.Prefill, header, leadOf(header.size), 0, header.rows);
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


@final
export class NpyDecode extends DecodeArray {
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  private stage: Stage = Stage.Head;
  private plan: RowPlan | null = null;
  /** What becomes of the current array. */
  private edit: Edit = Edit.None;
  /** Reads decode's own rows; those before the seam are not read. */
  private reader: RowReader = new RowReader();
  private reading: bool = false;

  /** Characters not read yet, without padding. */
  private tailLeft: u64 = 0;
  /** Bits of prefill's in the first of them, when not all are; with the character that has them. */
  private mixBits: i32 = 0;
  private mixWith: u8 = 0;
  /** How far the tail moves to the left (0, 2, 4 bits), and the character before the ones to come. */
  private shift: i32 = 0;
  private carry: u8 = 0x41;
  private widener: Widener = new Widener();
  /** Characters still to be written for the tail. */
  private outLeft: u64 = 0;
  private outPadding: u64 = 0;

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
          if (this.tailLeft > 0 && scanner.rest == 0) return Progress.More;
          this.reason = this.readTail(site);
          if (this.reason != Reason.None) return Progress.Broken;
          break;
        }
        default: {
          const from = site.position;
          const progress = this.close.read(scanner);
          const passed = site.position - from;
          const rewritten = this.edit >= Edit.Rewrite;
          if (rewritten && passed > 0) site.rope.replace(from, passed, PADDING, 0);
          if (progress == CloseProgress.More) return Progress.More;
          if (progress == CloseProgress.Bad) {
            this.reason = this.close.reason;
            return Progress.Broken;
          }
          if (rewritten) site.rope.replace(site.position, 0, PADDING, this.outPadding);
          return Progress.Done;
        }
      }
    }
  }

  free(): void {
    this.head.free();
    this.reader.free();
  }

  /** The form of the array whose header was read, from what is known by now. */
  private formOf(site: Site, header: NpyHeader, plan: RowPlan): Form {
    if (site.form != Form.Unknown) return site.form;
    const held = header.rows;
    const limit = site.maxTokens;
    if (held < plan.promptEnd) return Form.Tail;
    if (limit >= 0 && held > plan.generated(max<i64>(limit, 1))) return Form.Full;
    // In a stream an event's `token_ids` are the last ones only.
    let tokens = site.events ? -1 : site.tokens;
    if (tokens <= 0 && site.choicesAsked == 1) tokens = site.counts.completion;
    if (tokens > 0) {
      if (held == plan.generated(tokens)) return Form.Tail;
      if (held == plan.end(tokens)) return Form.Full;
    }
    return Form.Unknown;
  }

  /** The header is known: checks every precondition and puts the edits that follow from it into the rope. */
  private prepare(site: Site): Reason {
    const header = this.head.header;
    this.tailLeft = carriers(header.fileBytes) - this.head.length;
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.mixBits = 0;
    this.reading = false;
    const plan = this.plan;
    if (plan === null) return this.leave(site, header);
    const rows = plan.rows;
    if (header.layers != rows.layers) return Reason.Layers;
    if (header.topK != rows.topK) return Reason.TopK;
    const form = this.formOf(site, header, plan);
    if (form == Form.Full && header.rows < plan.promptEnd) return Reason.Rows;
    site.covers(form == Form.Tail ? plan.seam : plan.start, header.rows);
    // Where the choice's tokens come before its array, a wrong count is found while nothing of the array has left.
    const counted = !site.events && site.tokens > 0 && form != Form.Unknown;
    if (counted && site.firstRow + site.rows != plan.end(site.tokens)) return Reason.Rows;
    this.edit = Edit.None;
    if (form == Form.Unknown) {
      // In a stream it can't be waited for.
      if (site.events) return Reason.Ambiguous;
      site.undecided++;
      site.undecidedRows += header.rows;
      this.stage = Stage.Tail;
      return Reason.None;
    }
    site.form = form;
    if (site.undecided > 0) {
      site.again = form;
      return Reason.None;
    }
    let reason = Reason.None;
    const dtype = commonDtype(rows.dtype, header.dtype);
    if (plan.taken == 0) {
      // Without rows of prefill's the array is decode's as it is.
      this.stage = Stage.Tail;
      this.readRows(site, header, plan.seam, header.rows);
    } else if (form == Form.Full && dtype == header.dtype) reason = this.planOverlay(site, header, plan);
    else reason = this.planRewrite(site, header, plan, form == Form.Full, dtype);
    if (reason == Reason.None) site.edited();
    return reason;
  }

  /** Decode has served the request alone: all its rows are read, and none is edited. */
  private leave(site: Site, header: NpyHeader): Reason {
    const misfit = site.examination.misfits(header.layers, header.topK);
    if (misfit != Reason.None) return misfit;
    site.covers(0, header.rows);
    this.edit = Edit.None;
    this.stage = Stage.Tail;
    this.readRows(site, header, 0, header.rows);
    site.edited();
    return Reason.None;
  }

  /** From the first row of the array on, the rows are read; the header's last character may carry bits of it. */
  private readRows(site: Site, header: NpyHeader, firstRow: u64, rows: u64): void {
    const lead = leadOf(header.size);
    this.openReader(site, header, lead, firstRow, rows);
    if (lead > 0) this.reader.push(this.head.lastCharPtr, 1);
  }

  private openReader(site: Site, header: NpyHeader, lead: i32, firstRow: u64, rows: u64): void {
    begin(this.reader, site.examination, Leg.Decode, header, lead, firstRow, rows);
    this.reading = true;
  }

  private planOverlay(site: Site, header: NpyHeader, plan: RowPlan): Reason {
    const lead = leadOf(header.size);
    const chars = plan.rows.inDtype(header.dtype, lead);
    if (chars === null) return Reason.Memory;
    const first = firstCarrier(header);
    const bits = (header.size + plan.taken * header.rowBytes) * 8;
    const whole = bits / 6;
    if (!this.mixAt(chars, whole - first, <i32>(bits % 6))) return Reason.Memory;
    this.edit = Edit.Overlay;
    const read = this.head.length;
    const start = site.base + this.head.start;
    // The character in which the rows start was read with the header when it carries bits of both.
    if (read > first) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, mix(this.head.lastChar, chars.first, lead));
      site.rope.replaceOwned(start + first, 1, mixed, 1);
    }
    const replaced = whole - read;
    site.rope.replaceFrom(start + read, replaced, chars, read - first, replaced);
    this.tailLeft -= replaced;
    site.scanner.skip(replaced);
    this.stage = Stage.Overlay;
    this.openReader(site, header, this.mixBits, plan.seam, header.rows - plan.taken);
    return Reason.None;
  }

  /** `full`: decode's array has rows before the seam, in whose place prefill's go. `dtype` is that of the new array. */
  private planRewrite(site: Site, header: NpyHeader, plan: RowPlan, full: bool, dtype: Dtype): Reason {
    const made = Block.alloc(WRITTEN_HEADER_BYTES * 3);
    const text = made.ptr + WRITTEN_HEADER_BYTES * 2;
    const kept = full ? header.rows - plan.taken : header.rows;
    const size = <u64>writeHeader(text, header, dtype, plan.taken + kept);
    const lead = leadOf(size);
    const chars = plan.rows.inDtype(dtype, lead);
    if (chars === null) {
      made.free();
      return Reason.Memory;
    }
    const rowBytes = plan.rowBytesIn(dtype);
    const bits = (size + plan.taken * rowBytes) * 8;
    const whole = bits / 6;
    const outLead = <i32>(bits % 6);
    if (!this.mixAt(chars, whole - (size * 8) / 6, outLead)) {
      made.free();
      return Reason.Memory;
    }
    const headEnd = encode(text, <usize>size, made.ptr);
    if (lead > 0) store<u8>(headEnd - 1, mix(load<u8>(headEnd - 1), chars.first, lead));
    const headChars = <u64>(headEnd - made.ptr);
    const start = site.base + this.head.start;
    const read = this.head.length;
    site.rope.replaceOwned(start, read, made, headChars);
    // Characters of decode's that have nothing but rows before the seam, and its bits of them in the next one.
    const goneBits = (header.size + (header.rows - kept) * header.rowBytes) * 8;
    const gone = full ? goneBits / 6 - read : 0;
    const inLead = <i32>(goneBits % 6);
    site.rope.replaceFrom(start + read, gone, chars, lead > 0 ? 1 : 0, whole - headChars);
    const total = size + (plan.taken + kept) * rowBytes;
    this.outLeft = carriers(total) - whole;
    this.outPadding = encodedLength(total) - carriers(total);
    site.growth += <i64>encodedLength(total) - <i64>encodedLength(header.fileBytes);
    this.stage = Stage.Tail;
    if (full) {
      this.tailLeft -= gone;
      site.scanner.skip(gone);
      this.stage = Stage.Overlay;
      this.openReader(site, header, inLead, plan.seam, kept);
    } else this.readRows(site, header, plan.seam, kept);
    if (dtype != header.dtype) this.planWidening(header, dtype, inLead, outLead, full);
    else this.planMove(site, header, inLead, outLead);
    return Reason.None;
  }

  /** Decode's rows are widened. */
  private planWidening(header: NpyHeader, dtype: Dtype, inLead: i32, outLead: i32, full: bool): void {
    this.edit = Edit.Widen;
    const before: u8 = outLead > 0 ? this.mixWith : 0x41;
    this.mixBits = 0;
    this.widener.begin(header.dtype, dtype, inLead, outLead, before);
    // Its bits of the first row are no whole byte: nothing is written yet.
    if (!full && inLead > 0) this.widener.push(this.head.lastCharPtr, 1);
  }

  /** Decode's rows, of which all came, move to another bit position. */
  private planMove(site: Site, header: NpyHeader, inLead: i32, outLead: i32): void {
    this.edit = Edit.Rewrite;
    const at = site.base + this.head.start + this.head.length;
    const by = inLead - outLead;
    this.shift = by < 0 ? by + 6 : by;
    // A move to the right begins with zero bits, one to the left with the shared character.
    this.carry = by > 0 ? this.head.lastChar : 0x41;
    if (header.rows == 0) this.endTail(site, at);
    else if (inLead > 0 && by <= 0) {
      // Without a move, or with one to the right, the shared character makes the first of the tail.
      const block = Block.alloc(1);
      const shared = this.head.lastChar;
      store<u8>(block.ptr, by == 0 ? shared : joined(this.carry, shared, this.shift));
      this.carry = shared;
      this.mixFirst(block.ptr);
      this.outLeft--;
      site.rope.replaceOwned(at, 0, block, 1);
    }
  }

  /** Bits of prefill's last row go into the first character behind it: those that its character at `at` has. */
  private mixAt(chars: RowChars, at: u64, bits: i32): bool {
    this.mixBits = bits;
    if (bits == 0) return true;
    if (chars.fetch(at, 1) == 0) return false;
    this.mixWith = load<u8>(chars.ptr);
    return true;
  }

  /** Prefill's last bits go into the first character behind its rows. */
  private mixFirst(ptr: usize): void {
    if (this.mixBits > 0) store<u8>(ptr, mix(this.mixWith, load<u8>(ptr), this.mixBits));
    this.mixBits = 0;
  }

  private readTail(site: Site): Reason {
    const scanner = site.scanner;
    const take = <usize>min<u64>(this.tailLeft, scanner.rest);
    const at = site.position;
    const ptr = scanner.cursor;
    if (!inAlphabet(ptr, ptr + take)) return stranger(scanner, take);
    if (this.reading) this.reader.push(ptr, take);
    if (take > 0 && this.edit == Edit.Overlay && this.mixBits > 0) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, load<u8>(ptr));
      this.mixFirst(mixed.ptr);
      site.rope.replaceOwned(at, 1, mixed, 1);
    } else if (take > 0 && this.edit == Edit.Rewrite && !this.moveTail(site, ptr, take, at)) {
      return Reason.Memory;
    } else if (take > 0 && this.edit == Edit.Widen && !this.widenTail(site, ptr, take, at)) {
      return Reason.Memory;
    }
    scanner.skip(take);
    this.tailLeft -= take;
    if (this.tailLeft == 0 && this.reading) this.reader.end();
    if (this.reading && this.reader.reason != Reason.None) return this.reader.reason;
    if (this.tailLeft > 0) return Reason.None;
    if (this.edit >= Edit.Rewrite) this.endTail(site, site.position);
    else this.stage = Stage.Close;
    return Reason.None;
  }

  /** Re-encodes `take` characters of the tail at their new bit position. */
  private moveTail(site: Site, ptr: usize, take: usize, at: u64): bool {
    if (this.shift == 0 && this.mixBits == 0) {
      this.outLeft -= take;
      return true;
    }
    if (!fits(take)) return false;
    const block = Block.alloc(take);
    const out = block.ptr;
    if (this.shift == 0) memory.copy(out, ptr, take);
    else {
      store<u8>(out, joined(this.carry, load<u8>(ptr), this.shift));
      shiftLeft(out + 1, ptr, take - 1, this.shift);
      this.carry = load<u8>(ptr + take - 1);
    }
    this.mixFirst(out);
    this.outLeft -= take;
    site.rope.replaceOwned(at, take, block, take);
    return true;
  }

  /** Widens `take` characters of the tail. */
  private widenTail(site: Site, ptr: usize, take: usize, at: u64): bool {
    const len = this.widener.lengthOf(take);
    if (!fits(len)) return false;
    if (len == 0) {
      this.widener.push(ptr, take);
      site.rope.replace(at, take, PADDING, 0);
      return true;
    }
    const block = Block.alloc(<usize>len);
    this.widener.out = block.ptr;
    this.widener.push(ptr, take);
    this.outLeft -= len;
    site.rope.replaceOwned(at, take, block, len);
    return true;
  }

  /** All characters of the tail have come: what is left of them is written. */
  private endTail(site: Site, at: u64): void {
    this.stage = Stage.Close;
    if (this.outLeft == 0) return;
    const block = Block.alloc(1);
    if (this.edit == Edit.Widen) {
      this.widener.out = block.ptr;
      this.widener.end();
    } else {
      store<u8>(block.ptr, this.shift == 0 ? 0x41 : joined(this.carry, 0x41, this.shift));
      this.mixFirst(block.ptr);
    }
    site.rope.replaceOwned(at, 0, block, 1);
    this.outLeft = 0;
  }
}

/** Ready for the rows of an array with this header, the first of them that of token `firstRow`. */
function begin(
  reader: RowReader,
  examination: Examination,
  leg: Leg,
  header: NpyHeader,
  lead: i32,
  firstRow: u64,
  rows: i64,
): void {
  const sentinels = leg == Leg.Prefill;
  reader.begin(
    examination,
    leg,
    header.dtype,
    header.layers,
    header.topK,
    header.rowBytes,
    lead,
    firstRow,
    rows,
    sentinels,
  );
}
