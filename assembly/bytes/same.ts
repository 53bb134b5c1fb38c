// Where two runs of bytes differ.

/** How many of the `len` bytes at `one` are those at `two`, up to the first that is not. */
export function sameLength(one: usize, two: usize, len: usize): usize {
  let at: usize = 0;
  while (at + 16 <= len && !v128.any_true(v128.xor(v128.load(one + at), v128.load(two + at)))) at += 16;
  while (at < len && load<u8>(one + at) == load<u8>(two + at)) at++;
  return at;
}
