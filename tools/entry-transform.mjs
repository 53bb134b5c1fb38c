// json-as's transform takes any `assembly/index` for its own and marks it a library, which exports nothing
// (json-as 1.6.0, `transform/lib/index.js`, end of `afterParse`). This one marks ours an entry again, at a later hook.

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
