// What a phase of an exchange is, and what it may do to its exchange.
//
// Re-entrancy. Inside some host calls, before these return, Envoy runs callbacks of the same
// stream:
//
//   sendLocalResponse   runs the response callbacks for the answer that it sends
//   replaceBuffer,      if the buffer is above its limit, Envoy answers itself, with 413 for a
//   appendBuffer        request and 500 for a response, and runs the same callbacks
//
// Two rules follow. First, an exchange ends *before* an answer of the filter's is sent. `answer`,
// `passPrefillAnswer` and `reset` below see to it. Outside of them, only `Wait` sends one, when its
// exchange has ended. Second, a phase that has written a body compares `course.phase` with itself
// before it goes on. If they differ, Envoy has answered.

import { StreamContext } from '../../abi/context';
import { BodyStatus, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { Block } from '../../bytes/block';
import { Reason } from '../../routing/reason';
import { Auditor } from '../audit/auditor';
import { Bootstrap } from '../calls/bootstrap';
import { Models } from '../calls/models';
import { Config } from '../config/config';
import { Ending } from '../outcome/ending';
import { ErrorShape } from '../outcome/replies';

/** An exchange as its phases see it: the phase that it is in, and the ways in which it can end. */
export abstract class Course extends StreamContext {
  /** What will be said of the exchange. It is final once the exchange has ended. */
  readonly ending: Ending = new Ending();
  /**
   * Prefill's bootstrap server, where the connector asks it for ranks. When the exchange fails,
   * what the server has said is forgotten.
   */
  bootstrap: Bootstrap | null = null;
  /** Prefill's list of models, where it is asked for the longest sequence; forgotten likewise. */
  models: Models | null = null;
  /** Whether Envoy has ended the stream. */
  gone: bool = false;

  constructor(
    id: u32,
    readonly config: Config,
    /** Audits exchanges of this configuration; null when none are audited. */
    readonly auditor: Auditor | null,
  ) {
    super(id);
  }

  /** Makes `phase` the current phase. The phase before it has freed what it has not handed on. */
  abstract enter(phase: Phase): void;

  /** The phase that the exchange is in. */
  abstract get phase(): Phase;

  /** Whether the exchange has ended. */
  abstract get ended(): bool;

  /**
   * Ends the exchange with an error of the filter's own, in the shape of vLLM's errors. `param` is
   * the member of the request that is at fault, if one is.
   */
  answer(code: i32, message: string, reason: Reason, param: string = ''): void {
    this.answerIn(ErrorShape.Vllm, code, message, reason, param);
  }

  /** The same in the shape of an engine's errors. `param` is empty where none is at fault. */
  abstract answerIn(shape: ErrorShape, code: i32, message: string, reason: Reason, param: string): void;

  /** Ends the exchange with the answer to the prefill leg. The blocks are borrowed. */
  abstract passPrefillAnswer(status: i32, headers: Block, body: Block): void;

  /**
   * Ends the exchange by resetting the stream, so that the client does not take a body for whole.
   * `why` is logged.
   */
  abstract reset(reason: Reason, why: string): void;

  /** Ends the exchange. Called when its response has been given to Envoy. */
  abstract finish(): void;

  /**
   * Ends the exchange with 502: decode's arrays cannot be merged, and nothing of the response has
   * left.
   */
  refuse(reason: Reason, why: string): void {
    this.answer(502, 'routed_experts can not be merged: ' + why, reason);
  }

  /**
   * Whether `size` bytes are more than may leave at once, beyond the piece of decode's that has
   * come.
   */
  exceedsPiece(size: u64): bool {
    const most = this.config.maxPieceBytes;
    return most > 0 && size > most;
  }

  /**
   * Tells the outcome in a trailer. Where a filter sees the response after this one, there is none:
   * if that filter stops at the end of the body, Envoy forgets trailers which were added there, and
   * with them the end of the response (filter_manager.cc, encodeData).
   */
  tellInTrailer(): void {
    if (this.config.maxPieceBytes == 0) this.ending.writeTo(HeaderMapKind.ResponseTrailers);
  }

  /** Makes the next exchange ask again what prefill and its bootstrap server have told. */
  forgetAnswers(): void {
    const bootstrap = this.bootstrap;
    if (bootstrap !== null) bootstrap.forget();
    const models = this.models;
    if (models !== null) models.forget();
  }
}

/**
 * A phase of an exchange. It answers Envoy's callbacks and owns what only this phase needs. By
 * default it lets everything pass. A phase ends with `course.enter(next)`, and hands on what the
 * next one needs.
 */
export abstract class Phase {
  constructor(protected readonly course: Course) {}

  /** Whether the client's request must stay in Envoy's buffer. */
  get requestWaits(): bool {
    return false;
  }

  /**
   * Whether the next response head is to be handed to this phase. In other phases, a head that
   * comes is of an answer that Envoy gives itself.
   */
  get awaitsHead(): bool {
    return false;
  }

  /** A piece of the client's body has come. Envoy holds `size` bytes of the body. */
  onRequestBody(size: u32, endOfStream: bool): i32 {
    return BodyStatus.Continue;
  }

  onRequestTrailers(): i32 {
    return this.requestWaits ? HeadersStatus.StopIteration : HeadersStatus.Continue;
  }

  /** Called only where `awaitsHead` is true. */
  onResponseHeaders(endOfStream: bool): i32 {
    return HeadersStatus.Continue;
  }

  /** A piece of decode's body has come, of `size` bytes. */
  onResponseBody(size: u32, endOfStream: bool): i32 {
    return BodyStatus.Continue;
  }

  onResponseTrailers(): i32 {
    return HeadersStatus.Continue;
  }

  /**
   * A call of this exchange has ended, which `call` is the token of. `headers` is 0 when no answer
   * came.
   */
  onCallResponse(call: u32, headers: u32, bodySize: u32): void {}

  /**
   * Called when the stream is over. Returns whether the client has the whole response all the same,
   * and the filter has only not been told of its end. The phase then also completes the ending.
   */
  hasAllLeft(): bool {
    return false;
  }

  /** The exchange has ended in this phase, and its response is merged. `free` comes next. */
  onMerged(): void {}

  /**
   * Gives back what the phase owns. Called when the exchange ends in this phase, and possibly
   * again.
   */
  abstract free(): void;
}

/** The last phase: the outcome is final, and nothing is held. */
@final
export class Ended extends Phase {
  get requestWaits(): bool {
    return true;
  }

  get awaitsHead(): bool {
    return true;
  }

  free(): void {}
}
