// The response passes as it comes: there is nothing to merge, or it must not be changed.

import { BodyStatus, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { Reason, reasonText } from '../../routing/reason';
import { OnUnmergeable } from '../config/config';
import { ResponseHead } from '../heads';
import { Outcome } from '../outcome/outcome';
import { Course, Phase } from './phase';

export class Pass extends Phase {
  /**
   * `left`: how many bytes are still to come; -1 when that is not known. `toldInTrailer`: the head
   * left before the outcome was known, so a trailer tells it.
   */
  constructor(
    course: Course,
    private left: i64,
    private readonly toldInTrailer: bool,
  ) {
    super(course);
  }

  onResponseBody(size: u32, endOfStream: bool): i32 {
    if (this.left > 0) this.left -= min<i64>(size, this.left);
    if (endOfStream) this.end();
    return BodyStatus.Continue;
  }

  onResponseTrailers(): i32 {
    this.end();
    return HeadersStatus.Continue;
  }

  /** Called when the body has ended. */
  end(): void {
    if (this.toldInTrailer) this.course.tellInTrailer();
    this.course.finish();
  }

  hasAllLeft(): bool {
    return this.left == 0;
  }

  free(): void {}
}

/**
 * An answer that Envoy gives itself passes. It may have come inside a host call of the phase
 * `before`, which still uses what it owns when that call returns. That phase is therefore freed
 * only when the exchange ends.
 */
@final
class PassEnvoys extends Pass {
  constructor(
    course: Course,
    left: i64,
    private readonly before: Phase,
  ) {
    super(course, left, false);
  }

  free(): void {
    this.before.free();
  }
}

/** Lets a response pass whose head has not left. The outcome is written into the head. */
export function passWhole(course: Course, pass: Pass, endOfStream: bool): void {
  course.enter(pass);
  course.ending.writeTo(HeaderMapKind.ResponseHeaders);
  if (endOfStream) course.finish();
}

/**
 * Decides on a response whose body cannot be read at all and whose head has not left. The
 * configuration says what becomes of a response that cannot be merged.
 */
export function passUnreadable(course: Course, pass: Pass, reason: Reason): i32 {
  if (course.config.onUnmergeable != OnUnmergeable.Forward) {
    course.enter(pass);
    course.refuse(reason, reasonText(reason));
    return HeadersStatus.StopIteration;
  }
  course.ending.set(Outcome.Unmerged, reason);
  passWhole(course, pass, false);
  return HeadersStatus.Continue;
}

/**
 * Takes a head that comes in a phase which awaits none: as a rule, Envoy answers the client itself.
 */
export function passEnvoysAnswer(course: Course, phase: Phase, endOfStream: bool): i32 {
  const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
  course.ending.set(Outcome.Absent, Reason.None);
  // A success with a body is not an answer of Envoy's. Here the head of the request went on without
  // its body, and decode has answered before that was whole, so nothing is known of the rows.
  if (head.good && !endOfStream) {
    return passUnreadable(course, new PassEnvoys(course, -1, phase), Reason.Prefill);
  }
  passWhole(course, new PassEnvoys(course, head.contentLength, phase), endOfStream);
  return HeadersStatus.Continue;
}
