// Requests whose head is held and whose body has not begun to come. If the plugin's configuration
// lacks `allow_on_headers_stop_iteration`, Envoy calls no body callback while a head is held, and
// the client would wait for ever. The filter finds such requests here, and answers them.

import { enterStream } from '../../abi/dispatch';
import { headerPairs, integerProperty } from '../../abi/host';
import { PairReader } from '../../abi/pairs';
import { HeaderMapKind } from '../../abi/types';
import { Ascii } from '../../bytes/ascii';

/** Envoy's attribute for the bytes of a request that have come, those of its head included. */
const TOTAL_SIZE = new Ascii('request\0total_size');

/** An exchange that answers the client when Envoy withholds the body. */
export interface HeldHead {
  answerHeldHead(): void;
}

const held = new Map<u32, HeldHead>();

/** Called when the filter holds the head of a stream. */
export function holdHead(id: u32, exchange: HeldHead): void {
  held.set(id, exchange);
}

/** Called when the first body callback of a stream has come, or its exchange has ended. */
export function forgetHead(id: u32): void {
  held.delete(id);
}

/** Answers each request of whose body Envoy has bytes and the filter has none. */
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
