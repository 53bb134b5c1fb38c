// Format C, vLLM 0.21's, for the reference: the prompt rows are a value of their own, which
// prefill's value replaces.

import { base64Of, DIALECTS, DTYPES, hasSentinel, itemBytes, NUMPY_NAMES } from './dialects.ts';
import { misfit, rowsOf, type RowSet, type Rules } from './examined.ts';
import { all, integer, isNull, parse, type Node } from './json.ts';
import { choicesOf, countOf, everyPlace, type Place } from './places.ts';

const KEY = 'prompt_routed_experts';

/** Prefill's value of the prompt rows. */
export interface Split {
  text: string;
  inChoice: boolean;
  tokens: number;
  layers: number;
  topK: number;
  /** The rows of the value. */
  set: RowSet;
}

/**
 * Reads prefill's value of the prompt rows; null if it cannot be used. `start` is the first token
 * whose row prefill was asked for: an engine may send the rows from there on, or all of them.
 */
export function readSplit(
  text: string,
  root: Node,
  found: Place[],
  rules: Rules,
  start: number,
): Split | null {
  const [value, ...others] = found.filter(({ key }) => key === KEY);
  const tokens = countOf(text, root, 'prompt_tokens');
  if (!value || others.length > 0 || value.choice > 0 || tokens === null) return null;
  if (all(root, 'choices').length > 1) return null;
  if (choicesOf(root).some((choice) => all(choice, 'routed_experts').length > 1)) return null;
  // The other values must be generated rows.
  const generated = found.filter((place) => place !== value);
  if (!generated.every(({ key, node }) => key === 'routed_experts' && /[[{]/.test(text[node.start]!)))
    return null;
  const own = text.slice(value.node.start, value.node.end);
  const set = own.startsWith('[') ? prefillLists(text, value.node) : prefillObject(own);
  if (!set || set.rows.length < 1 || misfit(rules, set.layers, set.topK)) return null;
  if (![tokens, tokens - start].includes(set.rows.length)) return null;
  // An event is on one line, so the text must have no line breaks.
  return {
    text: own.replace(/[\r\n]/g, ' '),
    inChoice: value.choice === 0,
    tokens,
    layers: set.layers,
    topK: set.topK,
    set,
  };
}

/**
 * Reads rows that are nested lists of one shape; null if they are not. A value that is not a valid
 * id becomes -1.
 */
export function listedRows(text: string, { kind, items }: Node): RowSet | null {
  const rows = items.map((row) => row.items);
  const [layers, topK] = [rows[0]?.length ?? 0, rows[0]?.[0]?.items.length ?? 0];
  const lists = kind === 'array' && items.every((row) => row.kind === 'array');
  const uniform = rows.every(
    (row) =>
      row.length === layers && row.every(({ kind, items }) => kind === 'array' && items.length === topK),
  );
  const flat = rows.every((row) => row.every(({ items }) => items.every(({ kind }) => kind !== 'array')));
  if (!lists || !uniform || !flat || (rows.length > 0 && layers === 0)) return null;
  const id = (node: Node) => Math.min(integer(text, node), 0x7fffffff);
  const ids = rows.map((row) => row.flatMap(({ items }) => items.map(id)));
  return { rows: ids, layers, topK, every: true };
}

/** The same for prefill's lists, which may contain nothing but numbers. */
function prefillLists(text: string, node: Node): RowSet | null {
  const set = listedRows(text, node);
  const plain = /^[\d,[\]\s]*$/.test(text.slice(node.start, node.end));
  return plain && set && set.layers > 0 && set.topK > 0 ? set : null;
}

function prefillObject(text: string): RowSet | null {
  const root = parse(text);
  if (root?.kind !== 'object') return null;
  const [data, shape, dtype] = ['data', 'shape', 'dtype'].map((key) => all(root, key));
  if ([data, shape, dtype].some((each) => each!.length > 1)) return null;
  const of = (node: Node | undefined) => (node ? text.slice(node.start, node.end) : 'null');
  const bytes = base64Of(of(data![0]));
  const sizes = shape![0]?.items.map((item) => integer(text, item)) ?? [];
  const name = isNull(text, dtype![0]) ? '"uint8"' : of(dtype![0]);
  const code = DTYPES.find((each) => [`"${each}"`, `"${NUMPY_NAMES[each]}"`].includes(name));
  if (!bytes || !code || sizes.length !== 3 || sizes.some((size) => size < 1)) return null;
  const [rows, layers, topK] = sizes as [number, number, number];
  const width = layers * topK * itemBytes(code);
  if (rows * width !== bytes.length || (code.startsWith('<i') && hasSentinel(bytes, width))) return null;
  return { rows: rowsOf(bytes, code, width), layers, topK };
}

/** Reads rows in lists or in an object; null if they have another form or are damaged. */
export function readRows(text: string, node: Node): RowSet | null {
  if (node.kind === 'array') return listedRows(text, node);
  const value = node.kind === 'object' ? OBJECT.read(text.slice(node.start, node.end)) : null;
  if (!value) return null;
  const { data, dtype, layers, topK } = value;
  return { rows: rowsOf(data, dtype, layers * topK * itemBytes(dtype)), layers, topK };
}

const OBJECT = DIALECTS.find(({ first }) => first === '{')!;

/** An edit of a document: `text` replaces what stands at `node`. */
export interface SplitEdit {
  node: Pick<Node, 'start' | 'end'>;
  text: string;
}

export interface SplitMerge {
  edits: SplitEdit[];
  /** The generated rows of each choice. */
  generated: { choice: number; set: RowSet }[];
  placed: boolean;
}

/** How a document is to be merged. */
export interface SplitExpectation {
  n: number;
  event: boolean;
  /** The row of the last prompt token is to be decode's. */
  last: boolean;
}

/** The edits of a document, or why it cannot be merged. */
export function mergeSplit(
  text: string,
  root: Node,
  found: Place[],
  split: Split,
  { n, event, last }: SplitExpectation,
): SplitMerge | string {
  if (all(root, 'choices').length > 1) return 'choices twice';
  const own = found.filter(({ key }) => key !== KEY);
  if (own.length > n) return 'more arrays than choices';
  // The prompt rows are a value of their own, into which no row of decode can go.
  if (own.length > 0 && last) return 'the last row of the prompt is decode’s';
  const generated: SplitMerge['generated'] = [];
  for (const { key, node, choice } of own) {
    const set = key === 'routed_experts' ? readRows(text, node) : null;
    const empty = set?.rows.length === 0 && node.kind === 'array';
    if (!set || !(empty || (set.layers === split.layers && set.topK === split.topK)))
      return 'generated rows of another form';
    generated.push({ choice, set });
  }
  const choices = choicesOf(root);
  const once = (holder: Node, key: string) => all(holder, key).length <= 1;
  if (!choices.every((choice) => once(choice, 'routed_experts'))) return 'an array twice';
  const holders = split.inChoice ? choices.filter(({ kind }) => kind === 'object') : [root];
  const others = everyPlace(root).filter(({ key, choice }) => key === KEY && choice < 0 === split.inChoice);
  if (others.length > 0) return 'a value at another place';
  if (!holders.every((holder) => once(holder, KEY))) return 'the value twice';
  const edits = holders.flatMap((holder): SplitEdit[] => {
    const [value] = all(holder, KEY);
    if (value) return [{ node: value, text: split.text }];
    // The value may stand in another event of the stream.
    if (event) return [];
    const at = holder.end - 1;
    const comma = holder.members.length > 0 ? ',' : '';
    return [{ node: { start: at, end: at }, text: `${comma}"${KEY}":${split.text}` }];
  });
  edits.sort((a, b) => a.node.start - b.node.start);
  const prompt = countOf(text, root, 'prompt_tokens');
  const fits = prompt !== null && (prompt < 0 || prompt === split.tokens);
  if (!fits && generated.length + edits.length > 0) return 'another prompt';
  return { edits, generated, placed: edits.length > 0 };
}
