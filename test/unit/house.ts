// The rules of the house. For the sources of assembly/: which folder may import which, who may
// call the host, and how long a file, a class and a function may be. For all comments and pages:
// how wide a line of prose may be. Each rule returns its violations as texts that say where they
// are and what to do.

import { posix } from 'node:path';
import MarkdownIt from 'markdown-it';
import ts from 'typescript';

export interface Source {
  /** With `/`. Below assembly/, as `json/scanner.ts`; for `wideProse` below the project's root. */
  path: string;
  text: string;
}

/**
 * The folders that the files of a folder may import, beside their own folder. Nothing imports a
 * folder that is in no list.
 */
export const ALLOWED: Record<string, readonly string[]> = {
  bytes: [],
  json: ['bytes'],
  routing: ['bytes', 'json'],
  connectors: ['bytes', 'json', 'routing'],
  abi: ['bytes'],
  filter: ['bytes', 'json', 'routing', 'connectors', 'abi'],
  testing: ['bytes', 'json', 'routing', 'connectors', 'filter'],
  // The entries: files that are in no folder.
  'index.ts': ['abi', 'filter'],
  'trap.ts': ['abi', 'bytes', 'index.ts'],
};

/** The packages that a folder may import, by the beginning of their names. */
const PACKAGES: Record<string, readonly string[]> = {
  abi: ['@gcoredev/proxy-wasm-sdk-as/'],
  filter: ['json-as'],
};

export const FILE_LINES = 500;
export const CLASS_LINES = 350;
export const FUNCTION_LINES = 50;
export const PROSE_COLUMNS = 100;

/** The folder of a path, or the file itself when it is in no folder. */
const folderOf = (path: string) => path.split('/')[0]!;

interface Import {
  line: number;
  /** What is imported: a path below assembly/, or the name of a package. */
  to: string;
  isPackage: boolean;
}

const parsed = new WeakMap<Source, ts.SourceFile>();

function parse(source: Source): ts.SourceFile {
  let tree = parsed.get(source);
  if (tree === undefined) {
    tree = ts.createSourceFile(source.path, source.text, ts.ScriptTarget.Latest, true);
    parsed.set(source, tree);
  }
  return tree;
}

const lineOf = (tree: ts.SourceFile, position: number) =>
  tree.getLineAndCharacterOfPosition(position).line + 1;

function importsOf(source: Source): Import[] {
  const tree = parse(source);
  const imports: Import[] = [];
  for (const statement of tree.statements) {
    if (!ts.isImportDeclaration(statement) && !ts.isExportDeclaration(statement)) continue;
    const name = statement.moduleSpecifier;
    if (name === undefined || !ts.isStringLiteral(name)) continue;
    const isPackage = !name.text.startsWith('.');
    const to = isPackage ? name.text : posix.join(posix.dirname(source.path), name.text) + '.ts';
    imports.push({ line: lineOf(tree, statement.getStart()), to, isPackage });
  }
  return imports;
}

/** Finds imports that point the wrong way, or out of assembly/. */
export function wrongImports(sources: readonly Source[]): string[] {
  const problems: string[] = [];
  for (const source of sources) {
    const folder = folderOf(source.path);
    const allowed = ALLOWED[folder];
    if (allowed === undefined) {
      problems.push(
        `${source.path}: ${folder} is not in the table of imports. Put the file into a folder that is, or add ${folder} to ` +
          `ALLOWED in test/unit/house.ts and to the layout in CONTRIBUTING.md.`,
      );
      continue;
    }
    for (const { line, to, isPackage } of importsOf(source)) {
      const at = `${source.path}:${line}`;
      if (isPackage) {
        if (PACKAGES[folder]?.some((name) => to.startsWith(name))) continue;
        const owner = Object.keys(PACKAGES).find((name) => PACKAGES[name]!.some((one) => to.startsWith(one)));
        problems.push(
          owner === undefined
            ? `${at}: no folder imports the package ${to}. See PACKAGES in test/unit/house.ts.`
            : `${at}: only ${owner}/ imports ${to}. Call a function of ${owner}/ instead, or pass the value in.`,
        );
        continue;
      }
      const target = folderOf(to);
      if (target === folder && folder !== source.path) continue;
      if (allowed.includes(target)) continue;
      const others = allowed.length > 0 ? `only ${allowed.join(', ')}` : 'no other folder';
      problems.push(
        `${at}: ${folder} must not import ${to}: it imports ${others}. Move what is needed to a folder that both may ` +
          `import, or hand it over from the caller.`,
      );
    }
  }
  return problems;
}

