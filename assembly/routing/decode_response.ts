// Reads decode's response as it passes and says how its arrays are to be edited. It holds no body bytes: edits go into
// the caller's rope, and `settled` says how far the body may leave.
//
//   Scan ─▶ Head ─┬▶ Overlay ─▶ Tail ─▶ Close ─▶ Scan      all rows came: prefill's are written over decode's
//                 └▶ Tail ─▶ Close ─▶ Scan                  only generated rows came: prefill's go before them
//   Scan ─▶ Drop ─▶ Scan                                    the value becomes null

import { Block, fits } from '../bytes/block';
import { Rope } from '../bytes/rope';
import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';
import { ArrayClose, ArrayHead, CloseProgress, HeadProgress, stranger } from './array_head';
import { carriers, encode, encodedLength, inAlphabet, joined, leadOf, mix, shiftLeft } from './base64';
import { NpyHeader, WRITTEN_HEADER_BYTES, writeHeader } from './npy';
import { Reason } from './reason';
import { PromptRows, firstCarrier } from './rows';

/** Which rows decode's arrays hold. */
export const enum Form {
  Unknown,
  /** All rows: prompt and generated. */
  Full,
  /** The generated rows only. */
  Tail,
}

/** What becomes of the arrays. */
export const enum Treatment {
  Merge,
  /** Every array becomes `null`. */
  Null,
  /** An array that can't be merged becomes `null` if nothing of it has left; for streams, where nothing can be read twice. */
  MergeOrNull,
}

/** What is known before the response comes. */
@final
export class Expected {
  /** Prefill's rows (borrowed); null when there are none, and then `missing` says why. */
  rows: PromptRows | null = null;
  missing: Reason = Reason.Missing;
  /** Decode was asked for the generated rows only. */
  tail: bool = false;
  /** Choices asked for. */
  choices: i32 = 1;
  /** Most tokens a choice can have; -1 when not known. */
  maxTokens: i64 = -1;
}

const enum Id {
  Root,
  Choices,
  Choice,
  RoutedExperts,
  TokenIds,
  OtherFormat,
  Usage,
  PromptTokens,
  CompletionTokens,
}

let paths: Paths | null = null;

function responsePaths(): Paths {
  let known = paths;
  if (known === null) {
    known = new Paths()
      .add('', Id.Root)
      .add('choices', Id.Choices)
      .add('choices.*', Id.Choice)
      .add('choices.*.routed_experts', Id.RoutedExperts)
      .add('choices.*.token_ids', Id.TokenIds)
      .add('choices.*.prompt_routed_experts', Id.OtherFormat)
      .add('choices.*.meta_info.routed_experts', Id.OtherFormat)
      .add('choices.*.sglext.routed_experts', Id.OtherFormat)
      .add('prompt_routed_experts', Id.OtherFormat)
      .add('meta_info.routed_experts', Id.OtherFormat)
      .add('sglext.routed_experts', Id.OtherFormat)
      .add('usage', Id.Usage)
      .add('usage.prompt_tokens', Id.PromptTokens)
      .add('usage.completion_tokens', Id.CompletionTokens);
    paths = known;
  }
  return known;
}

const NULL_TEXT = memory.data<u8>([0x6e, 0x75, 0x6c, 0x6c]);
const PADDING = memory.data<u8>([0x3d, 0x3d]);

const enum Stage {
  Scan,
  Head,
  Overlay,
  Tail,
  Close,
  Drop,
}


@final
export class DecodeResponse {
  /** Why the merge failed; nothing more is read then. */
  reason: Reason = Reason.None;
  /** Why arrays became `null` (`MergeOrNull`). */
  nulled: Reason = Reason.None;
  /** The first array's preconditions all hold, and its edits are in the rope. */
  planned: bool = false;
  /** Arrays edited so far. */
  choices: i32 = 0;
  /** The document has ended. */
  complete: bool = false;
  /** Form in which a second reading must start (`restart`): only at the end was it known which rows came. */
  again: Form = Form.Unknown;
  /** By how many bytes the edits planned so far make the body longer. */
  growth: i64 = 0;
  /** The body may leave up to this offset. */
  settled: u64 = 0;

  private scanner: Scanner = Scanner.take(responsePaths());
  private head: ArrayHead = new ArrayHead();
  private close: ArrayClose = new ArrayClose();
  private stage: Stage = Stage.Scan;
  /** Offset of the scanned document in the body: events of a stream are documents of their own. */
  private base: u64 = 0;

