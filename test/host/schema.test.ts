// The JSON Schema of the configuration and the filter's own validation come to the same verdict on
// every configuration.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { beforeAll, describe, expect, test } from 'vitest';
import { FILTER_WASM, ROOT } from '../../tools/paths.mjs';
import { createEmulator, type Emulator } from './index.ts';
import {
  BEYOND_SCHEMA,
  REFUSED,
  REFUSED_UNFILLED,
  TAKEN,
  TAKEN_BOOTSTRAPPED,
  type Config,
} from '../scenarios/configuration.ts';

interface Schema {
  type?: string;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  default?: unknown;
  description?: string;
  properties?: Record<string, Schema>;
  items?: Schema;
}

const schema = JSON.parse(readFileSync(join(ROOT, 'envoy', 'config.schema.json'), 'utf8')) as Schema;
const validate = new Ajv2020({ strict: true, allErrors: true }).compile(schema);

/** Errors that no schema can express. The schema must express all others. */
const BEYOND = [
  /^max_hold_bytes: expected at least hold_bytes$/,
  /^prefill\.allowed_endpoints\[\d+\]: expected no bits behind the prefix of a CIDR block$/,
];

/** Keys without a default. Each is described by a section of its own. */
const OPTIONAL = [
  'handshake',
  'model',
  'model.layers',
  'model.top_k',
  'model.experts',
  'max_piece_bytes',
  'max_model_len',
  'audit',
  'audit.cluster',
  ...[
    'endpoint_header',
    'allowed_endpoints',
    'cluster_type',
    'bootstrap_cluster',
    'bootstrap_host',
    'bootstrap_port',
    'bootstrap_ttl_ms',
  ].map((key) => `prefill.${key}`),
];

let emulator: Emulator;
beforeAll(async () => void (emulator = await createEmulator({ wasmPath: FILTER_WASM })));

/** Why the filter refuses a configuration; undefined when it accepts it. */
function refusal(text: string): string | undefined {
  const vm = emulator.vms[0]!;
  const logged = emulator.logs.length;
  try {
    vm.plugin(text);
    return undefined;
  } catch (error) {
    const said = emulator.logs
      .slice(logged)
      .flatMap(({ message }) => /^configuration refused: (.*)$/s.exec(message)?.[1] ?? []);
    if (said.length === 0) throw error;
    return said.at(-1);
  }
}

/** Adds the cluster as the hosts of scenarios do. A `prefill` that is no object stays as it is. */
function withCluster(config: Config): Config {
  const prefill = config['prefill'] ?? {};
  if (typeof prefill !== 'object' || Array.isArray(prefill)) return config;
  return { ...config, prefill: { cluster: 'prefill', ...prefill } };
}

function expectOneVerdict(config: unknown): void {
  const said = refusal(JSON.stringify(config));
  const beyond = said !== undefined && BEYOND.some((rule) => rule.test(said));
  const taken = validate(config);
  expect({ taken, errors: validate.errors ?? [] }, `the filter says: ${said ?? 'taken'}`).toMatchObject({
    taken: said === undefined || beyond,
  });
}

describe('the table of configurations', () => {
  test.each([...REFUSED, ...REFUSED_UNFILLED])(
    'the schema refuses as the filter does: %j',
    (config, message, beyond) => {
      const full = withCluster(config);
      expect(refusal(JSON.stringify(full))).toBe(message);
      expect(BEYOND.some((rule) => rule.test(message))).toBe(beyond === BEYOND_SCHEMA);
      expect(validate(full)).toBe(beyond === BEYOND_SCHEMA);
    },
  );

  test.each([...TAKEN, ...TAKEN_BOOTSTRAPPED])('both take %j', (config) => {
    const full = withCluster(config);
    expect(refusal(JSON.stringify(full))).toBeUndefined();
    expect(validate(full), JSON.stringify(validate.errors)).toBe(true);
  });
});

