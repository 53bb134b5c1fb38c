// Programs of Go modules that a suite needs. They are built once, into a folder of the project, and
// again when the sources change.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { join } from 'node:path';
import { ROOT } from './paths.mjs';
import { Problem } from './problem.mjs';
import { lastError, run } from './run.mjs';

/**
 * @typedef {object} Programs
 * @property {string} dir the folder for the programs and for Go's caches, inside the project
 * @property {string} module the folder of the Go module
 * @property {Record<string, string>} packages the package of each program
 */

/**
 * The path of a program.
 * @param {Programs} programs
 * @param {string} name
 */
export const program = ({ dir }, name) => join(ROOT, dir, 'bin', name);

/**
 * The folder of a module's own sources in Go's module cache, in the version that go.mod has.
 * @param {Programs} programs
 * @param {string} path
 */
export function moduleSource({ dir, module }, path) {
  const [, version] = new RegExp(`^\\s*${path} (v\\S+)`, 'm').exec(
    readFileSync(join(ROOT, module, 'go.mod'), 'utf8'),
  ) ?? [''];
  return join(ROOT, dir, 'mod', `${path}@${version}`);
}

/**
 * Whether every program is there and was built from the present sources.
 * @param {Programs} programs
 */
export function areBuilt(programs) {
  const built = program(programs, 'built');
  return existsSync(built) && readFileSync(built, 'utf8') === digest(programs);
}

/** @param {Programs} programs */
export async function ensurePrograms(programs) {
  if (areBuilt(programs)) return;
  const go = await run('go', ['version']);
  if (go.code !== 0) throw new Problem(`Go is needed to build what is in ${programs.module}.`);
  const { dir, module, packages } = programs;
  mkdirSync(join(ROOT, dir, 'bin'), { recursive: true });
  const env = {
    GOMODCACHE: join(ROOT, dir, 'mod'),
    GOCACHE: join(ROOT, dir, 'build'),
    // Without -modcacherw, Go's module cache is read-only and the folder cannot be removed.
    GOFLAGS: `-p=${jobs()} -buildvcs=false -modcacherw`,
    GOWORK: 'off',
  };
  for (const [name, path] of Object.entries(packages)) {
    console.log(`Building ${name} into ${dir}/ ...`);
    const args = ['-C', join(ROOT, module), 'build', '-o', program(programs, name), path];
    const built = await run('go', args, { env });
    if (built.code !== 0) throw new Problem(`go build ${path} failed (${lastError(built.output)}).`);
  }
  writeFileSync(program(programs, 'built'), digest(programs));
}

/** How many packages are built at once: some of them take gigabytes. */
const jobs = () => Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 32)));

/**
 * A digest of the Go sources from which the programs are built.
 * @param {Programs} programs
 */
function digest({ module, packages }) {
  const folder = join(ROOT, module);
  const hash = createHash('sha256').update(JSON.stringify(packages));
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((path) =>
    /(^go\.(mod|sum)|\.go)$/.test(path),
  );
  for (const path of files.sort())
    if (statSync(join(folder, path)).isFile()) hash.update(path).update(readFileSync(join(folder, path)));
  return hash.digest('hex');
}
