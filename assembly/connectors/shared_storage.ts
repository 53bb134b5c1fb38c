// Connectors over a store that both engines share (ExampleConnector, LMCache): nothing is handed over in the request.

import { Ascii } from '../bytes/ascii';
import { Text } from '../bytes/text';
import { Connector, zeroCacheHitThreshold } from './connector';
import { Dialect, Field } from './request_body';
import { Rewrite } from './rewrite';
import { RANDOM_BYTES, Session } from './session';

// A tag is part of every key under which LMCache looks for and stores chunks, and its value may have no `%` and no `@`
// (lmcache/utils.py, CacheEngineKey). What is stored under a tag of one request is never found again: it is not stored.
const TAG = new Ascii('{"lmcache.tag.routed_experts":"');
const NOT_SAVED = new Ascii('","lmcache.skip_save":true}');


@final
export class SharedStorage extends Connector {
  constructor() {
    super('shared_storage', Dialect.Vllm, []);
  }

  get sharesStore(): bool {
    return true;
  }

  prefill(rewrite: Rewrite, session: Session): void {
    zeroCacheHitThreshold(rewrite);
  }

  decode(rewrite: Rewrite, session: Session): void {
    zeroCacheHitThreshold(rewrite);
  }

  /** LMCache's multiprocess connector has the salt in its keys, the one inside vLLM these tags, ExampleConnector neither. */
  alone(rewrite: Rewrite, session: Session): void {
    const params = new Text(TAG.len + 2 * RANDOM_BYTES + NOT_SAVED.len);
    const value = session.keep(params.add(TAG).hex(session.randomPtr, RANDOM_BYTES).add(NOT_SAVED).end());
    rewrite.set(Field.KvTransferParams, value.ptr, value.len);
  }
}
