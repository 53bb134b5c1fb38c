// One exchange: a client's request, its prefill leg, its decode leg, and the response. States, and those that follow:
//
//   Start       nothing has been seen                                          ▶ Local Collecting
//   Collecting  the request head is held, Envoy buffers the body               ▶ Local Querying Resolving Prefilling Racing Passing
//   Querying    the bootstrap server is asked for ranks; the request is held   ▶ Local Resolving Prefilling Racing
//   Resolving   a dynamic forward proxy looks the endpoint up; as before       ▶ Local Prefilling Racing
//   Prefilling  the prefill call is in flight; the request is held             ▶ Local Prefilling (again) Decoding Passing
//   Local       the request goes to decode, which serves it alone              ▶ Passing
//   Racing      both legs are in flight                                        ▶ Decoding Waiting Passing
//   Decoding    prefill is done, decode's response is awaited                  ▶ Holding Streaming Passing
//   Waiting     decode's response is held, prefill's reply is awaited          ▶ Holding Streaming Passing
//   Holding     the response head is held, the bytes so far are in the rope    ▶ Streaming Passing
//   Streaming   committed: the head is out, the body is edited piece by piece  ▶ Passing
//   Passing     the response passes as it comes
//   Ended       the outcome is final; from every state when the filter answers itself, resets, or the client leaves

import { StreamContext } from '../abi/context';
import { expectCall } from '../abi/dispatch';
import {
  bufferBytes,
  closeStream,
  continueStream,
  headerPairs,
  log,
  logs,
  now,
  randomBytes,
  removeHeader,
  replaceBuffer,
  replaceHeader,
  setProperty,
  startedCall,
} from '../abi/host';
import {
  BodyStatus,
  BufferKind,
  HeaderMapKind,
  HeadersStatus,
  LogLevel,
  Status,
  StreamKind,
} from '../abi/types';
import { writeDecimal } from '../bytes/ascii';
import { Block, fits } from '../bytes/block';
import { Rope } from '../bytes/rope';
import { DECIMAL_BYTES } from '../bytes/text';
import { canSalt, decodeLeg, localLeg, prefillLeg } from '../connectors/connector';
import { Api, Dialect, Field, RequestBody, Unfit } from '../connectors/request_body';
import { Rewrite } from '../connectors/rewrite';
import { RANDOM_BYTES, Session } from '../connectors/session';
import { Alone, CachedRule, DecodeResponse, Expected, Form, Treatment } from '../routing/decode_response';
import { EventStream } from '../routing/event_stream';
import { Examination, Leg } from '../routing/examination';
import { Format } from '../routing/prompt';
import { Reason, reasonText } from '../routing/reason';
import { BodySink, Outlet } from './body_sink';
import { chooseRank, forgetRanks, startQuery, takeRanks } from './bootstrap';
import { ClusterType, Config, OnPrefillFailure, OnUnmergeable } from './config';
import { ENDPOINT_BYTES, Endpoint } from './endpoints';
import {
  countEndpointRefused,
  countOutcome,
  countPrefillFailure,
  countSpliced,
  recordPrefill,
  reportHeld,
} from './metrics';
import { ACCEPT_ENCODING, CONTENT_LENGTH, OUTCOME_PROPERTY, REQUEST_ID, ROUTED_EXPERTS } from './names';
import { Outcome, outcomeText } from './outcome';
import { RequestHead, ResponseHead } from './heads';
import { HeldHead, forgetHead, holdHead } from './held_heads';
import { Capture, Captured, capture } from './capture';
import { isRetriedByEnvoy, newRequestId, startLookup, startPrefill } from './prefill_call';
import { replyDecode, replyError, replyPrefill } from './replies';
import { Kept, Room } from './room';
import { WholeBody } from './whole_body';

const enum State {
  Start,
  Collecting,
  Querying,
  Resolving,
  Prefilling,
  Local,
  Racing,
  Decoding,
  Waiting,
  Holding,
  Streaming,
  Passing,
  Ended,
}

/** Why the prefill leg failed. */
const enum Failure {
  /** Envoy could not send it. */
  NoHost,
  /** It was reset, or its reply was larger than Envoy takes. */
  Reset,
  Timeout,
  /** 502 or 503, which Envoy also makes of a connection that fails: it has tried again. */
  Unavailable,
  /** Another status that is neither 2xx nor 4xx. */
  Status,
  /** The reply is not JSON. */
  Unreadable,
  /** The bootstrap server does not tell its ranks. */
  NoRanks,
  /** The rows do not fit into max_capture_bytes. */
  TooLarge,
  /** Decode must be told the length of the prompt, and the reply does not say it. */
  NoLength,
}

/** Bytes of a held response that are read at a time while arrays are looked for. */
const LOOK: u32 = 8 << 10;
/** A body up to this size is put into Envoy's buffer from outside of a body callback: no usual limit is below it. */
const WRITABLE: u64 = 16 << 10;


@final
export class Exchange extends StreamContext implements HeldHead {
  private state: State = State.Start;
  private outcome: Outcome = Outcome.Aborted;
  /** What the access log will say. */
  private logged: string = '';
  private reason: Reason = Reason.None;

  private head: RequestHead | null = null;
  private api: Api = Api.None;
  /** What the client asks for; its bytes stay in Envoy's buffer. */
  private request: RequestBody | null = null;
  private requestSize: u32 = 0;
  /** Id for both legs where the client's request has none. */
  private requestId: Block | null = null;
  /** The prefill endpoint that the request names, in our words. */
  private endpoint: Block | null = null;
  /** Bytes of it that are its host. */
  private endpointHostLen: usize = 0;
  private readonly session: Session = new Session();
  private tries: i32 = 0;
  private callStarted: u64 = 0;
  private brought: Captured = new Captured();
  private kept: Kept = new Kept();

  private rope: Rope | null = null;
  private response: DecodeResponse | null = null;
  private events: EventStream | null = null;
  private expected: Expected = new Expected();
  /** What the rows of both legs say that are checked. */
  private readonly examination: Examination;
  /** Bytes of the response body that have come. */
  private received: u64 = 0;
  /** Bytes of it that its head announces; -1 when it does not. */
  private announced: i64 = -1;
  /** Bytes still to come of a body that passes; -1 when its length is not known. */
  private passing: i64 = -1;
  /** The head went out before the outcome was known: a trailer tells it, where the client gets trailers. */
  private headless: bool = false;
  /** The head that went out tells a length, with so much growth by edits in it. */
  private lengthTold: bool = false;
  private growthTold: i64 = 0;
  /** In `Waiting`: the response is a stream of events, of which Envoy holds everything. */
  private waitingEvents: bool = false;
  /** In `Waiting`: the response has ended. */
  private ended: bool = false;
  /** Its status, and whether Envoy's buffer for its body can be written to when the call is answered. */
  private status: i32 = 0;
  private writable: bool = false;
  /** Where the held body goes when it can't go into Envoy's buffer as it is edited. */
  private whole: WholeBody | null = null;
  /** The host has ended the stream. */
  private gone: bool = false;
  /** Arrays become `null`: they can't be merged, and the configuration says so. */
  private nulling: bool = false;

