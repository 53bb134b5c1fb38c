import { defineConfig } from 'vitest/config';

// This suite is none of the projects of `npm test`, because it takes minutes. A few of its
// exchanges are in test/envoy/llm_d.test.ts.
export default defineConfig({
  test: {
    name: 'extproc',
    dir: 'test/extproc',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    fileParallelism: false,
    reporters: ['verbose'],
  },
});
