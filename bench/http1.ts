// Just enough of HTTP/1 for both ends of a benchmark: it finds heads, counts the bytes of bodies,
// and copies only heads.

export interface Http1Events {
  /** Called with the head without its empty line, as Latin-1. */
  head(text: string): void;
  /** Called with bytes of the body, which are borrowed until the call returns. */
  body(bytes: Buffer): void;
  end(): void;
}

const enum Part {
  Head,
  Length,
  ChunkSize,
  Chunk,
  ChunkEnd,
  Trailers,
}

const BLANK = Buffer.from('\r\n\r\n');
const LF = 0x0a;

/** Reads the messages of one direction of a connection. Each has a content-length or is chunked. */
export class Http1Reader {
  #part = Part.Head;
  /** The beginning of a head or line that has not ended yet. */
  #pending: Buffer = Buffer.alloc(0);
  #left = 0;

  constructor(private readonly events: Http1Events) {}

  feed(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      switch (this.#part) {
        case Part.Head: {
          const whole = this.#take(bytes, at, BLANK);
          if (!whole) return;
          at = whole.next;
          this.#startBody(whole.text);
          break;
        }
        case Part.Length:
        case Part.Chunk: {
          const end = Math.min(bytes.length, at + this.#left);
          this.#left -= end - at;
          this.events.body(at === 0 && end === bytes.length ? bytes : bytes.subarray(at, end));
          at = end;
          if (this.#left > 0) return;
          if (this.#part === Part.Length) this.#end();
          else this.#part = Part.ChunkEnd;
          break;
        }
        default: {
          const line = this.#take(bytes, at, LF);
          if (!line) return;
          at = line.next;
          this.#line(line.text.trim());
        }
      }
    }
  }

  #startBody(head: string): void {
    this.events.head(head);
    const lower = head.toLowerCase();
    const length = /\r\ncontent-length: *(\d+)/.exec(lower);
    this.#left = length ? Number(length[1]) : 0;
    if (/\r\ntransfer-encoding: *chunked/.test(lower)) this.#part = Part.ChunkSize;
    else if (this.#left > 0) this.#part = Part.Length;
    else this.#end();
  }

  #line(text: string): void {
    if (this.#part === Part.ChunkSize) {
      this.#left = parseInt(text, 16);
      if (!(this.#left >= 0)) throw new Error(`chunk size ${JSON.stringify(text)}`);
      this.#part = this.#left === 0 ? Part.Trailers : Part.Chunk;
    } else if (this.#part === Part.ChunkEnd) this.#part = Part.ChunkSize;
    else if (text === '') this.#end();
  }

  #end(): void {
    this.#part = Part.Head;
    this.events.end();
  }

  /**
   * Takes the text up to a mark. Returns undefined, and keeps the bytes, when the mark has not
   * arrived.
   */
  #take(bytes: Buffer, at: number, mark: Buffer | number): { text: string; next: number } | undefined {
    const kept = this.#pending.length;
    const rest = at === 0 ? bytes : bytes.subarray(at);
    const all = kept === 0 ? rest : Buffer.concat([this.#pending, rest]);
    const found = all.indexOf(mark);
    if (found < 0) {
      this.#pending = Buffer.from(all);
      return undefined;
    }
    this.#pending = Buffer.alloc(0);
    const markBytes = typeof mark === 'number' ? 1 : mark.length;
    return { text: all.toString('latin1', 0, found), next: at + found + markBytes - kept };
  }
}
