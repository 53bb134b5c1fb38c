// The listeners of the mix: one Envoy with one VM per worker, and for each listener a configuration
// and its own engines.

import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { clusterOf } from '../envoy/config.ts';
import type { Engine } from '../scenario.ts';
import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';

export const NATIVE = '/generate';

export interface Deployment {
  name: string;
  /** The plugin's configuration. */
  config: Record<string, unknown>;
  /** Deployments with the same object share their engines. */
  engine: Partial<EngineOptions>;
  /** The paths that requests go to. */
  paths: string[];
  /** The largest number of choices of a request. */
  choices: number;
  /** Prefill's rows may find no room, so not every exchange without a fault can be merged. */
  lacksRoom?: boolean;
}

/**
 * Longer than the time after which an exchange counts as stalled, so that an unanswered prefill leg
 * is reported as stalled.
 */
const PREFILL_TIMEOUT_MS = 120_000;
/**
 * How long an engine waits for the other leg: longer than a busy machine takes to send it, and
 * shorter than the time after which an exchange counts as stalled.
 */
const PATIENCE_MS = 15_000;

const prefill = { timeout_ms: PREFILL_TIMEOUT_MS, retries: 1 };
const bootstrapped = { prefill: { ...prefill, bootstrap_host: '127.0.0.1' } };
/** A part of the merged responses is audited by the oracle. */
const audit = { cluster: clusterOf('audit', 'http1'), fraction: 0.3, max_calls: 2 };
const VLLM = [COMPLETIONS, CHAT, GENERATE];

/** The engines of both Mooncake deployments, which have one bootstrap server. */
const MOONCAKE: Partial<EngineOptions> = { connector: 'mooncake', patience: PATIENCE_MS };

export const DEPLOYMENTS: Deployment[] = [
  {
    name: 'nixl, heads pass',
    config: { headers: 'pass', on_prefill_failure: 'reject', prefill, audit },
    engine: { connector: 'nixl' },
    paths: VLLM,
    choices: 2,
  },
  {
    name: 'nixl, tail',
    config: { decode_rows: 'tail', hold_bytes: 0, prefill },
    engine: { connector: 'nixl', version: '0.32' },
    paths: VLLM,
    choices: 2,
  },
  {
    name: 'shared_storage, parked',
    config: { connector: 'shared_storage', max_capture_bytes: 3000, prefill },
    engine: { connector: 'shared_storage' },
    paths: VLLM,
    choices: 2,
  },
  {
    name: 'shared_storage, no parking',
    config: {
      ...{ connector: 'shared_storage', max_capture_bytes: 30_000, max_parked_bytes: 0 },
      ...{ on_prefill_failure: 'reject', on_unmergeable: 'forward', prefill },
    },
    engine: { connector: 'shared_storage', format: 'B' },
    paths: VLLM,
    choices: 1,
    lacksRoom: true,
  },
  {
    name: 'sglang',
    config: { connector: 'sglang', ...bootstrapped, audit },
    engine: { connector: 'sglang', format: 'D', patience: PATIENCE_MS },
    paths: [NATIVE, COMPLETIONS],
    choices: 1,
  },
  {
    name: 'mooncake, sequential',
    config: { connector: 'mooncake', ...bootstrapped },
    engine: MOONCAKE,
    paths: VLLM,
    choices: 1,
  },
  {
    name: 'mooncake, concurrent',
    config: { connector: 'mooncake', handshake: 'concurrent', ...bootstrapped, audit },
    engine: MOONCAKE,
    paths: VLLM,
    choices: 1,
  },
  {
    name: 'nixl, prompt apart',
    config: { on_unmergeable: 'null', prefill, audit },
    engine: { connector: 'nixl', format: 'C' },
    paths: [COMPLETIONS, CHAT],
    choices: 1,
  },
];

export interface Engines {
  prefill: Engine;
  decode: Engine;
  /** The engine that serves prefill and decode itself; its answer is the right one. */
  oracle: Engine;
}

export function enginesOf({ engine }: Deployment, fail: (leg: string) => EngineOptions['fail']): Engines {
  const fleet = new Fleet();
  const of = (role: 'prefill' | 'decode'): Engine =>
    createEngine({ ...engine, role, fleet, promptRows: 'stale', fail: fail(role) });
  return {
    prefill: of('prefill'),
    decode: of('decode'),
    oracle: createEngine({ ...engine, role: 'oracle' }),
  };
}
