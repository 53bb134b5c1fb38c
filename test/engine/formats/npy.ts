// Format A, vLLM's: a `.npy` file in base64.

import { encodeNpy, type NpyOptions } from '../npy.ts';
import type { MoeModel } from '../router.ts';
import { NOWHERE, shapeOf, type Format } from './format.ts';

export function npyFormat(model: MoeModel, options: NpyOptions = {}): Format {
  return {
    encode(routing) {
      if (!routing) return { ...NOWHERE, choice: { routed_experts: null } };
      const { data, count } = routing.rows;
      const file = encodeNpy(data, model.dtype, shapeOf(model, count), options);
      return { ...NOWHERE, choice: { routed_experts: file.toString('base64') } };
    },
  };
}
