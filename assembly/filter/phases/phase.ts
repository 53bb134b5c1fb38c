// What a phase of an exchange is, and what it may do to its exchange.
//
// Re-entrancy. Envoy runs callbacks of a stream inside some host calls, before these return:
//
//   sendLocalResponse   runs the response callbacks for the answer that is sent
//   replaceBuffer,      answer by themselves when the buffer is above its limit: 413 for a request,
//   appendBuffer        500 for a response, in the same way
//
// Two rules follow. An exchange ends *before* its own answer is sent: `answer`, `pass…` and `reset` below
// are the only functions that send one, and they see to it. And a phase that has written a body looks
// at `course.phase` before it goes on: where that is another than before, Envoy has answered.

import { StreamContext } from '../../abi/context';
import { BodyStatus, HeadersStatus } from '../../abi/types';
import { Block } from '../../bytes/block';
import { Reason } from '../../routing/reason';
import { Bootstrap } from '../calls/bootstrap';
import { Config } from '../config/config';
import { Ending } from '../outcome/ending';

/** An exchange, as its phases see it: the phase that it is in, and the ways in which it can end. */
export abstract class Course extends StreamContext {
  /** What will be said of the exchange; final once it has ended. */
  readonly ending: Ending = new Ending();
  /** The bootstrap server of an exchange whose connector has one: it is forgotten when the exchange fails. */
  bootstrap: Bootstrap | null = null;
  /** Whether Envoy has ended the stream. */
  gone: bool = false;

  constructor(
    id: u32,
    readonly config: Config,
  ) {
    super(id);
  }

  /** Goes over to a phase. What the phase before has not handed on it has freed. */
  abstract enter(phase: Phase): void;

  /** The phase that the exchange is in. */
  abstract get phase(): Phase;

  /** Whether the exchange has ended. */
  abstract get ended(): bool;

  /** Ends the exchange with an error of the filter's own, in the shape of vLLM's. */
  abstract answer(code: i32, message: string, reason: Reason): void;

  /** Ends the exchange with prefill's answer to its leg; the blocks are borrowed. */
  abstract passPrefillAnswer(status: i32, headers: Block, body: Block): void;

  /** Ends the exchange by a reset, so that the client cannot take a body for whole; `why` is logged. */
  abstract reset(reason: Reason, why: string): void;

  /** Ends the exchange: its response has been given to Envoy. */
  abstract finish(): void;

  /** Ends the exchange with 502: decode's arrays cannot be merged, and nothing of the response has left. */
  refuse(reason: Reason, why: string): void {
    this.answer(502, 'routed_experts can not be merged: ' + why, reason);
  }

  /** Has the ranks of prefill's bootstrap server asked for anew by the next exchange. */
  forgetRanks(): void {
    const bootstrap = this.bootstrap;
    if (bootstrap !== null) bootstrap.forget();
  }
}

/**
 * A phase of an exchange: it answers Envoy's callbacks and owns what only this phase needs. The defaults
 * let everything pass. A phase ends with `course.enter(next)`, and hands on what the next one needs.
 */
export abstract class Phase {
  constructor(protected readonly course: Course) {}

  /** Whether the client's request must stay in Envoy's buffer. */
  get requestWaits(): bool {
    return false;
  }

  /** Whether the next head is that of decode's response. Another is of an answer that Envoy gives itself. */
  get awaitsHead(): bool {
    return false;
  }

  /** A piece of the client's body has come; Envoy holds `size` bytes. */
  onRequestBody(size: u32, endOfStream: bool): i32 {
    return BodyStatus.Continue;
  }

  onRequestTrailers(): i32 {
    return this.requestWaits ? HeadersStatus.StopIteration : HeadersStatus.Continue;
  }

  /** Where `awaitsHead` is true. */
  onResponseHeaders(endOfStream: bool): i32 {
    return HeadersStatus.Continue;
  }

  /** A piece of decode's body of `size` bytes has come. */
  onResponseBody(size: u32, endOfStream: bool): i32 {
    return BodyStatus.Continue;
  }

  onResponseTrailers(): i32 {
    return HeadersStatus.Continue;
  }

  /** A call of this exchange has been answered; `headers` is 0 when it failed. */
  onCallResponse(headers: u32, bodySize: u32): void {}

  /**
   * The stream is over: whether the client has the whole response all the same, of which only the end has
   * not been told to the filter. The ending says then what it will say.
   */
  hasAllLeft(): bool {
    return false;
  }

  /** Gives back what the phase owns. Called when the exchange ends in it; may be called again. */
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
