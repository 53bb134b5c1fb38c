// `npm test`: sets up what is missing, checks format and types, and runs every suite. The last line
// is `N passed, N failed`. With TEST_ISTIO=1 it also runs `test:istio`, which builds Istio; with
// TEST_ISTIO=built, as in CI, only where Istio has been built. TEST_GATEWAY does the same for
// `test:gateway` and Envoy Gateway, and TEST_CLIENTS for `test:clients` and the clients' packages.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { clientsAreInstalled, ensureClients } from './clients.mjs';
import { ensureGateway, gatewayIsBuilt } from './gateway.mjs';
import { ensureIstio, istioIsBuilt } from './istio.mjs';
import { makePackage } from './package.mjs';
import { bin, ROOT } from './paths.mjs';
import { Problem, report } from './problem.mjs';
import { runNode } from './run.mjs';
import { setup, steps } from './setup.mjs';

/** The suites for which something has to be built or installed that takes minutes. */
const PROOFS = [
  {
    suite: 'istio',
    of: "Istio's control plane",
    needs: 'It needs Go, and builds for minutes',
    variable: 'TEST_ISTIO',
    isBuilt: istioIsBuilt,
    ensure: () => ensureIstio().then(makePackage),
  },
  {
    suite: 'gateway',
    of: 'Envoy Gateway',
    needs: 'It needs Go, and builds for minutes',
    variable: 'TEST_GATEWAY',
    isBuilt: gatewayIsBuilt,
    ensure: () => ensureGateway().then(makePackage),
  },
  {
    suite: 'clients',
    of: 'real clients',
    needs: 'It needs Python 3.11 with pip, and installs for minutes',
    variable: 'TEST_CLIENTS',
    isBuilt: clientsAreInstalled,
    ensure: ensureClients,
  },
];

let passed = 0;
let failed = 0;

if (await attempt(() => setup(['node', 'packages']))) {
  // Each of these steps may fail alone: the suites that do not need it still run.
  await attempt(steps.envoy);
  await attempt(steps.filter);
  await attempt(steps.test);
  await attempt(steps.trap);
  await check('format', bin('prettier'), ['--check', '--log-level', 'warn', '.']);
  await check('lint', bin('tsc'), ['--noEmit']);
  // The scenarios run on the emulator within the suite on Envoy.
  await runSuites(['--project', '!emulator', ...process.argv.slice(2)]);
  for (const proof of PROOFS) await runProof(proof);
}

console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;

/** @param {() => unknown} step */
async function attempt(step) {
  try {
    await step();
    return true;
  } catch (error) {
    failed++;
    report(error);
    return false;
  }
}

/**
 * @param {string} name
 * @param {string} script
 * @param {string[]} args
 */
async function check(name, script, args) {
  await attempt(async () => {
    const { code } = await runNode(script, args, { live: true });
    if (code !== 0) throw new Problem(`The ${name} check failed.`);
  });
}

/** @param {(typeof PROOFS)[number]} proof */
async function runProof({ suite, of, needs, variable, isBuilt, ensure }) {
  const script = `test:${suite}`;
  const wanted = process.env[variable];
  if (wanted === undefined) return;
  if (wanted !== '1' && !(wanted === 'built' && isBuilt())) {
    console.log(`\nLEFT OUT: ${script}, the proof on ${of}. ${needs}:`);
    console.log(`"npm run ${script}" does both; with ${variable}=1 this run would have.\n`);
    return;
  }
  console.log(`\n${script}, the proof on ${of}:`);
  await attempt(async () => {
    await ensure();
    await runSuites(['--config', join('test', suite, 'vitest.config.ts')]);
  });
}

/** @param {string[]} options of vitest */
async function runSuites(options) {
  const dir = mkdtempSync(join(tmpdir(), 'routed-experts-'));
  try {
    const counts = join(dir, 'counts.json');
    const reporters = ['--reporter=default', `--reporter=${join(ROOT, 'tools', 'reporter.mjs')}`];
    const { code } = await runNode(bin('vitest'), ['run', ...reporters, ...options], {
      live: true,
      env: { COUNT_FILE: counts },
    });
    const count = readCounts(counts);
    passed += count.passed;
    // vitest also fails when no test did, for example because a suite is empty.
    failed += count.failed || (code === 0 ? 0 : 1);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/**
 * @param {string} path
 * @returns {{ passed: number, failed: number }} zeros when vitest ended before it could count
 */
function readCounts(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return { passed: 0, failed: 0 };
  }
}
