// What a format of routed_experts is: how an array is read in prefill's reply, and how one is
// edited in decode's response. There is a file for each format beside this one.

import { Block } from '../../bytes/block';
import { Rope } from '../../bytes/rope';
import { Scanner } from '../../json/scanner';
import { carriers, encodedLength } from '../base64';
import { Counts } from '../counts';
import { Name } from '../named_array';
import { Place, isRaw } from '../places';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { Examination } from '../examination';
import { Form, RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars } from '../rows';

/** How far the reading of an array has come. */
export const enum Progress {
  /** The scanner's window is used up. */
  More,
  /** What the format reads itself has been read, and the scanner goes on. */
  Done,
  /** The array can't be merged, and nothing of it has left. */
  Refused,
  /** The array can't be merged, and some of it may have left. */
  Broken,
}

/** Characters of the rows of prefill's array that the caller is to fetch. */
@final
export class Wanted {
  /** Offset in the body of the first one. */
  at: u64 = 0;
  /** How many; 0: all up to the first byte that is not of the base64 alphabet. */
  len: u64 = 0;
  /** Reads each piece as it comes (borrowed); null: the shape of the rows is not known yet. */
  reader: RowReader | null = null;
  /** How many characters a piece has, where `len` is known. */
  pieceLen: u64 = 0;
}

/** One array of prefill's reply. */
export abstract class PrefillArray {
  /** Why the array can't be used. */
  reason: Reason = Reason.None;
  /** Rows that the caller must fetch when `read` is `Done`, and hand to `take`. */
  wanted: Wanted | null = null;

  abstract get format(): Format;

  /** The value begins at the scanner's cursor. True: `read` comes next. */
  abstract begin(scanner: Scanner): bool;

  /** Reads what the format reads itself of a string that was entered. */
  abstract read(scanner: Scanner): Progress;

  /** Takes over the characters that were wanted. `reason`: what their check found. */
  abstract take(scanner: Scanner, chars: RowChars, reason: Reason): void;

  /** A member of the value begins. True: `read` comes next. */
  onValue(scanner: Scanner, place: Place): bool {
    return false;
  }

  onValueEnd(scanner: Scanner, place: Place): void {}

  /**
   * Hands the rows over when the counts beside the array are known (-1: they are not).
   * `completionTokens` are those of all `choices` together. `mayLackLast`: the row of the last
   * prompt token may be missing. Null: see `reason`.
   */
  abstract giveRows(
    promptTokens: i64,
    completionTokens: i64,
    choices: i32,
    mayLackLast: bool,
  ): PromptRows | null;

  abstract free(): void;
}

/** An array without a header: where in the body its characters are, and how many of them. */
@final
export class Deferred {
  constructor(
    readonly at: u64,
    readonly chars: u64,
    /** How many signs of padding are behind them. */
    readonly padding: u64,
    readonly name: Name,
    /** Whether rows of prefill's are merged with it. */
    readonly merges: bool,
  ) {}

  /** Where its quotes are. */
  get from(): u64 {
    return this.at - 1;
  }

  get end(): u64 {
    return this.at + this.chars + this.padding + 1;
  }
}

/** Decode's response around its arrays: what the formats read of it, and what they change. */
export abstract class Site {
  /** Why the merge failed; nothing more is read then. */
  reason: Reason = Reason.None;
  /** Whether all preconditions of the first array hold, so that its edits are in the rope. */
  planned: bool = false;
  /** How many arrays have been edited. */
  choices: i32 = 0;
  /** The form in which the response must be read again, because it was not known before its end. */
  again: Form = Form.Unknown;
  /** By how many bytes the edits so far make the body longer. */
  growth: i64 = 0;

  /** Offset in the body of the document that is scanned: each event of a stream has its own. */
  base: u64 = 0;
  /**
   * How many `token_ids` the choice that is being read has listed, in a stream with all events so
   * far; -1: it has not.
   */
  tokens: i64 = -1;
  /** Arrays whose form was not known when they came, and the rows in them. */
  undecided: i32 = 0;
  undecidedRows: u64 = 0;
  /**
   * The position behind the last row of the element's last array without a header, -1 where none
   * has come, and whether its arrays end at different positions.
   */
  rawEnd: i64 = -1;
  rawUneven: bool = false;
  /** How many arrays of each name have begun that are merged, or checked. */
  readonly begun: StaticArray<i32> = new StaticArray<i32>(Name.Count);

  constructor(
    readonly scanner: Scanner,
    readonly rope: Rope,
    /** Whether the body is a stream of events, each with a document of its own. */
    readonly events: bool,
    /** Counts of tokens that the document, or the element of a list, has told so far. */
    readonly counts: Counts,
    /** Judges the rows of both legs together (borrowed). */
    readonly examination: Examination,
    /** Choices asked for of each prompt, and the most tokens of each; -1: not known. */
    readonly choicesAsked: i32,
    readonly maxTokens: i64,
    /** Whether decode was asked for no rows that are prefill's. */
    readonly tail: bool,
    /** The form of the arrays, as far as it is known. */
    public form: Form,
  ) {}

