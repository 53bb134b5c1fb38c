// Writes segments into the body that the host holds. The first segment replaces that body, and the
// others are appended. Short segments are gathered first, since a call to the host costs more than
// the copy.

import { appendBuffer, replaceBuffer } from '../../abi/host';
import { BufferKind, Status } from '../../abi/types';
import { Sink } from '../../bytes/rope';

const SHORT: usize = 2 << 10;
const STAGE_BYTES: usize = 16 << 10;
/**
 * The bytes in which short segments are gathered. All sinks share them, as only one is used at a
 * time.
 */
let stage: usize = 0;

/** Takes the segments of a body that leaves. */
export abstract class Outlet extends Sink {
  /** Called after the last segment. Returns whether every segment was taken. */
  abstract finish(): bool;
}


@final
export class BodySink extends Outlet {
  /** Whether the host has taken every segment so far. */
  ok: bool = true;
  /** How many bytes it has been given. */
  taken: u64 = 0;
  private started: bool = false;
  private staged: usize = 0;

  constructor(private kind: BufferKind) {
    super();
    if (stage == 0) stage = heap.alloc(STAGE_BYTES);
  }

  write(ptr: usize, len: usize): void {
    this.taken += len;
    if (len <= SHORT) {
      if (this.staged + len > STAGE_BYTES) this.flush();
      memory.copy(stage + this.staged, ptr, len);
      this.staged += len;
      return;
    }
    if (this.staged > 0) this.flush();
    this.send(ptr, len);
  }

  /** As in `Outlet`. Where there was no segment, the host's body is emptied. */
  finish(): bool {
    if (this.staged > 0 || !this.started) this.flush();
    return this.ok;
  }

  private flush(): void {
    this.send(stage, this.staged);
    this.staged = 0;
  }

  private send(ptr: usize, len: usize): void {
    // After a failure nothing more is sent: the stream is gone, or Envoy has answered for it.
    if (!this.ok) return;
    const status = this.started ? appendBuffer(this.kind, ptr, len) : replaceBuffer(this.kind, ptr, len);
    this.started = true;
    if (status != Status.Ok) this.ok = false;
  }
}
