// Many large exchanges at once in one VM of 1 GiB: the filter asks for room before it allocates
// memory, and an exchange that finds none is answered all the same.

import { describe, expect, test } from 'vitest';
import { FILTER_WASM } from '../../tools/paths.mjs';
import { createEmulator, type Emulator } from './index.ts';
import type { Engine, EngineReply, Result, Scenario } from '../scenario.ts';
import { CHAT, JSON_TYPE, PARAMS, answering, post, reply } from '../scenarios/messages.ts';
import { npyHeader } from '../../yardstick/npy.ts';

const MIB = 1 << 20;
const REQUESTS = 40;
const LAYERS = 48;
const TOP_K = 8;
const ROWS = 40_000;
const ROW_BYTES = LAYERS * TOP_K;

const file = (rows: number) =>
  Buffer.concat([npyHeader('|u1', [rows, LAYERS, TOP_K]), Buffer.alloc(rows * ROW_BYTES, 7)]).toString(
    'base64',
  );
const LARGE = Buffer.from(
  `{"choices":[{"index":0,"routed_experts":"${file(ROWS)}"}],"usage":{"prompt_tokens":${ROWS}},"kv_transfer_params":${PARAMS}}`,
);
const SMALL = `{"choices":[{"index":0,"routed_experts":"${file(2)}"}],"usage":{"prompt_tokens":${ROWS},"completion_tokens":3}}`;

const held = (host: Emulator) => host.gauge('routed_experts.held_bytes');

/** Opens for everyone when `n` callers have come. */
function gate(n: number, open: () => void) {
  let waiting = 0;
  let release = () => {};
  const all = new Promise<void>((resolve) => (release = resolve));
  return () => {
    if (++waiting === n) {
      open();
      release();
    }
    return all;
  };
}

/** All requests wait in decode while the filter keeps their rows. */
async function together(host: Emulator, config: Record<string, unknown>, decoding = REQUESTS) {
  let most = 0;
  const wait = gate(decoding, () => (most = held(host)));
  const decode: Engine = async ({ body }) => {
    await wait();
    // A request with a cache_salt is for decode alone, which would have to return all rows. This
    // test does not look at what it returns.
    return reply(body.includes('cache_salt') ? '{"choices":[]}' : SMALL);
  };
  const results = await Promise.all(
    Array.from({ length: REQUESTS }, () =>
      host.run({
        name: 'large',
        config: { decode_rows: 'tail', max_parked_bytes: 0, prefill: { retries: 0 }, ...config },
        client: post('{"messages":[],"max_tokens":3}', { path: CHAT }),
        prefill: answering(LARGE),
        decode,
      } satisfies Scenario),
    ),
  );
  return { results, most };
}

const counts = (results: Result[]) =>
  results.reduce<Record<string, number>>((all, { logged }) => {
    const outcome = logged!.split(';', 1)[0]!;
    return { ...all, [outcome]: (all[outcome] ?? 0) + 1 };
  }, {});

describe('many large requests at once', () => {
  test('over max_capture_bytes the others are served by decode alone', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const limit = 100 * MIB;
    const { results, most } = await together(host, { max_capture_bytes: limit });
    // Each exchange keeps 19.5 MiB.
    expect(counts(results)).toEqual({ merged: 5, local: REQUESTS - 5 });
    expect(most).toBeLessThan(limit + 4 * MIB);
    expect([host.failed, held(host), host.openContexts]).toEqual([null, 0, 0]);
  });

  test('or are refused, if the configuration says so', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const config = { max_capture_bytes: 100 * MIB, on_prefill_failure: 'reject' };
    const { results } = await together(host, config, 5);
    expect(counts(results)).toEqual({ merged: 5, rejected: REQUESTS - 5 });
    for (const { status, complete } of results)
      expect([complete, [200, 502].includes(status)]).toEqual([true, true]);
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('what a VM has room for is not passed, whatever the configuration says', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const { results, most } = await together(host, { max_capture_bytes: 640 * MIB });
    const { merged = 0, local = 0 } = counts(results);
    expect(merged + local).toBe(REQUESTS);
    expect([merged, local].every((n) => n > 0)).toBe(true);
    expect(most).toBeLessThan(768 * MIB);
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });

  test('past it, rows are parked and all are merged', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const { results } = await together(host, { max_capture_bytes: 100 * MIB, max_parked_bytes: 2048 * MIB });
    expect(counts(results)).toEqual({ merged: REQUESTS });
    expect([host.failed, held(host), host.sharedBytes]).toEqual([null, 0, 0]);
  });
});

