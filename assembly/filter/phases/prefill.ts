// The prefill leg: the ranks and the address that it may need first, its call, its tries, and what
// becomes of the request when it fails. Meanwhile the client's request waits in Envoy's buffer.

import { expectCall } from '../../abi/dispatch';
import { continueStream, log, logs, randomBytes } from '../../abi/host';
import { BodyStatus, HeaderMapKind, LogLevel, Status, StreamKind } from '../../abi/types';
import { Block } from '../../bytes/block';
import { prefillLeg } from '../../connectors/connector';
import { isText } from '../../connectors/content';
import { Checked } from '../../connectors/protocol';
import { RequestBody } from '../../connectors/request_body';
import { Api } from '../../connectors/schema';
import { RANDOM_BYTES, Session } from '../../connectors/session';
import { Reason } from '../../routing/reason';
import { Bootstrap } from '../calls/bootstrap';
import { Models } from '../calls/models';
import {
  Failure,
  SentCall,
  failureMessage,
  failureStatus,
  isWorthARepeat,
  reportFailure,
} from '../calls/prefill_answer';
import { isUnavailable, startLookup, startPrefill } from '../calls/prefill_call';
import { ClusterType, OnPrefillFailure, OnUnmergeable } from '../config/config';
import { ResponseHead } from '../heads';
import { ClientRequest } from '../request/client_request';
import { Brought } from '../rows/brought';
import { serveAlone } from './alone';
import { Decode } from './decode';
import { sendDecodeLeg, takeAnswer } from './legs';
import { Course, Phase } from './phase';
import { Race } from './race';

/** Which calls are in flight. */
const enum Call {
  /** Prefill is asked for the longest sequence of its models. */
  Models,
  /** The bootstrap server is asked for prefill's ranks, before the leg is sent. */
  Ranks,
  /** A dynamic forward proxy is made to look up the address of the endpoint. */
  Lookup,
  Leg,
  /** The leg, and at the same time the bootstrap server is asked for the engine that takes it. */
  LegAndEngine,
  /** The leg has been answered, and the bootstrap server is asked for the engine that did. */
  Engine,
}

/**
 * Where the client's request waits. `InCallback`: in a callback of the request that is still
 * running and whose status says whether Envoy goes on. `InEnvoy`: in Envoy, until it is told to go
 * on.
 */
const enum Waits {
  InCallback,
  InEnvoy,
}


@final
export class Prefill extends Phase {
  /** What the legs share. It borrows from the request. */
  private readonly session: Session = new Session();
  private readonly brought: Brought;
  private inFlight: Call = Call.Leg;
  /** The leg that was sent last, and the last call that was none. */
  private leg!: SentCall;
  private query!: SentCall;
  /** The longest sequence that the engines take; 0 when it is not known. */
  private limit: i64 = 0;
  /** How many times the leg has been sent. */
  private tries: i32 = 0;

  /** Takes over the request. */
  constructor(
    course: Course,
    private readonly request: ClientRequest,
    private readonly asked: RequestBody,
    private readonly checked: Checked,
  ) {
    super(course);
    this.brought = new Brought(course.config);
    this.brought.captured.prompt.start = <u64>asked.rowStart;
  }

  get requestWaits(): bool {
    return true;
  }

  onRequestBody(size: u32, endOfStream: bool): i32 {
    return BodyStatus.StopIterationAndBuffer;
  }

  /**
   * Sends the leg, or asks first for what must be known before it. `body` is the client's
   * (borrowed).
   */
  begin(body: Block): void {
    const course = this.course;
    const config = course.config;
    this.request.ensureId();
    this.request.locateBootstrap(this.session);
    this.brought.nominate(course.auditor, this.request, this.asked, body);
    this.limit = config.maxModelLen;
    if (this.limit == 0 && config.connector.needsLimit && this.checked.needsLimit) {
      const models = new Models(config, this.request);
      course.models = models;
      this.limit = models.limitFor(this.asked, body);
      if (this.limit < 0) {
        if (models.ask(this.request) == Status.Ok) this.query = this.expect(Call.Models);
        else this.failed(Failure.NoHost, Waits.InCallback);
        return;
      }
    }
    this.start(body, Waits.InCallback);
  }

