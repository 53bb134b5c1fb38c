// Runs a suite on a host, and on a second host that must agree.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Host, Result } from '../scenario.ts';
import { differences, header, type Case, type Limits, type Suite } from './case.ts';

/** A host that can also be asked about its filter. */
export interface TestHost extends Host {
  /** A counter or gauge of the filter; 0 if it does not exist. */
  metric(name: string): Promise<number>;
  /** Lets time pass for the filter: the emulator's clock moves, and on Envoy the test waits. */
  pass(ms: number): Promise<unknown>;
  /** What is known of VMs that have failed. */
  failures(): Promise<string[]>;
}

export type Start = (limits: Limits) => Promise<TestHost>;

/**
 * Whether a client that cannot tell a reset from an end would take what it got for a whole answer:
 * Envoy 1.36 resets streams of HTTP/2 without an error (test/envoy/version.ts).
 */
function looksWhole({ status, complete, headers, body }: Result): boolean {
  if (complete || status !== 200) return false;
  const text = body.toString('utf8');
  if (/event-stream/.test(header(headers, 'content-type') ?? '')) return text.includes('data: [DONE]');
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

export const OUTCOMES = ['merged', 'local', 'absent', 'unmerged', 'rejected', 'aborted'];

/**
 * Runs every case on the host that `start` creates. With `twin`, both hosts must agree on each
 * case.
 */
export function runSuite(suite: Suite, start: Start, twin?: Start): void {
  describe(suite.name, () => {
    let host: TestHost;
    let other: TestHost | undefined;
    let sent = 0;
    let sentToOther = 0;

    beforeAll(async () => {
      host = await start(suite.limits ?? {});
      other = await twin?.(suite.limits ?? {});
    });
    afterAll(async () => {
      await host?.close();
      await other?.close();
    });

    const run = (of: Case) => {
      sent++;
      return host.run(of.scenario());
    };

    for (const of of suite.cases) {
      let result: Result | undefined;
      const here = () => !of.only || of.only.host === host.name;

      test(of.name, async ({ skip }) => {
        if (!here()) skip(of.only?.because);
        result = await run(of);
        of.check(result);
        expect(looksWhole(result)).toBe(false);
        expect(await host.metric('routed_experts.held_bytes')).toBe(0);
      });

      if (!twin || of.only) continue;
      test(`${of.name}: both hosts agree`, async () => {
        result ??= await run(of);
        sentToOther++;
        const emulated = await other!.run(of.scenario());
        expect(differences(of, result, emulated)).toEqual([]);
        of.check(emulated);
        expect(looksWhole(emulated)).toBe(false);
        expect(await other!.metric('routed_experts.held_bytes')).toBe(0);
        result = undefined;
      });
    }

    test('every exchange had exactly one outcome, and no VM has failed', async () => {
      for (const [each, requests] of [[host, sent] as const, [other, sentToOther] as const]) {
        if (!each) continue;
        const outcomes = await Promise.all(
          OUTCOMES.map((outcome) => each.metric(`routed_experts.${outcome}`)),
        );
        expect(outcomes.reduce((a, b) => a + b)).toBe(requests);
        expect(await each.failures()).toEqual([]);
      }
    });
  });
}
