// Where the prompt rows of exchanges that wait for decode are kept: in the VM up to `max_capture_bytes`, past it parked
// in Envoy's shared data, which is host memory, up to `max_parked_bytes`.

import { getSharedData, randomBytes, setSharedData } from '../../abi/host';
import { Status } from '../../abi/types';
import { writeDecimal } from '../../bytes/ascii';
import { Block, fits } from '../../bytes/block';
import { Prompt } from '../../routing/prompt';
import { HeldChars, ParkedChars, Parking, RowChars } from '../../routing/rows';
import { Config } from '../config/config';

const OWNER_BYTES: usize = 8;
const KEY_BYTES: usize = OWNER_BYTES + 20;

/** Base64 of rows that this VM keeps, over all exchanges: in its memory, and parked. */
let captured: u64 = 0;
let parked: u64 = 0;

/** Pieces in Envoy's shared data. It can't forget a key, so keys are used again, and emptied when they are not. */
@final
class SharedData extends Parking {
  private freeSlots: i32[] = [];
  private slots: i32 = 0;
  /** Key of a slot: random bytes of this VM, as others share the data, then the slot's number. */
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

  /** Writes the key of a slot to `key`, which the first call makes. */
  private keyLen(slot: i32): usize {
    if (this.key == 0) {
      this.key = heap.alloc(KEY_BYTES);
      randomBytes(this.key, OWNER_BYTES);
    }
    return OWNER_BYTES + writeDecimal(slot, this.key + OWNER_BYTES);
  }
}

const parking = new SharedData();

/** The room that a configuration leaves. */
@final
export class Room {
  constructor(private config: Config) {}

  /** Whether `len` more bytes of rows may be kept in the VM. */
  takes(len: u64): bool {
    return captured + len <= this.config.maxCaptureBytes && fits(len);
  }

  /** Room for up to `len` characters in pieces of `pieceLen`: in the VM, else parked; null when there is none. */
  charsFor(len: u64, pieceLen: u64): RowChars | null {
    if (this.takes(len)) return new HeldChars(pieceLen);
    // A piece passes through the VM's memory.
    if (parked + len > this.config.maxParkedBytes || !fits(2 * pieceLen)) return null;
    return new ParkedChars(parking, pieceLen);
  }
}

/** Rows of one exchange, counted. */
@final
export class Kept {
  private held: u64 = 0;
  private parked: u64 = 0;

  /** Counts what prefill brought until `forget`. */
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
