// Reads prefill's reply: the prompt rows in whatever format they came, where the values lie that
// decode does not have, and what the reply says of the prompt. The caller feeds windows of the body
// in order, and fetches rows and values from the host itself, so that they are copied once.

import { Scanner } from '../json/scanner';
import { Examination } from './examination';
import { PrefillArray, Progress, Wanted, formatAt } from './formats/format';
import { NpyPrefill } from './formats/npy_string';
import { ObjectPrefill } from './formats/raw_object';
import { RawPrefill } from './formats/raw_string';
import { NAMED, Name } from './named_array';
import { Place, isRaw, nameAt, replyPaths } from './places';
import { Format, Kind, Prompt } from './prompt';
import { Reason } from './reason';
import { Notice, ReplyReader } from './reply_reader';
import { RowPlan } from './row_plan';
import { PromptRows, RowChars } from './rows';

/** The most arrays that are read: more prompts than P/D serves in one request. */
const MAX_ARRAYS: i32 = 4096;

/** Where a value lies in the body: [start, end). `end` is 0 where no value can be used. */
@final
export class Span {
  /** The value is a member of a choice, not of the reply. */
  inChoice: bool = false;
  start: u64 = 0;
  end: u64 = 0;
  /** The value has begun, and counts when it has ended. */
  open: bool = false;

  get len(): u64 {
    return this.end - this.start;
  }
}

/** An array of the reply, and the counts of tokens of the element that it stands in. */
@final
class ReplyArray {
  /** -1: the element does not tell. */
  promptTokens: i64 = -1;
  completionTokens: i64 = -1;

  constructor(
    readonly array: PrefillArray,
    /** Index of the element; -1 where the reply is no list. */
    readonly element: i32,
  ) {}
}

/** The arrays of one name. */
@final
class ReplyArrays {
  /** Why they can't be used; `None` also when there are none. */
  reason: Reason = Reason.None;
  format: Format = Format.None;
  /** In the order of the reply. */
  readonly arrays: ReplyArray[] = [];

  constructor(readonly name: Name) {}

  /** Keeps the first reason; `None` is no reason. */
  refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }

  /** The last array, if it stands in this element of the reply. */
  at(element: i32): ReplyArray | null {
    const last = this.arrays.length - 1;
    return last < 0 || this.arrays[last].element != element ? null : this.arrays[last];
  }
}


@final
export class PrefillReply {
  /** False once the body is known not to be a JSON document that a reply can be. */
  json: bool = true;
  /** The value of `kv_transfer_params`, where it is an object that has members. */
  readonly params: Span = new Span();
  /** The first choice's `finish_reason`. */
  readonly finishReason: Span = new Span();
  /** Tokens of the prompt by the counts, else by the rows; -1: not known. After `giveRows`. */
  promptTokens: i64 = -1;

  private readonly scanner: Scanner;
  private readonly reader: ReplyReader;
  /** The array that was begun last. */
  private array: PrefillArray | null = null;
  private readonly routing: ReplyArrays = new ReplyArrays(Name.RoutedExperts);
  /** All arrays by their names, of which the first is `routing`; and those that came last. */
  private readonly named: ReplyArrays[] = [this.routing];
  private current: ReplyArrays = this.routing;
  /** Whether the array reads characters itself, instead of the scanner. */
  private inArray: bool = false;
  /** Whether the array waits for `takeRows`. */
  private waiting: bool = false;
  /** The last value of each kind. */
  private spans: StaticArray<Span | null> = new StaticArray<Span | null>(Kind.Count);

  /** `size`: bytes of the whole body. */
  constructor(
    private size: u64,
    /** The first token whose row was asked for: some formats do not say where their rows begin. */
    readonly start: u64,
    /** Judges the rows (borrowed). */
    private examination: Examination,
  ) {
    const scanner = Scanner.take(replyPaths());
    this.scanner = scanner;
    this.reader = new ReplyReader(scanner);
    for (let name: i32 = Name.RoutedExperts + 1; name < Name.Count; name++)
      this.named.push(new ReplyArrays(<Name>name));
  }

