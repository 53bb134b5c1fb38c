// Every link of every Markdown file leads to a file of the repository, and every anchor to a
// heading.

import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { join, posix } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';
import { deadLinks, type Repository } from './links.ts';

/** Folders that do not belong to the repository, for when Git cannot be asked: see .gitignore. */
const NOT_OURS = new Set(['.git', 'node_modules', 'build', 'dist', '.envoy', '.istio', '.gateway']);

/**
 * The files that the repository has, or will have once they are committed. A link to a file that
 * Git ignores is dead for everybody else.
 */
function filesOf(root: string): string[] {
  const git = (...options: string[]) =>
    execFileSync('git', ['ls-files', '-z', ...options], {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).split('\0');
  try {
    const gone = new Set(git('--deleted'));
    const all = git('--cached', '--others', '--exclude-standard', '--deduplicate');
    return all.filter((path) => path !== '' && !gone.has(path));
  } catch {
    return walk(root, '');
  }
}

function walk(root: string, folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = posix.join(folder, entry.name);
    if (!entry.isDirectory()) return [path];
    return NOT_OURS.has(entry.name) ? [] : walk(root, path);
  });
}

function repositoryOf(paths: readonly string[], read: (path: string) => string): Repository {
  const files = new Set(paths);
  const folders = new Set(['.']);
  for (const path of paths) {
    for (let up = posix.dirname(path); !folders.has(up); up = posix.dirname(up)) folders.add(up);
  }
  return { has: (path) => files.has(path), isFolder: (path) => folders.has(path), read };
}

describe('in this repository', () => {
  const files = filesOf(ROOT);
  const pages = files.filter((path) => path.endsWith('.md'));

  test('there are documents', () => {
    expect(pages).toEqual(expect.arrayContaining(['README.md', 'CONTRIBUTING.md', 'docs/operations.md']));
  });

  test('no link is dead', () => {
    expect(
      deadLinks(
        pages,
        repositoryOf(files, (path) => readFileSync(join(ROOT, path), 'utf8')),
      ),
    ).toEqual([]);
  });
});

describe('a link', () => {
  const files: Record<string, string> = {
    'README.md': '# The filter\n\n## A `b` & *c*\n\n## Twice\n\n## Twice\n\n<a id="by-hand"></a>\n',
    'docs/more.md': '# Größe: 10 % [more](../README.md)\n\n```\n# no heading\n```\n',
    'docs/with space.md': '# x\n',
    'tools/run.mjs': 'one\ntwo\n',
    'tools/README.md': '# Tools\n',
  };
  const dead = (text: string, path = 'docs/page.md') => {
    const all = { ...files, [path]: text };
    return deadLinks(
      [path],
      repositoryOf(Object.keys(all), (name) => all[name as keyof typeof all]!),
    );
  };

  test.each([
    '[a](more.md)',
    '[a](../README.md#the-filter)',
    '[a](/README.md#a-b--c)',
    '[a](../README.md#twice) [b](../README.md#twice-1)',
    '[a](../README.md#by-hand)',
    '[a](more.md#gr%C3%B6%C3%9Fe-10--more)',
    '[a](<with space.md>) [b](with%20space.md)',
    '[a](../tools) [b](../tools/) [c](../tools#tools) [d](..)',
    '[a](../tools/run.mjs#L1-L2)',
    '[a][name]\n\n[name]: more.md',
    '<img src="../README.md">',
    '# Here\n\n[a](#here) [b](page.md#here)',
    '[a](https://example.com/none.md) [b](mailto:a@example.com) <https://example.com>',
    '`[a](none.md)` and\n\n```\n[a](none.md)\n```\n',
  ])('that leads somewhere is no fault: %j', (text) => {
    expect(dead(text)).toEqual([]);
  });

  test.each([
    ['[a](none.md)', 1, 'the repository has no docs/none.md'],
    ['[a](More.md)', 1, 'the repository has no docs/More.md'],
    ['text\n\nmore\nand [a](none.md)', 4, 'the repository has no docs/none.md'],
    ['- one\n- two\n  three [a](/none.md)', 3, 'the repository has no none.md'],
    ['| a | b |\n| - | - |\n| x | y |\n| x | [y](none.md) |', 4, 'no docs/none.md'],
    ['![picture](none.svg)', 1, 'the repository has no docs/none.svg'],
    ['a <img\n  src="none.svg">', 2, 'the repository has no docs/none.svg'],
    ['<p>\n<a href="none.md">x</a>\n</p>', 2, 'the repository has no docs/none.md'],
    ['\n[a][name]\n\n[name]: none.md', 2, 'the repository has no docs/none.md'],
    ['[a][name]', 1, 'no line of the file says where this leads'],
    ['[a](../../out.md)', 1, 'leads out of the repository'],
    ['# Here\n\n[a](#there)', 3, 'docs/page.md has no heading #there; it has #here'],
    ['[a](#there)', 1, 'docs/page.md has no heading #there; it has none'],
    ['[a](../README.md#twice-2)', 1, 'README.md has no heading #twice-2'],
    ['[a](../README.md#Twice)', 1, 'README.md has no heading #Twice'],
    ['[a](more.md#no-heading)', 1, 'docs/more.md has no heading #no-heading'],
    ['[a](../tools#none)', 1, 'tools/README.md has no heading #none'],
    ['[a](../tools/run.mjs#L3)', 1, 'the file has 2 lines'],
    ['[a](../tools/run.mjs#here)', 1, '#here is no line'],
  ])('that leads nowhere is one: %j', (text, line, fault) => {
    const found = dead(text);
    expect(found).toEqual([expect.stringContaining(fault)]);
    expect(found[0]).toContain(`docs/page.md:${line}: `);
  });
});
