// A base64 string whose length is not announced: characters, padding, and the closing quote.

import { Scanner } from '../../json/scanner';
import { alphabetEnd } from '../base64';
import { decodedLength, Progress } from './format';


@final
export class Run {
  /** How many characters, and signs of padding, have been read. */
  chars: u64 = 0;
  padding: u64 = 0;

  /** A string begins. */
  begin(): void {
    this.chars = this.padding = 0;
  }

  /** Reads on. `Done`: the closing quote is the next byte. `Refused`: this is not base64. */
  read(scanner: Scanner): Progress {
    if (this.padding == 0) {
      const from = scanner.cursor;
      const end = alphabetEnd(from, from + scanner.rest);
      this.chars += end - from;
      scanner.skip(end - from);
    }
    while (scanner.rest > 0) {
      const c = load<u8>(scanner.cursor);
      if (c == 0x22) return Progress.Done;
      if (c != 0x3d || this.padding == 2) return Progress.Refused;
      this.padding++;
      scanner.skip(1);
    }
    return Progress.More;
  }

  /** How many bytes the text stands for; -1: it is not base64. */
  get bytes(): i64 {
    return decodedLength(this.chars, this.padding);
  }
}
