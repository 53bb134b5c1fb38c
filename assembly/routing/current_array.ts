// The array of decode's response that is being read, in one of three formats; there is one at a
// time. It says which bytes of the body must stay until more has come, and which need not be read
// because prefill's rows replace them.

import { DecodeArray, Progress, Site } from './formats/format';
import { NpyDecode } from './formats/npy_string';
import { ObjectDecode } from './formats/raw_object';
import { RawDecode } from './formats/raw_string';
import { Name } from './named_array';
import { Place } from './places';
import { Format } from './prompt';
import { Reason } from './reason';
import { RowPlan } from './row_plan';


@final
export class CurrentArray {
  private array: DecodeArray | null = null;
  /** The readers of the formats, made when they are needed and used for all arrays. */
  private npy: NpyDecode | null = null;
  private object: ObjectDecode | null = null;
  private raw: RawDecode | null = null;
  /** Offset in the body at which the array begins. */
  private from: u64 = 0;

  /** Whether an array has begun that has not ended. */
  get open(): bool {
    return this.array !== null;
  }

  /** Offset in the body from which on nothing may leave yet; -1: everything may leave. */
  get heldFrom(): i64 {
    const array = this.array;
    return array === null ? -1 : array.heldFrom;
  }

  /** Why the array can't be merged. */
  get reason(): Reason {
    const array = this.array;
    return array === null ? Reason.None : array.reason;
  }

  /**
   * Begins an array at the scanner's cursor; `plan` (borrowed) is null where decode has served the
   * request alone, and where it is known `later`. True: `read` comes next. False: see `reason`.
   */
  begin(site: Site, name: Name, format: Format, plan: RowPlan | null, later: bool): bool {
    const array = this.arrayOf(format, name);
    array.reason = Reason.None;
    this.array = array;
    this.from = site.position;
    return array.begin(site, plan, later);
  }

  read(site: Site): Progress {
    const array = this.array;
    return array === null ? Progress.Done : array.read(site);
  }

  /** A member of an array that is an object begins. True: `read` comes next. */
  onMember(site: Site, place: Place): bool {
    const array = this.array;
    return array !== null && array.onValue(site, place);
  }

  onMemberEnd(site: Site, place: Place): void {
    const array = this.array;
    if (array !== null) array.onValueEnd(site, place);
  }

  /**
   * The value has ended. Returns why it can't be merged: because of itself, or because of how its
   * rows look beside those of the other arrays. The array then stays open; if it is held, call
   * `abandon`.
   */
  end(site: Site): Reason {
    const array = this.array;
    if (array === null) return Reason.None;
    const heldFrom = array.heldFrom;
    array.reason = array.end(site);
    if (array.reason == Reason.None) {
      array.reason = site.examination.judge();
      if (array.reason != Reason.None && heldFrom >= 0) {
        // The array itself was good, so its edits are in the rope already.
        site.rope.forgetEdits(<u64>heldFrom);
        site.choices--;
        array.heldFrom = heldFrom;
      }
    }
    if (array.reason == Reason.None) this.array = null;
    return array.reason;
  }

  /** Gives up an array that is held. Returns the offset in the body from which on it is held. */
  abandon(): u64 {
    const array = this.array;
    this.array = null;
    if (array === null) return 0;
    const from = <u64>array.heldFrom;
    array.heldFrom = -1;
    return from;
  }

  /** How many of the next bytes prefill's rows replace, whatever they are. */
  replacedAhead(site: Site): u64 {
    const array = this.array;
    return array === null ? 0 : array.replacedAhead(site);
  }

  /** Whether prefill's rows replace all bytes from `offset` on that have been read. */
  isReplaced(site: Site, offset: u64): bool {
    const array = this.array;
    if (array === null || array.heldFrom >= 0) return false;
    return this.from < offset && site.position <= array.replacedTo(site);
  }

  /** How many of the next bytes may leave with nothing in their place: padding. */
  get paddingAhead(): u64 {
    const array = this.array;
    return array === null ? 0 : array.paddingAhead;
  }

  free(): void {
    freeArray(this.npy);
    freeArray(this.object);
    freeArray(this.raw);
  }

  private arrayOf(format: Format, name: Name): DecodeArray {
    if (format == Format.Npy) {
      let npy = this.npy;
      if (npy === null) this.npy = npy = new NpyDecode();
      return npy;
    }
    if (format == Format.Object) {
      let object = this.object;
      if (object === null) this.object = object = new ObjectDecode();
      return object;
    }
    let raw = this.raw;
    if (raw === null) this.raw = raw = new RawDecode();
    raw.name = name;
    return raw;
  }
}

function freeArray(array: DecodeArray | null): void {
  if (array !== null) array.free();
}