  constructor(
    id: u32,
    private config: Config,
  ) {
    super(id);
    this.examination = new Examination(config.rowCheck, config.model);
    this.expected.examination = this.examination;
    this.brought.prompt.lastRowOfDecode = config.lastRowOfDecode;
  }

  // ---- request side

  onRequestHeaders(endOfStream: bool): i32 {
    if (!endOfStream) {
      const head = RequestHead.read(this.config);
      this.head = head;
      if (head !== null) this.api = head.api;
    }
    const endpointHeader = this.config.endpointHeader;
    if (endpointHeader !== null) removeHeader(HeaderMapKind.RequestHeaders, endpointHeader);
    if (this.api == Api.None) {
      const head = this.head;
      if (head !== null && head.posts) this.expected.alone = new Alone(CachedRule.Zero, -1, false);
      this.releaseHead();
      this.state = State.Local;
      return HeadersStatus.Continue;
    }
    this.state = State.Collecting;
    if (this.head!.encoded) this.refuseEncoding();
    if (endpointHeader !== null && this.state == State.Collecting) this.takeEndpoint();
    if (this.config.passHeads && this.state == State.Collecting) {
      this.passRequestHead();
      return HeadersStatus.Continue;
    }
    if (this.state == State.Collecting) holdHead(this.id, this);
    return HeadersStatus.StopIteration;
  }

  /** The head goes on at once, as every leg of ours would have it: with any length, and in no encoding but the plain one. */
  private passRequestHead(): void {
    const head = this.head!;
    if (head.hasContentLength) removeHeader(HeaderMapKind.RequestHeaders, CONTENT_LENGTH);
    if (head.hasAcceptEncoding) removeHeader(HeaderMapKind.RequestHeaders, ACCEPT_ENCODING);
    if (head.hasRequestId) return;
    const id = newRequestId();
    this.requestId = id;
    replaceHeader(HeaderMapKind.RequestHeaders, REQUEST_ID, id.ptr, id.len);
  }

  /**
   * What is inside can't be read, and an engine, or a decompressor behind this filter, would unpack it: with parameters in it
   * that only the filter may set.
   */
  private refuseEncoding(): void {
    this.answer(
      415,
      'the request has a content-encoding, which the filter does not read: send it without one, or let a ' +
        'decompressor (envoy.filters.http.decompressor) stand before this filter',
      Reason.None,
    );
  }

  answerHeldHead(): void {
    if (this.state != State.Collecting) return;
    this.answer(
      500,
      'Envoy does not give the filter the body: set allow_on_headers_stop_iteration to true in the plugin, ' +
        'or headers to pass in its configuration',
      Reason.None,
    );
  }

  /** The endpoint that the request names, if it is allowed: Collecting ─▶ Collecting or Ended. */
  private takeEndpoint(): void {
    const head = this.head!;
    if (head.endpointPtr == 0) return;
    const endpoint = new Endpoint();
    const read = endpoint.read(head.endpointPtr, head.endpointLen);
    if (!read || !this.config.endpoints.allow(endpoint)) {
      countEndpointRefused();
      const what = read ? 'is not allowed' : 'is not an address or a name with a port';
      return this.answer(403, 'the prefill endpoint ' + what, Reason.None);
    }
    const text = Block.alloc(ENDPOINT_BYTES);
    text.truncate(endpoint.write(text.ptr));
    this.endpoint = text;
    this.endpointHostLen = endpoint.hostLen;
  }

  onRequestBody(size: u32, endOfStream: bool): i32 {
    switch (this.state) {
      case State.Collecting:
        forgetHead(this.id);
        // Envoy buffers up to its limit, and answers 413 beyond: until the end nothing is read.
        this.requestSize = size;
        if (!endOfStream) return BodyStatus.StopIterationAndBuffer;
        this.startExchange();
        break;
      case State.Querying:
      case State.Resolving:
      case State.Prefilling:
        break;
      default:
        return BodyStatus.Continue;
    }
    return this.requestWaits ? BodyStatus.StopIterationAndBuffer : BodyStatus.Continue;
  }

  onRequestTrailers(): i32 {
    const endpointHeader = this.config.endpointHeader;
    if (endpointHeader !== null) removeHeader(HeaderMapKind.RequestTrailers, endpointHeader);
    forgetHead(this.id);
    if (this.state == State.Collecting) this.startExchange();
    return this.requestWaits ? HeadersStatus.StopIteration : HeadersStatus.Continue;
  }

  private get requestWaits(): bool {
    const state = this.state;
    return (state >= State.Querying && state <= State.Prefilling) || state == State.Ended;
  }

  /** The whole body is in Envoy's buffer: Collecting ─▶ Querying, Resolving, Prefilling, Racing, Local or Ended. */
  private startExchange(): void {
    const body = this.readRequest();
    if (body === null) {
      return this.answer(
        503,
        'the request does not fit into the memory that the filter may hold',
        Reason.None,
      );
    }
    const connector = this.config.connector;
    const request = new RequestBody(this.api, connector.schema, body.ptr, body.len);
    const unfit = request.unfit;
    if (unfit == Unfit.NotUtf8) this.answer(400, 'the request body is not UTF-8', Reason.None);
    else if (unfit == Unfit.TooDeep) this.answer(400, 'the request body is nested too deep', Reason.None);
    else if (unfit == Unfit.TooMany) {
      this.answer(400, 'the request body has too many members of the same name', Reason.None);
    } else if (unfit == Unfit.NotObject) {
      this.expected.alone = new Alone(CachedRule.Zero, -1, false);
      this.state = State.Local;
    } else {
      this.request = request;
      const endless = this.config.endpointHeader !== null && this.endpoint === null;
      if (unfit == Unfit.No && !endless && connector.judge(request) == Unfit.No) this.startLegs(body);
      else this.goLocal();
    }
    body.free();
    // The exchange may have ended in it, with its last callback.
    reportHeld(this.state == State.Ended);
  }

  /** The request's body; null when it can't be held. */
  private readRequest(): Block | null {
    const size = this.requestSize;
    if (size == 0) return Block.alloc(0);
    return fits(<u64>size * 2) ? bufferBytes(BufferKind.RequestBody, 0, size) : null;
  }

