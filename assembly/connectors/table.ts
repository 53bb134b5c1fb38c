// The names of the connectors.

import { Connector } from './connector';
import { Nixl } from './nixl';
import { SharedStorage } from './shared_storage';

/** Names that a configuration may use, for its error message. */
export const CONNECTOR_NAMES = 'nixl, shared_storage';

/** The connector of a name; null when there is none. */
export function connectorNamed(name: string): Connector | null {
  if (name == 'nixl') return new Nixl();
  return name == 'shared_storage' ? new SharedStorage() : null;
}
