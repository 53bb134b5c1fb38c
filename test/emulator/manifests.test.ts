// The manifests that users apply hold the same typed_config of the filter everywhere, with
// configurations that the filter accepts.

import { readFileSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { expect, test } from 'vitest';
import { MANIFESTS, PLUGIN_CONFIGS, withPluginConfig, withTypedConfig } from '../../tools/manifests.mjs';
import { FILTER_WASM, ROOT } from '../../tools/paths.mjs';
import { createEmulator } from '../host/index.ts';

const read = (path: string) => readFileSync(join(ROOT, path), 'utf8');
const files = (folder: string): string[] =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? files(join(folder, entry.name)) : [join(folder, entry.name)],
  );
const TYPE = /'@type': \S*extensions\.filters\.http\.wasm\.v3\.Wasm/;

test("every file with the filter's typed_config is known", () => {
  const found = files(join(ROOT, 'envoy')).map((path) => relative(ROOT, path));
  expect(found.filter((path) => TYPE.test(read(path))).sort()).toEqual(Object.keys(MANIFESTS).sort());
});

test.each(Object.keys(MANIFESTS))('the typed_config of %s is the one of all (npm run manifests)', (path) => {
  expect(read(path)).toBe(withTypedConfig(path, read(path)));
  expect(read(path).match(new RegExp(TYPE, 'g'))).toHaveLength(1);
});

test.each(Object.keys(MANIFESTS))('filter and schema take the configuration of %s', async (path) => {
  const text = /\n( +)value: \|\n((?:\1 .*\n)+)/.exec(read(path))![2]!;
  expect(JSON.parse(text)).toEqual(MANIFESTS[path]!.configuration);
  const emulator = await createEmulator({ wasmPath: FILTER_WASM });
  expect(() => emulator.vms[0]!.plugin(text)).not.toThrow();
  const validate = new Ajv2020().compile(JSON.parse(read('envoy/config.schema.json')));
  expect(validate(JSON.parse(text)), JSON.stringify(validate.errors)).toBe(true);
});

test.each(Object.keys(PLUGIN_CONFIGS))('filter and schema take the configuration of %s', async (path) => {
  expect(read(path)).toBe(withPluginConfig(path, read(path)));
  const text = /# prettier-ignore\n( +)(?:pluginConfig|config):\n((?:\1 .*\n)+)/.exec(read(path))![2]!;
  expect(JSON.parse(text)).toEqual(PLUGIN_CONFIGS[path]);
  const emulator = await createEmulator({ wasmPath: FILTER_WASM });
  expect(() => emulator.vms[0]!.plugin(text)).not.toThrow();
  const validate = new Ajv2020().compile(JSON.parse(read('envoy/config.schema.json')));
  expect(validate(JSON.parse(text)), JSON.stringify(validate.errors)).toBe(true);
});
