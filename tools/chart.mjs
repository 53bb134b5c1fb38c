// The Helm chart's templates and the schema of its values, made of the manifests that the tests
// deploy. What helm renders with the default values is what was tested; the values replace what
// TEMPLATES names. `npm run manifests` writes them.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from './paths.mjs';

/** The modes in which the filter is loaded by a resource that cannot let it hold a head. */
const PASSING = ['envoy-gateway', 'istio-plugin'];

export const MODES = [
  'envoy-gateway',
  'envoy-gateway-patch',
  'istio-gateway',
  'istio-plugin',
  'istio-sidecar',
];

const LIMITS = {
  'limit: 67108864': 'limit: {{ int64 .Values.limits.requestBytes }}',
  'request_body_buffer_limit: 67108864': 'request_body_buffer_limit: {{ int64 .Values.limits.requestBytes }}',
  'http.async_response_buffer_limit: 268435456':
    'http.async_response_buffer_limit: {{ int64 .Values.limits.prefillReplyBytes }}',
  'idleTimeout: 4s': 'idleTimeout: {{ .Values.limits.engineIdleTimeout }}',
  'connectionIdleTimeout: 4s': 'connectionIdleTimeout: {{ .Values.limits.engineIdleTimeout }}',
  'connectTimeout: 2s': 'connectTimeout: {{ .Values.limits.connectTimeout }}',
  'stream_idle_timeout: 1800s': 'stream_idle_timeout: {{ .Values.limits.streamIdleTimeout }}',
  'streamIdleTimeout: 1800s': 'streamIdleTimeout: {{ .Values.limits.streamIdleTimeout }}',
  'concurrency: 2': 'concurrency: {{ int .Values.workers }}',
};

const GATEWAY = {
  'gatewayClassName: eg': 'gatewayClassName: {{ .Values.envoyGateway.gatewayClass }}',
  'port: 80 ': 'port: {{ int .Values.envoyGateway.port }} ',
  'namespace: models': 'namespace: {{ .Values.namespace }}',
  'models/inference/http': '{{ .Values.namespace }}/{{ .Values.envoyGateway.gateway }}/http',
  'httproute/models/': 'httproute/{{ .Values.namespace }}/',
  'name: inference': 'name: {{ .Values.envoyGateway.gateway }}',
  '{ name: decode, port: 8000 }':
    '{ name: {{ .Values.decode.service }}, port: {{ int .Values.decode.port }} }',
  '{ name: prefill, port: 8000 }':
    '{ name: {{ .Values.prefill.service }}, port: {{ int .Values.prefill.port }} }',
  ...LIMITS,
};

const ISTIO = {
  'namespace: istio-system': 'namespace: {{ .Values.istio.namespace }}',
  'namespace: models': 'namespace: {{ .Values.namespace }}',
  'istio: ingressgateway': 'istio: {{ .Values.istio.gateway }}',
  'app: decode': 'app: {{ .Values.istio.decodeApp }}',
  'decode.models.svc.cluster.local': '{{ .Values.decode.service }}.{{ .Values.namespace }}.svc.cluster.local',
  'prefill.models.svc.cluster.local':
    '{{ .Values.prefill.service }}.{{ .Values.namespace }}.svc.cluster.local',
  'number: 8000': 'number: {{ int .Values.decode.port }}',
  'destinationPort: 8000': 'destinationPort: {{ int .Values.decode.port }}',
  'inbound|http|8000': 'inbound|http|{{ int .Values.decode.port }}',
  'filename: /var/lib/filter/plugin.wasm': 'filename: {{ .Values.module.path }}',
  'url: oci://registry.example/routed-experts-filter:0.2.0': 'url: oci://{{ .Values.module.image }}',
  ...LIMITS,
};

/**
 * The templates: the manifest, which of its objects, the modes that have them, and what the values
 * replace. A policy of Envoy Gateway may have the module from an image or from a URL.
 * @type {Record<string, { source: string, kinds: RegExp, modes: string[], values: Record<string, string> }>}
 */
export const TEMPLATES = {
  'gateway.yaml': {
    source: 'envoy/gateway/envoyextensionpolicy.yaml',
    kinds: /^(?!EnvoyExtensionPolicy)/,
    modes: ['envoy-gateway', 'envoy-gateway-patch'],
    values: GATEWAY,
  },
  'gateway-policy.yaml': {
    source: 'envoy/gateway/envoyextensionpolicy.yaml',
    kinds: /^EnvoyExtensionPolicy/,
    modes: ['envoy-gateway', 'envoy-gateway-patch'],
    values: GATEWAY,
  },
  'gateway-patch.yaml': {
    source: 'envoy/gateway/envoypatchpolicy.yaml',
    kinds: /^EnvoyPatchPolicy/,
    modes: ['envoy-gateway-patch'],
    values: GATEWAY,
  },
  'istio-routes.yaml': {
    source: 'envoy/istio/envoyfilter.yaml',
    kinds: /^(?!EnvoyFilter)/,
    modes: ['istio-gateway', 'istio-plugin'],
    values: ISTIO,
  },
  'istio-gateway.yaml': {
    source: 'envoy/istio/envoyfilter.yaml',
    kinds: /^EnvoyFilter/,
    modes: ['istio-gateway'],
    values: ISTIO,
  },
  'istio-plugin.yaml': {
    source: 'envoy/istio/wasmplugin.yaml',
    kinds: /./,
    modes: ['istio-plugin'],
    values: ISTIO,
  },
  'istio-sidecar.yaml': {
    source: 'envoy/istio/sidecar.yaml',
    kinds: /./,
    modes: ['istio-sidecar'],
    values: ISTIO,
  },
};

