// The manifests that users apply hold the same typed_config of the filter everywhere, with
// configurations that the filter accepts. The Helm chart is made of them.

import { readFileSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { chartFiles, TEMPLATES, valuesSchema } from '../../tools/chart.mjs';
import { MANIFESTS, PLUGIN_CONFIGS, withPluginConfig, withTypedConfig } from '../../tools/manifests.mjs';
import { FILTER_WASM, ROOT } from '../../tools/paths.mjs';
import { createEmulator } from './index.ts';

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

test.each(Object.entries(chartFiles()))('%s is what npm run manifests writes', (path, text) => {
  expect(read(path)).toBe(text);
});

test('what the chart’s values replace is in the manifests', () => {
  const missing = new Set(Object.values(TEMPLATES).flatMap(({ values }) => Object.keys(values)));
  for (const { source } of Object.values(TEMPLATES))
    for (const literal of [...missing]) if (read(source).includes(literal)) missing.delete(literal);
  expect([...missing]).toEqual([]);
});

test('no template has a literal that a value replaces', () => {
  for (const [name, { values }] of Object.entries(TEMPLATES)) {
    const text = read(join('deploy', 'chart', 'templates', name));
    for (const literal of Object.keys(values)) expect(text, name).not.toContain(literal);
  }
});

test('the chart’s values fit their schema', () => {
  const validate = new Ajv2020({ strict: false }).compile(valuesSchema());
  const values = parse(read('deploy/chart/values.yaml')) as Record<string, object>;
  expect(validate(values), JSON.stringify(validate.errors)).toBe(true);
  const wrong: Record<string, unknown>[] = [
    { mode: 'istio' },
    { configuration: { connector: 'nicksl' } },
    { configuration: { headers: 'hold' } },
    { configuration: { connector: 'sglang', prefill: { endpoint_header: 'x' } } },
    { module: { ...values.module, url: 'http://x.example/filter.wasm' } },
    { limits: { ...values.limits, requestBytes: '64Mi' } },
  ];
  for (const change of wrong) expect(validate({ ...values, ...change }), JSON.stringify(change)).toBe(false);
});

test('versions are those of package.json', () => {
  const { version } = JSON.parse(read('package.json')) as { version: string };
  expect(parse(read('deploy/chart/Chart.yaml'))).toMatchObject({ version, appVersion: version });
  for (const path of [...Object.keys(PLUGIN_CONFIGS), 'deploy/chart/values.yaml'])
    for (const [, tag] of read(path).matchAll(/routed-experts-filter:([\d.]+)/g))
      expect(tag, path).toBe(version);
});
