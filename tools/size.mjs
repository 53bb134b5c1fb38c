// Prints the size of the filter, what it consists of, and what it imports from and exports to its
// host.
import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { FILTER_WASM } from './paths.mjs';

const wasm = readFileSync(FILTER_WASM);
const module = new WebAssembly.Module(wasm);
const names = WebAssembly.Module.customSections(module, 'name').reduce((sum, s) => sum + s.byteLength, 0);

console.log(`${wasm.length} bytes, ${wasm.length - names} without names, ${gzipSync(wasm).length} gzipped`);
for (const [part, bytes] of parts()) console.log(`${String(bytes).padStart(8)}  ${part}`);
for (const { module: from, name } of WebAssembly.Module.imports(module))
  console.log(`import ${from}.${name}`);
for (const { name } of WebAssembly.Module.exports(module)) console.log(`export ${name}`);

/**
 * Bytes of the code by the place where it was written, of the data and of the names, in descending
 * order. The layout is that of the WebAssembly core specification, section 5.5, and of its appendix
 * on the name section.
 */
function parts() {
  /** @type {number[]} */
  const code = [];
  /** @type {Map<number, string>} */
  const nameOf = new Map();
  /** @type {Map<string, number>} */
  const sums = new Map();
  /** @type {(part: string, bytes: number) => void} */
  const add = (part, bytes) => void sums.set(part, (sums.get(part) ?? 0) + bytes);
  let at = 8;
  const leb = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = wasm[at++];
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value >>> 0;
    }
  };
  const text = () => {
    const len = leb();
    at += len;
    return wasm.toString('utf8', at - len, at);
  };
  while (at < wasm.length) {
    const id = wasm[at++];
    const end = leb() + at;
    if (id === 10) {
      for (let n = leb(); n > 0; n--) {
        const bytes = leb();
        code.push(bytes);
        at += bytes;
      }
    }
    if (id === 11) add('data', end - at);
    else if (id === 0 && text() === 'name') {
      add('names', end - at);
      while (at < end) {
        const kind = wasm[at++];
        const stop = leb() + at;
        // Subsection 1 has the names of functions.
        if (kind === 1) for (let n = leb(); n > 0; n--) nameOf.set(leb(), text());
        at = stop;
      }
    }
    at = end;
  }
  const imported = WebAssembly.Module.imports(module).filter(({ kind }) => kind === 'function').length;
  code.forEach((bytes, i) => add(`code of ${home(nameOf.get(i + imported) ?? '')}`, bytes));
  return [...sums].sort(([, a], [, b]) => b - a);
}

/** @param {string} name */
function home(name) {
  if (name.startsWith('~lib/json-as') || name.includes('json-as')) return 'json-as (configuration)';
  if (name.startsWith('~lib/')) return "AssemblyScript's runtime and library";
  return /^(assembly\/[^/]+)\//.exec(name)?.[1] ?? 'other';
}
