// One case of the fuzzer: everything that is sent, and how it is cut. Plain data, so that a find can be kept as JSON.

import type { EngineReply, Header, Protocol } from '../scenario.ts';

export interface Reply {
  status: number;
  headers: Header[];
  /** latin1: an index is a byte. */
  body: string;
  /** Lengths of the pieces. */
  pieces: number[];
  trailers?: Header[];
  fault?: NonNullable<EngineReply['fault']>;
}

export interface FuzzCase {
  seed: number;
  /** Nothing is wrong with it: it must end as `ends` says. */
  clean: boolean;
  /** Default: merged. */
  ends?: 'merged' | 'local' | 'absent';
  config: Record<string, unknown>;
  path: string;
  headers: Header[];
  body: string;
  pieces: number[];
  trailers?: Header[];
  /** One for each try; the last one answers all further ones. */
  prefill: (Reply | 'down')[];
  decode: Reply | 'down';
  /** Prefill's bootstrap server. */
  bootstrap?: Reply;
  downstream: Protocol;
  upstream: Protocol;
  /** The client leaves when an engine is asked, or when it has seen so many bytes of the body. */
  leave?: 'prefill' | 'decode' | number;
  /** What was done to it. */
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