  private choicesSeen: i32 = 0;
  private arrays: i32 = 0;
  private arraysInChoice: i32 = 0;
  /** Tokens of the choice that is being read, as `token_ids` lists them; -1 when it has not. */
  private tokens: i64 = -1;
  private promptTokens: i64 = -1;
  private completionTokens: i64 = -1;
  /** Arrays whose form was not known when they came, and the rows in them. */
  private undecided: i32 = 0;
  private undecidedRows: u64 = 0;

  /** Choices of the document, its arrays of generated rows only, and the rows in them. */
  private choicesInDocument: i32 = 0;
  private tails: i32 = 0;
  private tailRows: u64 = 0;

  /** Characters of the current array not read yet, without padding. */
  private tailLeft: u64 = 0;
  /** Bits of prefill's in the first of them, when not all are; with the character that has them. */
  private mixBits: i32 = 0;
  private mixWith: u8 = 0;
  /** How far the current tail moves to the left (0, 2, 4 bits), and the character before the ones to come. */
  private shift: i32 = 0;
  private carry: u8 = 0x41;
  /** Characters still to be written for the current tail. */
  private outLeft: u64 = 0;
  private outPadding: u64 = 0;
  /** The current array is rewritten (`Form.Tail`), overlaid (`Form.Full`) or only checked (`Form.Unknown`). */
  private current: Form = Form.Unknown;
  private dropFrom: u64 = 0;

  constructor(
    private expected: Expected,
    private rope: Rope,
    private treatment: Treatment,
    private form: Form,
    /** The body is an event stream: a document an event. */
    private events: bool,
  ) {
    if (!expected.tail) this.form = Form.Full;
  }

  /** Reads a piece of the body that is in the rope; `offset` is where it starts. */
  push(ptr: usize, len: usize, offset: u64): void {
    if (this.reason != Reason.None) return;
    const scanner = this.scanner;
    this.base = offset - scanner.offset;
    scanner.feed(ptr, len);
    this.read();
    if (this.stage == Stage.Drop) this.dropTo(this.position);
    this.settled = this.stage == Stage.Head ? this.base + this.head.start - 1 : offset + len;
  }

  /** Bytes to come that are replaced by prefill's whatever they are. */
  get replacedAhead(): u64 {
    return this.stage == Stage.Overlay ? this.scanner.skipping : 0;
  }

  /** `n` replaced bytes went by without being read. */
  passReplaced(n: u64): void {
    this.scanner.pass(n);
    this.settled += n;
  }

  /** An event of a stream has ended; one that is cut short is refused. */
  nextEvent(): void {
    if (!this.betweenDocuments) return this.refuse(Reason.Json);
    this.scanner.reset();
    this.complete = false;
    this.choicesSeen = 0;
    // Counts of an event say nothing of the next: they may be counts so far.
    this.promptTokens = this.completionTokens = -1;
  }

  /** Whether no document has begun that has not ended. */
  get betweenDocuments(): bool {
    return this.complete || this.scanner.offset == 0;
  }

  /** Whether bytes that were read must not leave yet. */
  get holding(): bool {
    return this.stage == Stage.Head;
  }

  /** Whether everything that was read may be acted upon: no array waits for the end of the document. */
  get decided(): bool {
    return this.undecided == 0;
  }

  free(): void {
    this.scanner.free();
    this.head.free();
  }

  private get position(): u64 {
    return this.base + this.scanner.offset;
  }

  private read(): void {
    const scanner = this.scanner;
    while (this.reason == Reason.None && this.again == Form.Unknown) {
      switch (this.stage) {
        case Stage.Head: {
          const progress = this.head.read(scanner);
          if (progress == HeadProgress.More) return;
          const reason = progress == HeadProgress.Bad ? this.head.reason : this.plan();
          if (reason != Reason.None) this.refuseArray(reason, this.base + this.head.start - 1);
          break;
        }
        case Stage.Overlay: {
          if (!scanner.resume()) return;
          this.stage = Stage.Tail;
          break;
        }
        case Stage.Tail: {
          if (this.tailLeft > 0 && scanner.rest == 0) return;
          this.readTail();
          break;
        }
        case Stage.Close: {
          const from = this.position;
          const progress = this.close.read(scanner);
          const passed = this.position - from;
          if (this.current == Form.Tail && passed > 0) this.rope.replace(from, passed, PADDING, 0);
          if (progress == CloseProgress.More) return;
          if (progress == CloseProgress.Bad) this.refuse(this.close.reason);
          else {
            if (this.current == Form.Tail) this.rope.replace(this.position, 0, PADDING, this.outPadding);
            this.stage = Stage.Scan;
          }
          break;
        }
        default: {
          const event = scanner.next();
          if (event == Event.More) return;
          if (event == Event.Failed) this.refuse(Reason.Json);
          else if (event == Event.Value) this.onValue();
          else if (event == Event.ValueEnd) this.onValueEnd();
          else {
            this.complete = true;
            this.onDocumentEnd();
          }
        }
      }
    }
  }

