// Format B, which prime-rl and Dynamo use: an object with the raw bytes in base64, their shape, and
// the position of the first token.

import type { Routing } from '../compute.ts';
import type { ObjectOptions } from '../options.ts';
import type { MoeModel } from '../router.ts';
import { DTYPE_NAMES, bytesOf, dtypeOf } from '../../../yardstick/rows.ts';
import { NOWHERE, from, shapeOf, type Format } from './format.ts';

const KEYS = ['data', 'shape', 'start', 'dtype'] as const;

/**
 * Throws a `RangeError` if the object has no `dtype` and the rows are not uint8, because a reader
 * would take them for uint8.
 */
export function objectFormat(model: MoeModel, options: ObjectOptions = {}): Format {
  const keys = options.keys ?? KEYS;
  if (!keys.includes('dtype') && model.dtype !== '|u1') throw new RangeError('only uint8 goes without dtype');
  const encode = (routing: Routing) => {
    const first = options.start === 'generated' ? routing.promptTokens : (options.start ?? 0);
    const sent = from(routing, first, model);
    const members = {
      data: bytesOf(sent.rows).toString('base64'),
      shape: shapeOf(model, sent.rows.count),
      start: sent.start,
      dtype: DTYPE_NAMES[dtypeOf(sent.rows)],
    };
    return Object.fromEntries(keys.map((key) => [key, members[key]]));
  };
  return {
    encode(routing) {
      const members = { routed_experts: routing && encode(routing) };
      return { ...NOWHERE, choice: members, meta: members };
    },
  };
}
