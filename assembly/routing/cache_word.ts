// What decode says of its cache where it serves a request alone, and what it must say so that its
// arrays may leave.

import { Site } from './formats/format';
import { Reason } from './reason';

/**
 * What decode's own `cached_tokens` must say where decode serves a request alone. A token that
 * comes from the prefix cache is not forwarded, so its row is whatever its slot held before.
 */
export const enum CachedRule {
  /** It may say anything: samples of a request share what was forwarded for that request. */
  Any,
  /** It must not say more than 0: the request had a salt, so a hit means that salts are ignored. */
  NoHit,
  /** It must be there, and say 0. */
  Zero,
  /** No value is good enough: it speaks of one of several prompts only. */
  Never,
}

/** What decode says of its cache, in the document, or the element of a list, that is being read. */
@final
export class CacheWord {
  /** Whether `cached_tokens` has said that no token of the prompt came from the cache. */
  private uncached: bool = false;
  /** How many arrays the response had before this document or element. */
  private arraysBefore: i32 = 0;

  constructor(private rule: CachedRule) {}

  /** A document or element begins; `arrays` have come before it. */
  begin(arrays: i32): void {
    this.arraysBefore = arrays;
    this.uncached = false;
  }

  /** `cached_tokens` has ended. A value that is no plain number says nothing. */
  take(site: Site): void {
    const tokens = site.scanner.integer;
    if (tokens == 0) this.uncached = this.rule != CachedRule.Never;
    if (tokens > 0 && this.rule != CachedRule.Any) site.refuse(Reason.Cached);
  }

  /** The document or element has ended. With arrays it must have said what the rule asks for. */
  end(site: Site): void {
    if (this.rule < CachedRule.Zero || this.uncached) return;
    if (site.choices > this.arraysBefore) site.refuse(Reason.Cached);
  }

  /** Whether arrays have come for which `cached_tokens` must still say 0. */
  isAwaited(arrays: i32): bool {
    return this.rule >= CachedRule.Zero && arrays > 0 && !this.uncached;
  }
}
