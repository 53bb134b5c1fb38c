// What became of an exchange, in the words of the outcome header, the access log and the counters.

import { Reason, reasonToken } from '../../routing/reason';

export const enum Outcome {
  /** The stream ended before anything else was decided. */
  Aborted,
  /** Prefill's rows are in decode's arrays. */
  Merged,
  /** Decode served the request alone, and its rows are valid as they are. */
  Local,
  /** The response carries no routing. */
  Absent,
  /**
   * Routing came and could not be merged. The response went out all the same, as `on_unmergeable`
   * says.
   */
  Unmerged,
  /** The client got an error in place of the response, or a stream that was reset. */
  Rejected,
  /** This is not an outcome: it is how many there are. */
  Count,
}

/** The word for an outcome. */
export function outcomeToken(outcome: Outcome): string {
  switch (outcome) {
    case Outcome.Merged:
      return 'merged';
    case Outcome.Local:
      return 'local';
    case Outcome.Absent:
      return 'absent';
    case Outcome.Unmerged:
      return 'unmerged';
    case Outcome.Rejected:
      return 'rejected';
    default:
      return 'aborted';
  }
}

/**
 * The value of the outcome header. `choices` is negative when it was not known as the head left.
 */
export function outcomeText(outcome: Outcome, reason: Reason, rows: u64, choices: i32): string {
  let text = outcomeToken(outcome);
  if (outcome == Outcome.Merged) {
    text += '; rows=' + rows.toString();
    if (choices >= 0) text += '; choices=' + choices.toString();
  } else if (reason != Reason.None) text += '; reason=' + reasonToken(reason);
  return text;
}
