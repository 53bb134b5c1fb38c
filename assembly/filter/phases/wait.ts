// Decode has answered first. Its response is held until prefill's reply is there.

import { continueStream, headerPairs, replaceBuffer } from '../../abi/host';
import { BodyStatus, BufferKind, HeaderMapKind, HeadersStatus, StreamKind } from '../../abi/types';
import { Block } from '../../bytes/block';
import { Reason } from '../../routing/reason';
import { DecodeBody } from '../body/decode_body';
import { ToBlock, ToEnvoy } from '../body/exit';
import { SentCall } from '../calls/prefill_answer';
import { ResponseHead } from '../heads';
import { replyDecode } from '../outcome/replies';
import { Brought } from '../rows/brought';
import { BothLegs } from './both_legs';
import { Hold } from './hold';
import { Course } from './phase';
import { streamEvents } from './stream';

/**
 * The largest body that is put into Envoy's buffer outside of a body callback. The usual limits of
 * that buffer are not below it.
 */
const WRITABLE: usize = 16 << 10;

/** How much of decode's body has come. */
const enum Came {
  Partly,
  /**
   * All of it has come, and Envoy's buffer for it can be written to when prefill's call is
   * answered.
   */
  WholeAndBuffered,
  /** All of it has come, and trailers after it. Envoy's buffer for it cannot be written to. */
  WholeWithTrailers,
}


@final
export class Wait extends BothLegs {
  private readonly body: DecodeBody;
  private came: Came = Came.Partly;

  /** Takes over what is known. */
  constructor(
    course: Course,
    sent: SentCall,
    brought: Brought,
    private readonly head: ResponseHead,
  ) {
    super(course, sent, brought);
    this.body = new DecodeBody(head.contentLength);
  }

  /**
   * Holds the head. Of events nothing may leave before prefill's rows are there, so Envoy holds all
   * of them, and the filter reads none.
   */
  begin(): i32 {
    return this.head.events ? HeadersStatus.StopAllIterationAndWatermark : HeadersStatus.StopIteration;
  }

  onResponseBody(size: u32, endOfStream: bool): i32 {
    const body = this.body;
    if (size > 0) {
      const piece = DecodeBody.piece(0, size);
      if (piece === null) return this.hold().unmergeable(Reason.Memory, size, endOfStream);
      body.take(piece);
      body.received += size;
    }
    if (body.rope.held > this.course.config.maxHoldBytes) {
      return this.hold().unmergeable(Reason.Hold, 0, endOfStream);
    }
    if (!endOfStream) return BodyStatus.StopIterationNoBuffer;
    this.came = Came.WholeAndBuffered;
    // Envoy 1.40 crashes when a body is touched outside of its callback, unless that callback has
    // returned this status. What Envoy buffers counts against its limit, so the rope holds the
    // bytes, and Envoy's buffer is emptied.
    replaceBuffer(BufferKind.ResponseBody, 0, 0);
    return BodyStatus.StopIterationAndBuffer;
  }

  onResponseTrailers(): i32 {
    this.came = Came.WholeWithTrailers;
    return HeadersStatus.StopIteration;
  }

  /** Enters `Hold`, as the response can be judged now. */
  private hold(): Hold {
    const hold = new Hold(this.course, this.body, this.brought, new ToEnvoy(), false);
    this.course.enter(hold);
    hold.readHeld();
    return hold;
  }

  protected prefillEnded(): void {
    if (this.head.events) {
      streamEvents(this.course, this.body, this.brought);
      continueStream(StreamKind.Response);
    } else if (this.came == Came.Partly) this.hold();
    else this.sendWhole();
  }

  /** Lets a response leave whose body is whole. No callback of the body will come any more. */
  private sendWhole(): void {
    const course = this.course;
    const exit = new ToBlock();
    const hold = new Hold(course, this.body, this.brought, exit, false);
    course.enter(hold);
    hold.readHeld();
    // `judge` ends the exchange. By then nothing has been sent, except where the filter has
    // answered with an error, and then `judge` returns another status.
    const passes = hold.judge(true) == BodyStatus.Continue;
    const whole = exit.body.body;
    const len: usize = whole === null ? 0 : whole.len;
    if (passes && this.came == Came.WholeAndBuffered && len <= WRITABLE) {
      replaceBuffer(BufferKind.ResponseBody, whole === null ? 0 : whole.ptr, len);
      // If the body is above Envoy's limit, Envoy has answered inside the call above. To continue
      // the stream then would send a second response.
      if (!course.gone) continueStream(StreamKind.Response);
    } else if (passes) {
      const headers = headerPairs(HeaderMapKind.ResponseHeaders);
      const pairs = headers === null ? Block.alloc(0) : headers;
      replyDecode(this.head.status, pairs, whole, course.ending.text);
      pairs.free();
    }
    exit.body.free();
  }

  free(): void {
    this.body.free();
    super.free();
  }
}
