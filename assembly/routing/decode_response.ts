// Reads decode's response as it passes and says how it is to be edited. It holds no body bytes: edits go into the caller's
// rope, and `settled` says how far the body may leave.
//
//   Scan ─▶ Array ─▶ Scan       an array's format reads and edits what is its own
//   Scan ─▶ Drop ─▶ Scan        the value goes: it becomes null, or prefill's

import { Ascii } from '../bytes/ascii';
import { Rope } from '../bytes/rope';
import { Event, Scanner } from '../json/scanner';
import { Examination, Leg, RowCheck } from './examination';
import { DecodeArray, Deferred, Form, Progress, Site } from './formats/format';
import { NpyDecode } from './formats/npy_string';
import { ObjectDecode } from './formats/raw_object';
import { RawDecode, readRaw } from './formats/raw_string';
import { Place, alonePaths, replyPaths } from './places';
import { Format, Kind, PrefillValue, Prompt } from './prompt';
import { Reason } from './reason';
import { RowCounter } from './row_counter';
import { RowLists } from './row_lists';
import { RowPlan } from './row_plan';

export { Form } from './formats/format';

/** What becomes of the arrays. */
export const enum Treatment {
  Merge,
  /** Every array becomes `null`. */
  Null,
  /** An array that can't be merged becomes `null` if nothing of it has left; for streams, where nothing can be read twice. */
  MergeOrNull,
}

/** What decode's own `cached_tokens` must say where decode serves a request alone. */
export const enum CachedRule {
  /** Nothing: samples and prompts of one request share what decode itself has forwarded for it. */
  Any,
  /** Not above 0: the request had a salt of its own, so a hit says that the engine does not know salts. */
  NoHit,
  /** 0, and said: rows of tokens that came from a cache are those of whoever had the slots before. */
  Zero,
  /** What it says is of one of several prompts, and proves nothing for the others. */
  Never,
}

/** A request that decode serves alone: its arrays are checked, and leave as they came. */
@final
export class Alone {
  constructor(
    readonly cached: CachedRule,
    /** First token whose row the client asks for. */
    readonly start: i64,
    /** Whether the request has been read, so that the response's counts say how many rows there must be. */
    readonly counted: bool,
  ) {}
}

/** What is known before the response comes. */
@final
export class Expected {
  /** What prefill brought (borrowed). */
  prompt: Prompt = new Prompt();
  /** Set where there is no prefill leg. */
  alone: Alone | null = null;
  /** What checked rows say, of both legs (borrowed). */
  examination: Examination = new Examination(RowCheck.Off, null);
  /** Decode was asked for the generated rows only. */
  tail: bool = false;
  /** Prompts in the request, and choices asked for of each. */
  prompts: i32 = 1;
  choices: i32 = 1;
  /** Most tokens a choice can have; -1 when not known. */
  maxTokens: i64 = -1;
}

/** vLLM allows no more choices (VLLM_MAX_N_SEQUENCES). Edits of held values take memory that is not counted. */
const MAX_VALUES: i32 = 16384;
/** Values that a document may have replaced as a whole: some in each choice. */
const MAX_DROPS: i32 = 4 * MAX_VALUES;
/** Long values of prefill's beyond those for the choices that were asked for: each is as long as its prompt. */
const SPARE_COPIES: i32 = 64;

const NULL_TEXT = memory.data<u8>([0x6e, 0x75, 0x6c, 0x6c]);
const PROMPT_EXPERTS = new Ascii('"prompt_routed_experts":');
const PROMPT_LOGPROBS = new Ascii('"prompt_logprobs":');
const COMMA = new Ascii(',');

const enum Stage {
  Scan,
  Array,
  Drop,
}


@final
export class DecodeResponse extends Site {
  /** Why arrays became `null` (`MergeOrNull`). */
  nulled: Reason = Reason.None;
  /** The document has ended. */
  complete: bool = false;
  /** The body may leave up to this offset. */
  settled: u64 = 0;

  private stage: Stage = Stage.Scan;
  /** The array that is being read, and those of each format that have been. */
  private array: DecodeArray | null = null;
  private known: StaticArray<DecodeArray | null> = [null, null, null];

