/** Where Envoy Gateway fetches the module: a registry with the image, and a web server. */

import { execFile, spawn } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gatewayTool } from '../../tools/gateway.mjs';
import { DIST } from '../../tools/paths.mjs';
import { freePort } from '../deployments/ports.ts';
import { waitFor } from '../envoy/wait.ts';

export interface Artefacts {
  /** The image in the registry. */
  readonly image: string;
  /** The module on the web server. */
  readonly url: string;
  /** Paths that the web server was asked for. */
  readonly fetched: string[];
  close(): Promise<void>;
}

const crane = (...args: string[]) => promisify(execFile)(gatewayTool('crane'), args);

export async function serveArtefacts(): Promise<Artefacts> {
  const registry = await startRegistry();
  const image = `127.0.0.1:${registry.port}/routed-experts-filter:test`;
  const layout = layoutOfImage();
  await waitFor('the registry has the image', () =>
    crane('push', layout, image).then(
      () => true,
      () => undefined,
    ),
  );
  rmSync(layout, { recursive: true });
  const module = readFileSync(join(DIST, 'filter.wasm'));
  const fetched: string[] = [];
  const server = createServer((request, response) => {
    fetched.push(request.url!);
    if (request.url === '/filter.wasm') response.end(module);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/filter.wasm`;
  return {
    image,
    url,
    fetched,
    async close() {
      server.closeAllConnections();
      server.close();
      await registry.close();
    },
  };
}

/** A copy of the layout without the referrers: crane pushes only layouts of one manifest. */
function layoutOfImage(): string {
  const layout = mkdtempSync(join(tmpdir(), 'image-'));
  cpSync(join(DIST, 'image'), layout, { recursive: true });
  const path = join(layout, 'index.json');
  const index = JSON.parse(readFileSync(path, 'utf8')) as { manifests: { annotations?: object }[] };
  const named = index.manifests.filter(
    ({ annotations }) => annotations && 'org.opencontainers.image.ref.name' in annotations,
  );
  writeFileSync(path, JSON.stringify({ ...index, manifests: named }));
  return layout;
}

async function startRegistry() {
  const port = await freePort();
  const child = spawn(gatewayTool('crane'), ['registry', 'serve', '--address', `127.0.0.1:${port}`], {
    stdio: 'ignore',
  });
  const closed = new Promise<void>((resolve) => child.on('close', () => resolve()));
  const kill = () => child.kill('SIGKILL');
  process.on('exit', kill);
  return {
    port,
    async close() {
      child.kill('SIGTERM');
      await closed;
      process.off('exit', kill);
    },
  };
}
