// What the filter must do with replies, said a second time on JSON.parse and Buffer: what a prefill reply brings, and which
// bodies are right merges of a decode response. Calls nothing of the filter's.

import type { Dtype } from '../engine/router.ts';
import { promoted, widened } from '../unit/arrays.ts';
import { DIALECTS, hasSentinel, itemBytes, type Dialect, type Rows } from './dialects.ts';
import { all, isNull, last, parse, type Node } from './json.ts';
import { isObject, type Json } from './legs.ts';
import { choicesOf, countOf, everyPlace, isRaw, places, type Place } from './places.ts';
import { mergedRaw, mergeRaw, readRaw, type RawRows } from './raw.ts';
import { mergeSplit, readSplit, type Split } from './split.ts';

// ---- prefill's reply

export interface Brought {
  /** Rows for every choice, and their form. */
  rows: Rows | null;
  dialect: Dialect | null;
  /** Rows of SGLang's, one for each element. */
  raw: RawRows[] | null;
  /** The prompt's rows as a value. */
  split: Split | null;
  /** Text of `kv_transfer_params`, when it is an object. */
  params: string | null;
  /** As its counts say; -1: they do not. */
  usage: number;
  /** As `usage`, else the rows say. */
  promptTokens: number;
  /** Other values that take the place of decode's. */
  values: boolean;
}

/** Of a leg that failed. */
export const NOTHING: Brought = {
  rows: null,
  dialect: null,
  raw: null,
  split: null,
  params: null,
  usage: -1,
  promptTokens: -1,
  values: false,
};

/** Rows that prefill brought, of all prompts; 0: none that can be used. */
export function rowCount({ rows, raw, split }: Brought): number {
  if (raw) return raw.reduce((sum, { start, end }) => sum + end - start, 0);
  return split?.tokens ?? rows?.rows ?? 0;
}

const dialectOf = (text: string, { key, node }: Place): Dialect | null =>
  DIALECTS.find((each) => key === each.key && text[node.start] === each.first) ?? null;

/** Null: no reply. `lists`: it may be a list of elements; `start`: the first token whose row was asked for. */
export function readPrefill(body: Buffer, lists = false, start = 0): Brought | null {
  const text = body.toString('latin1');
  const root = parse(text);
  if (root?.kind === 'array') return lists && isList(root) ? readList(text, root, start) : null;
  if (root?.kind !== 'object') return null;
  const kv = last(root, 'kv_transfer_params');
  const params = kv?.kind === 'object' ? text.slice(kv.start, kv.end) : null;
  const usage = countOf(text, root, 'prompt_tokens') ?? -1;
  // Prefill has one choice; of further ones such a value is nobody's.
  const nobodys = ({ key, choice }: Place) => key === 'prompt_routed_experts' && choice > 0;
  const found = places(text, root).filter((place) => !nobodys(place));
  const common = { ...NOTHING, params, usage, promptTokens: usage, values: hasValues(text, root) };
  const raw = found.length > 0 ? readRaw(text, root, found, start) : null;
  if (raw) return { ...common, raw };
  const split = readSplit(text, root, found);
  if (split) return { ...common, split };
  const [place] = found;
  const dialect = place ? dialectOf(text, place) : null;
  const value = place && dialect ? dialect.read(text.slice(place.node.start, place.node.end)) : null;
  const right =
    value !== null &&
    found.length === 1 &&
    // The one choice that was asked for.
    place!.choice === 0 &&
    all(root, 'choices').length === 1 &&
    all(choicesOf(root)[0], dialect!.key).length === 1 &&
    value.rows > 0 &&
    countOf(text, root, 'prompt_tokens') !== null &&
    (usage < 0 || usage === value.start + value.rows) &&
    !(value.dtype.startsWith('<i') && hasSentinel(value.data, value.data.length / value.rows));
  if (!right) return { ...common, dialect };
  return { ...common, rows: value, dialect, promptTokens: usage >= 0 ? usage : value.start + value.rows };
}

