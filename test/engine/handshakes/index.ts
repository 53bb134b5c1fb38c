// Creates the handshake of a connector by its name.

import type { Fleet } from '../fleet.ts';
import type { Connector, EngineOptions } from '../options.ts';
import { ALONE, type Handshake } from './handshake.ts';
import { Mooncake } from './mooncake.ts';
import { Nixl } from './nixl.ts';
import { SglangBootstrap } from './sglang.ts';
import { SharedStorage } from './shared_storage.ts';

const HANDSHAKES: Record<Connector, new (options: EngineOptions, fleet: Fleet) => Handshake> = {
  nixl: Nixl,
  shared_storage: SharedStorage,
  sglang: SglangBootstrap,
  mooncake: Mooncake,
};

/** The handshake of one engine. An oracle has no engine to exchange KV with, so it works alone. */
export function createHandshake(options: EngineOptions, fleet: Fleet): Handshake {
  if (options.role === 'oracle') return { begin: () => ALONE };
  return new HANDSHAKES[options.connector ?? 'nixl'](options, fleet);
}
