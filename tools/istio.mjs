// Builds what `npm run test:istio` needs into .istio/: istioctl, and the programs of test/istio.
// The first build needs Go and takes some minutes.
import { join } from 'node:path';
import { areBuilt, ensurePrograms, moduleSource, program } from './go.mjs';
import { runMain } from './problem.mjs';

/** @type {import('./go.mjs').Programs} */
const ISTIO = {
  dir: '.istio',
  module: join('test', 'istio'),
  packages: {
    istioctl: 'istio.io/istio/istioctl/cmd/istioctl',
    discovery: './discovery',
    pull: './pull',
    promql: './promql',
  },
};

/** @param {string} name */
export const tool = (name) => program(ISTIO, name);

/** The folder of Istio's own sources in Go's module cache. */
export const istioSource = () => moduleSource(ISTIO, 'istio.io/istio');

export const istioIsBuilt = () => areBuilt(ISTIO);

export const ensureIstio = () => ensurePrograms(ISTIO);

await runMain(import.meta.url, ensureIstio);
