// Format D, which is SGLang's: raw little-endian int32 in base64, without a header. Where nothing
// was captured, the reply has no such member.

import { bytesOf } from '../../../yardstick/rows.ts';
import { NOWHERE, type Format } from './format.ts';

/** Needs no conversion: the engine sets the model's dtype to int32 for this format. */
export function rawFormat(): Format {
  return {
    encode(routing) {
      if (!routing) return NOWHERE;
      const members = { routed_experts: bytesOf(routing.rows).toString('base64') };
      return { ...NOWHERE, after: { sglext: members }, meta: members };
    },
  };
}
