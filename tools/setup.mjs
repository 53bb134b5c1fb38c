// Prepares a fresh clone for the tests and the demo. It runs before node_modules exists, so it
// imports only Node's own modules.
import { existsSync, lstatSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBuilt } from './build.mjs';
import { ensureEnvoy } from './envoy.mjs';
import { ROOT } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { lastError, run } from './run.mjs';

const NODE = 20;

/** The steps, in an order in which each comes after those that it needs. */
export const steps = {
  node: requireNode,
  packages: ensurePackages,
  envoy: ensureEnvoy,
  filter: () => ensureBuilt('filter'),
  test: () => ensureBuilt('test'),
  trap: () => ensureBuilt('trap'),
};

/** @param {(keyof typeof steps)[]} names */
export async function setup(names) {
  for (const name of names) await steps[name]();
}

function requireNode() {
  if (Number(process.versions.node.split('.')[0]) >= NODE) return;
  throw new Problem(`Node ${NODE} or later is needed; this is ${process.version}.`);
}

async function ensurePackages() {
  // npm writes this file last, so it also tells a complete installation from a broken one.
  const installed = join(ROOT, 'node_modules', '.package-lock.json');
  const lock = join(ROOT, 'package-lock.json');
  if (existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return;
  // npm ci would empty the folder that the link leads to, which belongs to another checkout.
  if (lstatSync(join(ROOT, 'node_modules'), { throwIfNoEntry: false })?.isSymbolicLink()) {
    throw new Problem('node_modules is a link to packages older than package-lock.json; remove the link.');
  }
  console.log('Installing npm packages ...');
  const npm = await run('npm', ['ci', '--no-audit', '--no-fund']);
  if (npm.code !== 0) throw new Problem(`npm ci failed (${lastError(npm.output)}).`);
}

await runMain(import.meta.url, () => {
  const names = process.argv.slice(2);
  const known = /** @type {(keyof typeof steps)[]} */ (Object.keys(steps));
  const unknown = names.find((name) => !known.some((step) => step === name));
  if (unknown) throw new Problem(`Unknown step ${unknown}: ${known.join(', ')}.`);
  return setup(known.filter((step) => names.length === 0 || step === 'node' || names.includes(step)));
});
