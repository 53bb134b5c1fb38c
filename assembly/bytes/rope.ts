// Bytes on their way out: pieces of a body in order, and the edits that are applied as they leave. Nothing is copied:
// what leaves is told to a sink as borrowed segments of pieces and of replacements.
//
//   body     |........|..............|.......|      pieces, by offset in the body
//   edits         [at, at+remove) -> bytes           ascending, not overlapping
//            ^released            ^upTo

import { LARGE, roomyLength } from './arena';
import { Block, fits } from './block';

/** Largest block that small pieces are put into. */
const MAX_ROOM: u64 = 512 << 10;

/** Takes segments of what leaves, in order. `ptr` is borrowed for the call. */
export abstract class Sink {
  abstract write(ptr: usize, len: usize): void;
}

/** Reads bytes that lie in several pieces, in order. `ptr` is borrowed for the call. */
export abstract class Reader {
  abstract push(ptr: usize, len: usize): void;
}

/** Bytes of a replacement that need not all be in memory: they are fetched as they leave. */
export abstract class Source {
  /** The bytes that `fetch` found (borrowed until the next call). */
  ptr: usize = 0;

  /** Makes up to `len` bytes from `offset` on available at `ptr`; returns how many, 0 when they are lost. */
  abstract fetch(offset: u64, len: u64): u64;
}


@final
class Edit {
  constructor(
    public at: u64,
    public remove: u64,
    /** Address of the replacement, or offset in `source`. */
    public from: u64,
    public len: u64,
    /** Holds the replacement when the edit owns it. */
    public owned: Block | null,
    public source: Source | null,
  ) {}

  /** Tells `n` bytes of the replacement to a sink; false when they are lost. */
  write(n: u64, sink: Sink): bool {
    const source = this.source;
    this.len -= n;
    while (n > 0) {
      let got = n;
      if (source === null) sink.write(<usize>this.from, <usize>n);
      else {
        got = source.fetch(this.from, n);
        if (got == 0) return false;
        sink.write(source.ptr, <usize>got);
      }
      this.from += got;
      n -= got;
    }
    return true;
  }
}


@final
export class Rope {
  /** Offset of the first byte that has not left. */
  released: u64 = 0;
  /** Bytes of the pieces held. */
  held: u64 = 0;
  /** Bytes of a replacement could not be fetched: what left is not whole. */
  broken: bool = false;

  private pieces: Block[] = [];
  private offsets: u64[] = [];
  private edits: Edit[] = [];
  private firstEdit: i32 = 0;

  /**
   * Takes over a piece that starts at `offset` of the body; what lies between it and the piece before is removed. Small
   * pieces are put together, as each takes memory of its own. Returns where the bytes are.
   */
  append(piece: Block, offset: u64): usize {
    const len = piece.len;
    this.held += len;
    const i = this.pieces.length - 1;
    if (len < LARGE && i >= 0 && this.offsets[i] + this.pieces[i].len == offset) {
      let last = this.pieces[i];
      if (last.spare < len) {
        // The more is held, the larger are the blocks: few of them are the arena's to look after.
        const room = roomyLength(<usize>min<u64>(this.held >> 2, MAX_ROOM));
        if (!fits(room)) return this.push(piece, offset);
        const roomy = Block.room(room);
        if (last.len < LARGE && last.len + len <= room) {
          memory.copy(roomy.extend(last.len), last.ptr, last.len);
          last.free();
          this.pieces[i] = roomy;
        } else this.push(roomy, offset);
        last = roomy;
      }
      const at = last.extend(len);
      memory.copy(at, piece.ptr, len);
      piece.free();
      return at;
    }
    return this.push(piece, offset);
  }

  private push(piece: Block, offset: u64): usize {
    this.pieces.push(piece);
    this.offsets.push(offset);
    return piece.ptr;
  }

  /** Replaces `remove` bytes at `at` by borrowed bytes, which must stay until they have left. */
  replace(at: u64, remove: u64, ptr: usize, len: u64): void {
    this.edits.push(new Edit(at, remove, ptr, len, null, null));
  }

  /** Replaces `remove` bytes at `at` by the first `len` bytes of a block that the rope takes over. */
  replaceOwned(at: u64, remove: u64, block: Block, len: u64): void {
    this.edits.push(new Edit(at, remove, block.ptr, len, block, null));
  }

  /** Replaces `remove` bytes at `at` by `len` bytes of a source (borrowed) from `offset` on. */
  replaceFrom(at: u64, remove: u64, source: Source, offset: u64, len: u64): void {
    this.edits.push(new Edit(at, remove, offset, len, null, source));
  }

  /** Pieces held, in order: for a second look at a body of which nothing has left. */
  get pieceCount(): i32 {
    return this.pieces.length;
  }

