// `npm run manifests`: writes the filter's typed_config into the manifests, whose one source is
// manifests/filter.yaml, and then the Helm chart.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeChart } from './chart.mjs';
import { ROOT } from './paths.mjs';
import { runMain } from './problem.mjs';

const LOCAL = ['local: { filename: /var/lib/filter/plugin.wasm }'];

/** Envoy's cluster of the service `prefill` in namespace `models`, as Istio names it. */
const PREFILL_SERVICE = 'outbound|8000||prefill.models.svc.cluster.local';

/** The configuration behind llm-d's endpoint picker. */
const LLM_D = {
  prefill: {
    cluster: 'prefill',
    endpoint_header: 'x-prefiller-host-port',
    allowed_endpoints: ['10.0.0.0/8:8000'],
  },
  connector: 'nixl',
  decode_rows: 'full',
};

/** Envoy's cluster of the HTTPRoute `prefill` in namespace `models`, as Envoy Gateway names it. */
const PREFILL_ROUTE = 'httproute/models/prefill/rule/0';

/**
 * Every file that has the filter's typed_config, with the code and the configuration that it has
 * there.
 * @type {Record<string, { code: string[], configuration: Record<string, unknown> }>}
 */
export const MANIFESTS = {
  'envoy/envoy.yaml': {
    code: ['local: { filename: build/filter.wasm }'],
    configuration: { prefill: { cluster: 'prefill' }, connector: 'nixl', decode_rows: 'full' },
  },
  'envoy/tracing/envoy.yaml': {
    code: ['local: { filename: build/filter.wasm }'],
    configuration: { prefill: { cluster: 'prefill' }, connector: 'nixl', decode_rows: 'full' },
  },
  'envoy/istio/envoyfilter.yaml': {
    code: LOCAL,
    configuration: { prefill: { cluster: PREFILL_SERVICE }, connector: 'nixl', decode_rows: 'full' },
  },
  'envoy/istio/llm-d.yaml': { code: LOCAL, configuration: { ...LLM_D, max_piece_bytes: 3 << 20 } },
  'envoy/llm-d/envoy.yaml': { code: ['local: { filename: build/filter.wasm }'], configuration: LLM_D },
  'envoy/istio/remote.yaml': {
    code: [
      'remote:',
      '  http_uri:',
      '    uri: http://artefacts.models.svc.cluster.local/filter.wasm',
      '    # For an Envoy without an agent, which would download it itself.',
      '    cluster: outbound|80||artefacts.models.svc.cluster.local',
      '    timeout: 60s',
      "  # Of the module, not of the URL's: a module that does not have it is not run.",
      `  sha256: '${'0'.repeat(64)}'`,
    ],
    configuration: { prefill: { cluster: 'prefill' }, connector: 'nixl', decode_rows: 'full' },
  },
  'envoy/istio/sidecar.yaml': {
    code: LOCAL,
    configuration: { prefill: { cluster: PREFILL_SERVICE }, connector: 'nixl', decode_rows: 'full' },
  },
};

/** The configuration where Istio writes the typed_config. */
const ISTIO_PLUGIN = {
  prefill: { cluster: PREFILL_SERVICE },
  connector: 'nixl',
  decode_rows: 'full',
  headers: 'pass',
};

/**
 * The files for which a control plane writes the typed_config, without
 * allow_on_headers_stop_iteration.
 * @type {Record<string, Record<string, unknown>>}
 */
export const PLUGIN_CONFIGS = {
  'envoy/istio/wasmplugin.yaml': ISTIO_PLUGIN,
  'envoy/istio/trafficextension.yaml': ISTIO_PLUGIN,
  'envoy/gateway/envoyextensionpolicy.yaml': {
    prefill: { cluster: PREFILL_ROUTE },
    connector: 'nixl',
    decode_rows: 'full',
    headers: 'pass',
  },
  'envoy/gateway/envoypatchpolicy.yaml': {
    prefill: { cluster: PREFILL_ROUTE },
    connector: 'nixl',
    decode_rows: 'full',
  },
  'envoy/gateway/endpoint.yaml': {
    prefill: {
      cluster: PREFILL_ROUTE,
      cluster_type: 'dynamic_forward_proxy',
      endpoint_header: 'x-prefiller-host-port',
      allowed_endpoints: ['10.0.0.0/8:8000'],
    },
    connector: 'nixl',
    decode_rows: 'full',
    headers: 'pass',
  },
};

const MARK = /^( *)# Written by npm run manifests\.\n\1typed_config:\n(?:\1 .*\n)*/gm;

// The block is JSON, which is also YAML. Prettier would remove its quotes.
const PLUGIN_MARK =
  /^( *)# Written by npm run manifests\.\n\1# prettier-ignore\n\1(pluginConfig|config):\n(?:\1 .*\n)*/gm;

/**
 * The text of a manifest with the plugin configuration that it must have.
 * @param {string} path inside the project
 * @param {string} text
 */
export function withPluginConfig(path, text) {
  return text.replace(PLUGIN_MARK, (_, indent, key) => {
    const block = jsonLines(PLUGIN_CONFIGS[path])
      .map((line) => `${indent}  ${line}\n`)
      .join('');
    return `${indent}# Written by npm run manifests.\n${indent}# prettier-ignore\n${indent}${key}:\n${block}`;
  });
}

/**
 * The text of a manifest with the typed_config that it must have.
 * @param {string} path inside the project
 * @param {string} text
 */
export function withTypedConfig(path, text) {
  const { code, configuration } = MANIFESTS[path];
  const source = readFileSync(join(ROOT, 'tools', 'manifests', 'filter.yaml'), 'utf8').replace(
    /^#.*\n/gm,
    '',
  );
  const lines = source
    .trimEnd()
    .split('\n')
    .flatMap((line) => {
      const indent = ' '.repeat(line.search(/\S/));
      if (line.endsWith('code: CODE')) return [`${indent}code:`, ...code.map((part) => `${indent}  ${part}`)];
      if (line.endsWith('CONFIGURATION')) return jsonLines(configuration).map((part) => indent + part);
      return line;
    });
  let written = 0;
  const result = text.replace(MARK, (_, indent) => {
    written++;
    const block = lines.map((line) => `${indent}  ${line}\n`).join('');
    return `${indent}# Written by npm run manifests.\n${indent}typed_config:\n${block}`;
  });
  if (written !== 1) throw new Error(`${path} has ${written} places for the typed_config`);
  return result;
}

/**
 * One line for each key. An object that is too long for one line has a line for each of its keys.
 * @param {Record<string, unknown>} configuration
 * @returns {string[]}
 */
function jsonLines(configuration) {
  const members = Object.entries(configuration).flatMap(([key, value], i, all) => {
    const text = JSON.stringify(value, null, 1).replace(/\n */g, ' ');
    const nested = text.length > 60 ? jsonLines(/** @type {Record<string, unknown>} */ (value)) : [text];
    const lines = nested.map((line, at) => (at === 0 ? `${JSON.stringify(key)}: ${line}` : line));
    if (i < all.length - 1) lines.push(`${lines.pop()},`);
    return lines.map((line) => `  ${line}`);
  });
  return ['{', ...members, '}'];
}

await runMain(import.meta.url, () => {
  for (const path of Object.keys(PLUGIN_CONFIGS)) {
    const file = join(ROOT, path);
    writeFileSync(file, withPluginConfig(path, readFileSync(file, 'utf8')));
  }
  for (const path of Object.keys(MANIFESTS)) {
    const file = join(ROOT, path);
    writeFileSync(file, withTypedConfig(path, readFileSync(file, 'utf8')));
  }
  writeChart();
});
