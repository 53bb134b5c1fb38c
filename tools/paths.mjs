// Paths of the project, independent of the working directory.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
export const BUILD = join(ROOT, 'build');
export const DIST = join(ROOT, 'dist');
export const FILTER_WASM = join(BUILD, 'filter.wasm');
export const TEST_WASM = join(BUILD, 'test.wasm');
export const TRAP_WASM = join(BUILD, 'trap.wasm');

/**
 * The script of an installed package. It is run with Node itself, so that npx never asks a
 * registry.
 * @param {'asc' | 'prettier' | 'tsc' | 'vitest'} name
 */
export const bin = (name) => join(ROOT, 'node_modules', ...BINS[name].split('/'));

const BINS = {
  asc: 'assemblyscript/bin/asc.js',
  prettier: 'prettier/bin/prettier.cjs',
  tsc: 'typescript/bin/tsc',
  vitest: 'vitest/vitest.mjs',
};