  /** `body` is the client's (borrowed). */
  private startLegs(body: Block): void {
    if (!this.head!.hasRequestId && this.requestId === null) this.requestId = newRequestId();
    const config = this.config;
    const session = this.session;
    randomBytes(session.randomPtr, RANDOM_BYTES);
    const endpoint = this.endpoint;
    const host = config.bootstrapHost;
    session.hostPtr = endpoint !== null ? endpoint.ptr : host !== null ? host.ptr : 0;
    session.hostLen = endpoint !== null ? this.endpointHostLen : host !== null ? host.len : 0;
    session.port = config.bootstrapPort;
    if (config.connector.needsRanks && !chooseRank(config, session)) {
      if (startQuery(config, session) != Status.Ok) return this.prefillFailed(Failure.NoHost);
      expectCall(startedCall(), this.id);
      this.callStarted = now();
      this.state = State.Querying;
      return;
    }
    if (this.call(body) != Status.Ok) {
      if (!this.resolve()) this.prefillFailed(Failure.NoHost);
    } else if (config.connector.concurrent) this.race();
  }

  /** Sends the prefill leg; `body` is the client's (borrowed). */
  private call(body: Block): Status {
    const session = this.session;
    const rewrite = prefillLeg(this.request!, this.config.connector, session);
    const leg = rewrite.toBlock(body.ptr, body.len);
    // Tries of ours and of Envoy's together are bounded.
    const retries = this.config.retries - this.tries;
    const pairs = this.head!.pairs;
    const status = startPrefill(this.config, pairs, leg, this.requestId, this.endpoint, session, retries);
    leg.free();
    session.release();
    if (status == Status.Ok) {
      expectCall(startedCall(), this.id);
      this.tries++;
      this.callStarted = now();
      this.state = State.Prefilling;
    }
    return status;
  }

  /** The prefill leg is on its way, and decode's follows at once. Prefilling ─▶ Racing */
  private race(): void {
    this.state = State.Racing;
    this.sendDecode(-1);
  }

  /** Has the endpoint looked up, where that may be what was missing. Collecting or Querying ─▶ Resolving */
  private resolve(): bool {
    const endpoint = this.endpoint;
    if (endpoint === null || this.config.clusterType != ClusterType.DynamicForwardProxy) return false;
    if (startLookup(this.config, endpoint) != Status.Ok) return false;
    expectCall(startedCall(), this.id);
    this.state = State.Resolving;
    return true;
  }

  onCallResponse(headers: u32, bodySize: u32): void {
    switch (this.state) {
      case State.Querying:
        this.takeRanks(headers, bodySize);
        break;
      case State.Resolving:
        // Whatever the answer is: the address is known now, or it can't be.
        if (!this.repeat()) this.prefillFailed(Failure.NoHost);
        break;
      case State.Prefilling:
      case State.Racing:
      case State.Waiting:
        this.takeReply(headers, bodySize);
        break;
      default:
        // Prefill's reply, when decode's was an error, or could not be held for so long.
        return;
    }
    // The exchange may have ended in it, with its last callback.
    reportHeld(this.state == State.Ended);
  }

  /** Querying ─▶ Resolving, Prefilling, Racing, Local or Ended */
  private takeRanks(headers: u32, bodySize: u32): void {
    const config = this.config;
    const session = this.session;
    if (headers == 0) return this.prefillFailed(this.outOfTime ? Failure.Timeout : Failure.Reset);
    const head = ResponseHead.read(HeaderMapKind.CallResponseHeaders);
    if (head.status == 504) return this.prefillFailed(Failure.Timeout);
    const good = head.status >= 200 && head.status <= 299 && !head.encoded;
    if (!good || !takeRanks(config, session, bodySize) || !chooseRank(config, session)) {
      return this.prefillFailed(Failure.NoRanks);
    }
    if (!this.repeat() && !this.resolve()) this.prefillFailed(Failure.NoHost);
  }

  private takeReply(headers: u32, bodySize: u32): void {
    recordPrefill((now() - this.callStarted) / 1000000);
    // Envoy says of a call that it broke off in the body only that it did.
    if (headers == 0) return this.prefillFailed(this.outOfTime ? Failure.Timeout : Failure.Reset);
    const head = ResponseHead.read(HeaderMapKind.CallResponseHeaders);
    const status = head.status;
    if (this.config.connector.needsRanks && (status < 200 || status > 299))
      forgetRanks(this.config, this.session);
    if (status >= 400 && status < 500) return this.passPrefillReply(status, bodySize);
    if (status == 504) return this.prefillFailed(Failure.Timeout);
    if (isRetriedByEnvoy(status)) return this.prefillFailed(Failure.Unavailable);
    if (status < 200 || status > 299) return this.prefillFailed(Failure.Status);
    if (head.encoded) return this.prefillFailed(Failure.Unreadable);
    const connector = this.config.connector;
    const lists = connector.schema.dialect == Dialect.Sglang || !connector.needsParams;
    const start = <u64>max<i64>(this.request!.integer(Field.StartLen), 0);
    const result = capture(bodySize, lists, start, this.examination, new Room(this.config), this.brought);
    if (result == Capture.TooLarge) return this.prefillFailed(Failure.TooLarge);
    if (result == Capture.Unreadable) return this.prefillFailed(Failure.Unreadable);
    this.kept.count(this.brought.prompt);
    if (connector.concurrent) return this.endPrefill();
    if (connector.needsParams && this.brought.params === null) {
      if (this.brought.capped) return this.refuseHandshake();
      // The text ended with its first token and there is nothing to pull: decode prefills itself.
      this.goLocal();
      return this.continueRequest();
    }
    if (this.config.tail && this.brought.prompt.tokens < 0) return this.prefillFailed(Failure.NoLength);
    this.startDecode();
  }

  /**
   * Prefill stopped at its cap of one token, where NixlConnector always hands out parameters (vLLM's nixl/scheduler.py,
   * request_finished), and gave none: the engines run another connector, and decode may find the prompt's KV in a store
   * although nothing was handed over. What it would answer can't be trusted, whatever `on_prefill_failure` says.
   */
  private refuseHandshake(): void {
    const message =
      'prefill reached its cap of one token and returned no kv_transfer_params: its engine does not run the ' +
      'connector that the setting connector: ' +
      this.config.connector.name +
      ' is for';
    if (logs(LogLevel.Warn)) log(LogLevel.Warn, message);
    this.answer(502, message, Reason.None);
  }

  /** Whether the call has used up its time, but for what the clocks of VM and event loop may differ by. */
  private get outOfTime(): bool {
    const timeout = <u64>this.config.timeoutMs;
    return (now() - this.callStarted) / 1000000 + timeout / 10 >= timeout;
  }

