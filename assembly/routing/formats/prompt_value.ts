// Format C, vLLM 0.21: `prompt_routed_experts`, beside `choices` or in each choice, has the
// prompt's rows, and `choices[i].routed_experts` the generated ones. Both are nested lists, or
// objects
//   {"encoding": …, "dtype": …, "shape": [rows, layers, top_k], "data": base64 of the rows}
//
// Matched: prefill's value takes the place of decode's, or is put in where decode has none. The
// generated rows stay as they are.
// Checked: prefill's value has a row for every token of the prompt, or from the token on that was
// asked for, all of one shape, without negative numbers and sentinels; the generated rows have the
// same layers and top_k.

import { lanes } from '../../bytes/vector';
import { Paths } from '../../json/paths';
import { Event, Scanner } from '../../json/scanner';
import { Examination, Leg } from '../examination';
import { Place, ROWS_OBJECT, watch } from '../places';
import { Reason } from '../reason';
import { RowLists } from '../row_lists';
import { PromptRows, RowChars, SliceChars } from '../rows';
import { Members } from './members';
import { Prompt } from '../prompt';
import { firstTokenOf, Progress } from './format';

let paths: Paths | null = null;

function valuePaths(): Paths {
  const known = paths;
  if (known !== null) return known;
  const made = new Paths();
  made.add('', Place.Root);
  watch(made, '', '* *.*', Place.Row);
  watch(made, '', ROWS_OBJECT, Place.Data);
  paths = made;
  return made;
}

/** Checks prefill's value, and says what its shape is. */
@final
export class PromptCheck {
  private rows: i64 = 0;
  private layers: i64 = -1;
  private topK: i64 = -1;

  /** Whether the value is an object, and not lists. */
  private object: bool = false;
  /** How many lists there are in nested lists, of whatever depth. */
  private lists: i64 = 0;
  /** Whether `members` reads a string of the object, and not the scanner. */
  private inMember: bool = false;
  private members: Members = new Members();
  private reason: Reason = Reason.None;
  private experts: RowLists;

  /** `examination` is borrowed. */
  constructor(private examination: Examination) {
    this.experts = new RowLists(examination, Leg.Prefill);
  }

  /** Tells what the shape of the value is. After `check`. */
  tell(prompt: Prompt): void {
    prompt.layers = this.layers;
    prompt.topK = this.topK;
    prompt.valueRows = this.rows;
  }

  /**
   * Checks a JSON value (borrowed) against the number of tokens of the prompt; -1: not known.
   * `start`: the first token whose row was asked for. An engine that ignores that sends all rows,
   * and they stay: the value is not joined with rows of decode's, and a client of such an engine
   * gets all of them without P/D, too. Returns what is wrong.
   */
  check(text: RowChars, promptTokens: i64, start: u64): Reason {
    const scanner = Scanner.take(valuePaths());
    this.members.begin();
    this.experts.begin();
    let whole = true;
    for (let offset: u64 = 0; offset < text.length && whole && this.reason == Reason.None;) {
      const got = text.fetch(offset, text.length - offset);
      if (got == 0) whole = false;
      else {
        scanner.feed(text.ptr, <usize>got);
        // The first byte tells lists from an object. Of lists every byte is looked at.
        if (offset == 0) this.object = load<u8>(text.ptr) == 0x7b;
        if (!this.object) {
          this.refuse(unlisted(text.ptr, text.ptr + <usize>got));
          this.lists += count(text.ptr, text.ptr + <usize>got, 0x5b);
          if (this.reason == Reason.None) this.experts.push(text.ptr, <usize>got);
        }
        whole = this.read(scanner);
        offset += got;
      }
    }
    if (this.reason == Reason.None && (!whole || !scanner.done)) this.reason = Reason.Format;
    scanner.free();
    if (this.reason == Reason.None) this.judge(text, promptTokens, start);
    this.refuse(this.experts.reason);
    this.members.free();
    this.experts.free();
    return this.reason;
  }

  /**
   * The rows of a value (borrowed) that is an object; null when it is lists. Called when the value
   * has been checked and is good.
   */
  rowsIn(text: RowChars): PromptRows | null {
    const members = this.members;
    return this.object ? members.rowsOf(new SliceChars(text, members.dataAt, members.run.chars)) : null;
  }

