// The answer of vLLM's `GET /v1/models`, which tells how many tokens, prompt and output together, a
// sequence of each model may have: `{"data": [{"id": "...", "max_model_len": 4096}]}`.

import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';

const enum Member {
  Card,
  Id,
  Limit,
}

/** Names from this one on are not kept. */
const MAX_NAMES: i32 = 64;
const MAX_NAME_BYTES: u64 = 512;

let paths: Paths | null = null;

function cardPaths(): Paths {
  let known = paths;
  if (known === null) {
    known = new Paths()
      .add('data.*', Member.Card)
      .add('data.*.id', Member.Id)
      .add('data.*.max_model_len', Member.Limit);
    paths = known;
  }
  return known;
}


@final
export class ModelLimits {
  /** The limit of the first model that has one. Adapters have none: their model's holds. */
  private first: i64 = 0;
  /** The models whose limit is another one, by their name as JSON has it. */
  private readonly names: StaticArray<u8>[] = [];
  private readonly limits: i64[] = [];

  /** Reads an answer (borrowed); null when it is not one, or has no limit. */
  static read(ptr: usize, len: usize): ModelLimits | null {
    const found = new ModelLimits();
    const scanner = Scanner.take(cardPaths());
    scanner.feed(ptr, len);
    let start: u64 = 0;
    let id: u64 = 0;
    let idEnd: u64 = 0;
    let limit: i64 = 0;
    let event = scanner.next();
    while (event != Event.Failed && event != Event.More) {
      if (event == Event.Value) {
        start = scanner.offset;
        if (scanner.id == Member.Card) idEnd = id = limit = 0;
      } else if (event == Event.ValueEnd) {
        if (scanner.id == Member.Card) found.add(ptr + <usize>id, idEnd - id, limit);
        else if (scanner.id == Member.Limit) limit = scanner.integer;
        else {
          id = start;
          idEnd = scanner.offset;
        }
      }
      event = scanner.next();
    }
    const good = scanner.done && found.first > 0;
    scanner.free();
    return good ? found : null;
  }

  /** The limit of a model, by its name with quotes (borrowed); `len` is 0 where none is named. */
  of(ptr: usize, len: usize): i64 {
    for (let i = 0; i < this.names.length; i++) {
      const name = this.names[i];
      if (<usize>name.length == len && memory.compare(changetype<usize>(name), ptr, len) == 0)
        return this.limits[i];
    }
    return this.first;
  }

  private add(ptr: usize, len: u64, limit: i64): void {
    if (limit <= 0) return;
    if (this.first == 0) this.first = limit;
    if (limit == this.first || this.names.length == MAX_NAMES || len > MAX_NAME_BYTES) return;
    const name = new StaticArray<u8>(<i32>len);
    memory.copy(changetype<usize>(name), ptr, <usize>len);
    this.names.push(name);
    this.limits.push(limit);
  }
}
