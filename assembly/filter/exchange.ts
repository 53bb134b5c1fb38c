// One exchange: a client's request, its prefill leg, its decode leg, and the response. An exchange
// is in one phase at a time and hands Envoy's callbacks to that phase. When the exchange ends, its
// outcome is told once.
//
//   phase     entered when                                       leaves to
//   Start     the stream is new                                  Collect Alone Aside
//   Collect   a served path: the head is held, Envoy buffers     Prefill Alone Ended
//   Prefill   the body is whole                                  Decode Race Alone Ended
//   Race      both legs are out (connectors with both at once)   Decode Wait Pass Ended
//   Decode    prefill has answered, decode's leg is out          Hold Stream Pass Ended
//   Alone     decode serves the request alone                    Hold Stream Pass Ended
//   Aside     no body, or a method that P/D does not serve       Pass Ended
//   Wait      decode answered first, prefill's reply is awaited  Hold Stream Ended
//   Hold      the head and the bytes so far are held             Stream Pass Ended
//   Stream    committed: pieces are edited as they pass          Pass Ended
//   Pass      the response passes as it comes                    Ended
//   Ended     the outcome is final
//
// From every phase, an answer that Envoy gives itself (after a timeout, or when it has lost an
// engine) leads to Pass.

import { closeStream, log, logs, removeHeader, setProperty } from '../abi/host';
import { HeaderMapKind, HeadersStatus, LogLevel, StreamKind } from '../abi/types';
import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { Reason } from '../routing/reason';
import { Auditor } from './audit/auditor';
import { Config } from './config/config';
import { DECODE_PROPERTY, OUTCOME_PROPERTY, ROUTED_EXPERTS } from './names';
import { reportHeld } from './outcome/metrics';
import { Outcome } from './outcome/outcome';
import { ErrorShape, replyError, replyPrefill } from './outcome/replies';
import { Start } from './phases/collect';
import { passEnvoysAnswer } from './phases/pass';
import { Course, Ended, Phase } from './phases/phase';
import { forgetHead } from './request/held_heads';


@final
export class Exchange extends Course {
  private current!: Phase;
  /**
   * The outcome that the access log will have. It is the ending's text at the time the exchange
   * ended.
   */
  private logged: string = '';

  constructor(id: u32, config: Config, auditor: Auditor | null) {
    super(id, config, auditor);
    this.current = new Start(this);
  }

  // ---- `Course`, for the phases

  enter(phase: Phase): void {
    this.current = phase;
  }

  get phase(): Phase {
    return this.current;
  }

  get ended(): bool {
    return this.current instanceof Ended;
  }

  answerIn(shape: ErrorShape, code: i32, message: string, reason: Reason, param: string): void {
    this.ending.set(Outcome.Rejected, reason);
    if (logs(LogLevel.Info)) log(LogLevel.Info, 'answered ' + code.toString() + ': ' + message);
    this.finish();
    replyError(code, message, param, shape, this.ending.text);
  }

  passPrefillAnswer(status: i32, headers: Block, body: Block): void {
    this.ending.set(Outcome.Absent, Reason.None);
    this.finish();
    replyPrefill(status, headers, body, this.ending.text);
  }

  reset(reason: Reason, why: string): void {
    if (!this.ended) {
      this.ending.set(Outcome.Rejected, reason);
      if (logs(LogLevel.Warn)) log(LogLevel.Warn, 'stream reset: ' + why);
      this.finish();
    }
    closeStream(StreamKind.Response);
  }

  finish(): void {
    if (this.ended) return;
    const phase = this.current;
    this.current = new Ended(this);
    forgetHead(this.id);
    this.logged = this.ending.text;
    this.ending.count();
    if (this.ending.outcome == Outcome.Merged) phase.onMerged();
    phase.free();
    reportHeld(true);
  }

  // ---- Envoy's callbacks

  onRequestHeaders(endOfStream: bool): i32 {
    const start = this.current;
    return start instanceof Start ? (start as Start).begin(endOfStream) : HeadersStatus.Continue;
  }

  onRequestBody(size: u32, endOfStream: bool): i32 {
    return this.current.onRequestBody(size, endOfStream);
  }

  onRequestTrailers(): i32 {
    const endpointHeader = this.config.endpointHeader;
    if (endpointHeader !== null) removeHeader(HeaderMapKind.RequestTrailers, endpointHeader);
    return this.current.onRequestTrailers();
  }

  onResponseHeaders(endOfStream: bool): i32 {
    const phase = this.current;
    if (!phase.awaitsHead) return passEnvoysAnswer(this, phase, endOfStream);
    return phase.onResponseHeaders(endOfStream);
  }

  onResponseBody(size: u32, endOfStream: bool): i32 {
    return this.current.onResponseBody(size, endOfStream);
  }

  onResponseTrailers(): i32 {
    // A trailer of this name may come from decode. Only the filter may say what became of an
    // exchange.
    removeHeader(HeaderMapKind.ResponseTrailers, ROUTED_EXPERTS);
    return this.current.onResponseTrailers();
  }

  onCallResponse(call: u32, headers: u32, bodySize: u32): void {
    this.current.onCallResponse(call, headers, bodySize);
    // Where this callback has ended the exchange, it has freed its own blocks since, and the next
    // report would be that of `onDone`.
    reportHeld(this.ended);
  }

  onLog(): void {
    // A client that has all bytes may leave before Envoy tells the filter that the body has ended.
    if (!this.current.hasAllLeft()) this.abort();
    this.finish();
    this.tell(OUTCOME_PROPERTY, this.logged);
    // The numbers have a property of their own, so that who reads the outcome need not know them.
    const decodeCache = this.ending.decodeCache;
    if (decodeCache !== null) this.tell(DECODE_PROPERTY, decodeCache.text);
  }

  /** Sets a property, which the access log can show. */
  private tell(property: Ascii, value: string): void {
    const text = String.UTF8.encode(value);
    setProperty(property, changetype<usize>(text), text.byteLength);
  }

  onDone(): void {
    this.gone = true;
    this.abort();
    this.finish();
    // Blocks that were held by the callback in which the exchange ended are free by now.
    reportHeld(true);
  }

  /**
   * The stream is over before the exchange has ended: the client has left, or decode's engine is
   * gone.
   */
  private abort(): void {
    if (this.ended) return;
    this.forgetAnswers();
    this.ending.set(Outcome.Aborted, Reason.None);
  }
}
