// The client's request comes. Its head is held, or passes, and Envoy buffers the body until it is
// whole.

import { removeHeader } from '../../abi/host';
import { BodyStatus, HeaderMapKind, HeadersStatus } from '../../abi/types';
import { Block } from '../../bytes/block';
import { Checked } from '../../connectors/protocol';
import { Unfit } from '../../connectors/request_body';
import { Api } from '../../connectors/schema';
import { Reason } from '../../routing/reason';
import { RequestHead } from '../heads';
import { countEndpointRefused, reportHeld } from '../outcome/metrics';
import { ErrorShape } from '../outcome/replies';
import { ClientRequest, Named } from '../request/client_request';
import { HeldHead, forgetHead, holdHead } from '../request/held_heads';
import { Alone, Aside, serveAlone } from './alone';
import { Brought } from '../rows/brought';
import { Course, Phase } from './phase';
import { Prefill } from './prefill';

const SAMPLES =
  'SGLang does not answer requests for several choices under prefill/decode disaggregation: ' +
  'n must be 1. Send a request for each choice';

/** The stream is new, and no callback has come. */
@final
export class Start extends Phase {
  /** Called when the head of the request has come. */
  begin(endOfStream: bool): i32 {
    const course = this.course;
    const endpointHeader = course.config.endpointHeader;
    let head: RequestHead | null = null;
    if (!endOfStream) head = RequestHead.read(course.config);
    if (endpointHeader !== null) removeHeader(HeaderMapKind.RequestHeaders, endpointHeader);
    if (head === null || head.api == Api.None) {
      const posts = head !== null && head.posts;
      if (head !== null) head.free();
      course.enter(posts ? Alone.ofOtherPath(course) : new Aside(course));
      return HeadersStatus.Continue;
    }
    const collect = new Collect(course, new ClientRequest(head, course.config));
    course.enter(collect);
    return collect.begin();
  }

  free(): void {}
}


@final
export class Collect extends Phase implements HeldHead {
  /** Takes over the request. */
  constructor(
    course: Course,
    private readonly request: ClientRequest,
  ) {
    super(course);
  }

  /** Judges the head, and holds it unless the configuration lets heads pass. */
  begin(): i32 {
    const course = this.course;
    if (this.request.head.encoded) this.refuseEncoding();
    else this.checkEndpoint();
    if (course.ended) return HeadersStatus.StopIteration;
    if (course.config.passHeads) {
      this.request.passHead();
      return HeadersStatus.Continue;
    }
    holdHead(course.id, this);
    return HeadersStatus.StopIteration;
  }

  /**
   * Refuses a body that has a content coding, which the filter cannot read. An engine, or a
   * decompressor behind this filter, would unpack it, and it may contain parameters that only the
   * filter may set.
   */
  private refuseEncoding(): void {
    this.course.answer(
      415,
      'the request has a content-encoding, which the filter does not read: send it without one, or let a ' +
        'decompressor (envoy.filters.http.decompressor) stand before this filter',
      Reason.None,
    );
  }

  /** Refuses a request that names an endpoint which it may not name. */
  private checkEndpoint(): void {
    const named = this.request.nameEndpoint();
    if (named == Named.Fine) return;
    countEndpointRefused();
    const what = named == Named.NotAllowed ? 'is not allowed' : 'is not an address or a name with a port';
    this.course.answer(403, 'the prefill endpoint ' + what, Reason.None);
  }

  /** Called when Envoy has some of the body and gives none of it to the filter. */
  answerHeldHead(): void {
    if (this.course.phase !== this) return;
    this.course.answer(
      500,
      'Envoy does not give the filter the body: set allow_on_headers_stop_iteration to true in the plugin, ' +
        'or headers to pass in its configuration',
      Reason.None,
    );
  }

  onRequestBody(size: u32, endOfStream: bool): i32 {
    forgetHead(this.course.id);
    // Envoy buffers the body up to its limit, and answers 413 above it. The filter reads nothing of
    // it until it is whole.
    this.request.size = size;
    if (!endOfStream) return BodyStatus.StopIterationAndBuffer;
    this.startExchange();
    return this.course.phase.requestWaits ? BodyStatus.StopIterationAndBuffer : BodyStatus.Continue;
  }

  onRequestTrailers(): i32 {
    forgetHead(this.course.id);
    this.startExchange();
    return this.course.phase.requestWaits ? HeadersStatus.StopIteration : HeadersStatus.Continue;
  }

  /** Called when the whole body is in Envoy's buffer. */
  private startExchange(): void {
    const course = this.course;
    const body = this.request.bytes();
    if (body === null) {
      return course.answer(
        503,
        'the request does not fit into the memory that the filter may hold',
        Reason.None,
      );
    }
    this.startWith(body);
    body.free();
    // Where the exchange has ended here, this callback has freed its own blocks since, and the next
    // report would be that of `onDone`.
    reportHeld(course.ended);
  }

  /** Judges the request and enters the next phase. `body` is the client's (borrowed). */
  private startWith(body: Block): void {
    const course = this.course;
    const request = this.request;
    const connector = course.config.connector;
    const asked = request.read(body, connector.schema);
    const unfit = asked.unfit;
    if (unfit == Unfit.NotUtf8) return this.refuse('is not UTF-8');
    if (unfit == Unfit.TooDeep) return this.refuse('is nested too deep');
    if (unfit == Unfit.TooMany) return this.refuse('has too many members of the same name');
    if (unfit == Unfit.Samples) {
      const shape = asked.api == Api.Native ? ErrorShape.SglangNative : ErrorShape.Sglang;
      return course.answerIn(shape, 400, SAMPLES, Reason.None, '');
    }
    if (unfit == Unfit.NotObject) {
      request.free();
      return course.enter(Alone.ofNoRequest(course));
    }
    const fits = unfit == Unfit.No && !request.lacksEndpoint && connector.judge(asked) == Unfit.No;
    const checked = fits ? Checked.of(asked, body.ptr) : null;
    if (checked !== null && checked.isRefused) {
      return course.answer(400, checked.refusal, Reason.None, checked.param);
    }
    if (checked === null || checked.unsure) {
      return serveAlone(course, request, asked, new Brought(course.config));
    }
    const prefill = new Prefill(course, request, asked, checked);
    course.enter(prefill);
    prefill.begin(body);
  }

  private refuse(what: string): void {
    this.course.answer(400, 'the request body ' + what, Reason.None);
  }

  free(): void {
    this.request.free();
  }
}
