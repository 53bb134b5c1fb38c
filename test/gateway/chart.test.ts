// What helm renders of the chart is what the other tests deploy, and other values get to where they
// belong.

import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { gatewayTool } from '../../tools/gateway.mjs';
import { ROOT } from '../../tools/paths.mjs';
import { edited, manifest } from '../deployments/manifests.ts';
import { documents, schemaChecker, type Resource } from './crds.ts';
import { applied } from './standalone.ts';

const CHART = join(ROOT, 'deploy', 'chart');
const SHA256 = '1'.repeat(64);

const helm = (...args: string[]): Promise<{ code: number; output: string }> =>
  new Promise((resolve) =>
    execFile(gatewayTool('helm'), args, (error, stdout, stderr) =>
      resolve({ code: error ? 1 : 0, output: error ? stdout + stderr : stdout }),
    ),
  );

/** Renders the chart with values such as `mode=istio-gateway`. */
async function rendered(...values: string[]): Promise<Resource[]> {
  const { code, output } = await helm('template', 'x', CHART, ...values.flatMap((value) => ['--set', value]));
  expect(code, output).toBe(0);
  return documents(output);
}

/**
 * Objects by their names. The filter's configuration is JSON in a string in some of them, whose
 * spaces do not count.
 */
const byName = (resources: Resource[]): Record<string, Resource> =>
  Object.fromEntries(
    resources.map((resource) => {
      const { kind, metadata } = resource;
      return [`${kind} ${metadata.namespace}/${metadata.name}`, withoutSpaces(resource) as Resource];
    }),
  );

function withoutSpaces(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutSpaces);
  if (typeof value === 'string') return value.startsWith('{') ? (JSON.parse(value) as unknown) : value;
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, withoutSpaces(member)]));
}

const without = (kind: string, text: string) =>
  text
    .split(/^---$/m)
    .filter((document) => !document.includes(`\nkind: ${kind}\n`))
    .join('\n---\n');

describe('with the default values', () => {
  const gateway = manifest('gateway/envoyextensionpolicy.yaml');
  const image = `type: Image
        image:
          url: registry.example/routed-experts-filter:0.2.0`;
  const url = `type: HTTP
        http:
          url: http://artefacts.models.svc.cluster.local/filter.wasm
          sha256: '${SHA256}'`;
  const patch = manifest('gateway/envoypatchpolicy.yaml').replace(/sha256: '\w{64}'/, `sha256: '${SHA256}'`);
  const istio = manifest('istio/envoyfilter.yaml');
  const cases: [string, string, ...string[]][] = [
    ['envoy-gateway', gateway],
    [
      'envoy-gateway',
      edited(gateway, { [image]: url }),
      'module.url=http://artefacts.models.svc.cluster.local/filter.wasm',
      `module.sha256=${SHA256}`,
    ],
    [
      'envoy-gateway-patch',
      applied(gateway, patch),
      'module.url=http://artefacts.models.svc.cluster.local/filter.wasm',
      `module.sha256=${SHA256}`,
    ],
    ['istio-gateway', istio],
    ['istio-plugin', [without('EnvoyFilter', istio), manifest('istio/wasmplugin.yaml')].join('\n---\n')],
    ['istio-sidecar', manifest('istio/sidecar.yaml')],
  ];

  test.each(cases)('mode %s is the manifest that is tested', async (mode, text, ...values) => {
    const objects = byName(await rendered(`mode=${mode}`, ...values));
    expect(Object.keys(objects).length).toBeGreaterThan(1);
    expect(objects).toEqual(byName(documents(text)));
  });
});

describe('the CRDs of Envoy Gateway and of the Gateway API', () => {
  const check = schemaChecker();
  const files = readdirSync(join(ROOT, 'envoy', 'gateway'));
  const wrong = (resources: Resource[]) => resources.flatMap((resource) => check(resource) ?? []);

  test.each(files)('take %s', (name) => {
    expect(wrong(documents(manifest(`gateway/${name}`)))).toEqual([]);
  });

  test.each(['envoy-gateway', 'envoy-gateway-patch'])('take what mode %s renders', async (mode) => {
    const values = [
      'namespace=rl',
      'envoyGateway.gateway=moe',
      'decode.port=30000',
      'limits.requestBytes=1000000000',
      'limits.streamIdleTimeout=2h',
      'workers=4',
    ];
    expect(wrong(await rendered(`mode=${mode}`, ...values))).toEqual([]);
  });

  test('refuse a field that they do not have', () => {
    const limit = 'requestBuffer: { limit: 67108864';
    const text = edited(manifest('gateway/envoyextensionpolicy.yaml'), {
      [limit]: `${limit}, mode: LimitOnly`,
    });
    expect(wrong(documents(text))).toEqual([expect.stringContaining('must NOT have additional properties')]);
  });
});

test('cluster, connector and limits of the values are in what is rendered', async () => {
  const values = [
    'configuration.connector=sglang',
    'configuration.prefill.bootstrap_host=10.0.0.7',
    'limits.requestBytes=1000000001',
    'limits.streamIdleTimeout=77s',
    'limits.engineIdleTimeout=3s',
    'namespace=rl',
    'prefill.service=p',
    'prefill.port=30000',
  ];
  const text = JSON.stringify(byName(await rendered('mode=istio-gateway', ...values)));
  for (const part of [
    '"connector":"sglang"',
    '"bootstrap_host":"10.0.0.7","cluster":"outbound|30000||p.rl.svc.cluster.local"',
    '"request_body_buffer_limit":1000000001',
    '"stream_idle_timeout":"77s"',
    '"idleTimeout":"3s"',
    '"host":"p.rl.svc.cluster.local"',
  ])
    expect(text).toContain(part);
  const named = await rendered('mode=envoy-gateway', 'configuration.prefill.cluster=mine');
  expect(JSON.stringify(named)).toContain('"cluster":"mine"');
});

test.each([
  ['a connector that there is not', 'mode=istio-gateway', 'configuration.connector=nicksl'],
  ['a key that there is not', 'mode=istio-gateway', 'configuration.conector=nixl'],
  ['a mode that there is not', 'mode=istio'],
  ['legs at once where heads pass', 'mode=envoy-gateway', 'configuration.connector=sglang'],
  ['`hold` where heads pass', 'mode=istio-plugin', 'configuration.headers=hold'],
  ['a URL without sha256', 'mode=envoy-gateway', 'module.url=http://x.example/filter.wasm'],
])('helm refuses %s', async (_, ...values) => {
  const { code, output } = await helm('template', 'x', CHART, ...values.flatMap((value) => ['--set', value]));
  expect(code).not.toBe(0);
  expect(output).toMatch(/values don't meet the specifications of the schema/);
});

test('helm lint has nothing against the chart', async () => {
  const { code, output } = await helm('lint', CHART);
  expect(code, output).toBe(0);
});