/** Of elements as SGLang has them: none has choices. */
const isList = ({ items }: Node): boolean => items.every((item) => all(item, 'choices').length === 0);

function readList(text: string, root: Node, start: number): Brought {
  const found = places(text, root);
  const raw = found.length > 0 ? readRaw(text, root, found, start) : null;
  const tokens = root.items.map((item) => countOf(text, item, 'prompt_tokens', true) ?? -1).at(-1) ?? -1;
  return { ...NOTHING, raw, usage: tokens, promptTokens: tokens };
}

/** Members besides routing whose value in prefill's reply takes the place of decode's. */
const VALUES = ['prompt_logprobs', 'prompt_tokens_details'];

function hasValues(text: string, root: Node): boolean {
  const holders = [root, ...all(root, 'choices').flatMap(({ items }) => items), ...all(root, 'usage')];
  return holders.some((holder) => VALUES.some((key) => all(holder, key).some((node) => !isNull(text, node))));
}

/** A document without the members of `VALUES`. */
export function withoutValues(value: unknown): unknown {
  if (!isObject(value)) return value;
  const strip = (of: unknown): unknown =>
    isObject(of) ? Object.fromEntries(Object.entries(of).filter(([key]) => !VALUES.includes(key))) : of;
  const out = strip(value) as Json;
  if (Array.isArray(out['choices'])) out['choices'] = out['choices'].map(strip);
  if (isObject(out['usage'])) out['usage'] = strip(out['usage']);
  return out;
}

// ---- decode's response

export interface Expected {
  brought: Brought;
  /** Prompts and choices that were asked for. */
  prompts: number;
  n: number;
  maxTokens: number;
  tail: boolean;
}

/** What may come of a decode response. */
export interface Verdict {
  /** Bodies that are right merges, and how many arrays are in them; none: it can only be refused. */
  merged: { body: string; choices: number }[];
  /** The response has no routing at all. */
  absent: boolean;
  /** The body with every value that holds routing replaced by `null`; null when it can't be read. */
  nulled: string | null;
  /** Why there is no merge, for messages. */
  why: string;
}

const refused = (why: string, nulled: string | null = null): Verdict => ({
  merged: [],
  absent: false,
  nulled,
  why,
});

/**
 * A decode response with prefill's place in full arrays filled: the filter writes there without reading, so what engines
 * send there decides nothing. What is an array can't be told while it is damaged: all that look like one are filled, and
 * each alone.
 */
export function filled(text: string, { rows, dialect }: Brought): string[] {
  if (!rows || !dialect) return [];
  const key = new RegExp(`"${escapable(dialect.key)}"\\s*:\\s*`, 'g');
  const ranges: [from: number, to: number][] = [];
  for (let found = key.exec(text); found; found = key.exec(text)) {
    const [from, to] = dialect.overwritten(text, key.lastIndex, rows) ?? [0, 0];
    if (to <= from || to > text.length) continue;
    ranges.push([from, to]);
    key.lastIndex = to;
  }
  const fill = (of: string, [from, to]: [from: number, to: number]) =>
    of.slice(0, from) + 'A'.repeat(to - from) + of.slice(to);
  return [ranges.reduce(fill, text), ...ranges.map((range) => fill(text, range))];
}

/** A pattern of a key, each of whose characters may be an escape. */
function escapable(key: string): string {
  const hex = (c: string) => c.charCodeAt(0).toString(16);
  return [...key].map((c) => `(?:${c}|\\\\u00(?:${hex(c)}|${hex(c).toUpperCase()}))`).join('');
}

interface Edit {
  node: Pick<Node, 'start' | 'end'>;
  text: string;
}

function edited(text: string, edits: Edit[]): string {
  let at = 0;
  let out = '';
  for (const { node, text: by } of edits) {
    out += text.slice(at, node.start) + by;
    at = node.end;
  }
  return out + text.slice(at);
}

