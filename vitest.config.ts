import { defineConfig } from 'vitest/config';

const suite = (name: string, include: string[], timeout: number) => ({
  test: { name, include, testTimeout: timeout, hookTimeout: timeout },
});

export default defineConfig({
  test: {
    projects: [
      suite('unit', ['test/{unit,engine}/**/*.test.ts'], 30_000),
      suite('host', ['test/host/**/*.test.ts'], 30_000),
      // The suite on Envoy runs the same scenarios on the emulator, so this one is for those who want
      // to know within a minute; `npm test` leaves it out.
      suite('emulator', ['test/emulator/**/*.test.ts'], 30_000),
      suite('package', ['test/package/**/*.test.ts'], 120_000),
      suite('fuzz', ['test/fuzz/**/*.test.ts'], 30_000),
      suite('yardstick', ['test/yardstick/**/*.test.ts'], 120_000),
      suite('envoy', ['test/envoy/**/*.test.ts'], 120_000),
    ],
  },
});
