import { defineConfig } from 'vitest/config';

// This suite is none of the projects of `npm test`, because it needs packages of PyPI, which take
// minutes to download.
export default defineConfig({
  test: {
    name: 'clients',
    dir: 'test/clients',
    testTimeout: 300_000,
    hookTimeout: 300_000,
    maxWorkers: 2,
    reporters: ['verbose'],
  },
});