/** @param {string} name */
export function template(name) {
  const { source, kinds, modes, values } = TEMPLATES[name];
  const documents = readFileSync(join(ROOT, source), 'utf8')
    // The head of the file says how to apply it.
    .replace(/^(#.*\n|\n)*/, '')
    .split(/^---\n/m)
    .filter((document) => kinds.test(/^kind: (\w+)$/m.exec(document)?.[1] ?? ''))
    .map((document) => withValues(withConfiguration(document), values));
  const condition = `{{- if has .Values.mode (list ${modes.map((mode) => `"${mode}"`).join(' ')}) }}`;
  return `{{- /* Written by npm run manifests, from ${source}. */ -}}\n${condition}\n${documents.join('---\n')}{{- end }}\n`;
}

/**
 * The longest keys are replaced first, because some are a part of others.
 * @param {string} document
 * @param {Record<string, string>} values
 */
function withValues(document, values) {
  const literals = Object.keys(values).sort((a, b) => b.length - a.length);
  const any = new RegExp(literals.map((text) => text.replace(/[|.{}]/g, '\\$&')).join('|'), 'g');
  return document.replace(any, (text) => values[text]);
}

/** @param {string} document */
function withConfiguration(document) {
  const block = (/** @type {string} */ indent) =>
    `{{- include "routed-experts.configuration" . | nindent ${indent.length + 2} }}\n`;
  return document
    .replace(/^ *# (Written by npm run manifests\.|prettier-ignore)\n/gm, '')
    .replace(/^( *)(value: \||pluginConfig:|config:)\n\1 {2}\{\n(?:\1 {2}.*\n)*/gm, (_, indent, key) => {
      return `${indent}${key}\n${indent}  ${block(indent)}`;
    })
    .replace(/^( *)code:\n\1 {2}type: Image\n(?:\1 {2}.*\n)*/gm, (_, indent) => {
      return `${indent}code:\n${indent}  {{- include "routed-experts.code" . | nindent ${indent.length + 2} }}\n`;
    });
}

/**
 * Helm reads patterns as Go's regexp does, which has no lookahead and refuses the whole schema for
 * one. The filter checks at its start what these patterns say.
 * @param {any} value
 * @returns {any}
 */
function withoutLookaheads(value) {
  if (Array.isArray(value)) return value.map(withoutLookaheads);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).filter(
    ([key, member]) => !(key === 'pattern' && typeof member === 'string' && /\(\?[!=<]/.test(member)),
  );
  return Object.fromEntries(members.map(([key, member]) => [key, withoutLookaheads(member)]));
}

/** The schema of the values, which has the filter's own schema for its configuration. */
export function valuesSchema() {
  const schema = JSON.parse(readFileSync(join(ROOT, 'envoy', 'config.schema.json'), 'utf8'));
  const { $schema, $id: _, required: __, ...configuration } = withoutLookaheads(schema);
  // The chart names the cluster where the values do not.
  delete configuration.properties.prefill.required;
  const { then: passing } = configuration.allOf.find(
    (/** @type {any} */ rule) => rule.if.properties.headers?.const === 'pass',
  );
  const text = { type: 'string', minLength: 1 };
  const duration = { type: 'string', pattern: '^[0-9]+(ms|s|m|h)$' };
  const bytes = { type: 'integer', minimum: 1, maximum: 2 ** 32 - 1 };
  const port = { type: 'integer', minimum: 1, maximum: 65535 };
  /** @param {Record<string, object>} properties */
  const object = (properties) => ({ type: 'object', additionalProperties: false, properties });
  return {
    $schema,
    ...object({
      global: { type: 'object' },
      mode: { enum: MODES },
      namespace: text,
      configuration,
      module: object({
        image: text,
        url: { type: 'string' },
        sha256: { type: 'string', pattern: '^([0-9a-f]{64})?$' },
        path: text,
      }),
      decode: object({ service: text, port }),
      prefill: object({ service: text, port }),
      workers: { type: 'integer', minimum: 1 },
      limits: object({
        requestBytes: bytes,
        prefillReplyBytes: bytes,
        streamIdleTimeout: duration,
        engineIdleTimeout: duration,
        connectTimeout: duration,
      }),
      envoyGateway: object({ gatewayClass: text, gateway: text, port }),
      istio: object({ namespace: text, gateway: text, decodeApp: text }),
    }),
    required: ['mode'],
    allOf: [
      {
        if: { properties: { mode: { enum: PASSING } } },
        // What the filter's schema says of `headers: pass`, which the chart sets here.
        then: {
          properties: { configuration: { properties: { headers: { const: 'pass' } }, allOf: [passing] } },
        },
      },
      {
        if: {
          required: ['module'],
          properties: { module: { properties: { url: { minLength: 1 } }, required: ['url'] } },
        },
        then: { properties: { module: { properties: { sha256: { minLength: 64 } }, required: ['sha256'] } } },
      },
    ],
  };
}

/** The generated files of the chart, by their paths in the project. */
export const chartFiles = () => ({
  ...Object.fromEntries(
    Object.keys(TEMPLATES).map((name) => [join('deploy', 'chart', 'templates', name), template(name)]),
  ),
  [join('deploy', 'chart', 'values.schema.json')]: `${JSON.stringify(valuesSchema())}\n`,
});

export function writeChart() {
  for (const [path, text] of Object.entries(chartFiles())) writeFileSync(join(ROOT, path), text);
}