/** Every key of the schema, by its path. */
function keys(of: Schema, path: string[] = []): { path: string[]; schema: Schema }[] {
  return Object.entries(of.properties ?? {}).flatMap(([name, schema]) => [
    { path: [...path, name], schema },
    ...keys(schema, [...path, name]),
  ]);
}

/** Values of every type, and values next to the limits and names in the schema. */
function values(of: Schema): unknown[] {
  const around = [of.minimum, of.maximum].flatMap((n) => (n === undefined ? [] : [n - 1, n, n + 1, n + 0.5]));
  const named = (of.enum ?? []).flatMap((value) => [value, `${String(value)} `, [value]]);
  const any = [
    null,
    true,
    false,
    0,
    -1,
    1,
    0.5,
    1e300,
    '',
    ' ',
    'x',
    '0',
    '/v1/completions',
    [],
    {},
    [1],
    ['x'],
  ];
  return [...any, ...around, ...named, ...(of.default === undefined ? [] : [of.default])];
}

function withValue(config: Config, [name, ...rest]: string[], value: unknown): Config {
  if (rest.length === 0) return { ...config, [name!]: value };
  return { ...config, [name!]: withValue((config[name!] ?? {}) as Config, rest, value) };
}

const LEAST: Config = { prefill: { cluster: 'prefill' } };
/** The same with the members that an object must have which is not there by default. */
const LEAST_OF: Record<string, Config> = { audit: { ...LEAST, audit: { cluster: 'audit' } } };

describe('every key with every kind of value', () => {
  test.each(keys(schema))('$path', ({ path, schema }) => {
    const least = LEAST_OF[path[0]!] ?? LEAST;
    for (const value of values(schema)) expectOneVerdict(withValue(least, path, value));
  });

  test('paths', () => {
    const ends = [
      '/completions',
      '/chat/completions',
      '/inference/v1/generate',
      '/completions/',
      '/v1/generate',
    ];
    const starts = ['', '/', '/v1', 'v1', '/a/b/c', '/x\n', '/é', ' '];
    for (const start of starts)
      for (const end of ends) expectOneVerdict({ ...LEAST, paths: ['/v1/completions', start + end] });
    for (const odd of [
      'completions',
      '/xcompletions',
      '/v1/completions?x',
      '//completions',
      '/completions\n',
    ])
      expectOneVerdict({ ...LEAST, paths: [odd] });
  });

  test('keys that do not exist, and what is no object', () => {
    for (const name of ['', 'Prefill', 'prefill ', 'timeout_ms', 'toString', '__proto__x'])
      expectOneVerdict({ ...LEAST, [name]: 1 });
    for (const name of ['', 'Cluster', 'connector', 'constructor'])
      expectOneVerdict({ prefill: { cluster: 'prefill', [name]: 1 } });
    for (const config of [{}, { prefill: {} }, null, [], 'prefill', 1, true, [LEAST]])
      expectOneVerdict(config);
  });
});

test('every key of the schema is described, and has a default unless it is required', () => {
  for (const { path, schema: of } of keys(schema)) {
    expect(of.description, path.join('.')).toMatch(/^[A-Z].*\.$/);
    const none = ['prefill', 'prefill.cluster', ...OPTIONAL].includes(path.join('.'));
    expect('default' in of, path.join('.')).toBe(!none);
  }
});

test("docs/configuration.md has every key with the schema's default", () => {
  const page = readFileSync(join(ROOT, 'docs', 'configuration.md'), 'utf8');
  const block = /\n {4}\{\n[^]*?\n {4}\}\n/.exec(page)![0];
  const written = JSON.parse(block.replace(/\/\/.*/g, '')) as Config;
  expect(validate(written), JSON.stringify(validate.errors)).toBe(true);
  for (const { path, schema: of } of keys(schema)) {
    if (OPTIONAL.includes(path.join('.'))) continue;
    const value = path.reduce<unknown>((object, name) => (object as Config)[name], written);
    expect(value, path.join('.')).toBeDefined();
    if ('default' in of) expect(value, path.join('.')).toEqual(of.default);
  }
});
