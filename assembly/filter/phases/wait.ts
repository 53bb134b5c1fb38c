// Decode has answered first: its response is held until prefill's reply is there.

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

/** A body up to this size is put into Envoy's buffer from outside of a body callback: no usual limit is below it. */
const WRITABLE: usize = 16 << 10;

/** How far decode's body has come. */
const enum Came {
  Partly,
  /** Envoy's buffer for it can be written to when prefill's call is answered. */
  WholeAndBuffered,
  /** It ended with trailers: there is no such buffer. */
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

  /** Holds the head. Events must not leave before the rows are there, and Envoy can keep all of them unread. */
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
    // Envoy 1.40 crashes when a body is touched outside of its callback after any status but this one. It
    // counts the bytes that it buffers against its limit: they are held here instead.
    replaceBuffer(BufferKind.ResponseBody, 0, 0);
    return BodyStatus.StopIterationAndBuffer;
  }

  onResponseTrailers(): i32 {
    this.came = Came.WholeWithTrailers;
    return HeadersStatus.StopIteration;
  }

  /** The response can be judged: it is held as any other from now on. */
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

  /** The response is all here, and no callback of its body will come. */
  private sendWhole(): void {
    const course = this.course;
    const exit = new ToBlock();
    const hold = new Hold(course, this.body, this.brought, exit, false);
    course.enter(hold);
    hold.readHeld();
    // The judgement ends the exchange, and nothing has been sent unless it ended with an answer of the filter's.
    const passes = hold.judge(true) == BodyStatus.Continue;
    const whole = exit.body.body;
    const len: usize = whole === null ? 0 : whole.len;
    if (passes && this.came == Came.WholeAndBuffered && len <= WRITABLE) {
      replaceBuffer(BufferKind.ResponseBody, whole === null ? 0 : whole.ptr, len);
      // Above its limit Envoy has answered inside the call; to go on then would send a second response.
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
