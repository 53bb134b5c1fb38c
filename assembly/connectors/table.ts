// The connectors. Adding one touches this list and nothing else.

import { Connector } from './connector';
import { Mooncake } from './mooncake';
import { Nixl } from './nixl';
import { Sglang } from './sglang';
import { SharedStorage } from './shared_storage';

const CONNECTORS: Connector[] = [new Nixl(), new SharedStorage(), new Mooncake(), new Sglang()];

/** The names that a configuration may use, for its error message. */
export function connectorNames(): string {
  const names: string[] = [];
  for (let i = 0; i < CONNECTORS.length; i++) names.push(CONNECTORS[i].name);
  return names.join(', ');
}

/** The connector of a name; null when there is none. */
export function connectorNamed(name: string): Connector | null {
  for (let i = 0; i < CONNECTORS.length; i++) if (CONNECTORS[i].name == name) return CONNECTORS[i];
  return null;
}