  /** The prefill leg has failed: another try, or what the configuration says. */
  private prefillFailed(failure: Failure): void {
    countPrefillFailure();
    if (logs(LogLevel.Warn)) {
      log(LogLevel.Warn, 'prefill failed (' + failureText(failure) + '), try ' + this.tries.toString());
    }
    this.releaseCapture();
    const code = failure == Failure.Timeout ? 504 : 502;
    const message = 'prefill failed: ' + failureText(failure);
    if (this.config.connector.needsRanks) forgetRanks(this.config, this.session);
    if (this.state == State.Racing || this.state == State.Waiting) {
      // Decode may have waited in vain, or have what it needs: what it says is treated as what can't be merged.
      if (this.config.onUnmergeable == OnUnmergeable.Reject)
        return this.answer(code, message, Reason.Prefill);
      this.brought.prompt.refuse(Reason.Prefill);
      return this.endPrefill();
    }
    const again = this.state == State.Prefilling && isWorthARepeat(failure);
    if (again && this.tries <= this.config.retries && this.repeat()) return;
    const waited = this.requestWaits;
    if (this.config.onPrefillFailure == OnPrefillFailure.Decode) {
      this.goLocal();
      if (waited) this.continueRequest();
      return;
    }
    this.answer(code, message, Reason.None);
  }

  /** Sends the prefill leg again, or late: ─▶ Prefilling or Racing. False when it can't be sent. */
  private repeat(): bool {
    const body = this.readRequest();
    if (body === null) return false;
    const status = this.call(body);
    body.free();
    if (status != Status.Ok) return false;
    if (this.config.connector.concurrent) {
      this.race();
      this.continueRequest();
    }
    return true;
  }

  /** Prefill says that the request is wrong; decode would say the same. Prefilling ─▶ Ended */
  private passPrefillReply(status: i32, bodySize: u32): void {
    const headers = headerPairs(HeaderMapKind.CallResponseHeaders);
    if (headers === null) return this.prefillFailed(Failure.Reset);
    const read = fits(bodySize) ? bufferBytes(BufferKind.CallResponseBody, 0, bodySize) : null;
    const body = read === null ? Block.alloc(0) : read;
    this.outcome = Outcome.Absent;
    const outcome = this.outcomeNow();
    this.finish();
    replyPrefill(status, headers, body, outcome);
    body.free();
    headers.free();
  }

  /**
   * The request goes to decode alone, as the client sent it but for parameters that only the filter may set, and for the
   * salt that keeps decode from using what its prefix cache has of the prompt.
   */
  private goLocal(): void {
    const request = this.request!;
    const config = this.config;
    const session = this.session;
    this.outcome = Outcome.Local;
    const fresh = config.freshLocal && canSalt(request);
    if (fresh) randomBytes(session.randomPtr, RANDOM_BYTES);
    const rewrite = localLeg(request, config.connector, session, fresh);
    const written = rewrite.empty || this.rewriteRequest(rewrite);
    session.release();
    if (!written) return;
    if (!config.passHeads && this.head!.hasAcceptEncoding) {
      removeHeader(HeaderMapKind.RequestHeaders, ACCEPT_ENCODING);
    }
    const expected = this.expected;
    expected.prompts = max(request.batch, 1);
    expected.choices = request.choices;
    const start = max(request.integer(Field.PromptStart), request.integer(Field.StartLen));
    expected.alone = new Alone(this.cachedRule(request, fresh), start, true);
    this.releaseCapture();
    this.releaseHead();
    this.state = State.Local;
  }

  /** What decode's `cached_tokens` must say so that the rows of a request that it serves alone are its own. */
  private cachedRule(request: RequestBody, fresh: bool): CachedRule {
    // Samples and prompts of one request share its salt: vLLM puts a block into the prefix cache when it is scheduled, and
    // the next sample hits it in the same step (vllm/v1/core/kv_cache_manager.py, allocate_slots).
    if (fresh && !this.config.connector.sharesStore) {
      return request.choices > 1 ? CachedRule.Any : CachedRule.NoHit;
    }
    // Of several prompts vLLM reports the last one's only; SGLang's elements have one each.
    const one = request.batch <= 1 || request.schema.dialect == Dialect.Sglang;
    return one ? CachedRule.Zero : CachedRule.Never;
  }

  /** Prefilling ─▶ Decoding */
  private startDecode(): void {
    const brought = this.brought;
    const params = brought.params;
    this.session.paramsPtr = params === null ? 0 : params.ptr;
    this.session.paramsLen = params === null ? 0 : params.len;
    if (!this.sendDecode(this.config.tail ? brought.prompt.seam : -1)) return;
    if (params !== null) params.free();
    brought.params = null;
    this.state = State.Decoding;
    this.continueRequest();
  }

  /** Makes the client's request decode's leg. False when the exchange has ended in it. */
  private sendDecode(promptStart: i64): bool {
    const request = this.request!;
    const rewrite = decodeLeg(request, this.config.connector, this.session, promptStart);
    const written = this.rewriteRequest(rewrite);
    this.session.release();
    if (!written) return false;
    if (!this.config.passHeads) {
      if (this.head!.hasAcceptEncoding) removeHeader(HeaderMapKind.RequestHeaders, ACCEPT_ENCODING);
      const id = this.requestId;
      if (id !== null) replaceHeader(HeaderMapKind.RequestHeaders, REQUEST_ID, id.ptr, id.len);
    }
    this.expected.prompt = this.brought.prompt;
    this.expected.tail = this.config.tail;
    this.expected.prompts = max(request.batch, 1);
    this.expected.choices = request.choices;
    this.expected.maxTokens = request.maxTokens;
    this.releaseHead();
    return true;
  }

  /** Puts an edited body into Envoy's buffer. False when the exchange has ended in it. */
  private rewriteRequest(rewrite: Rewrite): bool {
    const body = this.readRequest();
    if (body === null) {
      this.answer(503, 'the request does not fit into the memory that the filter may hold', Reason.None);
      return false;
    }
    const before = this.state;
    if (this.head!.hasContentLength && !this.config.passHeads) {
      this.setContentLength(HeaderMapKind.RequestHeaders, rewrite.lengthOf(body.ptr, body.len));
    }
    const sink = new BodySink(BufferKind.RequestBody);
    rewrite.write(body.ptr, body.len, sink);
    sink.finish();
    body.free();
    // A body beyond Envoy's limit is answered with 413 inside the call: callbacks of this stream have run.
    if (this.state != before) return false;
    if (sink.ok) return true;
    this.answer(502, 'the request could not be rewritten', Reason.None);
    return false;
  }

  private continueRequest(): void {
    const state = this.state;
    if (state == State.Local || state == State.Decoding || state == State.Racing) {
      continueStream(StreamKind.Request);
    }
  }

  private setContentLength(map: HeaderMapKind, length: u64): void {
    const text = Block.alloc(DECIMAL_BYTES);
    replaceHeader(map, CONTENT_LENGTH, text.ptr, writeDecimal(length, text.ptr));
    text.free();
  }

