// SGLang's disaggregation: both engines get the same request at once, and meet in a room of prefill's bootstrap server.
// A batch has a room for each prompt, in lists, as SGLang's own load balancer sends them.

import { Ascii } from '../bytes/ascii';
import { DECIMAL_BYTES, Text } from '../bytes/text';
import { Block } from '../bytes/block';
import { Connector } from './connector';
import { Dialect, Field } from './request_body';
import { Rewrite } from './rewrite';
import { Session } from './session';

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

/** Rooms are below 2^63, also those that an engine counts on from the first for the samples of a prompt. */
const ROOMS: u64 = (1 << 62) - 1;


@final
export class Sglang extends Connector {
  constructor() {
    super('sglang', Dialect.Sglang, [
      'bootstrap_host',
      'bootstrap_port',
      'bootstrap_room',
      // Further ways of choosing the other engine, which are not a client's to choose.
      'bootstrap_pair_key',
      'disagg_prefill_dp_rank',
    ]);
  }

  get concurrent(): bool {
    return true;
  }

  get needsBootstrap(): bool {
    return true;
  }

  prefill(rewrite: Rewrite, session: Session): void {
    this.meet(rewrite, session);
  }

  decode(rewrite: Rewrite, session: Session): void {
    this.meet(rewrite, session);
  }

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

/** A value of at most `each` bytes, or for a batch a list of values. */
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

function value(text: Text, session: Session, member: Own, prompt: i32): Text {
  if (member == Own.Host) return text.add(QUOTE).bytes(session.hostPtr, session.hostLen).add(QUOTE);
  if (member == Own.Port) return text.decimal(session.port);
  return text.decimal(roomOf(session, prompt));
}

/** A room for each prompt: far apart, and the same on both legs. */
function roomOf(session: Session, prompt: i32): u64 {
  const first = load<u64>(session.randomPtr);
  // An odd step visits every number once.
  const step = load<u64>(session.randomPtr, 8) | 1;
  return (first + <u64>prompt * step) & ROOMS;
}
