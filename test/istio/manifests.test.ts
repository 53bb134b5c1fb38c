// What Istio's own tools say of the manifests, and what Istio's agent says of the image.

import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { tool } from '../../tools/istio.mjs';
import { DIST } from '../../tools/paths.mjs';
import { edited, manifest } from '../deployments/manifests.ts';
import { istioctl } from './deployment.ts';

const FOLDER = join(DIST, 'envoy', 'istio');
/** The manifests that Istio reads. The other files are patches of pods. */
const MANIFESTS = readdirSync(FOLDER).filter((name) => /^kind:/m.test(manifest(`istio/${name}`)));

test('there are manifests', () => {
  expect(MANIFESTS).toEqual(expect.arrayContaining(['envoyfilter.yaml', 'remote.yaml', 'sidecar.yaml']));
});

describe.each(MANIFESTS)('%s', (name) => {
  test('istioctl validate takes it', async () => {
    const { code, output } = await istioctl('validate', '-f', join(FOLDER, name));
    expect(code, output).toBe(0);
    expect(output).not.toMatch(/unknown field|error/i);
  });

  test('istioctl analyze has nothing to say', async () => {
    const { code, output } = await istioctl('analyze', '--use-kube=false', join(FOLDER, name));
    expect(code, output).toBe(0);
    expect(output).toContain('No validation issues found');
  });
});

test('istioctl refuses a manifest that is wrong', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'istio-'));
  const file = join(dir, 'wrong.yaml');
  const wrong = { 'operation: INSERT_BEFORE': 'operation: INSERT_SOMEWHERE' };
  writeFileSync(file, edited(manifest('istio/envoyfilter.yaml'), wrong));
  const { code } = await istioctl('validate', '-f', file);
  rmSync(dir, { recursive: true });
  expect(code).not.toBe(0);
});

test("Istio's agent finds the module in the image", async () => {
  const { stdout } = await promisify(execFile)(tool('pull'), [join(DIST, 'image')]);
  const sha256 = readFileSync(join(DIST, 'filter.wasm.sha256'), 'utf8').slice(0, 64);
  expect(stdout.trim().split('\n').at(-1)).toBe(sha256);
});