  // ---- response side

  onResponseHeaders(endOfStream: bool): i32 {
    switch (this.state) {
      case State.Racing:
      case State.Decoding:
        return this.startResponse(endOfStream);
      case State.Ended:
        return HeadersStatus.Continue;
      case State.Local:
        return this.startAlone(endOfStream);
      default:
        // Envoy has answered itself, before the request went anywhere.
        this.outcome = Outcome.Absent;
    }
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    // Or, of a head that went on without its body, decode has: what that brings can't be known.
    const good = head.status >= 200 && head.status <= 299 && !endOfStream;
    if (this.outcome == Outcome.Absent && good) return this.startUnreadable(Reason.Prefill);
    this.announced = head.contentLength;
    this.pass(endOfStream);
    return HeadersStatus.Continue;
  }

  onResponseBody(size: u32, endOfStream: bool): i32 {
    switch (this.state) {
      case State.Waiting:
        return this.wait(size, endOfStream);
      case State.Holding:
        return this.hold(size, endOfStream);
      case State.Streaming:
        return this.stream(size, endOfStream);
      case State.Passing:
        this.passing -= min<i64>(size, max<i64>(this.passing, 0));
        if (endOfStream) this.endPassing();
        return BodyStatus.Continue;
      default:
        return BodyStatus.Continue;
    }
  }

  onResponseTrailers(): i32 {
    // Only the filter says what became of an exchange.
    removeHeader(HeaderMapKind.ResponseTrailers, ROUTED_EXPERTS);
    switch (this.state) {
      case State.Waiting:
        this.ended = true;
        return HeadersStatus.StopIteration;
      case State.Holding:
        // The document would have been let go at its end, so it has none. The body can't be given back any more.
        if (this.nulling || this.config.onUnmergeable != OnUnmergeable.Reject) this.reset(Reason.Json);
        else this.reject(Reason.Json);
        return HeadersStatus.StopIteration;
      case State.Streaming:
        return this.endStreaming() ? HeadersStatus.Continue : HeadersStatus.StopIteration;
      case State.Passing:
        this.endPassing();
        return HeadersStatus.Continue;
      default:
        return HeadersStatus.Continue;
    }
  }

  /** The head of what decode serves alone: Local ─▶ Holding, Streaming or Passing. */
  private startAlone(endOfStream: bool): i32 {
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    this.announced = head.contentLength;
    this.status = head.status;
    this.outcome = Outcome.Local;
    const alone = this.expected.alone;
    const good = head.status >= 200 && head.status <= 299 && !endOfStream;
    // Other paths, and bodies that are no request, have responses of every kind.
    const readable = (head.json || head.events) && !head.encoded;
    if (!good || alone === null || (!alone.counted && !readable)) {
      this.pass(endOfStream);
      return HeadersStatus.Continue;
    }
    if (head.encoded) return this.startUnreadable(Reason.Encoding);
    this.rope = new Rope();
    return this.openResponse(head);
  }

  /** The head of decode's response: Racing or Decoding ─▶ Waiting, Holding, Streaming or Passing. */
  private startResponse(endOfStream: bool): i32 {
    const head = ResponseHead.read(HeaderMapKind.ResponseHeaders);
    this.announced = head.contentLength;
    this.status = head.status;
    this.outcome = Outcome.Absent;
    if (head.status >= 500 && this.config.connector.needsRanks) forgetRanks(this.config, this.session);
    const good = head.status >= 200 && head.status <= 299;
    if (endOfStream || !good) {
      this.releaseCapture();
      this.pass(endOfStream);
      return HeadersStatus.Continue;
    }
    if (head.encoded) return this.startUnreadable(Reason.Encoding);
    this.rope = new Rope();
    if (this.state == State.Racing) {
      this.state = State.Waiting;
      this.waitingEvents = head.events;
      // Events must not leave before the rows are there, and need not be looked at all together.
      return head.events ? HeadersStatus.StopAllIterationAndWatermark : HeadersStatus.StopIteration;
    }
    return this.openResponse(head);
  }

  /** ─▶ Holding or Streaming */
  private openResponse(head: ResponseHead): i32 {
    if (head.events) {
      this.openEvents();
      return HeadersStatus.Continue;
    }
    this.openHeld();
    // Of a path that is not served nobody has shown yet that the plugin may hold a head: Envoy would hold the body, too.
    const holds = !this.config.passHeads && this.api != Api.None;
    if (holds) return HeadersStatus.StopIteration;
    removeHeader(HeaderMapKind.ResponseHeaders, ROUTED_EXPERTS);
    // Nothing of decode's arrays is known yet, of a single one neither.
    const prompt = this.expected.prompt;
    if (this.mayGrow || this.expected.tail || prompt.mayWiden)
      removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
    else this.promises(0);
    this.headless = true;
    return HeadersStatus.Continue;
  }

  /** The head tells a length with so much growth in it. */
  private promises(growth: i64): void {
    this.lengthTold = this.announced >= 0;
    this.growthTold = growth;
  }

  /** Whether edits make the body another length than its head has told. */
  private get breaksPromise(): bool {
    return this.lengthTold && this.response!.growth != this.growthTold;
  }

  /** ─▶ Streaming: events are edited as they pass. */
  private openEvents(): void {
    const treatment =
      this.config.onUnmergeable == OnUnmergeable.Null ? Treatment.MergeOrNull : Treatment.Merge;
    const response = new DecodeResponse(this.expected, this.rope!, treatment, Form.Unknown, true);
    this.response = response;
    this.events = new EventStream(response);
    removeHeader(HeaderMapKind.ResponseHeaders, ROUTED_EXPERTS);
    // With a length a client would take a stream for whole that is cut short and then reset.
    removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
    this.headless = true;
    this.state = State.Streaming;
  }

  /** ─▶ Holding: what is in the rope is read, and what comes. */
  private openHeld(): void {
    this.state = State.Holding;
    this.response = new DecodeResponse(this.expected, this.rope!, Treatment.Merge, Form.Unknown, false);
    this.readRope();
  }

  /** Keeps a piece of a response that can't be judged yet: prefill has not answered. */
  private wait(size: u32, endOfStream: bool): i32 {
    const rope = this.rope!;
    if (size > 0) {
      const piece = fits(size) ? bufferBytes(BufferKind.ResponseBody, 0, size) : null;
      if (piece === null) {
        this.openHeld();
        return this.unmergeable(Reason.Memory, size, endOfStream);
      }
      rope.append(piece, this.received);
      this.received += size;
    }
    if (rope.held > this.config.maxHoldBytes) {
      this.openHeld();
      return this.unmergeable(Reason.Hold, 0, endOfStream);
    }
    this.ended = endOfStream;
    if (!endOfStream) return BodyStatus.StopIterationNoBuffer;
    // Envoy 1.40 crashes when a body is touched from outside after any other status. What it keeps it also counts.
    replaceBuffer(BufferKind.ResponseBody, 0, 0);
    this.writable = true;
    return BodyStatus.StopIterationAndBuffer;
  }

