// The bytes of decode's body that have come and not left, and the length that its head announces.

import { bufferBytes } from '../../abi/host';
import { BufferKind } from '../../abi/types';
import { Block, fits } from '../../bytes/block';
import { Rope } from '../../bytes/rope';
import { DecodeResponse } from '../../routing/decode_response';


@final
export class DecodeBody {
  /** The bytes that are held (owned), and the edits to them. */
  readonly rope: Rope = new Rope();
  /** How many bytes of the body have come. */
  received: u64 = 0;
  /**
   * Whether the head that has left announces a length, and by how much edits make the body longer
   * in that length.
   */
  private lengthTold: bool = false;
  private growthTold: i64 = 0;

  /** `announced`: the length that decode's head announces; -1 when it announces none. */
  constructor(readonly announced: i64) {}

  /**
   * Copies `len` bytes of the current piece, from `at` on. The caller owns the copy; it is null
   * when memory is short.
   */
  static piece(at: u32, len: u32): Block | null {
    return fits(len) ? bufferBytes(BufferKind.ResponseBody, at, len) : null;
  }

  /** Takes over a piece that has come. Returns the address of its bytes. */
  take(piece: Block): usize {
    // The rope copies short pieces into larger blocks, so `piece` may be freed by now.
    return this.rope.append(piece, this.received);
  }

  /**
   * The head leaves. Where decode's head announces a length, the head that leaves announces that
   * length plus `growth`.
   */
  promise(growth: i64): void {
    this.lengthTold = this.announced >= 0;
    this.growthTold = growth;
  }

  /** Whether edits make the body longer or shorter than the head that has left announces. */
  breaksPromise(response: DecodeResponse): bool {
    return this.lengthTold && response.growth != this.growthTold;
  }

  /**
   * Whether the document cannot end within the length that the head announces. This must be found
   * before the last announced byte leaves, since with that byte a client takes the body for whole.
   * The padding of an array does not help: nothing may leave in its place.
   */
  isCut(response: DecodeResponse): bool {
    if (this.announced < 0 || response.complete) return false;
    return this.announced <= <i64>(this.received + response.paddingAhead);
  }

  /** Whether the body ends with the next `size` bytes, by the length that the head announces. */
  isLast(size: u32): bool {
    return <i64>this.received + size == this.announced;
  }

  /**
   * How many bytes of the body come after the next `unread` ones; -1 when its length is not known.
   */
  left(unread: u32): i64 {
    return this.announced < 0 ? -1 : max(this.announced - <i64>this.received - unread, 0);
  }

  /**
   * How many bytes are still to come after a head that has left; -1 when that head announced no
   * length.
   */
  get leftAsTold(): i64 {
    return this.lengthTold ? this.left(0) : -1;
  }

  free(): void {
    this.rope.free();
  }
}
