// Reads decode's response as it passes and says how it is to be edited. It holds no bytes of the
// body: the edits go into the caller's rope, and `settled` says how far the body may leave.
//
// `ReplyReader` announces arrays and values, and each is handed to the object whose business it is:
//
//   ArrayMatch      decides in which format an array is read, and with which rows of prefill's
//   CurrentArray    the array that is being read and edited
//   DecodeLists     arrays that are nested lists
//   PrefillValues   puts prefill's values in the place of decode's
//   ValueSwap       replaces a whole value, by prefill's or by `null`
//   ResponseCounts  compares rows with the counts of tokens
//   CacheWord       what decode says of its cache, where it serves the request alone
//   SoleToken       puts prefill's rows in where decode has no array
//
// What can't be merged makes the whole response fail, or becomes `null`: that is decided here.

import { Rope } from '../bytes/rope';
import { Scanner } from '../json/scanner';
import { ArrayMatch } from './array_match';
import { CacheWord, CachedRule } from './cache_word';
import { CurrentArray } from './current_array';
import { DecodeLists } from './decode_lists';
import { Examination, Leg, RowCheck } from './examination';
import { Deferred, Progress, Site } from './formats/format';
import { Name } from './named_array';
import { Place, alonePaths, replyPaths } from './places';
import { PrefillValues } from './prefill_values';
import { Format, Kind, Prompt } from './prompt';
import { Reason } from './reason';
import { Notice, ReplyReader } from './reply_reader';
import { ResponseCounts } from './response_counts';
import { RowCounter } from './row_counter';
import { Form } from './row_plan';
import { SoleToken } from './sole_token';
import { ValueSwap } from './value_swap';

export { CachedRule } from './cache_word';
export { Form } from './row_plan';

/** What becomes of the arrays. */
export const enum Treatment {
  /** They are merged; if one can't be, the whole response is refused. */
  Merge,
  /** Every array becomes `null`. */
  Null,
  /**
   * An array that can't be merged becomes `null`, as long as nothing of it has left. This is for
   * streams of events, which can't be read a second time.
   */
  MergeOrNull,
}

/** A request that decode serves alone: its arrays are checked, and leave as they came. */
@final
export class Alone {
  constructor(
    readonly cached: CachedRule,
    /** The first token whose row the client asks for; -1: not known. */
    readonly start: i64,
    /** Whether the filter has read the request, and so knows how many rows there must be. */
    readonly counted: bool,
  ) {}
}

/** What is known before the response comes: complete when a `DecodeResponse` is made. */
@final
export class Expected {
  /** What prefill brought (borrowed). */
  prompt: Prompt = new Prompt();
  /** Set where there is no prefill leg. */
  alone: Alone | null = null;
  /** Judges the rows of both legs together (borrowed). */
  examination: Examination = new Examination(RowCheck.Off, null);
  /** Whether decode was asked for no rows that are prefill's. */
  tail: bool = false;
  /** Prompts in the request, and choices that it asks for of each prompt. */
  prompts: i32 = 1;
  choices: i32 = 1;
  /** The most tokens that a choice can have; -1: not known. */
  maxTokens: i64 = -1;
  /** Whether the client has asked for the array of each name. */
  readonly asked: StaticArray<bool> = new StaticArray<bool>(Name.Count);
}

/**
 * What reads a whole response, or the events of one. This class is longer than 350 lines because it
 * hands every notice of the reader to the object whose business it is, and answers for all of them
 * what a caller asks.
 */
@final
export class DecodeResponse extends Site {
  /** Why an array became `null`, by `Treatment.MergeOrNull`. */
  nulled: Reason = Reason.None;
  /** The name of the array that prefill lacks, where the reason is `Missing`. */
  lacking: Name = Name.RoutedExperts;
  /** Whether the document has ended. */
  complete: bool = false;
  /** Decode's own `usage…cached_tokens`, which prefill's may replace; -1: it has told none. */
  cachedTokens: i64 = -1;
  /** Offset up to which the body may leave. */
  settled: u64 = 0;
  /** Whether an array reads characters itself, instead of the scanner, and more are to come. */
  inArray: bool = false;

  private readonly reader: ReplyReader;
  private readonly match: ArrayMatch;
  private readonly array: CurrentArray;
  private readonly lists: DecodeLists;
  private readonly swap: ValueSwap;
  private readonly values: PrefillValues;
  private readonly totals: ResponseCounts;
  private readonly cache: CacheWord;
  private readonly sole: SoleToken;
  /** Whether decode has served the request alone. */
  private readonly isAlone: bool;

