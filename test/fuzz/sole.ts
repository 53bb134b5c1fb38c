// Rows that are put into a response of SGLang's decode that has one token and no array, for the
// reference.

import { all, integer, isNull, last, type Node } from './json.ts';
import { choicesOf, countOf, everyPlace, isRaw } from './places.ts';
import type { Brought, Plan } from './prefill.ts';
import type { RawRows } from './raw.ts';
import type { Edit, Expected } from './reference.ts';

const ENDS = ['"length"', '"stop"', '"tool_calls"'];

const insertion = (at: number, text: string): Edit => ({ node: { start: at, end: at }, text });

const member = ({ data }: RawRows) => `"routed_experts":"${data.toString('base64')}"`;

const saysEnd = (text: string, node: Node | undefined): boolean =>
  node !== undefined && ENDS.includes(text.slice(node.start, node.end));

/** Where the key of a member begins. */
function keyStart(text: string, value: Node): number {
  const key = /"(?:[^"\\]|\\.)*"\s*:\s*$/.exec(text.slice(0, value.start));
  return key!.index;
}

/** Which of several prompts an event is of; -1: it does not tell. */
export const partOf = (text: string, root: Node): number => integer(text, last(root, 'index'));

/** The rows of a prompt of which prefill has a row for each token, and nothing else. */
function rowsFor({ raw, plans }: Brought, prompts: number, part: number): [RawRows, Plan] | null {
  if (!raw) return null;
  if (raw.length === 1 ? prompts > 1 : part < 0) return null;
  const i = raw.length === 1 ? 0 : part;
  const [rows, plan] = [raw[i], plans[i]];
  if (!rows || !plan || plan.seam !== plan.end || rows.start + rows.rows !== plan.end) return null;
  return rows.exact ? [rows, plan] : null;
}

/** Whether the counts beside the rows are those of one token; in a stream they may be unknown. */
function fits(text: string, element: Node, listed: boolean, plan: Plan): boolean {
  const prompt = countOf(text, element, 'prompt_tokens', listed);
  return (
    prompt !== null &&
    countOf(text, element, 'completion_tokens', listed) !== null &&
    (prompt < 0 || prompt === plan.end)
  );
}

/** Writes the member into an object: before `dp_rank`, else behind its last member. */
function intoMeta(text: string, meta: Node | undefined, rows: RawRows): Edit[] {
  if (meta?.kind !== 'object') return [];
  const [rank] = all(meta, 'dp_rank');
  if (rank) return [insertion(keyStart(text, rank), `${member(rows)},`)];
  return [insertion(meta.end - 1, `${meta.members.length > 0 ? ',' : ''}${member(rows)}`)];
}

const isNative = (element: Node): boolean => all(element, 'meta_info').length > 0;
const hasChoices = (element: Node): boolean => all(element, 'choices').length > 0;
const hasPlaces = (element: Node): boolean => everyPlace(element).some((place) => isRaw(place));

/** What is put into a whole document, or into an event that is not of choices. */
export function soleEdits(text: string, root: Node, { brought, prompts }: Expected, event: boolean): Edit[] {
  const list = root.kind === 'array';
  return (list ? root.items : [root]).flatMap((element, i) => {
    if (element.kind !== 'object' || hasPlaces(element)) return [];
    const native = isNative(element);
    if (native === (hasChoices(root) || hasChoices(element)) || (!native && event)) return [];
    const found = rowsFor(brought, prompts, list ? i : partOf(text, root));
    if (!found || !fits(text, element, list, found[1])) return [];
    if (countOf(text, element, 'completion_tokens', list) !== 1) return [];
    const [rows] = found;
    const meta = last(element, 'meta_info');
    if (native)
      return saysEnd(text, last(last(meta, 'finish_reason'), 'type')) ? intoMeta(text, meta, rows) : [];
    const choices = choicesOf(root);
    if (choices.length !== 1 || !saysEnd(text, last(choices[0], 'finish_reason'))) return [];
    if (all(choices[0], 'meta_info').length > 0) return intoMeta(text, last(choices[0], 'meta_info'), rows);
    if (rows.rows === 0) return [];
    const ext = last(root, 'sglext');
    if (ext) return ext.kind === 'object' ? intoExt(ext, rows) : [];
    return [insertion(root.end - 1, `,"sglext":{${member(rows)}}`)];
  });
}

const intoExt = (ext: Node, rows: RawRows): Edit[] => [
  insertion(ext.start + 1, member(rows) + (ext.members.length > 0 ? ',' : '')),
];

/** A stream of completions or of chat, event by event. */
export class SoleEvents {
  /** What stands before `choices` in the choice's last event; null before that has come. */
  #head: string | null = null;
  #generated = -1;
  #hasRows = false;

  constructor(private readonly expected: Expected) {}

  /** What is put in before an event or into it, as edits of its document. */
  edits(text: string, root: Node): Edit[] {
    const { brought, prompts } = this.expected;
    if (!brought.raw) return [];
    if (everyPlace(root).some((place) => isRaw(place) && !isNull(text, place.node))) {
      this.#hasRows ||= prompts === 1;
      return [];
    }
    if (this.#hasRows || hasPlaces(root) || isNative(root) || !hasChoices(root)) return [];
    const told = countOf(text, root, 'completion_tokens') ?? -1;
    if (told >= 0) this.#generated = told;
    const choices = choicesOf(root);
    if (choices.length === 0) {
      const ext = all(root, 'sglext').at(-1);
      if (!ext) return this.#event(text, root, 0);
      const rows = ext.kind === 'object' ? this.#rows(text, root) : null;
      if (!rows) return [];
      this.#hasRows = true;
      return intoExt(ext, rows);
    }
    if (choices.length === 1 && saysEnd(text, last(choices[0], 'finish_reason')))
      this.#head = text.slice(0, keyStart(text, all(root, 'choices')[0]!));
    return [];
  }

  /** What is put in before `[DONE]`. */
  beforeDone(): string {
    return this.#event('', null, 0)[0]?.text ?? '';
  }

  #event(text: string, root: Node | null, at: number): Edit[] {
    const rows = this.#rows(text, root);
    if (!rows) return [];
    this.#hasRows = true;
    const event = `${this.#head}"choices":[],"usage":null,"sglext":{${member(rows)}}}`;
    return [insertion(at, `${event}\n\ndata: `)];
  }

  #rows(text: string, root: Node | null): RawRows | null {
    const { brought, prompts, maxTokens } = this.expected;
    const sole = this.#generated >= 0 ? this.#generated === 1 : maxTokens === 1;
    if (this.#head === null || this.#hasRows || !sole) return null;
    const found = rowsFor(brought, prompts, -1);
    return found && (root === null || fits(text, root, false, found[1])) ? found[0] : null;
  }
}
