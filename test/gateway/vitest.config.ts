import { defineConfig } from 'vitest/config';

// This suite is none of the projects of `npm test`, because it needs Go, and minutes as long as
// Envoy Gateway has not been built.
export default defineConfig({
  test: {
    name: 'gateway',
    dir: 'test/gateway',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Envoy Gateway's ports are fixed.
    fileParallelism: false,
  },
});