  private readonly alone: Alone | null;
  /** Whether decode's `cached_tokens` has said 0: of the document, or of the element of a list. */
  private uncached: bool = false;
  private readonly counter: RowCounter;
  private readonly lists: RowLists;
  /** The value that is being read is nested lists. */
  private listed: bool = false;
  /** Rows of decode's own `prompt_routed_experts`; -1: it has none. */
  private promptRows: i64 = -1;

  private list: bool = false;
  private element: i32 = -1;
  private choicesSeen: i32 = 0;
  private arrays: i32 = 0;
  /** Those and values of other places, as far as they were begun. */
  private values: i32 = 0;
  private arraysInChoice: i32 = 0;
  private arraysInElement: i32 = 0;
  private rawInChoice: i32 = 0;
  private choicesInDocument: i32 = 0;
  /** Choices of the current event. */
  private choicesInEvent: i32 = 0;
  /** Arrays before the document, or the element of a list, that is being read. */
  private arraysBefore: i32 = 0;
  private choiceIsObject: bool = false;
  /** Kinds of values that the choice, and the document, have had: a bit each. */
  private valuesInChoice: i32 = 0;
  private valuesInDocument: i32 = 0;

  /** Prefill's `prompt_routed_experts` has been put in. */
  private placed: bool = false;
  /** Long values of prefill's that were put in. */
  private copies: i32 = 0;
  private drops: i32 = 0;

  private dropFrom: u64 = 0;
  /** What the value that goes is replaced by; null: `null`. */
  private instead: PrefillValue | null = null;

  constructor(
    private expected: Expected,
    rope: Rope,
    private treatment: Treatment,
    form: Form,
    /** The body is an event stream: a document an event. */
    events: bool,
  ) {
    super(Scanner.take(expected.alone === null ? replyPaths() : alonePaths()), rope, events);
    this.form = expected.tail ? form : Form.Full;
    this.choicesAsked = expected.choices;
    this.maxTokens = expected.maxTokens;
    this.alone = expected.alone;
    this.counter = new RowCounter(expected.choices, events);
    this.lists = new RowLists(expected.examination, Leg.Decode);
    this.examination = expected.examination;
    // Of an earlier reading of the same response.
    expected.examination.forget(Leg.Decode);
  }

  /** Reads a piece of the body that is in the rope; `offset` is where it starts. */
  push(ptr: usize, len: usize, offset: u64): void {
    if (this.reason != Reason.None) return;
    const scanner = this.scanner;
    this.base = offset - scanner.offset;
    scanner.feed(ptr, len);
    this.read();
    if (this.stage == Stage.Drop) this.dropTo(this.position);
    this.settled = offset + len;
    const array = this.array;
    if (array !== null && array.heldFrom >= 0) this.settled = <u64>array.heldFrom;
    if (this.deferred.length > 0) this.settled = min(this.settled, this.deferred[0].at);
  }

  /** Bytes to come that are replaced by prefill's whatever they are. */
  get replacedAhead(): u64 {
    return this.stage == Stage.Array ? this.array!.replacedAhead(this) : 0;
  }

  /** Whether what has come from `offset` on, up to the last byte read, is all replaced by prefill's. */
  isReplaced(offset: u64): bool {
    const array = this.array;
    if (this.stage != Stage.Array || array === null || array.heldFrom >= 0) return false;
    return this.arrayFrom < offset && this.position <= array.replacedTo(this);
  }

  /** Where the array that is being read begins. */
  private arrayFrom: u64 = 0;

  /** Whether an array has begun in a response that decode served alone, also one that becomes `null`. */
  get begun(): bool {
    return this.values > 0 || this.drops > 0;
  }

  /** Whether an array is being read, and more of it is to come. */
  get inArray(): bool {
    return this.stage == Stage.Array;
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
    this.choicesInEvent = 0;
    this.arraysBefore = this.choices;
    this.element = -1;
    this.arraysInElement = 0;
    this.forgetRaw();
    this.valuesInDocument = 0;
    this.drops = 0;
    this.uncached = false;
    // Counts of an event say nothing of the next: they may be counts so far.
    this.counts.reset();
  }

  /** What is said to be a stream of events is none, and a client that reads it all the same may find arrays in it. */
  refuseBody(): void {
    this.refuse(Reason.Format);
  }

  /** Whether no document has begun that has not ended. */
  get betweenDocuments(): bool {
    return this.complete || this.scanner.offset == 0;
  }

