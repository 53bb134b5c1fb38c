// Reads prefill's reply: the prompt rows in whatever format they came, where the values lie that decode does not have, and
// what the reply says of the prompt. The caller feeds windows of the body in order and fetches rows and values itself, so
// that they are copied once.

import { Event, Scanner } from '../json/scanner';
import { Counts } from './counts';
import { Examination } from './examination';
import { PrefillArray, Progress, Wanted } from './formats/format';
import { NpyPrefill } from './formats/npy_string';
import { ObjectPrefill } from './formats/raw_object';
import { RawPrefill } from './formats/raw_string';
import { Place, replyPaths } from './places';
import { Format, Kind, Prompt } from './prompt';
import { Reason } from './reason';
import { RowPlan } from './row_plan';
import { PromptRows, RowChars } from './rows';

/** Most prompts in a request that P/D serves: more arrays are no answer to it. */
const MAX_ARRAYS: i32 = 4096;

const enum Stage {
  Scan,
  /** An array reads what is its own. */
  Array,
  /** Waits for `takeRows`. */
  Rows,
}

/** A value in the body: [start, end), 0 when there is none. */
@final
export class Span {
  inChoice: bool = false;
  start: u64 = 0;
  end: u64 = 0;
  open: bool = false;

  get len(): u64 {
    return this.end - this.start;
  }
}


@final
export class PrefillReply {
  /** Why the rows can't be used; `None` also when there are none. */
  reason: Reason = Reason.None;
  /** False once the body is known not to be a JSON document. */
  json: bool = true;
  /** The value of `kv_transfer_params`, when it is an object. */
  readonly params: Span = new Span();
  /** The first choice's `finish_reason`. */
  readonly finishReason: Span = new Span();
  /** Tokens of the prompt as the counts say, else as the rows do; -1 when neither is there. Known after `giveRows`. */
  promptTokens: i64 = -1;

  private scanner: Scanner = Scanner.take(replyPaths());
  private stage: Stage = Stage.Scan;
  /** The array that is being read, and all that have been, in order. */
  private array: PrefillArray | null = null;
  private arrays: PrefillArray[] = [];
  /** Tokens of the element of each array, or -1. */
  private arrayElements: i32[] = [];
  private arrayPrompts: i64[] = [];
  private arrayCompletions: i64[] = [];
  private counts: Counts = new Counts();
  private format: Format = Format.None;
  /** The reply is a list of elements, as SGLang's are. */
  list: bool = false;
  private elements: i32 = 0;
  private choicesSeen: i32 = 0;
  private choices: i32 = 0;
  private arraysInChoice: i32 = 0;
  private arraysInElement: i32 = 0;
  private rawInChoice: i32 = 0;
  private spans: StaticArray<Span | null> = new StaticArray<Span | null>(Kind.Count);

  /** `size`: bytes of the whole body. */
  constructor(
    private size: u64,
    /** First token whose row was asked for, of formats that do not say. */
    private start: u64,
    /** What checked rows say (borrowed). */
    private examination: Examination,
  ) {}

  /** Offset of the next byte that is wanted. */
  get offset(): u64 {
    return this.scanner.offset;
  }

  /** Rows that the caller must fetch, then call `takeRows` and `resume`; null when there are none. */
  get wanted(): Wanted | null {
    const array = this.array;
    return this.stage == Stage.Rows && array !== null ? array.wanted : null;
  }

  /** Where the value of a kind lies; null when there is none. After `finish`. */
  span(kind: Kind): Span | null {
    const span = this.spans[kind];
    return span === null || span.end == 0 ? null : span;
  }

  /** Reads a window that starts at `offset`, up to the rows or its end. False when the body is not JSON. */
  push(ptr: usize, len: usize): bool {
    this.scanner.feed(ptr, len);
    return this.scan();
  }

  /** The rows that were asked for; `chars` are taken over. `reason`: what a check of them found. */
  takeRows(chars: RowChars, reason: Reason): void {
    const array = this.array!;
    array.take(this.scanner, chars, reason);
    if (array.reason != Reason.None) this.refuse(array.reason);
    this.stage = reason == Reason.Base64 || reason == Reason.Size ? Stage.Scan : Stage.Array;
  }

  /** Goes on with the window after `takeRows`. False when the body is not JSON. */
  resume(): bool {
    return this.scan();
  }

  /** After the last byte: false when the body is not a whole JSON document. */
  finish(): bool {
    return this.json && this.scanner.done;
  }