  /** Whether the reply is a list of elements, as SGLang's is for several prompts. */
  get list(): bool {
    return this.reader.list;
  }

  /** Offset of the next byte that is wanted. */
  get offset(): u64 {
    return this.scanner.offset;
  }

  /** Rows that the caller must fetch, before `takeRows` and `resume`; null: there are none. */
  get wanted(): Wanted | null {
    const array = this.array;
    return this.waiting && array !== null ? array.wanted : null;
  }

  /** Where the value of a kind lies; null when there is none. After `finish`. */
  span(kind: Kind): Span | null {
    const span = this.spans[kind];
    return span === null || span.end == 0 ? null : span;
  }

  /** Reads a window that starts at `offset`, up to rows or its end. False: it is not JSON. */
  push(ptr: usize, len: usize): bool {
    this.scanner.feed(ptr, len);
    return this.resume();
  }

  /** Takes over the rows that were asked for. `reason`: what a check of their characters found. */
  takeRows(chars: RowChars, reason: Reason): void {
    const array = this.array!;
    array.take(this.scanner, chars, reason);
    this.current.refuse(array.reason);
    this.waiting = false;
    // The scanner looks for the end of a string that is too short, or not base64.
    this.inArray = reason != Reason.Base64 && reason != Reason.Size;
  }

  /** Goes on with the window after `takeRows`. False when the body is not JSON. */
  resume(): bool {
    this.walk();
    return this.json;
  }

  /** After the last byte: false when the body is not a whole JSON document. */
  finish(): bool {
    return this.json && this.scanner.done;
  }

  /** Hands the rows over if they are good; else `missing` of each says why not. After `finish`. */
  giveRows(prompt: Prompt): void {
    this.promptTokens = this.reader.counts.prompt;
    const routing = this.routing;
    if (this.reader.counts.differ) this.refuseAll(Reason.Prompt);
    if (this.span(Kind.PromptExperts) !== null) this.givePromptExperts(prompt);
    else if (routing.format == Format.Prompt) routing.refuse(Reason.Format);
    else if (routing.arrays.length == 0 && !prompt.decodeForwardsLast && this.isBehindPrompt) {
      prompt.routing.format = Format.Raw;
      const none = PromptRows.none(this.start);
      prompt.routing.plans.push(new RowPlan(none, this.promptTokens, prompt.start, prompt.lastRowOfDecode));
    }
    for (let i = 0; i < this.named.length; i++) this.giveArrays(this.named[i], prompt);
    prompt.tokens = this.promptTokens;
    prompt.tellsCached = this.reader.has(Place.RemoteCached);
  }

  /** Gives back what was not handed over. */
  free(): void {
    for (let i = 0; i < this.named.length; i++) {
      const arrays = this.named[i].arrays;
      for (let j = 0; j < arrays.length; j++) arrays[j].array.free();
      arrays.length = 0;
    }
    this.scanner.free();
  }

  /** The prompt's rows stand in a member of their own, whose value the caller reads. */
  private givePromptExperts(prompt: Prompt): void {
    // Lists and objects in `choices` are then the generated rows; strings there are another format.
    const format = this.routing.format;
    if (format == Format.Npy || format == Format.Raw) this.routing.refuse(Reason.Mixed);
    else prompt.routing.format = Format.Prompt;
  }

  /**
   * Whether rows were asked for from a token behind the prompt on. SGLang's OpenAI endpoints then
   * leave prefill's array out, as it would be empty; vLLM's arrays may have no rows.
   */
  private get isBehindPrompt(): bool {
    const tokens = this.promptTokens;
    if (this.list || this.routing.reason != Reason.None) return false;
    return tokens >= 0 && this.start > 0 && this.start >= <u64>tokens;
  }

