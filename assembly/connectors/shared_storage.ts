// Connectors over a store that both engines share (ExampleConnector, LMCache): nothing is handed over in the request.

import { Connector, zeroCacheHitThreshold } from './connector';
import { Dialect } from './request_body';
import { Rewrite } from './rewrite';
import { Session } from './session';


@final
export class SharedStorage extends Connector {
  constructor() {
    super('shared_storage', Dialect.Vllm, []);
  }

  prefill(rewrite: Rewrite, session: Session): void {
    zeroCacheHitThreshold(rewrite);
  }

  decode(rewrite: Rewrite, session: Session): void {
    zeroCacheHitThreshold(rewrite);
  }
}