  /** Sends the leg of a request that is not too long, or asks for the ranks first. */
  private start(body: Block, waits: Waits): void {
    const course = this.course;
    const config = course.config;
    const session = this.session;
    if (this.limit > 0 && this.checked.exceeds(this.limit, this.asked.promptIds)) {
      return refuseRequest(course, this.checked);
    }
    if (config.connector.needsRanks) {
      const bootstrap = new Bootstrap(config, session);
      course.bootstrap = bootstrap;
      if (bootstrap.isDue || !bootstrap.chooseRank(session)) {
        if (!this.ask(bootstrap, Call.Ranks)) this.failed(Failure.NoHost, waits);
        return;
      }
    }
    if (this.send(body)) this.follow(waits);
    else if (!this.lookUp()) this.failed(Failure.NoHost, waits);
  }

  /**
   * The leg has been sent to a rank that was named before this exchange, so another engine may run
   * there by now. Under the id of an engine that is gone, decode finds no KV: it fails, waits for
   * minutes or computes the prompt itself, while prefill's blocks stay. So the bootstrap server is
   * asked while prefill works, and decode is told the id that it names.
   */
  private follow(waits: Waits): void {
    const bootstrap = this.course.bootstrap;
    if (bootstrap === null) this.sendDecodeToo(waits);
    else if (!this.ask(bootstrap, Call.LegAndEngine)) this.failed(Failure.NoHost, waits);
  }

  /**
   * The leg has been sent, and the engine that takes it is known: decode's leg follows at once,
   * unless it has to wait for prefill's reply.
   */
  private sendDecodeToo(waits: Waits): void {
    if (!this.course.config.concurrent) return;
    this.course.enter(new Race(this.course, this.leg, this.brought));
    sendDecodeLeg(this.course, this.request, this.asked, this.session, this.brought, -1);
    this.request.free();
    if (waits == Waits.InEnvoy) this.resume();
  }

  /** Asks the bootstrap server. Returns false when Envoy cannot start the call. */
  private ask(bootstrap: Bootstrap, call: Call): bool {
    if (bootstrap.ask(this.session) != Status.Ok) return false;
    this.query = this.expect(call);
    return true;
  }

  /** Has the answer to the call that was just started delivered to this exchange. */
  private expect(call: Call): SentCall {
    const sent = SentCall.of(this.course.config, this.asked);
    expectCall(sent.token, this.course.id);
    this.inFlight = call;
    return sent;
  }

  /**
   * Sends the leg, made from the client's `body` (borrowed). Returns false when Envoy cannot start
   * the call.
   */
  private send(body: Block): bool {
    const config = this.course.config;
    const session = this.session;
    const request = this.request;
    // Each try has ids of its own: an engine may have seen those of the last one.
    randomBytes(session.randomPtr, RANDOM_BYTES);
    const leg = prefillLeg(this.asked, config.connector, session).toBlock(body.ptr, body.len);
    // One limit holds for the tries of the filter and the retries of Envoy: with each try, Envoy
    // may retry once less.
    const retries = config.retries - this.tries;
    const pairs = request.head.pairs;
    const status = startPrefill(config, pairs, leg, request.requestId, request.endpoint, session, retries);
    leg.free();
    session.release();
    if (status != Status.Ok) return false;
    this.leg = this.expect(Call.Leg);
    this.tries++;
    return true;
  }

  /**
   * Sends the leg after the callbacks of the request, which waits in Envoy. Returns false when that
   * is impossible.
   */
  private sendLate(): bool {
    const body = this.request.bytes();
    if (body === null) return false;
    const sent = this.send(body);
    body.free();
    return sent;
  }

  /**
   * Sends the leg once more. What the bootstrap server has said is forgotten by now, so it is asked
   * first. Returns false when Envoy cannot start the call.
   */
  private sendAgain(): bool {
    const bootstrap = this.course.bootstrap;
    return bootstrap === null ? this.sendLate() : this.ask(bootstrap, Call.Ranks);
  }

  /**
   * Makes a dynamic forward proxy look up the endpoint's address, which may be what was missing for
   * the leg. Returns false when there is nothing to look up.
   */
  private lookUp(): bool {
    const config = this.course.config;
    const endpoint = this.request.endpoint;
    if (endpoint === null || config.clusterType != ClusterType.DynamicForwardProxy) return false;
    if (startLookup(config, endpoint) != Status.Ok) return false;
    this.query = this.expect(Call.Lookup);
    return true;
  }

