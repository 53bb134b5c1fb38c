/** HTTP/1.1 without a client in between, which would hide trailers or refuse a `host`. */

import { connect } from 'node:net';

/** Sends a message and returns all that comes back until the connection closes. */
export async function exchange(port: number, message: string): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  // Envoy takes the end of what a client sends for the end of the client.
  socket.write(message);
  let text = '';
  for await (const data of socket.setEncoding('latin1')) text += data;
  return text;
}

/** A request to `/v1/completions` whose client takes trailers. */
export function completion(body: object): string {
  const text = JSON.stringify(body);
  return [
    'POST /v1/completions HTTP/1.1',
    'host: models',
    'content-type: application/json',
    'te: trailers',
    'connection: close',
    `content-length: ${text.length}`,
    '',
    text,
  ].join('\r\n');
}

/** A request that the route of the prefill leg would take. */
export const TO_PREFILL = 'GET /health HTTP/1.1\r\nhost: prefill.invalid\r\nconnection: close\r\n\r\n';
