// Prefill's bootstrap server: where it is, and the ranks that it tells, which a VM remembers until a leg fails.

import { bufferBytes, httpCall } from '../abi/host';
import { PairWriter } from '../abi/pairs';
import { BufferKind, Status } from '../abi/types';
import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { DECIMAL_BYTES, Text } from '../bytes/text';
import { Ranks } from '../connectors/ranks';
import { Session } from '../connectors/session';
import { ClusterType, Config } from './config';
import { AUTHORITY, GET, MAX_RETRIES, METHOD, ORIGINAL_DST_HOST, PATH, QUERY, RETRY_ON } from './names';
import { RETRIED } from './prefill_call';

/** An answer is some hundred bytes a rank. */
const MAX_ANSWER_BYTES: u32 = 64 << 10;
/** The server only looks something up. */
const TIMEOUT_MS: u32 = 10000;
/** Servers that are remembered; past it all are forgotten. */
const MAX_SERVERS: i32 = 4096;

/** By `cluster host:port`. */
const known = new Map<string, Ranks>();

function keyOf(config: Config, session: Session): string {
  const host = String.UTF8.decodeUnsafe(session.hostPtr, session.hostLen);
  const cluster = clusterOf(config);
  return String.UTF8.decodeUnsafe(cluster.ptr, cluster.len) + ' ' + host + ':' + session.port.toString();
}

function clusterOf(config: Config): Ascii {
  const own = config.bootstrapCluster;
  return own === null ? config.cluster : own;
}

/** Chooses the rank of a leg; false when the server must be asked first. */
export function chooseRank(config: Config, session: Session): bool {
  const key = keyOf(config, session);
  if (!known.has(key)) return false;
  const ranks = known.get(key);
  const index = ranks.next();
  session.rank = ranks.ranks[index];
  session.engineId = ranks.ids[index];
  return true;
}

/** Asks the server for its ranks. */
export function startQuery(config: Config, session: Session): Status {
  const host = new Text(session.hostLen + 1 + DECIMAL_BYTES)
    .bytes(session.hostPtr, session.hostLen)
    .add(COLON)
    .decimal(session.port)
    .end();
  const writer = new PairWriter();
  writer.addText(METHOD, GET);
  writer.addText(PATH, QUERY);
  writer.add(AUTHORITY.ptr, AUTHORITY.len, host.ptr, host.len);
  if (config.endpointHeader !== null && config.clusterType == ClusterType.OriginalDst) {
    writer.add(ORIGINAL_DST_HOST.ptr, ORIGINAL_DST_HOST.len, host.ptr, host.len);
  }
  const retries = new Text(DECIMAL_BYTES).decimal(config.retries).end();
  if (config.retries > 0) {
    writer.addText(RETRY_ON, RETRIED);
    writer.add(MAX_RETRIES.ptr, MAX_RETRIES.len, retries.ptr, retries.len);
  }
  const pairs = writer.build();
  const nothing = Block.alloc(0);
  const status = httpCall(clusterOf(config), pairs, nothing, min(config.timeoutMs, TIMEOUT_MS));
  pairs.free();
  nothing.free();
  retries.free();
  host.free();
  return status;
}

/** Reads the answer of `size` bytes; false when it tells no ranks. */
export function takeRanks(config: Config, session: Session, size: u32): bool {
  if (size > MAX_ANSWER_BYTES) return false;
  const answer = bufferBytes(BufferKind.CallResponseBody, 0, size);
  if (answer === null) return false;
  const ranks = Ranks.read(answer.ptr, answer.len);
  answer.free();
  if (ranks === null) return false;
  if (known.size >= MAX_SERVERS) known.clear();
  known.set(keyOf(config, session), ranks);
  return true;
}

/** A leg has failed: the engine may be another one by now. */
export function forgetRanks(config: Config, session: Session): void {
  known.delete(keyOf(config, session));
}

const COLON = new Ascii(':');
