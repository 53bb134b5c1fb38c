// Starts the two hosts that suites run on: Envoy and the emulator.

import { setTimeout } from 'node:timers/promises';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { createEnvoyHost } from '../envoy/index.ts';
import { TELLS_TRANSPORT_FAILURES } from '../envoy/version.ts';
import { createEmulator } from '../host/index.ts';
import type { Limits } from './case.ts';
import type { Start, TestHost } from './run.ts';

export const onEnvoy: Start = async ({ bufferLimit, asyncResponseLimit, headsCanStop }) => {
  const host = await createEnvoyHost({
    ...(headsCanStop === undefined ? {} : { headsCanStop }),
    // The route's limit applies to HTTP/2, too, whose own default is a different one.
    requestBodyBufferLimit: bufferLimit ?? DEFAULT_BUFFER_LIMIT,
    ...(bufferLimit === undefined ? {} : { bufferLimit }),
    ...(asyncResponseLimit === undefined ? {} : { asyncResponseLimit }),
  });
  return Object.assign(host, {
    metric: async (name: string) => (await host.gauge(name)) ?? 0,
    pass: (ms: number) => setTimeout(ms),
    failures: async () => ((await host.vmAlive()) ? [] : [...host.traps(), 'a VM has failed']),
  });
};

export const onEmulator: Start = (limits) => emulator(limits, false);

/**
 * The end of a body comes together with its last bytes. Envoy may deliver it so, or apart from
 * them.
 */
export const onEmulatorMerging: Start = (limits) => emulator(limits, true);

const emulator = async (
  { bufferLimit, asyncResponseLimit, headsCanStop }: Limits,
  mergeEndOfStream: boolean,
): Promise<TestHost> => {
  const host = await createEmulator({
    ...(headsCanStop === undefined ? {} : { allowOnHeadersStopIteration: headsCanStop }),
    wasmPath: FILTER_WASM,
    mergeEndOfStream,
    bufferLimit: bufferLimit ?? DEFAULT_BUFFER_LIMIT,
    tellsTransportFailures: TELLS_TRANSPORT_FAILURES,
    ...(asyncResponseLimit === undefined ? {} : { asyncResponseLimit }),
  });
  return Object.assign(host, {
    metric: async (name: string) => host.counter(name) + host.gauge(name),
    pass: async (ms: number) => host.advance(ms),
    failures: async () => (host.failed === null ? [] : [host.failed]),
  });
};

/** A held request must have room for a prompt of 40,000 tokens. */
const DEFAULT_BUFFER_LIMIT = 16 * 1024 * 1024;
