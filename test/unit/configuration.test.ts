// The defaults of the filter are those that the schema tells.

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { wasm } from './wasm.ts';

interface Schema {
  default?: unknown;
  properties: Record<string, Schema>;
}

const SCHEMA = JSON.parse(
  readFileSync(new URL('../../envoy/config.schema.json', import.meta.url), 'utf8'),
) as Schema;

const { prefill, audit } = SCHEMA.properties as { prefill: Schema; audit: Schema };

// The default of a choice is the first of its values, in the schema and where it is read.
test.each([
  ['prefill.timeout_ms', prefill.properties['timeout_ms'], () => wasm.standardTimeout!()],
  ['prefill.retries', prefill.properties['retries'], () => wasm.standardRetries!()],
  ['hold_bytes', SCHEMA.properties['hold_bytes'], () => wasm.standardHold!()],
  ['max_hold_bytes', SCHEMA.properties['max_hold_bytes'], () => wasm.standardMaxHold!()],
  ['max_capture_bytes', SCHEMA.properties['max_capture_bytes'], () => wasm.standardMaxCapture!()],
  ['max_parked_bytes', SCHEMA.properties['max_parked_bytes'], () => wasm.standardMaxParked!()],
  ['audit.fraction', audit.properties['fraction'], () => wasm.standardAuditFraction!()],
  ['audit.timeout_ms', audit.properties['timeout_ms'], () => wasm.standardAuditTimeout!()],
  ['audit.max_calls', audit.properties['max_calls'], () => wasm.standardAuditCalls!()],
  ['audit.max_bytes', audit.properties['max_bytes'], () => wasm.standardAuditBytes!()],
])('%s has the default of the schema', (_, schema, standard) => {
  expect(schema?.default).toBeTypeOf('number');
  expect(standard()).toBe(schema!.default);
});

test('the default of a choice is its first value', () => {
  const choices = Object.entries(SCHEMA.properties).filter(([, schema]) => 'enum' in schema);
  expect(choices.length).toBeGreaterThan(5);
  // With most connectors the order of the legs is fixed, so the key has no default.
  const optional = choices.filter(([, schema]) => !('default' in schema)).map(([key]) => key);
  expect(optional).toEqual(['handshake']);
  for (const [key, schema] of choices) {
    if (optional.includes(key)) continue;
    expect([key, schema.default]).toEqual([key, (schema as unknown as { enum: string[] }).enum[0]]);
  }
});
