// How an exchange ends: what the outcome header, the access log and the counters will say of it.

import { replaceHeader } from '../../abi/host';
import { HeaderMapKind } from '../../abi/types';
import { Reason } from '../../routing/reason';
import { ROUTED_EXPERTS } from '../names';
import { DecodeCache } from './decode_cache';
import { countOutcome, countSpliced } from './metrics';
import { Outcome, outcomeText } from './outcome';


@final
export class Ending {
  /** The outcome as far as it is known. It is final when the exchange has ended. */
  outcome: Outcome = Outcome.Aborted;
  /** Set where the response to a request that had a prefill leg has been read to its end. */
  decodeCache: DecodeCache | null = null;
  private reason: Reason = Reason.None;
  /**
   * For a merged response: how many rows are prefill's, and in how many choices they are (-1: not
   * known yet).
   */
  private rows: u64 = 0;
  private choices: i32 = -1;
  private spliced: u64 = 0;

  /** Sets any outcome but `Merged`. */
  set(outcome: Outcome, reason: Reason): void {
    this.outcome = outcome;
    this.reason = reason;
  }

  /**
   * Sets the outcome `Merged`: `rows` rows of prefill's are in the arrays of `choices` choices (-1:
   * it is not known yet in how many). `spliced` is how many bytes they are in prefill's dtype.
   */
  setMerged(rows: u64, choices: i32, spliced: u64): void {
    this.set(Outcome.Merged, Reason.None);
    this.rows = rows;
    this.choices = choices;
    this.spliced = spliced;
  }

  /** The value of the outcome header. */
  get text(): string {
    return outcomeText(this.outcome, this.reason, this.rows, this.choices);
  }

  /** Writes the outcome into a head, or into trailers. */
  writeTo(map: HeaderMapKind): void {
    const text = String.UTF8.encode(this.text);
    replaceHeader(map, ROUTED_EXPERTS, changetype<usize>(text), text.byteLength);
  }

  /** Counts the outcome. Called once, when the exchange has ended. */
  count(): void {
    if (this.outcome == Outcome.Merged) countSpliced(this.spliced);
    countOutcome(this.outcome, this.reason);
    const decodeCache = this.decodeCache;
    if (decodeCache !== null) decodeCache.count();
  }
}
