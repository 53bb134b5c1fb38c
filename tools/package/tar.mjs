// Writes a tar archive (POSIX ustar) that does not show when, where and by whom it was made.

const BLOCK = 512;

/** @param {{ name: string, data: Buffer }[]} files names of up to 100 ASCII characters */
export function tar(files) {
  const parts = files.flatMap(({ name, data }) => [
    header(name, data.length),
    data,
    Buffer.alloc((BLOCK - (data.length % BLOCK)) % BLOCK),
  ]);
  return Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)]);
}

/**
 * @param {string} name
 * @param {number} size
 */
function header(name, size) {
  const block = Buffer.alloc(BLOCK);
  block.write(name, 0, 100, 'latin1');
  number(block, 100, 8, 0o644);
  number(block, 108, 8, 0);
  number(block, 116, 8, 0);
  number(block, 124, 12, size);
  number(block, 136, 12, 0);
  block.write('0', 156);
  block.write('ustar\0' + '00', 257, 'latin1');
  // The checksum counts its own field as spaces.
  block.fill(' ', 148, 156);
  const sum = block.reduce((a, b) => a + b, 0);
  block.write(sum.toString(8).padStart(6, '0') + '\0 ', 148, 'latin1');
  return block;
}

/**
 * Writes an octal number followed by a zero byte.
 * @param {Buffer} block
 * @param {number} at
 * @param {number} width
 * @param {number} value
 */
const number = (block, at, width, value) =>
  block.write(value.toString(8).padStart(width - 1, '0') + '\0', at, 'latin1');
