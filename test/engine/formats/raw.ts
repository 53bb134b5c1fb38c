// Format D, SGLang's: raw little-endian int32 in base64, without a header. Where nothing was captured, nothing is said.

import { NOWHERE, bytesOf, type Format } from './format.ts';

/** The model's rows are int32 already. */
export function rawFormat(): Format {
  return {
    encode(routing) {
      if (!routing) return NOWHERE;
      const members = { routed_experts: bytesOf(routing.rows).toString('base64') };
      return { ...NOWHERE, after: { sglext: members }, meta: members };
    },
  };
}