  onCallResponse(call: u32, headers: u32, bodySize: u32): void {
    const legIsOut = this.inFlight == Call.Leg || this.inFlight == Call.LegAndEngine;
    if (legIsOut && this.leg.token == call) return this.takeReply(headers, bodySize);
    // Of a try that has failed, the answer to the other call may still come.
    if (this.inFlight == Call.Leg || this.query.token != call) return;
    if (this.inFlight == Call.Models) return this.takeModels(headers, bodySize);
    if (this.inFlight != Call.Lookup) return this.takeRanks(headers, bodySize);
    // The status of the answer does not matter. If the address can be found, it is known now.
    if (this.sendLate()) this.follow(Waits.InEnvoy);
    else this.failed(Failure.NoHost, Waits.InEnvoy);
  }

  private takeModels(headers: u32, bodySize: u32): void {
    if (headers == 0) return this.failed(this.query.failure, Waits.InEnvoy);
    const head = ResponseHead.read(HeaderMapKind.CallResponseHeaders);
    if (head.status == 504) return this.failed(Failure.Timeout, Waits.InEnvoy);
    if (isUnavailable(head.status)) return this.failed(Failure.Unavailable, Waits.InEnvoy);
    const models = this.course.models!;
    const known = head.good && !head.encoded && models.take(bodySize);
    const body = known ? this.request.bytes() : null;
    if (body === null) return this.failed(Failure.NoLimit, Waits.InEnvoy);
    this.limit = models.limitFor(this.asked, body);
    this.start(body, Waits.InEnvoy);
    body.free();
  }

  private takeRanks(headers: u32, bodySize: u32): void {
    if (headers == 0) return this.failed(this.query.failure, Waits.InEnvoy);
    const head = ResponseHead.read(HeaderMapKind.CallResponseHeaders);
    if (head.status == 504) return this.failed(Failure.Timeout, Waits.InEnvoy);
    const bootstrap = this.course.bootstrap!;
    const session = this.session;
    const good = head.good && !head.encoded;
    if (!good || !bootstrap.takeRanks(bodySize)) return this.failed(Failure.NoRanks, Waits.InEnvoy);
    if (this.inFlight == Call.Ranks) {
      bootstrap.chooseRank(session);
      if (this.sendLate()) this.sendDecodeToo(Waits.InEnvoy);
      else if (!this.lookUp()) this.failed(Failure.NoHost, Waits.InEnvoy);
    } else if (!bootstrap.nameEngine(session)) this.failed(Failure.NoRanks, Waits.InEnvoy);
    else if (this.inFlight == Call.Engine) this.sendDecode();
    else {
      this.inFlight = Call.Leg;
      this.sendDecodeToo(Waits.InEnvoy);
    }
  }

  private takeReply(headers: u32, bodySize: u32): void {
    const course = this.course;
    const config = course.config;
    const brought = this.brought;
    const named = this.inFlight == Call.Leg;
    this.inFlight = Call.Leg;
    const failure = takeAnswer(course, this.leg, headers, bodySize, brought);
    if (course.ended) return;
    if (failure != Failure.None) return this.failed(failure, Waits.InEnvoy);
    if (config.connector.needsParams && brought.captured.params === null) {
      if (brought.captured.capped) return refuseHandshake(course);
      // The text ended with its first token, so prefill offers nothing to pull: decode serves the
      // whole request.
      return this.goAlone(Waits.InEnvoy);
    }
    // Decode would wait for a transfer that prefill does not offer.
    if (config.connector.namesTransfer && !brought.captured.capped) return this.goAlone(Waits.InEnvoy);
    const prompt = brought.captured.prompt;
    if (config.tail && prompt.tokens < 0) return this.failed(Failure.NoLength, Waits.InEnvoy);
    if (prompt.tokens >= 0 && prompt.start > <u64>prompt.tokens) return refuseStart(course, prompt.tokens);
    if (this.limit > 0 && this.checked.exceeds(this.limit, max<i64>(prompt.tokens, 0))) {
      return this.refuseLength();
    }
    if (named) this.nameEngine();
    else this.inFlight = Call.Engine;
  }

  /**
   * Sends decode's leg with the id of the engine that has answered prefill's, which is asked for
   * again where it may have restarted since the bootstrap server named it.
   */
  private nameEngine(): void {
    const bootstrap = this.course.bootstrap;
    if (bootstrap === null) return this.sendDecode();
    if (!bootstrap.mayBeStale && bootstrap.nameEngine(this.session)) return this.sendDecode();
    if (!this.ask(bootstrap, Call.Engine)) this.failed(Failure.NoHost, Waits.InEnvoy);
  }

