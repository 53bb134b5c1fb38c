// Installs what `npm run test:clients` needs into .clients/: an environment of Python with the
// trainers' packages, and Node's `openai`. Everything is pinned in test/clients.
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from './paths.mjs';
import { Problem, runMain } from './problem.mjs';
import { lastError, run } from './run.mjs';

const DIR = join(ROOT, '.clients');
const VENV = join(DIR, 'python');
const BUILT = join(DIR, 'built');
const SOURCES = join(ROOT, 'test', 'clients');
const REQUIREMENTS = join(SOURCES, 'requirements.txt');
const NEWEST = join(SOURCES, 'requirements-openai.txt');
const PACKAGES = join(SOURCES, 'package.json');
/** The oldest Python that the packages' releases take. */
const OLDEST = [3, 11];

export const PYTHON = join(VENV, 'bin', 'python');

/** The folder of the newest `openai` for Python, to be put in front of the others. */
export const NEWEST_OPENAI = join(DIR, 'openai');

/** Node's `openai`, to be imported. */
export const NODE_OPENAI = join(DIR, 'node_modules', 'openai', 'index.mjs');

/** Whether everything is there, in the versions that are pinned now. */
export const clientsAreInstalled = () => existsSync(BUILT) && readFileSync(BUILT, 'utf8') === digest();

export async function ensureClients() {
  if (clientsAreInstalled()) return;
  const python = await suitablePython();
  console.log('Installing the clients into .clients/ ...');
  rmSync(VENV, { recursive: true, force: true });
  mkdirSync(DIR, { recursive: true });
  await must('python3 -m venv', run(python, ['-m', 'venv', VENV]));
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--no-compile'];
  // The list is whole, and of what a trainer needs for training it has nothing. SkyRL's release
  // asks for Python 3.12, and its client runs on 3.11, too.
  const own = ['--ignore-requires-python', '--only-binary', ':all:', '-r'];
  const env = { PIP_USER: '0' };
  await must('pip install', run(PYTHON, [...pip, ...own, REQUIREMENTS], { env }));
  rmSync(NEWEST_OPENAI, { recursive: true, force: true });
  const beside = ['--target', NEWEST_OPENAI, '-r', NEWEST];
  await must('pip install', run(PYTHON, [...pip, ...beside], { env }));
  copyFileSync(PACKAGES, join(DIR, 'package.json'));
  const quiet = ['--no-audit', '--no-fund', '--no-package-lock', '--ignore-scripts'];
  await must('npm install', run('npm', ['install', '--prefix', DIR, ...quiet]));
  writeFileSync(BUILT, digest());
}

/** A Python that is new enough, which has pip. */
async function suitablePython() {
  const { code, output } = await run('python3', [
    '-c',
    'import sys, venv, pip; print(*sys.version_info[:2])',
  ]);
  if (code !== 0) throw new Problem('python3 with venv and pip is needed to install the clients.');
  const [major, minor] = output.trim().split(' ').map(Number);
  if (major === OLDEST[0] && minor >= OLDEST[1]) return 'python3';
  throw new Problem(
    `Python ${OLDEST.join('.')} or later is needed for the clients; this is ${major}.${minor}.`,
  );
}

/**
 * @param {string} what
 * @param {Promise<import('./run.mjs').Outcome>} running
 */
async function must(what, running) {
  const { code, output } = await running;
  if (code !== 0) throw new Problem(`${what} failed (${lastError(output)}).`);
}

function digest() {
  const hash = createHash('sha256').update(DIR);
  for (const path of [REQUIREMENTS, NEWEST, PACKAGES]) hash.update(readFileSync(path));
  return hash.digest('hex');
}

await runMain(import.meta.url, ensureClients);
