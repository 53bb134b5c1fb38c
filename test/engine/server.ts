// Serves an `Engine` on a local port as its `EngineReply` describes: in these pieces, with these
// trailers and faults.

import { once } from 'node:events';
import * as http from 'node:http';
import * as http2 from 'node:http2';
import type { AddressInfo, Server, Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export interface ServeOptions {
  /** Default: 0, which is any free port. */
  port?: number;
  /** HTTP/2 without TLS, with prior knowledge. Default: HTTP/1.1. */
  http2?: boolean;
  /**
   * Resolves when the peer has read all that was written. By default the server does not wait for
   * the peer.
   */
  read?: () => Promise<void>;
}

export interface EngineServer {
  readonly port: number;
  /** The number of bytes written on all connections, including closed ones. */
  readonly bytesWritten: number;
  /** Ends every connection, including those of stalled replies. */
  close(): Promise<void>;
}

const HOST = '127.0.0.1';
/** HTTP/2 forbids headers that belong to one connection (RFC 9113, 8.2.2). */
const HTTP1_ONLY = new Set(['connection', 'keep-alive', 'transfer-encoding']);

/** Starts a server on the loopback interface; it accepts requests once the promise is fulfilled. */
export async function serveEngine(engine: Engine, options: ServeOptions = {}): Promise<EngineServer> {
  const { read = async () => undefined } = options;
  const written: Written = async (reply, pieces) => {
    if (!reply.read) return;
    await read();
    reply.read(pieces);
  };
  const server = options.http2 ? http2Server(engine, written) : http1Server(engine, written);
  const sockets = new Set<Socket>();
  let closedBytes = 0;
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('close', () => {
      closedBytes += socket.bytesWritten;
      sockets.delete(socket);
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port ?? 0, HOST, resolve);
  });
  const { port } = server.address() as AddressInfo;
  const close = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
  return {
    port,
    close,
    get bytesWritten() {
      return [...sockets].reduce((sum, socket) => sum + socket.bytesWritten, closedBytes);
    },
  };
}

/** Serves the same engine on HTTP/1.1 and on HTTP/2. */
export async function serveBoth(
  engine: Engine,
): Promise<{ http1Port: number; http2Port: number; close(): Promise<void> }> {
  const [one, two] = await Promise.all([serveEngine(engine), serveEngine(engine, { http2: true })]);
  const close = async () => void (await Promise.all([one.close(), two.close()]));
  return { http1Port: one.port, http2Port: two.port, close };
}

/**
 * Called with the number of pieces of a reply that have been written, and once more, with that
 * number plus one, at the reply's end.
 */
type Written = (reply: EngineReply, pieces: number) => Promise<void>;

function http1Server(engine: Engine, written: Written): Server {
  const server = http.createServer(async (request, response) => {
    const body = await collect(request);
    if (!body) return;
    const reply = await answer(engine, {
      method: request.method ?? '',
      path: request.url ?? '',
      headers: pairs(request.rawHeaders),
      body,
      ...trailing(request.rawTrailers),
    });
    if (reply.fault === 'stall') return;
    await itsTurn(response);
    if (reply.fault === 'reset') return void response.socket?.resetAndDestroy();
    await writeHttp1(reply, response, written);
  });
  // The server never closes an idle connection, so that a proxy can keep it in its pool.
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  return server;
}

/**
 * Waits until the responses before this one on the connection are complete: Node assigns the socket
 * to a response at that point. A peer that knows a body's length sends its next request as soon as
 * it has the last byte, which may be before this server has ended the response.
 */
async function itsTurn(response: http.ServerResponse): Promise<void> {
  if (!response.socket) await once(response, 'socket');
}

async function writeHttp1(
  reply: EngineReply,
  response: http.ServerResponse,
  written: Written,
): Promise<void> {
  const headers = [...reply.headers];
  const names = new Set(headers.map(([name]) => name));
  if (!names.has('content-length') && !names.has('transfer-encoding')) {
    headers.push(['transfer-encoding', 'chunked']);
  }
  // Node must add no headers to those of the engine.
  response.sendDate = false;
  response.removeHeader('connection');
  response.writeHead(reply.status, headers.flat());
  response.flushHeaders();
  await polled();
  if (!(await writePieces(reply, response, written))) return;
  if (reply.fault === 'stall_body') return;
  // A reset could overtake bytes that the peer has not read yet. The peer gets an early end of the
  // connection instead, and has to notice that.
  if (reply.fault === 'reset_body') return void response.socket?.destroySoon();
  if (reply.trailers) response.addTrailers(reply.trailers);
  response.end();
  await written(reply, reply.chunks.length + 1);
}

