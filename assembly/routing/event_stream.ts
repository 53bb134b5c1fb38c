// Server-sent events (WHATWG HTML, section 9.2): finds the JSON document in each event's data and
// has `DecodeResponse` read it. As the standard says, lines end in LF, CR or CRLF, and one byte
// order mark before the first line is skipped. Pieces of the body may end anywhere.
//
// A client may take more for an answer than the standard does: it may parse a body that is a JSON
// document, although its type is `text/event-stream`. Such a body is refused, because its arrays
// would reach the client without having been looked at.

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
  /** At the beginning of the stream, or inside a byte order mark there. */
  Mark,
  /** At the beginning of a line. */
  Begin,
  /** Behind white space at the beginning of a line. */
  Blank,
  /** Inside the field name, which is `data:` so far. */
  Field,
  /** Behind `data:`, with nothing but white space since. */
  First,
  /** Behind a bracket that begins the data: it is that of a list, or of `[DONE]`. */
  Bracket,
  /** In a JSON document. */
  Document,
  /** In a comment, another field, or data that is no JSON document, such as `[DONE]`. */
  Other,
}


@final
export class EventStream {
  /** Offset up to which the body may leave. */
  settled: u64 = 0;
  /** Whether `[DONE]` has begun, behind which a client expects nothing more. */
  done: bool = false;

  private line: Line = Line.Mark;
  /** How many bytes of the mark or of the field name have been found. */
  private matched: i32 = 0;
  /** Whether the line has had no byte yet. */
  private lineEmpty: bool = true;

  constructor(private response: DecodeResponse) {}

  /** Reads a piece of the body, which is in the rope; it starts at `offset` of the body. */
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
        // CRLF is taken for the end of a line and of an empty one. That ends the event a line
        // early, which changes nothing: an event that is read has one line of data only.
        this.endLine(offset + (at - ptr));
        at++;
      } else if (this.step(c, offset + (at - ptr))) at++;
    }
    this.settled = response.holding ? response.settled : offset + len;
    // An event may be written before `[DONE]`, so its bracket stays until the next byte tells.
    if (this.line == Line.Bracket) this.settled = min(this.settled, offset + len - 1);
  }

  /** Takes the byte at `offset`, which ends no line. False when it must be looked at once more. */
  private step(c: u8, offset: u64): bool {
    const space = c == 0x20 || c == 0x09;
    if (this.line == Line.Mark) {
      if (c == load<u8>(MARK + this.matched)) {
        if (++this.matched == MARK_LENGTH) this.begin(Line.Begin);
        return true;
      }
      // A part of a mark begins a field with another name.
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
        // No JSON value begins with this letter, so it is that of `[DONE]`.
        this.done = c == 0x44;
        if (this.done) {
          this.response.beforeDone(offset - 1);
          this.line = Line.Other;
        } else this.openList(offset);
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

  /** A list began right before `offset`; its bracket, maybe of an earlier piece, is read now. */
  private openList(offset: u64): void {
    this.response.push(BRACKET, 1, offset - 1);
    this.line = Line.Document;
  }

  private begin(line: Line): void {
    this.line = line;
    this.matched = 0;
  }

  /**
   * Whether no document has begun that has not ended. A bracket begins one, though it may be that
   * of `[DONE]`.
   */
  get betweenDocuments(): bool {
    return this.line != Line.Bracket && this.response.betweenDocuments;
  }

  /** How many of the next bytes prefill's rows replace, whatever they are. */
  get replacedAhead(): u64 {
    return this.line == Line.Document ? this.response.replacedAhead : 0;
  }

  /** `n` bytes of `replacedAhead` have come and gone without being read. */
  passReplaced(n: u64): void {
    this.response.passReplaced(n);
    this.settled += n;
  }

  /** The line ends at `offset` of the body. */
  private endLine(offset: u64): void {
    if (this.line == Line.Bracket) this.openList(offset);
    // A client would join a document that goes over several lines of data. Such a document is
    // refused: the field names between its lines are no part of it, and can't be edited as if they
    // were.
    if (this.lineEmpty || this.line == Line.Document) this.response.nextEvent();
    this.begin(Line.Begin);
    this.lineEmpty = true;
  }
}

/** The first CR or LF in [ptr, end); `end` where there is none. */
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
