// A resumable JSON scanner over bytes. It checks the grammar, reports where watched values start
// and end, and builds nothing. It accepts what Python's `json.loads` accepts (RFC 8259 plus NaN,
// Infinity and -Infinity), because an engine must never read a member in a body in which this
// scanner saw something else.
//
// window:   bytes in [cursor, end), which the caller lends until its next `feed`
// offsets:  count from the first byte of the document
//
// This file is longer than 500 lines because the scanner is one state machine; see `next`.

import { hexValue } from '../bytes/ascii';
import { MAX_PATH_DEPTH, NO_NODE, Paths, UNWATCHED, elementOf, hasMembers, idOf, memberOf } from './paths';
import { Last, numbersCommas, numbersEnd, numbersLast } from './numbers';
import { PLAIN_WINDOW, Stop, plainDepth, plainStop, plainValues } from './plain';
import { plainEnd } from './strings';

/** Why `next` has returned. */
export const enum Event {
  /** The window is used up; the document may go on in the next one. */
  More,
  /** A watched value begins; its first byte is at `cursor`, not consumed. */
  Value,
  /** A watched value has ended just before `cursor`. */
  ValueEnd,
  /** The root value has ended, and only white space may follow. Returned once. */
  Done,
  /**
   * The document is not JSON, or nested deeper than `MAX_DEPTH`. Every further call returns it
   * again.
   */
  Failed,
}

/**
 * Deepest nesting of containers that is read. Python's own limit is near 1,000 (its recursion
 * limit).
 */
export const MAX_DEPTH: i32 = 512;

/** What the next byte is part of, or must begin. */
const enum State {
  Value,
  /** As `Value`, but the value has been announced to the caller. */
  Announced,
  FirstElement,
  FirstKey,
  Key,
  Colon,
  AfterValue,
  KeyText,
  KeyEscape,
  KeyHex,
  Text,
  TextEscape,
  TextHex,
  Minus,
  Zero,
  Integer,
  Point,
  Fraction,
  Exponent,
  ExponentSign,
  ExponentDigits,
  Literal,
  Ended,
  Failed,
}

const enum Char {
  Tab = 0x09,
  LineFeed = 0x0a,
  Return = 0x0d,
  Space = 0x20,
  Quote = 0x22,
  Plus = 0x2b,
  Comma = 0x2c,
  Minus = 0x2d,
  Point = 0x2e,
  Slash = 0x2f,
  Zero = 0x30,
  Nine = 0x39,
  Colon = 0x3a,
  UpperE = 0x45,
  UpperI = 0x49,
  UpperN = 0x4e,
  OpenBracket = 0x5b,
  Backslash = 0x5c,
  CloseBracket = 0x5d,
  B = 0x62,
  E = 0x65,
  F = 0x66,
  N = 0x6e,
  R = 0x72,
  T = 0x74,
  U = 0x75,
  OpenBrace = 0x7b,
  CloseBrace = 0x7d,
}

// Literals, with an end mark.
const TRUE = memory.data<u8>([0x74, 0x72, 0x75, 0x65, 0]);
const FALSE = memory.data<u8>([0x66, 0x61, 0x6c, 0x73, 0x65, 0]);
const NULL = memory.data<u8>([0x6e, 0x75, 0x6c, 0x6c, 0]);
const NAN = memory.data<u8>([0x4e, 0x61, 0x4e, 0]);
const INFINITY = memory.data<u8>([0x49, 0x6e, 0x66, 0x69, 0x6e, 0x69, 0x74, 0x79, 0]);

/**
 * A byte that is in no watched key, since UTF-8 has none like it. In a key it stands for each
 * character outside ASCII that was written as an escape.
 */
const NOT_ASCII: u8 = 0xff;


@inline
function isSpace(c: u8): bool {
  return c == Char.Space || c == Char.LineFeed || c == Char.Return || c == Char.Tab;
}


@inline
function isDigit(c: u8): bool {
  return c - <u8>Char.Zero <= 9;
}

