import { defineConfig } from 'vitest/config';

// This suite is none of the projects of `npm test`, because it needs Go, and minutes as long as
// Istio has not been built.
export default defineConfig({
  test: {
    name: 'istio',
    dir: 'test/istio',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    fileParallelism: false,
  },
});
