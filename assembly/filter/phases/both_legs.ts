// A phase in which both legs are in flight: what becomes of prefill's answer.

import { Reason } from '../../routing/reason';
import { Failure, SentCall, failureMessage, failureStatus, reportFailure } from '../calls/prefill_answer';
import { OnUnmergeable } from '../config/config';
import { Brought } from '../rows/brought';
import { takeAnswer } from './legs';
import { Course, Phase } from './phase';

export abstract class BothLegs extends Phase {
  /** Takes over what is known, into which prefill's reply is read. */
  constructor(
    course: Course,
    protected readonly sent: SentCall,
    protected readonly brought: Brought,
  ) {
    super(course);
  }

  /** Prefill has answered, or failed: decode's response can be judged. */
  protected abstract prefillEnded(): void;

  onCallResponse(headers: u32, bodySize: u32): void {
    const course = this.course;
    const failure = takeAnswer(course, this.sent, headers, bodySize, this.brought);
    if (course.ended) return;
    if (failure != Failure.None) {
      // The leg is sent once: decode waits for it.
      reportFailure(failure, 1);
      this.brought.forgetRows();
      course.forgetRanks();
      if (course.config.onUnmergeable == OnUnmergeable.Reject) {
        return course.answer(failureStatus(failure), failureMessage(failure), Reason.Prefill);
      }
      // Decode may have waited in vain, or have what it needs: its response is treated as what cannot be merged.
      this.brought.captured.prompt.refuse(Reason.Prefill);
    }
    this.prefillEnded();
  }

  free(): void {
    this.brought.free();
  }
}
