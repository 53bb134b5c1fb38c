// How many bytes the audits of this VM hold: requests that will be sent, rows that have been
// spliced, and the rows of an answer while they are compared.

import { fits } from '../../bytes/block';
import { Room } from '../rows/room';

/** Bytes that all audits of this VM hold or may be about to hold. */
let taken: u64 = 0;

/** What one audit holds. */
@final
export class Share {
  private bytes: u64 = 0;

  /** Adds `len` bytes, if no more than `most` are taken then. Returns whether there is room. */
  grow(len: u64, most: u64): bool {
    if (taken + len > most || !fits(len)) return false;
    taken += len;
    this.bytes += len;
    return true;
  }

  forget(): void {
    taken -= this.bytes;
    this.bytes = 0;
  }
}

/** The room for the rows of an answer, for which the share of its audit has `kept` bytes. */
@final
export class AnswerRoom extends Room {
  constructor(
    private readonly kept: u64,
    private readonly most: u64,
  ) {
    super();
  }

  takes(len: u64): bool {
    return fits(len) && (len <= this.kept || taken + (len - this.kept) <= this.most);
  }
}