  /** A piece, borrowed. */
  piece(i: i32): Block {
    return this.pieces[i];
  }

  /** Lets all bytes before `upTo` leave. */
  release(upTo: u64, sink: Sink): void {
    while (true) {
      const edit = this.firstEdit < this.edits.length ? this.edits[this.firstEdit] : null;
      if (edit === null || edit.at > upTo) break;
      this.copyOut(edit.at, sink);
      const gone = min(edit.remove, upTo - edit.at);
      if (edit.remove > 0 && gone == 0) return this.drop();
      // Of a replacement that outlasts `upTo` only the part for the bytes that are gone leaves now.
      const out = gone == edit.remove ? edit.len : min(edit.len, gone);
      if (!edit.write(out, sink)) this.broken = true;
      this.released += gone;
      edit.at += gone;
      edit.remove -= gone;
      if (edit.remove > 0) return this.drop();
      this.retire();
    }
    this.copyOut(upTo, sink);
    this.drop();
  }

  /**
   * Lets the next `n` bytes leave although they never came as a piece: they lie inside a replacement of the same length.
   * False when they do not.
   */
  releaseUnread(n: u64, sink: Sink): bool {
    if (this.firstEdit == this.edits.length) return false;
    const edit = this.edits[this.firstEdit];
    if (edit.at != this.released || edit.remove < n || edit.len < n) return false;
    if (!edit.write(n, sink)) this.broken = true;
    this.released += n;
    edit.at += n;
    edit.remove -= n;
    if (edit.remove == 0 && edit.len == 0) this.retire();
    return true;
  }

  /** Copies `len` bytes of the pieces held, from `offset` on, to `ptr`; false when they are not all there. */
  read(offset: u64, len: u64, ptr: usize): bool {
    return this.feed(new Copy(ptr), offset, len);
  }

  /** Has `len` bytes of the pieces held, from `offset` on, read where they are; false when they are not all there. */
  feed(reader: Reader, offset: u64, len: u64): bool {
    for (let i = 0; i < this.pieces.length && len > 0; i++) {
      const start = this.offsets[i];
      const piece = this.pieces[i];
      if (start + piece.len <= offset) continue;
      if (start > offset) return false;
      const skip = offset - start;
      const take = min(<u64>piece.len - skip, len);
      reader.push(piece.ptr + <usize>skip, <usize>take);
      offset += take;
      len -= take;
    }
    return len == 0;
  }

  /** Gives back the last `len` bytes that came: all of them are replaced. */
  discard(len: usize): void {
    const piece = this.pieces[this.pieces.length - 1];
    this.held -= len;
    if (piece.len > len) return piece.shrink(len);
    this.pieces.pop();
    this.offsets.pop();
    piece.free();
  }

  /** Forgets the edits from `offset` on, where nothing has left. */
  forgetEdits(offset: u64): void {
    while (this.edits.length > this.firstEdit && this.edits[this.edits.length - 1].at >= offset) {
      const owned = this.edits.pop().owned;
      if (owned !== null) owned.free();
    }
    if (this.firstEdit == this.edits.length) this.edits.length = this.firstEdit = 0;
  }

  /** Forgets all edits: the bytes leave as they came. */
  clearEdits(): void {
    while (this.firstEdit < this.edits.length) this.retire();
  }

  /** Gives back everything. */
  free(): void {
    this.clearEdits();
    for (let i = 0; i < this.pieces.length; i++) this.pieces[i].free();
    this.pieces.length = this.offsets.length = 0;
    this.held = 0;
  }

  private copyOut(to: u64, sink: Sink): void {
    for (let i = 0; i < this.pieces.length && this.released < to; i++) {
      const start = this.offsets[i];
      const piece = this.pieces[i];
      if (start + piece.len <= this.released) continue;
      const skip = this.released - start;
      const len = min(<u64>piece.len - skip, to - this.released);
      sink.write(piece.ptr + <usize>skip, <usize>len);
      this.released += len;
    }
  }

  private retire(): void {
    const owned = this.edits[this.firstEdit].owned;
    if (owned !== null) owned.free();
    if (++this.firstEdit == this.edits.length) {
      this.edits.length = 0;
      this.firstEdit = 0;
    }
  }

  /** Gives back the pieces that have left. */
  private drop(): void {
    let gone = 0;
    while (gone < this.pieces.length && this.offsets[gone] + this.pieces[gone].len <= this.released) {
      this.held -= this.pieces[gone].len;
      this.pieces[gone++].free();
    }
    if (gone == 0) return;
    this.pieces.splice(0, gone);
    this.offsets.splice(0, gone);
  }
}


@final
class Copy extends Reader {
  constructor(private to: usize) {
    super();
  }

  push(ptr: usize, len: usize): void {
    memory.copy(this.to, ptr, len);
    this.to += len;
  }
}
