// Fixed texts as bytes, comparisons of bytes with them, and numbers read from and written as
// digits. For wire data that is compared or sent, never for bodies.

/**
 * UTF-8 bytes of a text that lives as long as the VM, such as the name of a header or a key of
 * JSON. Their memory is never given back, so a text is made once.
 */
@final
export class Ascii {
  readonly ptr: usize;
  readonly len: usize;

  constructor(text: string) {
    const len = <usize>String.UTF8.byteLength(text);
    const ptr = heap.alloc(max<usize>(len, 1));
    String.UTF8.encodeUnsafe(changetype<usize>(text), text.length, ptr);
    this.ptr = ptr;
    this.len = len;
  }

  /** Whether the `len` bytes at `ptr` (borrowed) are this text. */
  equals(ptr: usize, len: usize): bool {
    return len == this.len && memory.compare(ptr, this.ptr, len) == 0;
  }
}

/** The lower case of an ASCII letter; any other byte as it is. */
@inline
export function lower(c: u8): u8 {
  return c - 65 < 26 ? c | 0x20 : c;
}

/** Whether the `len` bytes at `ptr` are `text`, in any letter case; `text` is in lower case. */
export function equalsIgnoreCase(ptr: usize, len: usize, text: Ascii): bool {
  if (len != text.len) return false;
  for (let i: usize = 0; i < len; i++) if (lower(load<u8>(ptr + i)) != load<u8>(text.ptr + i)) return false;
  return true;
}

/**
 * Whether the `len` bytes at `ptr` begin with `text`, in any letter case; `text` is in lower case.
 */
export function startsWithIgnoreCase(ptr: usize, len: usize, text: Ascii): bool {
  return len >= text.len && equalsIgnoreCase(ptr, text.len, text);
}

/** Writes the decimal digits of `value`, at most 20, at `ptr`; returns how many they are. */
export function writeDecimal(value: u64, ptr: usize): usize {
  let digits: usize = 1;
  for (let rest = value / 10; rest != 0; rest /= 10) digits++;
  for (let at = ptr + digits; at > ptr; value /= 10) store<u8>(--at, <u8>(48 + (value % 10)));
  return digits;
}

/**
 * The value of the `len` decimal digits at `ptr`; -1 when there are none, more than 18, or other
 * bytes.
 */
export function readDecimal(ptr: usize, len: usize): i64 {
  if (len == 0 || len > 18) return -1;
  let value: i64 = 0;
  for (let i: usize = 0; i < len; i++) {
    const digit = load<u8>(ptr + i) - 48;
    if (digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}

/** The value of a hexadecimal digit of either case; -1 for any other byte. */
export function hexValue(c: u8): i32 {
  if (c - 0x30 <= 9) return c - 0x30;
  const letter = (c | 0x20) - 0x61;
  return letter < 6 ? letter + 10 : -1;
}
