// The reference for responses of requests that decode serves alone: whether the arrays of such a
// response may pass. The filter never edits them.

import { base64Of, DIALECTS } from './dialects.ts';
import { faultOf, misfit, misfitOfIds, rowsOf, type RowSet, type Rules } from './examined.ts';
import { all, integer, parse, type Node } from './json.ts';
import { choicesOf, countOf, everyPlace, isRaw, type Place } from './places.ts';
import { isList, setOf } from './prefill.ts';
import { wholeRaw } from './raw.ts';
import { nullsOf, refused, type Verdict } from './reference.ts';
import { listedRows } from './split.ts';
import { documentsOf, isNoStream, type Span } from './streams.ts';

/**
 * What decode's own `cached_tokens` must say before an array may pass. `any`: anything, because the
 * samples of one request share blocks that decode has forwarded for this very request. `no hit`:
 * not above 0, because the request had a salt. `zero`: exactly 0, because it had none. `never`: no
 * value is enough, because a batch has one number only and it describes one of its prompts.
 */
export type CachedRule = 'any' | 'no hit' | 'zero' | 'never';

export interface Alone {
  cached: CachedRule;
  /** Whether the request could be read, so that it tells how many rows there must be. */
  counted: boolean;
  /** The position of the first token whose row the client asks for. */
  start: number;
  prompts: number;
  n: number;
  rules: Rules;
}

/** The verdict on a whole body or a stream: the response may pass if `merged` is not empty. */
export function aloneVerdict(text: string, events: boolean, alone: Alone): Verdict {
  const passes: Verdict = {
    merged: [{ body: text, choices: 0 }],
    absent: false,
    nulled: text,
    why: '',
  };
  if (!events) {
    const root = parse(text);
    if (!isReply(root)) return passes;
    const sets: RowSet[] = [];
    const nulled = nullsOf(text, routing(text, root));
    const why = documentFault(text, root, alone, false, sets) ?? rowsFault(alone, sets);
    return why ? refused(why, nulled) : { ...passes, nulled };
  }
  const documentIn = ({ start, end }: Span) => parse(text.slice(start, end));
  const broken = documentsOf(text).find((each) => !isReply(documentIn(each)));
  // The filter passes everything after an event that is not a document without reading it.
  const looked = broken ? text.slice(0, broken.start) : text;
  if (isNoStream(looked)) return refused('no stream of events');
  const sets: RowSet[] = [];
  let nulled = '';
  let at = 0;
  let why: string | null = null;
  for (const { start, end } of documentsOf(looked)) {
    const part = text.slice(start, end);
    const root = parse(part)!;
    nulled += text.slice(at, start) + nullsOf(part, routing(part, root));
    at = end;
    why ??= documentFault(part, root, alone, true, sets);
  }
  nulled += text.slice(at);
  if (broken && sets.length > 0) why ??= 'an event that is no document';
  why ??= rowsFault(alone, sets);
  return why ? refused(why, nulled) : { ...passes, nulled };
}

const isReply = (root: Node | null): root is Node =>
  root?.kind === 'object' || (root?.kind === 'array' && isList(root));

const routing = (text: string, root: Node): Place[] =>
  everyPlace(root).filter(({ node }) => text.slice(node.start, node.end) !== 'null');

const rowsFault = ({ rules }: Alone, decode: RowSet[]) => faultOf(rules, { prefill: [], decode });

/**
 * Adds the rows of a document's arrays to `sets`. Returns why the document must not pass, or null.
 */
function documentFault(
  text: string,
  root: Node,
  alone: Alone,
  event: boolean,
  sets: RowSet[],
): string | null {
  const found = routing(text, root);
  if (found.length > 0 && all(root, 'choices').length > 1) return 'choices twice';
  if (isTwice(root, found)) return 'an array twice';
  const read: { place: Place; rows: number }[] = [];
  for (const place of found) {
    const set = isRaw(place) ? rawSet(text, root, place, alone) : arraySet(text, place);
    if (typeof set === 'string') return set;
    if (set.rows.length > 0 || set.topK > 0) {
      const wrong = isRaw(place)
        ? misfitOfIds(alone.rules, set.rows[0]?.length ?? 0)
        : misfit(alone.rules, set.layers, set.topK);
      if (wrong) return wrong;
    }
    sets.push(set);
    read.push({ place, rows: set.rows.length });
  }
  return cachedFault(text, root, found, alone) ?? (event ? null : countFault(text, root, read, alone));
}

