// What the phases in which both legs are in flight have in common: they take prefill's answer.

import { Reason } from '../../routing/reason';
import { Failure, SentCall, failureMessage, failureStatus, reportFailure } from '../calls/prefill_answer';
import { OnUnmergeable } from '../config/config';
import { Brought } from '../rows/brought';
import { takeAnswer } from './legs';
import { Course, Phase } from './phase';

export abstract class BothLegs extends Phase {
  /** Takes over what is known. Prefill's reply is read into `brought`. */
  constructor(
    course: Course,
    protected readonly sent: SentCall,
    protected readonly brought: Brought,
  ) {
    super(course);
  }

  /** Called when the prefill call has ended, successfully or not, and the exchange goes on. */
  protected abstract prefillEnded(): void;

  onCallResponse(call: u32, headers: u32, bodySize: u32): void {
    if (call != this.sent.token) return;
    const course = this.course;
    const failure = takeAnswer(course, this.sent, headers, bodySize, this.brought);
    if (course.ended) return;
    if (failure != Failure.None) {
      // The leg has been sent once, and is not sent again: decode is already waiting for it.
      reportFailure(failure, 1);
      this.brought.forgetRows();
      course.forgetAnswers();
      if (course.config.onUnmergeable == OnUnmergeable.Reject) {
        return course.answer(failureStatus(failure), failureMessage(failure), Reason.Prefill);
      }
      // Decode may have waited for prefill in vain, or may have what it needs. Its response, if it
      // has arrays, is treated as one that cannot be merged.
      this.brought.captured.prompt.refuse(Reason.Prefill);
    }
    this.prefillEnded();
  }

  free(): void {
    this.brought.free();
  }
}