function http2Server(engine: Engine, written: Written): Server {
  const server = http2.createServer();
  server.on(
    'stream',
    async (
      stream: http2.ServerHttp2Stream,
      head: http2.IncomingHttpHeaders,
      _flags: number,
      rawHeaders: string[],
    ) => {
      // The peer may leave at any point; the code that reads and writes the stream sees that by
      // itself.
      stream.on('error', () => undefined);
      let trailers: string[] = [];
      stream.on('trailers', (_: http2.IncomingHttpHeaders, __: number, raw: string[]) => (trailers = raw));
      const body = await collect(stream);
      if (!body) return;
      const reply = await answer(engine, {
        method: String(head[':method']),
        path: String(head[':path']),
        headers: pairs(rawHeaders),
        body,
        ...trailing(trailers),
      });
      if (reply.fault === 'stall' || stream.destroyed) return;
      if (reply.fault === 'reset') return void stream.destroy(new Error('reset'));
      await writeHttp2(reply, stream, written);
    },
  );
  server.on('sessionError', () => undefined);
  return server as unknown as Server;
}

async function writeHttp2(
  reply: EngineReply,
  stream: http2.ServerHttp2Stream,
  written: Written,
): Promise<void> {
  const { trailers, fault } = reply;
  const headers: http2.OutgoingHttpHeaders = { ':status': reply.status };
  for (const [name, value] of reply.headers) if (!HTTP1_ONLY.has(name)) append(headers, name, value);
  stream.respond(headers, {
    sendDate: false,
    waitForTrailers: trailers !== undefined,
    endStream: reply.chunks.length === 0 && !trailers && !fault,
  } as http2.ServerStreamResponseOptions);
  if (trailers) {
    stream.on('wantTrailers', () => {
      const last: http2.OutgoingHttpHeaders = {};
      for (const [name, value] of trailers) append(last, name, value);
      stream.sendTrailers(last);
    });
  }
  if (!(await writePieces(reply, stream, written))) return;
  if (fault === 'stall_body') return;
  // `close` would end the body before it resets the stream.
  if (fault === 'reset_body') return void stream.destroy(new Error('reset'));
  if (!stream.writableEnded) stream.end();
  await written(reply, reply.chunks.length + 1);
}

/**
 * Writes one piece after the other and hands each to the kernel before the next. Returns false if
 * the peer has left.
 */
async function writePieces(reply: EngineReply, out: Writable, written: Written): Promise<boolean> {
  const { chunks, before } = reply;
  for (const [i, piece] of chunks.entries()) {
    if (piece.length === 0) continue;
    await before?.(i);
    if (!(await flushed(piece, out))) return false;
    await polled();
    await written(reply, i + 1);
  }
  return !out.destroyed;
}

/**
 * Waits for a whole turn of the event loop: in an I/O callback, one `setImmediate` alone would run
 * before the next poll.
 */
async function polled(): Promise<void> {
  await setImmediate();
  await setImmediate();
}

function flushed(piece: Buffer, out: Writable): Promise<boolean> {
  return new Promise((resolve) => {
    if (out.destroyed) return resolve(false);
    const left = () => resolve(false);
    out.once('close', left);
    out.write(piece, (error) => {
      out.off('close', left);
      resolve(!error);
    });
  });
}

/**
 * Calls the engine. An engine that throws is a broken test, so the error goes to the console and
 * into the reply, where the test sees it.
 */
async function answer(engine: Engine, request: EngineRequest): Promise<EngineReply> {
  try {
    return await engine(request);
  } catch (error) {
    console.error('engine threw:', error);
    return { status: 500, headers: [], chunks: [Buffer.from(String(error))] };
  }
}

/**
 * The whole body; null if the client left before its end. Node's own async iterator can wait
 * forever for a body that has already ended.
 */
function collect(stream: Readable): Promise<Buffer | null> {
  const parts: Buffer[] = [];
  return new Promise((resolve) => {
    stream.on('data', (part: Buffer) => parts.push(part));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('error', () => resolve(null));
    stream.on('close', () => resolve(null));
  });
}

function pairs(raw: string[]): Header[] {
  const headers: Header[] = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!.toLowerCase();
    if (!name.startsWith(':')) headers.push([name, raw[i + 1]!]);
  }
  return headers;
}

const trailing = (raw: string[]): Pick<EngineRequest, 'trailers'> =>
  raw.length > 0 ? { trailers: pairs(raw) } : {};

function append(headers: http2.OutgoingHttpHeaders, name: string, value: string): void {
  const known = headers[name];
  headers[name] = known === undefined ? value : [...(Array.isArray(known) ? known : [String(known)]), value];
}
