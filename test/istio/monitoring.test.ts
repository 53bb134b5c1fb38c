// Prometheus's own engine evaluates the dashboard and the alerts over what an Envoy under Istio
// exports.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { tool } from '../../tools/istio.mjs';
import { DIST } from '../../tools/paths.mjs';
import { startEngines } from '../deployments/engines.ts';
import { expectMerged } from '../deployments/exchange.ts';
import { edited, manifest } from '../deployments/manifests.ts';
import { freePort } from '../deployments/ports.ts';
import { alertQueries, dashboardQueries, missing, type Query } from '../monitoring.ts';
import { deploy, MOUNTED } from './deployment.ts';
import { gatewayProxy, gatewayService, service } from './mesh.ts';

let dir: string;
let scrapes: string[];
let last: string;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'promql-'));
  const engines = await startEngines();
  const port = await freePort();
  const gateway = await deploy(gatewayProxy(manifest('istio/gateway-pod.yaml')), port, [
    edited(manifest('istio/envoyfilter.yaml'), MOUNTED),
    gatewayService(port),
    service({ host: 'prefill.models.svc.cluster.local', port: 8000, targetPort: engines.prefillPort }),
    service({ host: 'decode.models.svc.cluster.local', port: 8000, targetPort: engines.decodePort }),
  ]);
  scrapes = [];
  for (let i = 0; i < 20; i++) {
    last = await gateway.envoy.admin('/stats/prometheus');
    scrapes.push(join(dir, `${i}.txt`));
    writeFileSync(scrapes.at(-1)!, last);
    await expectMerged(engines, port, { prompt: `Request ${i}`, max_tokens: 2, temperature: 0 });
  }
  await gateway.close();
  await engines.close();
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function evaluate(queries: string[]): Promise<{ series: number; error?: string }[]> {
  const child = spawn(tool('promql'), { stdio: 'pipe' });
  let [output, errors] = ['', ''];
  child.stdout.on('data', (data) => (output += data));
  child.stderr.on('data', (data) => (errors += data));
  const rules = join(DIST, 'envoy', 'monitoring', 'alerts.yaml');
  child.stdin.end(JSON.stringify({ rules, queries, scrapes }));
  const [code] = await once(child, 'close');
  expect(code, errors).toBe(0);
  return JSON.parse(output);
}

/** The names of queries that cannot be evaluated or return no series. */
async function empty(queries: Query[]): Promise<string[]> {
  const results = await evaluate(queries.map(({ expr }) => expr));
  return results.flatMap(({ series, error }, i) =>
    error || series === 0 ? [`${queries[i]!.name}: ${error ?? 'no series'}`] : [],
  );
}

test('Envoy exports what they use', () => {
  expect(missing([...dashboardQueries(), ...alertQueries()], last)).toEqual([]);
});

test('every panel has something to show', async () => {
  expect(await empty(dashboardQueries())).toEqual([]);
});

test('every alert can be evaluated, and without its threshold has a value', async () => {
  const alerts = alertQueries();
  const results = await evaluate(alerts.map(({ expr }) => expr));
  expect(results.flatMap(({ error }) => error ?? [])).toEqual([]);
  const open = alerts.map(({ name, expr }) => ({ name, expr: expr.replace(/(>|==) [0-9.]+/g, '') }));
  expect(await empty(open)).toEqual([]);
});

test('no alert fires while all is well', async () => {
  const alerts = alertQueries();
  const results = await evaluate(alerts.map(({ expr }) => expr));
  expect(alerts.filter((_, i) => results[i]!.series > 0).map(({ name }) => name)).toEqual([]);
});
