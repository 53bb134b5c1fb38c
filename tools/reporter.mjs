// A vitest reporter that writes how many tests passed and failed, for `npm test`'s last line.
import { writeFileSync } from 'node:fs';

export default class CountReporter {
  /**
   * @param {readonly import('vitest/node').TestModule[]} modules
   * @param {readonly unknown[]} unhandled
   */
  onTestRunEnd(modules, unhandled) {
    let passed = 0;
    let failed = unhandled.length;
    for (const module of modules) {
      // A file that does not load, or a hook that throws, fails no test of its own.
      failed += module.errors().length;
      for (const suite of module.children.allSuites()) failed += suite.errors().length;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === 'passed') passed++;
        // A test that has not run is no pass; one that is skipped on purpose is neither.
        else if (state !== 'skipped') failed++;
      }
    }
    const path = process.env.COUNT_FILE;
    if (path) writeFileSync(path, JSON.stringify({ passed, failed }));
  }
}
