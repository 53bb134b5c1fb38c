// Short texts put together from parts: values for a member of a body or for a header.

import { Ascii, writeDecimal } from './ascii';
import { Block } from './block';

export const UUID_BYTES: usize = 36;
/** Most digits that `Text.decimal` writes. */
export const DECIMAL_BYTES: usize = 20;

/** A text that grows in a block, until `end` hands it to the caller. */
@final
export class Text {
  private block: Block;
  private at: usize;

  /**
   * A text of at most `room` bytes, where `decimal` needs room for all `DECIMAL_BYTES`. Adding more
   * is a bug, and traps.
   */
  constructor(room: usize) {
    const block = Block.alloc(room);
    this.block = block;
    this.at = block.ptr;
  }

  add(text: Ascii): Text {
    return this.bytes(text.ptr, text.len);
  }

  /** Adds a copy of the `len` bytes at `ptr`. */
  bytes(ptr: usize, len: usize): Text {
    assert(this.at + len <= this.block.end);
    memory.copy(this.at, ptr, len);
    this.at += len;
    return this;
  }

  decimal(value: u64): Text {
    assert(this.at + DECIMAL_BYTES <= this.block.end);
    const digits = writeDecimal(value, this.at);
    this.at += digits;
    return this;
  }

  /** Adds a UUID (RFC 9562, version 4) made of the 16 random bytes at `random`. */
  uuid(random: usize): Text {
    assert(this.at + UUID_BYTES <= this.block.end);
    for (let i: usize = 0; i < 16; i++) {
      if (i == 4 || i == 6 || i == 8 || i == 10) store<u8>(this.at++, 0x2d);
      let byte = load<u8>(random + i);
      if (i == 6) byte = (byte & 0x0f) | 0x40;
      else if (i == 8) byte = (byte & 0x3f) | 0x80;
      store<u8>(this.at++, hexDigit(byte >> 4));
      store<u8>(this.at++, hexDigit(byte & 15));
    }
    return this;
  }

  /** Adds two hexadecimal digits for each of the `len` bytes at `ptr`. */
  hex(ptr: usize, len: usize): Text {
    assert(this.at + 2 * len <= this.block.end);
    for (const end = ptr + len; ptr < end; ptr++) {
      store<u8>(this.at++, hexDigit(load<u8>(ptr) >> 4));
      store<u8>(this.at++, hexDigit(load<u8>(ptr) & 15));
    }
    return this;
  }

  /** The text; the caller owns it. */
  end(): Block {
    this.block.truncate(this.at - this.block.ptr);
    return this.block;
  }
}

function hexDigit(value: u8): u8 {
  return value < 10 ? 0x30 + value : 0x57 + value;
}