  /** Bytes to come that may leave nothing behind: the padding of an array. */
  get paddingAhead(): u64 {
    return this.stage == Stage.Array ? this.array!.paddingAhead : 0;
  }

  /** Whether bytes that were read must not leave yet. */
  get holding(): bool {
    const array = this.array;
    return (array !== null && array.heldFrom >= 0) || this.deferred.length > 0;
  }

  /** Whether everything that was read may be acted upon: no array waits for the end of the document. */
  get decided(): bool {
    return this.undecided == 0 && !this.waitsForZero;
  }

  /** Whether arrays have come, and decode has not said yet that nothing of its prompt was cached. */
  private get waitsForZero(): bool {
    const alone = this.alone;
    return alone !== null && alone.cached >= CachedRule.Zero && this.choices > 0 && !this.uncached;
  }

  /** Whether some of prefill's routing is in the response. */
  get merged(): bool {
    return this.choices > 0 || this.placed;
  }

  /** Whether generated rows have come in a stream that had no place for the prompt's. */
  get unplaced(): bool {
    return this.expected.prompt.format == Format.Prompt && this.choices > 0 && !this.placed;
  }

  free(): void {
    this.scanner.free();
    this.lists.free();
    for (let i = 0; i < this.known.length; i++) {
      const array = this.known[i];
      if (array !== null) array.free();
    }
  }

