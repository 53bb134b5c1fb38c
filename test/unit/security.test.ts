// SECURITY.md names a test in each of its lines: the files are there, and tests with these names.

import { existsSync, readFileSync, statSync } from 'node:fs';
import { expect, test } from 'vitest';

const text = readFileSync(new URL('../../SECURITY.md', import.meta.url), 'utf8');
const lines = text.split('\n').filter((line) => /^\| (?!Attempt|-)/.test(line));

test.each(lines)('%s', (line) => {
  const [, attempt, , tests] = line.split('|').map((cell) => cell.trim());
  expect(tests, attempt).not.toBe('');
  for (const each of tests!.split('; ')) {
    const [, path, names] = /^`([^`]+)`(?:: (.+))?$/.exec(each) ?? [];
    const file = new URL(`../${path}`, import.meta.url);
    expect(existsSync(file), each).toBe(true);
    if (names === undefined || statSync(file).isDirectory()) continue;
    const source = readFileSync(file, 'utf8');
    // Parties are put before the names in the file.
    for (const name of names.replace(/^(client|prefill|decode): /, '').split(', '))
      expect(source, each).toContain(name);
  }
});
