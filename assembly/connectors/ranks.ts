// The answer of a Mooncake bootstrap server to `GET /query`, which tells the engine id of each
// rank: `{"<rank>": {"engine_id": "..."}}`.

import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';

/** Ranks from this one on are not used. */
const MAX_RANKS: i32 = 128;
const MAX_ID_BYTES: u64 = 256;

let paths: Paths | null = null;

/** The paths of engine ids, by rank; made once. */
function rankPaths(): Paths {
  let known = paths;
  if (known === null) {
    known = new Paths();
    for (let rank = 0; rank < MAX_RANKS; rank++) known.add(rank.toString() + '.engine_id', rank);
    paths = known;
  }
  return known;
}

/** Ranks of a prefill engine and, in the same order, their engine ids. */
@final
export class Ranks {
  readonly ranks: i32[] = [];
  readonly ids: StaticArray<u8>[] = [];
  /** Index of the rank whose turn comes next. */
  private turn: i32 = 0;

  /** Reads an answer, which is borrowed; null when it is not one, or names no rank that is used. */
  static read(ptr: usize, len: usize): Ranks | null {
    const found = new Ranks();
    const scanner = Scanner.take(rankPaths());
    scanner.feed(ptr, len);
    let good = true;
    let start: u64 = 0;
    let event = scanner.next();
    while (good && event != Event.Failed && event != Event.More) {
      if (event == Event.Value) {
        start = scanner.offset;
        good = scanner.first == 0x22;
      } else if (event == Event.ValueEnd) {
        good = found.add(scanner.id, ptr + <usize>start + 1, scanner.offset - start - 2);
      }
      event = scanner.next();
    }
    good = good && scanner.done && found.ranks.length > 0;
    scanner.free();
    return good ? found : null;
  }

  /** Lets the ranks take turns from where those of an earlier answer were. */
  follow(earlier: Ranks): void {
    this.turn = earlier.turn;
  }

  /** Index of the rank whose turn it is; the turn passes to the next one. */
  next(): i32 {
    const index = this.turn % this.ranks.length;
    this.turn = index + 1;
    return index;
  }

  /**
   * Adds a rank; one that is named twice has its last id. False when the `len` bytes at `ptr` are
   * no id that can go into a request as they are.
   */
  private add(rank: i32, ptr: usize, len: u64): bool {
    if (len == 0 || len > MAX_ID_BYTES || !isPlain(ptr, <usize>len)) return false;
    const id = new StaticArray<u8>(<i32>len);
    memory.copy(changetype<usize>(id), ptr, <usize>len);
    const known = this.ranks.indexOf(rank);
    if (known >= 0) this.ids[known] = id;
    else {
      this.ranks.push(rank);
      this.ids.push(id);
    }
    return true;
  }
}

/** Whether all bytes are printable ASCII that stands for itself in a string of JSON. */
function isPlain(ptr: usize, len: usize): bool {
  for (let i: usize = 0; i < len; i++) {
    const c = load<u8>(ptr + i);
    if (c < 0x20 || c > 0x7e || c == 0x22 || c == 0x5c) return false;
  }
  return true;
}
