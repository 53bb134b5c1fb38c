// The load generator. It keeps a fixed number of requests in flight (a closed loop), times them,
// and checks what comes back.

import * as http2 from 'node:http2';
import * as net from 'node:net';
import type { Protocol } from '../test/scenario.ts';
import { render, type Bodies, type Format, type Workload } from './bodies.ts';
import { Http1Reader } from './http1.ts';
import { serveCalls } from './process.ts';

/**
 * `filter`: one request, whose merged bytes are known. `floor`: the client runs both legs itself,
 * prefill and then decode. `router`: one request, whose array must be right whatever the bytes
 * around it are.
 */
export type Kind = 'filter' | 'floor' | 'router';

export interface RunSpec {
  kind: Kind;
  format: Format;
  /** Whether the requests are those of a turn, which asks for the last rows only. */
  turn?: boolean | undefined;
  protocol: Protocol;
  port: number;
  /** `host:port` of the prefill engine, for routers that take it from the request. */
  prefill: string;
  concurrency: number;
  /** New requests are started during this time. */
  seconds: number;
  /**
   * The number of requests is at least `leastRequests`, however long they take, and at most
   * `mostRequests`.
   */
  leastRequests?: number;
  mostRequests?: number;
  /**
   * Compares the bytes of one in this many responses with the expected bytes; 1: of every response.
   * Heads and lengths are always checked.
   */
  verifyEvery?: number;
}

export interface RunResult {
  /** The duration of each request, in milliseconds. */
  latencies: number[];
  seconds: number;
  bytes: number;
  verified: number;
  /** How many responses had each outcome: the first word of the outcome header. */
  outcomes: Record<string, number>;
  /** How often each failure occurred. */
  failures: Record<string, number>;
}

export type LoadHandlers = typeof handlers;

interface Response {
  status: number;
  outcome: string;
  bytes: number;
}

interface Client {
  send(path: string, headers: string[][], body: Buffer, onBody: (bytes: Buffer) => void): Promise<Response>;
  close(): void;
}

const PATH = '/v1/completions';
const FLOOR_PREFILL_PATH = '/prefill/v1/completions';
const READ_BYTES = 256 << 10;
const MOST_REQUESTS = 50_000;
const VERIFY_EVERY = 32;
const REQUEST_TIMEOUT_MS = 120_000;

/** What `run` sends and expects: of all requests of a run, whole or of a turn. */
let bodies: Bodies;
let whole: Bodies;
let ofTurn: Bodies | undefined;

const handlers = {
  async load({ workload, turn }: { workload: Workload; turn?: Workload | undefined }): Promise<void> {
    whole = render(workload);
    ofTurn = turn && render(turn);
  },
  run,
};

serveCalls(handlers);

async function run(spec: RunSpec): Promise<RunResult> {
  bodies = spec.turn ? ofTurn! : whole;
  const { concurrency, leastRequests = concurrency, mostRequests = MOST_REQUESTS } = spec;
  const verifyEvery = spec.verifyEvery ?? VERIFY_EVERY;
  const clients = await connect(spec);
  const result: RunResult = {
    latencies: [],
    seconds: 0,
    bytes: 0,
    verified: 0,
    outcomes: {},
    failures: {},
  };
  const started = performance.now();
  const end = started + spec.seconds * 1000;
  let sent = 0;
  const another = () =>
    sent < mostRequests && (sent < leastRequests || performance.now() < end) && ++sent > 0;
  const loop = async (client: Client) => {
    while (another()) {
      // The comparison is made for the last request of such a run: the first one may still meet
      // cold caches.
      const verify = sent % verifyEvery === 0;
      const begun = performance.now();
      try {
        await exchange(client, spec, verify, result);
        result.latencies.push(performance.now() - begun);
        if (verify) result.verified++;
      } catch (error) {
        count(result.failures, (error as Error).message.slice(0, 200));
        if (error instanceof Lost) return;
      }
    }
  };
  try {
    await Promise.all(Array.from({ length: concurrency }, (_, i) => loop(clients[i % clients.length]!)));
  } finally {
    for (const client of clients) client.close();
  }
  result.seconds = (performance.now() - started) / 1000;
  return result;
}

/** HTTP/1 needs a connection for each request in flight, HTTP/2 one for all of them. */
async function connect({ protocol, port, concurrency }: RunSpec): Promise<Client[]> {
  if (protocol === 'http2') return [await connectHttp2(port)];
  return Promise.all(Array.from({ length: concurrency }, () => connectHttp1(port)));
}

async function exchange(client: Client, spec: RunSpec, verify: boolean, result: RunResult): Promise<void> {
  const { kind, format } = spec;
  if (kind === 'floor') {
    await leg(client, FLOOR_PREFILL_PATH, bodies.prefillRequest, bodies.prefillReply, verify, result);
    await leg(client, PATH, bodies.decodeRequest, bodies.decodeReply[format], verify, result);
  } else if (kind === 'filter') {
    const expected = bodies.merged[format];
    const response = await leg(client, PATH, bodies.request, expected, verify, result);
    count(result.outcomes, response.outcome);
    if (response.outcome !== 'merged') throw new Error(`outcome: ${response.outcome || 'none'}`);
  } else {
    const parts: Buffer[] = [];
    const keep = verify ? (bytes: Buffer) => parts.push(Buffer.from(bytes)) : () => undefined;
    const headers = [['x-prefiller-host-port', spec.prefill]];
    const { status, bytes } = await client.send(PATH, headers, bodies.request, keep);
    if (status !== 200) throw new Error(`status ${status}`);
    result.bytes += bytes;
    if (verify && !sameArray(Buffer.concat(parts), bodies.merged[format])) throw new Error('array differs');
  }
}