/**
 * Whether a place with an array occurs twice. SGLang's two places on a reply, `meta_info` and
 * `sglext`, count as one.
 */
function isTwice(root: Node, found: Place[]): boolean {
  const seen = new Set<string>();
  const holders = new Set(found.map((place) => holder(place)));
  return everyPlace(root).some((place) => {
    const name = holder(place);
    const again = seen.has(name);
    seen.add(name);
    return again && holders.has(name);
  });
}

const holder = ({ key, choice }: Place) => `${key.includes('.') ? 'raw' : key} ${choice}`;

function arraySet(text: string, { node }: Place): RowSet | string {
  const own = text.slice(node.start, node.end);
  if (own.startsWith('[')) return listedRows(text, node) ?? 'lists of another form';
  const dialect = DIALECTS.find(({ first }) => own.startsWith(first));
  const value = dialect?.read(own);
  return value ? setOf(value) : 'an array that can not be read';
}

/**
 * Reads an array without a header by the counts beside it. Without counts the number of its rows is
 * unknown, and the set is empty.
 */
function rawSet(text: string, root: Node, { node, choice }: Place, alone: Alone): RowSet | string {
  const bytes = base64Of(text.slice(node.start, node.end));
  if (!bytes) return 'an array that can not be read';
  const listed = root.kind === 'array';
  const element = listed ? root.items[choice]! : root;
  const [prompt, completion] = ['prompt_tokens', 'completion_tokens'].map((key) =>
    countOf(text, element, key, listed),
  );
  if (prompt === null || completion === null) return 'counts that differ';
  const known = (listed || alone.n === 1) && prompt! >= 0 && completion! >= 1;
  const raw = wholeRaw(bytes, known ? prompt! + completion! - 1 - Math.max(alone.start, 0) : -1);
  return typeof raw === 'string' ? raw : { rows: rowsOf(raw.own, '<i4', raw.width), layers: 0, topK: 0 };
}

function cachedFault(text: string, root: Node, found: Place[], { cached }: Alone): string | null {
  if (cached === 'any') return null;
  // The elements of a list are SGLang's and have `meta_info`. A member `usage` of such an element
  // has no meaning.
  const said = (holder: Node) => [
    ...(root.kind === 'array' ? [] : all(holder, 'usage'))
      .flatMap((usage) => all(usage, 'prompt_tokens_details'))
      .flatMap((details) => all(details, 'cached_tokens')),
    ...all(holder, 'meta_info').flatMap((meta) => all(meta, 'cached_tokens')),
  ];
  const holders = root.kind === 'array' ? root.items : [root];
  for (const [i, each] of holders.entries()) {
    const counts = said(each).map((node) => integer(text, node));
    if (counts.some((count) => count > 0)) return 'tokens from a cache';
    const arrays = root.kind === 'array' ? found.filter(({ choice }) => choice === i) : found;
    if (cached === 'no hit' || arrays.length === 0) continue;
    if (cached === 'never' || !counts.includes(0)) return 'nothing says that no token came from a cache';
  }
  return null;
}

/** Checks the rows of a whole reply against its token counts, if every choice has an array. */
function countFault(
  text: string,
  root: Node,
  read: { place: Place; rows: number }[],
  { counted, start, prompts }: Alone,
): string | null {
  const apart = read.filter(({ place }) => place.key === 'prompt_routed_experts');
  if (new Set(apart.map(({ rows }) => rows)).size > 1) return 'prompts of different lengths';
  const arrays = read.filter(({ place }) => place.key === 'routed_experts');
  if (!counted || root.kind === 'array' || arrays.length === 0) return null;
  if (arrays.length !== choicesOf(root).length) return null;
  const prompt = countOf(text, root, 'prompt_tokens');
  const completion = countOf(text, root, 'completion_tokens');
  if (prompt === null || completion === null) return 'counts that differ';
  const rows = arrays.reduce((sum, array) => sum + array.rows, 0);
  const wrong = 'another number of rows than of tokens';
  if (apart.length > 0) {
    if (prompts <= 1 && prompt >= 0 && prompt !== apart[0]!.rows) return wrong;
    return completion < 1 || rows + arrays.length === completion ? null : wrong;
  }
  if (prompt < 0 || completion < 1) return null;
  const tokens = Math.floor(arrays.length / Math.max(prompts, 1)) * prompt + completion;
  // An engine that does not know the field also returns the rows before `start`.
  const skipped = [0, Math.max(start, 0) * arrays.length];
  return skipped.some((before) => before + rows + arrays.length === tokens) ? null : wrong;
}
