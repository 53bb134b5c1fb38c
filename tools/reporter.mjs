// A vitest reporter that writes how many tests passed and failed, and the names of those that
// failed, for the last line of `npm test` and for the report of `npm run test:envoys`.
import { writeFileSync } from 'node:fs';

export default class CountReporter {
  /**
   * @param {readonly import('vitest/node').TestModule[]} modules
   * @param {readonly unknown[]} unhandled
   */
  onTestRunEnd(modules, unhandled) {
    let passed = 0;
    let failed = unhandled.length;
    /** @type {string[]} */
    const failures = [];
    for (const module of modules) {
      // A file that does not load, or a hook that throws, makes no test fail, so it counts as a
      // failure of its own.
      failed += module.errors().length;
      for (const suite of module.children.allSuites()) failed += suite.errors().length;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === 'passed') passed++;
        // A test that did not run counts as failed, and one that is skipped on purpose counts as
        // neither.
        else if (state !== 'skipped') {
          failed++;
          failures.push(test.fullName);
        }
      }
    }
    const path = process.env.COUNT_FILE;
    if (path) writeFileSync(path, JSON.stringify({ passed, failed, failures }));
  }
}
