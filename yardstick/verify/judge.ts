// Judges one answer of the deployment by another answer to the same request.

import type { Captured } from '../arrays.ts';
import type { Answer } from '../client.ts';
import {
  Row,
  commonTokens,
  compareRows,
  impossible,
  placeOf,
  positioned,
  type Place,
  type Positioned,
  type Shape,
} from '../compare.ts';
import { NoReply, readReply, type Choice, type Reply } from '../reply.ts';
import type { Asked } from '../requests.ts';

/** From the worst to the best. */
export const VERDICTS = [
  /** Rows are wrong, or there are more or fewer than tokens. */
  'wrong',
  /** 200, but no array, and nothing that says so. */
  'missing',
  /** The connection broke off without an answer, or the answer is none. */
  'failed',
  /** An error, or an answer that says that it has no rows that can be relied on. */
  'refused',
  /** There is nothing to compare with. */
  'unchecked',
  /** Every row that can be compared is equal. */
  'right',
] as const;
export type Verdict = (typeof VERDICTS)[number];

export interface JudgedChoice {
  promptTokens: number;
  start: number;
  /** By row, from `start` on. */
  rows: Row[];
}

export interface Judged {
  verdict: Verdict;
  why: string | null;
  choices: JudgedChoice[];
  textDiffers: boolean;
  /** The layers in which wrong rows differ, and in how many rows. */
  layers: Map<number, number>;
  /** The number of rows that no router gives. */
  impossible: number;
}

/** A reply, or why there is none. */
export type Read = { reply: Reply } | { refused: string } | { failed: string };

export function readAnswer({ status, body, contentType, complete }: Answer): Read {
  if (status === 0) return { failed: `no answer (${body.toString().slice(0, 100)})` };
  if (status !== 200) return { refused: `${status}: ${body.toString().slice(0, 200)}` };
  if (!complete) return { refused: 'cut before its end' };
  try {
    return { reply: readReply(body, contentType) };
  } catch (error) {
    if (error instanceof NoReply) return { refused: error.message };
    throw error;
  }
}

/** Outcomes by which the filter says that an answer has no rows to rely on. */
const WITHOUT_ROWS = /^(absent|unmerged|rejected|aborted)/;

const nothing = (verdict: Verdict, why: string | null): Judged => ({
  ...{ verdict, why, choices: [], textDiffers: false },
  ...{ layers: new Map<number, number>(), impossible: 0 },
});

export function judge(asked: Asked, answer: Answer, reference: Read, shape: Shape): Judged {
  const read = readAnswer(answer);
  if ('failed' in read) return nothing('failed', read.failed);
  if ('refused' in read) return nothing('refused', read.refused);
  const one = new Comparison(asked, read.reply, 'reply' in reference ? reference.reply : null, shape);
  const honest = WITHOUT_ROWS.test(answer.outcome ?? '');
  const all = read.reply.choices.map((choice) => one.choice(choice, honest));
  if (all.length === 0) return nothing('failed', 'a reply without choices');
  const rank = ({ verdict }: Judged) => VERDICTS.indexOf(verdict);
  const worst = all.reduce((a, b) => (rank(a) <= rank(b) ? a : b));
  const layers = new Map<number, number>();
  for (const of of all) for (const [layer, n] of of.layers) layers.set(layer, (layers.get(layer) ?? 0) + n);
  return {
    verdict: worst.verdict,
    why: worst.why,
    choices: all.flatMap(({ choices }) => choices),
    textDiffers: all.some(({ textDiffers }) => textDiffers),
    layers,
    impossible: all.reduce((sum, of) => sum + of.impossible, 0),
  };
}

class Comparison {
  constructor(
    private readonly asked: Asked,
    private readonly reply: Reply,
    /** The reply that is compared with; null if there is none. */
    private readonly right: Reply | null,
    private readonly shape: Shape,
  ) {}

