/**
 * What the HTTP/1 and HTTP/2 clients share: each request has a connection of its own, which is
 * closed after the response, when the client's time is up, or when the client leaves.
 */

import { connect, type Socket } from 'node:net';
import type { ClientRequest, Result } from '../scenario.ts';

export interface SendOptions {
  port: number;
  request: ClientRequest;
  /** The client gives up after this time, in milliseconds. */
  timeoutMs: number;
  /** The client hangs up when this promise resolves. */
  leave?: Promise<unknown>;
  /** How the client hangs up. By default it closes the connection. */
  hangUp?: (socket: Socket) => void;
  /** See `Scenario`. */
  onBody?: (bytes: number) => void;
  /** Resolves when Envoy has read all that was written to the socket. */
  arrived: (socket: Socket) => Promise<void>;
}

export interface Reply extends Pick<Result, 'status' | 'headers' | 'body' | 'trailers' | 'complete'> {
  /** The port of the client's end, which identifies the exchange in Envoy's access log. */
  localPort: number;
}

/**
 * Opens a connection, lets `talk` write the request, and waits until the connection is closed from
 * either side. @returns the local port
 */
export async function exchange(
  options: SendOptions,
  talk: (socket: Socket, leave: () => void) => Promise<void>,
): Promise<number> {
  const socket = connect({ port: options.port, host: '127.0.0.1', noDelay: true });
  const leave = () => socket.destroy();
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  // An error needs no handling of its own: how much of the response has arrived says what it means.
  socket.on('error', leave);
  let localPort = 0;
  socket.once('connect', () => (localPort = socket.localPort ?? 0));
  const timer = setTimeout(leave, options.timeoutMs);
  void options.leave?.then(() => (options.hangUp ?? leave)(socket));
  const talking = talk(socket, leave);
  try {
    await Promise.race([closed, talking.then(() => closed)]);
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
  return localPort;
}
