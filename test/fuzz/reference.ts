// The reference for whole documents: which bodies are right merges of a decode response, computed
// with `JSON.parse` and `Buffer` independently of the filter's code. Streams are in streams.ts, and
// what decode serves alone is in alone.ts.

import type { Dtype } from '../engine/router.ts';
import { promoted, widened } from '../unit/arrays.ts';
import { countsFault, tokensOf, type Ends } from './counts.ts';
import { itemBytes, type Dialect, type Rows } from './dialects.ts';
import { faultOf, type RowSet, type Rules } from './examined.ts';
import { all, parse, type Node } from './json.ts';
import { choicesOf, countOf, everyPlace, isRaw, places, type Place } from './places.ts';
import { dialectOf, isList, prefillFault, setOf, type Brought, type Plan } from './prefill.ts';
import { mergedRaw, mergeRaw } from './raw.ts';
import { soleEdits } from './sole.ts';
import { mergeSplit } from './split.ts';

export interface Expected {
  brought: Brought;
  /** The number of prompts and of choices that were asked for. */
  prompts: number;
  n: number;
  maxTokens: number;
  tail: boolean;
  /** The row of the last prompt token is decode's. */
  last: boolean;
  rules: Rules;
}

/** What a decode response may become. */
export interface Verdict {
  /**
   * The bodies that are right merges, each with the number of arrays in it. If there are none, the
   * response can only be refused.
   */
  merged: { body: string; choices: number }[];
  /** Whether the response has no routing at all. */
  absent: boolean;
  /**
   * The body with every value that holds routing replaced by `null`; null if the body cannot be
   * read.
   */
  nulled: string | null;
  /** Why there is no merge, for error messages. */
  why: string;
}

export const refused = (why: string, nulled: string | null = null): Verdict => ({
  merged: [],
  absent: false,
  nulled,
  why,
});

/**
 * Copies of a decode response in which the place of prefill's rows in full arrays is filled. The
 * filter writes there without reading, so what the engine sent there must not matter. While an
 * array is damaged, nothing tells that it is one; so the result has one copy in which everything
 * that looks like an array is filled, and one copy for each of them alone.
 */
export function filled(text: string, brought: Brought): string[] {
  if (!brought.rows || !brought.dialect) return [];
  const { start, seam } = brought.plans[0]!;
  // An array may begin with the first row of the merged one, or with that of token 0.
  return [...new Set([seam - start, seam])].flatMap((rows) =>
    rows > 0 ? filledIn(text, brought, rows) : [],
  );
}

/** The same for arrays whose first `count` rows are not read. */
function filledIn(text: string, brought: Brought, count: number): string[] {
  const dialect = brought.dialect!;
  const taken = { ...brought.rows!, rows: count };
  const key = new RegExp(`"${escapable(dialect.key)}"\\s*:\\s*`, 'g');
  const ranges: [from: number, to: number][] = [];
  for (let found = key.exec(text); found; found = key.exec(text)) {
    const [from, to] = dialect.overwritten(text, key.lastIndex, taken) ?? [0, 0];
    if (to <= from || to > text.length) continue;
    ranges.push([from, to]);
    key.lastIndex = to;
  }
  const fill = (of: string, [from, to]: [from: number, to: number]) =>
    of.slice(0, from) + 'A'.repeat(to - from) + of.slice(to);
  return [ranges.reduce(fill, text), ...ranges.map((range) => fill(text, range))];
}

/** A pattern for a key any of whose characters may be written as an escape. */
function escapable(key: string): string {
  const hex = (c: string) => c.charCodeAt(0).toString(16);
  return [...key].map((c) => `(?:${c}|\\\\u00(?:${hex(c)}|${hex(c).toUpperCase()}))`).join('');
}

export interface Edit {
  node: Pick<Node, 'start' | 'end'>;
  text: string;
}

export function edited(text: string, edits: Edit[]): string {
  let at = 0;
  let out = '';
  for (const { node, text: by } of edits) {
    out += text.slice(at, node.start) + by;
    at = node.end;
  }
  return out + text.slice(at);
}

