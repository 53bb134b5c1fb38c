import { defineConfig } from 'vitest/config';

// Not one of the projects of `npm test`: it needs Go, and minutes where Istio is not built yet.
export default defineConfig({
  test: {
    name: 'istio',
    dir: 'test/istio',
    testTimeout: 120_000,
    hookTimeout: 120_000,
    fileParallelism: false,
  },
});
