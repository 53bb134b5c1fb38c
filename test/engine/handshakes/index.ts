// The handshakes by name of their connector.

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

/** The engine's side of its deployment's handshake; an oracle has no other side. */
export function createHandshake(options: EngineOptions, fleet: Fleet): Handshake {
  if (options.role === 'oracle') return { begin: () => ALONE };
  return new HANDSHAKES[options.connector ?? 'nixl'](options, fleet);
}