export const nullsOf = (text: string, found: Place[]) =>
  edited(
    text,
    // A value inside another value that is replaced disappears with it.
    found
      .filter((p, i) => i === 0 || p.node.start >= found[i - 1]!.node.end)
      .map(({ node }) => ({ node, text: 'null' })),
  );

export function verdictOf(body: Buffer, expected: Expected): Verdict {
  const verdict = verdictOfText(body.toString('latin1'), expected);
  if (verdict.absent || verdict.merged.length > 0) return verdict;
  const merged = filled(body.toString('latin1'), expected.brought).flatMap(
    (text) => verdictOfText(text, expected).merged,
  );
  return { ...verdict, merged };
}

function verdictOfText(text: string, expected: Expected): Verdict {
  const root = parse(text);
  if (root?.kind !== 'object' && !(root?.kind === 'array' && isList(root)))
    return refused('not a JSON object');
  const found = places(text, root);
  const nulled = nullsOf(text, found);
  const absent: Verdict = { merged: [], absent: true, nulled, why: 'no routing' };
  const { raw, split } = expected.brought;
  const wrong = prefillFault(expected.rules, expected.brought);
  // Rows that are not used leave the response as it is.
  if (wrong) return found.length === 0 ? absent : refused(wrong, nulled);
  if (split && root.kind === 'object') {
    const merged = splitMerge(text, root, found, expected, false);
    if (typeof merged === 'string') return refused(merged, nulled);
    const prompt = split.tokens;
    const ends = merged.generated.map(({ choice, set }) => ({ choice, end: prompt + set.rows.length }));
    const fault =
      countsFault(text, root, ends, prompt) ??
      faultOf(expected.rules, {
        prefill: expected.brought.sets,
        decode: merged.generated.map(({ set }) => set),
      });
    if (fault && (merged.choices > 0 || merged.placed)) return refused(fault, nulled);
    if (merged.choices > 0 || merged.placed) return { merged: [merged], absent: false, nulled, why: '' };
  }
  const sole = raw ? soleEdits(text, root, expected, false) : [];
  if (found.length === 0 && sole.length === 0) return absent;
  if (raw) {
    const merged = rawMerge(text, root, found, expected, sole);
    if (typeof merged === 'string') return refused(merged, nulled);
    const fault = faultOf(expected.rules, { prefill: expected.brought.sets, decode: merged.sets });
    if (fault) return refused(fault, nulled);
    return { merged: [merged], absent: false, nulled, why: '' };
  }
  const arrays = arraysOf(text, root, found, expected);
  if (typeof arrays === 'string') return refused(arrays, nulled);
  const { rows, plans } = expected.brought;
  const [plan] = plans as [Plan];
  const promptTokens = countOf(text, root, 'prompt_tokens');
  const completion = countOf(text, root, 'completion_tokens');
  if (promptTokens === null || completion === null) return refused('counts that differ', nulled);
  if (promptTokens >= 0 && promptTokens !== plan.end) return refused('another prompt', nulled);
  const choices = choicesOf(root);
  const tokens = arrays.map(({ place }) => tokensOf(choices[place.choice]));
  const forms = formsOf(arrays, tokens, choices.length === arrays.length ? completion : -1, expected);
  let why = 'no form fits';
  const good = forms.filter((form) => {
    const fault =
      countsFault(text, root, endsOf(arrays, form, plan), plan.end) ??
      faultOf(expected.rules, { prefill: expected.brought.sets, decode: ownSets(arrays, form, plan) });
    why = fault ?? why;
    return fault === null;
  });
  const merged = good.map((form) => ({
    body: edited(
      text,
      arrays.map((array) => edit(array, rows!, plan, form)),
    ),
    choices: arrays.length,
  }));
  return { merged, absent: false, nulled, why };
}

/** The position of the first row of an array. */
const firstRow = ({ dialect, value }: Pick<Array_, 'dialect' | 'value'>, form: Form, plan: Plan): number =>
  dialect.tellsStart ? value.start : form === 'tail' ? plan.asked : 0;

