// Writes segments into the body that the host holds: the first replaces it, the others are added.

import { appendBuffer, replaceBuffer } from '../abi/host';
import { BufferKind, Status } from '../abi/types';
import { Sink } from '../bytes/rope';


@final
export class BodySink extends Sink {
  /** Whether every segment was taken. */
  ok: bool = true;
  private started: bool = false;

  constructor(private kind: BufferKind) {
    super();
  }

  write(ptr: usize, len: usize): void {
    const status = this.started ? appendBuffer(this.kind, ptr, len) : replaceBuffer(this.kind, ptr, len);
    this.started = true;
    if (status != Status.Ok) this.ok = false;
  }

  /** After the last segment: without any, the body is emptied. */
  finish(): bool {
    if (!this.started) this.write(0, 0);
    return this.ok;
  }
}
