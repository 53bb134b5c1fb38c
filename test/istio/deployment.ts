/**
 * A deployment for a test: manifests as users apply them, Istio's discovery server that reads them,
 * and the Envoy that it configures.
 */

import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { tool } from '../../tools/istio.mjs';
import { DIST } from '../../tools/paths.mjs';
import type { Envoy } from '../envoy/launcher.ts';
import { waitFor } from '../envoy/wait.ts';
import { startControlPlane, type ControlPlane } from './control_plane.ts';
import { launchProxy, type Proxy } from './proxy.ts';

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

export const istioctl = (...args: string[]): Promise<{ code: number; output: string }> =>
  new Promise((resolve) =>
    execFile(tool('istioctl'), args, (error, stdout, stderr) =>
      resolve({
        code: typeof error?.code === 'number' ? error.code : error ? 1 : 0,
        output: stdout + stderr,
      }),
    ),
  );
