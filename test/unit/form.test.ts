// Whether decode's array is whole or a tail, when decode was asked for the tail: the filter
// concludes this from evidence and never guesses.

import { describe, expect, test } from 'vitest';
import { arrayText, concatenate, overlay, randomRows, replyBody, type Shape } from './arrays.ts';
import { Random, withSeeds } from './random.ts';
import { Reason, checkLeaks, readReply, readResponse, type ResponseOptions } from './wasm.ts';

checkLeaks();

const SHAPE: Shape = { dtype: '|u1', layers: 2, topK: 1 };

interface Truth {
  prompt: number;
  /** Number of tokens of each choice. */
  tokens: number[];
  tail: boolean;
}

interface Telling {
  /** The place of `usage`: before the choices, behind them, or nowhere. */
  usage: 'before' | 'after' | 'none';
  /** `token_ids` of each choice: a list before or behind the array, null, or absent. */
  ids: 'before' | 'after' | 'null' | 'none';
  /** `max_tokens` of the request. */
  maxTokens: number;
  /** Indices of the choices whose array is null. */
  absent: number[];
}

/** A response of an engine that tells the truth, with these arrays. */
function response(truth: Truth, telling: Telling, arrays: string[]): Buffer {
  const choices = truth.tokens.map((tokens, i) => {
    const ids = telling.ids === 'null' ? 'null' : JSON.stringify(Array.from({ length: tokens }, (_, n) => n));
    const array = telling.absent.includes(i) ? 'null' : `"${arrays[i]}"`;
    const before = telling.ids === 'before' || telling.ids === 'null' ? `"token_ids":${ids},` : '';
    const after = telling.ids === 'after' ? `,"token_ids":${ids}` : '';
    // A list just before `token_ids` that could be mistaken for it. It is longer than `token_ids`
    // by the prompt.
    const logprobs = JSON.stringify(Array.from({ length: truth.prompt + tokens }, (_, n) => n));
    return `{"index":${i},"logprobs":${logprobs},${before}"routed_experts":${array}${after}}`;
  });
  const sum = truth.tokens.reduce((a, b) => a + b);
  const usage = `"usage":{"prompt_tokens":${truth.prompt},"completion_tokens":${sum}}`;
  const list = `"choices":[${choices.join(',')}]`;
  const members =
    telling.usage === 'before' ? [usage, list] : telling.usage === 'after' ? [list, usage] : [list];
  return Buffer.from(`{${members.join(',')}}`);
}

/** Reads a response. Either it is merged correctly, or it is refused. */
function judge(truth: Truth, telling: Telling, random: Random, options: ResponseOptions = {}): Reason {
  const prefill = arrayText(SHAPE, randomRows(random, SHAPE, truth.prompt));
  readReply(replyBody(prefill, truth.prompt));
  const arrays = truth.tokens.map((tokens) =>
    arrayText(SHAPE, randomRows(random, SHAPE, (truth.tail ? 0 : truth.prompt) + tokens - 1)),
  );
  const merge = truth.tail ? concatenate : overlay;
  const merged = arrays.map((array) => merge(prefill, array));
  const { reason, body, committed } = readResponse(response(truth, telling, arrays), {
    tail: true,
    choices: truth.tokens.length,
    maxTokens: telling.maxTokens,
    ...options,
  });
  const note = JSON.stringify({ truth, telling });
  if (reason === Reason.None) expect(body.toString(), note).toBe(response(truth, telling, merged).toString());
  else {
    expect([Reason.Ambiguous, Reason.Rows], note).toContain(reason);
    if (!committed) expect(body.length, note).toBe(0);
  }
  return reason;
}

const TELLINGS: Telling[] = (['before', 'after', 'none'] as const).flatMap((usage) =>
  (['before', 'after', 'null', 'none'] as const).flatMap((ids) =>
    [-1, 0].map((maxTokens) => ({ usage, ids, maxTokens, absent: [] })),
  ),
);

