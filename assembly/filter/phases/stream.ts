// The head is out: pieces of decode's body are edited as they pass, and leave as far as they are settled.

import { removeHeader } from '../../abi/host';
import { BodyStatus, BufferKind, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { DecodeResponse, Form, Treatment } from '../../routing/decode_response';
import { EventStream } from '../../routing/event_stream';
import { Reason } from '../../routing/reason';
import { BodySink, Outlet } from '../body/body_sink';
import { DecodeBody } from '../body/decode_body';
import { Exit } from '../body/exit';
import { OnUnmergeable } from '../config/config';
import { CONTENT_LENGTH, ROUTED_EXPERTS } from '../names';
import { Outcome } from '../outcome/outcome';
import { Brought } from '../rows/brought';
import { Pass } from './pass';
import { Course, Phase } from './phase';

/** What a body and events have in common. */
abstract class Stream extends Phase {
  /** Takes over everything. `toldInTrailer`: the head went out before the outcome was known. */
  constructor(
    course: Course,
    protected readonly body: DecodeBody,
    protected readonly brought: Brought,
    protected readonly response: DecodeResponse,
    protected readonly toldInTrailer: bool,
  ) {
    super(course);
  }

  /** Bytes to come that are replaced by prefill's whatever they are. */
  protected abstract get replacedAhead(): u64;

  /** `n` such bytes went by unread. */
  protected abstract passReplaced(n: u32): void;

  /** Reads `len` bytes at `ptr`, which are in the rope. */
  protected abstract read(ptr: usize, len: usize): void;

  /** The body may leave up to this offset. */
  protected abstract get settled(): u64;

  /** Whether `size` bytes are the last ones, by what the head announces. */
  protected abstract isLast(size: u32): bool;

  /** What is wrong with what has been read, beyond what the reader says of it. */
  protected abstract fault(): Reason;

  /** Whether the response may go on unmerged: no routing of prefill's has left. */
  protected abstract get untouched(): bool;

  /** Whether the body may end here. */
  protected abstract get isWhole(): bool;

  /** The body has ended as it may: what is wrong with it as a whole, or `None` once the ending is known. */
  protected abstract end(): Reason;

  /** What the ending says of a merged response. */
  tellMerged(): void {
    const response = this.response;
    const prompt = this.brought.expected.prompt;
    const choices = this.knowsChoices ? response.choices : -1;
    this.course.ending.setMerged(prompt.rowCount, choices, prompt.bytesFor(response.choices));
  }

  /** Whether the number of arrays is final, or, of events, the number so far is told. */
  protected abstract get knowsChoices(): bool;

  onResponseBody(size: u32, endOfStream: bool): i32 {
    // After a reset nothing more may leave.
    const passes = (size == 0 || this.takePiece(size)) && (!endOfStream || this.endBody());
    return passes ? BodyStatus.Continue : BodyStatus.StopIterationNoBuffer;
  }

  onResponseTrailers(): i32 {
    return this.endBody() ? HeadersStatus.Continue : HeadersStatus.StopIteration;
  }

  /** False when the stream was reset. */
  private takePiece(size: u32): bool {
    const body = this.body;
    const rope = body.rope;
    // What prefill's rows replace is not read at all.
    const unread = rope.held == 0 ? <u32>min<u64>(this.replacedAhead, size) : 0;
    if (unread == size && this.isLast(size)) return this.reset(Reason.Json);
    const piece = unread < size ? DecodeBody.piece(unread, size - unread) : null;
    if (unread < size && piece === null) return this.reset(Reason.Memory);
    const sink = new BodySink(BufferKind.ResponseBody);
    if (unread > 0) {
      if (!rope.releaseUnread(unread, sink)) rope.broken = true;
      this.passReplaced(unread);
      body.received += unread;
    }
    if (piece !== null) {
      const len = piece.len;
      this.read(body.take(piece), len);
      body.received += len;
      const reason = this.wrong();
      if (reason != Reason.None) return this.failed(reason, sink);
      rope.release(this.settled, sink);
    }
    return this.sent(sink);
  }

  /** What is wrong with the response as far as it has been read. */
  private wrong(): Reason {
    const response = this.response;
    if (response.reason != Reason.None) return response.reason;
    const fault = this.fault();
    if (fault != Reason.None) return fault;
    if (this.body.breaksPromise(response)) return Reason.Rows;
    // An array whose end must be seen before any of it may leave.
    const held = this.body.received - this.settled;
    return held > this.course.config.maxHoldBytes ? Reason.Hold : Reason.None;
  }

  /** After what may leave was given to Envoy: false when it was not all of it, and the stream was reset. */
  protected sent(outlet: Outlet): bool {
    if (outlet.finish() && !this.body.rope.broken) return true;
    return this.reset(Reason.Memory);
  }

  /** The response cannot be merged any more: it may go on as decode sends it, or false. */
  private failed(reason: Reason, sink: BodySink): bool {
    const course = this.course;
    const foreign = this.brought.isForeign(this.response, reason);
    const forwards = this.untouched && course.config.onUnmergeable == OnUnmergeable.Forward;
    if (!foreign && !forwards) return this.reset(reason);
    const body = this.body;
    body.rope.clearEdits();
    body.rope.release(body.received, sink);
    sink.finish();
    if (course.phase !== this) return false;
    if (!foreign) course.ending.set(Outcome.Unmerged, reason);
    const pass = new Pass(course, body.leftAsTold, this.toldInTrailer);
    this.free();
    course.enter(pass);
    return true;
  }

  /** The body has ended. False when the stream was reset. */
  private endBody(): bool {
    // The last piece may have been the one with which the response went over to passing.
    const phase = this.course.phase;
    if (phase !== this) {
      if (phase instanceof Pass) (phase as Pass).end();
      return true;
    }
    if (!this.isWhole && !this.brought.isForeign(this.response, Reason.Json)) return this.reset(Reason.Json);
    const reason = this.end();
    if (reason != Reason.None) return this.reset(reason);
    this.finish();
    return true;
  }

  /** The response has left, whole. */
  protected finish(): void {
    if (this.toldInTrailer) this.course.ending.writeTo(HeaderMapKind.ResponseTrailers);
    this.course.finish();
  }

  /** The response cannot be merged, and some of it has left: the client must not take it for whole. */
  protected reset(reason: Reason): bool {
    this.course.reset(reason, this.brought.describe(reason));
    return false;
  }

  free(): void {
    this.response.free();
    this.body.free();
    this.brought.free();
  }
}

/** A body that was held until it was known how it is edited. */
@final
export class StreamBody extends Stream {
  /** Lets the held bytes leave, as far as they are settled, through `exit`. */
  begin(exit: Exit, endOfStream: bool): i32 {
    const body = this.body;
    const outlet = exit.open(<u64>max<i64>(<i64>body.received + this.response.growth, 0));
    body.rope.release(this.response.settled, outlet);
    if (!outlet.finish() || body.rope.broken) {
      const why = this.brought.describe(Reason.Memory);
      if (exit.keeps) this.course.refuse(Reason.Memory, why);
      else this.course.reset(Reason.Memory, why);
      return BodyStatus.StopIterationNoBuffer;
    }
    if (endOfStream) {
      this.tellChoices();
      this.finish();
    }
    return BodyStatus.Continue;
  }

  protected get replacedAhead(): u64 {
    return this.response.replacedAhead;
  }

  protected passReplaced(n: u32): void {
    this.response.passReplaced(n);
  }

  protected read(ptr: usize, len: usize): void {
    this.response.push(ptr, len, this.body.received);
  }

  protected get settled(): u64 {
    return this.response.settled;
  }

  protected isLast(size: u32): bool {
    return this.body.isLast(size);
  }

  protected fault(): Reason {
    return this.body.isCut(this.response) ? Reason.Json : Reason.None;
  }

  protected get untouched(): bool {
    return false;
  }

  protected get isWhole(): bool {
    return this.response.complete;
  }

  protected get knowsChoices(): bool {
    return this.response.complete;
  }

  protected end(): Reason {
    this.tellChoices();
    return Reason.None;
  }

  /** The head that went out may have said `merged` before the number of arrays was known. */
  private tellChoices(): void {
    if (this.course.ending.outcome == Outcome.Merged) this.tellMerged();
  }

  hasAllLeft(): bool {
    if (!this.response.complete) return false;
    this.tellChoices();
    return true;
  }
}

/** Events, which are edited from the first one on: nobody could wait for the last. */
@final
export class StreamEvents extends Stream {
  private readonly events: EventStream;

  constructor(course: Course, body: DecodeBody, brought: Brought, response: DecodeResponse) {
    super(course, body, brought, response, true);
    this.events = new EventStream(response);
  }

  protected get replacedAhead(): u64 {
    return this.events.replacedAhead;
  }

  protected passReplaced(n: u32): void {
    this.events.passReplaced(n);
  }

  protected read(ptr: usize, len: usize): void {
    this.events.push(ptr, len, this.body.received);
  }

  protected get settled(): u64 {
    return this.events.settled;
  }

  protected isLast(size: u32): bool {
    return false;
  }

  protected fault(): Reason {
    return Reason.None;
  }

  protected get untouched(): bool {
    return this.brought.expected.alone !== null || !this.response.merged;
  }

  protected get isWhole(): bool {
    return this.events.betweenDocuments;
  }

  protected get knowsChoices(): bool {
    return true;
  }

  protected end(): Reason {
    const response = this.response;
    if (response.nulled != Reason.None) {
      this.course.ending.set(Outcome.Unmerged, response.nulled);
      return Reason.None;
    }
    if (response.unplaced) return Reason.Missing;
    if (!response.merged) return Reason.None;
    if (this.brought.examination.judge() != Reason.None) return Reason.Experts;
    if (this.brought.expected.alone === null) this.tellMerged();
    return Reason.None;
  }
}

/** A head of events goes out, and they are edited as they pass. Takes over `body` and `brought`. */
export function streamEvents(course: Course, body: DecodeBody, brought: Brought): void {
  const nulls = course.config.onUnmergeable == OnUnmergeable.Null;
  const treatment = nulls ? Treatment.MergeOrNull : Treatment.Merge;
  const response = new DecodeResponse(brought.expected, body.rope, treatment, Form.Unknown, true);
  removeHeader(HeaderMapKind.ResponseHeaders, ROUTED_EXPERTS);
  // With a length a client would take a stream for whole that is cut short and then reset.
  removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
  course.enter(new StreamEvents(course, body, brought, response));
}
