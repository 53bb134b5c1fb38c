// What audits hold and how many engines they ask at a time, when there are more of them than there
// is room for. Here the test says when the timer is due and when an engine answers.

import { describe, expect, test } from 'vitest';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { createEmulator, type Emulator } from './index.ts';
import type { Result, Scenario } from '../scenario.ts';
import {
  answering,
  encoded,
  FULL,
  GOOD_DECODE,
  GOOD_PREFILL,
  post,
  prefillBody,
  quoted,
  reply,
  REQUEST,
  type ArraySpec,
} from '../scenarios/messages.ts';

type Json = Record<string, any>;

const MIB = 1 << 20;
const start = () => createEmulator({ wasmPath: FILTER_WASM });
const held = (host: Emulator) => host.gauge('routed_experts.held_bytes');

function counted(host: Emulator): Record<string, number> {
  const names = ['requests', 'failed', 'skipped', 'rows', 'rows_differing', 'rows_wrong', 'requests_wrong'];
  const all = names.map((name) => [name, host.counter(`routed_experts.audit.${name}`)] as const);
  return Object.fromEntries(all.filter(([, count]) => count > 0));
}

const ofAudit = (audit: Json = {}, more: Json = {}): Json => ({
  audit: { fraction: 1, ...audit },
  ...more,
});

const exchange = (config: Json, more: Partial<Scenario> = {}): Scenario => ({
  name: 'audited',
  config,
  client: post(REQUEST),
  prefill: answering(GOOD_PREFILL),
  decode: answering(GOOD_DECODE),
  ...more,
});

/** Runs exchanges, all of which are merged. */
async function run(host: Emulator, count: number, config: Json, more?: Partial<Scenario>): Promise<Result[]> {
  const results: Result[] = [];
  for (let i = 0; i < count; i++) results.push(await host.run(exchange(config, more)));
  for (const { logged } of results) expect(logged).toMatch(/^merged/);
  return results;
}

/** Has the engine answer one call after the other until there is none. Returns how many it was. */
function drain(host: Emulator, body = GOOD_PREFILL): number {
  let answered = 0;
  for (let [call] = host.pendingCallouts; call; [call] = host.pendingCallouts) {
    host.completeCallout(call, reply(body));
    answered++;
  }
  return answered;
}

