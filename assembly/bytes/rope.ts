// A body on its way out: its pieces in order, and the edits that are applied as they leave. Nothing
// is copied then: a sink is told the segments of pieces and replacements, which it borrows.
//
//   body     |........|..............|.......|      pieces, by offset in the body
//   edits         [at, at+remove) -> bytes           ascending, not overlapping
//            ^released            ^upTo

import { LARGE, roomyLength } from './arena';
import { Block, fits } from './block';

/** Bytes of the largest block into which small pieces are put together. */
const MAX_ROOM: u64 = 512 << 10;

/** Takes what leaves, in order and segment by segment. `ptr` is borrowed for the call. */
export abstract class Sink {
  abstract write(ptr: usize, len: usize): void;
}

/** Reads bytes that lie in several pieces, in order. `ptr` is borrowed for the call. */
export abstract class Reader {
  abstract push(ptr: usize, len: usize): void;
}

/**
 * Bytes of a replacement that are fetched when they leave, and need not be in the VM's memory
 * before.
 */
export abstract class Source {
  /** Address of the bytes that `fetch` found; they are borrowed until its next call. */
  ptr: usize = 0;

  /**
   * Makes up to `len` bytes from `offset` on available at `ptr`. Returns how many, at least one; 0
   * when they are lost.
   */
  abstract fetch(offset: u64, len: u64): u64;
}

/** The `remove` bytes of the body from offset `at` on leave as `len` other bytes. */
@final
class Edit {
  constructor(
    public at: u64,
    public remove: u64,
    /** Address of the replacement; with a `source`, the offset in it. */
    public from: u64,
    public len: u64,
    /** The block that holds the replacement, when the edit owns it. */
    public owned: Block | null,
    public source: Source | null,
  ) {}

  /** Tells a sink the next `n` bytes of the replacement; false when the source has lost them. */
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

/**
 * The bytes of one body that have not left, and its edits. An edit is added behind those that have
 * its offset or a lower one; as a rule that is behind all of them. The rope owns its pieces; `free`
 * gives back what has not left.
 */
@final
export class Rope {
  /** Offset in the body of the first byte that has not left. */
  released: u64 = 0;
  /** Bytes of the pieces that are held. */
  held: u64 = 0;
  /** A source has lost bytes of a replacement, so what has left is not whole. */
  broken: bool = false;

  private pieces: Block[] = [];
  private offsets: u64[] = [];
  private edits: Edit[] = [];
  private firstEdit: i32 = 0;

  /**
   * Takes over a piece that starts at `offset` of the body; an edit must remove what lies between
   * it and the piece before. Small pieces are copied into larger blocks, since each block takes
   * memory beyond its bytes. Returns the address of the piece's bytes.
   */
  append(piece: Block, offset: u64): usize {
    const len = piece.len;
    this.held += len;
    const i = this.pieces.length - 1;
    if (len < LARGE && i >= 0 && this.offsets[i] + this.pieces[i].len == offset) {
      let last = this.pieces[i];
      if (last.spare < len) {
        // The more is held, the larger are the blocks, so that the arena has few runs to look
        // after.
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

  /**
   * Replaces `remove` bytes at `at` by the `len` bytes at `ptr`, which are borrowed until they have
   * left.
   */
  replace(at: u64, remove: u64, ptr: usize, len: u64): void {
    this.add(new Edit(at, remove, ptr, len, null, null));
  }

  /**
   * Replaces `remove` bytes at `at` by the first `len` bytes of a block that the rope takes over.
   */
  replaceOwned(at: u64, remove: u64, block: Block, len: u64): void {
    this.add(new Edit(at, remove, block.ptr, len, block, null));
  }

  /**
   * Replaces `remove` bytes at `at` by `len` bytes of a source (borrowed), from its `offset` on.
   */
  replaceFrom(at: u64, remove: u64, source: Source, offset: u64, len: u64): void {
    this.add(new Edit(at, remove, offset, len, null, source));
  }

  private add(edit: Edit): void {
    const edits = this.edits;
    edits.push(edit);
    let i = edits.length - 1;
    for (; i > this.firstEdit && edits[i - 1].at > edit.at; i--) edits[i] = edits[i - 1];
    edits[i] = edit;
  }

  /** How many pieces are held: for a second look at a body of which nothing has left. */
  get pieceCount(): i32 {
    return this.pieces.length;
  }

  /** Piece `i` of those that are held, borrowed. */
  piece(i: i32): Block {
    return this.pieces[i];
  }

  /** Lets all bytes of the body before offset `upTo` leave. */
  release(upTo: u64, sink: Sink): void {
    while (true) {
      const edit = this.firstEdit < this.edits.length ? this.edits[this.firstEdit] : null;
      if (edit === null || edit.at > upTo) break;
      this.copyOut(edit.at, sink);
      const gone = min(edit.remove, upTo - edit.at);
      if (edit.remove > 0 && gone == 0) return this.drop();
      // Of an edit that goes on behind `upTo`, as many bytes of the replacement leave now as bytes
      // are gone.
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
   * Lets the next `n` bytes of the body leave although they never came as a piece, because they lie
   * inside an edit whose replacement has at least as many bytes left. False when they do not, and
   * nothing has left.
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

  /**
   * Copies the `len` bytes of the body from `offset` on to `ptr`; false when they are not all held.
   */
  read(offset: u64, len: u64, ptr: usize): bool {
    return this.feed(new Copy(ptr), offset, len);
  }

  /**
   * Has a reader read the `len` bytes of the body from `offset` on, where they are; false when they
   * are not all held.
   */
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

  /** Gives back the last `len` bytes that were appended, all of which an edit replaces. */
  discard(len: usize): void {
    const piece = this.pieces[this.pieces.length - 1];
    this.held -= len;
    if (piece.len > len) return piece.shrink(len);
    this.pieces.pop();
    this.offsets.pop();
    piece.free();
  }

  /** Forgets the edits from `offset` on; nothing of them has left. */
  forgetEdits(offset: u64): void {
    while (this.edits.length > this.firstEdit && this.edits[this.edits.length - 1].at >= offset) {
      const owned = this.edits.pop().owned;
      if (owned !== null) owned.free();
    }
    if (this.firstEdit == this.edits.length) this.edits.length = this.firstEdit = 0;
  }

  /** Forgets all edits, so that the bytes leave as they came. */
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

  /** Tells a sink the bytes of pieces before offset `to`, without edits. */
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

  /** Forgets the first edit, and gives back what it owns. */
  private retire(): void {
    const owned = this.edits[this.firstEdit].owned;
    if (owned !== null) owned.free();
    if (++this.firstEdit == this.edits.length) {
      this.edits.length = 0;
      this.firstEdit = 0;
    }
  }

  /** Gives back the pieces that have left to their last byte. */
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
