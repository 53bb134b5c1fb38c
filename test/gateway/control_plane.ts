/**
 * Runs Envoy Gateway in standalone mode: it reads manifests from files instead of Kubernetes, and
 * starts the Envoy that it configures. Its ports are fixed, so there can be one at a time.
 */

import { execFile, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { requireEnvoy } from '../../tools/envoy.mjs';
import { gatewayTool } from '../../tools/gateway.mjs';
import { waitFor } from '../envoy/wait.ts';

/** The ports that Envoy Gateway listens on and that no setting changes. */
const PORTS = { xds: 18000, modules: 18002, health: 8081, admin: 19000, metrics: 19001, readiness: 19003 };

/** Where the certificates of one run of Envoy Gateway are, and which Envoy it starts. */
export interface Surroundings {
  readonly certificates: string;
  readonly envoyVersion: string;
}

export interface ControlPlane {
  /** What Envoy Gateway and Envoy have printed: their logs and the access log. */
  output(): string;
  close(): Promise<void>;
}

const STOP_MS = 10_000;

/**
 * Starts Envoy Gateway with the manifests that `manifests` makes, and waits until somebody listens
 * on the port of the Gateway.
 */
export async function startControlPlane(
  port: number,
  manifests: (surroundings: Surroundings) => string,
): Promise<ControlPlane> {
  for (const [name, fixed] of Object.entries(PORTS)) await mustBeFree(name, fixed);
  const dir = mkdtempSync(join(tmpdir(), 'gateway-'));
  const binary = gatewayTool('envoy-gateway');
  const config = join(dir, 'config');
  await promisify(execFile)(binary, ['certgen', '--local', '--config-home', config]);
  const envoyVersion = await provideEnvoy(join(dir, 'data'));
  writeFileSync(join(dir, 'gateway.yaml'), JSON.stringify(settings(dir)));
  mkdirSync(join(dir, 'manifests'));
  const text = manifests({ certificates: join(config, 'certs', 'envoy'), envoyVersion });
  writeFileSync(join(dir, 'manifests', 'all.yaml'), text);

  // The modules are cached below HOME. Envoy is in the same process group, which is ended as one.
  const child = spawn(binary, ['server', '--config-path', join(dir, 'gateway.yaml')], {
    cwd: dir,
    env: { ...process.env, HOME: dir },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  let output = '';
  let ended = false;
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (data: string) => (output += data));
  const closed = new Promise<void>((resolve) => child.on('close', () => resolve()));
  void closed.then(() => (ended = true));
  const end = (signal: NodeJS.Signals) => {
    if (!ended && child.pid) process.kill(-child.pid, signal);
  };
  const kill = () => end('SIGKILL');
  process.on('exit', kill);
  const close = async () => {
    end('SIGTERM');
    const timer = setTimeout(kill, STOP_MS);
    await closed;
    clearTimeout(timer);
    process.off('exit', kill);
    rmSync(dir, { recursive: true, force: true });
  };
  try {
    await waitFor(
      'Envoy listens',
      async () => {
        if (ended) throw new Error('Envoy Gateway has ended');
        return (await listens(port)) ? true : undefined;
      },
      60_000,
    );
  } catch (error) {
    await close();
    throw new Error(`${(error as Error).message}\n${output.slice(-6_000)}`);
  }
  return { output: () => output, close };
}

/** Envoy Gateway's own configuration. */
const settings = (dir: string) => ({
  apiVersion: 'gateway.envoyproxy.io/v1alpha1',
  kind: 'EnvoyGateway',
  gateway: { controllerName: 'gateway.envoyproxy.io/gatewayclass-controller' },
  provider: {
    type: 'Custom',
    custom: {
      resource: { type: 'File', file: { paths: [join(dir, 'manifests')] } },
      infrastructure: {
        type: 'Host',
        host: {
          configHome: join(dir, 'config'),
          dataHome: join(dir, 'data'),
          stateHome: join(dir, 'state'),
          runtimeDir: join(dir, 'run'),
        },
      },
    },
  },
  extensionApis: { enableBackend: true, enableEnvoyPatchPolicy: true },
});

/** Puts the Envoy of all suites where Envoy Gateway looks before it downloads one. */
async function provideEnvoy(data: string): Promise<string> {
  const envoy = await requireEnvoy();
  const { stdout } = await promisify(execFile)(envoy, ['--version']);
  const version = /\/(\d+\.\d+\.\d+)/.exec(stdout)![1]!;
  const folder = join(data, 'envoy-versions', version, 'bin');
  mkdirSync(folder, { recursive: true });
  symlinkSync(envoy, join(folder, 'envoy'));
  return version;
}

const listens = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });

async function mustBeFree(name: string, port: number): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.on('error', () =>
      reject(new Error(`Envoy Gateway needs port ${port} (${name}), which is taken.`)),
    );
    server.listen(port, resolve);
  });
  await new Promise((resolve) => server.close(resolve));
}