  /** `honest`: the answer says that its rows cannot be relied on. */
  choice(choice: Choice, honest: boolean): Judged {
    const other = this.right?.choices.find(({ index }) => index === choice.index) ?? null;
    const wrong: Verdict = honest ? 'refused' : 'wrong';
    if (choice.unreadable !== null)
      return nothing(wrong, `an array that cannot be read: ${choice.unreadable}`);
    if (!choice.array) {
      if (honest) return nothing('refused', 'no array, as the outcome says');
      return other && !other.array
        ? nothing('unchecked', 'no array is expected')
        : nothing('missing', 'no array');
    }
    const own = this.#rows(choice, this.reply);
    if (typeof own === 'string') return nothing(wrong, own);
    const reference = other?.array ? this.#rows(other, this.right!) : null;
    if (reference && typeof reference !== 'string' && reference.start !== own.start) {
      return nothing(wrong, `the first row is that of token ${own.start} instead of ${reference.start}`);
    }
    const judged = { ...nothing('right', null), ...this.#compared(choice, own, other) };
    const { rows } = judged.choices[0]!;
    for (let row = 0; row < own.count; row++) {
      const why = rows[row] === Row.Equal ? null : impossible(own.ids, row, this.shape);
      if (why === null) continue;
      rows[row] = Row.Wrong;
      judged.impossible++;
      judged.why ??= `row ${own.start + row}: ${why}`;
    }
    if (rows.includes(Row.Wrong)) {
      judged.verdict = wrong;
      judged.why ??= `row ${own.start + rows.indexOf(Row.Wrong)} differs`;
    } else if (rows.length > 0 && rows.every((row) => row === Row.Unknown)) judged.verdict = 'unchecked';
    return judged;
  }

  /** The rows of a choice by position, or what is wrong with their number. */
  #rows(choice: Choice, reply: Reply): Positioned | string {
    const { start = 0, n = 1 } = this.asked;
    const generated = choice.tokens?.length ?? (n === 1 ? reply.completionTokens : null);
    if (reply.promptTokens === null || generated === null) return 'the reply does not count its tokens';
    const all = reply.promptTokens + generated - 1;
    try {
      return positioned(choice.array!, all - start, start, this.shape);
    } catch (error) {
      const whole = start > 0 && this.#ignoresStart(choice.array!, all);
      return whole ? positioned(choice.array!, all, 0, this.shape) : (error as Error).message;
    }
  }

  /**
   * vLLM before 0.30 does not know `routed_experts_prompt_start` and returns all rows. An answer
   * may do so where the one that it is compared with does.
   */
  #ignoresStart({ shape, ids }: Captured, all: number): boolean {
    return (shape ? shape[0] : ids.length / (this.shape.layers * this.shape.topK)) === all;
  }

  #compared(
    choice: Choice,
    own: Positioned,
    other: Choice | null,
  ): Pick<Judged, 'choices' | 'textDiffers' | 'layers'> {
    const promptTokens = this.reply.promptTokens!;
    const said = (rows: Row[], textDiffers = false, layers = new Map<number, number>()) => ({
      choices: [{ promptTokens, start: own.start, rows }],
      textDiffers,
      layers,
    });
    const comparable = other?.array && this.right!.promptTokens === promptTokens;
    const reference = comparable ? this.#rows(other, this.right!) : 'nothing to compare with';
    if (!other || typeof reference === 'string') return said(new Array<Row>(own.count).fill(Row.Unknown));
    const common = commonTokens(choice.tokens, other.tokens);
    const textDiffers =
      common === null
        ? choice.text !== other.text
        : common !== choice.tokens!.length || common !== other.tokens!.length;
    // The row of a token depends on the tokens up to it, and on no later one.
    const end = textDiffers ? promptTokens + (common ?? 0) : Infinity;
    const { rows, layers } = compareRows(own, reference, end, this.shape);
    return said(rows, textDiffers, layers);
  }
}

/** Counts rows by place and by what is said of them: by `Row`. */
export type Tally = Record<Place, [equal: number, numerics: number, wrong: number, unknown: number]>;

export const emptyTally = (): Tally => ({
  prompt: [0, 0, 0, 0],
  last: [0, 0, 0, 0],
  generated: [0, 0, 0, 0],
});

export function count(tally: Tally, { promptTokens, start, rows }: JudgedChoice): void {
  rows.forEach((row, i) => tally[placeOf(start + i, promptTokens)][row]++);
}
