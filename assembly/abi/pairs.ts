// Lists of headers as the ABI encodes them (proxy-wasm-cpp-host, `pairs_util.cc`):
//   u32 count | count x (u32 name length, u32 value length) | count x (name, 0, value, 0)

import { Ascii } from '../bytes/ascii';
import { Block } from '../bytes/block';

/** Reads a list that the host has handed over, pair by pair. */
@final
export class PairReader {
  namePtr: usize = 0;
  nameLen: usize = 0;
  valuePtr: usize = 0;
  valueLen: usize = 0;

  readonly count: u32;
  private index: u32 = 0;
  private data: usize;

  /** `pairs` is borrowed for as long as the reader is used. */
  constructor(private pairs: Block) {
    this.count = pairs.len < 4 ? 0 : load<u32>(pairs.ptr);
    this.data = pairs.ptr + 4 + <usize>this.count * 8;
  }

  /** Moves to the next pair, which the fields then describe; false when there is none. */
  next(): bool {
    if (this.index == this.count) return false;
    const sizes = this.pairs.ptr + 4 + <usize>this.index * 8;
    this.index++;
    this.nameLen = load<u32>(sizes);
    this.valueLen = load<u32>(sizes, 4);
    this.namePtr = this.data;
    this.valuePtr = this.namePtr + this.nameLen + 1;
    this.data = this.valuePtr + this.valueLen + 1;
    return true;
  }

  /** Whether the pair has this name, which is in lower case, as Envoy writes all names. */
  is(name: Ascii): bool {
    return name.equals(this.namePtr, this.nameLen);
  }
}

/** A name and its value, borrowed. */
@final
class Pair {
  constructor(
    readonly namePtr: usize,
    readonly nameLen: usize,
    readonly valuePtr: usize,
    readonly valueLen: usize,
  ) {}
}

/** Builds a list for the host. Names and values are borrowed until `build`. */
@final
export class PairWriter {
  private pairs: Pair[] = [];

  add(namePtr: usize, nameLen: usize, valuePtr: usize, valueLen: usize): void {
    this.pairs.push(new Pair(namePtr, nameLen, valuePtr, valueLen));
  }

  addText(name: Ascii, value: Ascii): void {
    this.add(name.ptr, name.len, value.ptr, value.len);
  }

  /** The list in a block that the caller owns. */
  build(): Block {
    let size: usize = 4;
    for (let i = 0; i < this.pairs.length; i++) {
      size += 10 + this.pairs[i].nameLen + this.pairs[i].valueLen;
    }
    const block = Block.alloc(size);
    store<u32>(block.ptr, this.pairs.length);
    let sizes = block.ptr + 4;
    let data = sizes + <usize>this.pairs.length * 8;
    for (let i = 0; i < this.pairs.length; i++, sizes += 8) {
      const pair = this.pairs[i];
      store<u32>(sizes, <u32>pair.nameLen);
      store<u32>(sizes, <u32>pair.valueLen, 4);
      data = put(data, pair.namePtr, pair.nameLen);
      data = put(data, pair.valuePtr, pair.valueLen);
    }
    return block;
  }
}

/** Writes `len` bytes and a NUL at `at`; returns where they end. */
function put(at: usize, ptr: usize, len: usize): usize {
  memory.copy(at, ptr, len);
  store<u8>(at + len, 0);
  return at + len + 1;
}
