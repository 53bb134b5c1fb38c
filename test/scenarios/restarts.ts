// Prefill engines that restart while a VM remembers their bootstrap server. Nothing that is
// remembered reaches decode: whatever it does with a request whose KV it cannot load, no client and
// no engine sees that prefill has restarted.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { meaningOf } from '../../yardstick/meaning.ts';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { CHAT, COMPLETIONS, GENERATE, HANDSHAKES, jsonOf, post } from './messages.ts';
import type { Start, TestHost } from './run.ts';
import { oracleOf } from './used.ts';

type Json = Record<string, unknown>;

const HOST = '127.0.0.1';

interface Ask {
  name: string;
  path: string;
  /** The body of a request with this text or these tokens. */
  body: (text: string, ids: number[]) => Json;
  config?: Json;
  kvLoadFailure?: EngineOptions['kvLoadFailure'];
  outcome?: string;
}

const TAIL = { decode_rows: 'tail' };
const STREAM = { stream: true };
const completion = (prompt: string) => ({ prompt, max_tokens: 5 });
const chat = (content: string) => ({ messages: [{ role: 'user', content }], max_tokens: 5 });
const generate = (_: string, token_ids: number[]) => ({ token_ids, sampling_params: { max_tokens: 5 } });

const ASKS: Ask[] = [
  { name: 'a completion', path: COMPLETIONS, body: completion },
  { name: 'a completion, recompute', path: COMPLETIONS, body: completion, kvLoadFailure: 'recompute' },
  { name: 'a completion, wait', path: COMPLETIONS, body: completion, kvLoadFailure: 'wait' },
  { name: 'a completion, its tail', path: COMPLETIONS, body: completion, config: TAIL },
  // vLLM's events have arrays on `/inference/v1/generate` only.
  {
    name: 'a stream of a completion',
    path: COMPLETIONS,
    body: (text) => ({ ...completion(text), ...STREAM }),
    outcome: 'absent',
  },
  { name: 'a chat', path: CHAT, body: chat },
  { name: 'a generate', path: GENERATE, body: generate },
  {
    name: 'a stream of a generate',
    path: GENERATE,
    body: (text, ids) => ({ ...generate(text, ids), ...STREAM }),
  },
  {
    name: 'a stream of a generate, recompute',
    path: GENERATE,
    body: (text, ids) => ({ ...generate(text, ids), ...STREAM }),
    kvLoadFailure: 'recompute',
  },
];

/** Ports of bootstrap servers that no exchange of another suite on the same host has asked. */
let lastPort = 27_000;

export function runRestarts(start: Start): void {
  describe.each(HANDSHAKES)('prefill restarts, %s', (handshake) => {
    let host: TestHost;
    beforeAll(async () => void (host = await start({})));
    afterAll(() => host?.close());

    // Decode is asked for a tail only when prefill has answered.
    const asks = ASKS.filter(({ config }) => handshake === 'sequential' || config !== TAIL);

    test.each(asks.map((ask): [string, Ask] => [ask.name, ask]))('%s is served', async (_name, ask) => {
      const { path, body, config, kvLoadFailure, outcome } = ask;
      const fleet = new Fleet();
      const bootstrap = { host: HOST, port: ++lastPort };
      const shared = { connector: 'mooncake', fleet, bootstrap, patience: 5000, ranks: 2 } as const;
      const wrong = { promptRows: 'stale', ...(kvLoadFailure ? { kvLoadFailure } : {}) } as const;
      const prefill = createEngine({ ...shared, role: 'prefill' });
      const decode = createEngine({ ...shared, ...wrong, role: 'decode' });
      for (let lives = 0; lives < 3; lives++) {
        const text = `life ${lives} of the quick brown fox`;
        const request = JSON.stringify(
          body(
            text,
            [...text].map((c) => c.charCodeAt(0)),
          ),
        );
        const result = await host.run({
          name: 'restarts',
          config: {
            ...{ connector: 'mooncake', handshake, ...config },
            prefill: { bootstrap_host: HOST, bootstrap_port: bootstrap.port, retries: 0 },
          },
          client: post(request, { path }),
          prefill,
          bootstrap: prefill,
          decode,
        });
        expect(result).toMatchObject({ status: 200, complete: true });
        expect(result.logged).toMatch(outcome ?? /^merged; /);
        const oracle = oracleOf(path, request, { connector: 'mooncake', bootstrap });
        expect(meaningOf(result.body.toString())).toEqual(meaningOf(oracle));
        // The exchange takes one leg of each kind, and leaves nothing at prefill.
        const { prefillRequests, decodeRequests, bootstrapRequests } = result;
        expect([prefillRequests, decodeRequests].map(({ length }) => length)).toEqual([1, 1]);
        expect(bootstrapRequests.length).toBeGreaterThan(0);
        const params = jsonOf(decodeRequests[0]!)['kv_transfer_params'] as Json;
        expect(await idsOf(prefill)).toContain(params['remote_engine_id']);
        expect(fleet.kept.size).toBe(0);
        prefill.restart();
      }
      expect(await host.metric('routed_experts.held_bytes')).toBe(0);
      expect(await host.failures()).toEqual([]);
    });
  });
}

/** The ids of the ranks that an engine has now. */
async function idsOf(engine: ReturnType<typeof createEngine>): Promise<string[]> {
  const answer = await engine({ method: 'GET', path: '/query', headers: [], body: Buffer.alloc(0) });
  const ranks = JSON.parse(Buffer.concat(answer.chunks).toString()) as Record<string, { engine_id: string }>;
  return Object.values(ranks).map(({ engine_id }) => engine_id);
}