  private onValue(): void {
    const scanner = this.scanner;
    switch (scanner.id) {
      case Id.Root:
        if (scanner.first != 0x7b) this.refuse(Reason.Json);
        break;
      case Id.Choices:
        if (++this.choicesSeen > 1 && this.treatment != Treatment.Null) this.refuse(Reason.Duplicate);
        break;
      case Id.Choice:
        this.choicesInDocument++;
        this.arraysInChoice = 0;
        this.tokens = -1;
        break;
      case Id.RoutedExperts:
        this.onArray();
        break;
      case Id.OtherFormat:
        if (scanner.first == 0x6e) break;
        if (this.treatment == Treatment.Null) this.drop(this.position);
        else this.refuseArray(Reason.Format, this.position);
        break;
      case Id.Usage:
        // A second `usage` counts instead of the first.
        this.promptTokens = this.completionTokens = -1;
        break;
      default:
    }
  }

  private onArray(): void {
    const scanner = this.scanner;
    const duplicate = ++this.arraysInChoice > 1;
    if (this.treatment == Treatment.Null) {
      if (scanner.first != 0x6e) this.drop(this.position);
      return;
    }
    if (duplicate) return this.refuseArray(Reason.Duplicate, this.position);
    if (scanner.first == 0x6e) return;
    if (++this.arrays > this.expected.choices) return this.refuse(Reason.Choices);
    if (this.expected.rows === null) return this.refuseArray(this.expected.missing, this.position);
    if (scanner.first != 0x22) return this.refuseArray(Reason.Format, this.position);
    scanner.enterString();
    this.head.begin(scanner);
    this.stage = Stage.Head;
  }

  private onValueEnd(): void {
    const scanner = this.scanner;
    switch (scanner.id) {
      case Id.TokenIds:
        // Of `null` there is no count.
        this.tokens = scanner.first == 0x5b ? scanner.count : -1;
        break;
      case Id.PromptTokens:
        this.promptTokens = scanner.integer;
        break;
      case Id.CompletionTokens:
        this.completionTokens = scanner.integer;
        break;
      case Id.RoutedExperts:
      case Id.OtherFormat:
        if (this.stage == Stage.Drop) {
          this.dropTo(this.position);
          this.rope.replace(this.position, 0, NULL_TEXT, 4);
          this.growth += 4;
          if (this.treatment == Treatment.Null) this.choices++;
          this.stage = Stage.Scan;
        }
        break;
      default:
    }
  }

  private onDocumentEnd(): void {
    const rows = this.expected.rows;
    if (rows === null || this.treatment == Treatment.Null) return;
    if (this.undecided > 0) {
      if (this.form == Form.Unknown) this.form = this.formOfAll(rows);
      if (this.form == Form.Unknown) return this.refuse(Reason.Ambiguous);
      this.again = this.form;
    }
    // A tail that is not as long as the generated text does not start behind the prompt.
    const counted = this.tails > 0 && this.tails == this.choicesInDocument && this.completionTokens >= 0;
    if (counted && !this.events && this.tailRows + <u64>this.tails != <u64>this.completionTokens)
      this.refuse(Reason.Rows);
    // The legs must have tokenised the same prompt.
    if (this.choices + this.undecided > 0 && this.promptTokens >= 0 && <u64>this.promptTokens != rows.rows) {
      this.refuse(Reason.Prompt);
    }
  }