describe('many large responses held at once', () => {
  test.each(['reject', 'forward', 'null'])(
    'over what the VM has room for they are let go: %s',
    async (policy) => {
      const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
      const piece = Buffer.alloc(MIB, 0x79);
      // Seven responses fit. By the time that all of them are held, the other three have been
      // answered.
      const wait = gate(7, () => undefined);
      const text = [Buffer.from('{"text":"'), ...Array.from({ length: 100 }, () => piece)];
      const decode = (): EngineReply => ({
        status: 200,
        headers: [JSON_TYPE],
        chunks: [...text, Buffer.from('"}')],
        // The filter holds seven whole responses at the same time, before any of them ends.
        before: (i) => (i === 100 ? wait() : undefined),
      });
      const results = await Promise.all(
        Array.from({ length: 10 }, () =>
          host.run({
            name: 'held',
            config: { hold_bytes: 256 * MIB, on_unmergeable: policy },
            client: post('{"prompt":"x"}'),
            prefill: answering(
              `{"choices":[{"routed_experts":"${file(1)}"}],"kv_transfer_params":${PARAMS}}`,
            ),
            decode,
          }),
        ),
      );
      const logged = [...new Set(results.map((result) => result.logged))].sort();
      const over = policy === 'forward' ? 'unmerged; reason=memory' : 'rejected; reason=memory';
      expect(logged).toEqual(['absent', over]);
      for (const result of results) {
        expect(result.complete).toBe(true);
        if (result.status === 200) expect(result.body.length).toBe(100 * MIB + 11);
      }
      expect([host.failed, held(host)]).toEqual([null, 0]);
      if (policy !== 'reject') return;
      // The memory that held small pieces has room for large ones afterwards.
      const { results: next } = await together(host, { max_capture_bytes: 640 * MIB }, 20);
      expect(counts(next)['merged']).toBeGreaterThan(20);
      expect([host.failed, held(host)]).toEqual([null, 0]);
    },
    60_000,
  );

  test.each(['reject', 'forward'])('in pieces of a few bytes: %s', async (policy) => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const config = { hold_bytes: 256 * MIB, on_unmergeable: policy };
    const stream = host.openStream(config);
    stream.requestHeaders({ method: 'POST', path: '/v1/completions' }, false);
    stream.requestBody(Buffer.from('{"prompt":"x"}'), true);
    const prefill = `{"choices":[{"routed_experts":"${file(1)}"}],"kv_transfer_params":${PARAMS}}`;
    host.completeCallout(host.pendingCallouts[0]!, reply(prefill));
    stream.responseHeaders(200, [JSON_TYPE], false);
    const bytes = 2 * MIB;
    stream.responseBody(Buffer.from('{"text":"'), false);
    for (let i = 0; i < bytes / 2; i++) stream.responseBody(Buffer.from('yy'), false);
    stream.responseBody(Buffer.from('"}'), true);
    expect(Buffer.concat(stream.client.chunks)).toHaveLength(bytes + 11);
    // No more than large pieces would need, and the memory with which the VM begins.
    expect(host.memoryPages * 65536).toBeLessThan(32 * MIB + 3 * bytes);
    expect([host.failed, held(host)]).toEqual([null, 0]);
  });
});

