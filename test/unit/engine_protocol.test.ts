// The simulated engine refuses what vLLM 0.30 has refused, and nothing else; and what a Mooncake
// decode engine does with the KV of a request that it refuses.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import type { EngineReply, Header } from '../scenario.ts';

const PATHS = {
  completions: '/v1/completions',
  chat: '/v1/chat/completions',
  generate: '/inference/v1/generate',
};

type Error = [status: number, type: string, param: string | null, by: 'protocol' | 'serving'];
type Verdict = [api: keyof typeof PATHS, body: string, limit: number, prompt: number, what: 200 | Error];

const file = new URL('../fixtures/vllm_requests/verdicts.json', import.meta.url);
const VERDICTS = JSON.parse(readFileSync(file, 'utf8')) as Verdict[];

const JSON_HEAD: Header[] = [['content-type', 'application/json']];
const post = (path: string, body: string, headers: Header[] = []) => ({
  method: 'POST',
  path,
  headers: [...JSON_HEAD, ...headers],
  body: Buffer.from(body),
});

/** JavaScript has no integers beside doubles, and its JSON has no NaN. */
const NOT_IN_JAVASCRIPT = /NaN|Infinity|1e19|1e30|1e400|9{30}/;
/** The settings of the server that the simulated engine does not have. */
const MANY_CHOICES = /"n":"?([0-9.e]{5,}|1e1[58])/;
/** A member that the simulated engine reads in the same way everywhere. */
const NULL_TEMPERATURE = /"temperature":null/;
/** In a chat the simulated engine counts other tokens. */
const LENGTHS = /(tokens":"?)(-1|[1-9][0-9]+)/;

test('the simulated engine says of a request what vLLM 0.30 has said of it', () => {
  const engine = createEngine({ role: 'oracle', maxModelLen: 100 });
  const wrong = VERDICTS.filter(([api, body, limit, prompt, what]) => {
    if ([NOT_IN_JAVASCRIPT, MANY_CHOICES, NULL_TEMPERATURE].some((it) => it.test(body))) return false;
    if (api === 'chat' && (prompt !== 3 || LENGTHS.test(body))) return false;
    expect(limit).toBe(100);
    return engine(post(PATHS[api], body)).status !== (what === 200 ? 200 : what[0]);
  });
  expect(wrong).toEqual([]);
});

describe('a Mooncake decode engine that refuses what prefill has taken', () => {
  const ID = 'xfer-1';
  function pair(more: Partial<EngineOptions> = {}) {
    const fleet = new Fleet();
    const shared = { connector: 'mooncake', fleet, maxModelLen: 100, ...more } as const;
    const prefill = createEngine({ ...shared, role: 'prefill' } as EngineOptions);
    const decode = createEngine({ ...shared, role: 'decode' } as EngineOptions);
    return { prefill, decode };
  }

  async function refuse(
    members: Record<string, unknown>,
    path = PATHS.completions,
    headers: Header[] = [],
    more = {},
  ) {
    const { prefill, decode } = pair(more);
    const ids = (
      prefill({ method: 'GET', path: '/query', headers: [], body: Buffer.alloc(0) }) as EngineReply
    ).chunks;
    const { engine_id } = JSON.parse(Buffer.concat(ids).toString())['0'];
    const within = (caps: object) =>
      path === PATHS.generate
        ? { token_ids: [5, 6, 7], sampling_params: caps }
        : { prompt: [5, 6, 7], messages: [{ role: 'user', content: 'x' }], ...caps };
    const toDecode = { do_remote_decode: true, do_remote_prefill: false, transfer_id: ID };
    const first = { ...within({ max_tokens: 1, min_tokens: 1 }), kv_transfer_params: toDecode };
    const taken = await prefill(post(path, JSON.stringify(first), [['x-data-parallel-rank', '0']]));
    expect(taken.status).toBe(200);
    const fromPrefill = {
      do_remote_decode: false,
      do_remote_prefill: true,
      transfer_id: ID,
      remote_bootstrap_addr: 'http://127.0.0.1:8998',
      remote_engine_id: engine_id,
    };
    const second = { ...within(members), kv_transfer_params: fromPrefill };
    expect((await decode(post(path, JSON.stringify(second), headers))).status).toBe(400);
    await new Promise(setImmediate);
    return decode.dead;
  }

  test.each([
    ['max_tokens above the length of the model', { max_tokens: 101 }],
    ['a prompt that leaves no room', { max_tokens: 98 }],
    ['a negative max_tokens', { max_tokens: -1 }],
    ['min_tokens above max_tokens', { max_tokens: 4, min_tokens: 5 }],
  ])('dies: %s', async (_, members) => {
    expect(await refuse(members)).toBe(true);
    expect(await refuse(members, PATHS.chat)).toBe(true);
  });

  test('dies: a rank that it does not have', async () => {
    expect(await refuse({ max_tokens: 4 }, PATHS.completions, [['x-data-parallel-rank', '7']])).toBe(true);
  });

  test('lives: the class of the request refuses it, and prefill keeps the KV', async () => {
    expect(await refuse({ max_tokens: [4] })).toBe(false);
    expect(await refuse({ max_tokens: 4, stream_options: { include_usage: true } })).toBe(false);
  });

  test('lives: a request by token ids, and prefill keeps the KV', async () => {
    expect(await refuse({ max_tokens: -1 }, PATHS.generate)).toBe(false);
  });

  test('lives: the option says so', async () => {
    expect(await refuse({ max_tokens: -1 }, PATHS.completions, [], { survivesRefusals: true })).toBe(false);
  });
});
