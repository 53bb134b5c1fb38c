/**
 * The schemas of the resources, from the CRDs in the sources of Envoy Gateway and of the Gateway
 * API. A field that a CRD does not have is an error, where Kubernetes would drop it.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Ajv } from 'ajv';
import { parseAllDocuments } from 'yaml';
import { gatewayApiSource, gatewaySource } from '../../tools/gateway.mjs';

export interface Resource {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string };
  spec: unknown;
}

interface Definition {
  spec: {
    group: string;
    names: { kind: string };
    versions: { name: string; schema: { openAPIV3Schema: Record<string, unknown> } }[];
  };
}

export const documents = <T>(text: string): T[] =>
  parseAllDocuments(text)
    .map((document) => document.toJS() as T)
    .filter((document) => document !== null);

const FOLDERS = () => [
  join(gatewaySource(), 'charts', 'gateway-helm', 'charts', 'crds', 'crds', 'generated'),
  join(gatewayApiSource(), 'config', 'crd', 'standard'),
];

/** Returns what is wrong with a resource, or `undefined`. */
export function schemaChecker(): (resource: Resource) => string | undefined {
  const ajv = new Ajv({ strict: false, validateFormats: false, unicodeRegExp: false });
  const schemas = new Map<string, object>();
  for (const folder of FOLDERS())
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.yaml')))
      for (const { spec } of documents<Partial<Definition>>(readFileSync(join(folder, file), 'utf8')))
        for (const { name, schema } of spec?.versions ?? [])
          schemas.set(`${spec!.group}/${name} ${spec!.names.kind}`, closed(schema.openAPIV3Schema));
  return (resource) => {
    const name = `${resource.apiVersion} ${resource.kind}`;
    const schema = schemas.get(name);
    if (!schema) return `${name} is unknown`;
    const validate = ajv.compile(schema);
    return validate(resource) ? undefined : ajv.errorsText(validate.errors);
  };
}

/** The schema with no other properties than those that it names. */
function closed<T>(schema: T): T {
  if (Array.isArray(schema)) return schema.map(closed) as T;
  if (typeof schema !== 'object' || schema === null) return schema;
  const copy = Object.fromEntries(
    Object.entries(schema).map(([key, value]) => [key, closed(value)]),
  ) as Record<string, unknown>;
  const open =
    copy.additionalProperties !== undefined || copy['x-kubernetes-preserve-unknown-fields'] === true;
  if (copy.type === 'object' && copy.properties && !open) {
    copy.additionalProperties = false;
    // The root of a CRD says of metadata only that it is an object.
    const { metadata } = copy.properties as { metadata?: { type: string; properties?: object } };
    if (metadata && !metadata.properties) (copy.properties as Record<string, unknown>).metadata = {};
  }
  return copy as T;
}
