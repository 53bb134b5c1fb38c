// Audits on an Envoy with many requests at once: the few responses with wrong rows are found and
// named, and no client notices an engine that does not answer, or a new configuration.

import { afterEach, describe, expect, test } from 'vitest';
import { serveEngine } from '../engine/server.ts';
import type { Engine, EngineRequest } from '../scenario.ts';
import { header } from '../scenarios/case.ts';
import {
  answering,
  decodeBody,
  encoded,
  FULL,
  GOOD_DECODE,
  jsonOf,
  merged,
  prefillBody,
  PROMPT,
  quoted,
  reply,
} from '../scenarios/messages.ts';
import { clusterOf } from './config.ts';
import { createPlant, type Answer, type Plant } from './plant.ts';
import { waitFor } from './wait.ts';

const open: { close(): Promise<void> }[] = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.close();
});

const serve = async (engine: Engine): Promise<number> => {
  const server = await serveEngine(engine);
  open.push(server);
  return server.port;
};

const CLUSTER = clusterOf('audit', 'http1');

async function plantOf(
  engines: { prefill?: Engine; audit: Engine },
  audit: object,
  concurrency = 1,
): Promise<Plant> {
  const plant = await createPlant({
    prefillPort: await serve(engines.prefill ?? promptRows),
    decodePort: await serve(answering(GOOD_DECODE)),
    auditPort: await serve(engines.audit),
    config: { audit: { cluster: CLUSTER, fraction: 1, ...audit } },
    concurrency,
    args: ['--drain-time-s', '1', '--drain-strategy', 'immediate'],
  });
  open.push(plant);
  return plant;
}

/** The number of a request is its prompt, which decides the rows. */
const numberOf = (request: EngineRequest): number => Number(jsonOf(request)['prompt']);
const rowsOf = (prompt: number) => ({ ...PROMPT, from: prompt % 127 });
const replyFor = (prompt: number) => reply(prefillBody(quoted(encoded(rowsOf(prompt)))));
const promptRows: Engine = (request) => replyFor(numberOf(request));

/** Sends requests from `clients` clients, each of which waits for its answer. */
async function load(plant: Plant, requests: number, clients: number): Promise<Answer[]> {
  const answers: Answer[] = [];
  let next = 0;
  const client = async () => {
    for (let i = next++; i < requests; i = next++) {
      const body = JSON.stringify({ prompt: String(i), max_tokens: 3 });
      answers[i] = await plant.send({ body, headers: { 'x-request-id': `load-${i}` } });
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  return answers;
}

async function audits(plant: Plant): Promise<Record<string, number>> {
  const prefix = 'wasmcustom.routed_experts.audit.';
  const all = Object.entries(await plant.stats('^wasmcustom\\.routed_experts\\.audit\\.'));
  return Object.fromEntries(all.map(([name, value]) => [name.slice(prefix.length), value]));
}

const isMerged = ({ status, complete, headers }: Answer) =>
  status === 200 && complete && header(headers, 'x-routed-experts')!.startsWith('merged');

describe('audits under load', () => {
  test('one response in a thousand has rows of another request: it is found, and no other', async () => {
    const REQUESTS = 2000;
    const isWrong = (prompt: number) => prompt % 1000 === 417;
    const prefill: Engine = (request) => {
      const prompt = numberOf(request);
      return replyFor(isWrong(prompt) ? prompt + 1 : prompt);
    };
    const plant = await plantOf({ prefill, audit: promptRows }, { max_calls: 16 }, 2);
    const answers = await load(plant, REQUESTS, 32);
    await plant.settled();

    expect(answers.filter(isMerged)).toHaveLength(REQUESTS);
    answers.forEach(({ body }, i) => {
      const rows = rowsOf(isWrong(i) ? i + 1 : i);
      if (body.toString() !== decodeBody([quoted(merged(rows, FULL))])) throw new Error(`request ${i}`);
    });
    expect(await audits(plant)).toEqual({
      requests: REQUESTS,
      failed: 0,
      skipped: 0,
      rows: REQUESTS * PROMPT.rows,
      rows_differing: 2 * PROMPT.rows,
      rows_wrong: 2 * PROMPT.rows,
      requests_wrong: 2,
    });
    const lines = () => [...plant.envoy.logs().matchAll(/audit: .*/g)].map(([line]) => line);
    await waitFor('The log tells of the audits', async () => (lines().length >= 2 ? true : undefined));
    const said = lines().sort();
    expect(said).toEqual(
      [1417, 417].map(
        (i) =>
          `audit: 5 of 5 rows differ from those of cluster ${CLUSTER}, and 5 of these by more than numerics. ` +
          `The first wrong one is that of token 0, in layer 0. Request load-${i}`,
      ),
    );
  });

  test('an engine that never answers delays no client, and its audits end by their timeout', async () => {
    const plant = await plantOf({ audit: answering('', { fault: 'stall' }) }, { timeout_ms: 1500 });
    const answers = await load(plant, 200, 8);
    // The first audit is still under way: had a client waited for it, the others would not be here.
    expect(answers.filter(isMerged)).toHaveLength(200);
    await waitFor('An engine is asked', async () =>
      (await audits(plant))['requests']! > 0 ? true : undefined,
    );
    expect((await audits(plant))['failed']).toBe(0);
    await waitFor('The audit fails', async () => ((await audits(plant))['failed']! > 0 ? true : undefined));
    expect(await plant.outcomes()).toMatchObject({ merged: 200 });
    await waitFor('The log tells of it', async () =>
      /audit failed: status 504\. Request load-\d+/.test(plant.envoy.logs()) ? true : undefined,
    );
  });

  test('a new configuration drops what waits, and nothing is held', async () => {
    let asked = 0;
    const audit: Engine = () => {
      asked++;
      return reply('', { fault: 'stall' });
    };
    const plant = await plantOf({ audit }, { max_calls: 2 });
    await load(plant, 20, 4);
    await waitFor('Engines are asked', async () => (asked === 2 ? true : undefined));
    expect((await plant.stats('held_bytes'))['wasmcustom.routed_experts.held_bytes']).toBeGreaterThan(0);
    expect(await plant.configure({})).toBe(true);
    await plant.replaced();
    await load(plant, 20, 4);
    await plant.settled();
    expect(asked).toBe(2);
    expect(await audits(plant)).toMatchObject({ requests: 2, failed: 0, rows: 0 });
  });
});
