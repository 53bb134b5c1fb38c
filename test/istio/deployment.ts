/**
 * A deployment for a test: manifests as users apply them, Istio's discovery server that reads them,
 * and the Envoy that it configures.
 */

import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { expect } from 'vitest';
import { tool } from '../../tools/istio.mjs';
import { DIST } from '../../tools/paths.mjs';
import type { Envoy } from '../envoy/launcher.ts';
import { waitFor } from '../envoy/wait.ts';
import { startControlPlane, type ControlPlane } from './control_plane.ts';
import { ask, type Engines, type Request } from './engines.ts';
import { launchProxy, type Proxy } from './proxy.ts';

/** The text of a manifest as `npm run package` ships it. */
export const manifest = (name: string): string => readFileSync(join(DIST, 'envoy', name), 'utf8');

/** `text` with each key of `edits`, which must occur exactly once, replaced by its value. */
export function edited(text: string, edits: Record<string, string>): string {
  for (const [from, to] of Object.entries(edits)) {
    expect(text.split(from), `the manifest has ${from} once`).toHaveLength(2);
    text = text.replace(from, () => to);
  }
  return text;
}

/** Puts the built module in the place of the file that gateway-pod.yaml mounts as a volume. */
export const MOUNTED = {
  'filename: /var/lib/filter/plugin.wasm': `filename: ${join(DIST, 'filter.wasm')}`,
};

export interface Deployment {
  readonly controlPlane: ControlPlane;
  readonly envoy: Envoy;
  readonly port: number;
  /** What Envoy has written to standard output: its access log. */
  output(): string;
  close(): Promise<void>;
}

export async function deploy(
  proxy: Proxy,
  port: number,
  manifests: string[],
  ready: (envoy: Envoy) => Promise<boolean> = (envoy) => listens(envoy, port),
): Promise<Deployment> {
  const controlPlane = await startControlPlane();
  let output = '';
  let envoy: Envoy | undefined;
  try {
    await controlPlane.apply(manifests.join('\n---\n'));
    envoy = await launchProxy(proxy, controlPlane.port, (text) => (output += text));
    const started = envoy;
    await waitFor('Istio has configured Envoy', async () => ((await ready(started)) ? true : undefined));
  } catch (error) {
    await envoy?.close();
    await controlPlane.close();
    throw error;
  }
  return {
    controlPlane,
    envoy,
    port,
    output: () => output,
    async close() {
      await envoy.close();
      await controlPlane.close();
    },
  };
}

const listens = async (envoy: Envoy, port: number) =>
  (await envoy.admin('/listeners')).includes(`:${port}\n`);

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Sends a request through the filter and expects the oracle's arrays in the response. */
export async function expectMerged(
  engines: Engines,
  port: number,
  body: Request,
  ip?: string,
  headers?: Record<string, string>,
): Promise<void> {
  const answer = await ask(port, body, ip, headers);
  expect(answer.status, answer.text.slice(0, 500)).toBe(200);
  expect(answer.outcome).toMatch(/^merged; rows=\d+/);
  // The arrays are compared as a boolean, because nobody can read a difference of megabytes.
  expect(answer.arrays.length).toBeGreaterThan(0);
  expect(answer.arrays.join() === engines.right(body).join()).toBe(true);
}

export const istioctl = (...args: string[]): Promise<{ code: number; output: string }> =>
  new Promise((resolve) =>
    execFile(tool('istioctl'), args, (error, stdout, stderr) =>
      resolve({
        code: typeof error?.code === 'number' ? error.code : error ? 1 : 0,
        output: stdout + stderr,
      }),
    ),
  );
