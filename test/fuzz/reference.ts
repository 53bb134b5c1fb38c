// What the filter must do, said a second time on JSON.parse and Buffer: which legs follow from a request, what a prefill
// reply brings, and which bodies are right merges of a decode response. Calls nothing of the filter's.

import { CHAT, COMPLETIONS, GENERATE } from '../scenarios/messages.ts';
import { DIALECTS, itemBytes, places, type Dialect, type Place, type Rows } from './dialects.ts';
import { all, integer, isNull, last, parse, read, type Node } from './json.ts';

export type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const plain = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;

export const REMOTE_DECODE = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};

/** As pydantic reads an integer. */
const isZero = (value: unknown) =>
  value === 0 || value === false || (typeof value === 'string' && /^-?0+(\.0*)?$/.test(value.trim()));

const SERVED = [COMPLETIONS, CHAT, GENERATE];

/** A request as P/D sees it. */
export interface Asked {
  path: string;
  value: Json;
  /** Whether P/D may serve it. */
  fit: boolean;
  n: number;
  /** -1: not known. */
  maxTokens: number;
}

/** Null: not a request that P/D looks at. */
export function readRequest(method: string, path: string, body: Buffer): Asked | null {
  if (method !== 'POST' || !SERVED.includes(path)) return null;
  const value = read(body.toString('latin1'));
  if (!isObject(value)) return null;
  const generate = path === GENERATE;
  const sampling = generate ? (isObject(value['sampling_params']) ? value['sampling_params'] : {}) : value;
  const { prompt, echo } = generate ? ({} as Json) : value;
  const several =
    Array.isArray(prompt) && prompt.length > 1 && (typeof prompt[0] === 'string' || Array.isArray(prompt[0]));
  const caps = generate ? [sampling['max_tokens']] : [value['max_tokens'], value['max_completion_tokens']];
  const given = (key: string) => sampling[key] !== undefined && sampling[key] !== null;
  const fit = !(
    several ||
    (!generate && value['prompt_embeds'] !== undefined && value['prompt_embeds'] !== null) ||
    // Prefill's take the place of decode's, but in a stream.
    (given('prompt_logprobs') && ![undefined, null, false].includes(value['stream'] as never)) ||
    (echo !== undefined && echo !== null && echo !== false) ||
    caps.some(isZero) ||
    (given('routed_experts_prompt_start') && sampling['routed_experts_prompt_start'] !== 0)
  );
  const n = plain(sampling['n']) && (sampling['n'] as number) > 0 ? (sampling['n'] as number) : 1;
  const known = caps.filter((cap) => cap !== undefined && cap !== null);
  const maxTokens = known.length > 0 && known.every(plain) ? Math.max(...(known as number[])) : -1;
  return { path, value, fit, n, maxTokens };
}

function withoutParams(path: string, value: Json): Json {
  const { kv_transfer_params: _, ...out } = value;
  if (isObject(out['vllm_xargs'])) {
    const { kv_transfer_params: _, ...xargs } = out['vllm_xargs'];
    out['vllm_xargs'] = xargs;
  }
  const sampling = out['sampling_params'];
  if (path === GENERATE && isObject(sampling) && isObject(sampling['extra_args'])) {
    const { kv_transfer_params: _, ...extra } = sampling['extra_args'];
    out['sampling_params'] = { ...sampling, extra_args: extra };
  }
  return out;
}

/** The request for an engine that serves it alone. */
export const localLeg = ({ path, value }: Asked): Json => withoutParams(path, value);

export function prefillLeg({ path, value }: Asked, connector: string): Json {
  const out = withoutParams(path, value);
  const generate = path === GENERATE;
  delete out['stream_options'];
  if (generate) delete out['stream'];
  else out['stream'] = false;
  const holder = generate ? (isObject(out['sampling_params']) ? { ...out['sampling_params'] } : {}) : out;
  holder['max_tokens'] = 1;
  if (!generate && 'max_completion_tokens' in holder) holder['max_completion_tokens'] = 1;
  for (const key of ['min_tokens', 'n']) {
    const had = holder[key];
    // `1.0` and `1` are one number to JSON.parse.
    if (had !== undefined && had !== null && !(plain(had) && (had as number) <= 1)) holder[key] = 1;
  }
  if (generate) out['sampling_params'] = holder;
  if (connector === 'nixl') out['kv_transfer_params'] = REMOTE_DECODE;
  else if ('cache_hit_threshold' in out) out['cache_hit_threshold'] = 0;
  return out;
}

/** `promptStart` null: all rows. */
export function decodeLeg(
  asked: Asked,
  connector: string,
  params: unknown,
  promptStart: number | null,
): Json {
  const out = withoutParams(asked.path, asked.value);
  const holder = asked.path === GENERATE ? out['sampling_params'] : out;
  if (isObject(holder) && ![undefined, null].includes(holder['prompt_logprobs'] as never)) {
    const { prompt_logprobs: _, ...rest } = holder;
    if (asked.path === GENERATE) out['sampling_params'] = rest;
    else delete out['prompt_logprobs'];
  }
  if (connector === 'nixl') out['kv_transfer_params'] = params;
  else if ('cache_hit_threshold' in out) out['cache_hit_threshold'] = 0;
  if (promptStart !== null) {
    if (asked.path === GENERATE) {
      const sampling = isObject(out['sampling_params']) ? out['sampling_params'] : {};
      out['sampling_params'] = { ...sampling, routed_experts_prompt_start: promptStart };
    } else out['routed_experts_prompt_start'] = promptStart;
  }
  return out;
}

// ---- prefill's reply

