// vLLM's NixlConnector, and any connector that returns `kv_transfer_params`: prefill first, its parameters to decode.

import { Ascii } from '../bytes/ascii';
import { Connector } from './connector';
import { Field } from './request_body';
import { Rewrite } from './rewrite';

const REMOTE_DECODE = new Ascii(
  '{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,' +
    '"remote_block_ids":null,"remote_host":null,"remote_port":null}',
);


@final
export class Nixl extends Connector {
  get needsParams(): bool {
    return true;
  }

  prefill(rewrite: Rewrite): void {
    rewrite.set(Field.KvTransferParams, REMOTE_DECODE.ptr, REMOTE_DECODE.len);
  }

  decode(rewrite: Rewrite, params: usize, paramsLen: usize): void {
    rewrite.set(Field.KvTransferParams, params, paramsLen);
  }
}