const nullsOf = (text: string, found: Place[]) =>
  edited(
    text,
    // A value inside one that goes is gone with it.
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
  const { raw, split } = expected.brought;
  if (split && root.kind === 'object') {
    const merged = splitMerge(text, root, found, expected, false);
    if (typeof merged === 'string') return refused(merged, nulled);
    if (merged.choices > 0 || merged.placed) return { merged: [merged], absent: false, nulled, why: '' };
  }
  if (found.length === 0) return { merged: [], absent: true, nulled, why: 'no routing' };
  if (raw) {
    const merged = rawMerge(text, root, found, expected);
    if (typeof merged === 'string') return refused(merged, nulled);
    return { merged: [merged], absent: false, nulled, why: '' };
  }
  const arrays = arraysOf(text, root, found, expected);
  if (typeof arrays === 'string') return refused(arrays, nulled);
  const { rows } = expected.brought;
  const promptTokens = countOf(text, root, 'prompt_tokens');
  const completion = countOf(text, root, 'completion_tokens');
  if (promptTokens === null || completion === null) return refused('counts that differ', nulled);
  if (promptTokens >= 0 && promptTokens !== rows!.start + rows!.rows)
    return refused('another prompt', nulled);
  const choices = choicesOf(root);
  const tokens = arrays.map(({ place }) => {
    const ids = last(choices[place.choice], 'token_ids');
    return ids?.kind === 'array' ? ids.items.length : -1;
  });
  const forms = formsOf(arrays, tokens, choices.length === arrays.length ? completion : -1, expected);
  const merged = forms.map((form) => ({
    body: edited(
      text,
      arrays.map((array) => edit(array, rows!, form)),
    ),
    choices: arrays.length,
  }));
  return { merged, absent: false, nulled, why: 'no form fits' };
}

/** A document with all that can be merged in it. */
interface Merged {
  body: string;
  choices: number;
  /** Prefill's value is in it. */
  placed: boolean;
}

function splitMerge(
  text: string,
  root: Node,
  found: Place[],
  { brought, n }: Expected,
  event: boolean,
): Merged | string {
  const merged = mergeSplit(text, root, found, brought.split!, { n, event });
  if (typeof merged === 'string') return merged;
  return { body: edited(text, merged.edits), choices: merged.generated, placed: merged.placed };
}

function rawMerge(
  text: string,
  root: Node,
  found: Place[],
  { brought, prompts, n }: Expected,
): Merged | string {
  const merged = mergeRaw(text, root, found, { rows: brought.raw!, prompts, choices: n });
  return typeof merged === 'string'
    ? merged
    : { body: edited(text, merged), choices: merged.length, placed: false };
}

interface Array_ {
  place: Place;
  dialect: Dialect;
  value: Rows;
}

