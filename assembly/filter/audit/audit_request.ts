// The request by which an engine is asked once more for the prompt of an exchange.

import { httpCall, randomBytes } from '../../abi/host';
import { PairReader } from '../../abi/pairs';
import { Status } from '../../abi/types';
import { Ascii } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { Text } from '../../bytes/text';
import { auditLeg, prefillStart } from '../../connectors/connector';
import { RequestBody } from '../../connectors/request_body';
import { RANDOM_BYTES, Session } from '../../connectors/session';
import { legHeaders } from '../calls/prefill_call';
import { AuditSettings, Config } from '../config/config';
import { REQUEST_ID } from '../names';
import { ClientRequest } from '../request/client_request';

/**
 * Stands before the id of the exchange in that of the audit. An engine may still know the exchange
 * by its id.
 */
const PREFIX = new Ascii('audit-');
/** The longest id that a line of the log has. */
const LOGGED_ID_BYTES: usize = 128;


@final
export class AuditRequest {
  /** Takes over the blocks. */
  private constructor(
    private readonly pairs: Block,
    private readonly body: Block,
    /** The first token whose row is asked for. */
    readonly start: u64,
  ) {}

  /**
   * Makes the request of the client's, whose `body` (borrowed) is whole. The client's headers go
   * along, as they do to prefill: an engine may ask for a key.
   */
  static of(
    config: Config,
    settings: AuditSettings,
    client: ClientRequest,
    asked: RequestBody,
    body: Block,
  ): AuditRequest {
    const session = new Session();
    randomBytes(session.randomPtr, RANDOM_BYTES);
    const leg = auditLeg(asked, config.connector, session).toBlock(body.ptr, body.len);
    session.addHeader(REQUEST_ID, idFor(client));
    // Where prefill itself is asked, it is the engine that has served the exchange.
    const prefills = settings.cluster.equals(config.cluster.ptr, config.cluster.len);
    const endpoint = prefills ? client.endpoint : null;
    const pairs = legHeaders(config, client.head.pairs, endpoint, session).build();
    session.release();
    return new AuditRequest(pairs, leg, prefillStart(asked));
  }

  /** How many bytes the request has. */
  get bytes(): u64 {
    return this.pairs.len + this.body.len;
  }

  /** The id of the exchange, for the log. */
  get id(): string {
    const reader = new PairReader(this.pairs);
    while (reader.next()) {
      if (!reader.is(REQUEST_ID)) continue;
      const len = min(reader.valueLen - PREFIX.len, LOGGED_ID_BYTES);
      return String.UTF8.decodeUnsafe(reader.valuePtr + PREFIX.len, len);
    }
    return '';
  }

  /** Sends the request. With any status but `Ok` no answer will come. */
  send(settings: AuditSettings): Status {
    return httpCall(settings.cluster, this.pairs, this.body, settings.timeoutMs);
  }

  free(): void {
    this.pairs.free();
    this.body.free();
  }
}

/** The id of the request for an exchange. The caller owns it. */
function idFor(client: ClientRequest): Block {
  const made = client.requestId;
  if (made !== null) return prefixed(made.ptr, made.len);
  const reader = new PairReader(client.head.pairs);
  while (reader.next()) if (reader.is(REQUEST_ID)) return prefixed(reader.valuePtr, reader.valueLen);
  return prefixed(0, 0);
}

function prefixed(ptr: usize, len: usize): Block {
  return new Text(PREFIX.len + len).add(PREFIX).bytes(ptr, len).end();
}
