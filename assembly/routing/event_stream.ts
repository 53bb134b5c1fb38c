// Server-sent events (WHATWG HTML, section 9.2): finds the JSON document of each event and has it read. Lines may end in
// LF, CR or CRLF, and be cut anywhere; one byte order mark before the first line is skipped, as there.
//
// A client may look further than the standard does: it may parse a body that is no stream of events at all. Such a body, a
// JSON document under `text/event-stream`, is refused: nobody can vouch for arrays that were not looked at.

import { lanes } from '../bytes/vector';
import { DecodeResponse } from './decode_response';
import { Reason } from './reason';

const FIELD = memory.data<u8>([0x64, 0x61, 0x74, 0x61, 0x3a]);
const FIELD_LENGTH: i32 = 5;
/** UTF-8's byte order mark. */
const MARK = memory.data<u8>([0xef, 0xbb, 0xbf]);
const MARK_LENGTH: i32 = 3;
const BRACKET = memory.data<u8>([0x5b]);

const enum Line {
  /** Before the first line of the stream, inside a byte order mark or before one. */
  Mark,
  /** At the beginning of a line, or behind white space there. */
  Begin,
  Blank,
  /** Inside the field name, as far as it is `data:`. */
  Field,
  /** After `data:`. */
  First,
  /** After a bracket: of a list, or of `[DONE]`. */
  Bracket,
  /** In a JSON document. */
  Document,
  /** A comment, another field, or data that is not JSON, such as `[DONE]`. */
  Other,
}


@final
export class EventStream {
  /** The body may leave up to this offset. */
  settled: u64 = 0;

  private line: Line = Line.Mark;
  private matched: i32 = 0;
  private lineEmpty: bool = true;

  constructor(private response: DecodeResponse) {}

  /** Reads a piece of the body that is in the rope; `offset` is where it starts. */
  push(ptr: usize, len: usize, offset: u64): void {
    const response = this.response;
    const end = ptr + len;
    let at = ptr;
    while (at < end && response.reason == Reason.None) {
      if (this.line == Line.Document) {
        const stop = lineEnd(at + <usize>min<u64>(response.replacedAhead, end - at), end);
        response.push(at, stop - at, offset + (at - ptr));
        at = stop;
        if (at == end) break;
      } else if (this.line == Line.Other) {
        at = lineEnd(at, end);
        if (at == end) break;
      }
      const c = load<u8>(at);
      if (c == 0x0a || c == 0x0d) {
        // CRLF reads as a line and an empty one: an event's end, where it has only one line of data anyway.
        this.endLine(offset + (at - ptr));
        at++;
      } else if (this.step(c, offset + (at - ptr))) at++;
    }
    this.settled = response.holding ? response.settled : offset + len;
  }

  /** Takes the byte at `offset`, which ends no line. False when it is to be looked at again. */
  private step(c: u8, offset: u64): bool {
    const space = c == 0x20 || c == 0x09;
    if (this.line == Line.Mark) {
      if (c == load<u8>(MARK + this.matched)) {
        if (++this.matched == MARK_LENGTH) this.begin(Line.Begin);
        return true;
      }
      // Some of a mark is the beginning of a field's name that is not ours.
      this.begin(this.matched == 0 ? Line.Begin : Line.Other);
      return false;
    }
    this.lineEmpty = false;
    switch (this.line) {
      case Line.Begin:
      case Line.Blank:
        if (c == 0x7b || c == 0x5b) {
          this.response.refuse(Reason.Format);
          return false;
        }
        if (space) this.line = Line.Blank;
        else this.line = this.line == Line.Begin ? Line.Field : Line.Other;
        return space;
      case Line.First:
        if (c == 0x7b) this.line = Line.Document;
        else if (c == 0x5b) this.line = Line.Bracket;
        else if (!space) this.line = Line.Other;
        return c == 0x5b || space;
      case Line.Bracket:
        // Of `[DONE]`: no JSON value begins with this letter.
        if (c == 0x44) this.line = Line.Other;
        else this.openList(offset);
        return false;
      default:
        if (c != load<u8>(FIELD + this.matched)) {
          this.line = Line.Other;
          return false;
        }
        if (++this.matched == FIELD_LENGTH) this.line = Line.First;
        return true;
    }
  }

  /** A list begins right before `offset`: its bracket may be of an earlier piece. */
  private openList(offset: u64): void {
    this.response.push(BRACKET, 1, offset - 1);
    this.line = Line.Document;
  }

  private begin(line: Line): void {
    this.line = line;
    this.matched = 0;
  }

  /** Bytes to come that are replaced by prefill's whatever they are. */
  get replacedAhead(): u64 {
    return this.line == Line.Document ? this.response.replacedAhead : 0;
  }

  /** `n` replaced bytes went by without being read. */
  passReplaced(n: u64): void {
    this.response.passReplaced(n);
    this.settled += n;
  }

  /** The line ends at `offset`. */
  private endLine(offset: u64): void {
    if (this.line == Line.Bracket) this.openList(offset);
    // A document over several lines would be joined by the client; what lies between them is not ours to edit.
    if (this.lineEmpty || this.line == Line.Document) this.response.nextEvent();
    this.begin(Line.Begin);
    this.lineEmpty = true;
  }
}

/** First CR or LF in [ptr, end); `end` if none. */
function lineEnd(ptr: usize, end: usize): usize {
  const feed = lanes(0x0a);
  const ret = lanes(0x0d);
  while (ptr + 16 <= end) {
    const a = v128.load(ptr);
    const hit = i8x16.bitmask(v128.or(i8x16.eq(a, feed), i8x16.eq(a, ret)));
    if (hit) return ptr + <usize>ctz(hit);
    ptr += 16;
  }
  while (ptr < end && load<u8>(ptr) != 0x0a && load<u8>(ptr) != 0x0d) ptr++;
  return ptr;
}
