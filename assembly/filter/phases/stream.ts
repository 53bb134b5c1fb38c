// The head has left. Pieces of decode's body are edited as they pass, and leave as far as they are
// settled.

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

/** What a body and a stream of events have in common. */
abstract class Stream extends Phase {
  /**
   * Takes over everything. `toldInTrailer`: the head left before the outcome was known, so a
   * trailer tells it.
   */
  constructor(
    course: Course,
    protected readonly body: DecodeBody,
    protected readonly brought: Brought,
    protected readonly response: DecodeResponse,
    protected readonly toldInTrailer: bool,
  ) {
    super(course);
  }

  /** How many of the next bytes prefill's rows replace, whatever these bytes are. */
  protected abstract get replacedAhead(): u64;

  /** `n` bytes of `replacedAhead` have come and gone without being read. */
  protected abstract passReplaced(n: u32): void;

  /** Reads `len` bytes at `ptr`, which are in the rope. */
  protected abstract read(ptr: usize, len: usize): void;

  /** The offset up to which the body may leave. */
  protected abstract get settled(): u64;

  /** Whether the body ends with the next `size` bytes, by the length that the head announces. */
  protected abstract isLast(size: u32): bool;

  /** What is wrong with the bytes read so far, beyond what `response` reports itself. */
  protected abstract fault(): Reason;

  /** Whether the response may still go on unmerged, since none of prefill's routing has left. */
  protected abstract get untouched(): bool;

  /** Whether the body is whole if it ends here. */
  protected abstract get isWhole(): bool;

  /**
   * Called when the body has ended and is whole. Returns what is wrong with all of it, or `None`
   * after it has completed the ending.
   */
  protected abstract end(): Reason;

  /** Sets the ending to that of a merged response. */
  tellMerged(): void {
    const response = this.response;
    const prompt = this.brought.expected.prompt;
    const arrays = response.begun[prompt.leadingName];
    const choices = this.knowsChoices ? arrays : -1;
    this.course.ending.setMerged(prompt.rowCount, choices, prompt.bytesIn(response.begun));
  }

  /**
   * Whether the number of arrays so far is that of the whole response. Events set their ending only
   * when they are over, so theirs always is.
   */
  protected abstract get knowsChoices(): bool;

  onResponseBody(size: u32, endOfStream: bool): i32 {
    // After a reset nothing more may leave.
    const passes = (size == 0 || this.takePiece(size)) && (!endOfStream || this.endBody());
    return passes ? BodyStatus.Continue : BodyStatus.StopIterationNoBuffer;
  }

  onResponseTrailers(): i32 {
    return this.endBody() ? HeadersStatus.Continue : HeadersStatus.StopIteration;
  }

  /**
   * Reads a piece of `size` bytes and lets settled bytes leave. Returns false when no more may
   * leave.
   */
  private takePiece(size: u32): bool {
    const body = this.body;
    const rope = body.rope;
    // Bytes that prefill's rows replace are not read.
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
    if (this.course.exceedsPiece(sink.taken - min<u64>(sink.taken, size))) return this.reset(Reason.Piece);
    return this.sent(sink);
  }

  /** What is wrong with the response as far as it has been read. */
  private wrong(): Reason {
    const response = this.response;
    if (response.reason != Reason.None) return response.reason;
    // What has left cannot be read again in another form.
    if (response.again != Form.Unknown) return Reason.Ambiguous;
    const fault = this.fault();
    if (fault != Reason.None) return fault;
    if (this.body.breaksPromise(response)) return Reason.Rows;
    // Bytes from `settled` on are held. An array may be among them of which nothing may leave
    // before its end has been read.
    const held = this.body.received - this.settled;
    return held > this.course.config.maxHoldBytes ? Reason.Hold : Reason.None;
  }

  /**
   * Finishes an outlet. Returns false when Envoy did not take all bytes, and the stream was reset.
   */
  protected sent(outlet: Outlet): bool {
    if (outlet.finish() && !this.body.rope.broken) return true;
    return this.reset(Reason.Memory);
  }