describe('audits', () => {
  test('no engine is asked in a callback of an exchange, but when the timer is due', async () => {
    const host = await start();
    await run(host, 1, ofAudit());
    expect(host.openContexts).toBe(0);
    expect(host.pendingCallouts).toHaveLength(0);
    expect(counted(host)).toEqual({});
    expect(held(host)).toBeGreaterThan(0);
    host.runTimers();
    expect(host.pendingCallouts).toHaveLength(1);
    expect(drain(host)).toBe(1);
    expect(counted(host)).toEqual({ requests: 1, rows: 5 });
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test.each([1, 3])(
    'a worker asks one engine at a time, or max_calls (%i), and the others wait',
    async (max_calls) => {
      const host = await start();
      await run(host, 7, ofAudit({ max_calls }));
      host.runTimers();
      for (let left = 7; left > 0; left--) {
        expect(host.pendingCallouts).toHaveLength(Math.min(left, max_calls));
        host.runTimers();
        expect(host.pendingCallouts).toHaveLength(Math.min(left, max_calls));
        host.completeCallout(host.pendingCallouts[0]!, reply(GOOD_PREFILL));
      }
      expect(host.pendingCallouts).toHaveLength(0);
      expect(counted(host)).toEqual({ requests: 7, rows: 35 });
      expect([host.failed, held(host)]).toEqual([null, 0]);
    },
  );

  test('no more than max_bytes are held, and what finds no room is served and not audited', async () => {
    const host = await start();
    const prompt: ArraySpec = { rows: 20_000, from: 100 };
    const tokens = `"prompt_tokens":${prompt.rows}`;
    const full = encoded({ ...FULL, rows: prompt.rows + 2 });
    const body = prefillBody(quoted(encoded(prompt)), prompt.rows);
    const large = {
      prefill: answering(body),
      decode: answering(GOOD_DECODE.replace(encoded(FULL), full).replace(/"prompt_tokens":\d+/, tokens)),
    };
    // The rows are 160,000 characters, for which twice the room is kept.
    const config = ofAudit({ max_bytes: 2 * MIB });
    await run(host, 10, config, large);
    expect(counted(host)).toEqual({ skipped: 4 });
    expect(held(host)).toBeGreaterThan(6 * 160_000);
    expect(held(host)).toBeLessThan(6 * 170_000);
    host.runTimers();
    expect(drain(host, body)).toBe(6);
    expect(counted(host)).toEqual({ skipped: 4, requests: 6, rows: 6 * prompt.rows });
    expect(held(host)).toBe(0);
    // The room is there again.
    await run(host, 6, config, large);
    host.runTimers();
    expect(drain(host, body)).toBe(6);
    expect(counted(host)).toMatchObject({ skipped: 4, requests: 12 });
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('small requests are bounded, too', async () => {
    const host = await start();
    await run(host, 400, ofAudit({ max_bytes: MIB }));
    const { skipped = 0 } = counted(host);
    expect(skipped).toBeGreaterThan(100);
    host.runTimers();
    expect(drain(host)).toBe(400 - skipped);
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('an answer with more rows than there is room for is a failure', async () => {
    const host = await start();
    await run(host, 1, ofAudit({ max_bytes: MIB }));
    host.runTimers();
    expect(drain(host, prefillBody(quoted(encoded({ rows: 200_000 })), 200_000))).toBe(1);
    expect(counted(host)).toEqual({ requests: 1, failed: 1 });
    expect(host.logs.at(-1)?.message).toBe('audit failed: its rows exceed audit.max_bytes. Request client-1');
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('a cluster without hosts is tried once each time that the timer is due', async () => {
    const host = await createEmulator({
      wasmPath: FILTER_WASM,
      clusters: { nobody: { noHosts: true } },
    });
    await run(host, 3, ofAudit({ cluster: 'nobody', max_calls: 2 }));
    for (const failed of [1, 2, 3, 3]) {
      host.runTimers();
      expect(counted(host)).toEqual({ requests: failed, failed });
    }
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('about the fraction of the exchanges is chosen', async () => {
    const host = await start();
    await run(host, 400, ofAudit({ fraction: 0.5 }));
    host.runTimers();
    const chosen = drain(host);
    // 200 are expected; 70 more or fewer are seven standard deviations.
    expect(chosen).toBeGreaterThan(130);
    expect(chosen).toBeLessThan(270);
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('configurations of one VM each ask their own engine', async () => {
    const host = await start();
    await run(host, 2, ofAudit({ cluster: 'audit' }));
    await run(host, 2, ofAudit({ cluster: 'prefill' }));
    await run(host, 2, {});
    host.runTimers();
    expect(host.pendingCallouts.map(({ cluster }) => cluster).sort()).toEqual(['audit', 'prefill']);
    expect(drain(host)).toBe(4);
    expect(counted(host)).toEqual({ requests: 4, rows: 20 });
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('a configuration that is replaced gives everything back, and late answers change nothing', async () => {
    const host = await start();
    const config = ofAudit();
    await run(host, 3, config);
    host.runTimers();
    const [vm] = host.vms;
    const [root] = [...vm!.roots.values()];
    const [call] = host.pendingCallouts;
    vm!.call(root!, 'proxy_on_done', root!.id);
    vm!.call(root!, 'proxy_on_delete', root!.id);
    expect(held(host)).toBe(0);
    host.completeCallout(call!, reply(GOOD_PREFILL));
    host.runTimers();
    expect(host.pendingCallouts).toHaveLength(0);
    expect(counted(host)).toEqual({ requests: 1 });
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('nothing is copied of an exchange that is not chosen', async () => {
    const host = await start();
    const { randoms, ...none } = await costs(host, {});
    expect(none).toEqual({ held: 0 });
    // The dice cost one call of the host.
    expect(await costs(host, ofAudit({ fraction: 0 }))).toEqual({ held: 0, randoms: randoms + 1 });
  });
});

/** What an exchange leaves behind, and how many random numbers it draws. */
async function costs(host: Emulator, config: Json): Promise<{ held: number; randoms: number }> {
  await run(host, 1, config);
  const calls = () => host.vms[0]!.hostCalls['wasi_snapshot_preview1.random_get'] ?? 0;
  const before = calls();
  await run(host, 1, config);
  return { held: held(host), randoms: calls() - before };
}