  /** The edits go into `rope` (borrowed). `form`: what an earlier reading has found out. */
  constructor(
    private expected: Expected,
    rope: Rope,
    private treatment: Treatment,
    form: Form,
    /** Whether the body is a stream of events, each with a document of its own. */
    events: bool,
  ) {
    const prompt = expected.prompt;
    const alone = expected.alone;
    const scanner = Scanner.take(alone === null ? replyPaths() : alonePaths());
    const reader = new ReplyReader(scanner);
    super(
      scanner,
      rope,
      events,
      reader.counts,
      expected.examination,
      expected.choices,
      expected.maxTokens,
      expected.tail,
      expected.tail || prompt.start > 0 ? form : Form.Full,
    );
    this.reader = reader;
    this.isAlone = alone !== null;
    this.match = new ArrayMatch(prompt, expected.prompts, expected.choices, alone !== null, events);
    this.array = new CurrentArray();
    this.lists = new DecodeLists(expected.examination, prompt);
    this.swap = new ValueSwap();
    this.values = new PrefillValues(prompt);
    const start = alone === null ? 0 : alone.start;
    const counter = new RowCounter(expected.choices, events);
    this.totals = new ResponseCounts(prompt, counter, expected.prompts, alone !== null, start);
    this.cache = new CacheWord(alone === null ? CachedRule.Any : alone.cached);
    this.sole = new SoleToken(prompt, expected.prompts);
    // A second reading of the same response examines its rows again.
    expected.examination.forget(Leg.Decode);
  }

  // ---- for the caller

  /** Reads a piece of the body, which is in the rope; it starts at `offset` of the body. */
  push(ptr: usize, len: usize, offset: u64): void {
    if (this.reason != Reason.None) return;
    this.base = offset - this.scanner.offset;
    this.scanner.feed(ptr, len);
    this.walk();
    if (this.swap.active) this.swap.pass(this);
    this.settled = offset + len;
    const heldFrom = this.array.heldFrom;
    if (heldFrom >= 0) this.settled = <u64>heldFrom;
    if (this.deferred.length > 0) this.settled = min(this.settled, this.deferred[0].from);
    this.sole.passPiece(this);
    if (this.sole.heldFrom >= 0) this.settled = min(this.settled, <u64>this.sole.heldFrom);
  }

  /** An event of a stream has ended. If its document has not, the response is refused. */
  nextEvent(): void {
    if (!this.betweenDocuments) return this.refuse(Reason.Json);
    // The counts are forgotten, too. An engine may send the counts so far with every event, so
    // those of one event say nothing of the next.
    this.reader.beginDocument();
    this.complete = false;
    this.swap.count = 0;
    this.beginElement();
  }

  /** The stream says that it is over: `[DONE]` begins at offset `at` of the body. */
  beforeDone(at: u64): void {
    if (this.treatment != Treatment.Null) this.sole.beforeDone(this, at);
  }

  free(): void {
    this.sole.free();
    this.scanner.free();
    this.lists.free();
    this.array.free();
  }

  /** Bytes to come that prefill's rows replace whatever they are. */
  get replacedAhead(): u64 {
    return this.inArray ? this.array.replacedAhead(this) : 0;
  }

  /** Whether prefill's rows replace all bytes from `offset` on, up to the last byte read. */
  isReplaced(offset: u64): bool {
    return this.inArray && this.array.isReplaced(this, offset);
  }

  /** `n` bytes of `replacedAhead` have come and gone without being read. */
  passReplaced(n: u64): void {
    this.scanner.pass(n);
    this.settled += n;
  }

  /** Bytes to come that may leave nothing behind: the padding of an array. */
  get paddingAhead(): u64 {
    return this.inArray ? this.array.paddingAhead : 0;
  }

  /** Whether a value of routing has begun, even one that becomes `null`. */
  get hasRouting(): bool {
    return this.match.values > 0 || this.swap.count > 0;
  }

  /** Whether no document has begun that has not ended. */
  get betweenDocuments(): bool {
    return this.complete || this.scanner.offset == 0;
  }

  /** Whether bytes that have been read must not leave yet. */
  get holding(): bool {
    return this.array.heldFrom >= 0 || this.deferred.length > 0 || this.sole.heldFrom >= 0;
  }

