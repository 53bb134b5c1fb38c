// The client's request: its head, the prefill endpoint that it names, and what its body asks for. The
// bytes of the body stay in Envoy's buffer, from which they are read anew for each leg.

import { bufferBytes, removeHeader, replaceHeader } from '../../abi/host';
import { BufferKind, HeaderMapKind } from '../../abi/types';
import { Block, fits } from '../../bytes/block';
import { RequestBody, Schema } from '../../connectors/request_body';
import { Rewrite } from '../../connectors/rewrite';
import { Session } from '../../connectors/session';
import { newRequestId } from '../calls/prefill_call';
import { Config } from '../config/config';
import { ENDPOINT_BYTES, Endpoint } from '../config/endpoints';
import { RequestHead, setContentLength } from '../heads';
import { ACCEPT_ENCODING, CONTENT_LENGTH, REQUEST_ID } from '../names';
import { BodySink } from '../body/body_sink';

/** What a request says of the endpoint of its prefill leg. */
export const enum Named {
  /** Nothing, or one that is allowed. */
  Fine,
  /** What is no address and no name with a port. */
  Unreadable,
  NotAllowed,
}


@final
export class ClientRequest {
  /** Bytes of the body that Envoy holds. */
  size: u32 = 0;
  /** The prefill endpoint that the request names, as this filter writes it (owned). */
  endpoint: Block | null = null;
  /** Id for both legs (owned), where the client's request has none. */
  requestId: Block | null = null;
  /** Bytes of `endpoint` that are its host. */
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

  /** Whether requests must name an endpoint, and this one does not. */
  get lacksEndpoint(): bool {
    return this.config.endpointHeader !== null && this.endpoint === null;
  }

  /**
   * Lets the head leave before the body is known, as every leg would have it: with a body of any
   * length, and asking for a response in no encoding.
   */
  passHead(): void {
    const head = this.head;
    if (head.hasContentLength) removeHeader(HeaderMapKind.RequestHeaders, CONTENT_LENGTH);
    this.askForPlainResponse();
    this.ensureId();
    this.writeId();
  }

  /** Makes sure that the request has an id, which both legs carry. */
  ensureId(): void {
    if (!this.head.hasRequestId && this.requestId === null) this.requestId = newRequestId();
  }

  /** The head that is held becomes that of decode's leg. */
  becomeDecodeHead(): void {
    if (this.config.passHeads) return;
    this.askForPlainResponse();
    this.writeId();
  }

  /** Asks decode for a response in no encoding, which can be read. */
  askForPlainResponse(): void {
    if (this.head.hasAcceptEncoding) removeHeader(HeaderMapKind.RequestHeaders, ACCEPT_ENCODING);
  }

  private writeId(): void {
    const id = this.requestId;
    if (id !== null) replaceHeader(HeaderMapKind.RequestHeaders, REQUEST_ID, id.ptr, id.len);
  }

  /** Where prefill's bootstrap server is: beside the endpoint that is named, or where the configuration says. */
  locateBootstrap(session: Session): void {
    const endpoint = this.endpoint;
    const host = this.config.bootstrapHost;
    session.hostPtr = endpoint !== null ? endpoint.ptr : host !== null ? host.ptr : 0;
    session.hostLen = endpoint !== null ? this.endpointHostLen : host !== null ? host.len : 0;
    session.port = this.config.bootstrapPort;
  }

  /** The body (owned by the caller); null when there is no memory for it and for what is made of it. */
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
   * Writes an edited body (borrowed) into Envoy's buffer; false when Envoy did not take it. A body beyond
   * Envoy's limit is answered with 413 inside this call: callbacks of this stream have run then.
   */
  write(rewrite: Rewrite, body: Block): bool {
    if (this.head.hasContentLength && !this.config.passHeads) {
      setContentLength(HeaderMapKind.RequestHeaders, rewrite.lengthOf(body.ptr, body.len));
    }
    const sink = new BodySink(BufferKind.RequestBody);
    rewrite.write(body.ptr, body.len, sink);
    return sink.finish();
  }

  /** Gives back what the request holds. */
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
