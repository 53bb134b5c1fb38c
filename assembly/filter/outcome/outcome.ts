// What became of an exchange, in the words of the outcome header, the access log and the counters.

import { Reason, reasonToken } from '../../routing/reason';

export const enum Outcome {
  /** The stream ended before anything else was decided. */
  Aborted,
  /** Prefill's rows are in decode's arrays. */
  Merged,
  /** Decode forwarded the prompt itself: its rows are valid as they are. */
  Local,
  /** The response carries no routing. */
  Absent,
  /** Routing came, could not be merged, and the response went out all the same, as `on_unmergeable` says. */
  Unmerged,
  /** The client got an error instead, or a body that was cut off. */
  Rejected,
  /** Not an outcome: how many there are. */
  Count,
}

/** The word of an outcome. */
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

/** The header's value; `choices` < 0: not known when the head went out. */
export function outcomeText(outcome: Outcome, reason: Reason, rows: u64, choices: i32): string {
  let text = outcomeToken(outcome);
  if (outcome == Outcome.Merged) {
    text += '; rows=' + rows.toString();
    if (choices >= 0) text += '; choices=' + choices.toString();
  } else if (reason != Reason.None) text += '; reason=' + reasonToken(reason);
  return text;
}
