// The rules of the house (house.ts) hold, and each of them finds the inputs that break it.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';
import {
  CLASS_LINES,
  FILE_LINES,
  FUNCTION_LINES,
  importCycles,
  PROSE_COLUMNS,
  reachedFrom,
  tooLong,
  wideProse,
  wrongHostImports,
  wrongImports,
  type Source,
} from './house.ts';

/** The files of a folder with these endings. Their paths begin with `prefix`. */
function filesOf(folder: string, endings: RegExp, prefix = `${folder}/`): Source[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .map((path) => path.replaceAll('\\', '/'))
    .filter((path) => endings.test(path))
    .sort()
    .map((path) => ({ path: prefix + path, text: readFileSync(join(ROOT, folder, path), 'utf8') }));
}

const sources = filesOf('assembly', /\.ts$/, '');

describe('in assembly/', () => {
  test('imports point one way', () => {
    expect(wrongImports(sources)).toEqual([]);
  });

  test('only abi/ declares what the host has', () => {
    expect(wrongHostImports(sources)).toEqual([]);
  });

  test('what Node tests reaches nothing of the host', () => {
    const reached = reachedFrom(sources, (path) => path.startsWith('testing/'));
    expect([...reached].filter((path) => path.startsWith('abi/'))).toEqual([]);
  });

  test('imports have no cycles', () => {
    expect(importCycles(sources)).toEqual([]);
  });

  test('files, classes and functions fit on a few screens, or say why they do not', () => {
    expect(tooLong(sources)).toEqual([]);
  });
});

describe('prose has at most 100 columns', () => {
  test.each(['assembly', 'test', 'tools', 'bench', 'yardstick'])('in the comments of %s/', (folder) => {
    expect(wideProse(filesOf(folder, /\.(ts|mjs)$/))).toEqual([]);
  });

  test('on the pages', () => {
    const pages = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md'].map((path) => ({
      path,
      text: readFileSync(join(ROOT, path), 'utf8'),
    }));
    expect(wideProse([...pages, ...filesOf('docs', /\.md$/)])).toEqual([]);
  });
});

