// What a prefill reply brings, read with `JSON.parse` and `Buffer` independently of the filter's
// code.

import { DIALECTS, hasSentinel, itemBytes, type Dialect, type Rows } from './dialects.ts';
import { faultOf, misfit, rowsOf, type RowSet, type Rules } from './examined.ts';
import { all, isNull, last, parse, type Node } from './json.ts';
import { isObject, type Json } from './legs.ts';
import { choicesOf, countOf, isRaw, places, type Place } from './places.ts';
import { readRaw, type RawRows } from './raw.ts';
import { readSplit, type Split } from './split.ts';

/**
 * Which rows of a merged array are prefill's: those in [start, seam). The rows from `seam` on are
 * decode's.
 */
export interface Plan {
  start: number;
  seam: number;
  /** The number of tokens of the prompt. */
  end: number;
  /** The first row that decode is asked for. */
  asked: number;
  /** Whether rows before `start` may be dropped. */
  drops: boolean;
}

/**
 * The plan for prefill's rows that end before row `rowsEnd`, of a prompt of `end` tokens; null if
 * they begin, with row `rowsStart`, behind the first row that is needed.
 */
function planOf(rowsStart: number, rowsEnd: number, end: number, reading: Reading): Plan | null {
  const { last, want = 0, tail } = reading;
  // If nobody asks for rows, the merge begins with prefill's first one.
  const start = want > 0 ? want : rowsStart;
  const seam = Math.max(Math.min(last && end > 0 ? end - 1 : end, rowsEnd), start);
  if (seam > start && rowsStart > start) return null;
  return { start, seam, end, asked: tail ? seam : want, drops: want > 0 };
}

export interface Brought {
  /** The rows for every choice, and their form. */
  rows: Rows | null;
  dialect: Dialect | null;
  /** The rows in SGLang's format, one entry per element. */
  raw: RawRows[] | null;
  /** The prompt rows as a value of their own. */
  split: Split | null;
  /** All rows that the reply brought, in whatever form. */
  sets: RowSet[];
  /** The row plan of `rows`, or one plan per element of `raw`. */
  plans: Plan[];
  /** The text of `kv_transfer_params` if it is an object that is not empty. */
  params: string | null;
  /** Whether the engine stopped at its cap of one token. */
  capped: boolean;
  /** The prompt's length according to the reply's counts; -1 if they do not tell. */
  usage: number;
  /** The prompt's length according to `usage`, or otherwise to the rows; -1 if neither tells. */
  promptTokens: number;
  /**
   * The first row that decode is asked for when it must return only its own; -1 if it is not known.
   */
  seam: number;
  /** Whether the reply has other values that replace decode's. */
  values: boolean;
}

/** What a failed prefill leg brings. */
export const NOTHING: Brought = {
  rows: null,
  dialect: null,
  raw: null,
  split: null,
  sets: [],
  plans: [],
  params: null,
  capped: false,
  usage: -1,
  promptTokens: -1,
  seam: -1,
  values: false,
};

/** How a reply is to be read. */
export interface Reading {
  rules: Rules;
  /** The reply may be a list of elements. */
  lists?: boolean;
  /** The position of the first token whose row prefill was asked for. */
  start?: number;
  /** The same for the client. */
  want?: number;
  /** Decode is asked for no rows that are prefill's. */
  tail?: boolean;
  /** The row of the last prompt token is decode's. */
  last?: boolean;
  /** Decode forwards the last prompt token, so prefill's rows may lack that of this token. */
  mayLackLast?: boolean;
}

/** The number of prefill's rows in each merge, summed over all prompts; 0 if none can be used. */
export function rowCount({ split, plans }: Brought): number {
  return split?.set.rows.length ?? plans.reduce((sum, { start, seam }) => sum + seam - start, 0);
}

export const dialectOf = (text: string, { key, node }: Place): Dialect | null =>
  DIALECTS.find((each) => key === each.key && text[node.start] === each.first) ?? null;

