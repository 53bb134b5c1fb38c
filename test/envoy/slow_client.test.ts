// A head that is held while the client takes its time with the body: the timer that finds heads without a body callback
// must leave it alone.

import { connect, constants } from 'node:http2';
import { request as http1Request } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { COMPLETIONS, GOOD_DECODE, GOOD_MERGED, GOOD_PREFILL, REQUEST } from '../scenarios/messages.ts';
import { createPlant, http, rawEngine, type Plant } from './plant.ts';

/** Two of the filter's timer and some more: there is nothing to be seen of a timer that finds nothing. */
const SLOW_MS = 2500;
const HALF = 20;

let plant: Plant;
const open: { close(): Promise<void> }[] = [];

beforeAll(async () => {
  const prefill = await rawEngine((socket) => void socket.write(http(GOOD_PREFILL)));
  const decode = await rawEngine((socket) => void socket.write(http(GOOD_DECODE)));
  plant = await createPlant({ prefillPort: prefill.port, decodePort: decode.port });
  open.push(plant, prefill, decode);
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