describe('a rule finds', () => {
  const source = (path: string, ...lines: string[]): Source => ({ path, text: lines.join('\n') + '\n' });
  const statements = (count: number) => Array.from({ length: count }, (_, i) => `  let v${i} = ${i};`);

  test.each([
    ['json/a.ts', "import { b } from '../routing/b';", 'json must not import routing/b.ts'],
    [
      'bytes/a.ts',
      "import { b } from '../json/b';",
      'bytes must not import json/b.ts: it imports no other folder',
    ],
    ['routing/formats/a.ts', "import { b } from '../../filter/b';", 'routing must not import filter/b.ts'],
    ['connectors/a.ts', "export { b } from '../abi/host';", 'connectors must not import abi/host.ts'],
    ['filter/a.ts', "import { b } from '../testing/b';", 'filter must not import testing/b.ts'],
    ['testing/a.ts', "import '../abi/abort';", 'testing must not import abi/abort.ts'],
    ['index.ts', "import { b } from './testing/index';", 'index.ts must not import testing/index.ts'],
    ['filter/a.ts', "import { b } from '../../tools/b';", 'filter must not import ../tools/b.ts'],
    [
      'filter/a.ts',
      "import { b } from '@gcoredev/proxy-wasm-sdk-as/assembly';",
      'only abi/ imports @gcoredev/',
    ],
    ['abi/a.ts', "import { JSON } from 'json-as';", 'only filter/ imports json-as'],
    ['json/a.ts', "import { b } from 'left-pad';", 'no folder imports the package left-pad'],
    ['news/a.ts', 'let b = 1;', 'news is not in the table of imports'],
  ])('what %s must not import: %s', (path, line, problem) => {
    const found = wrongImports([source(path, '// A comment.', line)]);
    expect(found).toEqual([expect.stringContaining(problem)]);
    if (!problem.includes('table')) expect(found[0]).toContain(`${path}:2: `);
  });

  test('no fault in imports that point the right way', () => {
    expect(
      wrongImports([
        source('routing/formats/a.ts', "import { b } from '../b';", "import { c } from '../../json/c';"),
        source('filter/a.ts', "import { JSON } from 'json-as';", "import { b } from '../abi/host';"),
        source('abi/a.ts', "import { b } from '@gcoredev/proxy-wasm-sdk-as/assembly/imports';"),
        source('trap.ts', "import { b } from './index';"),
      ]),
    ).toEqual([]);
  });

  test('a host function that is declared outside of abi/', () => {
    const lines = ['// @ts-ignore: decorator', '@external("env", "f")', 'declare function f(): void;'];
    expect(wrongHostImports([source('json/a.ts', ...lines)])).toEqual([
      expect.stringMatching(/^json\/a\.ts:[23]: only abi\//),
    ]);
    expect(wrongHostImports([source('json/a.ts', 'declare function f(): void;')])).toHaveLength(1);
    expect(wrongHostImports([source('abi/a.ts', ...lines)])).toEqual([]);
  });

  test('what is reached over other files', () => {
    const files = [
      source('testing/a.ts', "import { b } from '../filter/b';"),
      source('filter/b.ts', "import { c } from '../abi/c';"),
      source('abi/c.ts'),
      source('json/d.ts'),
    ];
    expect([...reachedFrom(files, (path) => path === 'testing/a.ts')]).toEqual([
      'testing/a.ts',
      'filter/b.ts',
      'abi/c.ts',
    ]);
  });

  test('a cycle of imports, once', () => {
    const files = [
      source('json/a.ts', "import { b } from './b';"),
      source('json/b.ts', "import { c } from './c';", "import { d } from './d';"),
      source('json/c.ts', "import { a } from './a';"),
      source('json/d.ts'),
    ];
    expect(importCycles(files)).toEqual([
      expect.stringContaining('json/a.ts -> json/b.ts -> json/c.ts -> json/a.ts: a cycle'),
    ]);
  });

  test('a file that is too long, unless it says why', () => {
    const long = Array.from({ length: FILE_LINES + 1 }, () => 'let a = 1;');
    expect(tooLong([source('json/a.ts', ...long)])).toEqual([
      expect.stringContaining(`json/a.ts:1: json/a.ts has ${FILE_LINES + 1} lines; a file has at most`),
    ]);
    expect(tooLong([source('json/a.ts', ...long.slice(1))])).toEqual([]);
    const why = `// This file is longer than ${FILE_LINES} lines because it is one table.`;
    expect(tooLong([source('json/a.ts', why, ...long)])).toEqual([]);
  });

  test('a class that is too long, unless it says why', () => {
    const fields = Array.from({ length: CLASS_LINES - 1 }, (_, i) => `  f${i}: i32 = 0;`);
    const long = ['@final', 'class Long {', ...fields, '}'];
    expect(tooLong([source('json/a.ts', '', ...long)])).toEqual([
      expect.stringContaining(`json/a.ts:3: Long has ${CLASS_LINES + 1} lines; a class has at most`),
    ]);
    expect(tooLong([source('json/a.ts', '@final', 'class Long {', ...fields.slice(1), '}')])).toEqual([]);
    const why = [
      '/**',
      ' * Holds.',
      ` * This class is longer than ${CLASS_LINES}`,
      ' * lines because it holds.',
      ' */',
    ];
    expect(tooLong([source('json/a.ts', ...why, ...long)])).toEqual([]);
  });

  test.each([
    ['function long(): void {', 'long', ''],
    ['export function long(): void {', 'long', '// @ts-ignore: decorator\n@inline'],
    ['class A {\nlong(): void {', 'long', ''],
    ['class A {\nconstructor() {', 'constructor', ''],
    ['class A {\nget long(): i32 {', 'long', ''],
  ])('a function that is too long, unless it says why: %s', (head, name, decorator) => {
    const close = head.startsWith('class') ? ['}', '}'] : ['}'];
    const [before, signature] = head.includes('\n') ? head.split('\n') : ['', head];
    const text = (count: number, comment = '') =>
      source('json/a.ts', before!, comment, decorator, signature!, ...statements(count), ...close);
    expect(tooLong([text(FUNCTION_LINES - 2)])).toEqual([]);
    expect(tooLong([text(FUNCTION_LINES - 1)])).toEqual([
      expect.stringContaining(`: ${name} has ${FUNCTION_LINES + 1} lines; a function has at most`),
    ]);
    const why = `/** This function is longer than ${FUNCTION_LINES} lines because it is one loop. */`;
    expect(tooLong([text(FUNCTION_LINES - 1, why)])).toEqual([]);
    // A function that is no longer too long must not say that it is.
    expect(tooLong([text(FUNCTION_LINES - 2, why)])).toEqual([
      expect.stringContaining('is no longer true. Remove the sentence.'),
    ]);
  });

  /** Text of `columns` columns that can be broken. */
  const prose = (columns: number) => 'words '.repeat(columns).slice(0, columns - 1) + '.';
  const url = `https://example.org/${'a'.repeat(PROSE_COLUMNS)}`;

  test.each<[string, string, string[], number]>([
    ['a line comment', 'tools/a.mjs', [`// ${prose(98)}`], 1],
    ['the second line of a comment', 'test/a.ts', ['// Short.', `// ${prose(98)}`], 2],
    ['an indented comment', 'test/a.ts', ['function f() {', `    // ${prose(94)}`, '}'], 2],
    ['a docstring', 'test/a.ts', [`/** ${prose(94)} */`, 'let a = 1;'], 1],
    ['a line of a docstring', 'test/a.ts', ['/**', ' * Short.', ` * ${prose(98)}`, ' */', 'f();'], 3],
    ['a comment behind code', 'bench/a.ts', [`let a = 1; // ${prose(87)}`], 1],
    ['a comment before a bracket', 'bench/a.ts', ['f(1,', `  // ${prose(96)}`, ');'], 2],
    ['a comment at the end', 'bench/a.ts', ['f(1);', '', `// ${prose(98)}`], 3],
    [
      'a comment between AssemblyScript',
      'assembly/a.ts',
      ['@inline', `// ${prose(98)}`, 'function f(): void {}'],
      2,
    ],
    ['a URL with words around it', 'test/a.ts', [`// See ${url}`], 1],
    ['code with words around it', 'test/a.ts', [`// Calls \`${prose(92)}\``], 1],
    ['a paragraph', 'docs/a.md', ['# A', '', prose(101)], 3],
    ['an item of a list', 'docs/a.md', ['- Short.', `- ${prose(99)}`], 2],
    ['a nested item', 'docs/a.md', ['- Short.', '    - Short.', `    - ${prose(95)}`], 3],
    ['a paragraph behind code', 'docs/a.md', ['```', prose(101), '```', prose(101)], 4],
  ])('prose that is too wide: %s', (_name, path, lines, line) => {
    const width = [...lines[line - 1]!].length;
    expect(wideProse([source(path, ...lines)])).toEqual([
      `${path}:${line}: a line of prose has ${width} columns; it has at most ${PROSE_COLUMNS}. Break it.`,
    ]);
  });

  test.each<[string, string, string[]]>([
    ['100 columns', 'test/a.ts', [`// ${prose(97)}`]],
    ['100 columns in Markdown', 'docs/a.md', [prose(100)]],
    ['100 characters that have more bytes', 'docs/a.md', [`${'é '.repeat(49)}éé`]],
    ['code', 'test/a.ts', [`let a = '// ${prose(98)}';`, `let b = \``, `// ${prose(98)}`, '`;']],
    ['a regular expression', 'test/a.ts', [`let a = /\\/\\/ ${prose(98)}/;`]],
    ['a URL', 'test/a.ts', [`// ${url}`, '/**', ` * ${url}.`, ' */']],
    ['a piece of code', 'test/a.ts', [`// \`${prose(98)}\`.`]],
    ['a type', 'tools/a.mjs', [`const a = (${'b'.repeat(70)} /** @type {Map<string, number>} */ (c));`]],
    ['a URL in Markdown', 'docs/a.md', [url, '', `- <${url}>`, '', `[a]: ${url}`]],
    ['a table', 'docs/a.md', ['| a | b |', '| - | - |', `| ${prose(98)} | c |`]],
    ['code in Markdown', 'docs/a.md', ['    ' + prose(98), '', '```sh', prose(101), '```']],
  ])('no prose that is too wide in %s', (_name, path, lines) => {
    expect(wideProse([source(path, ...lines)])).toEqual([]);
  });
});
