// Sends requests to a deployment or an engine.

import * as http from 'node:http';
import * as https from 'node:https';

export interface Answer {
  status: number;
  contentType: string;
  /** The value of `x-routed-experts`, in the head or, where a stream has begun, in a trailer. */
  outcome: string | null;
  body: Buffer;
  /** False if the connection broke off before the end. */
  complete: boolean;
  milliseconds: number;
}

export class Client {
  readonly #agent: http.Agent;
  readonly #request: typeof http.request;

  constructor(
    readonly base: URL,
    private readonly options: { headers: Record<string, string>; timeoutMs: number; connections: number },
  ) {
    const secure = base.protocol === 'https:';
    const { Agent } = secure ? https : http;
    this.#agent = new Agent({ keepAlive: true, maxSockets: options.connections });
    this.#request = secure ? https.request : http.request;
  }

  post(path: string, body: object, headers: Record<string, string> = {}): Promise<Answer> {
    return this.#send('POST', path, Buffer.from(JSON.stringify(body)), headers);
  }

  get(path: string): Promise<Answer> {
    return this.#send('GET', path, null, {});
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Resolves in every case: a connection that cannot be made, or times out, has status 0. */
  #send(method: string, path: string, body: Buffer | null, more: Record<string, string>): Promise<Answer> {
    const { headers, timeoutMs } = this.options;
    const url = new URL(this.base.pathname.replace(/\/$/, '') + path, this.base);
    const started = performance.now();
    return new Promise((resolve) => {
      const pieces: Buffer[] = [];
      let response: http.IncomingMessage | undefined;
      const end = (why = '') => {
        const value = (name: string) =>
          [response?.headers[name], response?.trailers[name]].flat().find(Boolean);
        resolve({
          status: response?.statusCode ?? 0,
          contentType: value('content-type') ?? '',
          outcome: value('x-routed-experts') ?? null,
          body: response ? Buffer.concat(pieces) : Buffer.from(why),
          complete: response?.complete ?? false,
          milliseconds: performance.now() - started,
        });
      };
      const sent = body ? { 'content-type': 'application/json', 'content-length': String(body.length) } : {};
      const request = this.#request(url, {
        agent: this.#agent,
        method,
        headers: { ...sent, ...headers, ...more },
      });
      request.setTimeout(timeoutMs, () => request.destroy(new Error('timed out')));
      request.on('error', (error: NodeJS.ErrnoException) => end(error.code ?? error.message));
      request.on('response', (incoming) => {
        response = incoming;
        incoming.on('data', (piece: Buffer) => pieces.push(piece));
        incoming.on('error', () => undefined);
        incoming.on('close', () => end());
      });
      request.end(body ?? undefined);
    });
  }
}
