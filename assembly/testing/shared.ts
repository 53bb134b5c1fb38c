// What the areas have in common: the output, and the exchange that a reply and the responses after
// it belong to. The index does not export this file, so nothing of it is an export of the module.

import { Block } from '../bytes/block';
import { Sink } from '../bytes/rope';
import { Examination, RowCheck } from '../routing/examination';
import { Prompt } from '../routing/prompt';

/** Collects what is written to it, until Node clears it. */
@final
class Collector extends Sink {
  ptr: usize = heap.alloc(64);
  len: usize = 0;
  private room: usize = 64;

  write(ptr: usize, len: usize): void {
    if (this.len + len > this.room) {
      this.room = 2 * (this.len + len);
      this.ptr = heap.realloc(this.ptr, this.room);
    }
    memory.copy(this.ptr + this.len, ptr, len);
    this.len += len;
  }
}

/** What one exchange keeps of prefill's reply for decode's response. */
@final
class Exchange {
  prompt: Prompt = new Prompt();
  /** The examination of the rows of both legs. */
  examination: Examination = new Examination(RowCheck.Off, null);
}

export const output = new Collector();
export const exchange = new Exchange();

/** A block, owned by the caller, with a copy of the `len` bytes at `ptr`. */
export function copied(ptr: usize, len: usize): Block {
  const block = Block.alloc(len);
  memory.copy(block.ptr, ptr, len);
  return block;
}
