// The ranks that a bootstrap server answers with.

import { Ranks } from '../connectors/ranks';
import { output } from './shared';

let ranks: Ranks | null = null;

/** Reads an answer; false when it names no rank. */
export function ranksRead(ptr: usize, len: usize): bool {
  ranks = Ranks.read(ptr, len);
  return ranks !== null;
}

/** Returns the rank whose turn it is, and writes its engine id into the output. */
export function rankNext(): i32 {
  const index = ranks!.next();
  const id = ranks!.ids[index];
  output.write(changetype<usize>(id), id.length);
  return ranks!.ranks[index];
}
