// Connectors over a store that both engines share (vLLM's ExampleConnector, LMCache): the request
// hands nothing over.

import { Ascii } from '../bytes/ascii';
import { Text } from '../bytes/text';
import { Connector, zeroCacheHitThreshold } from './connector';
import { Rewrite } from './rewrite';
import { Dialect, Field } from './schema';
import { RANDOM_BYTES, Session } from './session';

// A tag is part of every key under which LMCache stores chunks and looks for them; its value may
// have no `%` and no `@` (lmcache/utils.py, CacheEngineKey). What is stored under the tag of one
// request is never found again, so LMCache is told not to store it.
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

  /**
   * Sends a tag that no other request has. The keys of LMCache's multiprocess connector contain the
   * request's `cache_salt`, those of LMCache inside vLLM its tags, those of ExampleConnector
   * neither.
   */
  alone(rewrite: Rewrite, session: Session): void {
    const params = new Text(TAG.len + 2 * RANDOM_BYTES + NOT_SAVED.len);
    const value = session.keep(params.add(TAG).hex(session.randomPtr, RANDOM_BYTES).add(NOT_SAVED).end());
    rewrite.set(Field.KvTransferParams, value.ptr, value.len);
  }
}
