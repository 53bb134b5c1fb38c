// The client's request: its head, the prefill endpoint that it names, and what its body asks for.
// The bytes of the body stay in Envoy's buffer, and are read from there for each leg.

import { bufferBytes, removeHeader, replaceHeader } from '../../abi/host';
import { BufferKind, HeaderMapKind } from '../../abi/types';
import { Block, fits } from '../../bytes/block';
import { RequestBody } from '../../connectors/request_body';
import { Rewrite } from '../../connectors/rewrite';
import { Schema } from '../../connectors/schema';
import { RANK, Session } from '../../connectors/session';
import { newRequestId } from '../calls/prefill_call';
import { Config } from '../config/config';
import { ENDPOINT_BYTES, Endpoint } from '../config/endpoints';
import { RequestHead, setContentLength } from '../heads';
import { ACCEPT_ENCODING, CONTENT_LENGTH, REQUEST_ID } from '../names';
import { BodySink } from '../body/body_sink';

/** What a request says of the endpoint of its prefill leg. */
export const enum Named {
  /** The request names no endpoint, or one that is allowed. */
  Fine,
  /** What the request names is neither an address nor a name with a port. */
  Unreadable,
  NotAllowed,
}


@final
export class ClientRequest {
  /** How many bytes of the body Envoy holds. */
  size: u32 = 0;
  /**
   * The prefill endpoint that the request names, written anew by the filter (owned); null when it
   * names none.
   */
  endpoint: Block | null = null;
  /**
   * The id that both legs carry (owned); null while the client's own id serves, or none is needed.
   */
  requestId: Block | null = null;
  /** How many bytes of `endpoint`, from its beginning, are the host. */
  private endpointHostLen: usize = 0;
  private freed: bool = false;

  /** Takes over the head. */
  constructor(
    readonly head: RequestHead,
    private readonly config: Config,
  ) {}

  /** Reads the endpoint that the request names, and keeps it if it is allowed. */
  nameEndpoint(): Named {
    const head = this.head;
    if (this.config.endpointHeader === null || head.endpointPtr == 0) return Named.Fine;
    const endpoint = new Endpoint();
    if (!endpoint.read(head.endpointPtr, head.endpointLen)) return Named.Unreadable;
    if (!this.config.endpoints.allow(endpoint)) return Named.NotAllowed;
    const text = Block.alloc(ENDPOINT_BYTES);
    text.truncate(endpoint.write(text.ptr));
    this.endpoint = text;
    this.endpointHostLen = endpoint.hostLen;
    return Named.Fine;
  }

  /** Whether requests must name an endpoint and this one does not. */
  get lacksEndpoint(): bool {
    return this.config.endpointHeader !== null && this.endpoint === null;
  }

  /**
   * Lets the head leave before the body is known. It is changed in the way that every leg needs:
   * the body may have any length, the response may have no content coding, there is a request id,
   * and no rank.
   */
  passHead(): void {
    const head = this.head;
    if (head.hasContentLength) removeHeader(HeaderMapKind.RequestHeaders, CONTENT_LENGTH);
    this.askForPlainResponse();
    this.forgetRank();
    this.ensureId();
    this.writeId();
  }

  /** Makes an id for both legs if the client's request has none. */
  ensureId(): void {
    if (!this.head.hasRequestId && this.requestId === null) this.requestId = newRequestId();
  }

  /** Turns the head that is held into the head of decode's leg. */
  becomeDecodeHead(): void {
    if (this.config.passHeads) return;
    this.askForPlainResponse();
    this.forgetRank();
    this.writeId();
  }

  /** Asks decode for a response without a content coding, so that the filter can read it. */
  askForPlainResponse(): void {
    if (this.head.hasAcceptEncoding) removeHeader(HeaderMapKind.RequestHeaders, ACCEPT_ENCODING);
  }

  private forgetRank(): void {
    if (this.head.hasRank) removeHeader(HeaderMapKind.RequestHeaders, RANK);
  }

  private writeId(): void {
    const id = this.requestId;
    if (id !== null) replaceHeader(HeaderMapKind.RequestHeaders, REQUEST_ID, id.ptr, id.len);
  }

  /**
   * Tells the session where prefill's bootstrap server is: at the host of the endpoint that the
   * request names, or at the one in the configuration.
   */
  locateBootstrap(session: Session): void {
    const endpoint = this.endpoint;
    const host = this.config.bootstrapHost;
    session.hostPtr = endpoint !== null ? endpoint.ptr : host !== null ? host.ptr : 0;
    session.hostLen = endpoint !== null ? this.endpointHostLen : host !== null ? host.len : 0;
    session.port = this.config.bootstrapPort;
  }

  /**
   * Copies the body out of Envoy's buffer. The caller owns the copy. It is null when there is no
   * memory for the body and for a leg made of it.
   */
  bytes(): Block | null {
    const size = this.size;
    if (size == 0) return Block.alloc(0);
    return fits(<u64>size * 2) ? bufferBytes(BufferKind.RequestBody, 0, size) : null;
  }

  /** Reads the body (borrowed). */
  read(body: Block, schema: Schema): RequestBody {
    return new RequestBody(this.head.api, schema, body.ptr, body.len);
  }

  /**
   * Writes an edited body (borrowed) into Envoy's buffer. Returns false when Envoy did not take it.
   * A body above Envoy's limit is answered with 413 inside this call, so callbacks of this stream
   * have run by the time it returns.
   */
  write(rewrite: Rewrite, body: Block): bool {
    if (this.head.hasContentLength && !this.config.passHeads) {
      setContentLength(HeaderMapKind.RequestHeaders, rewrite.lengthOf(body.ptr, body.len));
    }
    const sink = new BodySink(BufferKind.RequestBody);
    rewrite.write(body.ptr, body.len, sink);
    return sink.finish();
  }

  /** Gives back what the request owns. It may be called again. */
  free(): void {
    if (this.freed) return;
    this.freed = true;
    this.head.free();
    const id = this.requestId;
    if (id !== null) id.free();
    this.requestId = null;
    const endpoint = this.endpoint;
    if (endpoint !== null) endpoint.free();
    this.endpoint = null;
  }
}
