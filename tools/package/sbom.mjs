// The bill of materials: a CycloneDX document made by npm from package-lock.json. npm describes a
// project with its tools; this one describes what is delivered, and says which packages are in it.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from '../paths.mjs';

/**
 * The packages whose code is compiled into the module: the standard library, the JSON parser and
 * the table of numbers that it uses, and the declarations of the ABI.
 */
export const COMPILED_IN = ['assemblyscript', 'json-as', 'xjb-as', '@gcoredev/proxy-wasm-sdk-as'];

/**
 * @typedef {{ name: string, version: string, scope?: string, 'bom-ref': string }} Component
 * @typedef {{
 *   specVersion: string, serialNumber: string, components: Component[],
 *   metadata: { timestamp?: string, tools: { version?: string }[], component: Component & object }
 * }} Bom
 */

/**
 * The same lock file and module give the same bytes: what npm takes from the clock, from chance,
 * from the name of the folder and from its own version is left out or replaced.
 * @param {{ name: string }} project
 * @param {string} sha256 of the module
 * @param {string[]} bundled the packages inside `verify`, by their paths in package-lock.json
 */
export function writeBom({ name }, sha256, bundled) {
  const args = ['sbom', '--package-lock-only', '--sbom-format', 'cyclonedx', '--sbom-type', 'library'];
  const bom = /** @type {Bom} */ (
    JSON.parse(execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }))
  );
  delete bom.metadata.timestamp;
  for (const tool of bom.metadata.tools) delete tool.version;
  const { component } = bom.metadata;
  Object.assign(component, { name, hashes: [{ alg: 'SHA-256', content: sha256 }] });
  // A tool may bring another version of the same package.
  const { packages } = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8'));
  const inside = [...COMPILED_IN.map((of) => `node_modules/${of}`), ...bundled].map((path) => {
    const of = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    return `${of}@${packages[path].version}`;
  });
  for (const each of bom.components) each.scope = inside.includes(each['bom-ref']) ? 'required' : 'excluded';
  bom.components.sort((a, b) => (a['bom-ref'] < b['bom-ref'] ? -1 : 1));
  bom.serialNumber = '';
  bom.serialNumber = `urn:uuid:${uuidOf(JSON.stringify(bom))}`;
  return Buffer.from(`${JSON.stringify(bom, null, 2)}\n`);
}

/**
 * A UUID that is made of a text (version 8 of RFC 9562).
 * @param {string} text
 */
function uuidOf(text) {
  const bytes = createHash('sha256').update(text).digest().subarray(0, 16);
  bytes[6] = (bytes[6] & 0x0f) | 0x80;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