  /** Keeps the first reason for which the merge fails; `None` is no reason. */
  refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }

  /** Offset in the body of the scanner's next byte. */
  get position(): u64 {
    return this.base + this.scanner.offset;
  }

  /** The edits of one more array are in the rope, or it leaves as it came. */
  edited(): void {
    this.planned = true;
    this.choices++;
  }

  /** Rows of the array that was read last: the position of the first one, and how many. */
  firstRow: u64 = 0;
  rows: u64 = 0;

  /** The array that is being read has `rows` rows, the first of them that of token `firstRow`. */
  covers(firstRow: u64, rows: u64): void {
    this.firstRow = firstRow;
    this.rows = rows;
  }

  /**
   * Arrays without a header of which is not known yet how many rows they have. Nothing from the
   * first of them on may leave.
   */
  readonly deferred: Deferred[] = [];

  /** An array is read at the end of its element or event. */
  defer(array: Deferred): void {
    this.deferred.push(array);
  }

  /** A deferred array can't be merged. */
  abstract refuseDeferred(array: Deferred, reason: Reason): void;

  /** An array without a header has ended, whose last row is that before the position `end`. */
  takeRaw(end: u64): void {
    this.rawUneven = this.rawUneven || (this.rawEnd >= 0 && this.rawEnd != <i64>end);
    this.rawEnd = <i64>end;
  }

  /** An element begins, which has had no array without a header. */
  forgetRaw(): void {
    this.rawEnd = -1;
    this.rawUneven = false;
  }

  /** Replaces `remove` bytes at offset `at` of the body by those of a block (taken over). */
  replaceText(at: u64, remove: u64, text: Block): void {
    this.rope.replaceOwned(at, remove, text, text.len);
    this.growth += <i64>text.len - <i64>remove;
  }
}

/** An array of decode's response that is being edited. It is used again for the next one. */
export abstract class DecodeArray {
  /** Why the array can't be merged. */
  reason: Reason = Reason.None;
  /** Offset in the body from which on nothing may leave yet; -1: everything may leave. */
  heldFrom: i64 = -1;

  abstract get format(): Format;

  /**
   * The value begins at the scanner's cursor, and is merged as `plan` (borrowed) says. Null: no
   * rows of prefill's are merged with it, and its rows are only checked; or, with `later`, it is
   * known only at the end of the document which these are. True: `read` comes next.
   */
  abstract begin(site: Site, plan: RowPlan | null, later: bool): bool;

  /** Reads what the format reads itself of a string that was entered. */
  abstract read(site: Site): Progress;

  /** How many of the next bytes prefill's rows replace, whatever they are. */
  replacedAhead(site: Site): u64 {
    return 0;
  }

  /**
   * Offset in the body up to which prefill's rows replace the array, where that holds from its
   * start on; else 0.
   */
  replacedTo(site: Site): u64 {
    return 0;
  }

  /** How many of the next bytes may leave without anything in their place: the padding. */
  get paddingAhead(): u64 {
    return 0;
  }

  /** A member of the value begins. True: `read` comes next. */
  onValue(site: Site, place: Place): bool {
    return false;
  }

  onValueEnd(site: Site, place: Place): void {}

  /** The value has ended. Returns why it can't be merged. */
  end(site: Site): Reason {
    return Reason.None;
  }

  free(): void {}
}

/**
 * How many bytes a base64 text of `chars` characters and `padding` signs stands for; -1: there is
 * no such text.
 */
export function decodedLength(chars: u64, padding: u64): i64 {
  const bytes = (chars * 6) / 8;
  return carriers(bytes) == chars && encodedLength(bytes) == chars + padding ? <i64>bytes : -1;
}

/**
 * Whether rows that end before token `end` are those of a prompt of `tokens` tokens; -1: nobody
 * knows how many there are. `mayLackLast`: the row of the last one may be missing.
 */
export function endsPrompt(end: u64, tokens: i64, mayLackLast: bool): bool {
  return tokens < 0 || end == <u64>tokens || (mayLackLast && end + 1 == <u64>tokens);
}

/**
 * The first token that has one of `rows` rows, which do not say it themselves, of a prompt of
 * `tokens` tokens: `asked`, or 0 where the engine has sent all rows all the same. -1: neither is
 * right. As `asked` is never 1, no number of rows fits both.
 */
export function firstTokenOf(rows: u64, asked: u64, tokens: i64, mayLackLast: bool): i64 {
  if (asked > 0 && endsPrompt(asked + rows, tokens, mayLackLast)) return asked;
  return rows > 0 && endsPrompt(rows, tokens, mayLackLast) ? 0 : -1;
}

/**
 * The format of a value of routing at `place` that begins with the byte `first`; of `Format.Prompt`
 * it is nested lists. `None`: no format begins so.
 */
export function formatAt(place: Place, first: u8): Format {
  const raw = isRaw(place);
  if (first == 0x22) return raw ? Format.Raw : Format.Npy;
  if (raw) return Format.None;
  return first == 0x7b ? Format.Object : first == 0x5b ? Format.Prompt : Format.None;
}
