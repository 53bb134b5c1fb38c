// Whether the arrays of decode's response have the rows that its counts of tokens ask for: those of
// a choice, of an element of a list, and of the whole document.

import { Deferred, Site } from './formats/format';
import { mergeRaw, readRaw } from './formats/raw_string';
import { NAMED, Name } from './named_array';
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
      if (prompt.format == Format.Prompt) firstRow = promptTokens = prompt.promptEnd;
      else {
        const plan = prompt.routing.planOf(max(element, 0));
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
    if (site.rawEnd < 0 && !deferred) return;
    if (counts.differ) return site.refuse(Reason.Prompt);
    if (deferred && site.deferred[0].merges) return this.mergeDeferred(site, reply.part);
    const plan = this.prompt.leading.planOf(max(reply.element, 0));
    const tokens = counts.prompt;
    if (plan !== null && tokens >= 0 && <u64>tokens != plan.promptEnd) return site.refuse(Reason.Prompt);
    const generated = counts.completion;
    const known = tokens >= 0 && generated >= 1;
    // The counts are of all choices together, and each may have another number of tokens.
    const single = reply.list || site.choicesAsked == 1;
    if (deferred) this.readDeferred(site, reply.element, known && single ? tokens + generated - 1 : -1);
    if (!single || site.rawEnd < 0) return;
    if (site.rawUneven || (known && site.rawEnd != tokens + generated - 1)) site.refuse(Reason.Rows);
  }

  /** Merges the deferred arrays of an event, which is of prompt `part`; -1: nobody knows. */
  private mergeDeferred(site: Site, part: i32): void {
    const deferred: Deferred[] = site.deferred;
    const counts = site.counts;
    const tokens = counts.prompt;
    for (let i = 0; i < deferred.length && site.reason == Reason.None; i++) {
      const array = deferred[i];
      const plan = this.prompt.array(array.name).planOf(max(part, 0));
      let reason = Reason.Choices;
      if (plan !== null && part >= 0) {
        const generated = tokens >= 0 && counts.completion >= 1 ? counts.completion : -1;
        const rows = generated < 0 ? -1 : <i64>plan.end(generated) - <i64>plan.start;
        const other = tokens >= 0 && <u64>tokens != plan.promptEnd;
        reason = other ? Reason.Prompt : mergeRaw(site, array, plan, rows);
      }
      if (reason == Reason.None) reason = site.examination.judge();
      if (reason != Reason.None) site.refuseDeferred(array, reason);
    }
    deferred.length = 0;
  }

  /**
   * Examines the deferred arrays of an element (-1: no list), of which is now known that their last
   * row is that before the position `end`. Where the counts do not tell it (-1), none is examined.
   */
  private readDeferred(site: Site, element: i32, end: i64): void {
    const deferred: Deferred[] = site.deferred;
    for (let i = 0; i < deferred.length && site.reason == Reason.None && end >= 0; i++) {
      const start = this.startOf(deferred[i].name, element);
      // An array that was asked for from behind its end on has no rows, which is found, too.
      site.refuse(end < start ? Reason.Rows : readRaw(site, deferred[i], <u64>(end - start), <u64>start));
    }
    deferred.length = 0;
    if (site.reason == Reason.None) site.refuse(site.examination.judge());
  }

  /** The first token that has a row in decode's array of this name. */
  private startOf(name: Name, element: i32): i64 {
    const plan = this.prompt.array(name).planOf(max(element, 0));
    if (plan !== null) return <i64>plan.start;
    return NAMED[name].hasStart ? max<i64>(this.start, 0) : 0;
  }

  // ---- a document

  /** A document has ended that was merged. `placed`: prefill's `prompt_routed_experts` is in it. */
  endMerged(site: Site, reply: ReplyReader, placed: bool): void {
    const prompt = this.prompt;
    if (reply.list) {
      // Where an element is missing, nobody knows which of the prompts the others are of.
      const elements = prompt.leading.plans.length;
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
    const one = site.events && prompt.leading.plans.length > 1;
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
    const plan = this.prompt.routing.planOf(0);
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
