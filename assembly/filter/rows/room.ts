// Where prompt rows are kept while their exchanges wait for decode. Up to `max_capture_bytes` they
// stay in the VM. What exceeds that is parked in Envoy's shared data, which is host memory, up to
// `max_parked_bytes`.

import { getSharedData, randomBytes, setSharedData } from '../../abi/host';
import { Status } from '../../abi/types';
import { writeDecimal } from '../../bytes/ascii';
import { Block, fits } from '../../bytes/block';
import { Prompt } from '../../routing/prompt';
import { HeldChars, ParkedChars, Parking, RowChars } from '../../routing/rows';
import { Config } from '../config/config';

const OWNER_BYTES: usize = 8;
const KEY_BYTES: usize = OWNER_BYTES + 20;

/**
 * How many bytes of rows and values this VM keeps for all its exchanges: in its memory, and parked.
 */
let captured: u64 = 0;
let parked: u64 = 0;

/**
 * Pieces of rows in Envoy's shared data. Shared data cannot forget a key. A slot that is dropped is
 * therefore emptied, and its key is used again.
 */
@final
class SharedData extends Parking {
  private freeSlots: i32[] = [];
  private slots: i32 = 0;
  /**
   * The key of a slot (owned). It begins with random bytes of this VM, since other VMs share the
   * data, and ends with the slot's number. 0 before the first use.
   */
  private key: usize = 0;

  store(ptr: usize, len: usize): i32 {
    const slot = this.freeSlots.length > 0 ? this.freeSlots.pop() : this.slots++;
    const keyLen = this.keyLen(slot);
    if (setSharedData(this.key, keyLen, ptr, len) == Status.Ok) return slot;
    this.freeSlots.push(slot);
    return -1;
  }

  load(slot: i32): Block | null {
    const keyLen = this.keyLen(slot);
    return getSharedData(this.key, keyLen);
  }

  drop(slot: i32, len: usize): void {
    const keyLen = this.keyLen(slot);
    setSharedData(this.key, keyLen, 0, 0);
    this.freeSlots.push(slot);
  }

  /** Writes the key of a slot to `key`, and returns its length. */
  private keyLen(slot: i32): usize {
    if (this.key == 0) {
      this.key = heap.alloc(KEY_BYTES);
      randomBytes(this.key, OWNER_BYTES);
    }
    return OWNER_BYTES + writeDecimal(slot, this.key + OWNER_BYTES);
  }
}

const parking = new SharedData();

/** Where what a reply brings is kept. */
export abstract class Room {
  /** Whether `len` more bytes may be kept in the VM. */
  abstract takes(len: u64): bool;

  /**
   * Returns where up to `len` characters, in pieces of `pieceLen`, are kept: in the VM, or
   * elsewhere. Returns null when there is no room.
   */
  charsFor(len: u64, pieceLen: u64): RowChars | null {
    return this.takes(len) ? new HeldChars(pieceLen) : null;
  }
}

/** The room that a configuration leaves for what prefill brings. */
@final
export class CaptureRoom extends Room {
  constructor(private config: Config) {
    super();
  }

  takes(len: u64): bool {
    return captured + len <= this.config.maxCaptureBytes && fits(len);
  }

  charsFor(len: u64, pieceLen: u64): RowChars | null {
    if (this.takes(len)) return new HeldChars(pieceLen);
    // A piece that is parked passes through the VM's memory.
    if (parked + len > this.config.maxParkedBytes || !fits(2 * pieceLen)) return null;
    return new ParkedChars(parking, pieceLen);
  }
}

/** What one exchange adds to the counts above. */
@final
export class Kept {
  private held: u64 = 0;
  private parked: u64 = 0;

  /** Counts what prefill brought, until `forget` is called. */
  count(prompt: Prompt): void {
    this.held = prompt.heldBytes;
    this.parked = prompt.parkedBytes;
    captured += this.held;
    parked += this.parked;
  }

  forget(): void {
    captured -= this.held;
    parked -= this.parked;
    this.held = this.parked = 0;
  }
}
