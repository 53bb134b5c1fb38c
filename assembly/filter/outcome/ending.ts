// How an exchange ends: what the outcome header, the access log and the counters will say.

import { replaceHeader } from '../../abi/host';
import { HeaderMapKind } from '../../abi/types';
import { Reason } from '../../routing/reason';
import { ROUTED_EXPERTS } from '../names';
import { countOutcome, countSpliced } from './metrics';
import { Outcome, outcomeText } from './outcome';


@final
export class Ending {
  /** What is known so far; it is final when the exchange ends. */
  outcome: Outcome = Outcome.Aborted;
  private reason: Reason = Reason.None;
  /** Of a merged response: prefill's rows, the arrays that they went into, -1 while that is unknown. */
  private rows: u64 = 0;
  private choices: i32 = -1;
  private spliced: u64 = 0;

  /** Any outcome but `Merged`. */
  set(outcome: Outcome, reason: Reason): void {
    this.outcome = outcome;
    this.reason = reason;
  }

  /**
   * `rows` of prefill's are in the arrays of `choices` choices; -1: it is not known yet in how many.
   * `spliced` are their bytes, as they left.
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

  /** Counts the outcome, once, when the exchange has ended. */
  count(): void {
    if (this.outcome == Outcome.Merged) countSpliced(this.spliced);
    countOutcome(this.outcome, this.reason);
  }
}
