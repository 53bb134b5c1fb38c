/**
 * A deployment for a test: manifests as users apply them, Envoy Gateway that reads them, and the
 * Envoy that it starts.
 */

import { manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { waitFor } from '../envoy/wait.ts';
import type { Artefacts } from './artefacts.ts';
import { startControlPlane } from './control_plane.ts';
import { applied, standalone } from './standalone.ts';

/** The image and the URL of the module, as the manifests have them. */
export const IMAGE = /registry\.example\/routed-experts-filter:[\d.]+/;
export const URL = 'http://artefacts.models.svc.cluster.local/filter.wasm';

export interface Deployment {
  readonly port: number;
  /** What Envoy Gateway and Envoy have printed. */
  output(): string;
  close(): Promise<void>;
}

export interface Engines {
  readonly prefillPort: number;
  readonly decodePort: number;
}

/**
 * The deployment after `kubectl apply -f` of each of `files`, of which `edit` may change the text.
 * The prefill engine has a service, unless a file takes the place of the route to it.
 */
export async function deploy(
  files: string[],
  artefacts: Artefacts,
  engines: Engines,
  edit: (manifests: string) => string = (text) => text,
): Promise<Deployment> {
  const port = await freePort();
  const texts = applied(...files.map((name) => manifest(`gateway/${name}.yaml`)));
  const services: Record<string, number> = { decode: engines.decodePort };
  if (texts.includes('{ name: prefill, port: 8000 }')) services.prefill = engines.prefillPort;
  const fetched = edit(texts).replace(IMAGE, artefacts.image).replace(URL, artefacts.url);
  const controlPlane = await startControlPlane(port, (surroundings) =>
    standalone(fetched, { port, services }, surroundings),
  );
  try {
    await waitFor('the route is there', () => isRouted(port), 60_000);
  } catch (error) {
    await controlPlane.close();
    throw new Error(`${(error as Error).message}\n${controlPlane.output().slice(-6_000)}`);
  }
  return { port, ...controlPlane };
}

/**
 * Whether requests are routed: a path that the filter does not look at gets to decode, or fails.
 */
async function isRouted(port: number): Promise<true | undefined> {
  const { status } = await fetch(`http://127.0.0.1:${port}/health`);
  return status === 404 ? undefined : true;
}