  /** Hands the rows over, if they are good; else `prompt.missing` says why not. After `finish`. */
  giveRows(prompt: Prompt): void {
    this.promptTokens = this.counts.prompt;
    if (this.counts.differ) this.refuse(Reason.Prompt);
    if (this.span(Kind.PromptExperts) !== null) {
      // Lists and objects of `choices` are then the generated rows.
      if (this.format == Format.None || this.format == Format.Object || this.format == Format.Prompt) {
        prompt.format = Format.Prompt;
      } else this.refuse(Reason.Mixed);
    } else if (this.format == Format.Prompt) this.refuse(Reason.Format);
    else if (this.arrays.length == 0 && this.isBehindPrompt) {
      prompt.format = Format.Raw;
      prompt.plans.push(new RowPlan(PromptRows.none(this.start), this.promptTokens, prompt.lastRowOfDecode));
    } else if (this.arrays.length > 0 && this.reason == Reason.None) {
      prompt.format = this.format;
      if (this.list && this.arrays.length != this.elements) this.refuse(Reason.Missing);
      for (let i = 0; i < this.arrays.length && this.reason == Reason.None; i++) this.giveArray(i, prompt);
    }
    if (this.reason != Reason.None) prompt.refuse(this.reason);
    prompt.tokens = this.promptTokens;
  }

  /** Whether rows were asked for from behind the prompt on: SGLang's OpenAI endpoints then leave prefill's empty array out. */
  private get isBehindPrompt(): bool {
    const tokens = this.promptTokens;
    return (
      !this.list && tokens >= 0 && this.start > 0 && this.start >= <u64>tokens && this.reason == Reason.None
    );
  }

  private giveArray(i: i32, prompt: Prompt): void {
    const array = this.arrays[i];
    const tokens = this.list ? this.arrayPrompts[i] : this.promptTokens;
    const completion = this.list ? this.arrayCompletions[i] : this.counts.completion;
    const rows = array.giveRows(tokens, completion, this.list ? 1 : this.choices);
    if (rows === null) return this.refuse(array.reason);
    prompt.plans.push(new RowPlan(rows, tokens < 0 ? rows.end : tokens, prompt.lastRowOfDecode));
    if (this.promptTokens < 0 && !this.list) this.promptTokens = rows.end;
  }

  /** Gives back what was not handed over. */
  free(): void {
    for (let i = 0; i < this.arrays.length; i++) this.arrays[i].free();
    this.arrays.length = 0;
    this.scanner.free();
  }

  private scan(): bool {
    const scanner = this.scanner;
    while (true) {
      switch (this.stage) {
        case Stage.Array: {
          const array = this.array!;
          const progress = array.read(scanner);
          if (progress == Progress.More) return true;
          this.stage = array.wanted !== null ? Stage.Rows : Stage.Scan;
          if (array.reason != Reason.None) this.refuse(array.reason);
          break;
        }
        case Stage.Rows:
          return true;
        default: {
          const event = scanner.next();
          if (event == Event.More) return true;
          if (event == Event.Failed) {
            this.json = false;
            return false;
          }
          if (event == Event.Value) {
            if (!this.onValue()) return false;
          }
          if (event == Event.ValueEnd) this.onValueEnd();
        }
      }
    }
  }

  /** False when the root is neither an object nor a list. */
  private onValue(): bool {
    const scanner = this.scanner;
    const place = <Place>scanner.id;
    switch (place) {
      case Place.Root:
        this.list = scanner.first == 0x5b;
        this.json = this.list || scanner.first == 0x7b;
        break;
      case Place.Element:
        this.elements++;
        this.arraysInElement = 0;
        this.counts.reset();
        break;
      case Place.ElementChoices:
        this.json = false;
        break;
      case Place.Choices:
        if (++this.choicesSeen > 1) this.refuse(Reason.Duplicate);
        break;
      case Place.Choice:
        this.choices++;
        this.arraysInChoice = 0;
        break;
      case Place.Array:
        this.onArray();
        break;
      case Place.Raw:
        if (++this.arraysInElement > 1) this.refuse(Reason.Duplicate);
        if (scanner.first == 0x6e) break;
        this.onRaw();
        break;
      case Place.ChoiceRaw:
        // The first choice's are those of the reply once more.
        if (this.choices > 1) break;
        if (++this.rawInChoice > 1) this.refuse(Reason.Duplicate);
        if (scanner.first != 0x6e) this.onRaw();
        break;
      case Place.Data:
      case Place.Shape:
      case Place.Dimension:
      case Place.Start:
      case Place.Dtype: {
        const array = this.array;
        if (array !== null && this.reason == Reason.None && array.onValue(scanner, place))
          this.stage = Stage.Array;
        break;
      }
      case Place.KvTransferParams:
        this.params.start = this.params.end = scanner.offset;
        this.params.open = scanner.first == 0x7b;
        break;
      case Place.FinishReason:
        if (this.choices == 1) this.finishReason.start = scanner.offset;
        break;
      case Place.PromptExperts:
      case Place.ChoicePromptExperts:
        this.open(Kind.PromptExperts, place == Place.ChoicePromptExperts);
        break;
      case Place.PromptLogprobs:
      case Place.ChoicePromptLogprobs:
        this.open(Kind.PromptLogprobs, place == Place.ChoicePromptLogprobs);
        break;
      case Place.TokensDetails:
        this.open(Kind.TokensDetails, false);
        break;
      case Place.CachedTokens:
        this.open(Kind.CachedTokens, false);
        break;
      case Place.Usage:
        this.counts.usage.reset();
        break;
      case Place.Meta:
        this.counts.meta.reset();
        break;
      default:
    }
    return this.json;
  }

