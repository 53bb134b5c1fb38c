// Replaces a whole value of decode's response, by prefill's or by `null`, while the value passes.
// It is removed piece by piece, so that nothing of it has to be held, and what replaces it is
// written behind its last byte.

import { Site } from './formats/format';
import { PrefillValue } from './prompt';
import { Reason } from './reason';

/** The most values that are replaced in one document: four for each choice that vLLM allows. */
const MAX_SWAPS: i32 = 4 * 16384;

const NULL_TEXT = memory.data<u8>([0x6e, 0x75, 0x6c, 0x6c]);


@final
export class ValueSwap {
  /** Whether a value is being removed. */
  active: bool = false;
  /** Values that `begin` has been called for in this document. */
  count: i32 = 0;

  /** Offset in the body up to which the value has been removed. */
  private from: u64 = 0;
  /** The value that is written in its place; null: the JSON literal `null` is written. */
  private instead: PrefillValue | null = null;

  /** Replaces the value at the scanner's cursor by `instead` (borrowed); null: by `null`. */
  begin(site: Site, instead: PrefillValue | null): void {
    if (++this.count > MAX_SWAPS) return site.refuse(Reason.Memory);
    this.from = site.position;
    this.instead = instead;
    this.active = true;
  }

  /** The value in [from, to), which has been read and is held, becomes `null`. */
  replace(site: Site, from: u64, to: u64): void {
    site.rope.replace(from, to - from, NULL_TEXT, 4);
    site.growth += 4 - <i64>(to - from);
  }

  /** A value that began at offset `from`, and has been read in part, becomes `null`. */
  takeOver(from: u64): void {
    this.from = from;
    this.instead = null;
    this.active = true;
  }

  /** Removes the bytes of the value that have been read since the last call. */
  pass(site: Site): void {
    const to = site.position;
    if (to == this.from) return;
    site.rope.replace(this.from, to - this.from, NULL_TEXT, 0);
    site.growth -= <i64>(to - this.from);
    this.from = to;
  }

  /** The value has ended, and is replaced. Returns true when it has become `null`. */
  end(site: Site): bool {
    this.pass(site);
    this.active = false;
    const value = this.instead;
    if (value !== null) {
      site.rope.replaceFrom(site.position, 0, value.text, 0, value.text.length);
      site.growth += <i64>value.text.length;
      return false;
    }
    site.rope.replace(site.position, 0, NULL_TEXT, 4);
    site.growth += 4;
    return true;
  }
}
