// Edits of a request's members on its bytes: whatever no edit names leaves as the client sent it.

import { Block } from '../bytes/block';
import { Sink } from '../bytes/rope';
import { Member, RequestBody } from './request_body';
import { Field, ownerOf } from './schema';

const OPEN = memory.data<u8>([0x7b]);
const CLOSE = memory.data<u8>([0x7d]);
const COMMA = memory.data<u8>([0x2c]);

/** A field's new value, or its removal. */
@final
class Change {
  constructor(
    readonly field: Field,
    /**
     * Address of the new value, borrowed until the body is written; 0 when the member is removed.
     */
    readonly ptr: usize,
    readonly len: usize,
  ) {}
}

/**
 * The changes of one leg. The body is read once, and written as often as its bytes are given again.
 */
@final
export class Rewrite {
  private changes: Change[] = [];

  constructor(readonly body: RequestBody) {}

  /**
   * Gives a field a value; a field that is not there is added. The `len` bytes at `ptr` are
   * borrowed until the body is written.
   */
  set(field: Field, ptr: usize, len: usize): void {
    const change = new Change(field, ptr, len);
    for (let i = 0; i < this.changes.length; i++) {
      if (this.changes[i].field != field) continue;
      this.changes[i] = change;
      return;
    }
    this.changes.push(change);
  }

  /** Gives a field a value, if the client has sent the field. */
  setPresent(field: Field, ptr: usize, len: usize): void {
    if (this.body.last(field) !== null) this.set(field, ptr, len);
  }

  /** Removes all occurrences of a field. */
  remove(field: Field): void {
    if (this.body.occurrences(field) > 0) this.changes.push(new Change(field, 0, 0));
  }

  /** Whether there are no changes: the body leaves as it came. */
  get empty(): bool {
    return this.changes.length == 0;
  }

  /** Tells a sink the new body; the `len` bytes at `ptr` are the body that was read. */
  write(ptr: usize, len: usize, sink: Sink): void {
    const members = this.body.members;
    const removed = new StaticArray<i32>(this.body.schema.fieldCount);
    let at: u64 = 0;
    for (let i = 0; i < members.length; i++) {
      const member = members[i];
      // This is a member of an object that was replaced as a whole.
      if (member.valueStart < at) continue;
      // An object that is there twice has members of its own each time, so their count begins anew.
      removed[member.field] = 0;
      const change = this.changeOf(member.field);
      if (change !== null) {
        const counts = change.ptr != 0 && this.body.last(member.field) === member;
        if (counts) {
          at = copy(ptr, at, member.valueStart, sink);
          sink.write(change.ptr, change.len);
          at = member.valueEnd;
        } else {
          const owner = ownerOf(member.field, this.body.api);
          const first = member.index == removed[owner]++;
          at = copy(ptr, at, first ? member.keyStart : member.comma, sink);
          at = first ? member.commaEnd : member.valueEnd;
        }
      }
      // A `sampling_params` that gets members and is no object is replaced by an object.
      const needsObject = member.field == Field.SamplingParams && this.insertsInto(Field.SamplingParams);
      if (needsObject && !member.isObject) {
        at = copy(ptr, at, member.valueStart, sink);
        this.writeSamplingParams(sink);
        at = member.valueEnd;
      } else if (member.isObject && this.insertsInto(member.field)) {
        at = copy(ptr, at, member.valueStart + 1, sink);
        this.insert(member.field, this.keeps(member), sink);
      }
    }
    copy(ptr, at, len, sink);
  }

  /** The new body in a block that the caller owns. */
  toBlock(ptr: usize, len: usize): Block {
    const measure = new Measure();
    this.write(ptr, len, measure);
    const block = Block.alloc(measure.len);
    this.write(ptr, len, new Fill(block.ptr));
    return block;
  }

  /** Bytes of the new body. */
  lengthOf(ptr: usize, len: usize): usize {
    const measure = new Measure();
    this.write(ptr, len, measure);
    return measure.len;
  }

  /** The change of a field; null when it stays as it is. */
  private changeOf(field: Field): Change | null {
    for (let i = 0; i < this.changes.length; i++) if (this.changes[i].field == field) return this.changes[i];
    return null;
  }

  /** Whether a change adds a member that was not there to an object. */
  private isInsertion(change: Change, object: Field): bool {
    return (
      change.ptr != 0 &&
      ownerOf(change.field, this.body.api) == object &&
      this.body.last(change.field) === null
    );
  }

  /** Whether an object gets members that it did not have. */
  private insertsInto(object: Field): bool {
    for (let i = 0; i < this.changes.length; i++) if (this.isInsertion(this.changes[i], object)) return true;
    const missing = object == Field.Root && this.body.last(Field.SamplingParams) === null;
    return missing && this.insertsInto(Field.SamplingParams);
  }

  /**
   * Writes the members that an object gets, and a comma behind them when others follow (`more`).
   */
  private insert(object: Field, more: bool, sink: Sink): void {
    let separate = false;
    for (let i = 0; i < this.changes.length; i++) {
      const change = this.changes[i];
      if (!this.isInsertion(change, object)) continue;
      if (separate) sink.write(COMMA, 1);
      const key = this.body.schema.key(change.field, this.body.api);
      sink.write(key.ptr, key.len);
      sink.write(change.ptr, change.len);
      separate = true;
    }
    const missing = object == Field.Root && this.body.last(Field.SamplingParams) === null;
    if (missing && this.insertsInto(Field.SamplingParams)) {
      if (separate) sink.write(COMMA, 1);
      const key = this.body.schema.key(Field.SamplingParams, this.body.api);
      sink.write(key.ptr, key.len);
      this.writeSamplingParams(sink);
    }
    if (more) sink.write(COMMA, 1);
  }

  /** Writes a `sampling_params` that has only new members. */
  private writeSamplingParams(sink: Sink): void {
    sink.write(OPEN, 1);
    this.insert(Field.SamplingParams, false, sink);
    sink.write(CLOSE, 1);
  }

  /** Whether at least one member of an object stays. */
  private keeps(object: Member): bool {
    let gone = 0;
    const members = this.body.members;
    for (let i = 0; i < members.length; i++) {
      const member = members[i];
      if (member.field == Field.Root || ownerOf(member.field, this.body.api) != object.field) continue;
      const change = this.changeOf(member.field);
      if (change !== null && (change.ptr == 0 || this.body.last(member.field) !== member)) gone++;
    }
    return object.count > gone;
  }
}

/** Tells a sink the bytes of the body between two offsets; returns the second. */
function copy(ptr: usize, from: u64, to: u64, sink: Sink): u64 {
  if (to > from) sink.write(ptr + <usize>from, <usize>(to - from));
  return to;
}

/** Counts what is written to it. */
@final
class Measure extends Sink {
  len: usize = 0;

  write(ptr: usize, len: usize): void {
    this.len += len;
  }
}

/** Writes to memory that has room for all that comes. */
@final
class Fill extends Sink {
  constructor(private at: usize) {
    super();
  }

  write(ptr: usize, len: usize): void {
    memory.copy(this.at, ptr, len);
    this.at += len;
  }
}
