// Bytes of fixed texts, and text written into bytes. For wire data that is compared or sent, never for bodies.

/** UTF-8 bytes of a text that lives as long as the VM: header names, JSON keys. Built once, at start. */
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

/** Lower case of an ASCII letter, any other byte as it is. */
@inline
export function lower(c: u8): u8 {
  return c - 65 < 26 ? c | 0x20 : c;
}

/** Whether the bytes at `ptr` are `text` in any letter case; `text` is lower case. */
export function equalsIgnoreCase(ptr: usize, len: usize, text: Ascii): bool {
  if (len != text.len) return false;
  for (let i: usize = 0; i < len; i++) if (lower(load<u8>(ptr + i)) != load<u8>(text.ptr + i)) return false;
  return true;
}

/** Whether the bytes at `ptr` begin with `text` in any letter case; `text` is lower case. */
export function startsWithIgnoreCase(ptr: usize, len: usize, text: Ascii): bool {
  return len >= text.len && equalsIgnoreCase(ptr, text.len, text);
}

/** Decimal digits of `value` written at `ptr`, at most 20; returns how many. */
export function writeDecimal(value: u64, ptr: usize): usize {
  let digits: usize = 1;
  for (let rest = value / 10; rest != 0; rest /= 10) digits++;
  for (let at = ptr + digits; at > ptr; value /= 10) store<u8>(--at, <u8>(48 + (value % 10)));
  return digits;
}

/** Value of `len` decimal digits at `ptr`; -1 when there is anything else, nothing, or more than 18 digits. */
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

/** Value of a hexadecimal digit; -1 for any other byte. */
export function hexValue(c: u8): i32 {
  if (c - 0x30 <= 9) return c - 0x30;
  const letter = (c | 0x20) - 0x61;
  return letter < 6 ? letter + 10 : -1;
}