/** Finds declarations of host functions outside of abi/. */
export function wrongHostImports(sources: readonly Source[]): string[] {
  const problems: string[] = [];
  for (const source of sources) {
    if (folderOf(source.path) === 'abi') continue;
    const tree = parse(source);
    const visit = (node: ts.Node): void => {
      const ambient = ts.canHaveModifiers(node)
        ? ts.getModifiers(node)?.find(({ kind }) => kind === ts.SyntaxKind.DeclareKeyword)
        : undefined;
      const external = ts.isDecorator(node) && /^external\b/.test(node.expression.getText());
      if (ambient !== undefined || external) {
        const at = `${source.path}:${lineOf(tree, (ambient ?? node).getStart())}`;
        problems.push(
          `${at}: only abi/ declares what the host has. Declare it in abi/host.ts with a typed function around it.`,
        );
        return;
      }
      ts.forEachChild(node, visit);
    };
    visit(tree);
  }
  return problems;
}

/** Finds cycles of imports, and reports each of them once. */
export function importCycles(sources: readonly Source[]): string[] {
  const targets = new Map(
    sources.map((source) => [
      source.path,
      importsOf(source).flatMap(({ to, isPackage }) => (isPackage ? [] : [to])),
    ]),
  );
  const problems: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: string[]): void => {
    const start = trail.indexOf(path);
    if (start >= 0) {
      const cycle = trail.slice(start);
      problems.push(
        `${[...cycle, path].join(' -> ')}: a cycle of imports. Move what both ends need into a file of its own, which ` +
          `imports neither.`,
      );
      return;
    }
    if (done.has(path)) return;
    for (const target of targets.get(path) ?? []) visit(target, [...trail, path]);
    done.add(path);
  };
  for (const path of targets.keys()) visit(path, []);
  return problems;
}

/** The files that `from` reaches by imports, directly or over other files. */
export function reachedFrom(sources: readonly Source[], from: (path: string) => boolean): Set<string> {
  const byPath = new Map(sources.map((source) => [source.path, source]));
  const reached = new Set<string>();
  const open = [...byPath.keys()].filter(from);
  for (let path = open.pop(); path !== undefined; path = open.pop()) {
    const source = byPath.get(path);
    if (source === undefined || reached.has(path)) continue;
    reached.add(path);
    for (const { to } of importsOf(source)) open.push(to);
  }
  return reached;
}

/** Finds files, classes and functions that are too long and do not say why. */
export function tooLong(sources: readonly Source[]): string[] {
  return sources.flatMap((source) => [...tooLongFile(source), ...tooLongParts(source)]);
}

function tooLongFile(source: Source): string[] {
  const lines = source.text.replace(/\n$/, '').split('\n').length;
  const head = headOf(source.text, 0);
  return judgeLength(`${source.path}:1`, 'file', source.path, lines, FILE_LINES, head);
}

function tooLongParts(source: Source): string[] {
  const tree = parse(source);
  const problems: string[] = [];
  const visit = (node: ts.Node): void => {
    const isClass = ts.isClassDeclaration(node);
    if (isClass || (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined)) {
      const name = node.name ?? node;
      const first = lineOf(tree, name.getStart());
      const lines = lineOf(tree, node.getEnd()) - first + 1;
      const text = node.name?.getText() ?? (ts.isConstructorDeclaration(node) ? 'constructor' : 'a function');
      const head = headOf(source.text, node.getFullStart());
      const [kind, most] = isClass
        ? (['class', CLASS_LINES] as const)
        : (['function', FUNCTION_LINES] as const);
      problems.push(...judgeLength(`${source.path}:${first}`, kind, text, lines, most, head));
    }
    ts.forEachChild(node, visit);
  };
  visit(tree);
  return problems;
}

