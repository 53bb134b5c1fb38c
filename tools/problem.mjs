import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * A failure that the user can act on. Its message is one sentence, and is printed without a stack.
 */
export class Problem extends Error {}

/**
 * Runs a module's main function if Node was started with that module. A failure becomes exit code
 * 1.
 * @param {string} url the module's `import.meta.url`
 * @param {() => unknown} main
 */
export async function runMain(url, main) {
  if (realpathSync(process.argv[1]) !== fileURLToPath(url)) return;
  try {
    await main();
  } catch (error) {
    report(error);
    process.exitCode = 1;
  }
}

/** @param {unknown} error */
export function report(error) {
  if (error instanceof Problem) console.error(error.message);
  else console.error(error);
}
