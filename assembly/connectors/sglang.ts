// SGLang's disaggregation: both engines get the same request at once, and meet in a room of
// prefill's bootstrap server. The request of a batch has a list with a room for each prompt, as
// SGLang's own load balancer sends it.

import { Ascii } from '../bytes/ascii';
import { DECIMAL_BYTES, Text } from '../bytes/text';
import { Block } from '../bytes/block';
import { Connector, Order } from './connector';
import { Rewrite } from './rewrite';
import { Dialect, Field } from './schema';
import { Session } from './session';

/** The connector's own members, in the order of its constructor. */
const enum Own {
  Host = Field.Own,
  Port,
  Room,
  PairKey,
  PrefillRank,
}

const OPEN = new Ascii('[');
const CLOSE = new Ascii(']');
const COMMA = new Ascii(',');
const QUOTE = new Ascii('"');

/**
 * Mask of rooms. It leaves them below 2^62, so that those which an engine counts up from a room,
 * for further samples of a prompt, stay below 2^63.
 */
const ROOMS: u64 = (1 << 62) - 1;


@final
export class Sglang extends Connector {
  constructor() {
    super('sglang', Dialect.Sglang, [
      'bootstrap_host',
      'bootstrap_port',
      'bootstrap_room',
      // Further members that name the other engine, which no client may choose.
      'bootstrap_pair_key',
      'disagg_prefill_dp_rank',
    ]);
  }

  get order(): Order {
    return Order.Concurrent;
  }

  get needsBootstrap(): bool {
    return true;
  }

  /**
   * Prefill's first token comes with the KV (sglang/srt/disaggregation/decode.py). In captured
   * exchanges of SGLang 0.5.23 decode's row of the last prompt token is zero, where the oracle's is
   * not.
   */
  get decodeForwardsLast(): bool {
    return false;
  }

  /**
   * SGLang's decode reports the count that prefill has sent it with the KV (0.5.23,
   * `_commit_transfer_to_req` in sglang/srt/disaggregation/decode.py).
   */
  get countsCached(): bool {
    return false;
  }

  prefill(rewrite: Rewrite, session: Session): void {
    this.meet(rewrite, session);
  }

  decode(rewrite: Rewrite, session: Session): void {
    this.meet(rewrite, session);
  }

  /** Names the server and the rooms: the same on both legs. */
  private meet(rewrite: Rewrite, session: Session): void {
    const batch = rewrite.body.batch;
    const host = session.keep(listOf(batch, session.hostLen + 2, session, Own.Host));
    const port = session.keep(listOf(batch, DECIMAL_BYTES, session, Own.Port));
    const room = session.keep(listOf(batch, DECIMAL_BYTES, session, Own.Room));
    rewrite.set(Own.Host, host.ptr, host.len);
    rewrite.set(Own.Port, port.ptr, port.len);
    rewrite.set(Own.Room, room.ptr, room.len);
  }
}

/**
 * The text of a member, of at most `each` bytes; for a batch (0 or more prompts), of a list of
 * them. The caller owns it.
 */
function listOf(batch: i32, each: usize, session: Session, member: Own): Block {
  if (batch < 0) return value(new Text(each), session, member, 0).end();
  const text = new Text(<usize>batch * (each + 1) + 2);
  text.add(OPEN);
  for (let i = 0; i < batch; i++) {
    if (i > 0) text.add(COMMA);
    value(text, session, member, i);
  }
  return text.add(CLOSE).end();
}

/** Adds the value of a member for one prompt. */
function value(text: Text, session: Session, member: Own, prompt: i32): Text {
  if (member == Own.Host) return text.add(QUOTE).bytes(session.hostPtr, session.hostLen).add(QUOTE);
  if (member == Own.Port) return text.decimal(session.port);
  return text.decimal(roomOf(session, prompt));
}

/** The room of a prompt: the same on both legs, and far from those of other prompts. */
function roomOf(session: Session, prompt: i32): u64 {
  const first = load<u64>(session.randomPtr);
  // Multiples of an odd step are all different, modulo a power of two.
  const step = load<u64>(session.randomPtr, 8) | 1;
  return (first + <u64>prompt * step) & ROOMS;
}
