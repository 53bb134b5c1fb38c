// A mock engine that is no bottleneck: it answers every POST with the same rendered bytes. One
// process serves several ports.

import * as http2 from 'node:http2';
import * as net from 'node:net';
import type { Protocol } from '../test/scenario.ts';
import { render, type Format, type Workload } from './bodies.ts';
import { Http1Reader } from './http1.ts';
import { serveCalls } from './process.ts';

type Leg = 'prefill' | Format;

/** The reply that a port gives; those of a turn are to requests for the last rows only. */
export type Role = Leg | `turn ${Leg}`;

export interface EngineSpec {
  roles: Role[];
  protocol: Protocol;
}

export interface LoadSpec {
  workload: Workload;
  /** The workload of the ports of a turn. */
  turn?: Workload | undefined;
  /** Number of bytes of the body in each write; 0: the whole reply is written at once. */
  pieceBytes?: number;
}

export type EngineHandlers = typeof handlers;

interface Reply {
  body: Buffer;
  /** The head and the body together. */
  http1: Buffer;
  headBytes: number;
}

const HOST = '127.0.0.1';
/** The answer to routers that ask which model is served before they send a request. */
const STATUS = reply(Buffer.from('{"object":"list","data":[{"id":"bench","object":"model"}],"status":"ok"}'));
/** The answer of Mooncake's bootstrap server, which is asked here as well. */
const RANKS = reply(Buffer.from('{"0":{"engine_id":"ff0b3d61-5d2e-40f1-ab57-5a7b4e049869"}}'));

const replies = new Map<Role, Reply>();
let pieceBytes = 0;

const handlers = {
  /** Opens a port for each role. */
  async listen({ roles, protocol }: EngineSpec): Promise<Record<string, number>> {
    const ports: Record<string, number> = {};
    for (const role of roles) ports[role] = await open(role, protocol);
    return ports;
  },
  /** Renders the replies that the ports give from now on. */
  async load({ workload, turn, pieceBytes: bytes = 0 }: LoadSpec): Promise<void> {
    const { prefillReply, decodeReply } = render(workload);
    replies.set('prefill', reply(prefillReply));
    replies.set('full', reply(decodeReply.full));
    replies.set('tail', reply(decodeReply.tail));
    pieceBytes = bytes;
    if (!turn) return;
    const short = render(turn);
    replies.set('turn prefill', reply(short.prefillReply));
    replies.set('turn full', reply(short.decodeReply.full));
    replies.set('turn tail', reply(short.decodeReply.tail));
  },
};

serveCalls(handlers);

function reply(body: Buffer): Reply {
  const head = Buffer.from(
    'HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 09:42:00 GMT\r\nserver: uvicorn\r\n' +
      `content-length: ${body.length}\r\ncontent-type: application/json\r\n\r\n`,
  );
  return { body, http1: Buffer.concat([head, body]), headBytes: head.length };
}

const replyTo = (role: Role, method: string, path: string) =>
  method === 'POST' ? replies.get(role)! : path === '/query' ? RANKS : STATUS;

async function open(role: Role, protocol: Protocol): Promise<number> {
  const server = protocol === 'http1' ? http1Server(role) : http2Server(role);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, HOST, resolve);
  });
  return (server.address() as net.AddressInfo).port;
}

function http1Server(role: Role): net.Server {
  return net.createServer({ noDelay: true }, (socket) => {
    let method = '';
    let path = '';
    const reader = new Http1Reader({
      head: (text) => ([method, path] = text.slice(0, text.indexOf(' HTTP/')).split(' ') as [string, string]),
      body: () => undefined,
      end: () => {
        const { http1, headBytes } = replyTo(role, method, path);
        if (pieceBytes === 0 || role.endsWith('prefill')) socket.write(http1);
        else void writePieces(socket, http1, headBytes);
      },
    });
    socket.on('data', (bytes) => reader.feed(bytes));
    // Envoy and the load generator may close a connection at any time.
    socket.on('error', () => undefined);
  });
}

/**
 * Hands each piece to the kernel in a system call of its own, with a turn of the event loop between
 * two pieces.
 */
async function writePieces(socket: net.Socket, bytes: Buffer, headBytes: number): Promise<void> {
  socket.write(bytes.subarray(0, headBytes));
  for (let at = headBytes; at < bytes.length && !socket.destroyed; at += pieceBytes) {
    await new Promise((resolve) => setImmediate(resolve));
    socket.write(bytes.subarray(at, at + pieceBytes));
  }
}

function http2Server(role: Role): net.Server {
  const server = http2.createServer({ settings: { initialWindowSize: 16 << 20 } });
  server.on('session', (session) => session.setLocalWindowSize(16 << 20));
  server.on('stream', (stream, headers) => {
    stream.on('error', () => undefined);
    stream.resume();
    stream.on('end', () => {
      const { body } = replyTo(role, headers[':method'] ?? '', headers[':path'] ?? '');
      stream.respond({
        ':status': 200,
        server: 'uvicorn',
        'content-length': body.length,
        'content-type': 'application/json',
      });
      stream.end(body);
    });
  });
  server.on('sessionError', () => undefined);
  return server as unknown as net.Server;
}
