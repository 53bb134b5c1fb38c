// vLLM's NixlConnector, and any other connector that returns `kv_transfer_params`: prefill runs
// first, and its reply's parameters go to decode.

import { Ascii } from '../bytes/ascii';
import { Connector } from './connector';
import { Rewrite } from './rewrite';
import { Dialect, Field } from './schema';
import { Session } from './session';

const REMOTE_DECODE = new Ascii(
  '{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,' +
    '"remote_block_ids":null,"remote_host":null,"remote_port":null}',
);


@final
export class Nixl extends Connector {
  constructor() {
    super('nixl', Dialect.Vllm, []);
  }

  get needsParams(): bool {
    return true;
  }

  prefill(rewrite: Rewrite, session: Session): void {
    rewrite.set(Field.KvTransferParams, REMOTE_DECODE.ptr, REMOTE_DECODE.len);
  }

  decode(rewrite: Rewrite, session: Session): void {
    rewrite.set(Field.KvTransferParams, session.paramsPtr, session.paramsLen);
  }
}
