// One case of the fuzzer: everything that is sent, and how it is cut into pieces. A case is plain
// data, so that a find can be kept as JSON.

import type { EngineReply, Header, Protocol } from '../scenario.ts';

export interface Reply {
  status: number;
  headers: Header[];
  /** The body in latin1, so that each index is a byte offset. */
  body: string;
  /** The lengths of the pieces. */
  pieces: number[];
  trailers?: Header[];
  fault?: NonNullable<EngineReply['fault']>;
}

export interface FuzzCase {
  seed: number;
  /** Nothing is wrong with the case, so it must end as `ends` says. */
  clean: boolean;
  /** Default: merged. */
  ends?: 'merged' | 'local' | 'absent' | 'rejected';
  config: Record<string, unknown>;
  path: string;
  headers: Header[];
  body: string;
  pieces: number[];
  trailers?: Header[];
  /** One reply per try of the prefill call; the last one answers all further tries. */
  prefill: (Reply | 'down')[];
  decode: Reply | 'down';
  /** The reply of prefill's bootstrap server. */
  bootstrap?: Reply;
  /**
   * The reply to an audit, if the responses of this case are audited, and whether it has prefill's
   * rows.
   */
  audit?: { reply: Reply; same: boolean };
  downstream: Protocol;
  upstream: Protocol;
  /**
   * When the client leaves: when this leg's engine is asked, or when the client has received this
   * many bytes of the body.
   */
  leave?: 'prefill' | 'decode' | number;
  /** What the case was made from, and what was done to it. */
  notes: string[];
}

export function cutAt(body: Buffer, pieces: number[]): Buffer[] {
  const out: Buffer[] = [];
  let at = 0;
  for (const length of pieces) {
    if (at >= body.length) break;
    out.push(body.subarray(at, (at += length)));
  }
  if (at < body.length) out.push(body.subarray(at));
  return out;
}