export interface Brought {
  rows: Rows | null;
  dialect: Dialect | null;
  /** Text of `kv_transfer_params`, when it is an object. */
  params: string | null;
  /** As `usage` says; -1: it does not. */
  usage: number;
  /** As `usage`, else the rows say. */
  promptTokens: number;
  /** Routing in a form that the reference does not read. */
  strange: boolean;
  /** Other values that take the place of decode's. */
  values: boolean;
}

const dialectOf = (text: string, { key, node }: Place): Dialect | null =>
  DIALECTS.find((each) => key === each.key && text[node.start] === each.first) ?? null;

/** Null: no reply. */
export function readPrefill(body: Buffer): Brought | null {
  const text = body.toString('latin1');
  const root = parse(text);
  const nothing = { rows: null, dialect: null, params: null, usage: -1, promptTokens: -1, values: false };
  // A list of elements, as SGLang answers several prompts.
  if (root?.kind === 'array') return { ...nothing, strange: true };
  if (root?.kind !== 'object') return null;
  const kv = last(root, 'kv_transfer_params');
  const params = kv?.kind === 'object' ? text.slice(kv.start, kv.end) : null;
  const usage = integer(text, last(last(root, 'usage'), 'prompt_tokens'));
  const found = places(text, root);
  const [place] = found;
  const dialect = place ? dialectOf(text, place) : null;
  const value = place && dialect ? dialect.read(text.slice(place.node.start, place.node.end)) : null;
  const right =
    value !== null &&
    found.length === 1 &&
    // The one choice that was asked for.
    place!.choice === 0 &&
    all(root, 'choices').length === 1 &&
    all(all(root, 'choices')[0]!.items[place!.choice], dialect!.key).length === 1 &&
    value.rows > 0 &&
    (usage < 0 || usage === value.start + value.rows) &&
    !hasSentinel(value);
  const rows = right ? value : null;
  const end = rows ? rows.start + rows.rows : -1;
  // Other forms, or several at once: the reference does not know what follows.
  const other = found.some((each) => dialectOf(text, each) === null) || found.length > 1;
  // Counts of tokens are there, too.
  const strange = other || all(root, 'meta_info').length > 0;
  const values = hasValues(text, root);
  return { rows, dialect, params, usage, promptTokens: usage >= 0 ? usage : end, strange, values };
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

function hasSentinel({ dtype, rows, data }: Rows): boolean {
  if (!dtype.startsWith('<i') || rows === 0) return false;
  const bytes = data.length / rows;
  for (let at = 0; at < data.length; at += bytes) {
    if (data.subarray(at, at + bytes).every((byte) => byte === 0xff)) return true;
  }
  return false;
}

// ---- decode's response

export interface Expected {
  brought: Brought;
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
  const key = new RegExp(`"${dialect.key}"\\s*:\\s*`, 'g');
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

interface Edit {
  node: Node;
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
  // Elements of a list have SGLang's members only.
  const routed = (item: Node) =>
    all(item, 'choices').length > 0 ||
    places(text, item).some(({ key }) => /^(meta_info|sglext)\./.test(key));
  if (root?.kind === 'array' && !root.items.some(routed))
    return { merged: [], absent: true, nulled: text, why: '' };
  if (root?.kind !== 'object') return refused('not a JSON object');
  const found = places(text, root);
  const nulled = nullsOf(text, found);
  if (found.length === 0) return { merged: [], absent: true, nulled, why: 'no routing' };
  const arrays = arraysOf(text, root, found, expected);
  if (typeof arrays === 'string') return refused(arrays, nulled);
  const { rows } = expected.brought;
  const usage = last(root, 'usage');
  const promptTokens = integer(text, last(usage, 'prompt_tokens'));
  if (promptTokens >= 0 && promptTokens !== rows!.start + rows!.rows)
    return refused('another prompt', nulled);
  const choices = all(root, 'choices')[0]!.items;
  const completion = integer(text, last(usage, 'completion_tokens'));
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
    const choice = all(root, 'choices')[0]!.items[place.choice];
    if (all(choice, dialect.key).length > 1) return 'the key twice';
    const value = dialect.read(text.slice(place.node.start, place.node.end));
    if (!value) return 'an array that can not be read';
    const { dtype, layers, topK } = brought.rows;
    if (value.dtype !== dtype || value.layers !== layers || value.topK !== topK) return 'another shape';
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
  for (const { node } of places(text, root)) {
    // A value inside one that goes is gone with it.
    if (node.start < at) continue;
    const before = text.slice(at, node.start);
    if (!out.startsWith(before, to)) return false;
    to += before.length;
    at = node.end;
    const by = ['null', ...mergesOf(text.slice(node.start, node.end), brought)].find((each) =>
      out.startsWith(each, to),
    );
    if (by === undefined) return false;
    to += by.length;
  }
  return out.slice(to) === text.slice(at);
}

function mergesOf(text: string, { rows, dialect }: Brought): string[] {
  const value = rows && dialect && dialect.read(text);
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
  const width = rows.layers * rows.topK * itemBytes(rows.dtype);
  const end = rows.start + rows.rows;
  const tail = dialect.tellsStart ? value.start === end : form === 'tail';
  // Rows of both, from the first token of the decode array on where that has some of the prompt.
  const from = tail ? rows.start : Math.max(value.start, rows.start);
  const kept = tail ? value.data : value.data.subarray((end - from) * width);
  const data = Buffer.concat([rows.data.subarray((from - rows.start) * width), kept]);
  return dialect.merged(value, data, tail, from);
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
    const promptTokens = integer(part, last(last(root, 'usage'), 'prompt_tokens'));
    if (arrays > 0 && promptTokens >= 0 && promptTokens !== expected.brought.promptTokens)
      why ||= 'another prompt';
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
