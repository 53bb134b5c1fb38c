/**
 * An endpoint picker: an ext_proc server that does to requests and responses what llm-d's does
 * (llm-d-router, pkg/epp/handlers/server.go and pkg/common/envoy/chunking.go). It reads a request
 * whole before it answers, then names both engines in headers, and sends the body back in pieces of
 * 62,000 bytes. A response goes back when it is whole, a stream of events piece by piece. Messages
 * may have up to 4 MiB, which is the limit of a gRPC server in Go that sets none.
 */

import { fileURLToPath } from 'node:url';
import {
  loadPackageDefinition,
  Server,
  ServerCredentials,
  type GrpcObject,
  type ServerDuplexStream,
  type ServiceClientConstructor,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const PROTO = fileURLToPath(new URL('ext_proc.proto', import.meta.url));
const MESSAGE_BYTES = 4 << 20;
const PIECE_BYTES = 62_000;

interface HttpHeaders {
  headers: { headers: { key: string; raw_value: Buffer }[] };
  end_of_stream: boolean;
}

interface HttpBody {
  body: Buffer;
  end_of_stream: boolean;
}

/** What Envoy sends: one of these members. */
interface Request {
  request_headers?: HttpHeaders;
  request_body?: HttpBody;
  request_trailers?: object;
  response_headers?: HttpHeaders;
  response_body?: HttpBody;
  response_trailers?: object;
}

type Call = ServerDuplexStream<Request, object>;

export interface Picked {
  decode: string;
  /** The request goes to decode alone when this is absent. */
  prefill?: string;
}

export interface Picker {
  readonly port: number;
  /** The bodies of all requests so far, as they have come. */
  readonly requests: Buffer[];
  /** The bytes of the largest piece of a response's body that has come. */
  largest: number;
  close(): Promise<void>;
}

/** `pick` is called once for each request. */
export async function startPicker(pick: (body: Buffer) => Picked): Promise<Picker> {
  const definition = loadSync(PROTO, { keepCase: true, defaults: true });
  const { service } = ['envoy', 'service', 'ext_proc', 'v3', 'ExternalProcessor'].reduce<unknown>(
    (object, name) => (object as GrpcObject)[name],
    loadPackageDefinition(definition),
  ) as ServiceClientConstructor;
  const server = new Server({ 'grpc.max_receive_message_length': MESSAGE_BYTES });
  const picker = { port: 0, requests: [] as Buffer[], largest: 0, close: async () => server.forceShutdown() };
  server.addService(service, {
    Process: (call: Call) => new Exchange(call, picker, pick),
  });
  picker.port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    ),
  );
  return picker;
}

/** One request and its response, in the order that `FULL_DUPLEX_STREAMED` demands of answers. */
class Exchange {
  #request: Buffer[] = [];
  #response: Buffer[] = [];
  #events = false;

  constructor(
    private readonly call: Call,
    private readonly picker: Picker,
    private readonly pick: (body: Buffer) => Picked,
  ) {
    call.on('data', (request: Request) => this.#take(request));
    call.on('end', () => call.end());
    // Envoy resets the call when its stream is over.
    call.on('error', () => call.end());
  }

  #take(request: Request): void {
    if (request.request_headers) {
      // Requests without a body do not need the picker's choice: any decode engine serves them.
      if (request.request_headers.end_of_stream) this.#choose();
    } else if (request.request_body) {
      this.#request.push(request.request_body.body);
      if (!request.request_body.end_of_stream) return;
      const body = Buffer.concat(this.#request);
      this.picker.requests.push(body);
      this.#choose();
      this.#sendBody('request_body', body, true);
    } else if (request.request_trailers) {
      this.call.write({ request_trailers: {} });
    } else if (request.response_headers) {
      const { headers } = request.response_headers.headers;
      const type = headers.find(({ key }) => key === 'content-type');
      this.#events = type?.raw_value.toString().includes('text/event-stream') ?? false;
      const set = [header('x-went-into-resp-headers', 'true')];
      this.call.write({ response_headers: { response: { header_mutation: { set_headers: set } } } });
    } else if (request.response_body) {
      this.#takeResponse(request.response_body);
    } else if (request.response_trailers) {
      if (!this.#events) this.#sendBody('response_body', Buffer.concat(this.#response), false);
      this.call.write({ response_trailers: {} });
    }
  }

  #choose(): void {
    const { decode, prefill } = this.pick(Buffer.concat(this.#request));
    const set = [header('x-gateway-destination-endpoint', decode)];
    if (prefill !== undefined) set.push(header('x-prefiller-host-port', prefill));
    this.call.write({
      request_headers: { response: { clear_route_cache: true, header_mutation: { set_headers: set } } },
    });
  }

  #takeResponse({ body, end_of_stream }: HttpBody): void {
    this.picker.largest = Math.max(this.picker.largest, body.length);
    if (this.#events) return this.#sendBody('response_body', body, end_of_stream);
    this.#response.push(body);
    if (end_of_stream) this.#sendBody('response_body', Buffer.concat(this.#response), true);
  }

  #sendBody(name: 'request_body' | 'response_body', body: Buffer, ends: boolean): void {
    let at = 0;
    do {
      const piece = body.subarray(at, at + PIECE_BYTES);
      at += PIECE_BYTES;
      const streamed_response = { body: piece, end_of_stream: ends && at >= body.length };
      this.call.write({ [name]: { response: { body_mutation: { streamed_response } } } });
    } while (at < body.length);
  }
}

/** A header that takes the place of the client's. */
const header = (key: string, value: string) => ({
  header: { key, raw_value: Buffer.from(value) },
  append_action: 'OVERWRITE_IF_EXISTS_OR_ADD',
});