// A scanner's own memory, by offset. Depth 1 is the outermost container; there is no depth 0.
//   0       bit d: the container at depth d is an object
//   NODES   4 bytes for each depth: address of the container's node
//   COUNTS  4 bytes for each depth: members or elements of the container so far
//   KEY     a key that was cut by the end of a window, or has escapes
const NODES: usize = 72;
const COUNTS: usize = 108;
const KEY: usize = 144;
const KEY_BYTES: usize = 64;
const MEMORY_BYTES: usize = KEY + KEY_BYTES;

/**
 * Reads one document at a time, which may come in any number of windows. It borrows the windows and
 * owns the memory laid out above.
 *
 * This class is longer than 350 lines because it is one state machine, whose states share its
 * fields.
 */
@final
export class Scanner {
  /** Next byte of the window. */
  cursor: usize = 0;
  /** Id of the watched value that the last `Value` or `ValueEnd` is about. */
  id: i32 = UNWATCHED;
  /** First byte of the value, after `Value`. */
  first: u8 = 0;
  /** Offset of the quote that opens the member's key, after `Value` of a member. */
  keyStart: u64 = 0;
  /** Offset of the comma before the member or element, after `Value` with `index` > 0. */
  comma: u64 = 0;
  /** Position of the member or element in its container, from 0 on, after `Value`. */
  index: i32 = 0;
  /** How many members or elements a container has, after its `ValueEnd`. */
  count: i32 = 0;
  /**
   * After `ValueEnd`: the value of a number that has no sign, fraction or exponent and is below
   * 10^18; -1 for every other value.
   */
  integer: i64 = -1;
  /** After `Failed`: whether the document is nested deeper than `MAX_DEPTH`. */
  tooDeep: bool = false;

  private end: usize = 0;
  private windowStart: usize = 0;
  private windowOffset: u64 = 0;
  private state: State = State.Value;
  /** Bytes still to be passed over because of `skip`. */
  private skipLeft: u64 = 0;
  private doneTold: bool = false;
  private depth: i32 = 0;
  /** Address of the memory that is laid out above. */
  private memory: usize = heap.alloc(MEMORY_BYTES);
  /** Node of the value that comes next, or that is being read. */
  private valueNode: usize;
  /**
   * Address of the key that was read last: in the window, or in the scanner's own memory when it
   * was cut or has escapes.
   */
  private key: usize = 0;
  private keyLen: usize = 0;
  /** Whether the key is needed, because members of its object are watched. */
  private readKey: bool = false;
  /** Digits of a \u escape that are still to come, and the value of those before. */
  private hexLeft: i32 = 0;
  private hex: i32 = 0;
  /** Address of the byte of a literal that must come next. */
  private literal: usize = 0;

  private pooled: bool = false;

  constructor(private paths: Paths) {
    assert(paths.longestKey < KEY_BYTES);
    this.valueNode = paths.root;
  }

  /** A scanner for one document, from the pool when it has one: an exchange needs three. */
  static take(paths: Paths): Scanner {
    if (pool.length == 0) return new Scanner(paths);
    const scanner = pool.pop();
    scanner.pooled = false;
    scanner.paths = paths;
    scanner.reset();
    return scanner;
  }

  /** Gives the scanner back to the pool, for another `take`; a second call does nothing. */
  free(): void {
    if (this.pooled) return;
    this.pooled = true;
    pool.push(this);
  }

  /** Makes the scanner ready for another document; offsets begin at 0 again. */
  reset(): void {
    this.cursor = this.end = this.windowStart = 0;
    this.windowOffset = this.skipLeft = 0;
    this.state = State.Value;
    this.doneTold = this.tooDeep = false;
    this.depth = 0;
    this.valueNode = this.paths.root;
  }

  /** Lends the next `len` bytes of the document. The window before must be used up. */
  feed(ptr: usize, len: usize): void {
    this.windowOffset += <u64>(this.cursor - this.windowStart);
    this.windowStart = this.cursor = ptr;
    this.end = ptr + len;
  }

  /** Offset of the byte at `cursor`. */
  get offset(): u64 {
    return this.windowOffset + <u64>(this.cursor - this.windowStart);
  }

  /** Bytes of the window that are not consumed. */
  get rest(): usize {
    return this.end - this.cursor;
  }

  /** Whether the root value has ended. */
  get done(): bool {
    return this.state == State.Ended;
  }

