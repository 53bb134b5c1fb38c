// JSON with positions, for the reference: every member in order, also one whose key occurs twice. Text is latin1, so that
// an index is an offset in the body. Grammar: Python's `json.loads`, which takes NaN and Infinity besides RFC 8259.

export interface Node {
  kind: 'object' | 'array' | 'string' | 'number' | 'literal';
  start: number;
  end: number;
  members: [key: string, value: Node][];
  items: Node[];
}

/** The document, or null when the text is not one. */
export function parse(text: string): Node | null {
  const at = space(text, 0);
  const root = value(text, at, 0);
  return root && space(text, root.end) === text.length ? root : null;
}

const SPACE = /[ \t\n\r]*/y;
const STRING = /"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const LITERAL = /true|false|null|NaN|-?Infinity/y;
/** Containers in containers: nothing deeper is read. */
const MAX_DEPTH = 512;

function match(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : -1;
}

const space = (text: string, at: number) => match(SPACE, text, at);

function value(text: string, start: number, depth: number): Node | null {
  const node = (kind: Node['kind'], end: number): Node => ({ kind, start, end, members: [], items: [] });
  const c = text[start];
  if (c === '"') {
    const end = match(STRING, text, start);
    return end < 0 ? null : node('string', end);
  }
  if (c !== '{' && c !== '[') {
    const literal = match(LITERAL, text, start);
    if (literal >= 0) return node('literal', literal);
    const end = match(NUMBER, text, start);
    return end < 0 ? null : node('number', end);
  }
  if (depth === MAX_DEPTH) return null;
  const object = c === '{';
  const close = object ? '}' : ']';
  const out = node(object ? 'object' : 'array', 0);
  let at = space(text, start + 1);
  if (text[at] === close) return { ...out, end: at + 1 };
  for (;;) {
    let key = '';
    if (object) {
      const end = match(STRING, text, at);
      if (end < 0) return null;
      key = JSON.parse(text.slice(at, end)) as string;
      at = space(text, end);
      if (text[at] !== ':') return null;
      at = space(text, at + 1);
    }
    const child = value(text, at, depth + 1);
    if (!child) return null;
    if (object) out.members.push([key, child]);
    else out.items.push(child);
    at = space(text, child.end);
    if (text[at] === close) return { ...out, end: at + 1 };
    if (text[at] !== ',') return null;
    at = space(text, at + 1);
  }
}

/** All values of a key, in order. */
export const all = (node: Node | undefined, key: string): Node[] =>
  node?.kind === 'object' ? node.members.flatMap(([name, child]) => (name === key ? [child] : [])) : [];

/** The value that counts. */
export const last = (node: Node | undefined, key: string): Node | undefined => all(node, key).at(-1);

export const isNull = (text: string, node: Node | undefined): boolean =>
  node === undefined || text.slice(node.start, node.end) === 'null';

/** A whole number without sign, fraction and exponent; else -1. */
export function integer(text: string, node: Node | undefined): number {
  if (node?.kind !== 'number') return -1;
  const digits = text.slice(node.start, node.end);
  return /^\d{1,18}$/.test(digits) ? Number(digits) : -1;
}

/** As `JSON.parse`, with Python's NaN and Infinity; undefined when the text is not JSON. */
export function read(text: string): unknown {
  const root = parse(text);
  return root === null ? undefined : build(text, root);
}

/** The value of a node. */
export function build(text: string, node: Node): unknown {
  if (node.kind === 'array') return node.items.map((item) => build(text, item));
  if (node.kind === 'object') {
    // As own members, `__proto__` too; of a key that occurs twice the last counts.
    return Object.fromEntries(node.members.map(([key, item]) => [key, build(text, item)]));
  }
  const own = text.slice(node.start, node.end);
  return /^(NaN|-?Infinity)$/.test(own) ? Number(own) : JSON.parse(own);
}
