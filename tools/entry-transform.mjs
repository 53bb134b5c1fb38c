// The transform of json-as takes any `assembly/index` for its own and marks it as a library, which
// exports nothing (json-as 1.6.0, `transform/lib/index.js`, end of `afterParse`). This transform
// marks the filter's entry as an entry again, at a later hook.

import { SourceKind } from 'assemblyscript/dist/assemblyscript.js';
import { Transform } from 'assemblyscript/dist/transform.js';

export default class EntryTransform extends Transform {
  /** @param {import('assemblyscript/dist/assemblyscript.js').Program} program */
  afterInitialize(program) {
    for (const source of program.sources) {
      if (source.internalPath === 'assembly/index') source.sourceKind = SourceKind.UserEntry;
    }
  }
}
