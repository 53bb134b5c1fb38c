// Prints what the filter weighs, and what it asks of and offers to its host.
import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { FILTER_WASM } from './paths.mjs';

const wasm = readFileSync(FILTER_WASM);
const module = new WebAssembly.Module(wasm);
const names = WebAssembly.Module.customSections(module, 'name').reduce((sum, s) => sum + s.byteLength, 0);

console.log(`${wasm.length} bytes, ${wasm.length - names} without names, ${gzipSync(wasm).length} gzipped`);
for (const { module: from, name } of WebAssembly.Module.imports(module))
  console.log(`import ${from}.${name}`);
for (const { name } of WebAssembly.Module.exports(module)) console.log(`export ${name}`);