  /** Prefill has answered, or failed: Racing ─▶ Decoding, Waiting ─▶ Holding, Streaming or Ended. */
  private endPrefill(): void {
    if (this.state == State.Racing) {
      this.state = State.Decoding;
      return;
    }
    if (this.waitingEvents) {
      this.openEvents();
      continueStream(StreamKind.Response);
      return;
    }
    this.openHeld();
    // What is still to come brings the held bytes along; from here they can't leave.
    if (this.ended) this.sendWhole();
  }

  /** The response is all there, and no body callback will come: Holding ─▶ Ended. */
  private sendWhole(): void {
    const whole = new WholeBody();
    this.whole = whole;
    // The judgement ends the exchange, but for an answer of our own that it has sent.
    const passes = this.judge(true) == BodyStatus.Continue;
    this.whole = null;
    const body = whole.body;
    const len: usize = body === null ? 0 : body.len;
    if (passes && this.writable && <u64>len <= WRITABLE) {
      replaceBuffer(BufferKind.ResponseBody, body === null ? 0 : body.ptr, len);
      // Over its limit Envoy has answered inside the call; to go on then would send a second response.
      if (!this.gone) continueStream(StreamKind.Response);
    } else if (passes) {
      const headers = headerPairs(HeaderMapKind.ResponseHeaders);
      const pairs = headers === null ? Block.alloc(0) : headers;
      replyDecode(this.status, pairs, body, this.logged);
      pairs.free();
    }
    whole.free();
  }

  /** Where a body of up to `most` bytes leaves to. */
  private outlet(most: u64): Outlet {
    const whole = this.whole;
    if (whole === null) return new BodySink(BufferKind.ResponseBody);
    whole.begin(most);
    return whole;
  }

  /** A response whose body can't be read at all. */
  private startUnreadable(reason: Reason): i32 {
    if (this.config.onUnmergeable != OnUnmergeable.Forward) {
      this.reject(reason);
      return HeadersStatus.StopIteration;
    }
    this.releaseCapture();
    this.outcome = Outcome.Unmerged;
    this.reason = reason;
    this.pass(false);
    return HeadersStatus.Continue;
  }

  /** The response passes as it comes, with the outcome in its head. */
  private pass(endOfStream: bool): void {
    this.state = State.Passing;
    this.setOutcomeHeader();
    this.passing = this.announced;
    if (endOfStream) this.finish();
  }

  /** Takes a piece of a response that is held back; lets everything go once that is safe. */
  private hold(size: u32, endOfStream: bool): i32 {
    const rope = this.rope!;
    const response = this.response!;
    // Where a response that can't be merged is refused, what prefill's rows replace is never needed, and not read.
    const sparing = this.config.onUnmergeable == OnUnmergeable.Reject;
    for (let at: u32 = 0; at < size;) {
      const left = size - at;
      const ahead = sparing ? <u32>min<u64>(response.replacedAhead, left) : 0;
      if (ahead > 0) {
        response.passReplaced(ahead);
        this.received += ahead;
        at += ahead;
        continue;
      }
      // Short looks until the last array has begun, so that its rows are not read with what comes before them.
      const looking = sparing && !response.inArray && response.choices < this.expected.choices;
      const len = looking ? min(left, LOOK) : left;
      const piece = fits(len) ? bufferBytes(BufferKind.ResponseBody, at, len) : null;
      if (piece === null) return this.unmergeable(Reason.Memory, left, endOfStream);
      // The piece may be gone then, its bytes with others.
      const ptr = rope.append(piece, this.received);
      response.push(ptr, len, this.received);
      if (sparing && response.isReplaced(this.received)) rope.discard(len);
      this.received += len;
      at += len;
    }
    return this.judge(endOfStream);
  }

  /** Decides what becomes of the held bytes. */
  private judge(endOfStream: bool): i32 {
    const rope = this.rope!;
    if (this.response!.again != Form.Unknown) this.readAgain(this.response!.again, Treatment.Merge);
    const response = this.response!;
    if (this.isForeign(response.reason)) return this.letGo(Outcome.Local, Reason.None, 0, endOfStream);
    if (response.reason != Reason.None) return this.unmergeable(response.reason, 0, endOfStream);
    if (response.complete) return this.commit(endOfStream);
    if (endOfStream && this.received == 0) {
      this.pass(true);
      return BodyStatus.Continue;
    }
    if (endOfStream || this.isCut) {
      if (this.isForeign(Reason.Json)) return this.letGo(Outcome.Local, Reason.None, 0, endOfStream);
      return this.unmergeable(Reason.Json, 0, endOfStream);
    }
    // Without an array of prefill's there is nothing to wait for: one of decode's is refused whenever it comes, and other
    // values of prefill's are put in where their place is.
    const open = this.expected.prompt.lacksRouting || response.planned;
    const ready = this.nulling || (open && response.decided);
    if (ready && this.received > this.config.holdBytes) return this.commit(false);
    if (rope.held > this.config.maxHoldBytes) {
      if (response.decided) return this.unmergeable(Reason.Hold, 0, false);
      return this.unmergeable(this.expected.alone !== null ? Reason.Cached : Reason.Ambiguous, 0, false);
    }
    return BodyStatus.StopIterationNoBuffer;
  }

  /** Whether a response that decode served alone is no JSON and has shown no array: no client finds one in it, either. */
  private isForeign(reason: Reason): bool {
    return reason == Reason.Json && this.expected.alone !== null && !this.response!.begun;
  }

  /** Reads the held bytes once more, of which none has left. */
  private readAgain(form: Form, treatment: Treatment): void {
    const rope = this.rope!;
    rope.clearEdits();
    this.response!.free();
    this.response = new DecodeResponse(this.expected, rope, treatment, form, false);
    this.readRope();
  }

  private readRope(): void {
    const rope = this.rope!;
    const response = this.response!;
    let offset: u64 = 0;
    for (let i = 0; i < rope.pieceCount; i++) {
      const piece = rope.piece(i);
      response.push(piece.ptr, piece.len, offset);
      offset += piece.len;
    }
  }