// With both legs at once, decode's whole response is held until prefill answers. Then its edited
// copy is made.
describe('many responses that wait for prefill', () => {
  const SGLANG = { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } };
  const element = (text: Buffer[], rows: string) => [
    Buffer.from('{"text":"'),
    ...text,
    Buffer.from(`","meta_info":{"prompt_tokens":2,"completion_tokens":1,"routed_experts":"${rows}"}}`),
  ];
  const rows = (experts: number) => Buffer.alloc(2 * 6 * 4, experts).toString('base64');

  test('over what the VM has room for they are let go', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const text = [Buffer.alloc(120 * MIB, 0x79)];
    // Six responses fit. For the first one whose rows arrive, there is no room for a second copy.
    const wait = gate(6, () => answer());
    let answer = () => {};
    const answered = new Promise<void>((resolve) => (answer = resolve));
    const results = await Promise.all(
      Array.from({ length: 7 }, () =>
        host.run({
          name: 'waits',
          config: { ...SGLANG, max_hold_bytes: 256 * MIB, on_unmergeable: 'forward' },
          client: post('{"text":"a"}', { path: '/generate' }),
          prefill: async () => {
            await answered;
            return reply(Buffer.concat(element([], rows(1))));
          },
          decode: (): EngineReply => ({
            status: 200,
            headers: [JSON_TYPE],
            chunks: element(text, rows(9)),
            before: (i) => (i === 2 ? wait() : undefined),
          }),
        }),
      ),
    );
    expect(counts(results)).toEqual({ merged: 5, unmerged: 1, rejected: 1 });
    const reasons = results.flatMap(({ logged }) => /reason=\w+/.exec(logged!) ?? []);
    expect(reasons).toEqual(['reason=memory', 'reason=memory']);
    const whole = Buffer.concat(element(text, rows(1)));
    for (const { complete, logged, body } of results) {
      expect(complete).toBe(true);
      if (logged!.startsWith('merged')) expect(body.equals(whole)).toBe(true);
    }
    expect([host.failed, held(host), host.openContexts]).toEqual([null, 0, 0]);
  });
});

// Rows in the other formats. max_capture_bytes has room for five replies.
describe.each<[string, (rows: Buffer) => string, Record<string, unknown>, string]>([
  [
    'objects',
    (rows) =>
      `{"choices":[{"routed_experts":{"data":"${rows.toString('base64')}","shape":[${rows.length / 12},2,6]}}],"usage":{"prompt_tokens":${rows.length / 12}},"kv_transfer_params":{"a":1}}`,
    {},
    CHAT,
  ],
  [
    'prompt_routed_experts',
    (rows) =>
      `{"prompt_routed_experts":[${Array(rows.length / 2)
        .fill('[[1,2]]')
        .join(',')}],"choices":[],"usage":{"prompt_tokens":${rows.length / 2}},"kv_transfer_params":{"a":1}}`,
    {},
    CHAT,
  ],
  [
    'int32',
    (rows) =>
      `{"meta_info":{"prompt_tokens":${rows.length / 12},"completion_tokens":1,"routed_experts":"${rows.toString('base64')}"}}`,
    { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
    '/generate',
  ],
])('many prefill replies with %s at once', (_name, write, more, path) => {
  test('over max_capture_bytes the others have no P/D', async () => {
    const host = await createEmulator({ wasmPath: FILTER_WASM, bufferLimit: 64 * MIB });
    const prefill = write(Buffer.alloc(12_000, 3));
    const limit = 5 * prefill.length;
    const requests = 12;
    const wait = gate(requests, () => undefined);
    const results = await Promise.all(
      Array.from({ length: requests }, () =>
        host.run({
          name: 'large',
          config: {
            on_unmergeable: 'forward',
            max_capture_bytes: limit,
            max_parked_bytes: 1,
            check_rows: 'off',
            ...more,
            prefill: { retries: 0, ...(more['prefill'] as object | undefined) },
          },
          client: post(path === CHAT ? '{"messages":[]}' : '{"text":"a"}', { path }),
          prefill: answering(prefill),
          // With both legs at once, the filter has read prefill's reply by then.
          decode: async () => {
            await wait();
            return reply('{"choices":[]}');
          },
        }),
      ),
    );
    expect(host.counter('routed_experts.prefill_failures')).toBe(requests - 5);
    for (const { status, complete } of results) expect([status, complete]).toEqual([200, true]);
    expect([host.failed, held(host), host.openContexts]).toEqual([null, 0, 0]);
  });
});