export const endsOf = (arrays: Array_[], form: Form, plan: Plan): Ends[] =>
  arrays.map((array) => ({
    choice: array.place.choice,
    end: firstRow(array, form, plan) + array.value.rows,
  }));

/** The rows of decode that stay in the arrays. */
export const ownSets = (arrays: Array_[], form: Form, plan: Plan): RowSet[] =>
  arrays.map((array) => setOf(array.value, plan.seam - firstRow(array, form, plan)));

/** A document in which everything that can be merged is merged. */
export interface Merged {
  body: string;
  choices: number;
  /** Whether prefill's value of the prompt rows was put into the document. */
  placed: boolean;
}

export interface MergedSplit extends Merged {
  generated: { choice: number; set: RowSet }[];
}

export function splitMerge(
  text: string,
  root: Node,
  found: Place[],
  { brought, n, last }: Expected,
  event: boolean,
): MergedSplit | string {
  const merged = mergeSplit(text, root, found, brought.split!, { n, event, last });
  if (typeof merged === 'string') return merged;
  const { edits, generated, placed } = merged;
  return { body: edited(text, edits), choices: generated.length, placed, generated };
}

export interface MergedRaws extends Merged {
  sets: RowSet[];
}

export function rawMerge(
  text: string,
  root: Node,
  found: Place[],
  { brought, prompts, n, rules }: Expected,
  sole: Edit[] = [],
  part?: number,
): MergedRaws | string {
  const { raw, plans } = brought;
  const merged = mergeRaw(text, root, found, { rows: raw!, plans, prompts, choices: n, rules, part });
  if (typeof merged === 'string') return merged;
  if (sole.length > 0 && root.kind === 'array' && raw!.length > 1 && root.items.length !== raw!.length)
    return 'another number of elements';
  const { edits, sets } = merged;
  const all = [...edits, ...sole].sort((a, b) => a.node.start - b.node.start);
  return { body: edited(text, all), choices: all.length, placed: false, sets };
}

export interface Array_ {
  place: Place;
  dialect: Dialect;
  value: Rows;
}

/** The arrays of a document, or why they cannot be merged in any form. */
export function arraysOf(
  text: string,
  root: Node,
  found: Place[],
  { brought, n }: Expected,
): Array_[] | string {
  if (!brought.rows) return 'prefill has no rows to give';
  if (all(root, 'choices').length > 1) return 'choices twice';
  const out: Array_[] = [];
  for (const place of found) {
    const dialect = dialectOf(text, place);
    if (dialect === null || dialect !== brought.dialect) return `a value at ${place.key}`;
    const choice = choicesOf(root)[place.choice];
    if (all(choice, dialect.key).length > 1) return 'the key twice';
    const value = dialect.read(text.slice(place.node.start, place.node.end));
    if (!value) return 'an array that can not be read';
    const { layers, topK } = brought.rows;
    if (value.layers !== layers || value.topK !== topK) return 'another shape';
    out.push({ place, dialect, value });
  }
  return out.length > n ? 'more arrays than choices' : out;
}

/**
 * Whether `out` is the document in which each value that holds routing is null, or merged as if it
 * were the only one. With `keeps` it must be null or unchanged.
 */
export function nullsOrMerges(text: string, out: string, brought: Brought, keeps = false): boolean {
  const root = parse(text);
  if (!root) return text === out;
  let at = 0;
  let to = 0;
  for (const place of everyPlace(root)) {
    const { node } = place;
    // A value inside another value that is replaced disappears with it.
    if (node.start < at) continue;
    const before = text.slice(at, node.start);
    if (!out.startsWith(before, to)) return false;
    to += before.length;
    at = node.end;
    const was = text.slice(node.start, node.end);
    const own = keeps ? [was] : mergesOf(place, was, brought);
    const by = [...own, 'null'].find((each) => out.startsWith(each, to));
    if (by === undefined) return false;
    to += by.length;
  }
  return out.slice(to) === text.slice(at);
}