  /**
   * Whether an array may still come that can't be merged: one that the client has asked for, and
   * that prefill has not brought beside others. It comes behind those that are merged.
   */
  get awaitsMissing(): bool {
    const prompt = this.expected.prompt;
    if (this.treatment != Treatment.Merge || this.complete || !prompt.leading.came) return false;
    for (let name = 0; name < Name.Count; name++) {
      if (this.expected.asked[name] && !prompt.array(<Name>name).came) return true;
    }
    return false;
  }

  /** Whether no array waits for the end of the document, or for `cached_tokens`, to be decided. */
  get decided(): bool {
    return this.undecided == 0 && !this.cache.isAwaited(this.choices);
  }

  /** Whether some of prefill's routing is in the response. */
  get merged(): bool {
    return this.choices > 0 || this.values.placed;
  }

  /** Whether generated rows have come, but there was no place for the prompt's. */
  get unplaced(): bool {
    return this.expected.prompt.format == Format.Prompt && this.choices > 0 && !this.values.placed;
  }

  // ---- what the reader announces

  private walk(): void {
    while (this.reason == Reason.None && this.again == Form.Unknown) {
      if (this.inArray) {
        if (!this.readArray()) return;
        continue;
      }
      const reader = this.reader;
      const notice = reader.announcesLists ? this.lists.read(this, reader) : reader.next();
      if (notice == Notice.More) return;
      if (this.swap.active) this.takeOfSwap(notice);
      else if (this.treatment == Treatment.Null) this.takeNulling(notice);
      else this.take(notice);
    }
  }

  /** Lets the array read on. Returns false when it has used up the scanner's window. */
  private readArray(): bool {
    const progress = this.array.read(this);
    if (progress == Progress.More) return false;
    if (progress == Progress.Broken) this.refuse(this.array.reason);
    else if (progress == Progress.Refused) this.refuseArray();
    else this.inArray = false;
    return true;
  }

  /** Takes a notice while a value is being removed, of which only the end matters. */
  private takeOfSwap(notice: Notice): void {
    if (notice == Notice.ValueEnd) this.noteCached();
    if (notice == Notice.ArrayEnd || notice == Notice.ValueEnd) this.endSwap();
    else if (notice == Notice.Broken) this.refuse(Reason.Json);
  }

  /** Takes a notice under `Treatment.Null`: nothing but values of routing matters. */
  private takeNulling(notice: Notice): void {
    const ofValue = notice == Notice.Value && this.reader.kind == Kind.PromptExperts;
    if (ofValue || notice == Notice.Array) {
      if (this.scanner.first != 0x6e) this.swap.begin(this, null);
    } else if (notice == Notice.ValueEnd) this.noteCached();
    else if (notice == Notice.Broken) this.refuse(Reason.Json);
    else if (notice == Notice.DocumentEnd) this.complete = true;
  }

  private take(notice: Notice): void {
    const reader = this.reader;
    const place = reader.place;
    switch (notice) {
      case Notice.Broken:
        return this.refuse(Reason.Json);
      case Notice.SecondChoices:
        return this.refuse(Reason.Duplicate);
      case Notice.Root:
        // A list has a prompt for each element. No engine sends such lists as events.
        if (reader.list && this.events && !this.isAlone) this.refuse(Reason.Format);
        return this.sole.begin(this);
      case Notice.Element:
        this.sole.begin(this);
        return this.beginElement();
      case Notice.Choice:
        return this.totals.beginChoice(this);
      case Notice.Array:
        return this.onArray();
      case Notice.Member:
        if (!this.array.open) this.lists.onMember(this, place);
        else if (this.array.onMember(this, place)) this.inArray = true;
        return;
      case Notice.MemberEnd:
        this.array.onMemberEnd(this, place);
        return this.lists.onMemberEnd(this, place);
      case Notice.Value:
        return this.onValue();
      case Notice.Other:
        return this.sole.onValue(this, place);
      default:
        this.takeEnd(notice);
    }
  }

  private takeEnd(notice: Notice): void {
    switch (notice) {
      case Notice.ArrayEnd:
        return this.endRouting(false);
      case Notice.ValueEnd:
        return this.onValueEnd();
      case Notice.OtherEnd:
        return this.onOtherEnd();
      case Notice.ChoiceEnd:
        if (!this.totals.endChoice()) this.refuse(Reason.Rows);
        if (this.reader.choiceIsObject) this.values.insertMissing(this, this.reader, true);
        return;
      case Notice.ElementEnd:
        this.sole.end(this, this.reader);
        return this.endElement();
      case Notice.RootEnd:
        if (this.reader.list) return;
        this.values.insertMissing(this, this.reader, false);
        return this.sole.end(this, this.reader);
      default:
        this.onDocumentEnd();
    }
  }