  /**
   * Whether the document is whole if nothing follows. A number at the root has no end of its own,
   * so no event tells it.
   */
  get complete(): bool {
    const state = this.state;
    if (this.skipLeft != 0) return false;
    if (state == State.Ended) return true;
    return (
      this.depth == 0 &&
      (state == State.Zero ||
        state == State.Integer ||
        state == State.Fraction ||
        state == State.ExponentDigits)
    );
  }

  /**
   * Consumes the opening quote of the string that `Value` has announced, so that `skip` may follow.
   */
  enterString(): void {
    this.cursor++;
    this.integer = -1;
    this.state = State.Text;
  }

  /**
   * Passes over `n` bytes of the string that was entered, in this window and in those that follow,
   * without reading them.
   */
  skip(n: u64): void {
    const now = min<u64>(n, <u64>this.rest);
    this.cursor += <usize>now;
    this.skipLeft = n - now;
  }

  /**
   * Counts `n` of the bytes to be skipped that never come in a window, because the caller has
   * passed over them itself.
   */
  pass(n: u64): void {
    this.skipLeft -= n;
    this.windowOffset += n;
  }

  /** Bytes still to be passed over because of `skip`. */
  get skipping(): u64 {
    return this.skipLeft;
  }

  /** Goes on with a `skip` in a new window; true when nothing is left to be skipped. */
  resume(): bool {
    if (this.skipLeft != 0) this.skip(this.skipLeft);
    return this.skipLeft == 0;
  }