  private read(): void {
    const scanner = this.scanner;
    while (this.reason == Reason.None && this.again == Form.Unknown) {
      if (this.stage == Stage.Array) {
        const array = this.array!;
        const progress = array.read(this);
        if (progress == Progress.More) return;
        if (progress == Progress.Refused) this.refuseArray(array);
        else if (progress == Progress.Broken) this.refuse(array.reason);
        else this.stage = Stage.Scan;
        continue;
      }
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

  private onValue(): void {
    if (this.stage == Stage.Drop) return;
    const scanner = this.scanner;
    const place = <Place>scanner.id;
    switch (place) {
      case Place.Root:
        this.list = scanner.first == 0x5b;
        if (!this.list && scanner.first != 0x7b) this.refuse(Reason.Json);
        // No engine has events of several elements, of which prefill's rows would be for one each.
        if (this.list && this.events && this.alone === null) this.refuse(Reason.Format);
        break;
      case Place.Element:
        this.element++;
        this.arraysInElement = 0;
        this.arraysBefore = this.choices;
        this.uncached = false;
        this.forgetRaw();
        this.counts.reset();
        break;
      case Place.ElementChoices:
        this.refuse(Reason.Json);
        break;
      case Place.Choices:
        if (++this.choicesSeen > 1 && this.treatment != Treatment.Null) this.refuse(Reason.Duplicate);
        break;
      case Place.Choice:
        this.choiceIsObject = scanner.first == 0x7b;
        this.choicesInDocument++;
        this.choicesInEvent++;
        this.arraysInChoice = 0;
        this.rawInChoice = 0;
        this.valuesInChoice = 0;
        this.tokens = -1;
        this.counter.beginChoice();
        break;
      case Place.Array:
        this.onArray(++this.arraysInChoice > 1);
        break;
      case Place.Raw:
        this.onArray(++this.arraysInElement > 1);
        break;
      case Place.ChoiceRaw:
        this.onArray(++this.rawInChoice > 1);
        break;
      case Place.Data:
      case Place.Shape:
      case Place.Dimension:
      case Place.Start:
      case Place.Dtype: {
        const array = this.array;
        if (array !== null) {
          if (array.onValue(this, place)) this.stage = Stage.Array;
        } else if (place == Place.Shape && scanner.first != 0x5b) this.checkGenerated(0, -1);
        break;
      }
      case Place.Row:
      case Place.Layer:
        if (this.listed && scanner.first != 0x5b) this.refuse(Reason.Shape);
        break;
      case Place.Expert:
        if (this.listed && scanner.first == 0x5b) this.refuse(Reason.Shape);
        break;
      case Place.PromptExperts:
      case Place.ChoicePromptExperts:
        this.onPromptExperts(place == Place.ChoicePromptExperts);
        break;
      case Place.PromptLogprobs:
      case Place.ChoicePromptLogprobs:
        this.onPrefillValue(Kind.PromptLogprobs, place == Place.ChoicePromptLogprobs);
        break;
      case Place.CachedTokens:
        this.onPrefillValue(Kind.CachedTokens, false);
        break;
      case Place.TokensDetails:
        if (scanner.first == 0x6e) this.onPrefillValue(Kind.TokensDetails, false);
        break;
      case Place.Usage:
        this.counts.usage.reset();
        break;
      case Place.Meta:
        this.counts.meta.reset();
        break;
      default:
    }
  }

  private onArray(duplicate: bool): void {
    const scanner = this.scanner;
    const first = scanner.first;
    const prompt = this.expected.prompt;
    if (this.treatment == Treatment.Null) {
      if (first != 0x6e) this.dropFor(null);
      return;
    }
    if (duplicate) return this.refuseValue(Reason.Duplicate);
    if (first == 0x6e) return;
    if (this.alone !== null) return this.inspect();
    const raw = scanner.id == Place.Raw || scanner.id == Place.ChoiceRaw;
    if (!raw && ++this.arrays > this.expected.choices) return this.refuse(Reason.Choices);
    if (++this.values > MAX_VALUES) return this.refuse(Reason.Memory);
    if (prompt.format == Format.None) return this.refuseValue(prompt.missing);
    const format = formatOf(raw, first);
    if (format == Format.None) return this.refuseValue(Reason.Format);
    // Generated rows in lists or objects.
    if (prompt.format == Format.Prompt && !raw && first != 0x22) return this.generated();
    if (format != prompt.format) return this.refuseValue(Reason.Mixed);
    const plan = this.planHere(prompt);
    if (plan === null) return this.refuseValue(Reason.Choices);
    this.begin(format, plan);
  }

  private begin(format: Format, plan: RowPlan | null): void {
    const array = this.arrayOf(format);
    this.array = array;
    this.arrayFrom = this.position;
    if (array.begin(this, plan)) this.stage = Stage.Array;
    else if (array.reason != Reason.None) this.refuse(array.reason);
  }

  /** An array, or prompt rows, of a request that decode serves alone. */
  private inspect(): void {
    const first = this.scanner.first;
    const place = <Place>this.scanner.id;
    if (++this.values > MAX_VALUES) return this.refuse(Reason.Memory);
    const format = formatOf(place == Place.Raw || place == Place.ChoiceRaw, first);
    if (format == Format.None) return this.refuseValue(Reason.Format);
    if (format != Format.Prompt) return this.begin(format, null);
    this.beginLists();
  }

  private beginLists(): void {
    this.listed = true;
    this.lists.begin();
    this.edited();
  }

  /** Prefill's rows for the element that is being read; null when nobody can tell which they are. */
  private planHere(prompt: Prompt): RowPlan | null {
    const several = prompt.plans.length > 1;
    const prompts = this.expected.prompts > 1;
    // An array beside no other says nothing of which prompt it is of, and one of a list is of one of them.
    if (this.list ? prompts && !several : prompts || several) return null;
    return prompt.planOf(max(this.element, 0));
  }

  /** Rows that decode forwarded itself, beside prefill's value. */
  private generated(): void {
    // Prefill's value ends with the row of the last prompt token, and a row of decode's can't be put into it.
    if (this.expected.prompt.lastRowOfDecode) return this.refuseValue(Reason.Rows);
    if (this.scanner.first == 0x7b) return this.begin(Format.Object, null);
    this.beginLists();
  }

  private arrayOf(format: Format): DecodeArray {
    const place = format == Format.Npy ? 0 : format == Format.Object ? 1 : 2;
    const known = this.known[place];
    if (known !== null) {
      known.reason = Reason.None;
      return known;
    }
    const made: DecodeArray =
      format == Format.Npy ? new NpyDecode() : format == Format.Object ? new ObjectDecode() : new RawDecode();
    this.known[place] = made;
    return made;
  }

  private onPromptExperts(inChoice: bool): void {
    const isNull = this.scanner.first == 0x6e;
    const prompt = this.expected.prompt;
    if (this.treatment == Treatment.Null) {
      if (!isNull) this.dropFor(null);
      return;
    }
    if (this.alone !== null) {
      const again = this.hasSeen(Kind.PromptExperts, inChoice);
      this.see(Kind.PromptExperts, inChoice);
      if (again) return this.refuseValue(Reason.Duplicate);
      if (!isNull) this.inspect();
      return;
    }
    if (prompt.format == Format.Prompt) {
      if (this.hasSeen(Kind.PromptExperts, inChoice)) return this.refuseValue(Reason.Duplicate);
      this.placed = true;
      if (!this.onPrefillValue(Kind.PromptExperts, inChoice)) this.refuseValue(Reason.Mixed);
      return;
    }
    if (!isNull) this.refuseValue(prompt.format == Format.None ? prompt.missing : Reason.Mixed);
  }

  /** A value of decode's that prefill knows goes for prefill's. False when prefill had it at another place. */
  private onPrefillValue(kind: Kind, inChoice: bool): bool {
    this.see(kind, inChoice);
    const value = this.expected.prompt.value(kind);
    if (value === null || this.treatment == Treatment.Null) return true;
    if (value.inChoice != inChoice) return false;
    if (this.mayCopy(kind)) this.dropFor(value);
    return true;
  }

  private see(kind: Kind, inChoice: bool): void {
    const bit = 1 << (<i32>kind);
    if (inChoice) this.valuesInChoice |= bit;
    else this.valuesInDocument |= bit;
  }

  private hasSeen(kind: Kind, inChoice: bool): bool {
    const seen = inChoice ? this.valuesInChoice : this.valuesInDocument;
    return (seen & (1 << (<i32>kind))) != 0;
  }

  /** Whether a value of prefill's may be put in once more; else the response is refused. */
  private mayCopy(kind: Kind): bool {
    if (kind != Kind.PromptExperts && kind != Kind.PromptLogprobs) return true;
    if (<i64>++this.copies <= 2 * <i64>this.expected.choices + SPARE_COPIES) return true;
    this.refuse(Reason.Choices);
    return false;
  }

  private onValueEnd(): void {
    const scanner = this.scanner;
    const place = <Place>scanner.id;
    const array = this.array;
    if (this.stage == Stage.Drop) {
      if (isDroppable(place)) this.endDrop();
      return;
    }
    switch (place) {
      case Place.TokenIds:
        this.tokens = this.counter.tokens = countOf(scanner);
        break;
      case Place.ChoiceIndex:
        this.counter.index = scanner.integer;
        break;
      case Place.PromptTokens:
        this.counts.usage.prompt = scanner.integer;
        break;
      case Place.CompletionTokens:
        this.counts.usage.completion = scanner.integer;
        break;
      case Place.MetaPromptTokens:
        this.counts.meta.prompt = scanner.integer;
        break;
      case Place.MetaCompletionTokens:
        this.counts.meta.completion = scanner.integer;
        break;
      case Place.CachedTokens:
      case Place.MetaCachedTokens:
        this.onCached(scanner.integer);
        break;
      case Place.Array:
      case Place.Raw:
      case Place.ChoiceRaw:
        if (array !== null) this.endArray(array, place);
        else if (this.listed) this.endLists(place);
        break;
      case Place.PromptExperts:
      case Place.ChoicePromptExperts:
        if (this.alone === null) break;
        if (array !== null) this.endArray(array, place);
        else if (this.listed) this.endLists(place);
        break;
      case Place.Shape:
        if (array !== null) array.onValueEnd(this, place);
        if (scanner.count != 3) this.checkGenerated(0, -1);
        break;
      case Place.Data:
      case Place.Start:
      case Place.Dtype:
        if (array !== null) array.onValueEnd(this, place);
        break;
      case Place.Dimension:
        if (array !== null) array.onValueEnd(this, place);
        this.checkGenerated(scanner.index, scanner.integer);
        break;
      case Place.Row:
        if (!this.listed) break;
        this.checkGenerated(1, scanner.count);
        this.lists.endRow();
        break;
      case Place.Layer:
        if (!this.listed) break;
        this.checkGenerated(2, scanner.count);
        this.lists.endLayer(scanner.count);
        break;
      case Place.Expert:
        if (this.listed) this.lists.expert(scanner.integer);
        break;
      case Place.Choice:
        if (!this.counter.endChoice() && this.treatment != Treatment.Null) this.refuse(Reason.Rows);
        if (!this.events && this.choiceIsObject) this.insertMissing(true);
        break;
      case Place.Element:
        this.checkElement();
        this.checkCached();
        break;
      case Place.Root:
        if (!this.list && !this.events) this.insertMissing(false);
        break;
      default:
    }
  }

  private endArray(array: DecodeArray, place: Place): void {
    const heldFrom = array.heldFrom;
    let reason = array.end(this);
    const edited = reason == Reason.None;
    if (edited) reason = this.examination.judge();
    if (reason == Reason.None) {
      // What is not decided is read again, and what is deferred is counted with its element.
      if (this.undecided == 0 && this.deferred.length == 0) this.countRows(place);
      this.array = null;
      return;
    }
    // Some of an array that was not held to its end may have left.
    if (heldFrom < 0) return this.refuse(reason);
    if (edited) {
      // Good by itself, but not beside the rows of the others.
      this.rope.forgetEdits(<u64>heldFrom);
      this.choices--;
      array.heldFrom = heldFrom;
    }
    array.reason = reason;
    this.refuseArray(array);
    if (this.stage == Stage.Drop) this.endDrop();
  }

  /** Nested lists have ended: generated rows of decode's, or where it served the request alone the prompt's, too. */
  private endLists(place: Place): void {
    this.listed = false;
    let reason = this.lists.reason;
    if (reason == Reason.None) reason = this.examination.judge();
    if (reason != Reason.None) return this.refuse(reason);
    this.covers(0, this.lists.rows);
    this.countRows(place);
  }

  /** The array that has ended, by the tokens of its prompt where prefill has told them. */
  private countRows(place: Place): void {
    const prompt = this.expected.prompt;
    if (place == Place.PromptExperts || place == Place.ChoicePromptExperts) {
      // One value for each choice, or for all of them.
      const rows = <i64>this.rows;
      if (this.promptRows >= 0 && this.promptRows != rows) this.refuse(Reason.Rows);
      this.promptRows = rows;
      return;
    }
    if (this.alone !== null) return this.counter.add(this.firstRow, this.rows, -1);
    if (prompt.format == Format.Prompt)
      return this.counter.add(prompt.promptEnd, this.rows, prompt.promptEnd);
    if (prompt.format == Format.Raw) return;
    const plan = prompt.planOf(max(this.element, 0));
    if (plan !== null) this.counter.add(this.firstRow, this.rows, plan.promptEnd);
  }

  /** Decode's own `cached_tokens`; below 0: not a plain number. */
  private onCached(tokens: i64): void {
    const alone = this.alone;
    if (alone === null) return;
    if (tokens == 0) this.uncached = alone.cached != CachedRule.Never;
    else if (tokens > 0 && alone.cached != CachedRule.Any) this.refuseCached();
  }

  /** The document, or an element of a list, has ended: its arrays needed a word about the cache. */
  private checkCached(): void {
    const alone = this.alone;
    if (alone === null || alone.cached < CachedRule.Zero || this.uncached) return;
    if (this.choices > this.arraysBefore) this.refuseCached();
  }

  private refuseCached(): void {
    if (this.treatment != Treatment.Null) this.refuse(Reason.Cached);
  }

  /** A dimension of decode's generated rows, beside prefill's value: 1 layers, 2 top_k; a size below 0 is none. */
  private checkGenerated(dimension: i32, size: i64): void {
    const prompt = this.expected.prompt;
    if (prompt.format != Format.Prompt || this.treatment == Treatment.Null) return;
    if (dimension > 2 || size < 0) return this.refuse(Reason.Shape);
    if (dimension == 1 && <u64>size != prompt.layers) this.refuse(Reason.Layers);
    if (dimension == 2 && <u64>size != prompt.topK) this.refuse(Reason.TopK);
  }

  /** An object of decode's ends without a member that prefill's had: it gets prefill's. */
  private insertMissing(inChoice: bool): void {
    if (this.treatment == Treatment.Null) return;
    const values = this.expected.prompt.values;
    const seen = inChoice ? this.valuesInChoice : this.valuesInDocument;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      const kind = value.kind;
      if (kind != Kind.PromptExperts && kind != Kind.PromptLogprobs) continue;
      if (value.inChoice != inChoice || (seen & (1 << (<i32>kind))) != 0) continue;
      if (!this.mayCopy(kind)) return;
      if (kind == Kind.PromptExperts) this.placed = true;
      // The brace has been passed.
      const at = this.position - 1;
      const key = kind == Kind.PromptExperts ? PROMPT_EXPERTS : PROMPT_LOGPROBS;
      if (this.scanner.count > 0) this.rope.replace(at, 0, COMMA.ptr, COMMA.len);
      this.rope.replace(at, 0, key.ptr, key.len);
      this.rope.replaceFrom(at, 0, value.text, 0, value.text.length);
      this.growth += <i64>((this.scanner.count > 0 ? COMMA.len : 0) + key.len) + <i64>value.text.length;
    }
  }

  /** An element with an array without a header has ended. */
  private checkElement(): void {
    const rows = this.rawRows;
    if ((rows < 0 && this.deferred.length == 0) || this.treatment == Treatment.Null) return;
    if (this.counts.differ) return this.refuse(Reason.Prompt);
    const plan = this.expected.prompt.planOf(max(this.element, 0));
    const tokens = this.counts.prompt;
    if (plan !== null && tokens >= 0 && <u64>tokens != plan.promptEnd) return this.refuse(Reason.Prompt);
    const single = this.list || this.expected.choices == 1;
    const generated = this.counts.completion;
    const alone = this.alone;
    const start = plan !== null ? <i64>plan.start : alone !== null ? max<i64>(alone.start, 0) : 0;
    if (this.deferred.length > 0)
      return this.readDeferred(single ? tokens + generated - 1 - start : -1, start);
    if (single && this.rawUneven) return this.refuse(Reason.Rows);
    if (single && tokens >= 0 && generated >= 1 && rows + start != tokens + generated - 1) {
      this.refuse(Reason.Rows);
    }
  }

  /**
   * Reads arrays of which only now is known how many rows they have: `rows`, the first one that of token `start`. Where the
   * counts do not tell it, nothing is known of the rows.
   */
  private readDeferred(rows: i64, start: i64): void {
    const counted = rows >= 0 && this.counts.prompt >= 0 && this.counts.completion >= 1;
    for (let i = 0; i < this.deferred.length && this.reason == Reason.None; i++) {
      const array = this.deferred[i];
      if (counted) this.refuseIf(readRaw(this, array, <u64>rows, <u64>start));
    }
    this.deferred.length = 0;
    if (this.reason == Reason.None) this.refuseIf(this.examination.judge());
  }

  private onDocumentEnd(): void {
    const prompt = this.expected.prompt;
    if (this.treatment == Treatment.Null) return;
    if (this.alone !== null) return this.endAlone(this.alone!);
    if (prompt.format == Format.None) return;
    if (this.list) {
      // Without one of them nobody knows which are there.
      const elements = prompt.plans.length;
      if (elements > 1 && this.choices > 0 && this.element + 1 != elements) this.refuse(Reason.Choices);
      return;
    }
    if (this.undecided > 0) {
      if (this.form == Form.Unknown) this.form = this.formOfAll(prompt);
      if (this.form == Form.Unknown) return this.refuse(Reason.Ambiguous);
      this.again = this.form;
    }
    // The tokens of a choice without an array are counted too. A stream tells all of them in an event of its own.
    const arrays = this.counter.arrays;
    const whole = arrays > 0 && arrays == (this.events ? this.expected.choices : this.choicesInDocument);
    const total = !this.events || this.expected.choices == 1 || this.choicesInEvent == 0;
    if (this.undecided == 0 && whole && total && !this.counter.matches(this.counts.completion)) {
      this.refuse(Reason.Rows);
    }
    // The legs must have tokenised the same prompt.
    const tokens = this.counts.prompt;
    const other = this.counts.differ || (tokens >= 0 && <u64>tokens != prompt.promptEnd);
    if (other && (this.merged || this.undecided > 0)) this.refuse(Reason.Prompt);
    this.checkElement();
    // Prefill's value may stand beside no rows of decode's. In a stream these may still come.
    if (this.placed && !this.events) this.refuseIf(this.examination.judge());
  }

  /** A document of a request that decode served alone has ended. */
  private endAlone(alone: Alone): void {
    if (!this.list) this.checkElement();
    this.checkCached();
    const counter = this.counter;
    const whole = counter.arrays > 0 && counter.arrays == this.choicesInDocument;
    if (this.list || this.events || !alone.counted || !whole) return;
    const counts = this.counts;
    // Prompts share nothing of a choice: each has as many samples as the others.
    if (counts.differ) return this.refuse(Reason.Prompt);
    const prompts = this.expected.prompts;
    let good: bool;
    if (this.promptRows < 0)
      good = counter.matchesAlone(counts.prompt, counts.completion, prompts, alone.start);
    else {
      // The prompt's rows stand apart, and an array has the generated ones.
      const prompt = prompts > 1 || counts.prompt < 0 || counts.prompt == this.promptRows;
      good = prompt && counter.matchesAlone(0, counts.completion, prompts, 0);
    }
    if (!good) this.refuse(Reason.Rows);
  }

  /** The form of all arrays together, from the number of tokens of all choices. */
  private formOfAll(prompt: Prompt): Form {
    // The tokens of a choice without an array are counted too.
    if (this.counts.completion < 0 || this.undecided != this.choicesInDocument) return Form.Unknown;
    const plan = prompt.planOf(0);
    if (plan === null) return Form.Unknown;
    const arrays = <u64>this.undecided;
    const held = this.undecidedRows + arrays;
    const generated = <u64>this.counts.completion;
    if (held == generated + arrays * (plan.promptEnd - plan.seam)) return Form.Tail;
    return held == generated + arrays * plan.promptEnd ? Form.Full : Form.Unknown;
  }

  /** The value at the cursor goes for prefill's, or for `null`. */
  private dropFor(value: PrefillValue | null): void {
    if (++this.drops > MAX_DROPS) return this.refuse(Reason.Memory);
    this.instead = value;
    this.dropFrom = this.position;
    this.stage = Stage.Drop;
  }

  /** The value at the cursor, of which nothing has left, can't be merged. */
  private refuseValue(reason: Reason): void {
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(reason);
    this.nulled = reason;
    this.dropFor(null);
  }

  /** The array that was being read, and of which nothing has left, can't be merged. */
  private refuseArray(array: DecodeArray): void {
    const from = <u64>array.heldFrom;
    array.heldFrom = -1;
    this.array = null;
    this.stage = Stage.Scan;
    if (this.treatment != Treatment.MergeOrNull) return this.refuse(array.reason);
    this.nulled = array.reason;
    this.instead = null;
    this.dropFrom = from;
    this.stage = Stage.Drop;
  }

  private dropTo(offset: u64): void {
    if (offset == this.dropFrom) return;
    this.rope.replace(this.dropFrom, offset - this.dropFrom, NULL_TEXT, 0);
    this.growth -= <i64>(offset - this.dropFrom);
    this.dropFrom = offset;
  }

  /** The value that goes has ended. */
  private endDrop(): void {
    this.dropTo(this.position);
    this.stage = Stage.Scan;
    const value = this.instead;
    if (value !== null) {
      this.rope.replaceFrom(this.position, 0, value.text, 0, value.text.length);
      this.growth += <i64>value.text.length;
      return;
    }
    this.rope.replace(this.position, 0, NULL_TEXT, 4);
    this.growth += 4;
    if (this.treatment == Treatment.Null) this.choices++;
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }

  private refuseIf(reason: Reason): void {
    if (reason != Reason.None) this.refuse(reason);
  }
}

/** The format of a value that begins with `first`; `raw`: it is one of SGLang's own members. */
function formatOf(raw: bool, first: u8): Format {
  if (first == 0x22) return raw ? Format.Raw : Format.Npy;
  if (raw) return Format.None;
  return first == 0x7b ? Format.Object : first == 0x5b ? Format.Prompt : Format.None;
}

/** Elements of the value that has ended; -1: it is no list. */
function countOf(scanner: Scanner): i64 {
  return scanner.first == 0x5b ? scanner.count : -1;
}

/** Places whose value can go as a whole. */
function isDroppable(place: Place): bool {
  switch (place) {
    case Place.Array:
    case Place.Raw:
    case Place.ChoiceRaw:
    case Place.PromptExperts:
    case Place.ChoicePromptExperts:
    case Place.PromptLogprobs:
    case Place.ChoicePromptLogprobs:
    case Place.CachedTokens:
    case Place.TokensDetails:
      return true;
    default:
      return false;
  }
}
