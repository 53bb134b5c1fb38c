/** The tests of every client on the engines of one kind. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { deploy, type Deployment, type Kind } from './deployment.ts';
import type { Digest, Found } from './programs.ts';
import { keep, linesOf, reported } from './report.ts';

export interface Client {
  name: string;
  run: (of: Deployment) => Promise<Found>;
  /** Whether it asks for `/v1/models`, which is no exchange and passes as `local`. */
  asksModels?: boolean;
  /** Whether its last exchange is a second turn, of which it needs the new rows only. */
  asksTurns?: boolean;
}

/** A client may have another dtype than the wire. */
const bare = (list: Digest[]) => list.map((it) => it && { shape: it.shape, sha256: it.sha256 });

/** Whether an outcome is not that of a request for `/v1/models`. */
const isExchange = (outcome: string | null) => outcome !== 'local';

export function suite(kind: Kind, clients: readonly Client[]): void {
  let deployment: Deployment;
  const lines: string[][] = [];
  beforeAll(async () => {
    deployment = await deploy(kind);
  });
  afterAll(async () => {
    if (process.env.CLIENTS_REPORT) keep(kind, lines);
    await deployment?.close();
  });

  describe.each(clients)('$name', ({ name: client, run, asksModels = false, asksTurns = false }) => {
    let found: Found;
    let outcomes: (string | null)[];
    let refusals: (string | null)[];
    beforeAll(async () => {
      const before = (await deployment.outcomes()).length;
      const refused = (await deployment.refusals()).filter(isExchange).length;
      found = await run(deployment);
      outcomes = (await deployment.outcomes()).slice(before);
      refusals = (await deployment.refusals()).filter(isExchange);
      expect(refusals.length).toBeGreaterThan(refused);
      lines.push(...linesOf(kind, client, found));
    });

    test('decodes what came through the filter to the rows of the oracle', () => {
      expect(Object.keys(found.decoded).length).toBeGreaterThan(0);
      for (const [name, { through, oracle, golden }] of Object.entries(found.decoded)) {
        expect(
          through.every((digest) => digest && digest.shape[0]! > 100),
          name,
        ).toBe(true);
        expect(through, name).toEqual(oracle);
        expect(bare(through), name).toEqual(bare(golden));
      }
    });

    test('has asked prefill and decode each time', () => {
      const exchanges = outcomes.filter(isExchange);
      expect(outcomes.length - exchanges.length).toBe(asksModels ? 1 : 0);
      expect(exchanges.length).toBeGreaterThanOrEqual(Object.keys(found.decoded).length);
      expect(exchanges.filter((outcome) => !/^merged; rows=\d+/.test(outcome ?? ''))).toEqual([]);
    });

    test.runIf(asksTurns)('has asked both legs for the new rows of the second turn', () => {
      const [first, second] = outcomes.slice(-2).map((it) => Number(/rows=(\d+)/.exec(it!)![1]));
      expect(second).toBeLessThan(first! / 2);
    });

    test('decodes what a router does not merge to other rows', () => {
      for (const [name, { unmerged, oracle }] of Object.entries(found.decoded))
        expect(bare(unmerged), name).not.toEqual(bare(oracle));
    });

    test('has been refused what could not be merged', () => {
      const unexpected = refusals.filter((it) => !/^(rejected|unmerged); reason=/.test(it ?? ''));
      expect(unexpected).toEqual([]);
    });

    test('has no rows of a response that was refused', () => {
      for (const [name, ways] of Object.entries(found.refused))
        for (const { returned } of Object.values(ways))
          expect(returned?.some((digest) => digest !== null) ?? false, name).toBe(false);
    });

    test.skipIf(process.env.CLIENTS_REPORT)('makes of refusals what the report says', () => {
      expect(linesOf(kind, client, found)).toEqual(reported(kind, client));
    });
  });
}
