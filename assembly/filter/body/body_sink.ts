// Writes segments into the body that the host holds: the first replaces it, the others are added. Short ones are put
// together first: a call costs more than the copy.

import { appendBuffer, replaceBuffer } from '../../abi/host';
import { BufferKind, Status } from '../../abi/types';
import { Sink } from '../../bytes/rope';

const SHORT: usize = 2 << 10;
const STAGE_BYTES: usize = 16 << 10;
/** Short segments that wait for a call. One sink is used at a time. */
let stage: usize = 0;

/** Takes a body that leaves. */
export abstract class Outlet extends Sink {
  /** After the last segment: whether every one was taken. */
  abstract finish(): bool;
}


@final
export class BodySink extends Outlet {
  /** Whether every segment was taken. */
  ok: bool = true;
  private started: bool = false;
  private staged: usize = 0;

  constructor(private kind: BufferKind) {
    super();
    if (stage == 0) stage = heap.alloc(STAGE_BYTES);
  }

  write(ptr: usize, len: usize): void {
    if (len <= SHORT) {
      if (this.staged + len > STAGE_BYTES) this.flush();
      memory.copy(stage + this.staged, ptr, len);
      this.staged += len;
      return;
    }
    if (this.staged > 0) this.flush();
    this.send(ptr, len);
  }

  /** After the last segment: without any, the body is emptied. */
  finish(): bool {
    if (this.staged > 0 || !this.started) this.flush();
    return this.ok;
  }

  private flush(): void {
    this.send(stage, this.staged);
    this.staged = 0;
  }

  private send(ptr: usize, len: usize): void {
    // Once the stream is gone nothing more is sent to it.
    if (!this.ok) return;
    const status = this.started ? appendBuffer(this.kind, ptr, len) : replaceBuffer(this.kind, ptr, len);
    this.started = true;
    if (status != Status.Ok) this.ok = false;
  }
}
