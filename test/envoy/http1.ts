/**
 * An HTTP/1.1 client over a plain socket: it writes exactly the pieces that it is given, and can
 * tell a message that has ended from one that was cut off.
 */

import { once } from 'node:events';
import type { Socket } from 'node:net';
import type { ClientRequest, Header } from '../scenario.ts';
import { exchange, type Reply, type SendOptions } from './client.ts';

const CRLF = '\r\n';

export function sendHttp1(options: SendOptions): Promise<Reply> {
  const parser = new ResponseParser(options.request.method);
  return exchange(options, async (socket, leave) => {
    socket.on('data', (data) => {
      parser.push(data);
      if (parser.headRead) options.onBody?.(parser.bodyBytes);
      if (parser.done) leave();
    });
    socket.on('end', () => {
      parser.end();
      leave();
    });
    await once(socket, 'connect');
    await write(socket, options);
  }).then((localPort) => ({ ...parser.response(), localPort }));
}

/** As for the engines of a scenario, a body without `content-length` is chunked. */
async function write(socket: Socket, { request, arrived }: SendOptions) {
  const { chunks, trailers = [] } = request;
  const chunked = chunks.length > 0 && !has(request.headers, 'content-length');
  socket.write(serializeHead(request, chunked), 'latin1');
  for (const [i, chunk] of chunks.entries()) {
    if (chunk.length === 0) continue;
    if (socket.destroyed) return;
    socket.write(
      chunked
        ? Buffer.concat([Buffer.from(chunk.length.toString(16) + CRLF), chunk, Buffer.from(CRLF)])
        : chunk,
    );
    if (i < chunks.length - 1) await arrived(socket);
  }
  if (chunked && !socket.destroyed) socket.write(`0${CRLF}${serializeHeaders(trailers)}${CRLF}`, 'latin1');
}

function serializeHead(request: ClientRequest, chunked: boolean): string {
  const headers = [...request.headers];
  if (!has(headers, 'host')) headers.unshift(['host', 'localhost']);
  if (chunked && !has(headers, 'transfer-encoding')) headers.push(['transfer-encoding', 'chunked']);
  return `${request.method} ${request.path} HTTP/1.1${CRLF}${serializeHeaders(headers)}${CRLF}`;
}

const serializeHeaders = (headers: Header[]) =>
  headers.map(([name, value]) => `${name}: ${value}${CRLF}`).join('');
const has = (headers: Header[], wanted: string) => headers.some(([name]) => name.toLowerCase() === wanted);

type State =
  'head' | 'length' | 'close' | 'chunk-size' | 'chunk' | 'chunk-end' | 'trailers' | 'done' | 'broken';

/**
 * Parses one HTTP/1.1 response. `complete` is true only when the framing says that the message
 * ended, and nothing followed.
 */
export class ResponseParser {
  private state: State = 'head';
  private rest: Buffer = Buffer.alloc(0);
  private remaining = 0;
  private status = 0;
  private headers: Header[] = [];
  private trailers: Header[] = [];
  private body: Buffer[] = [];

  constructor(private readonly method: string) {}

  get headRead(): boolean {
    return this.status !== 0;
  }

  /** Number of bytes of the body so far. */
  get bodyBytes(): number {
    return this.body.reduce((sum, { length }) => sum + length, 0);
  }

  get done(): boolean {
    return this.state === 'done' || this.state === 'broken';
  }

  push(data: Buffer) {
    this.rest = this.rest.length ? Buffer.concat([this.rest, data]) : data;
    while (this.step());
    if (this.state === 'done' && this.rest.length) this.state = 'broken';
  }

  /** Called when the peer has closed its side. */
  end() {
    if (this.state === 'close') this.state = 'done';
    else if (this.state !== 'done') this.state = 'broken';
  }

  response() {
    const { status, headers, trailers } = this;
    return { status, headers, trailers, body: Buffer.concat(this.body), complete: this.state === 'done' };
  }

  /**
   * Takes one element of the message from `rest`. Returns false when it needs more bytes, or when
   * the message has ended.
   */
  private step(): boolean {
    switch (this.state) {
      case 'head':
        return this.head();
      case 'length':
        return this.take('done');
      case 'close':
        this.remaining = this.rest.length;
        return this.take('close') && false;
      case 'chunk-size': {
        const line = this.line();
        if (line === undefined) return false;
        if (!/^[0-9a-f]+(\s*;.*)?$/i.test(line)) return this.fail();
        this.remaining = parseInt(line, 16);
        this.state = this.remaining ? 'chunk' : 'trailers';
        return true;
      }
      case 'chunk':
        return this.take('chunk-end');
      case 'chunk-end': {
        const line = this.line();
        if (line === undefined) return false;
        if (line !== '') return this.fail();
        this.state = 'chunk-size';
        return true;
      }
      case 'trailers': {
        const lines = this.block();
        if (lines === undefined) return false;
        this.trailers = lines.map(parseHeader);
        this.state = 'done';
        return false;
      }
      default:
        return false;
    }
  }

  private head(): boolean {
    const lines = this.block();
    if (lines === undefined) return false;
    const [, status] = /^HTTP\/1\.[01] (\d{3})( |$)/.exec(lines[0] ?? '') ?? [];
    if (!status) return this.fail();
    // The final response follows an interim one.
    if (status.startsWith('1') && status !== '101') return true;
    this.status = Number(status);
    this.headers = lines.slice(1).map(parseHeader);
    return this.frame();
  }

  /** How the body is delimited (RFC 9112, section 6.3). */
  private frame(): boolean {
    const value = (wanted: string) => this.headers.find(([name]) => name === wanted)?.[1];
    const length = value('content-length');
    if (this.method === 'HEAD' || this.status === 204 || this.status === 304) this.state = 'done';
    else if (/(^|,)\s*chunked$/i.test(value('transfer-encoding') ?? '')) this.state = 'chunk-size';
    else if (length === undefined) this.state = 'close';
    else if (!/^\d+$/.test(length)) return this.fail();
    else {
      this.remaining = Number(length);
      this.state = this.remaining ? 'length' : 'done';
    }
    return true;
  }

  private take(next: State): boolean {
    const bytes = this.rest.subarray(0, this.remaining);
    if (bytes.length) this.body.push(bytes);
    this.rest = this.rest.subarray(bytes.length);
    this.remaining -= bytes.length;
    if (this.remaining) return false;
    this.state = next;
    return true;
  }

  private line(): string | undefined {
    const end = this.rest.indexOf(CRLF);
    if (end < 0) return undefined;
    const line = this.rest.toString('latin1', 0, end);
    this.rest = this.rest.subarray(end + CRLF.length);
    return line;
  }

  /** Takes the lines up to an empty line. As long as that has not arrived, it takes none. */
  private block(): string[] | undefined {
    const before = this.rest;
    const lines: string[] = [];
    for (;;) {
      const line = this.line();
      if (line === '') return lines;
      if (line === undefined) {
        this.rest = before;
        return undefined;
      }
      lines.push(line);
    }
  }

  private fail(): boolean {
    this.state = 'broken';
    return false;
  }
}

function parseHeader(line: string): Header {
  const colon = line.indexOf(':');
  return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
}
