// The VM traps, in a module that has a trap built in because no request is known to cause one. With
// the shipped configuration, exchanges in flight end, and the next request is served.

import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { FILTER_WASM, TRAP_WASM } from '../../tools/paths.mjs';
import { GOOD_DECODE, GOOD_MERGED, GOOD_PREFILL, REQUEST } from '../scenarios/messages.ts';
import { createPlant, http, rawEngine, type Answer, type Plant } from './plant.ts';
import { waitFor } from './wait.ts';

const IDLE_MS = 1500;
const SOCKET = http(GOOD_DECODE);

let of: Plant;
let racing: Plant;
let prefillTalks = true;
let decodeSays = SOCKET.length;
const asked = { prefill: 0, decode: 0 };
const open: { close(): Promise<void> }[] = [];

beforeAll(async () => {
  const prefill = await rawEngine((socket) => {
    asked.prefill++;
    if (prefillTalks) socket.write(http(GOOD_PREFILL));
  });
  const decode = await rawEngine((socket) => {
    asked.decode++;
    socket.write(SOCKET.slice(0, decodeSays));
  });
  const options = {
    prefillPort: prefill.port,
    decodePort: decode.port,
    wasmPath: TRAP_WASM,
    streamIdleTimeoutMs: IDLE_MS,
  };
  of = await createPlant({ ...options, config: { hold_bytes: 0 } });
  racing = await createPlant({
    ...options,
    config: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
  });
  open.push(of, racing, prefill, decode);
});
afterAll(async () => {
  for (const each of open) await each.close();
});

const isMerged = (answer: Answer) => expect(answer.body.toString()).toBe(GOOD_MERGED);
const trap = (plant = of) => plant.send({ body: REQUEST, headers: { 'x-trap': '1' } });
const reloads = async () => Object.values(await of.stats('vm_reload_success')).reduce((a, b) => a + b, 0);

/**
 * Sends requests until one is served: Envoy does not reload a VM within a second of its last load.
 */
const served = (plant = of) =>
  waitFor('A request is served', async () => {
    const answer = await plant.send({ body: REQUEST });
    return answer.status === 200 ? answer : undefined;
  });

test('the shipped module has no way to trap it', () => {
  expect(readFileSync(TRAP_WASM).includes(Buffer.from('x-trap', 'utf16le'))).toBe(true);
  expect(readFileSync(FILTER_WASM).includes(Buffer.from('x-trap', 'utf16le'))).toBe(false);
});

test('the request that traps gets 503, and the next one is served', async () => {
  isMerged(await of.send({ body: REQUEST }));
  const before = await reloads();
  expect(await trap()).toMatchObject({ status: 503, complete: true });
  isMerged(await served());
  expect(await reloads()).toBe(before + 1);
});

interface InFlight {
  name: string;
  prefill: boolean;
  decode: number;
  /** The leg whose engine must have received the request before the trap. */
  reached: 'prefill' | 'decode';
  /** Both legs are sent at once. */
  concurrent?: boolean;
}

test.each<InFlight>([
  { name: 'waits for prefill', prefill: false, decode: SOCKET.length, reached: 'prefill' },
  { name: 'waits for decode', prefill: true, decode: 0, reached: 'decode' },
  { name: 'has a part of its response held', prefill: true, decode: 150, reached: 'decode' },
  { name: 'has a part of its response', prefill: true, decode: SOCKET.length - 40, reached: 'decode' },
  {
    name: 'has its response, and waits for prefill',
    ...{ prefill: false, decode: SOCKET.length, reached: 'decode', concurrent: true },
  },
])('a request that $name ends within the idle timeout', async ({ prefill, decode, reached, concurrent }) => {
  const plant = concurrent ? racing : of;
  isMerged(await served(plant));
  [prefillTalks, decodeSays] = [prefill, decode];
  const before = asked[reached];
  const started = Date.now();
  const waiting = plant.send({ body: REQUEST });
  await waitFor('It is on its way', () => asked[reached] > before || undefined);
  await trap(plant);
  const answer = await waiting;
  expect(Date.now() - started).toBeLessThan(IDLE_MS * 3);
  // The answer is an error, or a body that no client can take for a complete one.
  expect(answer.status === 200 && answer.complete).toBe(false);
  [prefillTalks, decodeSays] = [true, SOCKET.length];
  isMerged(await served(plant));
});
