// Whether the arrays of decode's response have the rows that its counts of tokens ask for: those of
// a choice, of an element of a list, and of the whole document.

import { Deferred, Site } from './formats/format';
import { mergeRaw, readRaw } from './formats/raw_string';
import { Place } from './places';
import { Format, Prompt } from './prompt';
import { Reason } from './reason';
import { ReplyReader } from './reply_reader';
import { RowCounter } from './row_counter';
import { Form } from './row_plan';


@final
export class ResponseCounts {
  /** Rows of decode's own `prompt_routed_experts`; -1: it has none. */
  private promptRows: i64 = -1;

  constructor(
    /** What prefill brought (borrowed). */
    private prompt: Prompt,
    private counter: RowCounter,
    /** Prompts in the request. */
    private prompts: i32,
    /** Decode has served the request alone. */
    private alone: bool,
    /** The first token whose row the client asks for, where decode has served the request alone. */
    private start: i64,
  ) {}

  // ---- a choice

  beginChoice(site: Site): void {
    site.tokens = -1;
    this.counter.beginChoice();
  }

  /** A member of the choice has ended: its `token_ids`, or its `index`. */
  take(site: Site, place: Place): void {
    const scanner = site.scanner;
    if (place == Place.TokenIds) {
      this.counter.tokens = scanner.first == 0x5b ? scanner.count : -1;
      site.tokens = this.counter.tokensSoFar;
    } else if (place == Place.ChoiceIndex) this.counter.index = scanner.integer;
  }

  /** The choice has ended. False when its array does not have the rows of its tokens. */
  endChoice(): bool {
    return this.counter.endChoice();
  }

  /** An array of this element (-1: no list) has ended, and has told the site its rows. */
  add(site: Site, element: i32): void {
    const prompt = this.prompt;
    let firstRow = site.firstRow;
    let promptTokens: i64 = -1;
    if (!this.alone) {
      // An array without a header is counted with its element.
      if (prompt.format == Format.Raw) return;
      if (prompt.format == Format.Prompt) firstRow = promptTokens = prompt.promptEnd;
      else {
        const plan = prompt.planOf(max(element, 0));
        if (plan === null) return;
        promptTokens = plan.promptEnd;
      }
    }
    this.counter.add(firstRow, site.rows, promptTokens);
  }

  /** A `prompt_routed_experts` of decode's has ended: one for each choice, or for all of them. */
  addPrompt(site: Site): void {
    const rows = <i64>site.rows;
    if (this.promptRows >= 0 && this.promptRows != rows) site.refuse(Reason.Rows);
    this.promptRows = rows;
  }

  // ---- an element of a list, or a document that is no list

  /** Checks arrays without a header against the counts beside them. */
  endElement(site: Site, reply: ReplyReader): void {
    const counts = site.counts;
    const deferred = site.deferred.length > 0;
    if (site.rawRows < 0 && !deferred) return;
    if (counts.differ) return site.refuse(Reason.Prompt);
    if (deferred && site.deferred[0].merges) return this.mergeDeferred(site, reply.part);
    const plan = this.prompt.planOf(max(reply.element, 0));
    const tokens = counts.prompt;
    if (plan !== null && tokens >= 0 && <u64>tokens != plan.promptEnd) return site.refuse(Reason.Prompt);
    const start = plan !== null ? <i64>plan.start : max<i64>(this.start, 0);
    const generated = counts.completion;
    // The counts are of all choices together, and each may have another number of tokens.
    const single = reply.list || site.choicesAsked == 1;
    if (deferred) return this.readDeferred(site, single ? tokens + generated - 1 - start : -1, start);
    if (!single) return;
    const known = tokens >= 0 && generated >= 1;
    if (site.rawUneven || (known && site.rawRows + start != tokens + generated - 1)) site.refuse(Reason.Rows);
  }

  /** Merges the deferred arrays of an event, which is of prompt `part`; -1: nobody knows. */
  private mergeDeferred(site: Site, part: i32): void {
    const deferred: Deferred[] = site.deferred;
    const counts = site.counts;
    const plan = this.prompt.planOf(max(part, 0));
    const tokens = counts.prompt;
    let rows: i64 = -1;
    let fault = plan === null || part < 0 ? Reason.Choices : Reason.None;
    if (plan !== null && tokens >= 0) {
      if (<u64>tokens != plan.promptEnd) fault = Reason.Prompt;
      else if (counts.completion >= 1) rows = <i64>plan.end(counts.completion) - <i64>plan.start;
    }
    for (let i = 0; i < deferred.length && site.reason == Reason.None; i++) {
      let reason = fault;
      if (plan !== null && fault == Reason.None) reason = mergeRaw(site, deferred[i], plan, rows);
      if (reason == Reason.None) reason = site.examination.judge();
      if (reason != Reason.None) site.refuseDeferred(deferred[i], reason);
    }
    deferred.length = 0;
  }