  /**
   * Reads on to the next event. After `Value` for a string the caller may first pass over bytes of
   * it with `enterString` and `skip`.
   *
   * This function is longer than 50 lines because it is one loop over the bytes with a case for
   * each state; with a call for each byte or each state the loop would be slower.
   */
  next(): Event {
    if (!this.resume()) return Event.More;
    let p = this.cursor;
    const end = this.end;
    let state = this.state;
    if (state == State.Ended && !this.doneTold) return this.tellDone();
    while (p < end) {
      const c = load<u8>(p);
      switch (state) {
        case State.Value:
        case State.FirstElement: {
          if (isSpace(c)) {
            p++;
            continue;
          }
          if (c == Char.CloseBracket && state == State.FirstElement) {
            p++;
            if (this.close(p)) return Event.ValueEnd;
            break;
          }
          if (isDigit(c) && this.inPlainArray) {
            const run = numbersEnd(p, end);
            if (run != p) {
              p = run;
              state = this.afterNumbers();
              continue;
            }
          }
          if (state == State.FirstElement && end - p >= PLAIN_WINDOW && this.inUnwatched) {
            const from = p;
            p = this.skipPlain(p, end, true);
            state = this.afterPlain();
            if (p != from) continue;
          }
          const id = this.beginValue();
          if (id != UNWATCHED) {
            this.id = id;
            this.first = c;
            this.cursor = p;
            this.state = State.Announced;
            return Event.Value;
          }
        }
        // A value that is not watched is not announced: its first byte is consumed at once.
        case State.Announced: {
          p++;
          if (c == Char.Quote) {
            this.integer = -1;
            state = State.Text;
          } else if (isDigit(c)) {
            this.integer = c - Char.Zero;
            state = c == Char.Zero ? State.Zero : State.Integer;
          } else if (c == Char.OpenBrace) {
            if (!this.open(true)) return this.fail(p);
            state = State.FirstKey;
            if (end - p >= PLAIN_WINDOW && this.inUnwatched) {
              p = this.skipPlain(p, end, true);
              state = this.afterPlain();
            }
          } else if (c == Char.OpenBracket) {
            if (!this.open(false)) return this.fail(p);
            state = State.FirstElement;
          } else if (c == Char.Minus) {
            this.integer = -1;
            state = State.Minus;
          } else {
            const literal =
              c == Char.T
                ? TRUE
                : c == Char.F
                  ? FALSE
                  : c == Char.N
                    ? NULL
                    : c == Char.UpperN
                      ? NAN
                      : c == Char.UpperI
                        ? INFINITY
                        : 0;
            if (literal == 0) return this.fail(p - 1);
            this.literal = literal + 1;
            state = State.Literal;
          }
          continue;
        }
        case State.FirstKey:
        case State.Key: {
          if (isSpace(c)) {
            p++;
            continue;
          }
          if (c == Char.CloseBrace && state == State.FirstKey) {
            p++;
            if (this.close(p)) return Event.ValueEnd;
            break;
          }
          if (c != Char.Quote) return this.fail(p);
          this.keyStart = this.windowOffset + <u64>(p - this.windowStart);
          this.keyLen = 0;
          this.readKey = this.depth <= MAX_PATH_DEPTH && hasMembers(this.nodeAt(this.depth));
          p++;
          state = State.KeyText;
          continue;
        }
        case State.KeyText: {
          const plain = plainEnd(p, end);
          const stop = plain < end ? load<u8>(plain) : 0;
          if (this.readKey) {
            if (stop == Char.Quote && this.keyLen == 0) {
              // Most keys lie in one window without escapes, and are compared where they are.
              this.key = p;
              this.keyLen = plain - p;
            } else this.collect(p, plain - p);
          }
          p = plain;
          if (p == end) continue;
          p++;
          if (stop == Char.Quote) {
            if (this.readKey) this.findMember();
            state = State.Colon;
          } else if (stop == Char.Backslash) state = State.KeyEscape;
          else return this.fail(p - 1);
          continue;
        }
        case State.KeyEscape:
        case State.TextEscape: {
          p++;
          const key = state == State.KeyEscape;
          if (c == Char.U) {
            this.hexLeft = 4;
            this.hex = 0;
            state = key ? State.KeyHex : State.TextHex;
            continue;
          }
          const meant = unescape(c);
          if (meant == 0) return this.fail(p - 1);
          if (key) this.collectByte(meant);
          state = key ? State.KeyText : State.Text;
          continue;
        }
        case State.KeyHex:
        case State.TextHex: {
          const digit = hexValue(c);
          if (digit < 0) return this.fail(p);
          p++;
          this.hex = (this.hex << 4) | digit;
          if (--this.hexLeft > 0) continue;
          if (state == State.KeyHex) this.collectByte(this.hex < 0x80 ? <u8>this.hex : NOT_ASCII);
          state = state == State.KeyHex ? State.KeyText : State.Text;
          continue;
        }
        case State.Colon: {
          p++;
          if (isSpace(c)) continue;
          if (c != Char.Colon) return this.fail(p - 1);
          state = State.Value;
          continue;
        }
        case State.AfterValue: {
          p++;
          if (c == Char.Comma) {
            this.comma = this.windowOffset + <u64>(p - 1 - this.windowStart);
            state = this.inObject ? State.Key : State.Value;
            if (end - p >= PLAIN_WINDOW && this.inUnwatched) {
              p = this.skipPlain(p, end, false);
              state = this.afterPlain();
            }
            continue;
          }
          if (isSpace(c)) continue;
          if (c != (this.inObject ? Char.CloseBrace : Char.CloseBracket)) return this.fail(p - 1);
          if (this.close(p)) return Event.ValueEnd;
          break;
        }
        case State.Text: {
          p = plainEnd(p, end);
          if (p == end) continue;
          const stop = load<u8>(p);
          p++;
          if (stop == Char.Backslash) {
            state = State.TextEscape;
            continue;
          }
          if (stop != Char.Quote) return this.fail(p - 1);
          if (this.endValue(p)) return Event.ValueEnd;
          break;
        }
        case State.Minus: {
          p++;
          if (isDigit(c)) state = c == Char.Zero ? State.Zero : State.Integer;
          else if (c == Char.UpperI) {
            this.literal = INFINITY + 1;
            state = State.Literal;
          } else return this.fail(p - 1);
          continue;
        }
        case State.Integer:
          if (isDigit(c)) {
            const integer = this.integer;
            this.integer = integer < 0 || integer >= 100000000000000000 ? -1 : integer * 10 + (c - Char.Zero);
            p++;
            continue;
          }
        // Like a zero, an integer may go on with a point or an exponent, or end.
        case State.Zero: {
          if (c == Char.Point) state = State.Point;
          else if (c == Char.E || c == Char.UpperE) state = State.Exponent;
          else {
            if (this.endValue(p)) return Event.ValueEnd;
            break;
          }
          this.integer = -1;
          p++;
          continue;
        }
        case State.Point: {
          if (!isDigit(c)) return this.fail(p);
          p++;
          state = State.Fraction;
          continue;
        }
        case State.Fraction: {
          if (isDigit(c)) {
            p++;
            continue;
          }
          if (c == Char.E || c == Char.UpperE) {
            p++;
            state = State.Exponent;
            continue;
          }
          if (this.endValue(p)) return Event.ValueEnd;
          break;
        }
        case State.Exponent: {
          if (c == Char.Plus || c == Char.Minus) {
            p++;
            state = State.ExponentSign;
            continue;
          }
        }
        case State.ExponentSign: {
          if (!isDigit(c)) return this.fail(p);
          p++;
          state = State.ExponentDigits;
          continue;
        }
        case State.ExponentDigits: {
          if (isDigit(c)) {
            p++;
            continue;
          }
          if (this.endValue(p)) return Event.ValueEnd;
          break;
        }
        case State.Literal: {
          if (c != load<u8>(this.literal)) return this.fail(p);
          p++;
          if (load<u8>(++this.literal) != 0) continue;
          this.integer = -1;
          if (this.endValue(p)) return Event.ValueEnd;
          break;
        }
        case State.Ended: {
          if (!isSpace(c)) return this.fail(p);
          p++;
          continue;
        }
        default:
          return Event.Failed;
      }
      // A value that is not watched has ended, so there is no event.
      state = this.state;
      if (state == State.Ended) return this.tellDone();
    }
    this.cursor = p;
    this.state = state;
    return state == State.Failed ? Event.Failed : Event.More;
  }