/** The arrays of a document, or why they can't be merged whatever their form. */
function arraysOf(text: string, root: Node, found: Place[], { brought, n }: Expected): Array_[] | string {
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

/** Whether `out` is the document with each value that holds routing null, or merged as far as it could be alone. */
export function nullsOrMerges(text: string, out: string, brought: Brought): boolean {
  const root = parse(text);
  if (!root) return text === out;
  let at = 0;
  let to = 0;
  for (const place of everyPlace(root)) {
    const { node } = place;
    // A value inside one that goes is gone with it.
    if (node.start < at) continue;
    const before = text.slice(at, node.start);
    if (!out.startsWith(before, to)) return false;
    to += before.length;
    at = node.end;
    const was = text.slice(node.start, node.end);
    const by = [...mergesOf(place, was, brought), 'null'].find((each) => out.startsWith(each, to));
    if (by === undefined) return false;
    to += by.length;
  }
  return out.slice(to) === text.slice(at);
}

/** What a value may become. */
function mergesOf(place: Place, was: string, { rows, dialect, raw, split }: Brought): string[] {
  if (split && place.key === 'prompt_routed_experts') return [split.text];
  if (was === 'null') return [];
  // Generated rows stay as they are.
  if (split && place.key === 'routed_experts') return [was];
  if (raw && isRaw(place)) {
    const merged = raw.map((each) => mergedRaw(was, each)).filter((each) => each !== null);
    return merged.map((each) => `"${each.toString('base64')}"`);
  }
  const value = rows && dialect && dialect.read(was);
  return value ? (['full', 'tail'] as const).map((form) => mergeOf(dialect, value, rows, form)) : [];
}

type Form = 'full' | 'tail';

/** The forms that nothing speaks against. `tokens`: of each choice, -1 when not known. */
function formsOf(arrays: Array_[], tokens: number[], completion: number, expected: Expected): Form[] {
  const prompt = expected.brought.rows!.rows;
  if (arrays[0]?.dialect.tellsStart) {
    const { start, rows } = expected.brought.rows!;
    const end = start + rows;
    const fits = ({ value }: Array_) =>
      value.start >= start && value.start <= end && value.start + value.rows >= end;
    return arrays.every(fits) ? ['full'] : [];
  }
  const counts = arrays.map(({ value }) => value.rows);
  const full = counts.every((rows) => rows >= prompt);
  if (!expected.tail) return full ? ['full'] : [];
  const sum = counts.reduce((a, b) => a + b, 0) + counts.length;
  const says = { full: false, tail: false };
  if (completion >= 0) {
    if (sum === completion) says.tail = true;
    if (sum === completion + counts.length * prompt) says.full = true;
    // A number that fits neither: no tail starts where it was asked to.
    if (!says.tail && !says.full) says.full = true;
  }
  counts.forEach((rows, i) => {
    const t = tokens[i]!;
    if (t > 0 && rows === t - 1) says.tail = true;
    if (t > 0 && rows === prompt + t - 1) says.full = true;
    // More than the answer may be long: but for an engine that writes more than it may.
    if (expected.maxTokens >= 0 && rows >= Math.max(expected.maxTokens, prompt)) says.full = true;
  });
  const unclear = says.full === says.tail;
  return [
    ...(full && (says.full || unclear) ? (['full'] as const) : []),
    ...(says.tail || unclear ? (['tail'] as const) : []),
  ];
}

function edit({ place, dialect, value }: Array_, rows: Rows, form: Form): Edit {
  return { node: place.node, text: mergeOf(dialect, value, rows, form) };
}

function mergeOf(dialect: Dialect, value: Rows, rows: Rows, form: Form): string {
  const ids = rows.layers * rows.topK;
  const dtype = promoted(rows.dtype as Dtype, value.dtype as Dtype);
  const end = rows.start + rows.rows;
  const tail = dialect.tellsStart ? value.start === end : form === 'tail';
  // Rows of both, from the first token of the decode array on where that has some of the prompt.
  const from = tail ? rows.start : Math.max(value.start, rows.start);
  const kept = tail ? value.data : value.data.subarray((end - from) * ids * itemBytes(value.dtype));
  const taken = rows.data.subarray((from - rows.start) * ids * itemBytes(rows.dtype));
  const data = Buffer.concat([
    widened(taken, rows.dtype as Dtype, dtype),
    widened(kept, value.dtype as Dtype, dtype),
  ]);
  return dialect.merged(value, data, tail, from, dtype, rows);
}

/** The document of each event of a stream: its text, and where it is. */
export function documentsOf(text: string): { start: number; end: number }[] {
  const out: { start: number; end: number }[] = [];
  const line = /[^\r\n]*/g;
  for (let found = line.exec(text); found && line.lastIndex <= text.length; found = line.exec(text)) {
    const document = /^data:[ \t]*(?=\{)/.exec(found[0]);
    if (document) out.push({ start: found.index + document[0].length, end: found.index + found[0].length });
    if (found[0] === '') line.lastIndex++;
  }
  return out;
}

/** As `verdictOf`, of a stream: every event is a document. */
export function streamVerdict(body: Buffer, expected: Expected): Verdict {
  const verdict = streamVerdictOfText(body.toString('latin1'), expected);
  if (verdict.absent || verdict.merged.length > 0) return verdict;
  const merged = filled(body.toString('latin1'), expected.brought).flatMap(
    (text) => streamVerdictOfText(text, expected).merged,
  );
  return { ...verdict, merged };
}

function streamVerdictOfText(text: string, expected: Expected): Verdict {
  const { raw, split } = expected.brought;
  return raw || split ? wholeEvents(text, expected) : arrayEvents(text, expected);
}

/** Of forms whose events are merged each alone. */
function wholeEvents(text: string, expected: Expected): Verdict {
  const { split } = expected.brought;
  const out = { body: '', choices: 0, placed: false };
  let nulled = '';
  let why = '';
  let at = 0;
  for (const { start, end } of documentsOf(text)) {
    const part = text.slice(start, end);
    const root = parse(part);
    if (root?.kind !== 'object') return refused('an event that is no JSON object');
    const found = places(part, root);
    nulled += text.slice(at, start) + nullsOf(part, found);
    const merged = split
      ? splitMerge(part, root, found, expected, true)
      : rawMerge(part, root, found, expected);
    if (typeof merged === 'string') why ||= merged;
    else {
      out.body += text.slice(at, start) + merged.body;
      out.choices += merged.choices;
      out.placed ||= merged.placed;
    }
    at = end;
  }
  nulled += text.slice(at);
  out.body += text.slice(at);
  if (split && out.choices > expected.n) why ||= 'more arrays than choices';
  if (split && out.choices > 0 && !out.placed) why ||= 'no place for the rows of the prompt';
  if (why) return refused(why, nulled);
  if (out.choices === 0 && !out.placed) return { merged: [], absent: true, nulled, why: 'no routing' };
  return { merged: [out], absent: false, nulled, why: '' };
}

function arrayEvents(text: string, expected: Expected): Verdict {
  const documents = documentsOf(text);
  const forms: Form[] = expected.tail ? ['full', 'tail'] : ['full'];
  let nulled = '';
  const outs = forms.map(() => '');
  const possible = forms.map(() => true);
  let why = '';
  let arrays = 0;
  let at = 0;
  for (const { start, end } of documents) {
    const part = text.slice(start, end);
    const root = parse(part);
    if (root?.kind !== 'object') return refused('an event that is no JSON object');
    const found = places(part, root);
    nulled += text.slice(at, start) + nullsOf(part, found);
    const read = found.length > 0 ? arraysOf(part, root, found, expected) : [];
    if (typeof read === 'string') why ||= read;
    const list = typeof read === 'string' ? [] : read;
    arrays += list.length;
    if (arrays > expected.n) why ||= 'more arrays than choices';
    const promptTokens = countOf(part, root, 'prompt_tokens');
    const fits =
      promptTokens !== null && (promptTokens < 0 || promptTokens === expected.brought.promptTokens);
    if (arrays > 0 && !fits) why ||= 'another prompt';
    const unknown = list.map(() => -1);
    const fitting = list.length > 0 ? formsOf(list, unknown, -1, expected) : forms;
    forms.forEach((form, i) => {
      if (!fitting.includes(form)) possible[i] = false;
      const edits = possible[i] ? list.map((array) => edit(array, expected.brought.rows!, form)) : [];
      outs[i] += text.slice(at, start) + edited(part, edits);
    });
    at = end;
  }
  nulled += text.slice(at);
  if (why) return refused(why, nulled);
  if (arrays === 0) return { merged: [], absent: true, nulled, why: 'no routing' };
  const merged = outs.flatMap((out, i) =>
    possible[i] ? [{ body: out + text.slice(at), choices: arrays }] : [],
  );
  return { merged, absent: false, nulled, why: 'no form fits' };
}
