// Format C, vLLM 0.21's, for the reference: the prompt's rows are a value of their own, which becomes prefill's.

import { base64Of, DTYPES, hasSentinel, itemBytes, NUMPY_NAMES } from './dialects.ts';
import { all, integer, isNull, parse, type Node } from './json.ts';
import { choicesOf, countOf, everyPlace, type Place } from './places.ts';

const KEY = 'prompt_routed_experts';

/** Prefill's value. */
export interface Split {
  text: string;
  inChoice: boolean;
  tokens: number;
  layers: number;
  topK: number;
}

/** Prefill's value; null when it can't be used. */
export function readSplit(text: string, root: Node, found: Place[]): Split | null {
  const [value, ...others] = found.filter(({ key }) => key === KEY);
  const tokens = countOf(text, root, 'prompt_tokens');
  if (!value || others.length > 0 || value.choice > 0 || tokens === null) return null;
  if (all(root, 'choices').length > 1) return null;
  if (choicesOf(root).some((choice) => all(choice, 'routed_experts').length > 1)) return null;
  // What is beside it are generated rows.
  const generated = found.filter((place) => place !== value);
  if (!generated.every(({ key, node }) => key === 'routed_experts' && /[[{]/.test(text[node.start]!)))
    return null;
  const own = text.slice(value.node.start, value.node.end);
  const shape = own.startsWith('[') ? shapeOfLists(own, value.node) : shapeOfObject(own);
  if (!shape || shape.some((size) => size < 1) || shape[0] !== tokens) return null;
  // An event is on one line.
  return {
    text: own.replace(/[\r\n]/g, ' '),
    inChoice: value.choice === 0,
    tokens,
    layers: shape[1],
    topK: shape[2],
  };
}

type Shape = [rows: number, layers: number, topK: number];

function shapeOfLists(text: string, { items }: Node): Shape | null {
  const rows = items.map((row) => row.items);
  const [layers, topK] = [rows[0]?.length ?? 0, rows[0]?.[0]?.items.length ?? 0];
  const uniform = rows.every(
    (row) => row.length === layers && row.every(({ items }) => items.length === topK),
  );
  const flat = rows.every((row) => row.every(({ items }) => items.every(({ kind }) => kind === 'number')));
  return uniform && flat && /^[\d,[\]\s]*$/.test(text) ? [rows.length, layers, topK] : null;
}

function shapeOfObject(text: string): Shape | null {
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
  const width = sizes[1]! * sizes[2]! * itemBytes(code);
  if (sizes[0]! * width !== bytes.length) return null;
  return code.startsWith('<i') && hasSentinel(bytes, width) ? null : (sizes as Shape);
}

/** An edit of a document: what stands from `start` to `end` goes for `text`. */
export interface SplitEdit {
  node: Pick<Node, 'start' | 'end'>;
  text: string;
}

/** The edits of a document, and how many arrays of generated rows it has; or why it can't be merged. */
export function mergeSplit(
  text: string,
  root: Node,
  found: Place[],
  split: Split,
  { n, event }: { n: number; event: boolean },
): { edits: SplitEdit[]; generated: number; placed: boolean } | string {
  if (all(root, 'choices').length > 1) return 'choices twice';
  const generated = found.filter(({ key }) => key !== KEY);
  if (generated.length > n) return 'more arrays than choices';
  for (const { key, node } of generated) {
    if (key !== 'routed_experts' || !hasShape(text, node, split)) return 'generated rows of another form';
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
    // An event need not be the one that has it.
    if (event) return [];
    const at = holder.end - 1;
    const comma = holder.members.length > 0 ? ',' : '';
    return [{ node: { start: at, end: at }, text: `${comma}"${KEY}":${split.text}` }];
  });
  edits.sort((a, b) => a.node.start - b.node.start);
  const prompt = countOf(text, root, 'prompt_tokens');
  const fits = prompt !== null && (prompt < 0 || prompt === split.tokens);
  if (!fits && generated.length + edits.length > 0) return 'another prompt';
  return { edits, generated: generated.length, placed: edits.length > 0 };
}

/** Whether generated rows have the layers and top_k of prefill's. */
function hasShape(text: string, node: Node, { layers, topK }: Split): boolean {
  if (node.kind === 'array')
    return node.items.every(
      ({ items }) => items.length === layers && items.every((layer) => layer.items.length === topK),
    );
  const shapes = all(node, 'shape');
  if (node.kind !== 'object') return false;
  return shapes.every(
    ({ items }) =>
      items.length === 3 && [layers, topK].every((size, i) => integer(text, items[i + 1]) === size),
  );
}
