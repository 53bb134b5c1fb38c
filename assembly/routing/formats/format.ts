// What a format of routed_experts is: how it is read in prefill's reply, and how it is edited in decode's.

import { Block } from '../../bytes/block';
import { Rope } from '../../bytes/rope';
import { Scanner } from '../../json/scanner';
import { carriers, encodedLength } from '../base64';
import { Counts } from '../counts';
import { Place } from '../places';
import { Format } from '../prompt';
import { Reason } from '../reason';
import { Examination } from '../examination';
import { RowPlan } from '../row_plan';
import { RowReader } from '../row_reader';
import { PromptRows, RowChars } from '../rows';

/** Which rows decode's arrays hold. */
export const enum Form {
  Unknown,
  /** All rows: prompt and generated. */
  Full,
  /** The generated rows only. */
  Tail,
}

export const enum Progress {
  /** The window is used up. */
  More,
  /** What the format reads itself has been read; the scanner goes on. */
  Done,
  /** The array can't be merged, and nothing of it has left. */
  Refused,
  /** As `Refused`, but some of it may have left. */
  Broken,
}

/** Characters of an array's rows that the caller is to fetch. */
@final
export class Wanted {
  /** Offset in the body of the first one. */
  at: u64 = 0;
  /** How many; 0: up to the first byte that is not of the base64 alphabet. */
  len: u64 = 0;
  /** Reads each piece as it comes; null: what the rows are is not known yet. */
  reader: RowReader | null = null;
  /** Characters of a piece. */
  pieceLen: u64 = 0;
}

/** One array of prefill's reply. */
export abstract class PrefillArray {
  reason: Reason = Reason.None;
  /** Set when `read` is `Done`: the rows to fetch, told to `take`. */
  wanted: Wanted | null = null;

  abstract get format(): Format;

  /** The value begins at the scanner's cursor. True: `read` comes next. */
  abstract begin(scanner: Scanner): bool;

  /** Reads what the format reads itself, of a string that was entered. */
  abstract read(scanner: Scanner): Progress;

  /** The characters that were wanted (taken over); `size` bytes are in the whole body. `read` comes next. */
  abstract take(scanner: Scanner, chars: RowChars, reason: Reason): void;

  /** A member of the value begins. True: `read` comes next. */
  onValue(scanner: Scanner, place: Place): bool {
    return false;
  }

  onValueEnd(scanner: Scanner, place: Place): void {}

  /**
   * The rows (handed over), once the counts beside the array are known, which are of so many choices together; -1: not
   * known. Null: see `reason`.
   */
  abstract giveRows(promptTokens: i64, completionTokens: i64, choices: i32): PromptRows | null;

  abstract free(): void;
}

/** An array without a header in the body: where its characters are. */
@final
export class Deferred {
  constructor(
    readonly at: u64,
    readonly chars: u64,
  ) {}
}

/** Decode's response around its arrays: what all formats read and write. */
export abstract class Site {
  /** Why the merge failed; nothing more is read then. */
  reason: Reason = Reason.None;
  /** The first array's preconditions all hold, and its edits are in the rope. */
  planned: bool = false;
  /** Arrays edited so far. */
  choices: i32 = 0;
  /** Form in which a second reading must start: only at the end was it known which rows came. */
  again: Form = Form.Unknown;
  /** By how many bytes the edits planned so far make the body longer. */
  growth: i64 = 0;

  /** Offset of the scanned document in the body: events of a stream are documents of their own. */
  base: u64 = 0;
  /** Tokens of the choice that is being read, as `token_ids` lists them; -1 when it has not. */
  tokens: i64 = -1;
  /** Arrays whose form was not known when they came, and the rows in them. */
  undecided: i32 = 0;
  undecidedRows: u64 = 0;
  /** Rows of the element's array without a header; -1: none came. Of several: whether they have as many. */
  rawRows: i64 = -1;
  rawUneven: bool = false;

  constructor(
    readonly scanner: Scanner,
    readonly rope: Rope,
    /** The body is an event stream: a document an event. */
    readonly events: bool,
    /** Counts of tokens that the document, or the element of a list, has told so far. */
    readonly counts: Counts,
    /** What checked rows say (borrowed). */
    readonly examination: Examination,
    /** Choices asked for, and the most tokens that each can have; -1 when not known. */
    readonly choicesAsked: i32,
    readonly maxTokens: i64,
    /** Form of the arrays, as far as it is known. */
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

  /** The edits of one more array are in the rope. */
  edited(): void {
    this.planned = true;
    this.choices++;
  }

  /** Rows of the array that was read last: the position of its first one, and how many. */
  firstRow: u64 = 0;
  rows: u64 = 0;

  /** The array that is being read has so many rows, the first of them at this position. */
  covers(firstRow: u64, rows: u64): void {
    this.firstRow = firstRow;
    this.rows = rows;
  }

  /** Arrays without a header whose rows are not known yet; nothing from the first of them on may leave. */
  readonly deferred: Deferred[] = [];

  /** The `chars` characters from offset `at` of the body on are read when their element has ended. */
  defer(at: u64, chars: u64): void {
    this.deferred.push(new Deferred(at, chars));
  }

  /** An array without a header has ended. */
  takeRaw(rows: u64): void {
    this.rawUneven = this.rawUneven || (this.rawRows >= 0 && this.rawRows != <i64>rows);
    this.rawRows = <i64>rows;
  }

  forgetRaw(): void {
    this.rawRows = -1;
    this.rawUneven = false;
  }

  /** Replaces bytes by a decimal number. */
  replaceNumber(at: u64, remove: u64, digits: Block, len: u64): void {
    this.rope.replaceOwned(at, remove, digits, len);
    this.growth += <i64>len - <i64>remove;
  }
}

/** An array of decode's response that is being edited; one at a time, used again for the next. */
export abstract class DecodeArray {
  reason: Reason = Reason.None;
  /** Offset from which on nothing may leave yet; -1: everything may. */
  heldFrom: i64 = -1;

  abstract get format(): Format;

  /**
   * The value begins at the scanner's cursor; `plan` (borrowed) is for it. Null: decode has served the request alone, and
   * its rows are checked and stay. True: `read` comes next.
   */
  abstract begin(site: Site, plan: RowPlan | null): bool;

  abstract read(site: Site): Progress;

  /** Bytes to come that are replaced by prefill's whatever they are. */
  replacedAhead(site: Site): u64 {
    return 0;
  }

  /** Offset up to which bytes that have come are replaced by prefill's, if from the last edit on; else 0. */
  replacedTo(site: Site): u64 {
    return 0;
  }

  /** Bytes to come that may leave nothing behind: padding. */
  get paddingAhead(): u64 {
    return 0;
  }

  onValue(site: Site, place: Place): bool {
    return false;
  }

  onValueEnd(site: Site, place: Place): void {}

  /** The value has ended. */
  end(site: Site): Reason {
    return Reason.None;
  }

  free(): void {}
}

/** Bytes that a base64 text of `chars` characters and `padding` signs stands for; -1 when there is no such text. */
export function decodedLength(chars: u64, padding: u64): i64 {
  const bytes = (chars * 6) / 8;
  return carriers(bytes) == chars && encodedLength(bytes) == chars + padding ? <i64>bytes : -1;
}
