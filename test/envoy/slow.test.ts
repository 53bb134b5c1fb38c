// Clients and engines that take their time. While a client takes its time, the filter holds the
// head of the request, and the filter's timer, which looks for heads without a body callback, must
// leave that head alone. An engine that sends a byte a second keeps its stream alive: every byte
// restarts the idle timeout.

import { connect, constants } from 'node:http2';
import { request as http1Request } from 'node:http';
import type { Socket } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { COMPLETIONS, GOOD_DECODE, GOOD_MERGED, GOOD_PREFILL, REQUEST } from '../scenarios/messages.ts';
import { createPlant, http, rawEngine, type Plant } from './plant.ts';

/**
 * Longer than two periods of the filter's timer: a timer that finds nothing leaves no trace to wait
 * for.
 */
const SLOW_MS = 2500;
const HALF = 20;

const SECOND_MS = 1000;
/**
 * Number of bytes of a body that are sent one at a time before the last one. The idle timeout of
 * the stream is shorter than all of them take.
 */
const SLOW_BYTES = 2;
const IDLE_MS = 1800;

const slowly = async (socket: Socket, body: string) => {
  const text = http(body);
  const start = text.length - body.length;
  let from = 0;
  for (const at of [start + 1, start + SLOW_BYTES, text.length - 1]) {
    socket.write(text.slice(from, at));
    from = at;
    await setTimeout(SECOND_MS);
  }
  socket.write(text.slice(from));
};

let plant: Plant;
let slow: Plant;
const open: { close(): Promise<void> }[] = [];

beforeAll(async () => {
  const isSlow = (request: string, leg: string) => request.includes(`x-slow: ${leg}`);
  const engine = (leg: string, body: string) =>
    rawEngine((socket, request) => {
      if (isSlow(request, leg)) void slowly(socket, body);
      else socket.write(http(body));
    });
  const prefill = await engine('prefill', GOOD_PREFILL);
  const decode = await engine('decode', GOOD_DECODE);
  const ports = { prefillPort: prefill.port, decodePort: decode.port };
  plant = await createPlant(ports);
  slow = await createPlant({ ...ports, streamIdleTimeoutMs: IDLE_MS, config: { hold_bytes: 0 } });
  open.push(plant, slow, prefill, decode);
});
afterAll(async () => {
  for (const each of open) await each.close();
});

const headers = { 'content-type': 'application/json', 'content-length': String(REQUEST.length) };

test.concurrent.each([0, HALF])('after %d bytes of the body it is served, http1', async (first) => {
  const sent = http1Request({
    port: plant.port,
    host: '127.0.0.1',
    method: 'POST',
    path: COMPLETIONS,
    headers,
  });
  const answered = new Promise<Buffer>((resolve, reject) => {
    sent.on('response', (response) => resolve(buffer(response)));
    sent.on('error', reject);
  });
  sent.flushHeaders();
  if (first > 0) sent.write(REQUEST.slice(0, first));
  await setTimeout(SLOW_MS);
  sent.end(REQUEST.slice(first));
  expect((await answered).toString()).toBe(GOOD_MERGED);
});

test.concurrent.each([0, HALF])('after %d bytes of the body it is served, http2', async (first) => {
  const session = connect(`http://127.0.0.1:${plant.port}`);
  const stream = session.request({
    [constants.HTTP2_HEADER_METHOD]: 'POST',
    [constants.HTTP2_HEADER_PATH]: COMPLETIONS,
    ...headers,
  });
  if (first > 0) stream.write(REQUEST.slice(0, first));
  await setTimeout(SLOW_MS);
  stream.end(REQUEST.slice(first));
  expect((await buffer(stream)).toString()).toBe(GOOD_MERGED);
  session.close();
});

test.concurrent('a decode engine that says a byte a second is no idle stream', async () => {
  const answer = await slow.send({ body: REQUEST, headers: { 'x-slow': 'decode' } });
  expect(answer).toMatchObject({ status: 200, complete: true });
  expect(answer.body.toString()).toBe(GOOD_MERGED);
});

test.concurrent('a prefill engine that says a byte a second is waited for', async () => {
  const answer = await plant.send({ body: REQUEST, headers: { 'x-slow': 'prefill' } });
  expect(answer.body.toString()).toBe(GOOD_MERGED);
});

test.concurrent(
  'of a prefill engine that says a byte a second the client sees nothing: that is an idle stream',
  async () => {
    const answer = await slow.send({ body: REQUEST, headers: { 'x-slow': 'prefill' } });
    expect(answer.status).toBe(504);
  },
);