  /** Hands over the arrays of one name, if there are any. */
  private giveArrays(from: ReplyArrays, prompt: Prompt): void {
    const arrays = from.arrays;
    const to = prompt.array(from.name);
    if (arrays.length > 0 && from.reason == Reason.None && to.format != Format.Prompt) {
      to.format = from.format;
      if (this.list && arrays.length != this.reader.element + 1) from.refuse(Reason.Missing);
      for (let i = 0; i < arrays.length && from.reason == Reason.None; i++)
        this.giveArray(from, arrays[i], prompt);
    }
    if (from.reason != Reason.None) to.refuse(from.reason);
  }

  private giveArray(from: ReplyArrays, entry: ReplyArray, prompt: Prompt): void {
    const tokens = this.list ? entry.promptTokens : this.promptTokens;
    const completion = this.list ? entry.completionTokens : this.reader.counts.completion;
    const choices = this.list ? 1 : this.reader.choices;
    // vLLM's member chooses no rows of SGLang's format, which does not tell where its rows begin.
    const start: u64 = NAMED[from.name].hasStart ? prompt.start : 0;
    const foreign = from.format == Format.Raw && prompt.decodeForwardsLast;
    if (foreign && start > 0) return from.refuse(Reason.Ambiguous);
    const rows = entry.array.giveRows(tokens, completion, choices, prompt.decodeForwardsLast);
    if (rows === null) return from.refuse(entry.array.reason);
    const end = tokens < 0 ? rows.end : <u64>tokens;
    const plan = new RowPlan(rows, end, start, prompt.lastRowOfDecode);
    prompt.array(from.name).plans.push(plan);
    if (!plan.isCovered) return from.refuse(Reason.Prompt);
    if (this.promptTokens < 0 && !this.list) this.promptTokens = rows.end;
  }

  // ---- what the reader announces

  private walk(): void {
    while (this.json && !this.waiting) {
      if (this.inArray) {
        if (!this.readArray()) return;
        continue;
      }
      const notice = this.reader.next();
      if (notice == Notice.More) return;
      this.take(notice);
    }
  }

  private take(notice: Notice): void {
    switch (notice) {
      case Notice.Broken:
        this.json = false;
        break;
      case Notice.ElementEnd:
        this.onElementEnd();
        break;
      case Notice.SecondChoices:
        this.refuseAll(Reason.Duplicate);
        break;
      case Notice.Array:
        this.onArray();
        break;
      case Notice.Member:
        this.onMember();
        break;
      case Notice.MemberEnd: {
        const array = this.array;
        if (array !== null) array.onValueEnd(this.scanner, this.reader.place);
        break;
      }
      case Notice.Value:
        this.onValue();
        break;
      case Notice.ValueEnd:
        this.onValueEnd();
        break;
      case Notice.Other:
        this.onOther();
        break;
      case Notice.OtherEnd:
        this.onOtherEnd();
        break;
      default:
    }
  }

  /** Lets the array read on. False when it has used up the scanner's window. */
  private readArray(): bool {
    const array = this.array!;
    if (array.read(this.scanner) == Progress.More) return false;
    this.inArray = false;
    this.waiting = array.wanted !== null;
    this.current.refuse(array.reason);
    return true;
  }

  private onElementEnd(): void {
    const counts = this.reader.counts;
    for (let i = 0; i < this.named.length; i++) {
      const entry = this.named[i].at(this.reader.element);
      if (entry === null) continue;
      if (counts.differ) this.named[i].refuse(Reason.Prompt);
      entry.promptTokens = counts.prompt;
      entry.completionTokens = counts.completion;
    }
  }

