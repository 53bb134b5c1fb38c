/** The manifests that users apply, and the edits that a test makes in them. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { DIST } from '../../tools/paths.mjs';

/** The text of a manifest as `npm run package` ships it. */
export const manifest = (name: string): string => readFileSync(join(DIST, 'envoy', name), 'utf8');

/** `text` with each key of `edits`, which must occur exactly once, replaced by its value. */
export function edited(text: string, edits: Record<string, string>): string {
  for (const [from, to] of Object.entries(edits)) {
    expect(text.split(from), `the manifest has ${from} once`).toHaveLength(2);
    text = text.replace(from, () => to);
  }
  return text;
}