  /**
   * The prompt and the cap are more than the engines take. Of a chat with other parts than text
   * that does not show that decode refuses it, so decode gets it without prefill's KV.
   */
  private refuseLength(): void {
    if (this.asked.api == Api.Chat) {
      const body = this.request.bytes();
      const text = body !== null && isText(body.ptr, body.len);
      if (body !== null) body.free();
      if (!text) return this.goAlone(Waits.InEnvoy);
    }
    refuseRequest(this.course, this.checked);
  }

  /** Sends decode's leg in place of the client's request, after prefill has answered. */
  private sendDecode(): void {
    const course = this.course;
    const session = this.session;
    const captured = this.brought.captured;
    const params = captured.params;
    session.paramsPtr = params === null ? 0 : params.ptr;
    session.paramsLen = params === null ? 0 : params.len;
    const from = course.config.tail ? captured.prompt.seam : -1;
    if (!this.fitsPieces()) return;
    if (!sendDecodeLeg(course, this.request, this.asked, session, this.brought, from)) return;
    captured.freeParams();
    this.request.free();
    course.enter(new Decode(course, this.brought));
    this.resume();
  }

  /**
   * Looks whether what is put into decode's response may leave at once, since nothing more than the
   * end of a response can leave after its last piece. Returns false when the exchange has ended.
   */
  private fitsPieces(): bool {
    const course = this.course;
    const prompt = this.brought.captured.prompt;
    if (!course.config.tail || !course.exceedsPiece(prompt.addedTo(this.asked.choices))) return true;
    if (course.config.onUnmergeable == OnUnmergeable.Reject) {
      course.refuse(Reason.Piece, this.brought.describe(Reason.Piece));
      return false;
    }
    prompt.refuse(Reason.Piece);
    return true;
  }

  /** The call in flight has failed: the leg is sent again, or the configuration decides. */
  private failed(failure: Failure, waits: Waits): void {
    const course = this.course;
    const config = course.config;
    reportFailure(failure, this.tries);
    this.brought.forgetRows();
    course.forgetAnswers();
    const again = waits == Waits.InEnvoy && this.inFlight == Call.Leg && isWorthARepeat(failure, config);
    if (again && this.tries <= config.retries && this.sendAgain()) return;
    if (config.onPrefillFailure == OnPrefillFailure.Decode) return this.goAlone(waits);
    course.answer(failureStatus(failure), failureMessage(failure), Reason.None);
  }

  /** Lets decode serve the request alone. */
  private goAlone(waits: Waits): void {
    serveAlone(this.course, this.request, this.asked, this.brought);
    if (waits == Waits.InEnvoy) this.resume();
  }

  /** Makes Envoy go on with the request, unless the exchange has ended or Envoy has answered. */
  private resume(): void {
    const phase = this.course.phase;
    if (!phase.requestWaits && phase.awaitsHead) continueStream(StreamKind.Request);
  }

  free(): void {
    this.request.free();
    this.brought.free();
  }
}

/** Answers as the engine would. */
function refuseRequest(course: Course, checked: Checked): void {
  course.answer(400, checked.refusal, Reason.None, checked.param);
}

/**
 * Refuses a reply of prefill's that stopped at its cap of one token and has no parameters.
 * NixlConnector always returns them at that cap (vLLM's nixl/scheduler.py, request_finished). So
 * the engines run another connector, by which decode may find the prompt's KV in a store although
 * nothing was handed over. No rows that decode returns could be trusted, whatever
 * `on_prefill_failure` says.
 */
function refuseHandshake(course: Course): void {
  const message =
    'prefill reached its cap of one token and returned no kv_transfer_params: its engine does not run the ' +
    'connector that the setting connector: ' +
    course.config.connector.name +
    ' is for';
  if (logs(LogLevel.Warn)) log(LogLevel.Warn, message);
  course.answer(502, message, Reason.None);
}

/**
 * Refuses a request for rows from behind its prompt on, as vLLM does since 0.30
 * (vllm/v1/engine/input_processor.py). A prefill engine that does so answers 400 itself, so this
 * one does not know the member, and decode's may.
 */
function refuseStart(course: Course, tokens: i64): void {
  const most = tokens.toString();
  const message = 'routed_experts_prompt_start exceeds the number of prompt tokens, which is ' + most;
  course.answer(400, message, Reason.None);
}
