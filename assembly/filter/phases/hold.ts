// Decode's response is held: the bytes that have come and, unless heads pass, its head. The bytes
// are read as they come, until it is known whether the arrays can be merged. Then everything
// leaves, edited.

import { bufferBytes, removeHeader } from '../../abi/host';
import { BodyStatus, BufferKind, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { DecodeResponse, Form, Treatment } from '../../routing/decode_response';
import { Reason } from '../../routing/reason';
import { DecodeBody } from '../body/decode_body';
import { Exit, ToEnvoy } from '../body/exit';
import { OnUnmergeable } from '../config/config';
import { ResponseHead, setContentLength } from '../heads';
import { CONTENT_LENGTH, ROUTED_EXPERTS } from '../names';
import { Outcome } from '../outcome/outcome';
import { Brought } from '../rows/brought';
import { Pass, passWhole } from './pass';
import { Course, Phase } from './phase';
import { StreamBody, streamEvents } from './stream';

/** How many bytes are read at a time while the filter looks for arrays. */
const LOOK: u32 = 8 << 10;

/**
 * Enters the phase for a response that is to be read and whose head has come. Takes over `brought`.
 * `holds`: the plugin has shown that it may hold a head. Returns the status for the callback of the
 * head.
 */
export function openResponse(course: Course, head: ResponseHead, brought: Brought, holds: bool): i32 {
  const body = new DecodeBody(head.contentLength);
  if (head.events) {
    streamEvents(course, body, brought);
    return HeadersStatus.Continue;
  }
  // For a path that P/D does not serve, nothing has shown that the plugin may hold a head. If it
  // may not, Envoy holds the body together with the head, and the filter would wait for ever.
  const holdsHead = holds && !course.config.passHeads;
  course.enter(new Hold(course, body, brought, new ToEnvoy(), !holdsHead));
  if (holdsHead) return HeadersStatus.StopIteration;
  removeHeader(HeaderMapKind.ResponseHeaders, ROUTED_EXPERTS);
  if (brought.mayGrowFromTheStart) removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
  else body.promise(0);
  return HeadersStatus.Continue;
}


@final
export class Hold extends Phase {
  private response: DecodeResponse;
  /** Why arrays become `null`, all or some of them; `None` while they are to be merged. */
  private nulledFor: Reason = Reason.None;
  private treatment: Treatment = Treatment.Merge;
  /** How many of the bytes that have come are those of the current piece. */
  private current: u64 = 0;

  /**
   * Takes over the body and what is known. `headOut`: the head leaves before the outcome is known.
   */
  constructor(
    course: Course,
    private readonly body: DecodeBody,
    private readonly brought: Brought,
    private readonly exit: Exit,
    private readonly headOut: bool,
  ) {
    super(course);
    const expected = brought.expected;
    this.response = new DecodeResponse(expected, body.rope, Treatment.Merge, Form.Unknown, false);
  }

  /** Reads the bytes that are held already. */
  readHeld(): void {
    const rope = this.body.rope;
    const response = this.response;
    let offset: u64 = 0;
    for (let i = 0; i < rope.pieceCount; i++) {
      const piece = rope.piece(i);
      response.push(piece.ptr, piece.len, offset);
      offset += piece.len;
    }
  }

  /** Reads the held bytes once more. None of them has left. */
  private readAgain(form: Form, treatment: Treatment): void {
    const rope = this.body.rope;
    rope.clearEdits();
    this.response.free();
    this.response = new DecodeResponse(this.brought.expected, rope, treatment, form, false);
    this.readHeld();
  }

  onResponseBody(size: u32, endOfStream: bool): i32 {
    const body = this.body;
    const response = this.response;
    this.current = size;
    // If an unmergeable response is refused, it never leaves as decode sent it. Then nobody needs
    // those of decode's rows that prefill's replace, so they are not read.
    const sparing = this.course.config.onUnmergeable == OnUnmergeable.Reject;
    for (let at: u32 = 0; at < size;) {
      const left = size - at;
      const ahead = sparing ? <u32>min<u64>(response.replacedAhead, left) : 0;
      if (ahead > 0) {
        response.passReplaced(ahead);
        body.received += ahead;
        at += ahead;
        continue;
      }
      // Until the last array has begun, pieces are short. A long one would have the array's first
      // rows read together with what stands before them.
      const looking = sparing && !response.inArray && response.choices < this.brought.expected.choices;
      const len = looking ? min(left, LOOK) : left;
      const piece = DecodeBody.piece(at, len);
      if (piece === null) return this.unmergeable(Reason.Memory, left, endOfStream);
      response.push(body.take(piece), len, body.received);
      if (sparing && response.isReplaced(body.received)) body.rope.discard(len);
      body.received += len;
      at += len;
    }
    return this.judge(endOfStream);
  }

  onResponseTrailers(): i32 {
    // The document is missing or cut short, since `judge` would have left this phase at its end.
    // The bytes that were taken from Envoy cannot be given back outside of a body callback. The
    // stream is therefore reset, unless the configuration refuses the response anyway.
    const nulling = this.nulledFor != Reason.None;
    if (nulling || this.course.config.onUnmergeable != OnUnmergeable.Reject) this.reset(Reason.Json);
    else this.reject(Reason.Json);
    return HeadersStatus.StopIteration;
  }

  /**
   * Decides what becomes of the held bytes, and returns the status for the callback of the body.
   */
  judge(endOfStream: bool): i32 {
    const body = this.body;
    const brought = this.brought;
    if (this.response.again != Form.Unknown) this.readAgain(this.response.again, this.treatment);
    const response = this.response;
    if (brought.isForeign(response, response.reason)) return this.letGoForeign(endOfStream);
    if (response.reason != Reason.None) return this.unmergeable(response.reason, 0, endOfStream);
    if (response.complete) return this.commit(endOfStream);
    if (endOfStream && body.received == 0) {
      this.free();
      passWhole(this.course, new Pass(this.course, -1, false), true);
      return BodyStatus.Continue;
    }
    if (endOfStream || body.isCut(response)) {
      if (brought.isForeign(response, Reason.Json)) return this.letGoForeign(endOfStream);
      return this.unmergeable(Reason.Json, 0, endOfStream);
    }
    return this.judgePart(response);
  }

  /** The same for a document that goes on. */
  private judgePart(response: DecodeResponse): i32 {
    const body = this.body;
    const expected = this.brought.expected;
    const config = this.course.config;
    // Where prefill brought no array, there is no need to wait for one of decode's: it would be
    // refused whenever it came. Other values of prefill's are put in when their place comes.
    const open = expected.prompt.lacksArrays || response.planned;
    const ready = this.treatment == Treatment.Null || (open && response.decided);
    const full = body.rope.held > config.maxHoldBytes;
    const early = response.awaitsMissing && !full;
    if (ready && !early && body.received > config.holdBytes) return this.commit(false);
    if (full) {
      if (response.decided) return this.unmergeable(Reason.Hold, 0, false);
      return this.unmergeable(expected.alone !== null ? Reason.Cached : Reason.Ambiguous, 0, false);
    }
    return BodyStatus.StopIterationNoBuffer;
  }

  /**
   * The held bytes cannot be merged, and the configuration says what follows. `unread` bytes of the
   * current piece are not in the rope.
   */
  unmergeable(reason: Reason, unread: u32, endOfStream: bool): i32 {
    const policy = this.course.config.onUnmergeable;
    const readable = reason != Reason.Json && reason != Reason.Memory;
    if (policy == OnUnmergeable.Null && readable && this.treatment != Treatment.Null) {
      // Where prefill lacks one of several arrays, nothing is wrong with the others.
      const others = reason == Reason.Missing && this.brought.expected.prompt.leading.came;
      this.treatment = others && this.nulledFor == Reason.None ? Treatment.MergeOrNull : Treatment.Null;
      this.nulledFor = reason;
      this.readAgain(Form.Unknown, this.treatment);
      return this.judge(endOfStream);
    }
    if (policy != OnUnmergeable.Forward) {
      this.reject(reason);
      return BodyStatus.StopIterationNoBuffer;
    }
    this.course.ending.set(Outcome.Unmerged, reason);
    return this.letGo(unread, endOfStream);
  }

  /** Lets a response go that decode served alone and that is not JSON. */
  private letGoForeign(endOfStream: bool): i32 {
    this.course.ending.set(Outcome.Local, Reason.None);
    return this.letGo(0, endOfStream);
  }

  /**
   * Lets the held bytes leave as decode sent them, followed by `unread` bytes of the current piece,
   * which are not in the rope.
   */
  private letGo(unread: u32, endOfStream: bool): i32 {
    const course = this.course;
    const body = this.body;
    if (course.exceedsPiece(body.received + unread - this.current)) {
      this.reject(Reason.Piece);
      return BodyStatus.StopIterationNoBuffer;
    }
    const rope = body.rope;
    if (!this.headOut) course.ending.writeTo(HeaderMapKind.ResponseHeaders);
    const left = body.left(unread);
    rope.clearEdits();
    // These bytes are the whole current piece: only a policy under which nothing is let go reads
    // pieces in parts. They are copied even when memory is short, since the response has no other
    // way out.
    const last = unread > 0 ? bufferBytes(BufferKind.ResponseBody, 0, unread) : null;
    if (last !== null) rope.append(last, body.received);
    body.received += unread;
    const outlet = this.exit.open(body.received);
    rope.release(body.received, outlet);
    const taken = outlet.finish();
    if (!taken && this.exit.keeps) this.reject(Reason.Memory);
    if (course.phase !== this) return BodyStatus.StopIterationNoBuffer;
    const pass = new Pass(course, left, this.headOut);
    this.free();
    course.enter(pass);
    if (endOfStream) pass.end();
    return BodyStatus.Continue;
  }

  /** Lets the head leave, unless it has left, and then all bytes that are settled. */
  private commit(endOfStream: bool): i32 {
    const course = this.course;
    const response = this.response;
    if (course.exceedsPiece(this.body.received - this.current + <u64>max<i64>(response.growth, 0))) {
      this.reject(Reason.Piece);
      return BodyStatus.StopIterationNoBuffer;
    }
    const stream = new StreamBody(course, this.body, this.brought, response, this.headOut);
    if (this.nulledFor != Reason.None) course.ending.set(Outcome.Unmerged, this.nulledFor);
    else if (this.brought.expected.alone === null) {
      if (response.merged) stream.tellMerged();
      else course.ending.set(Outcome.Absent, Reason.None);
    }
    if (!this.headOut) this.tellHead();
    else if (this.body.breaksPromise(response)) {
      this.reset(this.nulledFor != Reason.None ? this.nulledFor : Reason.Rows);
      return BodyStatus.StopIterationNoBuffer;
    }
    course.enter(stream);
    return stream.begin(this.exit, endOfStream);
  }

  /** Lets the head leave with the outcome, and with a length if the length is known. */
  private tellHead(): void {
    const body = this.body;
    const response = this.response;
    this.course.ending.writeTo(HeaderMapKind.ResponseHeaders);
    const mayGrow = this.nulledFor != Reason.None || this.brought.mayGrow;
    if (!response.complete && mayGrow) {
      removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
      return;
    }
    body.promise(response.growth);
    if (response.growth != 0 && body.announced >= 0) {
      setContentLength(HeaderMapKind.ResponseHeaders, <u64>(body.announced + response.growth));
    }
  }

  /** Ends the exchange: the response cannot be merged. */
  private reject(reason: Reason): void {
    if (this.headOut) this.reset(reason);
    else this.course.refuse(reason, this.brought.describe(reason, this.response));
  }

  /** Ends the exchange: the response cannot be merged, and some of it has left. */
  private reset(reason: Reason): void {
    this.course.reset(reason, this.brought.describe(reason, this.response));
  }

  free(): void {
    this.response.free();
    this.body.free();
    this.brought.free();
  }
}
