// Builds what `npm run test:istio` needs into .istio/: istioctl, and the programs of test/istio.
// The first build needs Go and takes some minutes.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { lastError, run } from './run.mjs';

const DIR = join(ROOT, '.istio');
const BIN = join(DIR, 'bin');
const MODULE = join(ROOT, 'test', 'istio');

/** @type {Record<string, string>} */
const PROGRAMS = {
  istioctl: 'istio.io/istio/istioctl/cmd/istioctl',
  discovery: './discovery',
  pull: './pull',
  promql: './promql',
};

/** @param {string} name */
export const tool = (name) => join(BIN, name);

/** The folder of Istio's own sources in Go's module cache. */
export function istioSource() {
  const [, version] = /istio\.io\/istio (v\S+)/.exec(readFileSync(join(MODULE, 'go.mod'), 'utf8')) ?? [];
  return join(DIR, 'mod', 'istio.io', `istio@${version}`);
}

/** Whether every program is there and was built from the present sources. */
export function istioIsBuilt() {
  const built = join(BIN, 'built');
  return existsSync(built) && readFileSync(built, 'utf8') === sources();
}

export async function ensureIstio() {
  if (istioIsBuilt()) return;
  const go = await run('go', ['version']);
  if (go.code !== 0) throw new Problem('Go is needed to build Istio, and was not found.');
  mkdirSync(BIN, { recursive: true });
  const env = {
    GOMODCACHE: join(DIR, 'mod'),
    GOCACHE: join(DIR, 'build'),
    // -p=1 builds one package at a time, because some take a lot of memory. Without -modcacherw,
    // Go's module cache is read-only and the folder cannot be removed.
    GOFLAGS: '-p=1 -buildvcs=false -modcacherw',
    GOWORK: 'off',
  };
  for (const [name, path] of Object.entries(PROGRAMS)) {
    console.log(`Building ${name} into .istio/ ...`);
    const built = await run('go', ['-C', MODULE, 'build', '-o', tool(name), path], { env });
    if (built.code !== 0) throw new Problem(`go build ${path} failed (${lastError(built.output)}).`);
  }
  writeFileSync(join(BIN, 'built'), sources());
}

/** A digest of the sources from which the programs are built. */
function sources() {
  const files = ['go.mod', 'go.sum'];
  for (const name of ['discovery', 'pull', 'promql'])
    for (const file of readdirSync(join(MODULE, name))) files.push(join(name, file));
  const hash = createHash('sha256');
  for (const file of files) hash.update(readFileSync(join(MODULE, file)));
  return hash.digest('hex');
}

await runMain(import.meta.url, ensureIstio);