  /**
   * Examines the deferred arrays, of which is now known that they have `rows` rows each, the first
   * of them that of token `start`. Where the counts do not tell, they are not examined.
   */
  private readDeferred(site: Site, rows: i64, start: i64): void {
    const deferred: Deferred[] = site.deferred;
    const counted = rows >= 0 && site.counts.prompt >= 0 && site.counts.completion >= 1;
    for (let i = 0; i < deferred.length && site.reason == Reason.None; i++) {
      if (counted) site.refuse(readRaw(site, deferred[i], <u64>rows, <u64>start));
    }
    deferred.length = 0;
    if (site.reason == Reason.None) site.refuse(site.examination.judge());
  }

  // ---- a document

  /** A document has ended that was merged. `placed`: prefill's `prompt_routed_experts` is in it. */
  endMerged(site: Site, reply: ReplyReader, placed: bool): void {
    const prompt = this.prompt;
    if (reply.list) {
      // Where an element is missing, nobody knows which of the prompts the others are of.
      const elements = prompt.plans.length;
      if (elements > 1 && site.choices > 0 && reply.element + 1 != elements) site.refuse(Reason.Choices);
      return;
    }
    if (site.undecided > 0) {
      if (site.form == Form.Unknown) site.form = this.formOfAll(site, reply);
      if (site.form == Form.Unknown) return site.refuse(Reason.Ambiguous);
      site.again = site.form;
    } else this.checkTotal(site, reply);
    // The legs must have tokenised the same prompt.
    const tokens = site.counts.prompt;
    // An event of SGLang's is of one of several prompts, with which its array is compared.
    const one = site.events && prompt.plans.length > 1;
    const other = site.counts.differ || (tokens >= 0 && !one && <u64>tokens != prompt.promptEnd);
    if (other && (site.choices > 0 || placed || site.undecided > 0)) site.refuse(Reason.Prompt);
    this.endElement(site, reply);
    // Without rows of decode's nothing has judged prefill's yet. In a stream rows may still come.
    if (placed && !site.events) site.refuse(site.examination.judge());
  }

  /** Compares all arrays with the count of generated tokens, which is that of all choices. */
  private checkTotal(site: Site, reply: ReplyReader): void {
    const arrays = this.counter.arrays;
    // The tokens of a choice without an array are counted, too.
    const choices = site.events ? site.choicesAsked : reply.choices;
    if (arrays == 0 || arrays != choices) return;
    // A stream tells the total of several choices in an event of its own, which has no choices.
    const total = !site.events || site.choicesAsked == 1 || reply.choices == 0;
    if (total && !this.counter.matches(site.counts.completion)) site.refuse(Reason.Rows);
  }

  /** The form of all arrays together, which follows from the number of tokens of all choices. */
  private formOfAll(site: Site, reply: ReplyReader): Form {
    // The tokens of a choice without an array are counted, too.
    if (site.counts.completion < 0 || site.undecided != reply.choices) return Form.Unknown;
    const plan = this.prompt.planOf(0);
    if (plan === null) return Form.Unknown;
    const arrays = <u64>site.undecided;
    const held = site.undecidedRows + arrays;
    const generated = <u64>site.counts.completion;
    // Where decode was asked from behind the prompt on, the difference is negative, and wraps.
    if (held == generated + arrays * (plan.promptEnd - plan.asked(site.tail))) return Form.Asked;
    return held == generated + arrays * plan.promptEnd ? Form.Full : Form.Unknown;
  }

  /** A document has ended, of a request that decode has served alone and the filter has read. */
  endAlone(site: Site, reply: ReplyReader): void {
    const counter = this.counter;
    const whole = counter.arrays > 0 && counter.arrays == reply.choices;
    if (reply.list || site.events || !whole) return;
    const counts = site.counts;
    if (counts.differ) return site.refuse(Reason.Prompt);
    const prompts = this.prompts;
    let good: bool;
    if (this.promptRows < 0)
      good = counter.matchesAlone(counts.prompt, counts.completion, prompts, this.start);
    else {
      // The prompt's rows stand apart, and an array has the generated ones.
      const prompt = prompts > 1 || counts.prompt < 0 || counts.prompt == this.promptRows;
      good = prompt && counter.matchesAlone(0, counts.completion, prompts, 0);
    }
    if (!good) site.refuse(Reason.Rows);
  }
}
