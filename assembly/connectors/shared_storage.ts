// Connectors over a store that both engines share (ExampleConnector, LMCache): nothing is handed over in the request.

import { Connector, zeroCacheHitThreshold } from './connector';
import { Rewrite } from './rewrite';


@final
export class SharedStorage extends Connector {
  get needsParams(): bool {
    return false;
  }

  prefill(rewrite: Rewrite): void {
    zeroCacheHitThreshold(rewrite);
  }

  decode(rewrite: Rewrite, params: usize, paramsLen: usize): void {
    zeroCacheHitThreshold(rewrite);
  }
}
