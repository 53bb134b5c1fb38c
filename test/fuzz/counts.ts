// Checks rows against token counts, for the reference: an array ends with the row of the last token
// but one.

import { integer, last, type Node } from './json.ts';
import { choicesOf, countOf } from './places.ts';

/** An array: the index of its choice, and the position after its last row. */
export interface Ends {
  choice: number;
  end: number;
}

/** The number of tokens that a choice lists in `token_ids`; -1 if it lists none. */
export function tokensOf(choice: Node | undefined): number {
  const ids = last(choice, 'token_ids');
  return ids?.kind === 'array' ? ids.items.length : -1;
}

/**
 * Why the arrays of a whole document do not have the rows of their tokens, given a prompt of
 * `prompt` tokens; null if no count contradicts them.
 */
export function countsFault(text: string, root: Node, arrays: Ends[], prompt: number): string | null {
  const choices = choicesOf(root);
  for (const { choice, end } of arrays) {
    const tokens = tokensOf(choices[choice]);
    if (tokens > 0 && end !== prompt + tokens - 1) return 'another number of rows than of token_ids';
  }
  const completion = countOf(text, root, 'completion_tokens') ?? -1;
  if (arrays.length === 0 || arrays.length !== choices.length) return null;
  return sumFault(arrays, prompt, completion);
}

function sumFault(arrays: Ends[], prompt: number, completion: number): string | null {
  const rows = arrays.reduce((sum, { end }) => sum + end - prompt, 0);
  return completion < 1 || rows + arrays.length === completion
    ? null
    : 'another number of rows than of tokens';
}

/** The same check for a stream, each of whose events has some of the tokens. */
export class CountedStream {
  /** The number of tokens of each choice so far; -1 if one of its events did not tell. */
  private tokens = new Map<number, number>();
  private arrays: Ends[] = [];

  constructor(
    private prompt: number,
    private n: number,
  ) {}

  /** Takes the next event and the arrays in it. Returns what is wrong, or null. */
  fault(text: string, root: Node, arrays: Ends[]): string | null {
    const choices = choicesOf(root);
    for (const [i, choice] of choices.entries()) {
      const told = integer(text, last(choice, 'index'));
      const index = told < 0 && this.n === 1 ? 0 : told;
      const tokens = tokensOf(choice);
      const before = this.tokens.get(index) ?? 0;
      if (index >= 0) this.tokens.set(index, tokens < 0 || before < 0 ? -1 : before + tokens);
      const own = arrays.find((array) => array.choice === i);
      const known = index >= 0 && index < this.n ? this.tokens.get(index)! : -1;
      if (own && known > 0 && own.end !== this.prompt + known - 1)
        return 'another number of rows than of token_ids';
    }
    this.arrays.push(...arrays);
    // Only an event without choices reports the number of tokens of all choices.
    if (this.arrays.length !== this.n || (this.n > 1 && choices.length > 0)) return null;
    return sumFault(this.arrays, this.prompt, countOf(text, root, 'completion_tokens') ?? -1);
  }
}