/**
 * Sends one request whose response must be exactly `expected`. The bytes are compared when `verify`
 * is set.
 */
async function leg(
  client: Client,
  path: string,
  request: Buffer,
  expected: Buffer,
  verify: boolean,
  result: RunResult,
): Promise<Response> {
  let at = 0;
  let same = true;
  const compare = (bytes: Buffer) => {
    same &&= expected.compare(bytes, 0, bytes.length, at, Math.min(at + bytes.length, expected.length)) === 0;
    at += bytes.length;
  };
  const response = await client.send(path, [], request, verify ? compare : () => undefined);
  if (response.status !== 200) throw new Error(`status ${response.status} ${response.outcome}`);
  // A response that decode served alone has the same length as the merged one, so only its outcome
  // tells them apart.
  if (response.outcome === 'merged' || response.outcome === '') {
    if (response.bytes !== expected.length) {
      throw new Error(`${response.bytes} bytes instead of ${expected.length}`);
    }
    if (!same) throw new Error('bytes differ');
  }
  result.bytes += response.bytes;
  return response;
}

function sameArray(body: Buffer, expected: Buffer): boolean {
  const of = (bytes: Buffer) => JSON.parse(bytes.toString('utf8')).choices[0].routed_experts;
  return of(body) === of(expected);
}

function count(counts: Record<string, number>, what: string): void {
  counts[what] = (counts[what] ?? 0) + 1;
}

/** The connection has been lost, so the loop that used it ends. */
class Lost extends Error {}

const OUTCOME = /\r\nx-routed-experts: *(\w+)/i;

async function connectHttp1(port: number): Promise<Client> {
  let status = 0;
  let outcome = '';
  let bytes = 0;
  let onBody: (bytes: Buffer) => void = () => undefined;
  let waiting: { resolve(response: Response): void; reject(error: Error): void } | undefined;
  let timer: NodeJS.Timeout | undefined;
  const settle = () => {
    clearTimeout(timer);
    const was = waiting;
    waiting = undefined;
    return was;
  };
  const reader = new Http1Reader({
    head: (text) => {
      status = Number(text.slice(9, 12));
      outcome = OUTCOME.exec(text)?.[1] ?? '';
      bytes = 0;
    },
    body: (part) => {
      bytes += part.length;
      onBody(part);
    },
    end: () => settle()?.resolve({ status, outcome, bytes }),
  });
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  const socket = net.connect({
    host: '127.0.0.1',
    port,
    noDelay: true,
    onread: { buffer, callback: (n) => (reader.feed(buffer.subarray(0, n)), true) },
  });
  await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  const lost = (why: string) => settle()?.reject(new Lost(`connection lost: ${why}`));
  socket.on('error', (error) => lost(error.message));
  socket.on('close', () => lost('closed'));
  return {
    send(path, headers, body, receive) {
      return new Promise((resolve, reject) => {
        waiting = { resolve, reject };
        if (socket.destroyed) return lost('closed');
        onBody = receive;
        timer = setTimeout(() => socket.destroy(new Error('timeout')), REQUEST_TIMEOUT_MS);
        const extra = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('');
        // Head and body go out in one write, because a head alone would be a packet of its own.
        socket.cork();
        socket.write(
          `POST ${path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n${extra}` +
            `content-length: ${body.length}\r\n\r\n`,
          'latin1',
        );
        socket.write(body);
        socket.uncork();
      });
    },
    close: () => socket.destroy(),
  };
}

async function connectHttp2(port: number): Promise<Client> {
  const session = http2.connect(`http://127.0.0.1:${port}`, { settings: { initialWindowSize: 16 << 20 } });
  await new Promise<void>((resolve, reject) => session.once('connect', resolve).once('error', reject));
  // Without this, the connection's window of 64 KiB would be what is measured.
  session.setLocalWindowSize(256 << 20);
  session.on('error', () => undefined);
  return {
    send(path, headers, body, receive) {
      return new Promise((resolve, reject) => {
        const stream = session.request({
          ':method': 'POST',
          ':path': path,
          'content-type': 'application/json',
          'content-length': body.length,
          ...Object.fromEntries(headers),
        });
        let bytes = 0;
        let status = 0;
        let outcome = '';
        stream.setTimeout(REQUEST_TIMEOUT_MS, () => stream.close());
        stream.on('response', (head) => {
          status = Number(head[':status']);
          outcome = /\w*/.exec(String(head['x-routed-experts'] ?? ''))![0];
        });
        stream.on('data', (part: Buffer) => {
          bytes += part.length;
          receive(part);
        });
        stream.on('end', () => resolve({ status, outcome, bytes }));
        stream.on('error', (error) => reject(session.destroyed ? new Lost(error.message) : error));
        stream.on('close', () => reject(new Error('stream closed')));
        stream.end(body);
      });
    },
    close: () => session.destroy(),
  };
}
