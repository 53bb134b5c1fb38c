// A body that is put together before any of it leaves.

import { Block, fits } from '../../bytes/block';
import { Outlet } from './body_sink';


@final
export class WholeBody extends Outlet {
  /** What has been written (owned); null when memory was short. */
  body: Block | null = null;
  private at: usize = 0;

  /** Starts a body of at most `most` bytes. */
  begin(most: u64): void {
    this.free();
    if (!fits(most)) return;
    const body = Block.alloc(<usize>most);
    this.body = body;
    this.at = body.ptr;
  }

  write(ptr: usize, len: usize): void {
    const body = this.body;
    if (body === null) return;
    assert(this.at + len <= body.end);
    memory.copy(this.at, ptr, len);
    this.at += len;
  }

  finish(): bool {
    const body = this.body;
    if (body === null) return false;
    body.truncate(this.at - body.ptr);
    return true;
  }

  free(): void {
    const body = this.body;
    if (body !== null) body.free();
    this.body = null;
  }
}
