// Requests whose head is held and of whose body nothing has come. Without `allow_on_headers_stop_iteration` in the plugin's
// configuration Envoy calls no body callback for a head that is held, and the client would wait for ever.

import { enterStream } from '../../abi/dispatch';
import { headerPairs, integerProperty } from '../../abi/host';
import { PairReader } from '../../abi/pairs';
import { HeaderMapKind } from '../../abi/types';
import { Ascii } from '../../bytes/ascii';

/** Bytes of the request so far, and of its head (Envoy's attributes). */
const TOTAL_SIZE = new Ascii('request\0total_size');

/** An exchange that can end because of it. */
export interface HeldHead {
  answerHeldHead(): void;
}

const held = new Map<u32, HeldHead>();

/** The stream's head is held from now on. */
export function holdHead(id: u32, exchange: HeldHead): void {
  held.set(id, exchange);
}

/** A body callback has come, or the exchange has ended. */
export function forgetHead(id: u32): void {
  held.delete(id);
}

/** Answers requests of whose body some has come to Envoy, and nothing to the filter. */
export function answerHeld(): void {
  if (held.size == 0) return;
  const ids = held.keys();
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i];
    if (!enterStream(id)) held.delete(id);
    else if (hasBody()) {
      const exchange = held.get(id);
      held.delete(id);
      exchange.answerHeldHead();
    }
  }
}

function hasBody(): bool {
  const total = integerProperty(TOTAL_SIZE);
  const pairs = headerPairs(HeaderMapKind.RequestHeaders);
  if (pairs === null) return false;
  let head: u64 = 0;
  const reader = new PairReader(pairs);
  while (reader.next()) head += reader.nameLen + reader.valueLen;
  pairs.free();
  return total > <i64>head;
}
