// The rules of the house, see house.ts, hold for the sources of assembly/; and each of them finds
// what breaks it.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ROOT } from '../../tools/paths.mjs';
import {
  CLASS_LINES,
  FILE_LINES,
  FUNCTION_LINES,
  importCycles,
  reachedFrom,
  tooLong,
  wrongHostImports,
  wrongImports,
  type Source,
} from './house.ts';

/** Files that are over a limit and are being split. A file leaves the list when that is done. */
const BEING_SPLIT: readonly string[] = [
  'routing/decode_response.ts',
  'routing/formats/npy_string.ts',
  'routing/npy.ts',
  'routing/prefill_reply.ts',
  'routing/reason.ts',
];

const FOLDER = join(ROOT, 'assembly');

const sources: Source[] = readdirSync(FOLDER, { recursive: true, encoding: 'utf8' })
  .map((path) => path.replaceAll('\\', '/'))
  .filter((path) => path.endsWith('.ts'))
  .sort()
  .map((path) => ({ path, text: readFileSync(join(FOLDER, path), 'utf8') }));

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
    expect(tooLong(sources.filter(({ path }) => !BEING_SPLIT.includes(path)))).toEqual([]);
  });

  test('what is being split is still there, and too long', () => {
    for (const path of BEING_SPLIT) {
      const source = sources.filter((one) => one.path === path);
      expect(tooLong(source), `${path}: done; remove it from BEING_SPLIT`).not.toEqual([]);
    }
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
    // The reason goes when the length does.
    expect(tooLong([text(FUNCTION_LINES - 2, why)])).toEqual([
      expect.stringContaining('is no longer true. Remove the sentence.'),
    ]);
  });
});
