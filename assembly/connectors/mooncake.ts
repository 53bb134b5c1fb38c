// vLLM's MooncakeConnector: both legs name one transfer. Decode's leg also names prefill's
// bootstrap server and engine, from which decode pulls the KV. Prefill keeps the KV for decode, so
// decode's leg may be sent at the same time as prefill's or when prefill has answered.

import { Ascii } from '../bytes/ascii';
import { DECIMAL_BYTES, Text, UUID_BYTES } from '../bytes/text';
import { Connector, Order } from './connector';
import { RequestBody, Unfit } from './request_body';
import { Rewrite } from './rewrite';
import { Dialect, Field } from './schema';
import { RANK, Session } from './session';

const ONE = new Ascii('1');

const PREFILL = new Ascii('{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-');
const DECODE = new Ascii('{"do_remote_prefill":true,"do_remote_decode":false,"transfer_id":"xfer-');
const ADDRESS = new Ascii('","remote_bootstrap_addr":"http://');
const COLON = new Ascii(':');
const ENGINE = new Ascii('","remote_engine_id":"');
const END = new Ascii('"}');


@final
export class Mooncake extends Connector {
  constructor() {
    super('mooncake', Dialect.Vllm, []);
  }

  get order(): Order {
    return Order.Either;
  }

  get namesTransfer(): bool {
    return true;
  }

  get needsBootstrap(): bool {
    return true;
  }

  get needsRanks(): bool {
    return true;
  }

  get needsLimit(): bool {
    return true;
  }

  judge(body: RequestBody): Unfit {
    // A transfer is pulled once, so a second sample would wait for it in vain.
    return body.integer(Field.N) > 1 || body.spelled(Field.N) ? Unfit.SeveralChoices : Unfit.No;
  }

  prefill(rewrite: Rewrite, session: Session): void {
    const params = new Text(PREFILL.len + UUID_BYTES + END.len);
    const value = session.keep(params.add(PREFILL).uuid(session.randomPtr).add(END).end());
    rewrite.set(Field.KvTransferParams, value.ptr, value.len);
    // A prefill whose first token ends the text offers no transfer (vLLM's mooncake_connector.py,
    // request_finished): with `min_tokens` of 1 it can't end so.
    rewrite.set(Field.MinTokens, ONE.ptr, ONE.len);
    session.addHeader(RANK, new Text(DECIMAL_BYTES).decimal(session.rank).end());
  }

  decode(rewrite: Rewrite, session: Session): void {
    const engine = session.engineId;
    const room = DECODE.len + UUID_BYTES + ADDRESS.len + session.hostLen + COLON.len + DECIMAL_BYTES;
    const params = new Text(room + ENGINE.len + engine.length + END.len)
      .add(DECODE)
      .uuid(session.randomPtr)
      .add(ADDRESS)
      .bytes(session.hostPtr, session.hostLen)
      .add(COLON)
      .decimal(session.port)
      .add(ENGINE)
      .bytes(changetype<usize>(engine), engine.length)
      .add(END);
    const value = session.keep(params.end());
    rewrite.set(Field.KvTransferParams, value.ptr, value.len);
  }
}
