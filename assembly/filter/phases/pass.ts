// The response passes as it comes: there is nothing to merge, or it must not be touched.

import { BodyStatus, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { Reason, reasonText } from '../../routing/reason';
import { OnUnmergeable } from '../config/config';
import { ResponseHead } from '../heads';
import { Outcome } from '../outcome/outcome';
import { Course, Phase } from './phase';

export class Pass extends Phase {
  /**
   * `left`: bytes still to come; -1 when their number is not known. `toldInTrailer`: the head went out
   * before the outcome was known, and a trailer tells it.
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

  /** The body has ended. */
  end(): void {
    if (this.toldInTrailer) this.course.ending.writeTo(HeaderMapKind.ResponseTrailers);
    this.course.finish();
  }

  hasAllLeft(): bool {
    return this.left == 0;
  }

  free(): void {}
}

/**
 * An answer that Envoy gives itself passes. It may have come inside a host call of the phase before, which
 * therefore keeps what it owns until the exchange ends.
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

/** Lets a response pass whose head has not left: the outcome goes into it. */
export function passWhole(course: Course, pass: Pass, endOfStream: bool): void {
  course.enter(pass);
  course.ending.writeTo(HeaderMapKind.ResponseHeaders);
  if (endOfStream) course.finish();
}

/**
 * A response whose body cannot be read at all, and whose head has not left: what the configuration says
 * of what cannot be merged.
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

/** A head comes in a phase that awaits none: Envoy answers the client itself. */
export function passEnvoysAnswer(course: Course, phase: Phase, endOfStream: bool): i32 {
  const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
  course.ending.set(Outcome.Absent, Reason.None);
  // Or the request's head went on without its body, and decode has answered: what it brings cannot be known.
  if (head.good && !endOfStream) {
    return passUnreadable(course, new PassEnvoys(course, -1, phase), Reason.Prefill);
  }
  passWhole(course, new PassEnvoys(course, head.contentLength, phase), endOfStream);
  return HeadersStatus.Continue;
}
