// Compiles the Wasm modules. The command `node tools/build.mjs [filter] [test] [trap]` always
// compiles; `ensureBuilt` compiles only what is stale.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { bin, BUILD, FILTER_WASM, ROOT, TEST_WASM, TRAP_WASM } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { runNode } from './run.mjs';

/** @typedef {'filter' | 'test' | 'trap'} Target */

/** @type {Record<Target, { entry: string, out: string, like?: Target }>} */
const TARGETS = {
  filter: { entry: 'assembly/index.ts', out: FILTER_WASM },
  test: { entry: 'assembly/testing/index.ts', out: TEST_WASM },
  trap: { entry: 'assembly/trap.ts', out: TRAP_WASM, like: 'filter' },
};

/** @param {Target} target */
export async function build(target) {
  const { entry, out, like = target } = TARGETS[target];
  if (!existsSync(join(ROOT, entry)))
    throw new Problem(`${entry} is missing, so build/${target}.wasm cannot be built.`);
  mkdirSync(BUILD, { recursive: true });
  const started = new Date();
  const temporary = join(BUILD, `.${target}.${process.pid}.wasm`);
  try {
    const args = [entry, '--target', like, '--outFile', temporary];
    // asconfig.json cannot name a transform by a path inside the project.
    args.push('--transform', './tools/inline-transform.mjs');
    if (like === 'filter') args.push('--transform', './tools/entry-transform.mjs');
    const asc = await runNode(bin('asc'), args);
    process.stderr.write(asc.output);
    if (asc.code !== 0) throw new Problem(`${entry} does not compile.`);
    // The module gets the time before the compiler read its sources, so that an edit made meanwhile
    // leaves it stale.
    utimesSync(temporary, started, started);
    renameSync(temporary, out);
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** @param {Target} target */
export async function ensureBuilt(target) {
  const { out } = TARGETS[target];
  const built = existsSync(out) ? statSync(out).mtimeMs : 0;
  const inputs = [
    join(ROOT, 'asconfig.json'),
    join(ROOT, 'package-lock.json'),
    ...tree(join(ROOT, 'assembly')),
  ];
  if (inputs.some((path) => statSync(path).mtimeMs > built)) await build(target);
}

/**
 * The files and folders below a folder. The time of a folder changes when a file in it is removed.
 * @param {string} dir
 * @returns {string[]}
 */
function tree(dir) {
  const entries = readdirSync(dir, { withFileTypes: true });
  return [dir, ...entries.flatMap((e) => (e.isDirectory() ? tree(join(dir, e.name)) : [join(dir, e.name)]))];
}

await runMain(import.meta.url, async () => {
  for (const target of process.argv.slice(2)) {
    if (target !== 'filter' && target !== 'test' && target !== 'trap')
      throw new Problem(`Unknown target ${target}: filter, test or trap.`);
    await build(target);
  }
});
