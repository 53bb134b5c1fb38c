// Server-sent events (WHATWG HTML, section 9.2): finds the JSON document of each event and has it read. Lines may end in
// LF, CR or CRLF, and be cut anywhere.

import { lanes } from '../bytes/vector';
import { DecodeResponse } from './decode_response';
import { Reason } from './reason';

const FIELD = memory.data<u8>([0x64, 0x61, 0x74, 0x61, 0x3a]);
const FIELD_LENGTH: i32 = 5;

const enum Line {
  /** Inside the field name, as far as it is `data:`. */
  Field,
  /** After `data:`. */
  First,
  /** In a JSON document. */
  Document,
  /** A comment, another field, or data that is not JSON, such as `[DONE]`. */
  Other,
}


@final
export class EventStream {
  /** The body may leave up to this offset. */
  settled: u64 = 0;

  private line: Line = Line.Field;
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
        at++;
        this.endLine();
      } else {
        this.lineEmpty = false;
        if (this.line == Line.First) {
          if (c == 0x7b) this.line = Line.Document;
          else if (c == 0x20 || c == 0x09) at++;
          else this.line = Line.Other;
        } else if (c == load<u8>(FIELD + this.matched)) {
          at++;
          if (++this.matched == FIELD_LENGTH) this.line = Line.First;
        } else this.line = Line.Other;
      }
    }
    this.settled = response.holding ? response.settled : offset + len;
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

  private endLine(): void {
    // A document over several lines would be joined by the client; what lies between them is not ours to edit.
    if (this.lineEmpty || this.line == Line.Document) this.response.nextEvent();
    this.line = Line.Field;
    this.matched = 0;
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