  /**
   * The response cannot be merged any more. Returns true when it goes on as decode sends it.
   * Otherwise the stream was reset, or Envoy has answered.
   */
  private failed(reason: Reason, sink: BodySink): bool {
    const course = this.course;
    const foreign = this.brought.isForeign(this.response, reason);
    const forwards = this.untouched && course.config.onUnmergeable == OnUnmergeable.Forward;
    if (!foreign && !forwards) return this.reset(reason);
    const body = this.body;
    body.rope.clearEdits();
    body.rope.release(body.received, sink);
    if (course.exceedsPiece(sink.taken)) return this.reset(Reason.Piece);
    sink.finish();
    if (course.phase !== this) return false;
    if (!foreign) course.ending.set(Outcome.Unmerged, reason);
    const pass = new Pass(course, body.leftAsTold, this.toldInTrailer);
    this.free();
    course.enter(pass);
    return true;
  }

  /** Called when the body has ended. Returns false when the stream was reset. */
  private endBody(): bool {
    // While it read the last piece, this phase may have given way to `Pass`.
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

  /** Completes the ending of a response that has been read to its end. */
  protected tellDecodeCache(): void {
    this.course.ending.decodeCache = this.brought.decodeCache(this.response);
  }

  /** Ends the exchange. Called when the whole response has left. */
  protected finish(): void {
    this.tellDecodeCache();
    if (this.toldInTrailer) this.course.tellInTrailer();
    this.course.finish();
  }

  /**
   * Resets the stream. The response cannot be merged and some of it has left, so the client must
   * not take it for whole.
   */
  protected reset(reason: Reason): bool {
    this.course.reset(reason, this.brought.describe(reason, this.response));
    return false;
  }

  onMerged(): void {
    this.brought.audit();
  }

  free(): void {
    this.response.free();
    this.body.free();
    this.brought.free();
  }
}

/** A body that was held until it was known how to edit it. */
@final
export class StreamBody extends Stream {
  /**
   * Lets the held bytes that are settled leave through `exit`. Returns the status for the callback
   * of the body.
   */
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

  /**
   * Completes the ending of a merged response: the head may have left before the number of arrays
   * was known.
   */
  private tellChoices(): void {
    if (this.course.ending.outcome == Outcome.Merged) this.tellMerged();
  }

  hasAllLeft(): bool {
    if (!this.response.complete) return false;
    this.tellChoices();
    this.tellDecodeCache();
    return true;
  }
}

/**
 * A stream of events. It is edited from the first event on, since a client that streams cannot be
 * made to wait for the last event.
 */
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
    // With `[DONE]` a client has a stream that looks whole, even if a reset follows.
    return this.events.done ? this.judge() : Reason.None;
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
    const reason = this.judge();
    if (reason != Reason.None) return reason;
    if (response.nulled != Reason.None) this.course.ending.set(Outcome.Unmerged, response.nulled);
    else if (response.merged && this.brought.expected.alone === null) this.tellMerged();
    return Reason.None;
  }

  /** What is wrong with all events so far, if none follows. */
  private judge(): Reason {
    const response = this.response;
    if (response.nulled != Reason.None) return Reason.None;
    if (response.unplaced) return Reason.Missing;
    return response.merged ? this.brought.examination.judge() : Reason.None;
  }
}

/**
 * Lets the head of a stream of events leave, and enters the phase that edits the events. Takes over
 * `body` and `brought`.
 */
export function streamEvents(course: Course, body: DecodeBody, brought: Brought): void {
  const nulls = course.config.onUnmergeable == OnUnmergeable.Null;
  const treatment = nulls ? Treatment.MergeOrNull : Treatment.Merge;
  const response = new DecodeResponse(brought.expected, body.rope, treatment, Form.Unknown, true);
  removeHeader(HeaderMapKind.ResponseHeaders, ROUTED_EXPERTS);
  // With a `content-length`, a client would take the stream for whole as soon as that many bytes
  // have come, even if it is reset then.
  removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
  course.enter(new StreamEvents(course, body, brought, response));
}
