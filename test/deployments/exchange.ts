/** A request through a deployed filter, and what it must give. */

import { expect } from 'vitest';
import { ask, type Engines, type Request } from './engines.ts';

/** Sends a request through the filter and expects the oracle's arrays in the response. */
export async function expectMerged(
  engines: Engines,
  port: number,
  body: Request,
  ip?: string,
  headers?: Record<string, string>,
): Promise<void> {
  const answer = await ask(port, body, ip, headers);
  expect(answer.status, answer.text.slice(0, 500)).toBe(200);
  expect(answer.outcome).toMatch(/^merged; rows=\d+/);
  // The arrays are compared as a boolean, because nobody can read a difference of megabytes.
  expect(answer.arrays.length).toBeGreaterThan(0);
  expect(answer.arrays.join() === engines.right(body).join()).toBe(true);
}
