// Which requests vLLM 0.30 refuses for a member that the prefill leg caps or drops, independently
// of the filter's code. `refusals.test.ts` compares it with the verdicts of vLLM's own request
// classes.

import { CHAT, GENERATE } from '../scenarios/messages.ts';
import { last, type Node } from './json.ts';

/**
 * `unsure`: a value is spelled in a way that only the engine can be asked about, so both answers
 * may be right.
 */
export type Verdict = 'served' | 'refused' | 'unsure';

/** What a value is read as in Pydantic's lax mode: `wrong` if it is not of the type. */
type Read = number | null | 'wrong' | 'unsure';

/** No count of an engine is as large, and a double has every number below it. */
const MOST = 2 ** 53;

const NUMBER_IN_TEXT = /^ *([+-]?\d+(?:_\d+)*)(?:\.0+)? *$/;
const TRUE = /^(true|t|yes|y|on|1)$/i;
const FALSE = /^(false|f|no|n|off|0)$/i;

/** The text of a string without its quotes; null where it is too odd to be read here. */
const plainText = (text: string): string | null =>
  text.length > 66 || /\\|[^\0-\x7f]/.test(text) ? null : text.slice(1, -1);

function readInteger(text: string, node: Node): Read {
  const own = text.slice(node.start, node.end);
  if (node.kind === 'array' || node.kind === 'object') return 'wrong';
  if (node.kind === 'string') {
    const plain = plainText(own);
    if (plain === null) return 'unsure';
    const digits = NUMBER_IN_TEXT.exec(plain)?.[1];
    return digits === undefined ? 'wrong' : clamped(Number(digits.replaceAll('_', '')));
  }
  if (own === 'null') return null;
  if (own === 'true') return 1;
  if (own === 'false') return 0;
  if (node.kind === 'literal') return 'wrong';
  if (/^-?\d+$/.test(own)) return clamped(Number(own));
  // Very many digits, or a large exponent, are a question of how a double is rounded.
  const digits = own
    .replace(/[eE].*/, '')
    .replace(/\D/g, '')
    .replace(/^0+/, '');
  if (own.length > 64 || digits.length > 15 || Math.abs(Number(/[eE](.*)/.exec(own)?.[1] ?? 0)) > 14)
    return 'unsure';
  const value = Number(own);
  return Number.isInteger(value) ? clamped(value) : 'wrong';
}

const clamped = (value: number) => Math.max(-MOST, Math.min(MOST, value));

function readBoolean(text: string, node: Node): Read {
  if (node.kind === 'string') {
    const plain = plainText(text.slice(node.start, node.end));
    if (plain === null) return 'unsure';
    return TRUE.test(plain) ? 1 : FALSE.test(plain) ? 0 : 'wrong';
  }
  const value = readInteger(text, node);
  return typeof value === 'number' && value !== 0 && value !== 1 ? 'wrong' : value;
}

export interface Refusal {
  verdict: Verdict;
  /** The most tokens that the request asks for; null where it names none. */
  cap: number | null;
  /** The fewest tokens that it asks for. */
  least: number;
}

/** Reads a request of vLLM's, whose root is an object. */
export function refusalOf(path: string, text: string, root: Node): Refusal {
  const generate = path === GENERATE;
  const holder = generate ? last(root, 'sampling_params') : root;
  const verdicts = new Set<Verdict>();
  const add = (refused: boolean) => refused && verdicts.add('refused');
  // A missing member has its default; null is one for some members only.
  const integer = (key: string, mayBeNull: boolean): number | null | undefined => {
    const node = last(holder, key);
    if (!node) return undefined;
    const value = readInteger(text, node);
    if (value === 'unsure') verdicts.add('unsure');
    add(value === 'wrong' || (value === null && !mayBeNull));
    return typeof value === 'number' || value === null ? value : undefined;
  };
  const boolean = (owner: Node | undefined, key: string): Node | undefined => {
    const node = last(owner, key);
    const value = node && readBoolean(text, node);
    if (value === 'unsure') verdicts.add('unsure');
    add(value === 'wrong');
    return node;
  };
  add(generate && holder?.kind !== 'object');

  const maxTokens = integer('max_tokens', true);
  const least = integer('min_tokens', false) ?? 0;
  const n = integer('n', path === CHAT) ?? 1;
  const newer = path === CHAT ? integer('max_completion_tokens', true) : undefined;
  const stream = boolean(root, 'stream');
  const options = last(root, 'stream_options');
  add(
    options !== undefined && options.kind !== 'object' && text.slice(options.start, options.end) !== 'null',
  );
  for (const key of ['include_usage', 'continuous_usage_stats']) boolean(options, key);

  const cap = newer ?? capOf(path, maxTokens);
  const result = (): Refusal => {
    // Pydantic looks at all types before anything else is looked at.
    const verdict = verdicts.has('refused') ? 'refused' : verdicts.has('unsure') ? 'unsure' : 'served';
    return { verdict, cap, least };
  };
  if (verdicts.size > 0) return result();

  add(n < 1);
  if (n > 1) {
    const heat = last(holder, 'temperature');
    const zero = heat && isZero(text, heat);
    if (zero === 'unsure') verdicts.add('unsure');
    add(zero === true);
  }
  add(cap !== null && cap < 1);
  add(least < 0 || (cap !== null && least > cap));
  if (!generate && options?.kind === 'object' && options.members.length > 0) add(!isTruthy(text, stream));
  if (cap === MOST) verdicts.add('unsure');
  return result();
}

function capOf(path: string, maxTokens: number | null | undefined): number | null {
  if (path === CHAT) return maxTokens ?? null;
  // In a completion null is the default of 16, in a generate request it is no cap.
  if (path === GENERATE) return maxTokens === undefined ? 16 : maxTokens;
  return maxTokens ?? 16;
}

/** Whether a temperature is that of greedy sampling. */
function isZero(text: string, node: Node): boolean | 'unsure' {
  const own = text.slice(node.start, node.end);
  if (node.kind === 'string') {
    const plain = plainText(own);
    return plain === null || /[eE]/.test(plain) ? 'unsure' : /^ *[+-]?0+(\.0*)? *$/.test(plain);
  }
  if (own === 'false') return true;
  return /[eNI]/.test(own) ? 'unsure' : node.kind === 'number' && Number(own) === 0;
}

/** The truth of a value as Python has it: `stream` before it is read as a boolean. */
function isTruthy(text: string, node: Node | undefined): boolean {
  if (!node) return false;
  const own = text.slice(node.start, node.end);
  if (node.kind === 'string') return own.length > 2;
  if (node.kind === 'number') return Number(own) !== 0;
  return own === 'true';
}