  private onArray(): void {
    if (this.reader.again) this.refuseValue(Reason.Duplicate);
    else if (this.scanner.first != 0x6e) {
      this.sole.takeArray(this);
      this.begin();
    }
  }

  private onValue(): void {
    if (!this.isAlone) this.refuseValue(this.values.put(this, this.reader, this.swap));
    else if (this.reader.kind == Kind.PromptExperts) this.onArray();
  }

  private onValueEnd(): void {
    this.noteCached();
    if (this.reader.kind == Kind.CachedTokens) this.cache.take(this);
    else if (this.reader.kind == Kind.PromptExperts && this.isAlone) this.endRouting(true);
  }

  /** A value has ended. Of several `cached_tokens`, one in each event, the last one counts. */
  private noteCached(): void {
    const told = this.reader.kind == Kind.CachedTokens ? this.scanner.integer : -1;
    if (told >= 0) this.cachedTokens = told;
  }

  private onOtherEnd(): void {
    if (this.reader.place == Place.MetaCachedTokens) this.cache.take(this);
    else this.totals.take(this, this.reader.place);
    this.sole.onValueEnd(this, this.reader.place);
  }

  private onDocumentEnd(): void {
    this.complete = true;
    const alone = this.expected.alone;
    const reader = this.reader;
    if (alone !== null) {
      // The elements of a list have been checked one by one; the list itself may have
      // `cached_tokens`.
      if (!reader.list) this.endElement();
      else this.cache.end(this);
      if (alone.counted) this.totals.endAlone(this, reader);
    } else if (this.expected.prompt.leading.came) this.totals.endMerged(this, reader, this.values.placed);
  }

  // ---- arrays

  /** A value of routing that is not `null` begins at the scanner's cursor. */
  private begin(): void {
    const match = this.match;
    const surplus = match.exceeds(this.reader);
    if (surplus != Reason.None) return this.refuse(surplus);
    const reason = match.judge(this.reader, this.scanner.first);
    if (reason == Reason.Missing) this.lacking = match.name;
    if (reason != Reason.None) return this.refuseValue(reason);
    this.begun[match.name]++;
    if (match.format == Format.Prompt) this.lists.begin(this, this.reader);
    else if (this.array.begin(this, match.name, match.format, match.plan, match.later)) this.inArray = true;
    else this.refuse(this.array.reason);
  }

  /** A value of routing has ended. `ofPrompt`: it was the value of `prompt_routed_experts`. */
  private endRouting(ofPrompt: bool): void {
    if (this.array.open ? !this.endArray() : !this.lists.end(this, this.reader)) return;
    if (ofPrompt) this.totals.addPrompt(this);
    else this.totals.add(this, this.reader.element);
  }

  /** The array has ended. Returns false when its rows are not to be counted now. */
  private endArray(): bool {
    const array = this.array;
    const reason = array.end(this);
    // An array whose form is not known is read again, and one without a header is counted with its
    // element.
    if (reason == Reason.None) return this.undecided == 0 && this.match.format != Format.Raw;
    if (array.heldFrom < 0) this.refuse(reason);
    else {
      this.refuseArray();
      if (this.swap.active) this.endSwap();
    }
    return false;
  }

  // ---- elements of a list; a document that is no list is one element

  private beginElement(): void {
    this.forgetRaw();
    this.cache.begin(this.choices);
  }

  private endElement(): void {
    this.totals.endElement(this, this.reader);
    this.cache.end(this);
  }

  // ---- what can't be merged

  /** The value at the scanner's cursor can't be merged for a reason; `None`: it can be. */
  private refuseValue(reason: Reason): void {
    if (reason == Reason.None) return;
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(reason);
    this.nulled = reason;
    this.swap.begin(this, null);
  }

  /** An array that waits for the end of its event can't be merged. */
  refuseDeferred(array: Deferred, reason: Reason): void {
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(reason);
    this.nulled = reason;
    this.choices--;
    this.rope.forgetEdits(array.from);
    this.swap.replace(this, array.from, array.end);
  }

  /** The array that is being read can't be merged; nothing of it has left. */
  private refuseArray(): void {
    const reason = this.array.reason;
    const from = this.array.abandon();
    this.inArray = false;
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(reason);
    this.nulled = reason;
    this.swap.takeOver(from);
  }

  /** The value that was being removed has ended. */
  private endSwap(): void {
    if (this.swap.end(this) && this.treatment == Treatment.Null) this.choices++;
  }
}
