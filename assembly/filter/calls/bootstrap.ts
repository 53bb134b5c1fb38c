// Mooncake's bootstrap server, which stands beside prefill and names prefill's ranks and their
// engine ids. An engine that restarts has other ids, so each exchange asks for them. What a VM
// remembers of a server is which ranks there are, so that prefill's leg need not wait for the
// answer. It does so for a time, and no longer than until a leg of an exchange with that server
// fails.

import { bufferBytes, httpCall, now } from '../../abi/host';
import { PairWriter } from '../../abi/pairs';
import { BufferKind, Status } from '../../abi/types';
import { Ascii } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { DECIMAL_BYTES, Text } from '../../bytes/text';
import { Ranks } from '../../connectors/ranks';
import { Session } from '../../connectors/session';
import { ClusterType, Config } from '../config/config';
import { AUTHORITY, GET, MAX_RETRIES, METHOD, ORIGINAL_DST_HOST, PATH, QUERY, RETRY_ON } from '../names';
import { RETRIED } from './prefill_call';

/** An answer has some hundred bytes for each rank. A longer answer is refused. */
const MAX_ANSWER_BYTES: u32 = 64 << 10;
/** The server answers from memory, so it needs no more time than this. */
const TIMEOUT_MS: u32 = 10000;
/** How many servers are remembered at most. When one more comes, all are forgotten. */
const MAX_SERVERS: i32 = 4096;
/**
 * An engine that loads a model cannot restart in this time. So an answer that came after a leg was
 * sent, and that is not older, names the engine that has answered the leg.
 */
const FRESH_MS: u64 = 1000;

/** What a server has said, and when its answer came. */
@final
class Answer {
  private readonly cameAt: u64 = now();

  constructor(readonly ranks: Ranks) {}

  /** How many milliseconds ago the answer came. */
  get age(): u64 {
    return (now() - this.cameAt) / 1000000;
  }
}

/** The last answers of servers, by `cluster host:port`. */
const known = new Map<string, Answer>();

function clusterOf(config: Config): Ascii {
  const own = config.bootstrapCluster;
  return own === null ? config.cluster : own;
}

/** The bootstrap server for the legs of one exchange. */
@final
export class Bootstrap {
  private readonly key: string;

  /** The session has the server's address. */
  constructor(
    private readonly config: Config,
    session: Session,
  ) {
    const host = String.UTF8.decodeUnsafe(session.hostPtr, session.hostLen);
    const cluster = clusterOf(config);
    const name = String.UTF8.decodeUnsafe(cluster.ptr, cluster.len);
    this.key = name + ' ' + host + ':' + session.port.toString();
  }

  /** Whether the server must be asked for its ranks before the legs are sent. */
  get isDue(): bool {
    return !known.has(this.key) || known.get(this.key).age >= this.config.bootstrapTtlMs;
  }

  /**
   * Whether the server, which was asked while the leg was in flight, must be asked again for the
   * engine that has just answered the leg.
   */
  get mayBeStale(): bool {
    return !known.has(this.key) || known.get(this.key).age >= min(FRESH_MS, <u64>this.config.bootstrapTtlMs);
  }

  /** Chooses the rank for the session's legs. Returns false when nothing is known of the server. */
  chooseRank(session: Session): bool {
    if (!known.has(this.key)) return false;
    const ranks = known.get(this.key).ranks;
    const index = ranks.next();
    session.rank = ranks.ranks[index];
    session.engineId = ranks.ids[index];
    return true;
  }

  /**
   * Takes the engine of the session's rank from the server's last answer. Returns false when that
   * does not name the rank.
   */
  nameEngine(session: Session): bool {
    if (!known.has(this.key)) return false;
    const ranks = known.get(this.key).ranks;
    const index = ranks.ranks.indexOf(session.rank);
    if (index < 0) return false;
    session.engineId = ranks.ids[index];
    return true;
  }

  /** Starts the call that asks the server for its ranks. */
  ask(session: Session): Status {
    const config = this.config;
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

  /** Reads the server's answer, of `size` bytes. Returns false when it names no ranks. */
  takeRanks(size: u32): bool {
    if (size > MAX_ANSWER_BYTES) return false;
    const answer = bufferBytes(BufferKind.CallResponseBody, 0, size);
    if (answer === null) return false;
    const ranks = Ranks.read(answer.ptr, answer.len);
    answer.free();
    if (ranks === null) return false;
    if (known.has(this.key)) ranks.follow(known.get(this.key).ranks);
    else if (known.size >= MAX_SERVERS) known.clear();
    known.set(this.key, new Answer(ranks));
    return true;
  }

  /**
   * Forgets what the server has said. Called when a leg has failed, since another engine may run at
   * its address by now.
   */
  forget(): void {
    known.delete(this.key);
  }
}

const COLON = new Ascii(':');
