// `npm run test:envoys`: the Envoy suite on every release of `ENVOY_VERSIONS`, the newest first, or
// on those that are named. What stands behind a second `--` goes to vitest. Each whole run leaves
// its result in build/envoys; `--report` writes those of one module to bench/results/envoys.md.

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { describeMachine } from '../bench/machine.ts';
import { table } from '../bench/report.ts';
import { differencesOf } from '../test/envoy/version.ts';
import { ENVOY_VERSIONS, ensureVersion } from './envoy.mjs';
import { bin, BUILD, FILTER_WASM, ROOT } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { runNode } from './run.mjs';

const RESULTS = join(BUILD, 'envoys');
const REPORT = join(ROOT, 'bench', 'results', 'envoys.md');

interface Count {
  passed: number;
  failed: number;
  failures: string[];
}

interface Run extends Count {
  version: string;
  minutes: number;
  /** The sha256 of the filter's module. */
  module: string;
}

await runMain(import.meta.url, async () => {
  const args = process.argv.slice(2);
  const own = args.includes('--') ? args.slice(0, args.indexOf('--')) : args;
  const filters = args.slice(own.length + 1);
  const { values, positionals } = parseArgs({
    args: own,
    options: { report: { type: 'boolean' } },
    allowPositionals: true,
  });
  const unknown = positionals.find((version) => !ENVOY_VERSIONS.includes(version));
  if (unknown) throw new Problem(`Unknown version ${unknown}: ${ENVOY_VERSIONS.join(', ')}.`);
  // `--report` alone writes down what has been run.
  const wanted = positionals.length > 0 || values.report ? positionals : ENVOY_VERSIONS;
  let passed = 0;
  let failed = 0;
  for (const version of wanted) {
    const count = await runOn(version, filters);
    passed += count.passed;
    failed += count.failed;
  }
  if (values.report) report();
  if (wanted.length > 0) console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed > 0 ? 1 : 0;
});

async function runOn(version: string, filters: string[]): Promise<Count> {
  const path = await ensureVersion(version);
  console.log(`\nEnvoy ${version}`);
  const dir = mkdtempSync(join(tmpdir(), 'routed-experts-'));
  try {
    const counts = join(dir, 'counts.json');
    const reporters = ['--reporter=default', `--reporter=${join(ROOT, 'tools', 'reporter.mjs')}`];
    const began = Date.now();
    const env = { ENVOY_BIN: path, COUNT_FILE: counts, TEST_CURL: '1' };
    await runNode(bin('vitest'), ['run', '--project', 'envoy', ...reporters, ...filters], {
      live: true,
      env,
    });
    // vitest that ends before it has counted has failed.
    const count: Count = existsSync(counts)
      ? (JSON.parse(readFileSync(counts, 'utf8')) as Count)
      : { passed: 0, failed: 1, failures: ['vitest'] };
    if (filters.length === 0) {
      const run: Run = {
        ...{ version, ...count, module: moduleSha() },
        minutes: (Date.now() - began) / 60_000,
      };
      mkdirSync(RESULTS, { recursive: true });
      writeFileSync(join(RESULTS, `${version}.json`), JSON.stringify(run, null, 2));
    }
    return count;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const moduleSha = () => createHash('sha256').update(readFileSync(FILTER_WASM)).digest('hex');

function report() {
  const runs = ENVOY_VERSIONS.map((version) => join(RESULTS, `${version}.json`))
    .filter((path) => existsSync(path))
    .map((path) => JSON.parse(readFileSync(path, 'utf8')) as Run)
    .filter(({ module }) => module === moduleSha());
  if (runs.length === 0) throw new Problem('No version has been run with this module.');
  const rows = runs.map(({ version, passed, failed, minutes }) => [
    ...[version, String(passed), String(failed), minutes.toFixed(0)],
    differencesOf(version).join('; ') || 'nothing',
  ]);
  const failures = runs.flatMap(({ version, failures: names }) =>
    names.map((name) => `- ${version}: ${name}`),
  );
  const missing = ENVOY_VERSIONS.filter((version) => !runs.some((run) => run.version === version));
  const text = [
    '# Versions of Envoy',
    '',
    '    npm run test:envoys -- --report',
    '',
    `${describeMachine()}; filter.wasm with sha256 \`${moduleSha()}\`.`,
    '',
    ...table(['Envoy', 'passed', 'failed', 'minutes', 'what the suite expects otherwise'], rows),
    '',
    ...(failures.length > 0 ? ['What failed:', '', ...failures, ''] : []),
    ...(missing.length > 0 ? [`Not run with this module: ${missing.join(', ')}.`, ''] : []),
  ];
  writeFileSync(REPORT, text.join('\n'));
  console.log(`Written to ${REPORT}`);
}
