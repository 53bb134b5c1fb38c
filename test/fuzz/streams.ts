// The reference for event streams, in which every event is a document of its own.

import { CountedStream } from './counts.ts';
import { faultOf, type RowSet } from './examined.ts';
import { parse } from './json.ts';
import { countOf, places } from './places.ts';
import { prefillFault, type Plan } from './prefill.ts';
import { SoleEvents, partOf, soleEdits } from './sole.ts';
import {
  arraysOf,
  edit,
  edited,
  endsOf,
  filled,
  formsOf,
  nullsOf,
  ownSets,
  rawMerge,
  refused,
  splitMerge,
  type Expected,
  type Form,
  type Verdict,
} from './reference.ts';

/** The range of a document in the text of a stream. */
export interface Span {
  start: number;
  end: number;
}

/**
 * Whether a body that is announced as an event stream is none: one of its lines begins with a JSON
 * document.
 */
export const isNoStream = (text: string): boolean => /(^|[\r\n])[ \t]*[[{]/.test(withoutMark(text));

const withoutMark = (text: string): string => (text.startsWith('\xef\xbb\xbf') ? text.slice(3) : text);

/** The document of each event that has one: an object or a list. */
export function documentsOf(text: string): Span[] {
  const out: Span[] = [];
  const line = /[^\r\n]*/g;
  line.lastIndex = text.length - withoutMark(text).length;
  for (let found = line.exec(text); found && line.lastIndex <= text.length; found = line.exec(text)) {
    const document = /^data:[ \t]*(?=\{|\[(?!D))/.exec(found[0]);
    if (document) out.push({ start: found.index + document[0].length, end: found.index + found[0].length });
    if (found[0] === '') line.lastIndex++;
  }
  return out;
}

/** Like `verdictOf`, for a stream. */
export function streamVerdict(body: Buffer, expected: Expected): Verdict {
  const text = body.toString('latin1');
  const verdict = streamVerdictOfText(text, expected);
  if (verdict.absent || verdict.merged.length > 0) return verdict;
  const merged = filled(text, expected.brought).flatMap((each) => streamVerdictOfText(each, expected).merged);
  return { ...verdict, merged };
}

function streamVerdictOfText(text: string, expected: Expected): Verdict {
  if (isNoStream(text)) return refused('no stream of events');
  const { raw, split } = expected.brought;
  const wrong = prefillFault(expected.rules, expected.brought);
  if (!wrong && (raw || split)) return wholeEvents(text, expected);
  return arrayEvents(text, wrong ? { ...expected, brought: { ...expected.brought, rows: null } } : expected);
}

/** The verdict for forms in which each event is merged on its own. */
function wholeEvents(text: string, expected: Expected): Verdict {
  const { split, sets } = expected.brought;
  const counted = new CountedStream(split?.tokens ?? 0, expected.n);
  const own: RowSet[] = [];
  const out = { body: '', choices: 0, placed: false };
  let nulled = '';
  let why = '';
  let at = 0;
  const sole = new SoleEvents(expected);
  // What stands between documents. The rows of a sole token come before `[DONE]` at the latest.
  const between = (part: string): string => {
    const done = out.choices === 0 ? /^data:[ \t]*(?=\[D)/m.exec(part) : null;
    const event = done ? sole.beforeDone() : '';
    if (!done || event === '') return part;
    out.choices++;
    const behind = done.index + done[0].length;
    return part.slice(0, behind) + event + part.slice(behind);
  };
  for (const { start, end } of documentsOf(text)) {
    const part = text.slice(start, end);
    const root = parse(part);
    if (root?.kind !== 'object') return refused('an event that is no JSON object');
    const found = places(part, root);
    nulled += text.slice(at, start) + nullsOf(part, found);
    const before = between(text.slice(at, start));
    const merged = split
      ? splitMerge(part, root, found, expected, true)
      : rawMerge(
          part,
          root,
          found,
          expected,
          [...sole.edits(part, root), ...soleEdits(part, root, expected, true)],
          partOf(part, root),
        );
    if (typeof merged === 'string') why ||= merged;
    else {
      if ('sets' in merged) own.push(...merged.sets);
      else {
        const { generated } = merged;
        own.push(...generated.map(({ set }) => set));
        const ends = generated.map(({ choice, set }) => ({ choice, end: split!.tokens + set.rows.length }));
        why ||= counted.fault(part, root, ends) ?? '';
      }
      out.body += before + merged.body;
      out.choices += merged.choices;
      out.placed ||= merged.placed;
    }
    at = end;
  }
  nulled += text.slice(at);
  out.body += between(text.slice(at));
  if (split && out.choices > expected.n) why ||= 'more arrays than choices';
  if (split && out.choices > 0 && !out.placed) why ||= 'no place for the rows of the prompt';
  why ||= (out.choices > 0 && faultOf(expected.rules, { prefill: sets, decode: own })) || '';
  if (why) return refused(why, nulled);
  if (out.choices === 0 && !out.placed) return { merged: [], absent: true, nulled, why: 'no routing' };
  return { merged: [out], absent: false, nulled, why: '' };
}

function arrayEvents(text: string, expected: Expected): Verdict {
  const documents = documentsOf(text);
  const forms: Form[] = (expected.brought.plans[0]?.asked ?? 0) > 0 ? ['full', 'tail'] : ['full'];
  let nulled = '';
  const outs = forms.map(() => '');
  const possible = forms.map(() => true);
  const plan: Plan | undefined = expected.brought.plans[0];
  const counted = forms.map(() => new CountedStream(plan?.end ?? 0, expected.n));
  const own = forms.map((): RowSet[] => []);
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
      const ends = plan ? endsOf(list, form, plan) : [];
      const wrong = plan ? counted[i]!.fault(part, root, ends) : null;
      if (wrong) possible[i] = false;
      const edits = possible[i] ? list.map((array) => edit(array, expected.brought.rows!, plan!, form)) : [];
      if (possible[i] && plan) own[i]!.push(...ownSets(list, form, plan));
      outs[i] += text.slice(at, start) + edited(part, edits);
    });
    at = end;
  }
  nulled += text.slice(at);
  if (why) return refused(why, nulled);
  if (arrays === 0) return { merged: [], absent: true, nulled, why: 'no routing' };
  const faults = own.map((decode) => faultOf(expected.rules, { prefill: expected.brought.sets, decode }));
  const merged = outs.flatMap((out, i) =>
    possible[i] && faults[i] === null ? [{ body: out + text.slice(at), choices: arrays }] : [],
  );
  return { merged, absent: false, nulled, why: faults.find((each) => each !== null) ?? 'no form fits' };
}
