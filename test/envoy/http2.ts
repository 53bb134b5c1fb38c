/**
 * An HTTP/2 client with prior knowledge, over a socket that the client opens itself, so that its
 * bytes can be counted.
 */

import { once } from 'node:events';
import { connect, constants, type OutgoingHttpHeaders } from 'node:http2';
import { connect as connectTcp, createServer, type AddressInfo, type Socket } from 'node:net';
import type { Header } from '../scenario.ts';
import { exchange, type Reply, type SendOptions } from './client.ts';
import { RESETS_WITHOUT_ERROR } from './version.ts';

/** HTTP/2 does not allow these headers, and sends `host` as `:authority`. */
const HTTP1_ONLY = new Set([
  'connection',
  'host',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
]);

export async function sendHttp2(options: SendOptions): Promise<Reply> {
  const reply: Reply = {
    status: 0,
    headers: [],
    body: Buffer.alloc(0),
    trailers: [],
    complete: false,
    localPort: 0,
  };
  const body: Buffer[] = [];
  reply.localPort = await exchange(options, async (socket, leave) => {
    await once(socket, 'connect');
    await talk(socket, leave, options, reply, body);
  });
  reply.body = Buffer.concat(body);
  return reply;
}

async function talk(socket: Socket, leave: () => void, options: SendOptions, reply: Reply, body: Buffer[]) {
  const { request, arrived } = options;
  const { chunks, trailers = [] } = request;
  const relay = RESETS_WITHOUT_ERROR ? await Relay.before(socket) : undefined;
  const connection = relay?.near ?? socket;
  const session = connect('http://localhost', { createConnection: () => connection });
  session.on('error', leave);
  const stream = session.request(requestHeaders(options), {
    endStream: chunks.length === 0 && trailers.length === 0,
    waitForTrailers: trailers.length > 0,
  });
  let ended = false;
  stream.on('response', (headers, _flags, raw?: string[]) => {
    reply.status = headers[':status'] ?? 0;
    reply.headers = pairs(raw ?? []);
    options.onBody?.(0);
  });
  stream.on('trailers', (_headers, _flags, raw?: string[]) => (reply.trailers = pairs(raw ?? [])));
  let read = 0;
  stream.on('data', (data: Buffer) => {
    body.push(data);
    options.onBody?.((read += data.length));
  });
  stream.on('end', () => (ended = true));
  stream.on('wantTrailers', () => stream.sendTrailers(group(trailers)));
  stream.on('error', () => undefined);
  stream.on('close', () => {
    // For its reader, a stream that was reset has also ended. Only the code of the reset tells the
    // two apart, or the frames.
    const whole = ended && stream.rstCode === constants.NGHTTP2_NO_ERROR;
    reply.complete = whole && reply.status !== 0 && relay?.ended !== false;
    session.close();
    leave();
  });
  for (const [i, chunk] of chunks.entries()) {
    if (stream.destroyed) return;
    stream.write(chunk);
    if (i < chunks.length - 1) await arrived(connection);
  }
  if (!stream.writableEnded && !stream.destroyed) stream.end();
}

const FRAME_HEAD = 9;
const [DATA, HEADERS] = [0, 1];
const END_STREAM = 1;

/**
 * A connection to this process that passes bytes on to Envoy and back, and looks at the frames on
 * their way: Node does not tell whether the server has ended the connection's only stream, or has
 * reset it without an error.
 */
class Relay {
  ended = false;
  #rest: Buffer = Buffer.alloc(0);
  #skip = 0;

  private constructor(
    /** The end for the HTTP/2 session. */
    readonly near: Socket,
    far: Socket,
    socket: Socket,
  ) {
    far.pipe(socket).pipe(far);
    socket.on('data', (data: Buffer) => this.#look(data));
    for (const each of [near, far, socket]) {
      each.setNoDelay(true);
      each.on('error', () => undefined);
      each.on('close', () => [near, far, socket].forEach((end) => end.destroySoon()));
    }
  }

  static async before(socket: Socket): Promise<Relay> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const near = connectTcp((server.address() as AddressInfo).port, '127.0.0.1');
    const [far] = (await once(server, 'connection')) as [Socket];
    server.close();
    return new Relay(near, far, socket);
  }

  /** Looks at the head of each frame (RFC 9113, section 4.1), and skips what the frame carries. */
  #look(data: Buffer) {
    this.#rest = Buffer.concat([this.#rest, data]);
    for (;;) {
      const skipped = Math.min(this.#skip, this.#rest.length);
      this.#rest = this.#rest.subarray(skipped);
      this.#skip -= skipped;
      if (this.#rest.length < FRAME_HEAD) return;
      const [type, flags] = [this.#rest[3]!, this.#rest[4]!];
      if ((type === DATA || type === HEADERS) && flags & END_STREAM) this.ended = true;
      this.#skip = FRAME_HEAD + this.#rest.readUIntBE(0, 3);
    }
  }
}

function requestHeaders({ request }: SendOptions): OutgoingHttpHeaders {
  const authority = request.headers.find(([name]) => name.toLowerCase() === 'host')?.[1] ?? 'localhost';
  return {
    ':method': request.method,
    ':path': request.path,
    ':scheme': 'http',
    ':authority': authority,
    ...group(request.headers),
  };
}

function group(headers: Header[]): Record<string, string[]> {
  const grouped: Record<string, string[]> = {};
  for (const [name, value] of headers) {
    const key = name.toLowerCase();
    if (!HTTP1_ONLY.has(key)) (grouped[key] ??= []).push(value);
  }
  return grouped;
}

function pairs(raw: string[]): Header[] {
  const headers: Header[] = [];
  for (let i = 0; i < raw.length; i += 2) if (!raw[i].startsWith(':')) headers.push([raw[i], raw[i + 1]]);
  return headers;
}