  private judge(text: RowChars, promptTokens: i64, start: u64): void {
    if (this.object) {
      const members = this.members;
      this.refuse(members.judge());
      if (this.reason != Reason.None) return;
      this.rows = members.rows;
      this.layers = members.layers;
      this.topK = members.topK;
      this.refuse(this.rowsIn(text)!.read(this.examination));
    }
    const first = promptTokens < 0 ? -1 : firstTokenOf(this.rows, start, promptTokens, false);
    if (this.rows == 0 || first < 0) this.refuse(Reason.Prompt);
    else if (this.layers <= 0 || this.topK <= 0) this.refuse(Reason.Shape);
    // With more lists than those of the rows and the layers, some expert would be a list.
    else if (!this.object && this.lists != 1 + this.rows * (1 + this.layers)) this.refuse(Reason.Shape);
    else this.refuse(this.examination.misfits(<u64>this.layers, <u64>this.topK));
  }

  /** Reads the scanner's window. Returns false when it is not JSON. */
  private read(scanner: Scanner): bool {
    while (true) {
      if (this.inMember) {
        if (this.members.read(scanner) == Progress.More) return true;
        this.refuse(this.members.reason);
        this.inMember = false;
      }
      const event = scanner.next();
      if (event == Event.More) return true;
      if (event == Event.Failed) return false;
      const place = <Place>scanner.id;
      if (event == Event.Value) this.onValue(scanner, place);
      else if (event == Event.ValueEnd) this.onValueEnd(scanner, place);
    }
  }

  private onValue(scanner: Scanner, place: Place): void {
    if (place == Place.Row || place == Place.Layer) {
      if (scanner.first != 0x5b) this.refuse(Reason.Shape);
    } else if (place != Place.Root && place != Place.Start) {
      this.inMember = this.members.onValue(scanner, place);
    }
  }

  private onValueEnd(scanner: Scanner, place: Place): void {
    if (place == Place.Row) {
      this.rows++;
      if (this.layers >= 0 && this.layers != scanner.count) this.refuse(Reason.Shape);
      this.layers = scanner.count;
    } else if (place == Place.Layer) {
      if (this.topK >= 0 && this.topK != scanner.count) this.refuse(Reason.Shape);
      this.topK = scanner.count;
    } else if (place != Place.Root && place != Place.Start) this.members.onValueEnd(scanner, place);
  }

  private refuse(reason: Reason): void {
    if (this.reason == Reason.None) this.reason = reason;
  }
}

/**
 * What is wrong with bytes that nested lists of experts do not have. With a minus sign an engine
 * marks a row that it did not know.
 */
function unlisted(ptr: usize, end: usize): Reason {
  const minus = lanes(0x2d);
  const zero = lanes(0x30);
  const ten = lanes(10);
  const comma = lanes(0x2c);
  const open = lanes(0x5b);
  const close = lanes(0x5d);
  const space = lanes(0x20);
  for (; ptr + 16 <= end; ptr += 16) {
    const bytes = v128.load(ptr);
    if (v128.any_true(i8x16.eq(bytes, minus))) return Reason.Sentinel;
    const brackets = v128.or(i8x16.eq(bytes, open), i8x16.eq(bytes, close));
    const rest = v128.or(v128.or(i8x16.eq(bytes, comma), i8x16.le_u(bytes, space)), brackets);
    if (!i8x16.all_true(v128.or(rest, i8x16.lt_u(i8x16.sub(bytes, zero), ten)))) return Reason.Format;
  }
  for (; ptr < end; ptr++) {
    const c = load<u8>(ptr);
    if (c == 0x2d) return Reason.Sentinel;
    if (!(c - 0x30 < 10 || c == 0x2c || c == 0x5b || c == 0x5d || c <= 0x20)) return Reason.Format;
  }
  return Reason.None;
}

/** How often a byte occurs. */
function count(ptr: usize, end: usize, byte: u8): i64 {
  const wanted = lanes(byte);
  let found: i64 = 0;
  for (; ptr + 16 <= end; ptr += 16) found += popcnt(i8x16.bitmask(i8x16.eq(v128.load(ptr), wanted)));
  for (; ptr < end; ptr++) found += i64(load<u8>(ptr) == byte);
  return found;
}
