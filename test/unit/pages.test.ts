// Pages that repeat what the code says: docs/configuration.md has the keys of the schema, and
// docs/outcomes.md the reasons.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Reason, reasonToken } from '../../assembly/routing/reason.ts';

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

interface Schema {
  enum?: string[];
  minimum?: number;
  maximum?: number;
  default?: unknown;
  properties?: Record<string, Schema>;
}

/**
 * The keys that have a section on the page. The section of `model` describes the keys inside it.
 */
function keys(of: Schema, path = ''): [string, Schema][] {
  return Object.entries(of.properties ?? {}).flatMap(([name, schema]) =>
    name === 'prefill' ? keys(schema, 'prefill.') : [[path + name, schema] as [string, Schema]],
  );
}

describe('docs/configuration.md', () => {
  const page = read('docs/configuration.md');
  const sections = new Map(
    page
      .split(/^### /m)
      .slice(1)
      .map((section) => [/^`([^`]+)`/.exec(section)![1]!, section.split(/^## /m)[0]!]),
  );
  const all = keys(JSON.parse(read('envoy/config.schema.json')) as Schema);

  test('a section for each key of the schema, and no other', () => {
    expect([...sections.keys()].sort()).toEqual(all.map(([path]) => path).sort());
  });

  test.each(all)('%s: its values, range and default', (path, schema) => {
    const section = sections.get(path)!;
    for (const value of schema.enum ?? []) expect(section).toContain(`\`${value}\``);
    const limits = [...Object.values(schema.properties ?? {}), schema].flatMap((of) =>
      [of.minimum, of.maximum].filter((n) => n !== undefined),
    );
    for (const limit of limits) expect(section).toMatch(new RegExp(`\\b${limit}\\b`));
    for (const name of Object.keys(schema.properties ?? {})) expect(section).toContain(`\`${name}\``);
    for (const value of [schema.default ?? []].flat()) expect(section).toContain(String(value));
  });
});

test('docs/outcomes.md has a row for each reason', () => {
  const page = read('docs/outcomes.md');
  const rows = page.slice(page.indexOf('## Reasons'), page.indexOf('## When prefill fails'));
  const written = [...rows.matchAll(/^\| `(\w+)`/gm)].map(([, name]) => name!);
  const reasons = Array.from({ length: Reason.Count - 1 }, (_, i) => reasonToken((i + 1) as Reason));
  expect(written.sort()).toEqual(reasons.sort());
});
