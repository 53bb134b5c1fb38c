// Files of the repository that state the same fact must agree.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';

const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const project = JSON.parse(read('package.json')) as { license: string; engines: { node: string } };

test('the license is the one that package.json names', () => {
  expect(project.license).toBe('Apache-2.0');
  expect(read('LICENSE')).toMatch(/Apache License\s+Version 2\.0, January 2004/);
});

test('the oldest Node is the same everywhere', () => {
  const [, oldest] = /^>=(\d+)$/.exec(project.engines.node)!;
  expect(read('.nvmrc').trim()).toBe(oldest);
  expect(read('tools/setup.mjs')).toContain(`const NODE = ${oldest};`);
  const [, versions] = /^ +node: \[(.+)\]$/m.exec(read('.github/workflows/ci.yml'))!;
  expect(versions!.split(', ')[0]).toBe(oldest);
});

test('the report of the clients has been written with the versions that are pinned', () => {
  const report = read('bench/results/clients.md');
  const pinned = `${read('test/clients/requirements.txt')}${read('test/clients/requirements-openai.txt')}`;
  const [, rows] = /^\| package .+\n\| -.+\n((?:\|.+\n)+)/m.exec(report)!;
  const versions = [...rows!.matchAll(/^\| (.+?) +\| (\S+) +\|$/gm)].map(([, name, version]) => [
    name,
    version,
  ]);
  expect(versions.length).toBeGreaterThan(9);
  const { dependencies } = JSON.parse(read('test/clients/package.json')) as {
    dependencies: { openai: string };
  };
  const lines = [...pinned.split('\n'), `Node's openai==${dependencies.openai}`];
  for (const version of versions) expect(lines).toContain(version.join('=='));
});

test('only .ci/run says what CI does', () => {
  const commands = [...read('.github/workflows/ci.yml').matchAll(/^ +-? *run: *(.+)$/gm)];
  expect(commands.map(([, command]) => command)).toEqual(['.ci/run']);
});
