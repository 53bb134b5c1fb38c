// A store that all engines share: decode finds what prefill has put there. `kv_transfer_params` are not looked at.

import type { Call } from '../call.ts';
import type { Fleet } from '../fleet.ts';
import type { EngineOptions } from '../options.ts';
import { ALONE, type Agreement, type Handshake } from './handshake.ts';

export class SharedStorage implements Handshake {
  constructor(
    private readonly options: EngineOptions,
    private readonly fleet: Fleet,
  ) {}

  begin(call: Call): Agreement {
    if (this.options.role === 'decode') {
      return {
        remote: (p) => {
          const { tokens } = call.prompts[p]!;
          return this.fleet.isStored(tokens) ? tokens : null;
        },
      };
    }
    for (const { tokens } of call.prompts) this.fleet.store(tokens);
    return ALONE;
  }
}
