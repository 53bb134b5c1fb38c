// A base64 string whose length nothing announces: characters, padding, the closing quote.

import { Scanner } from '../../json/scanner';
import { alphabetEnd } from '../base64';
import { decodedLength, Progress } from './format';


@final
export class Run {
  /** Characters so far, and padding signs. */
  chars: u64 = 0;
  padding: u64 = 0;

  begin(): void {
    this.chars = this.padding = 0;
  }

  /** Reads on; `Done`: the closing quote is the scanner's next byte; `Refused`: it is not base64. */
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

  /** Bytes that the text stands for; -1 when it is no base64. */
  get bytes(): i64 {
    return decodedLength(this.chars, this.padding);
  }
}