  /** Held bytes can't be merged: what the configuration says. `unread` bytes of the current piece are not in the rope. */
  private unmergeable(reason: Reason, unread: u32, endOfStream: bool): i32 {
    const policy = this.config.onUnmergeable;
    const readable = reason != Reason.Json && reason != Reason.Memory;
    if (policy == OnUnmergeable.Null && readable && !this.nulling) {
      this.nulling = true;
      this.reason = reason;
      this.readAgain(Form.Unknown, Treatment.Null);
      return this.judge(endOfStream);
    }
    if (policy != OnUnmergeable.Forward) {
      this.reject(reason);
      return BodyStatus.StopIterationNoBuffer;
    }
    return this.letGo(Outcome.Unmerged, reason, unread, endOfStream);
  }

  /** Held bytes go as decode sent them, before `unread` bytes of the current piece that are not in the rope: Holding ─▶ Passing */
  private letGo(outcome: Outcome, reason: Reason, unread: u32, endOfStream: bool): i32 {
    this.outcome = outcome;
    this.reason = reason;
    if (!this.headless) this.setOutcomeHeader();
    if (this.announced >= 0) this.passing = max<i64>(this.announced - <i64>this.received - unread, 0);
    const rope = this.rope!;
    rope.clearEdits();
    const last = unread > 0 ? bufferBytes(BufferKind.ResponseBody, 0, unread) : null;
    if (last !== null) rope.append(last, this.received);
    this.received += unread;
    const outlet = this.outlet(this.received);
    rope.release(this.received, outlet);
    if (!outlet.finish() && this.whole !== null) {
      this.reject(Reason.Memory);
      return BodyStatus.StopIterationNoBuffer;
    }
    this.state = State.Passing;
    this.releaseResponse();
    this.releaseCapture();
    if (endOfStream) this.endPassing();
    return BodyStatus.Continue;
  }

  /** Head and held bytes go out. Holding ─▶ Streaming */
  private commit(endOfStream: bool): i32 {
    const response = this.response!;
    if (this.nulling) this.outcome = Outcome.Unmerged;
    else if (this.expected.alone === null) {
      this.outcome = response.merged ? Outcome.Merged : Outcome.Absent;
    }
    if (this.headless) {
      if (this.breaksPromise) {
        this.reset(this.nulling ? this.reason : Reason.Rows);
        return BodyStatus.StopIterationNoBuffer;
      }
    } else this.tellLength();
    this.state = State.Streaming;
    const outlet = this.outlet(<u64>max<i64>(<i64>this.received + response.growth, 0));
    this.rope!.release(response.settled, outlet);
    if (!this.sent(outlet)) return BodyStatus.StopIterationNoBuffer;
    if (endOfStream) this.endPassing();
    return BodyStatus.Continue;
  }

  /** The outcome is in the head that goes out, and the length as far as it is known. */
  private tellLength(): void {
    const response = this.response!;
    this.setOutcomeHeader();
    if (!response.complete && this.mayGrow) removeHeader(HeaderMapKind.ResponseHeaders, CONTENT_LENGTH);
    else {
      this.promises(response.growth);
      if (response.growth != 0 && this.announced >= 0) {
        this.setContentLength(HeaderMapKind.ResponseHeaders, <u64>(this.announced + response.growth));
      }
    }
  }

  /** Whether edits to come may change the length of the body. */
  private get mayGrow(): bool {
    const prompt = this.expected.prompt;
    // An object says itself whether it has generated rows only, whatever was asked for.
    const tails = this.expected.tail || prompt.format == Format.Object;
    // Of several arrays one may be widened, whatever the first one was.
    const grows = tails || prompt.mayWiden;
    return this.nulling || prompt.values.length > 0 || (grows && this.expected.choices != 1);
  }

  /** After what may leave was given to the host: false when it was not all of it, and the stream was reset. */
  private sent(outlet: Outlet): bool {
    if (outlet.finish() && !this.rope!.broken) return true;
    if (this.whole !== null) this.reject(Reason.Memory);
    else this.reset(Reason.Memory);
    return false;
  }

  /**
   * Whether too little of what the head announces is left for the document to end: behind the last byte that goes out a
   * client takes the body for whole, and of padding nothing may go out.
   */
  private get isCut(): bool {
    const response = this.response!;
    if (this.announced < 0 || response.complete) return false;
    return this.announced <= <i64>(this.received + response.paddingAhead);
  }

  /** Whether `size` more bytes are all that the head announces. */
  private isLast(size: u32): bool {
    return <i64>this.received + size == this.announced;
  }

  /** Edits a piece of a response whose head is out. */
  private stream(size: u32, endOfStream: bool): i32 {
    const whole = (size == 0 || this.streamPiece(size)) && (!endOfStream || this.endStreaming());
    // After a reset nothing more may leave.
    return whole ? BodyStatus.Continue : BodyStatus.StopIterationNoBuffer;
  }

  /** False when the stream was reset. */
  private streamPiece(size: u32): bool {
    const rope = this.rope!;
    const response = this.response!;
    const events = this.events;
    const ahead = events === null ? response.replacedAhead : events.replacedAhead;
    // What prefill's rows replace is not read at all.
    const unread = rope.held == 0 ? <u32>min<u64>(ahead, size) : 0;
    const last = events === null && this.isLast(size);
    if (last && unread == size) {
      this.reset(Reason.Json);
      return false;
    }
    let piece: Block | null = null;
    if (unread < size) {
      if (fits(size - unread)) piece = bufferBytes(BufferKind.ResponseBody, unread, size - unread);
      if (piece === null) {
        this.reset(Reason.Memory);
        return false;
      }
    }
    const sink = new BodySink(BufferKind.ResponseBody);
    if (unread > 0) {
      if (!rope.releaseUnread(unread, sink)) rope.broken = true;
      if (events === null) response.passReplaced(unread);
      else events.passReplaced(unread);
      this.received += unread;
    }
    if (piece !== null) {
      const len = piece.len;
      // The piece may be gone then, its bytes with others.
      const ptr = rope.append(piece, this.received);
      if (events === null) response.push(ptr, len, this.received);
      else events.push(ptr, len, this.received);
      this.received += len;
      if (response.reason != Reason.None || response.again != Form.Unknown) {
        return this.streamFailed(response.reason, sink);
      }
      if (events === null && this.isCut) return this.streamFailed(Reason.Json, sink);
      if (this.breaksPromise) return this.streamFailed(Reason.Rows, sink);
      // An array whose end must be seen before any of it may leave.
      const leaves = events === null ? response.settled : events.settled;
      if (this.received - leaves > this.config.maxHoldBytes) return this.streamFailed(Reason.Hold, sink);
      rope.release(leaves, sink);
    }
    return this.sent(sink);
  }

