// Format D, SGLang's, for the reference: base64 of little-endian int32 without a header, for each element of a reply.

import { base64Of, hasSentinel } from './dialects.ts';
import type { Node } from './json.ts';
import { choicesOf, countOf, isRaw, type Place } from './places.ts';

/** Prefill's rows of one prompt. */
export interface RawRows {
  /** First token, and the one behind the last. */
  start: number;
  end: number;
  /** Bytes of a row. */
  width: number;
  data: Buffer;
}

/** Prefill's rows, one for each element; null when they can't be used. `start`: the first token whose row was asked for. */
export function readRaw(text: string, root: Node, found: Place[], start: number): RawRows[] | null {
  if (!found.every(isRaw)) return null;
  const elements = root.kind === 'array' ? root.items : [root];
  const out: RawRows[] = [];
  for (const [i, element] of elements.entries()) {
    const own = found.filter(({ choice }) => (root.kind === 'object' ? choice <= 0 : choice === i));
    // Of a reply's array and its first choice's, which are the same, the first one counts.
    const [place] = own;
    if (!place || tooMany(own, root)) return null;
    const rows = rowsOf(text, element, place, start, root.kind === 'array');
    if (!rows) return null;
    out.push(rows);
  }
  return out;
}

/** One array each for a reply or an element, and for a choice. */
const tooMany = (own: Place[], root: Node): boolean =>
  root.kind === 'array'
    ? own.length > 1
    : [...new Set(own.map(({ choice }) => choice))].some(
        (i) => own.filter(({ choice }) => choice === i).length > 1,
      );

function rowsOf(
  text: string,
  element: Node,
  { node }: Place,
  start: number,
  listed: boolean,
): RawRows | null {
  const bytes = base64Of(text.slice(node.start, node.end));
  const prompt = countOf(text, element, 'prompt_tokens', listed);
  const completion = countOf(text, element, 'completion_tokens', listed);
  if (!bytes || bytes.length === 0 || prompt === null || completion === null || prompt <= start) return null;
  // A sum of several choices, each of which has the one token of a prefill.
  const choices = choicesOf(element).length;
  if (choices > 1 && completion >= 0 && completion !== choices) return null;
  const width = bytes.length / (prompt - start + (choices > 1 ? 0 : Math.max(completion, 1) - 1));
  if (!Number.isInteger(width) || width % 4 !== 0) return null;
  const data = bytes.subarray(0, (prompt - start) * width);
  return hasSentinel(data, width) ? null : { start, end: prompt, width, data };
}

export interface Expectation {
  rows: RawRows[];
  prompts: number;
  choices: number;
}

/** What each array of a document becomes, or why it can't be merged. */
export function mergeRaw(
  text: string,
  root: Node,
  found: Place[],
  { rows, prompts, choices }: Expectation,
): { node: Node; text: string }[] | string {
  if (found.length === 0) return [];
  if (!found.every(isRaw)) return 'another form';
  const list = root.kind === 'array';
  if (!list && choicesOf(root).length > 0 && tooMany(found, root)) return 'an array twice';
  if (!list && prompts > 1) return 'an array of several prompts';
  if (!list && rows.length > 1) return 'a list became one';
  if (list && prompts > 1 && rows.length === 1) return 'one became a list';
  if (list && rows.length > 1 && root.items.length !== rows.length) return 'another number of elements';
  const out: { node: Node; text: string }[] = [];
  for (const place of found) {
    if (list && found.filter(({ choice }) => choice === place.choice).length > 1) return 'an array twice';
    const own = rows.length === 1 ? rows[0]! : rows[place.choice]!;
    const merged = mergeOne(text, root, place, own, list || choices === 1);
    if (merged === null) return 'an array that does not fit';
    out.push({ node: place.node, text: merged });
  }
  return out;
}

function mergeOne(text: string, root: Node, place: Place, rows: RawRows, single: boolean): string | null {
  const element = root.kind === 'array' ? root.items[place.choice]! : root;
  const merged = mergedRaw(text.slice(place.node.start, place.node.end), rows);
  const prompt = countOf(text, element, 'prompt_tokens', root.kind === 'array');
  const completion = countOf(text, element, 'completion_tokens', root.kind === 'array');
  if (!merged || prompt === null || (prompt >= 0 && prompt !== rows.end)) return null;
  if (completion === null) return null;
  const held = merged.length / rows.width;
  const counted = single && prompt >= 0 && completion >= 1;
  if (counted && held + rows.start !== prompt + completion - 1) return null;
  return `"${merged.toString('base64')}"`;
}

/** Prefill's rows over decode's; null when there is no room for them. */
export function mergedRaw(text: string, { data, width }: RawRows): Buffer | null {
  const bytes = base64Of(text);
  if (!bytes || bytes.length % width !== 0 || bytes.length < data.length) return null;
  return Buffer.concat([data, bytes.subarray(data.length)]);
}