  /** The form of all arrays together, from the number of tokens: a choice has one row less than tokens. */
  private formOfAll(rows: PromptRows): Form {
    // The tokens of a choice without an array are counted too.
    if (this.completionTokens < 0 || this.undecided != this.choicesInDocument) return Form.Unknown;
    const held = this.undecidedRows + <u64>this.undecided;
    const generated = <u64>this.completionTokens;
    if (held == generated) return Form.Tail;
    return held == generated + <u64>this.undecided * rows.rows ? Form.Full : Form.Unknown;
  }

  /** The form of the array whose header was read, from what is known by now. */
  private formOf(header: NpyHeader, rows: PromptRows): Form {
    if (this.form != Form.Unknown) return this.form;
    const held = header.rows;
    const limit = this.expected.maxTokens;
    if (held < rows.rows) return Form.Tail;
    if (limit >= 0 && held >= <u64>limit) return Form.Full;
    // In a stream an event's `token_ids` are the last ones only.
    let tokens = this.events ? -1 : this.tokens;
    if (tokens <= 0 && this.expected.choices == 1) tokens = this.completionTokens;
    if (tokens > 0) {
      if (held == <u64>tokens - 1) return Form.Tail;
      if (held == rows.rows + <u64>tokens - 1) return Form.Full;
    }
    return Form.Unknown;
  }

  /** The header is known: checks every precondition and puts the edits that follow from it into the rope. */
  private plan(): Reason {
    const header = this.head.header;
    const rows = this.expected.rows!;
    if (header.dtype != rows.dtype) return Reason.Dtype;
    if (header.layers != rows.layers) return Reason.Layers;
    if (header.topK != rows.topK) return Reason.TopK;
    const form = this.formOf(header, rows);
    if (form == Form.Full && header.rows < rows.rows) return Reason.Rows;
    if (form == Form.Tail && this.contradicts(header, rows)) return Reason.Rows;
    this.tailLeft = carriers(header.fileBytes) - this.head.length;
    this.close.begin(encodedLength(header.fileBytes) - carriers(header.fileBytes));
    this.mixBits = 0;
    this.current = form;
    if (form == Form.Unknown) {
      // In a stream it can't be waited for.
      if (this.events) return Reason.Ambiguous;
      this.undecided++;
      this.undecidedRows += header.rows;
      this.stage = Stage.Tail;
      return Reason.None;
    }
    this.form = form;
    if (this.undecided > 0) {
      this.again = form;
      return Reason.None;
    }
    if (form == Form.Tail) {
      this.tails++;
      this.tailRows += header.rows;
    }
    const reason = form == Form.Full ? this.planOverlay(header, rows) : this.planConcatenation(header, rows);
    if (reason != Reason.None) return reason;
    this.planned = true;
    this.choices++;
    return Reason.None;
  }

  /** Whether a tail as long as the prompt must be a full array after all, by the tokens of its choice. */
  private contradicts(header: NpyHeader, rows: PromptRows): bool {
    return !this.events && this.tokens > 0 && header.rows == rows.rows + <u64>this.tokens - 1;
  }