  private onArray(): void {
    const reader = this.reader;
    const place = reader.place;
    const first = this.scanner.first;
    // Of SGLang's own members in choices only the first choice's are read.
    if (place >= Place.ChoiceRaw && reader.choices > 1) return;
    const current = this.named[nameAt(place)];
    this.current = current;
    if (reader.again) current.refuse(Reason.Duplicate);
    if (first == 0x6e) return;
    if (isRaw(place)) return this.onRaw();
    const format = formatAt(place, first);
    if (format == Format.Prompt) {
      // Lists are generated rows, which are not needed. Without the prompt's rows beside them they
      // are no format at all, see `giveRows`.
      if (current.format == Format.None) current.format = Format.Prompt;
      else if (current.format != Format.Prompt) current.refuse(Reason.Mixed);
      return;
    }
    if (reader.choices > 1) return current.refuse(Reason.Choices);
    if (format == Format.Npy) this.begin(new NpyPrefill(this.size, this.start, this.examination));
    else if (format == Format.Object) this.begin(new ObjectPrefill(this.start, this.examination));
    else current.refuse(Reason.Format);
  }

  private onMember(): void {
    const array = this.array;
    if (array === null || this.current.reason != Reason.None) return;
    if (array.onValue(this.scanner, this.reader.place)) this.inArray = true;
  }

  private onValue(): void {
    const reader = this.reader;
    const kind = reader.kind;
    const span = new Span();
    span.start = this.scanner.offset;
    span.inChoice = reader.inChoice;
    // Prefill was asked for one choice: of several nobody knows whose value counts.
    span.open = this.scanner.first != 0x6e && !(span.inChoice && reader.choices > 1);
    const earlier = this.spans[kind];
    if (earlier !== null && kind == Kind.PromptExperts) {
      if (earlier.open && span.open) this.routing.refuse(Reason.Duplicate);
    }
    this.spans[kind] = span;
  }

  private onValueEnd(): void {
    const kind = this.reader.kind;
    const span = this.spans[kind];
    if (kind == Kind.CachedTokens && this.scanner.integer < 0) return;
    if (span !== null && span.open) span.end = this.scanner.offset;
  }

  private onOther(): void {
    const place = this.reader.place;
    const scanner = this.scanner;
    if (place == Place.KvTransferParams) {
      this.params.start = this.params.end = scanner.offset;
      this.params.open = scanner.first == 0x7b;
    } else if (place == Place.FinishReason && this.reader.choices == 1)
      this.finishReason.start = scanner.offset;
  }

  private onOtherEnd(): void {
    const place = this.reader.place;
    const scanner = this.scanner;
    if (place == Place.KvTransferParams) {
      // An empty object hands nothing over: LMCache's multiprocess connector answers so.
      if (this.params.open && scanner.count > 0) this.params.end = scanner.offset;
    } else if (place == Place.FinishReason && this.reader.choices == 1)
      this.finishReason.end = scanner.offset;
  }

  // ---- arrays

  /** An array without a header; the reply and its first choice may have the same one. */
  private onRaw(): void {
    const current = this.current;
    if (current.at(this.reader.element) !== null && current.format == Format.Raw) return;
    if (formatAt(this.reader.place, this.scanner.first) != Format.Raw) return current.refuse(Reason.Format);
    const named = NAMED[current.name];
    this.begin(new RawPrefill(named.hasStart ? this.start : 0, named.experts, this.examination));
  }

  /** Takes over an array that begins at the scanner's cursor. */
  private begin(array: PrefillArray): void {
    const current = this.current;
    if (current.format != Format.None && current.format != array.format) current.refuse(Reason.Mixed);
    current.format = array.format;
    if (current.arrays.length == MAX_ARRAYS) current.refuse(Reason.Choices);
    if (current.reason != Reason.None) return array.free();
    this.array = array;
    current.arrays.push(new ReplyArray(array, this.reader.element));
    if (array.begin(this.scanner)) this.inArray = true;
  }

  /** None of the arrays can be used. */
  private refuseAll(reason: Reason): void {
    for (let i = 0; i < this.named.length; i++) this.named[i].refuse(reason);
  }
}