  /** Node of the container at a depth of at most `MAX_PATH_DEPTH`. */
  // @ts-ignore: decorator
  @inline
  private nodeAt(depth: i32): usize {
    return load<usize>(this.memory + ((<usize>depth) << 2), NODES);
  }

  /** Whether the innermost container is an object. */
  // @ts-ignore: decorator
  @inline
  private get inObject(): bool {
    const depth = this.depth;
    return ((load<u8>(this.memory + ((<usize>depth) >> 3)) >> (<u8>(depth & 7))) & 1) != 0;
  }

  /** Whether the innermost container is an array whose elements are not watched. */
  private get inPlainArray(): bool {
    const depth = this.depth;
    if (depth == 0 || this.inObject) return false;
    if (depth > MAX_PATH_DEPTH) return true;
    const container = this.nodeAt(depth);
    return container == NO_NODE || elementOf(container) == NO_NODE;
  }

  /** Whether nothing in the innermost container is watched or counted. */
  // @ts-ignore: decorator
  @inline
  private get inUnwatched(): bool {
    const depth = this.depth;
    return depth > MAX_PATH_DEPTH || (depth > 0 && this.nodeAt(depth) == NO_NODE);
  }

  /**
   * Passes members or elements of the innermost container, and what is in them, as far as
   * `plainValues` goes; returns where it has stopped.
   */
  private skipPlain(p: usize, end: usize, first: bool): usize {
    const depth = this.depth;
    const at = plainValues(p, end, first, depth, MAX_DEPTH, this.memory);
    this.depth = plainDepth;
    for (let level = depth + 1; level <= min(plainDepth, MAX_PATH_DEPTH); level++) {
      store<usize>(this.memory + ((<usize>level) << 2), NO_NODE, NODES);
    }
    this.valueNode = NO_NODE;
    return at;
  }

  /** The state where the last `skipPlain` has stopped. */
  private afterPlain(): State {
    if (plainStop == Stop.After) return State.AfterValue;
    if (plainStop == Stop.First) return this.inObject ? State.FirstKey : State.FirstElement;
    return this.inObject ? State.Key : State.Value;
  }

  /**
   * Counts the elements that the last `numbersEnd` has passed, and returns the state behind them.
   */
  private afterNumbers(): State {
    const depth = this.depth;
    // The element that follows a last comma is counted when it begins.
    const elements = numbersCommas + (numbersLast == Last.Comma ? 0 : 1);
    if (depth <= MAX_PATH_DEPTH) {
      const count = this.memory + ((<usize>depth) << 2);
      store<i32>(count, load<i32>(count, COUNTS) + elements, COUNTS);
    }
    this.integer = -1;
    this.valueNode = NO_NODE;
    if (numbersLast == Last.Comma) return State.Value;
    return numbersLast == Last.Zero ? State.Zero : State.Integer;
  }

