// Format A, which is vLLM's: a `.npy` file in base64.

import { encodeNpy, type NpyOptions } from '../../../yardstick/npy.ts';
import type { Routing } from '../compute.ts';
import type { MoeModel } from '../router.ts';
import { dtypeOf } from '../../../yardstick/rows.ts';
import { NOWHERE, shapeOf, type Format } from './format.ts';

export function npyFormat(model: MoeModel, options: NpyOptions = {}): Format {
  const encode = ({ rows }: Routing) =>
    encodeNpy(rows.data, dtypeOf(rows), shapeOf(model, rows.count), options).toString('base64');
  return {
    encode(routing) {
      const members = { routed_experts: routing && encode(routing) };
      return { ...NOWHERE, choice: members, meta: members };
    },
  };
}
