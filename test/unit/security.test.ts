// Each line of SECURITY.md names a test: the files exist, and have tests with these names.

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
    // In SECURITY.md, names of parties may precede the name that the file has.
    for (const name of names.replace(/^(client|prefill|decode): /, '').split(', '))
      expect(source, each).toContain(name);
  }
});
