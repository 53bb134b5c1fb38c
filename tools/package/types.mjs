// Makes TypeScript types of the configuration from its JSON Schema.

/**
 * @typedef {{
 *   type?: string, enum?: unknown[], description?: string, default?: unknown,
 *   minimum?: number, maximum?: number, required?: string[],
 *   properties?: Record<string, Schema>, items?: Schema, title?: string
 * }} Schema
 */

/** @param {Schema} schema */
export function typesOf(schema) {
  return `/** ${schema.description} */\nexport interface Configuration ${typeOf(schema, '')}\n`;
}

/**
 * @param {Schema} schema
 * @param {string} indent
 * @returns {string}
 */
function typeOf(schema, indent) {
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' | ');
  if (schema.type === 'string' || schema.type === 'boolean') return schema.type;
  if (schema.type === 'integer' || schema.type === 'number') return 'number';
  if (schema.type === 'array' && schema.items) return `readonly (${typeOf(schema.items, indent)})[]`;
  if (schema.type !== 'object') throw new Error(`no type for ${JSON.stringify(schema)}`);
  const inner = `${indent}  `;
  const members = Object.entries(schema.properties ?? {}).map(([name, of]) => {
    const optional = schema.required?.includes(name) ? '' : '?';
    return `${inner}/** ${describe(of)} */\n${inner}${name}${optional}: ${typeOf(of, inner)};\n`;
  });
  return `{\n${members.join('')}${indent}}`;
}

/** @param {Schema} of */
function describe(of) {
  const range = of.minimum === undefined ? '' : ` From ${of.minimum} to ${of.maximum}.`;
  const standard = of.default === undefined ? '' : ` Default: ${JSON.stringify(of.default)}.`;
  return `${of.description}${range}${standard}`.replaceAll('*/', '*\\/');
}
