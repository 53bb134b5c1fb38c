// Serves an `Engine` on a local port and keeps the promises of `EngineReply`: pieces, trailers and faults.

import { once } from 'node:events';
import * as http from 'node:http';
import * as http2 from 'node:http2';
import type { AddressInfo, Server, Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export interface ServeOptions {
  /** 0, the default: any free port. */
  port?: number;
  /** HTTP/2 without TLS, with prior knowledge. Default: HTTP/1.1. */
  http2?: boolean;
  /** Resolves when the peer has read all that was written; without it nobody waits for that. */
  read?: () => Promise<void>;
}

export interface EngineServer {
  readonly port: number;
  /** Over all connections, also those that were closed. */
  readonly bytesWritten: number;
  /** Ends every connection, also those of stalled replies. */
  close(): Promise<void>;
}

const HOST = '127.0.0.1';
/** Connection-specific headers have no place in HTTP/2. */
const HTTP1_ONLY = new Set(['connection', 'keep-alive', 'transfer-encoding']);

/** Starts a server on the loopback interface; it answers once the promise is fulfilled. */
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

/** The same engine on both protocols. */
export async function serveBoth(
  engine: Engine,
): Promise<{ http1Port: number; http2Port: number; close(): Promise<void> }> {
  const [one, two] = await Promise.all([serveEngine(engine), serveEngine(engine, { http2: true })]);
  const close = async () => void (await Promise.all([one.close(), two.close()]));
  return { http1Port: one.port, http2Port: two.port, close };
}

/** Told how many pieces of a reply were written; one more at its end. */
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
  // An idle client keeps its connection, as with uvicorn behind a proxy that pools.
  server.keepAliveTimeout = 0;
  server.requestTimeout = 0;
  return server;
}

/**
 * Waits until what was said before on the connection is over: Node gives a response its socket then. A peer that knows a
 * body's length sends its next request when it has the last byte, which may be before the body was ended here.
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
  // The engine's headers and no others.
  response.sendDate = false;
  response.removeHeader('connection');
  response.writeHead(reply.status, headers.flat());
  response.flushHeaders();
  await polled();
  if (!(await writePieces(reply, response, written))) return;
  if (reply.fault === 'stall_body') return;
  // A reset here could overtake bytes that the peer has not read yet: an early end is what it has to notice.
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
      // The peer may leave at any point; the session reports what matters.
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

/** Writes one piece after the other, each given to the kernel before the next; false when the peer has left. */
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

/** A whole turn of the event loop: from where I/O is handled, `setImmediate` alone comes before the next poll. */
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

/** An engine that throws is a broken test: say so where the test looks. */
async function answer(engine: Engine, request: EngineRequest): Promise<EngineReply> {
  try {
    return await engine(request);
  } catch (error) {
    console.error('engine threw:', error);
    return { status: 500, headers: [], chunks: [Buffer.from(String(error))] };
  }
}

/** The whole body; null when the client left before its end. Node's own iterator can wait for ever for a body that has ended. */
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