  private onArray(): void {
    const first = this.scanner.first;
    if (++this.arraysInChoice > 1) this.refuse(Reason.Duplicate);
    if (first == 0x6e || first == 0x5b) {
      // Lists are generated rows, of which prefill's reply needs none; without the prompt's they are no format.
      if (first == 0x5b && this.format == Format.None) this.format = Format.Prompt;
      return;
    }
    if (this.choices > 1) return this.refuse(Reason.Choices);
    if (first == 0x22) this.begin(new NpyPrefill(this.size, this.examination));
    else if (first == 0x7b) this.begin(new ObjectPrefill(this.examination));
    else this.refuse(Reason.Format);
  }

  private onRaw(): void {
    const last = this.arrays.length - 1;
    const known = last >= 0 && this.arrayElements[last] == this.elements;
    if (known && this.format == Format.Raw) return;
    if (this.scanner.first != 0x22) this.refuse(Reason.Format);
    else this.begin(new RawPrefill(this.start, this.examination));
  }

  private begin(array: PrefillArray): void {
    if (this.format != Format.None && this.format != array.format) this.refuse(Reason.Mixed);
    this.format = array.format;
    if (this.arrays.length == MAX_ARRAYS) this.refuse(Reason.Choices);
    if (this.reason != Reason.None) return array.free();
    this.array = array;
    this.arrays.push(array);
    this.arrayElements.push(this.elements);
    this.arrayPrompts.push(-1);
    this.arrayCompletions.push(-1);
    if (array.begin(this.scanner)) this.stage = Stage.Array;
  }

  private open(kind: Kind, inChoice: bool): void {
    const first = this.scanner.first;
    const span = new Span();
    span.start = this.scanner.offset;
    span.inChoice = inChoice;
    span.open = first != 0x6e;
    // Prefill has one choice: of several nobody knows which one counts.
    if (inChoice && this.choices > 1) span.open = false;
    const earlier = this.spans[kind];
    if (earlier !== null && kind == Kind.PromptExperts) {
      if (earlier.open && span.open) this.refuse(Reason.Duplicate);
    }
    this.spans[kind] = span;
  }

  private end(kind: Kind): void {
    const span = this.spans[kind];
    if (span !== null && span.open) span.end = this.scanner.offset;
  }

  private onValueEnd(): void {
    const scanner = this.scanner;
    const place = <Place>scanner.id;
    switch (place) {
      case Place.KvTransferParams:
        // An empty object hands nothing over: LMCache's multiprocess connector answers so.
        if (this.params.open && scanner.count > 0) this.params.end = scanner.offset;
        break;
      case Place.FinishReason:
        if (this.choices == 1) this.finishReason.end = scanner.offset;
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
      case Place.Element: {
        const last = this.arrays.length - 1;
        if (last >= 0 && this.arrayElements[last] == this.elements) {
          if (this.counts.differ) this.refuse(Reason.Prompt);
          this.arrayPrompts[last] = this.counts.prompt;
          this.arrayCompletions[last] = this.counts.completion;
        }
        break;
      }
      case Place.PromptExperts:
      case Place.ChoicePromptExperts:
        this.end(Kind.PromptExperts);
        break;
      case Place.PromptLogprobs:
      case Place.ChoicePromptLogprobs:
        this.end(Kind.PromptLogprobs);
        break;
      case Place.TokensDetails:
        this.end(Kind.TokensDetails);
        break;
      case Place.CachedTokens:
        if (scanner.integer >= 0) this.end(Kind.CachedTokens);
        break;
      case Place.Data:
      case Place.Shape:
      case Place.Dimension:
      case Place.Start:
      case Place.Dtype: {
        const array = this.array;
        if (array !== null) array.onValueEnd(scanner, place);
        break;
      }
      default:
    }
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }
}