  /** Finds the node of the value that follows by the key that was read. */
  private findMember(): void {
    this.valueNode =
      this.keyLen <= this.paths.longestKey
        ? memberOf(this.nodeAt(this.depth), this.key, this.keyLen)
        : NO_NODE;
  }

  /** Counts the value that begins in its container, finds its node, and returns its id. */
  private beginValue(): i32 {
    const depth = this.depth;
    if (depth == 0) return idOf(this.valueNode);
    if (depth > MAX_PATH_DEPTH) return UNWATCHED;
    const container = this.nodeAt(depth);
    if (container == NO_NODE) return UNWATCHED;
    const count = this.memory + ((<usize>depth) << 2);
    this.index = load<i32>(count, COUNTS);
    store<i32>(count, this.index + 1, COUNTS);
    if (!this.inObject) this.valueNode = elementOf(container);
    return idOf(this.valueNode);
  }

  /** A container begins; false when it is nested too deep. */
  private open(object: bool): bool {
    const depth = this.depth + 1;
    if (depth > MAX_DEPTH) {
      this.tooDeep = true;
      return false;
    }
    const place = <u8>(depth & 7);
    const bit = (<u8>1) << place;
    const at = this.memory + ((<usize>depth) >> 3);
    store<u8>(at, object ? load<u8>(at) | bit : load<u8>(at) & ~bit);
    if (depth <= MAX_PATH_DEPTH) {
      const level = this.memory + ((<usize>depth) << 2);
      store<usize>(level, this.valueNode, NODES);
      store<i32>(level, 0, COUNTS);
    }
    this.valueNode = NO_NODE;
    this.depth = depth;
    return true;
  }

  /** The innermost container has ended just before `p`; true when it is watched. */
  private close(p: usize): bool {
    const depth = this.depth--;
    if (depth <= MAX_PATH_DEPTH) {
      this.valueNode = this.nodeAt(depth);
      this.count = load<i32>(this.memory + ((<usize>depth) << 2), COUNTS);
    }
    this.integer = -1;
    return this.endValue(p);
  }

  /** A value has ended just before `p`; true when it is watched. */
  // @ts-ignore: decorator
  @inline
  private endValue(p: usize): bool {
    this.cursor = p;
    this.state = this.depth == 0 ? State.Ended : State.AfterValue;
    const id = idOf(this.valueNode);
    this.valueNode = NO_NODE;
    if (id == UNWATCHED) return false;
    this.id = id;
    return true;
  }

  private tellDone(): Event {
    this.doneTold = true;
    return Event.Done;
  }

  /** The byte at `p` can't be there. */
  private fail(p: usize): Event {
    this.cursor = p;
    this.state = State.Failed;
    return Event.Failed;
  }

  /**
   * Adds a piece of a key that is cut or has escapes to the scanner's memory. Of a key that is
   * longer than all watched ones the end is left out.
   */
  private collect(ptr: usize, len: usize): void {
    this.key = this.memory + KEY;
    const take = min(len, KEY_BYTES - this.keyLen);
    memory.copy(this.key + this.keyLen, ptr, take);
    this.keyLen += take;
  }

  private collectByte(c: u8): void {
    if (!this.readKey) return;
    this.key = this.memory + KEY;
    if (this.keyLen < KEY_BYTES) store<u8>(this.key + this.keyLen++, c);
  }
}

/** Scanners that are not in use. */
const pool: Scanner[] = [];

/** The character for which a backslash and `c` stand; 0 when there is no such escape. */
function unescape(c: u8): u8 {
  switch (<i32>c) {
    case Char.Quote:
    case Char.Backslash:
    case Char.Slash:
      return c;
    case Char.B:
      return 0x08;
    case Char.F:
      return 0x0c;
    case Char.N:
      return 0x0a;
    case Char.R:
      return 0x0d;
    case Char.T:
      return 0x09;
    default:
      return 0;
  }
}
