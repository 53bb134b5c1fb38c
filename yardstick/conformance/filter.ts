// The router that is built in: Envoy with the filter of this checkout.

import { createPlant } from '../../test/envoy/plant.ts';
import type { ConnectorName } from './cases.ts';
import type { Router } from './run.ts';

export const CONNECTORS: readonly ConnectorName[] = ['nixl', 'shared_storage', 'mooncake', 'sglang'];

export const FILTER: Router = {
  name: 'routed-experts-filter',
  connectors: CONNECTORS,
  start(connector, { prefillPort, decodePort }) {
    const prefill = { mooncake: { bootstrap_host: '127.0.0.1' }, sglang: { bootstrap_host: '127.0.0.1' } };
    const config = {
      connector,
      ...(connector === 'shared_storage' ? { decode_rows: 'tail' } : {}),
      ...(connector in prefill ? { prefill: prefill[connector as 'mooncake'] } : {}),
    };
    return createPlant({ prefillPort, decodePort, bootstrapPort: prefillPort, config });
  },
};