function judgeLength(
  at: string,
  kind: 'file' | 'class' | 'function',
  name: string,
  lines: number,
  most: number,
  head: string,
): string[] {
  const phrase = `This ${kind} is longer than ${most} lines because`;
  const says = head.includes(`${phrase} `);
  if (lines > most && !says) {
    return [
      `${at}: ${name} has ${lines} lines; a ${kind} has at most ${most}. Split it, or say in its head comment "${phrase} …".`,
    ];
  }
  if (lines <= most && says) {
    return [`${at}: ${name} has ${lines} lines, so "${phrase} …" is no longer true. Remove the sentence.`];
  }
  return [];
}

/** The comments before a position, as running text. */
function headOf(text: string, position: number): string {
  const ranges = ts.getLeadingCommentRanges(text, position) ?? [];
  return ranges
    .map(({ pos, end }) => text.slice(pos, end))
    .join('\n')
    .replace(/^[ \t]*(?:\/\*\*?|\*\/|\/\/|\*)/gm, '')
    .replace(/\s+/g, ' ');
}

/**
 * Finds lines of prose that are too wide: in the comments of TypeScript and .mjs files, and in
 * Markdown outside of tables and code blocks. A line that cannot be broken, because it holds a
 * single URL, path or piece of code, may be wider.
 */
export function wideProse(files: readonly Source[]): string[] {
  return files.flatMap((file) => {
    const lines = file.text.split('\n');
    const isWide = (line: number) => columnsOf(lines[line]!) > PROSE_COLUMNS;
    if (!lines.some((_, line) => isWide(line))) return [];
    const prose = file.path.endsWith('.md') ? proseOfPage(file.text) : proseOfComments(file);
    return [...prose]
      .filter(([line, text]) => isWide(line) && !isUnbreakable(text))
      .map(
        ([line]) =>
          `${file.path}:${line + 1}: a line of prose has ${columnsOf(lines[line]!)} columns; it has at most ` +
          `${PROSE_COLUMNS}. Break it.`,
      );
  });
}

const columnsOf = (line: string) => [...line].length;

/**
 * Whether a text, without the mark of a list or of a link's target, is a single word, code span or
 * JSDoc type.
 */
function isUnbreakable(text: string): boolean {
  const words = text.trim().replace(/^(?:[-*+>]|\d+[.)]|\[[^\]]+\]:) +/, '');
  return !/\s/.test(words.replace(/`[^`]+`|^@\w+ \{.*\}$/g, '`'));
}

/** The text of each line that has a comment, by the index of the line. */
function proseOfComments(source: Source): Map<number, string> {
  const tree = parse(source);
  const prose = new Map<number, string>();
  for (const { pos, end } of commentsOf(tree)) {
    const first = lineOf(tree, pos) - 1;
    const lines = source.text.slice(pos, end).split('\n');
    lines.forEach((text, i) => {
      const bare = text.replace(/^\s*(?:\/\*\*?|\/\/|\*(?!\/))/, '').replace(/\*\/$/, '');
      prose.set(first + i, bare);
    });
  }
  return prose;
}

/** All comments of a file, which stand between its tokens. */
function commentsOf(tree: ts.SourceFile): ts.CommentRange[] {
  const found = new Map<number, ts.CommentRange>();
  const visit = (node: ts.Node): void => {
    const children = node.getChildren(tree).filter((child) => !ts.isJSDoc(child));
    children.forEach(visit);
    if (children.length > 0) return;
    const { text } = tree;
    const before = ts.getLeadingCommentRanges(text, node.getFullStart()) ?? [];
    const behind = ts.getTrailingCommentRanges(text, node.getEnd()) ?? [];
    for (const range of [...before, ...behind]) found.set(range.pos, range);
  };
  visit(tree);
  return [...found.values()];
}

/** The lines of a page outside of tables and blocks of code, by their indices. */
function proseOfPage(text: string): Map<number, string> {
  const prose = new Map(text.split('\n').entries());
  for (const { type, map } of new MarkdownIt({ html: true }).parse(text, {})) {
    if (map === null || !['fence', 'code_block', 'table_open'].includes(type)) continue;
    for (let line = map[0]; line < map[1]; line++) prose.delete(line);
  }
  return prose;
}
