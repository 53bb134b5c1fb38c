// SECURITY.md names a test in each of its lines: the files are there.

import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';

const text = readFileSync(new URL('../../SECURITY.md', import.meta.url), 'utf8');
const lines = text.split('\n').filter((line) => /^\| (?!Attempt|-)/.test(line));

test.each(lines)('%s', (line) => {
  const cells = line.split('|').map((cell) => cell.trim());
  const files = [...cells.at(-2)!.matchAll(/`([^`]+)`/g)].map(([, path]) => path!);
  // What an engine is trusted with has none.
  if (files.length === 0) expect(line).toContain('**Can.**');
  for (const path of files) expect(existsSync(new URL(`../${path}`, import.meta.url)), path).toBe(true);
});
