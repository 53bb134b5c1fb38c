// Format D, SGLang's, for the reference: base64 of little-endian int32 without a header, one array
// per element of a reply.

import { base64Of, hasSentinel } from './dialects.ts';
import { misfitOfIds, rowsOf, type RowSet, type Rules } from './examined.ts';
import type { Node } from './json.ts';
import { choicesOf, countOf, isRaw, type Place } from './places.ts';
import type { Plan } from './prefill.ts';

/** Prefill's rows of one prompt. */
export interface RawRows {
  /** The position of the first token, and the position after the last one. */
  start: number;
  end: number;
  /** The number of bytes of a row; 0 if the reply has no rows from which it could be computed. */
  width: number;
  /** The number of prompt rows, and their bytes. */
  rows: number;
  data: Buffer;
  /** Whether the array has these rows only. */
  exact: boolean;
}

/**
 * Reads prefill's rows, one entry per element; null if they cannot be used. `start` is the first
 * token whose row was asked for.
 */
export function readRaw(
  text: string,
  root: Node,
  found: Place[],
  start: number,
  rules: Rules,
): RawRows[] | null {
  if (!found.every(isRaw)) return null;
  const elements = root.kind === 'array' ? root.items : [root];
  const out: RawRows[] = [];
  for (const [i, element] of elements.entries()) {
    const own = found.filter(({ choice }) => (root.kind === 'object' ? choice <= 0 : choice === i));
    // The array of a reply and that of its first choice are the same; the first one counts.
    const [place] = own;
    if (!place || tooMany(own, root)) return null;
    const rows = readOne(text, element, place, start, root.kind === 'array');
    if (!rows || (rows.rows > 0 && misfitOfIds(rules, rows.width / 4))) return null;
    out.push(rows);
  }
  return out;
}

/** Whether there is more than one array for a reply, for an element, or for a choice. */
const tooMany = (own: Place[], root: Node): boolean =>
  root.kind === 'array'
    ? own.length > 1
    : [...new Set(own.map(({ choice }) => choice))].some(
        (i) => own.filter(({ choice }) => choice === i).length > 1,
      );

function readOne(
  text: string,
  element: Node,
  { node }: Place,
  start: number,
  listed: boolean,
): RawRows | null {
  const bytes = base64Of(text.slice(node.start, node.end));
  const prompt = countOf(text, element, 'prompt_tokens', listed);
  const completion = countOf(text, element, 'completion_tokens', listed);
  if (!bytes || prompt === null || prompt < 0 || completion === null) return null;
  // With several choices the count is their sum, and each has the one token of a prefill.
  const choices = choicesOf(element).length;
  if (choices > 1 && completion >= 0 && completion !== choices) return null;
  const generated = choices > 1 ? 0 : Math.max(completion, 1) - 1;
  const held = Math.max(prompt - start + generated, 0);
  if ((held === 0) !== (bytes.length === 0)) return null;
  const width = held > 0 ? bytes.length / held : 0;
  if (!Number.isInteger(width) || width % 4 !== 0) return null;
  const rows = Math.max(prompt - start, 0);
  const data = bytes.subarray(0, rows * width);
  return hasSentinel(data, width)
    ? null
    : { start, end: prompt, width, rows, data, exact: bytes.length === data.length };
}

export interface Expectation {
  rows: RawRows[];
  plans: Plan[];
  prompts: number;
  choices: number;
  rules: Rules;
  /** Of an event: which of several prompts it is of; -1: it does not tell. */
  part?: number;
}

export interface RawEdits {
  edits: { node: Node; text: string }[];
  /** Decode's own rows. */
  sets: RowSet[];
}

/** What each array of a document becomes, or why the document cannot be merged. */
export function mergeRaw(
  text: string,
  root: Node,
  found: Place[],
  { rows, plans, prompts, choices, rules, part }: Expectation,
): RawEdits | string {
  const out: RawEdits = { edits: [], sets: [] };
  if (found.length === 0) return out;
  if (!found.every(isRaw)) return 'another form';
  const list = root.kind === 'array';
  if (!list && choicesOf(root).length > 0 && tooMany(found, root)) return 'an array twice';
  // An event of SGLang's tells its prompt.
  const placed = part !== undefined && rows.length > 1 && found.every(({ choice }) => choice < 0);
  if (placed && !rows[part]) return 'an event of no prompt';
  if (!list && !placed && prompts > 1) return 'an array of several prompts';
  if (!list && !placed && rows.length > 1) return 'a list became one';
  if (list && prompts > 1 && rows.length === 1) return 'one became a list';
  if (list && rows.length > 1 && root.items.length !== rows.length) return 'another number of elements';
  for (const place of found) {
    if (list && found.filter(({ choice }) => choice === place.choice).length > 1) return 'an array twice';
    const i = rows.length === 1 ? 0 : placed ? part : place.choice;
    const merged = mergeOne(text, root, place, rows[i]!, plans[i]!, list || placed || choices === 1);
    if (typeof merged === 'string') return merged;
    if (merged.width > 0 && misfitOfIds(rules, merged.width / 4)) return "not the model's number of ids";
    out.edits.push({ node: place.node, text: `"${merged.data.toString('base64')}"` });
    out.sets.push({ rows: rowsOf(merged.own, '<i4', merged.width), layers: 0, topK: 0 });
  }
  return out;
}

interface MergedRaw {
  data: Buffer;
  /** Decode's rows in `data`, and the bytes of one row; 0 if nothing tells. */
  own: Buffer;
  width: number;
}

function mergeOne(
  text: string,
  root: Node,
  place: Place,
  rows: RawRows,
  plan: Plan,
  single: boolean,
): MergedRaw | string {
  const listed = root.kind === 'array';
  const element = listed ? root.items[place.choice]! : root;
  const data = mergedRaw(text.slice(place.node.start, place.node.end), rows, plan);
  const prompt = countOf(text, element, 'prompt_tokens', listed);
  const completion = countOf(text, element, 'completion_tokens', listed);
  if (!data) return 'an array that does not fit';
  if (prompt === null || completion === null) return 'counts that differ';
  if (prompt >= 0 && prompt !== plan.end) return 'another prompt';
  const counted = single && prompt >= 0 && completion >= 1 ? prompt + completion - 1 - plan.start : -1;
  if (rows.width === 0) return wholeRaw(data, counted);
  if (counted >= 0 && counted * rows.width !== data.length) return 'another number of rows';
  return { data, own: data.subarray((plan.seam - plan.start) * rows.width), width: rows.width };
}

/**
 * Reads an array whose number of rows is known only from the counts beside it; `counted` is -1 if
 * there are none.
 */
export function wholeRaw(data: Buffer, counted: number): MergedRaw | string {
  if (counted < 0) return { data, own: Buffer.alloc(0), width: 0 };
  if ((counted === 0) !== (data.length === 0)) return 'another number of rows';
  const width = counted > 0 ? data.length / counted : 0;
  if (!Number.isInteger(width) || width % 4 !== 0) return 'another number of rows';
  return { data, own: data, width };
}

/** Writes prefill's rows over decode's; null if the array is too short for them. */
export function mergedRaw(text: string, { data, width }: RawRows, { start, seam }: Plan): Buffer | null {
  const bytes = base64Of(text);
  const taken = (seam - start) * width;
  if (!bytes || (width > 0 && bytes.length % width !== 0) || bytes.length < taken) return null;
  return Buffer.concat([data.subarray(0, taken), bytes.subarray(taken)]);
}
