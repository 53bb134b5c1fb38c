// The prefill leg: the call that carries it.

import { httpCall, randomBytes } from '../abi/host';
import { PairReader, PairWriter } from '../abi/pairs';
import { Status } from '../abi/types';
import { Ascii, startsWithIgnoreCase } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { ENVOY_PREFIX, REQUEST_ID, isOneHop } from './names';

const UUID_BYTES: usize = 36;

/**
 * Starts the call with the headers of the client's request. All blocks are borrowed; `id` is the request's id where the
 * client's request had none, else null.
 */
export function startPrefill(
  cluster: Ascii,
  headers: Block,
  body: Block,
  id: Block | null,
  timeoutMs: u32,
): Status {
  const writer = new PairWriter();
  const reader = new PairReader(headers);
  while (reader.next()) {
    // Envoy's own headers choose endpoints, retries and timeouts: a client must not, for this leg.
    if (startsWithIgnoreCase(reader.namePtr, reader.nameLen, ENVOY_PREFIX)) continue;
    if (isOneHop(reader.namePtr, reader.nameLen)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  if (id !== null) writer.add(REQUEST_ID.ptr, REQUEST_ID.len, id.ptr, id.len);
  const pairs = writer.build();
  const status = httpCall(cluster, pairs, body, timeoutMs);
  pairs.free();
  return status;
}

/** A random UUID (RFC 9562, version 4) for a request that has no id, as text. */
export function newRequestId(): Block {
  const id = Block.alloc(UUID_BYTES);
  const random = Block.alloc(16);
  randomBytes(random.ptr, 16);
  store<u8>(random.ptr, (load<u8>(random.ptr, 6) & 0x0f) | 0x40, 6);
  store<u8>(random.ptr, (load<u8>(random.ptr, 8) & 0x3f) | 0x80, 8);
  let at = id.ptr;
  for (let i: usize = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) store<u8>(at++, 0x2d);
    const byte = load<u8>(random.ptr + i);
    store<u8>(at++, hexDigit(byte >> 4));
    store<u8>(at++, hexDigit(byte & 15));
  }
  random.free();
  return id;
}

function hexDigit(value: u8): u8 {
  return value < 10 ? 0x30 + value : 0x57 + value;
}