describe('of one choice', () => {
  test('an array is never taken for what it is not, for all small prompts and texts', () => {
    const random = new Random(1);
    for (let prompt = 1; prompt <= 7; prompt++) {
      for (let tokens = 1; tokens <= 16; tokens++) {
        for (const tail of [true, false]) {
          for (const telling of TELLINGS) {
            for (const slack of telling.maxTokens < 0 ? [0] : [0, 1, prompt, 100]) {
              const told =
                slack === 0 && telling.maxTokens < 0 ? telling : { ...telling, maxTokens: tokens + slack };
              for (const hold of [0, Infinity])
                judge({ prompt, tokens: [tokens], tail }, told, random, { hold });
            }
          }
        }
      }
    }
  });

  test.each<[string, Truth, Partial<Telling>]>([
    ['fewer rows than the prompt', { prompt: 9, tokens: [5], tail: true }, {}],
    ['as many rows as max_tokens', { prompt: 5, tokens: [3], tail: false }, { maxTokens: 7 }],
    ['token_ids, a tail', { prompt: 2, tokens: [9], tail: true }, { ids: 'before' }],
    ['token_ids, all rows', { prompt: 2, tokens: [9], tail: false }, { ids: 'before' }],
    ['usage before, a tail', { prompt: 2, tokens: [9], tail: true }, { usage: 'before' }],
    ['usage before, all rows', { prompt: 2, tokens: [9], tail: false }, { usage: 'before' }],
    ['usage behind, a tail', { prompt: 2, tokens: [9], tail: true }, { usage: 'after' }],
    ['usage behind, all rows', { prompt: 2, tokens: [9], tail: false }, { usage: 'after' }],
    [
      'usage behind token_ids that are null',
      { prompt: 4, tokens: [9], tail: true },
      { usage: 'after', ids: 'null' },
    ],
  ])('%s decides', (_, truth, telling) => {
    const told: Telling = { usage: 'none', ids: 'none', maxTokens: -1, absent: [], ...telling };
    for (const pieces of [[1e9], [1]])
      expect(judge(truth, told, new Random(2), { pieces })).toBe(Reason.None);
  });

  test('without evidence is ambiguous', () => {
    const told: Telling = { usage: 'none', ids: 'after', maxTokens: 100, absent: [] };
    for (const tail of [true, false]) {
      expect(judge({ prompt: 2, tokens: [9], tail }, told, new Random(3))).toBe(Reason.Ambiguous);
    }
  });
});

describe('of several choices', () => {
  test('no array is ever taken for what it is not, whatever the engine tells', () => {
    let merged = 0;
    withSeeds(3000, (random) => {
      const tokens = Array.from({ length: random.between(1, 4) }, () => random.between(1, 8));
      const truth = { prompt: random.between(1, 6), tokens, tail: random.chance(0.5) };
      const absent = tokens.map((_, i) => i).filter(() => random.chance(0.15));
      const maxTokens = random.chance(0.5) ? -1 : Math.max(...tokens) + random.below(6);
      const telling = { ...random.pick(TELLINGS), maxTokens, absent };
      const options = { hold: random.pick([0, 50, Infinity]), pieces: [random.between(1, 200)] };
      if (judge(truth, telling, random, options) === Reason.None) merged++;
    });
    if (process.env['SEED'] === undefined) expect(merged).toBeGreaterThan(1500);
  });

  test('a later one decides for those before it', () => {
    const told: Telling = { usage: 'none', ids: 'none', maxTokens: 100, absent: [] };
    // The first array has as many rows as a whole array could have; the second one has fewer than
    // the prompt.
    expect(judge({ prompt: 4, tokens: [8, 2], tail: true }, told, new Random(4))).toBe(Reason.None);
  });

  test('the sum of tokens decides for all', () => {
    const told: Telling = { usage: 'after', ids: 'none', maxTokens: 100, absent: [] };
    for (const tail of [true, false]) {
      expect(judge({ prompt: 2, tokens: [8, 9, 7], tail }, told, new Random(5))).toBe(Reason.None);
    }
  });
});

describe('in a stream', () => {
  /** Events with the counts so far. The last event has the array. */
  function stream(prompt: number, steps: number[], array: string, last: string): Buffer {
    let sum = 0;
    const events = steps.map((step, i) => {
      sum += step;
      const usage = `"usage":{"prompt_tokens":${prompt},"completion_tokens":${sum}}`;
      const end = i === steps.length - 1;
      const choice = `{"index":0,"token_ids":${JSON.stringify(Array(step).fill(7))}${end ? `,"routed_experts":"${array}"` : ''}}`;
      const members = [`"choices":[${choice}]`, ...(end && last === 'none' ? [] : [usage])];
      return `data: {${(last === 'before' ? members.reverse() : members).join(',')}}\n\n`;
    });
    return Buffer.from(events.join('') + 'data: [DONE]\n\n');
  }

  test('counts so far and the tokens of one event are no evidence', () => {
    withSeeds(3000, (random) => {
      const prompt = random.between(1, 5);
      const steps = Array.from({ length: random.between(1, 5) }, () => random.between(1, 4));
      const tokens = steps.reduce((a, b) => a + b);
      const tail = random.chance(0.5);
      const prefill = arrayText(SHAPE, randomRows(random, SHAPE, prompt));
      readReply(replyBody(prefill, prompt));
      const array = arrayText(SHAPE, randomRows(random, SHAPE, (tail ? 0 : prompt) + tokens - 1));
      const last = random.pick(['before', 'after', 'none']);
      const maxTokens = random.chance(0.5) ? -1 : tokens + random.below(5);
      const options = { events: true, tail: true, maxTokens, pieces: [random.between(1, 300)] };
      const { reason, body } = readResponse(stream(prompt, steps, array, last), options);
      if (reason === Reason.Ambiguous) return;
      expect(reason).toBe(Reason.None);
      const merged = (tail ? concatenate : overlay)(prefill, array);
      expect(body.toString()).toBe(stream(prompt, steps, merged, last).toString());
    });
  });
});
