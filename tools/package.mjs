// `npm run package`: everything that is deployed, in dist/. The same sources give the same bytes,
// wherever and whenever they are packed.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from './build.mjs';
import { refer, writeImage } from './package/image.mjs';
import { provenanceOf } from './package/provenance.mjs';
import { writeBom } from './package/sbom.mjs';
import { typesOf } from './package/types.mjs';
import { DIST, FILTER_WASM, ROOT } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { lastError, run } from './run.mjs';

/**
 * Stands in a manifest for the sha256 of the module that a URL serves, which is known only once the
 * module is built.
 */
const ANY_SHA256 = '0'.repeat(64);
const BOM = 'sbom.cdx.json';
const PROVENANCE = 'provenance.intoto.json';

export async function makePackage() {
  const project = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  await build('filter');
  rmSync(DIST, { recursive: true, force: true });
  mkdirSync(DIST);
  const wasm = readFileSync(FILTER_WASM);
  const sha256 = createHash('sha256').update(wasm).digest('hex');
  writeFileSync(join(DIST, 'filter.wasm'), wasm);
  writeFileSync(join(DIST, 'filter.wasm.sha256'), `${sha256}  filter.wasm\n`);
  const bom = writeBom(project, sha256, await bundleVerify());
  writeFileSync(join(DIST, BOM), bom);
  const image = writeImage(join(DIST, 'image'), wasm, project);
  const manifests = join(DIST, 'envoy');
  cpSync(join(ROOT, 'envoy'), manifests, { recursive: true });
  stamp(manifests, sha256);
  const schema = JSON.parse(readFileSync(join(ROOT, 'envoy', 'config.schema.json'), 'utf8'));
  writeFileSync(join(DIST, 'config.d.ts'), typesOf(schema));
  const archive = await npmPack(project);
  const provenance = provenanceOf(project, [
    { name: 'filter.wasm', sha256 },
    {
      name: archive,
      sha256: createHash('sha256')
        .update(readFileSync(join(DIST, archive)))
        .digest('hex'),
    },
    { name: 'image', sha256: image.digest.slice('sha256:'.length) },
  ]);
  writeFileSync(join(DIST, PROVENANCE), provenance);
  const about = (/** @type {string} */ mediaType, /** @type {string} */ title, /** @type {Buffer} */ data) =>
    refer(join(DIST, 'image'), image, { mediaType, title, data });
  about('application/vnd.cyclonedx+json', BOM, bom);
  about('application/vnd.in-toto+json', PROVENANCE, provenance);
  return { sha256, archive };
}

/**
 * `verify` as one file that runs with Node alone; the libraries that it uses are inside.
 * @returns {Promise<string[]>} their paths in package-lock.json
 */
async function bundleVerify() {
  // `npm test` reads this file before any package is installed.
  const esbuild = await import('esbuild');
  const { metafile } = await esbuild.build({
    metafile: true,
    entryPoints: [join(ROOT, 'yardstick', 'verify', 'main.ts')],
    outfile: join(DIST, 'verify.mjs'),
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'esm',
    legalComments: 'inline',
    // The paths of sources, of which some are comments of the bundle, are relative to this folder.
    absWorkingDir: ROOT,
    // Packages keep the paths that they have in this folder, wherever node_modules leads to.
    preserveSymlinks: true,
    banner: {
      js: [
        '#!/usr/bin/env node',
        // Some of the libraries are CommonJS and call `require` for Node's own modules.
        "import { createRequire } from 'node:module';",
        'const require = createRequire(import.meta.url);',
      ].join('\n'),
    },
    logLevel: 'error',
  });
  const inputs = Object.keys(metafile.inputs).filter((path) => path.includes('node_modules/'));
  return [...new Set(inputs.map((path) => /^.*node_modules\/(@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? path))];
}

/**
 * npm copies the permissions of files, which differ between checkouts. So it packs copies whose
 * permissions are the same everywhere.
 * @param {{ name: string, version: string }} project
 */
async function npmPack({ name, version }) {
  const folder = mkdtempSync(join(tmpdir(), 'routed-experts-'));
  try {
    for (const document of ['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE'])
      cpSync(join(ROOT, document), join(folder, document));
    cpSync(DIST, join(folder, 'dist'), { recursive: true });
    for (const path of readdirSync(folder, { recursive: true, encoding: 'utf8' }))
      if (statSync(join(folder, path)).isFile())
        chmodSync(join(folder, path), path.endsWith('verify.mjs') ? 0o755 : 0o644);
    const args = ['pack', '--ignore-scripts', '--silent', '--pack-destination', DIST, folder];
    const npm = await run('npm', args);
    const archive = `${name}-${version}.tgz`;
    if (npm.code !== 0 || !existsSync(join(DIST, archive)))
      throw new Problem(`npm pack failed (${lastError(npm.output)}).`);
    return archive;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Writes the sha256 of the module where a manifest asks for it.
 * @param {string} folder
 * @param {string} sha256
 */
function stamp(folder, sha256) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) stamp(path, sha256);
    else writeFileSync(path, readFileSync(path, 'utf8').replaceAll(ANY_SHA256, sha256));
  }
}

await runMain(import.meta.url, async () => {
  const { sha256, archive } = await makePackage();
  console.log(`dist/filter.wasm  sha256 ${sha256}`);
  console.log('dist/image        OCI image layout with /plugin.wasm; the next two are its referrers');
  console.log(`dist/${BOM}`);
  console.log(`dist/${PROVENANCE}`);
  console.log('dist/envoy        configurations and manifests, with this sha256');
  console.log('dist/verify.mjs   checks a live deployment');
  console.log(`dist/${archive}`);
});