/** Reads a prefill reply; null if the body is not one. */
export function readPrefill(body: Buffer, reading: Reading): Brought | null {
  const text = body.toString('latin1');
  const root = parse(text);
  if (root?.kind === 'array') return reading.lists && isList(root) ? readList(text, root, reading) : null;
  if (root?.kind !== 'object') return null;
  const { rules, start = 0, want = 0, last: lastOfDecode = false, mayLackLast = false } = reading;
  const kv = last(root, 'kv_transfer_params');
  const params = kv?.kind === 'object' && kv.members.length > 0 ? text.slice(kv.start, kv.end) : null;
  const usage = countOf(text, root, 'prompt_tokens') ?? -1;
  // Prefill was asked for one choice, so the prompt rows in any further choice belong to nobody.
  const nobodys = ({ key, choice }: Place) => key === 'prompt_routed_experts' && choice > 0;
  // The same holds of an array without a header.
  const later = (place: Place) => isRaw(place) && place.choice > 0;
  const found = places(text, root).filter((place) => !nobodys(place) && !later(place));
  const asked = (tokens: number) =>
    tokens < 0 ? tokens : Math.max(lastOfDecode && tokens > 0 ? tokens - 1 : tokens, want);
  const common = {
    ...NOTHING,
    params,
    capped: isCapped(text, root),
    usage,
    promptTokens: usage,
    seam: asked(usage),
    values: hasValues(text, root),
  };
  const behind = found.length === 0 && start > 0 && usage >= 0 && start >= usage && !mayLackLast;
  const raw = behind
    ? [{ start, end: usage, width: 0, rows: 0, data: Buffer.alloc(0), exact: true }]
    : // vLLM's member chooses no rows of SGLang's.
      found.length > 0 && !(mayLackLast && want > 0)
      ? readRaw(text, root, found, start, rules)
      : null;
  if (raw) return withRaw(common, raw, reading);
  const split = readSplit(text, root, found, rules, start);
  if (split) return { ...common, split, sets: [split.set] };
  const [place] = found;
  const dialect = place ? dialectOf(text, place) : null;
  const value = place && dialect ? dialect.read(text.slice(place.node.start, place.node.end)) : null;
  const ends = (from: number, rows: number) =>
    usage < 0 || [usage, ...(mayLackLast ? [usage - 1] : [])].includes(from + rows);
  if (value && !dialect!.tellsStart && start > 0) {
    // Without a count nothing tells whether the engine has left out rows.
    if (usage < 0) return { ...common, dialect };
    if (ends(start, value.rows)) value.start = start;
  }
  const tokens = usage >= 0 ? usage : value ? value.start + value.rows : -1;
  const plan = value && planOf(value.start, value.start + value.rows, tokens, reading);
  const right =
    value !== null &&
    found.length === 1 &&
    // The rows must stand in the one choice that was asked for.
    place!.choice === 0 &&
    all(root, 'choices').length === 1 &&
    all(choicesOf(root)[0], dialect!.key).length === 1 &&
    (value.rows > 0 || (start > 0 && value.start > 0)) &&
    countOf(text, root, 'prompt_tokens') !== null &&
    ends(value.start, value.rows) &&
    !(value.dtype.startsWith('<i') && hasSentinel(value.data, value.data.length / value.rows)) &&
    misfit(rules, value.layers, value.topK) === null;
  if (!right || !plan) return { ...common, dialect };
  return {
    ...common,
    rows: value,
    dialect,
    sets: [setOf(value)],
    plans: [plan],
    promptTokens: tokens,
    seam: plan.seam,
  };
}

/** The rows of an array from row `from` on. */
export function setOf({ data, dtype, layers, topK }: Rows, from = 0): RowSet {
  const width = layers * topK * itemBytes(dtype);
  return { rows: rowsOf(data.subarray(from * width), dtype, width), layers, topK };
}

function withRaw(common: Brought, raw: RawRows[], reading: Reading): Brought {
  const plans = raw.map(({ start, end, rows }) => planOf(start, start + rows, end, reading)!);
  const sets = raw.map(({ data, width }) => ({ rows: rowsOf(data, '<i4', width), layers: 0, topK: 0 }));
  return { ...common, raw, plans, sets, seam: plans.length === 1 ? plans[0]!.seam : common.seam };
}

/**
 * vLLM's chat reports `tool_calls` whenever its parser has found a call, whatever ended the text.
 */
function isCapped(text: string, root: Node): boolean {
  const reason = last(choicesOf(root)[0], 'finish_reason');
  return reason !== undefined && /^"(length|tool_calls)"$/.test(text.slice(reason.start, reason.end));
}

/** What in prefill's rows no router can give, whatever decode's rows will be. */
export const prefillFault = (rules: Rules, { sets }: Brought): string | null =>
  faultOf(rules, { prefill: sets, decode: [] }, true);

/** Whether a list has elements as SGLang writes them, which have no `choices`. */
export const isList = ({ items }: Node): boolean => items.every((item) => all(item, 'choices').length === 0);

function readList(text: string, root: Node, reading: Reading): Brought {
  const { rules, start = 0, want = 0, mayLackLast = false } = reading;
  const found = places(text, root);
  const raw =
    found.length > 0 && !(mayLackLast && want > 0) ? readRaw(text, root, found, start, rules) : null;
  const tokens = root.items.map((item) => countOf(text, item, 'prompt_tokens', true) ?? -1).at(-1) ?? -1;
  const common = { ...NOTHING, usage: tokens, promptTokens: tokens, seam: tokens };
  return raw ? withRaw(common, raw, reading) : common;
}

/** The members besides routing whose value in prefill's reply replaces decode's. */
const VALUES = ['prompt_logprobs', 'prompt_tokens_details'];

function hasValues(text: string, root: Node): boolean {
  const holders = [root, ...all(root, 'choices').flatMap(({ items }) => items), ...all(root, 'usage')];
  return holders.some((holder) => VALUES.some((key) => all(holder, key).some((node) => !isNull(text, node))));
}

/** The document without the members `VALUES`. */
export function withoutValues(value: unknown): unknown {
  if (!isObject(value)) return value;
  const strip = (of: unknown): unknown =>
    isObject(of) ? Object.fromEntries(Object.entries(of).filter(([key]) => !VALUES.includes(key))) : of;
  const out = strip(value) as Json;
  if (Array.isArray(out['choices'])) out['choices'] = out['choices'].map(strip);
  if (isObject(out['usage'])) out['usage'] = strip(out['usage']);
  return out;
}