  /** The response can't be merged any more. Only a stream of which no routing of prefill's has left may go on. */
  private streamFailed(reason: Reason, sink: BodySink): bool {
    const foreign = this.isForeign(reason);
    const untouched = this.events !== null && (this.expected.alone !== null || !this.response!.merged);
    if (!foreign && (!untouched || this.config.onUnmergeable != OnUnmergeable.Forward)) {
      this.reset(reason);
      return false;
    }
    const rope = this.rope!;
    rope.clearEdits();
    rope.release(this.received, sink);
    sink.finish();
    if (!foreign) {
      this.outcome = Outcome.Unmerged;
      this.reason = reason;
    }
    this.state = State.Passing;
    // As in `letGo`: with all of its bytes a client may leave. A stream of events has told no length.
    if (this.lengthTold) this.passing = max<i64>(this.announced - <i64>this.received, 0);
    this.releaseResponse();
    this.releaseCapture();
    return true;
  }

  /** A body that passes has ended. */
  private endPassing(): void {
    if (this.headless) this.setOutcome(HeaderMapKind.ResponseTrailers);
    this.finish();
  }

  /** The body of a response that was streamed has ended. False when the stream was reset. */
  private endStreaming(): bool {
    if (this.state == State.Streaming) {
      const response = this.response!;
      const whole = this.events === null ? response.complete : response.betweenDocuments;
      if (!whole && !this.isForeign(Reason.Json)) {
        this.reset(Reason.Json);
        return false;
      }
      if (response.nulled != Reason.None) {
        this.outcome = Outcome.Unmerged;
        this.reason = response.nulled;
      } else if (this.events !== null && response.unplaced) {
        this.reset(Reason.Missing);
        return false;
      } else if (this.events !== null && response.merged && this.examination.judge() != Reason.None) {
        this.reset(Reason.Experts);
        return false;
      } else if (this.events !== null && response.merged && this.expected.alone === null) {
        this.outcome = Outcome.Merged;
      }
    }
    if (this.headless) this.setOutcome(HeaderMapKind.ResponseTrailers);
    this.finish();
    return true;
  }

  // ---- both sides

  /** Answers with an error of our own. */
  private answer(code: i32, message: string, reason: Reason): void {
    this.outcome = Outcome.Rejected;
    this.reason = reason;
    if (logs(LogLevel.Info)) log(LogLevel.Info, 'answered ' + code.toString() + ': ' + message);
    const outcome = this.outcomeNow();
    // Final before it is sent: the host may run callbacks of this stream inside the call.
    this.finish();
    replyError(code, message, outcome);
  }

  /** The response can't be merged, and nothing of it has left. */
  private reject(reason: Reason): void {
    if (this.headless) return this.reset(reason);
    this.answer(502, 'routed_experts can not be merged: ' + this.textOf(reason), reason);
  }

  /** The response can't be merged, and some of it has left: the client must not take it for whole. */
  private reset(reason: Reason): void {
    this.outcome = Outcome.Rejected;
    this.reason = reason;
    if (logs(LogLevel.Warn)) log(LogLevel.Warn, 'stream reset: ' + this.textOf(reason));
    this.finish();
    closeStream(StreamKind.Response);
  }

  /** What was found, and where. */
  private textOf(reason: Reason): string {
    const text = reasonText(reason);
    return reason == Reason.Experts ? text + ' (' + this.examination.describe() + ')' : text;
  }

  private outcomeNow(): string {
    const response = this.response;
    const known = response !== null && (response.complete || this.events !== null);
    return outcomeText(
      this.outcome,
      this.reason,
      this.expected.prompt.rowCount,
      known ? response!.choices : -1,
    );
  }

  private setOutcomeHeader(): void {
    this.setOutcome(HeaderMapKind.ResponseHeaders);
  }

  private setOutcome(map: HeaderMapKind): void {
    const text = String.UTF8.encode(this.outcomeNow());
    replaceHeader(map, ROUTED_EXPERTS, changetype<usize>(text), text.byteLength);
  }

  onLog(): void {
    // A client that has all bytes may leave before their end is told.
    const passed = this.state == State.Passing && this.passing == 0;
    const streamed = this.state == State.Streaming && this.events === null && this.response!.complete;
    if (!passed && !streamed) this.abort();
    this.finish();
    const text = String.UTF8.encode(this.logged);
    setProperty(OUTCOME_PROPERTY, changetype<usize>(text), text.byteLength);
  }

  /** The outcome is final: counted, kept for the access log, and everything is given back. */
  private finish(): void {
    if (this.state == State.Ended) return;
    this.state = State.Ended;
    forgetHead(this.id);
    this.logged = this.outcomeNow();
    const response = this.response;
    if (this.outcome == Outcome.Merged && response !== null) {
      countSpliced(this.expected.prompt.bytesFor(response.choices));
    }
    countOutcome(this.outcome, this.reason);
    this.releaseHead();
    this.releaseResponse();
    this.releaseCapture();
    this.examination.free();
    const id = this.requestId;
    if (id !== null) id.free();
    this.requestId = null;
    const endpoint = this.endpoint;
    if (endpoint !== null) endpoint.free();
    this.endpoint = null;
    this.session.hostLen = 0;
    this.request = null;
    reportHeld(true);
  }

  private releaseHead(): void {
    const head = this.head;
    if (head !== null) head.free();
    this.head = null;
  }

  private releaseCapture(): void {
    this.brought.free();
    this.kept.forget();
    this.examination.forget(Leg.Prefill);
  }

  private releaseResponse(): void {
    const rope = this.rope;
    if (rope !== null) rope.free();
    this.rope = null;
    const response = this.response;
    if (response !== null) response.free();
    this.response = null;
    this.events = null;
  }

  onDone(): void {
    this.gone = true;
    this.abort();
    this.finish();
    // What a callback held when the exchange ended in it has been given back by now.
    reportHeld(true);
  }

  /** The stream ends here, whatever was to come. */
  private abort(): void {
    if (this.state == State.Ended) return;
    // The client may have left, or decode's engine have gone.
    if (this.config.connector.needsRanks) forgetRanks(this.config, this.session);
    this.outcome = Outcome.Aborted;
    this.reason = Reason.None;
  }
}

/** Whether the filter repeats a call that failed so: Envoy can't, and more than time was missing. */
function isWorthARepeat(failure: Failure): bool {
  return failure == Failure.Reset || failure == Failure.Status || failure == Failure.Unreadable;
}

function failureText(failure: Failure): string {
  switch (failure) {
    case Failure.NoHost:
      return 'no healthy host';
    case Failure.Reset:
      return 'connection reset, or reply too large';
    case Failure.Timeout:
      return 'timeout';
    case Failure.Unavailable:
      return 'no connection, or status 502 or 503';
    case Failure.Status:
      return 'error status';
    case Failure.Unreadable:
      return 'the reply is not JSON';
    case Failure.NoRanks:
      return 'the bootstrap server does not tell its ranks';
    case Failure.TooLarge:
      return 'the prompt rows exceed max_capture_bytes';
    default:
      return 'the reply does not tell the length of the prompt';
  }
}