  private planOverlay(header: NpyHeader, rows: PromptRows): Reason {
    const lead = leadOf(header.size);
    const chars = rows.at(lead);
    if (chars === null) return Reason.Memory;
    const read = this.head.length;
    const start = this.base + this.head.start;
    const first = firstCarrier(header);
    // The character in which the rows start was read with the header when it carries bits of both.
    if (read > first) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, mix(this.head.lastChar, chars.first, lead));
      this.rope.replaceOwned(start + first, 1, mixed, 1);
    }
    const bits = (header.size + rows.bytes) * 8;
    const whole = bits / 6;
    this.mixBits = <i32>(bits % 6);
    this.mixWith = chars.last;
    const replaced = whole - read;
    this.rope.replaceFrom(start + read, replaced, chars, read - first, replaced);
    this.tailLeft -= replaced;
    this.scanner.skip(replaced);
    this.stage = Stage.Overlay;
    return Reason.None;
  }

  private planConcatenation(header: NpyHeader, rows: PromptRows): Reason {
    const made = Block.alloc(WRITTEN_HEADER_BYTES * 3);
    const text = made.ptr + WRITTEN_HEADER_BYTES * 2;
    const size = <u64>writeHeader(text, header, rows.rows + header.rows);
    const lead = leadOf(size);
    const chars = rows.at(lead);
    if (chars === null) {
      made.free();
      return Reason.Memory;
    }
    const headEnd = encode(text, <usize>size, made.ptr);
    if (lead > 0) store<u8>(headEnd - 1, mix(load<u8>(headEnd - 1), chars.first, lead));
    const headChars = <u64>(headEnd - made.ptr);
    const start = this.base + this.head.start;
    const inLead = leadOf(header.size);
    this.rope.replaceOwned(start, this.head.length, made, headChars);
    const bits = (size + rows.bytes) * 8;
    const whole = bits / 6;
    const from = lead > 0 ? 1 : 0;
    this.rope.replaceFrom(start + this.head.length, 0, chars, from, whole - headChars);
    const outLead = <i32>(bits % 6);
    this.mixBits = outLead;
    this.mixWith = chars.last;
    const total = size + rows.bytes + header.rows * header.rowBytes;
    this.outLeft = carriers(total) - whole;
    this.outPadding = encodedLength(total) - carriers(total);
    this.growth += <i64>encodedLength(total) - <i64>encodedLength(header.fileBytes);
    const by = inLead - outLead;
    this.shift = by < 0 ? by + 6 : by;
    // A move to the right begins with zero bits, one to the left with the shared character.
    this.carry = by > 0 ? this.head.lastChar : 0x41;
    this.stage = Stage.Tail;
    if (header.rows == 0) this.endTail(start + this.head.length);
    else if (inLead > 0 && by <= 0) {
      // Without a move, or with one to the right, the shared character makes the first of the tail.
      const block = Block.alloc(1);
      const shared = this.head.lastChar;
      store<u8>(block.ptr, by == 0 ? shared : joined(this.carry, shared, this.shift));
      this.carry = shared;
      this.mixFirst(block.ptr);
      this.outLeft--;
      this.rope.replaceOwned(start + this.head.length, 0, block, 1);
    }
    return Reason.None;
  }

  /** Prefill's last bits go into the first character behind its rows. */
  private mixFirst(ptr: usize): void {
    if (this.mixBits > 0) store<u8>(ptr, mix(this.mixWith, load<u8>(ptr), this.mixBits));
    this.mixBits = 0;
  }

  private readTail(): void {
    const scanner = this.scanner;
    const take = <usize>min<u64>(this.tailLeft, scanner.rest);
    const at = this.position;
    const ptr = scanner.cursor;
    if (!inAlphabet(ptr, ptr + take)) return this.refuse(stranger(scanner, take));
    if (take > 0 && this.current == Form.Full && this.mixBits > 0) {
      const mixed = Block.alloc(1);
      store<u8>(mixed.ptr, load<u8>(ptr));
      this.mixFirst(mixed.ptr);
      this.rope.replaceOwned(at, 1, mixed, 1);
    } else if (take > 0 && this.current == Form.Tail && !this.moveTail(ptr, take, at)) {
      return this.refuse(Reason.Memory);
    }
    scanner.skip(take);
    this.tailLeft -= take;
    if (this.tailLeft > 0) return;
    if (this.current == Form.Tail) this.endTail(this.position);
    else this.stage = Stage.Close;
  }

  /** Re-encodes `take` characters of the tail at their new bit position. */
  private moveTail(ptr: usize, take: usize, at: u64): bool {
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
    this.rope.replaceOwned(at, take, block, take);
    return true;
  }

  /** All characters of the tail have come: what is left of them is written. */
  private endTail(at: u64): void {
    this.stage = Stage.Close;
    if (this.outLeft == 0) return;
    const block = Block.alloc(1);
    store<u8>(block.ptr, this.shift == 0 ? 0x41 : joined(this.carry, 0x41, this.shift));
    this.mixFirst(block.ptr);
    this.rope.replaceOwned(at, 0, block, 1);
    this.outLeft = 0;
  }

  /** The value that starts at `from` becomes `null`. */
  private drop(from: u64): void {
    this.dropFrom = from;
    this.stage = Stage.Drop;
  }

  /** The array whose value starts at `from`, and of which nothing has left, can't be merged. */
  private refuseArray(reason: Reason, from: u64): void {
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(reason);
    this.nulled = reason;
    this.drop(from);
  }

  private dropTo(offset: u64): void {
    if (offset == this.dropFrom) return;
    this.rope.replace(this.dropFrom, offset - this.dropFrom, NULL_TEXT, 0);
    this.growth -= <i64>(offset - this.dropFrom);
    this.dropFrom = offset;
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }
}