/** The texts that a value may become. */
function mergesOf(place: Place, was: string, { rows, dialect, raw, split, plans }: Brought): string[] {
  if (split && place.key === 'prompt_routed_experts') return [split.text];
  if (was === 'null') return [];
  // The generated rows stay as they are.
  if (split && place.key === 'routed_experts') return [was];
  if (raw && isRaw(place)) {
    const merged = raw.map((each, i) => mergedRaw(was, each, plans[i]!)).filter((each) => each !== null);
    return merged.map((each) => `"${each.toString('base64')}"`);
  }
  const value = rows && dialect && dialect.read(was);
  return value
    ? (['full', 'tail'] as const).map((form) => mergeOf(dialect, value, rows, plans[0]!, form))
    : [];
}

/** An array has all rows, or those that decode was asked for. */
export type Form = 'full' | 'tail';

/**
 * The forms that no count contradicts. `tokens` are the token counts of the choices, each -1 if it
 * is not known.
 */
export function formsOf(arrays: Array_[], tokens: number[], completion: number, expected: Expected): Form[] {
  const { start, seam, end, asked, drops } = expected.brought.plans[0]!;
  const least = Math.max(end, seam);
  if (arrays[0]?.dialect.tellsStart) {
    const from = drops ? 0 : start;
    const fits = ({ value }: Array_) =>
      value.start >= from && value.start <= seam && value.start + value.rows >= least;
    return arrays.every(fits) ? ['full'] : [];
  }
  const counts = arrays.map(({ value }) => value.rows);
  const full = counts.every((rows) => rows >= least);
  if (asked === 0) return full ? ['full'] : [];
  const tail = counts.every((rows) => asked + rows >= least);
  // The number of rows before the first generated row that decode was asked for.
  const more = end - asked;
  const sum = counts.reduce((a, b) => a + b, 0) + counts.length;
  const says = { full: false, tail: false };
  if (completion >= 1) {
    if (sum === completion + counts.length * more) says.tail = true;
    if (sum === completion + counts.length * end) says.full = true;
    // If the sum fits neither form, the array is full: the engine cannot have started a tail where
    // it was asked to.
    if (!says.tail && !says.full) says.full = true;
  }
  counts.forEach((rows, i) => {
    const t = tokens[i]!;
    if (t > 0 && rows === more + t - 1) says.tail = true;
    if (t > 0 && rows === end + t - 1) says.full = true;
    // The array has at least as many rows as a tail of the longest allowed answer plus one, so it
    // is full; unless an engine exceeds the cap, or another array is shorter than the prompt.
    if (full && expected.maxTokens >= 0 && rows >= Math.max(expected.maxTokens + more, end)) says.full = true;
  });
  const unclear = says.full === says.tail;
  return [
    ...(full && (says.full || unclear) ? (['full'] as const) : []),
    ...(tail && (says.tail || unclear) ? (['tail'] as const) : []),
  ];
}

export function edit({ place, dialect, value }: Array_, rows: Rows, plan: Plan, form: Form): Edit {
  return { node: place.node, text: mergeOf(dialect, value, rows, plan, form) };
}

function mergeOf(dialect: Dialect, value: Rows, rows: Rows, plan: Plan, form: Form): string {
  const { start, seam } = plan;
  const first = firstRow({ dialect, value }, form, plan);
  // An array that begins with the first row, and has no rows of prefill's, stays as it is.
  if (seam === start && first === start) return value.text;
  const ids = rows.layers * rows.topK;
  const dtype = seam === start ? (value.dtype as Dtype) : promoted(rows.dtype as Dtype, value.dtype as Dtype);
  const kept = value.data.subarray((seam - first) * ids * itemBytes(value.dtype));
  const width = ids * itemBytes(rows.dtype);
  const taken =
    seam === start
      ? Buffer.alloc(0)
      : rows.data.subarray((start - rows.start) * width, (seam - rows.start) * width);
  const data = Buffer.concat([
    widened(taken, rows.dtype as Dtype, dtype),
    widened(kept, value.dtype as Dtype, dtype),
  ]);
  return dialect.merged(value, data, first !== start, start, dtype, rows);
}
