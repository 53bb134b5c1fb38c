/** What both clients share: one connection per request, which ends with the response, the client's patience or its leaving. */

import { connect, type Socket } from 'node:net';
import type { ClientRequest, Result } from '../scenario.ts';

export interface SendOptions {
  port: number;
  request: ClientRequest;
  /** The client gives up after this time. */
  timeoutMs: number;
  /** The client hangs up when this resolves. */
  leave?: Promise<unknown>;
  /** What it does then. Default: it closes the connection. */
  hangUp?: (socket: Socket) => void;
  /** See `Scenario`. */
  onBody?: (bytes: number) => void;
  /** Resolves when Envoy has read all that was written to the socket. */
  arrived: (socket: Socket) => Promise<void>;
}

export interface Reply extends Pick<Result, 'status' | 'headers' | 'body' | 'trailers' | 'complete'> {
  /** Port of the client's end; names the exchange in Envoy's access log. */
  localPort: number;
}

/**
 * Opens a connection, lets `talk` write the request, and waits until the connection is closed from either side.
 * @returns the local port
 */
export async function exchange(
  options: SendOptions,
  talk: (socket: Socket, leave: () => void) => Promise<void>,
): Promise<number> {
  const socket = connect({ port: options.port, host: '127.0.0.1', noDelay: true });
  const leave = () => socket.destroy();
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  // What a reset means is told by how far the response had come.
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
