// Decode's body as far as it has come and has not left, and the length that its head tells.

import { bufferBytes } from '../../abi/host';
import { BufferKind } from '../../abi/types';
import { Block, fits } from '../../bytes/block';
import { Rope } from '../../bytes/rope';
import { DecodeResponse } from '../../routing/decode_response';


@final
export class DecodeBody {
  /** The bytes that are held (owned), and the edits to them. */
  readonly rope: Rope = new Rope();
  /** Bytes that have come. */
  received: u64 = 0;
  /** Whether the head that went out tells a length, and the growth by edits that is in it. */
  private lengthTold: bool = false;
  private growthTold: i64 = 0;

  /** `announced`: the length that decode's head tells; -1 when it tells none. */
  constructor(readonly announced: i64) {}

  /** A copy of the current piece's bytes from `at` on (owned by the caller); null when memory is short. */
  static piece(at: u32, len: u32): Block | null {
    return fits(len) ? bufferBytes(BufferKind.ResponseBody, at, len) : null;
  }

  /** Has `response` read a piece (taken over) that has come; returns where its bytes are now. */
  take(piece: Block): usize {
    // Short pieces are put together: the block may be gone, its bytes with others.
    return this.rope.append(piece, this.received);
  }

  /** The head that goes out tells a length, if decode's does, with so much growth in it. */
  promise(growth: i64): void {
    this.lengthTold = this.announced >= 0;
    this.growthTold = growth;
  }

  /** Whether edits make the body longer or shorter than its head has told. */
  breaksPromise(response: DecodeResponse): bool {
    return this.lengthTold && response.growth != this.growthTold;
  }

  /**
   * Whether too little of what the head announces is left for the document to end: behind the last byte
   * that goes out a client takes the body for whole, and of an array's padding nothing may go out.
   */
  isCut(response: DecodeResponse): bool {
    if (this.announced < 0 || response.complete) return false;
    return this.announced <= <i64>(this.received + response.paddingAhead);
  }

  /** Whether `size` more bytes are all that the head announces. */
  isLast(size: u32): bool {
    return <i64>this.received + size == this.announced;
  }

  /** Bytes still to come behind `unread` ones of the current piece; -1 when their number is not known. */
  left(unread: u32): i64 {
    return this.announced < 0 ? -1 : max(this.announced - <i64>this.received - unread, 0);
  }

  /** The same of a body whose head has left; -1 also where that told no length. */
  get leftAsTold(): i64 {
    return this.lengthTold ? this.left(0) : -1;
  }

  free(): void {
    this.rope.free();
  }
}
