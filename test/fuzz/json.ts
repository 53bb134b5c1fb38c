// Parses JSON with positions, for the reference. It keeps every member in order, including repeated
// keys. Texts are latin1, so that an index is an offset in the body. The grammar is that of
// Python's `json.loads`, which accepts NaN and Infinity besides RFC 8259.

export interface Node {
  kind: 'object' | 'array' | 'string' | 'number' | 'literal';
  start: number;
  end: number;
  members: [key: string, value: Node][];
  items: Node[];
}

/** Parses a document; null if the text is not one. */
export function parse(text: string): Node | null {
  const at = space(text, 0);
  const root = value(text, at, 0);
  return root && space(text, root.end) === text.length ? root : null;
}

const SPACE = /[ \t\n\r]*/y;
const STRING = /"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const LITERAL = /true|false|null|NaN|-?Infinity/y;
/** Documents with deeper nesting of containers are not read. */
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

/** The value of a key that counts: the last one. */
export const last = (node: Node | undefined, key: string): Node | undefined => all(node, key).at(-1);

export const isNull = (text: string, node: Node | undefined): boolean =>
  node === undefined || text.slice(node.start, node.end) === 'null';

/** A whole number without sign, fraction and exponent; -1 for anything else. */
export function integer(text: string, node: Node | undefined): number {
  if (node?.kind !== 'number') return -1;
  const digits = text.slice(node.start, node.end);
  return /^\d{1,18}$/.test(digits) ? Number(digits) : -1;
}

/** Like `JSON.parse`, but accepts Python's NaN and Infinity; undefined if the text is not JSON. */
export function read(text: string): unknown {
  const root = parse(text);
  return root === null ? undefined : build(text, root);
}

/** Builds the JavaScript value of a node. */
export function build(text: string, node: Node): unknown {
  if (node.kind === 'array') return node.items.map((item) => build(text, item));
  if (node.kind === 'object') {
    // All keys become own members, including `__proto__`. If a key is repeated, its last value
    // counts.
    return Object.fromEntries(node.members.map(([key, item]) => [key, build(text, item)]));
  }
  const own = text.slice(node.start, node.end);
  return /^(NaN|-?Infinity)$/.test(own) ? Number(own) : JSON.parse(own);
}
