// The simulated SGLang writes what SGLang 0.5.23 wrote: the same members in the same order, of the
// same kinds, in whole replies and in events.

import { describe, expect, test } from 'vitest';
import { createEngine } from '../engine/engine.ts';
import { loadCapture, sglangCaptureNames } from '../engine/replay.ts';
import { text } from './exchanges.ts';

type Shape = string | Shape[] | [key: string, shape: Shape][];

/** The members of a value in order, and the kinds of what is in them. */
function shapeOf(value: unknown): Shape {
  if (Array.isArray(value))
    return value.every((each) => typeof each === 'number') ? 'numbers' : value.map(shapeOf);
  if (typeof value !== 'object' || value === null) return value === null ? 'null' : typeof value;
  return Object.entries(value).map(([key, of]) => [
    key,
    // Whether tokens came from the cache is the run's.
    key === 'cached_tokens_details' ? 'details' : shapeOf(of),
  ]);
}

const documentsOf = (body: string): string[] =>
  body.startsWith('data:') ? [...body.matchAll(/^data: (\{.*\})$/gm)].map(([, event]) => event!) : [body];

/** The shapes of the documents of a body, each once, in any order. */
const shapesOf = (body: string): string[] =>
  [...new Set(documentsOf(body).map((document) => JSON.stringify(shapeOf(JSON.parse(document)))))].sort();

describe('the shape of replies is that of SGLang 0.5.23', () => {
  test.each(sglangCaptureNames())('%s', (name) => {
    const { oracle } = loadCapture(name);
    const engine = createEngine({ role: 'oracle', api: 'sglang', format: 'D' });
    const { method, path, headers, body } = oracle.request;
    const reply = engine({ method, path, headers, body });
    expect(shapesOf(text(reply))).toEqual(shapesOf(oracle.response.body.toString('utf8')));
  });
});
