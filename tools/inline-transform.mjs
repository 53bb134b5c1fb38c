// How much Binaryen inlines. At `shrinkLevel` 0 the compiler lets it inline whatever has no calls
// and is smaller than 70, wherever it is called. With many small classes that makes the filter 5 %
// larger and no faster. At 1 not even the check of the shadow stack (of size 11) is inlined, which
// makes the code a quarter slower. So: what is as small as that check, and whatever is called from
// one place only.

import { Transform } from 'assemblyscript/dist/transform.js';

/** Sizes as Binaryen measures them: about the number of expressions. */
const ALWAYS = 11;
const SEVERAL_CALLERS = 0;
const ONE_CALLER = 3000;

export default class InlineTransform extends Transform {
  /** @param {import('assemblyscript/dist/assemblyscript.js').Program} program */
  afterInitialize(program) {
    const { module } = program;
    const compilers = Object.getPrototypeOf(module);
    // The compiler sets its own limits right before it optimizes.
    module.setAlwaysInlineMaxSize = () => compilers.setAlwaysInlineMaxSize.call(module, ALWAYS);
    module.setFlexibleInlineMaxSize = () => compilers.setFlexibleInlineMaxSize.call(module, SEVERAL_CALLERS);
    module.setOneCallerInlineMaxSize = () => compilers.setOneCallerInlineMaxSize.call(module, ONE_CALLER);
  }
}
