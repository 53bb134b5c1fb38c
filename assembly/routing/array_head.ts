// Reads the two ends of a base64 string that holds a .npy file: the header at its start, and the
// padding and the closing quote. A scanner has entered the string, which may be cut anywhere.

import { Scanner } from '../json/scanner';
import { carriers, decode, inAlphabet, leadOf, valueOf } from './base64';
import { MAX_HEADER_BYTES, NpyHeader, PREFIX_BYTES, readHeader, readPrefix } from './npy';
import { Reason } from './reason';

export const enum HeadProgress {
  /** The scanner's window is used up. */
  More,
  /** The header is known. */
  Ready,
  /** The header is not good, see `reason`. The scanner is still inside the string. */
  Bad,
}

/** Room for characters: more than engines' headers have, which are 128 bytes long. */
const USUAL_CHARS: usize = 256;
/** Room for the bytes of a header. All heads share it, as it is needed within one call only. */
let scratch: usize = 0;


@final
export class ArrayHead {
  readonly header: NpyHeader = new NpyHeader();
  reason: Reason = Reason.None;
  /** Offset of the string's first character in the document. */
  start: u64 = 0;

  /** The characters that have been read (owned; 0: none yet), and how many there is room for. */
  private chars: usize = 0;
  private room: usize = 0;
  /** How many have been read, and how many are needed for the next step. */
  private have: usize = 0;
  private need: usize = 0;
  /** Whether the length of the header is known. */
  private prefixRead: bool = false;

  /** A string begins, whose first character is at the scanner's cursor. */
  begin(scanner: Scanner): void {
    if (this.chars == 0) this.makeRoom(USUAL_CHARS);
    this.start = scanner.offset;
    this.have = 0;
    this.need = <usize>carriers(PREFIX_BYTES);
    this.prefixRead = false;
    this.reason = Reason.None;
  }

  /** The last character that was read. It may carry the first bits of the first row as well. */
  get lastChar(): u8 {
    return load<u8>(this.chars + this.have - 1);
  }

  /** Where that character lies (borrowed), if it carries bits of the first row; else 0. */
  get shared(): usize {
    return leadOf(this.header.size) > 0 ? this.chars + this.have - 1 : 0;
  }

  /** How many characters have been read: those that carry bits of the header. */
  get length(): u64 {
    return this.have;
  }

  read(scanner: Scanner): HeadProgress {
    while (true) {
      const take = min(this.need - this.have, scanner.rest);
      if (!inAlphabet(scanner.cursor, scanner.cursor + take)) return this.fail(stranger(scanner, take));
      memory.copy(this.chars + this.have, scanner.cursor, take);
      this.have += take;
      scanner.skip(take);
      if (this.have < this.need) return HeadProgress.More;
      if (scratch == 0) scratch = heap.alloc(MAX_HEADER_BYTES + 2);
      const bytes = scratch;
      decode(this.chars, this.have, bytes);
      const header = this.header;
      if (this.prefixRead) {
        const reason = readHeader(bytes, header);
        return reason == Reason.None ? HeadProgress.Ready : this.fail(reason);
      }
      const reason = readPrefix(bytes, header);
      if (reason != Reason.None) return this.fail(reason);
      this.prefixRead = true;
      this.need = <usize>carriers(header.size);
      if (this.need > this.room) this.makeRoom(this.need);
    }
  }

  free(): void {
    if (this.chars != 0) heap.free(this.chars);
    this.chars = 0;
  }

  private makeRoom(chars: usize): void {
    this.chars = this.chars == 0 ? heap.alloc(chars) : heap.realloc(this.chars, chars);
    this.room = chars;
  }

  private fail(reason: Reason): HeadProgress {
    this.reason = reason;
    return HeadProgress.Bad;
  }
}

/**
 * What is wrong with a string that has a character outside the alphabet among the next `len`. If it
 * is the closing quote, the string is shorter than its header announces.
 */
export function stranger(scanner: Scanner, len: usize): Reason {
  const end = scanner.cursor + len;
  let at = scanner.cursor;
  while (at < end && valueOf(load<u8>(at)) >= 0) at++;
  const quote = at < end && load<u8>(at) == 0x22;
  return quote ? Reason.Size : Reason.Base64;
}

export const enum CloseProgress {
  /** The scanner's window is used up. */
  More,
  /** The closing quote is the scanner's next byte. */
  Ready,
  /** Something else comes, see `reason`. */
  Bad,
}

/** The end of a base64 string: padding, then the closing quote exactly where the header says. */
@final
export class ArrayClose {
  reason: Reason = Reason.None;
  /** Signs of padding that must still come. */
  padding: u64 = 0;

  /** `padding` signs must come before the quote. */
  begin(padding: u64): void {
    this.padding = padding;
    this.reason = Reason.None;
  }

  read(scanner: Scanner): CloseProgress {
    while (scanner.rest > 0) {
      const c = load<u8>(scanner.cursor);
      const expected: u8 = this.padding > 0 ? 0x3d : 0x22;
      if (c != expected) {
        this.reason = c == 0x22 || c == 0x3d || valueOf(c) >= 0 ? Reason.Size : Reason.Base64;
        return CloseProgress.Bad;
      }
      if (this.padding == 0) return CloseProgress.Ready;
      this.padding--;
      scanner.skip(1);
    }
    return CloseProgress.More;
  }
}
