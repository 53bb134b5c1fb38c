// What each leg is sent, compared with edits of the parsed request; and what a client cannot hide
// from the filter.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { captureNames, loadCapture } from '../engine/replay.ts';
import { Random, withSeeds } from './random.ts';
import { Api, Unfit, checkLeaks, lend, takeOutput, wasm } from './wasm.ts';

checkLeaks();

type Json = any;

/** A value that an engine must never receive from a client. */
const EVIL = '"EVIL"';
const PARAMS = '{"remote_block_ids": [[1]],\t"remote_host":"h"}';
const REMOTE_DECODE = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};

const APIS = [
  ['completions', Api.Completions],
  ['chat', Api.Chat],
  ['generate', Api.Generate],
] as const;

let borrowed: { ptr: number; len: number } | null = null;

/** Reads a request, which stays in the module's memory until the next one is read. */
function read(api: Api, body: Buffer | string): Unfit {
  const bytes = Buffer.from(body as string);
  if (borrowed !== null) wasm['free']!(borrowed.ptr);
  const ptr = wasm['alloc']!(bytes.length) >>> 0;
  borrowed = { ptr, len: bytes.length };
  const memory = (wasm as unknown as { memory: WebAssembly.Memory }).memory;
  new Uint8Array(memory.buffer, ptr, bytes.length).set(bytes);
  wasm['clearOutput']!();
  return wasm['requestRead']!(api, ptr, bytes.length);
}

function use(connector: string): void {
  const name = Buffer.from(connector);
  expect(wasm['useConnector']!(lend(name), name.length)).toBe(1);
}

const useShared = (shared: boolean) => use(shared ? 'shared_storage' : 'nixl');

function prefillLeg(shared = false): string {
  useShared(shared);
  expect(wasm['writePrefillLeg']!()).toBe(1);
  return takeOutput().toString();
}

function decodeLeg(shared = false, promptStart = -1): string {
  useShared(shared);
  const params = Buffer.from(PARAMS);
  const [ptr, len] = shared ? [0, 0] : [lend(params), params.length];
  expect(wasm['writeDecodeLeg']!(ptr, len, promptStart)).toBe(1);
  return takeOutput().toString();
}

function localLeg(): string {
  expect(wasm['writeLocal']!()).toBe(1);
  return takeOutput().toString();
}

// ---- the reference, on objects

const isObject = (value: Json) => typeof value === 'object' && value !== null && !Array.isArray(value);

function stripped(text: string, api: Api): Json {
  const request = JSON.parse(text);
  delete request.kv_transfer_params;
  if (isObject(request.vllm_xargs)) delete request.vllm_xargs.kv_transfer_params;
  if (api === Api.Generate && isObject(request.sampling_params?.extra_args)) {
    delete request.sampling_params.extra_args.kv_transfer_params;
  }
  return request;
}

/** The object in which an API has its sampling parameters. */
function sampling(request: Json, api: Api): Json {
  if (api !== Api.Generate) return request;
  if (!isObject(request.sampling_params)) request.sampling_params = {};
  return request.sampling_params;
}

function expectedPrefill(text: string, api: Api, shared: boolean): Json {
  const request = stripped(text, api);
  if (api === Api.Generate) delete request.stream;
  else request.stream = false;
  delete request.stream_options;
  const params = sampling(request, api);
  params.max_tokens = 1;
  if (api === Api.Chat && 'max_completion_tokens' in request) request.max_completion_tokens = 1;
  if (params.min_tokens > 1) params.min_tokens = 1;
  if (params.n > 1) params.n = 1;
  if (!shared) request.kv_transfer_params = REMOTE_DECODE;
  else if ('cache_hit_threshold' in request) request.cache_hit_threshold = 0;
  return request;
}

function expectedDecode(text: string, api: Api, shared: boolean, promptStart: number): Json {
  const request = stripped(text, api);
  if (api !== Api.Generate && request.prompt_logprobs !== null) delete request.prompt_logprobs;
  if (isObject(request.sampling_params) && api === Api.Generate) {
    if (request.sampling_params.prompt_logprobs !== null) delete request.sampling_params.prompt_logprobs;
  }
  if (!shared) request.kv_transfer_params = JSON.parse(PARAMS);
  else if ('cache_hit_threshold' in request) request.cache_hit_threshold = 0;
  if (promptStart >= 0) sampling(request, api).routed_experts_prompt_start = promptStart;
  return request;
}

// ---- requests

interface Made {
  text: string;
  /** Members that no edit touches, as the client wrote them. */
  kept: string[];
}

class Maker {
  private kept: string[] = [];

  constructor(
    private random: Random,
    private api: Api,
  ) {}

  make(): Made {
    // P/D does not serve a stream with prompt_logprobs.
    const logprobs = this.random.chance(0.5);
    const root: [string, string][] = this.some([
      ['model', '"m"'],
      ['stream', logprobs ? 'false' : 'true'],
      ['prompt_logprobs', logprobs ? '1' : 'null'],
      ['stream_options', '{"include_usage":true}'],
      ['kv_transfer_params', EVIL],
      ['kv_transfer_params', `{"do_remote_prefill":true,"x":${EVIL}}`],
      ['cache_hit_threshold', '0.5'],
      ['vllm_xargs', this.xargs()],
      ['vllm_xargs', this.xargs()],
      ['messages', '[{"role":"user","content":"{\\"n\\":3}"}]'],
      ['é\\u00e9', '[1, 2,\n3]'],
      ['extra', '{"stream":true,"max_tokens":7,"n":9}'],
    ]);
    if (this.api !== Api.Generate)
      root.push(...this.limits(), ...this.some<[string, string]>([['max_completion_tokens', '9']]));
    else if (this.random.chance(0.8)) {
      const extra = [0, 1]
        .slice(this.random.below(3))
        .map((): [string, string] => ['extra_args', this.xargs()]);
      const params = this.random.shuffled([
        ...this.limits(),
        ...extra,
        ...this.some<[string, string]>([
          ['temperature', '0.5'],
          ['max_completion_tokens', '9'],
          ['prompt', '["a","b"]'],
        ]),
      ]);
      const other = this.random.pick(['null', '[]', '7', '"x"']);
      root.push(['sampling_params', this.random.chance(0.9) ? this.object(params) : other]);
    }
    const text = this.gap() + this.object(this.random.shuffled(root)) + this.gap();
    return { text, kept: this.kept.filter((member) => text.includes(member)) };
  }

  private limits(): [string, string][] {
    return this.some([
      ['max_tokens', this.random.pick(['16', '1', 'null', '100'])],
      ['max_tokens', '20'],
      ['min_tokens', this.random.pick(['0', '1', '2', 'null'])],
      ['n', this.random.pick(['1', '2', '3', 'null'])],
      ['n', '4'],
      ['routed_experts_prompt_start', this.random.pick(['0', 'null'])],
      ['seed', '1'],
    ]);
  }

  private xargs(): string {
    return this.random.pick([
      '{}',
      'null',
      EVIL.replace('EVIL', 'fine'),
      this.object([['kv_transfer_params', EVIL]]),
      this.object([
        ['kv_transfer_params', EVIL],
        ['kv_transfer_params', EVIL],
      ]),
      this.object([
        ['a', '1'],
        ['kv_transfer_params', EVIL],
      ]),
      this.object([
        ['kv_transfer_params', EVIL],
        ['b', '{}'],
      ]),
      this.object([
        ['a', '1'],
        ['kv_transfer_params', `[${EVIL}]`],
        ['b', '2'],
      ]),
      this.object([
        ['kv_transfer_params', EVIL],
        ['a', '1'],
        ['kv_transfer_params', EVIL],
      ]),
    ]);
  }

  private some<T>(items: T[]): T[] {
    const share = this.random.pick([0, 0.2, 0.5, 1]);
    return items.filter(() => this.random.chance(share));
  }

  private gap(): string {
    return this.random.chance(0.25) ? this.random.pick([' ', '\n', '\t ', '\r\n']) : '';
  }

  private object(members: [string, string][]): string {
    const texts = members.map(([key, value]) => {
      const written = `${this.key(key)}${this.gap()}:${this.gap()}${value}`;
      if (['model', 'messages', 'é\\u00e9', 'extra', 'temperature', 'seed', 'prompt'].includes(key))
        this.kept.push(written);
      return this.gap() + written + this.gap();
    });
    return `{${texts.join(',') || this.gap()}}`;
  }

  private key(name: string): string {
    if (name.includes('\\') || !this.random.chance(0.2)) return `"${name}"`;
    const at = this.random.below(name.length);
    return `"${name.slice(0, at)}\\u00${name.charCodeAt(at).toString(16)}${name.slice(at + 1)}"`;
  }
}

/**
 * Checks that a leg has the expected JSON and the client's own bytes in their order, and nothing of
 * what a client must not say.
 */
function expectLeg(leg: string, expected: Json, made: Made, note: string): void {
  let parsed: Json;
  try {
    parsed = JSON.parse(leg);
  } catch {
    expect.fail(`${note}: not JSON\n${made.text}\n${leg}`);
  }
  expect(parsed, `${note}\n${made.text}\n${leg}`).toEqual(expected);
  expect(leg, note).not.toContain('EVIL');
  const order = made.kept.filter((member) => made.text.indexOf(member) === made.text.lastIndexOf(member));
  const places = order.map((member) => leg.indexOf(member));
  expect(places, `${note}\n${made.text}\n${leg}`).not.toContain(-1);
  const before = order.map((member) => made.text.indexOf(member));
  const rank = (list: number[]) => list.map((_, i) => i).sort((a, b) => list[a]! - list[b]!);
  expect(rank(places), note).toEqual(rank(before));
}

describe.each(APIS)('a %s request', (_, api) => {
  test('becomes the legs that editing its object gives', () => {
    const seen = new Set<string>();
    withSeeds(500, (random) => {
      const made = new Maker(random, api).make();
      const unfit = read(api, made.text);
      expect([Unfit.No, Unfit.Duplicate, Unfit.NoOutput], made.text).toContain(unfit);
      expect(wasm['requestHasParams']!() !== 0).toBe(made.text.includes('EVIL'));
      expectLeg(localLeg(), stripped(made.text, api), made, 'local');
      if (unfit !== Unfit.No) return;
      for (const shared of [false, true]) {
        expectLeg(prefillLeg(shared), expectedPrefill(made.text, api, shared), made, 'prefill');
        for (const start of [-1, 0, 1234567]) {
          expectLeg(decodeLeg(shared, start), expectedDecode(made.text, api, shared, start), made, 'decode');
        }
      }
      seen.add(made.text);
    });
    if (process.env['SEED'] === undefined) expect(seen.size).toBeGreaterThan(200);
  });

  test('without parameters of its own leaves as it came when it goes to one engine', () => {
    withSeeds(300, (random) => {
      const { text } = new Maker(random, api).make();
      if (text.includes('EVIL')) return;
      read(api, text);
      expect(localLeg()).toBe(text);
    });
  });

  test('that is empty becomes legs', () => {
    for (const text of ['{}', ' { } ', '{\n}']) {
      expect(read(api, text)).toBe(Unfit.No);
      expect(JSON.parse(prefillLeg())).toEqual(expectedPrefill(text, api, false));
      expect(JSON.parse(decodeLeg(false, 5))).toEqual(expectedDecode(text, api, false, 5));
      expect(decodeLeg(true)).toBe(text);
    }
  });

  test('with sampling_params twice loses its parameters from both', () => {
    const inner = '{"extra_args":{"kv_transfer_params":"EVIL"}}';
    for (const text of [`{"sampling_params":${inner},"sampling_params":${inner}}`]) {
      expect(read(api, text)).toBe(api === Api.Generate ? Unfit.Duplicate : Unfit.No);
      if (api === Api.Generate)
        expect(localLeg()).toBe('{"sampling_params":{"extra_args":{}},"sampling_params":{"extra_args":{}}}');
    }
  });
});

test('prefill is sent the parameters as they are, decode those of the reply byte for byte', () => {
  read(Api.Completions, '{"prompt":"x"}');
  expect(prefillLeg()).toBe(
    `{"stream":false,"max_tokens":1,"kv_transfer_params":${JSON.stringify(REMOTE_DECODE)},"prompt":"x"}`,
  );
  expect(decodeLeg(false, 7)).toBe(
    `{"kv_transfer_params":${PARAMS},"routed_experts_prompt_start":7,"prompt":"x"}`,
  );
});

test('captured requests become the legs that the engines were sent', () => {
  for (const name of captureNames()) {
    const { prefill, decode } = loadCapture(name);
    const api = decode.request.path.includes('chat')
      ? Api.Chat
      : decode.request.path.includes('generate')
        ? Api.Generate
        : Api.Completions;
    const sent = JSON.parse(decode.request.body.toString());
    const start = (api === Api.Generate ? sent.sampling_params : sent).routed_experts_prompt_start;
    // The client's request is decode's leg without what a proxy adds.
    delete sent.kv_transfer_params;
    if (start !== undefined)
      delete (api === Api.Generate ? sent.sampling_params : sent).routed_experts_prompt_start;
    const text = JSON.stringify(sent);
    const unfit = read(api, text);
    if (unfit !== Unfit.No) {
      expect(name).toMatch(/batch/);
      continue;
    }
    const leg = JSON.parse(prefillLeg(name.includes('example')));
    const captured = JSON.parse(prefill.request.body.toString());
    const limits = (request: Json) => (api === Api.Generate ? request.sampling_params : request);
    expect(limits(leg).max_tokens, name).toBe(limits(captured).max_tokens);
    expect(leg.kv_transfer_params, name).toEqual(captured.kv_transfer_params);
    expect(leg.prompt ?? leg.messages ?? leg.token_ids, name).toEqual(
      captured.prompt ?? captured.messages ?? captured.token_ids,
    );
  }
});

// ---- what P/D does not serve

const C = Api.Completions;
const G = Api.Generate;
const SAMPLING = (text: string) => `{"sampling_params":{${text}}}`;

describe('a request is', () => {
  test.each<[Api, string, Unfit]>([
    [C, '{"prompt":"a"}', Unfit.No],
    [C, '{"prompt":["a"]}', Unfit.No],
    [C, '{"prompt":[1,2,3]}', Unfit.No],
    [C, '{"prompt":[[1,2,3]]}', Unfit.No],
    [C, '{"prompt":["a","b"]}', Unfit.SeveralPrompts],
    [C, '{"prompt":\n [ \n[1], [2]]}', Unfit.SeveralPrompts],
    [C, '{"prompt":"a","prompt":["a","b"]}', Unfit.SeveralPrompts],
    [C, '{"prompt":["a","b"],"prompt":"a"}', Unfit.No],
    [C, '{"pr\\u006fmpt":["a","b"]}', Unfit.SeveralPrompts],
    [C, '{"prompt_embeds":"x"}', Unfit.SeveralPrompts],
    [C, '{"prompt_embeds":null}', Unfit.No],
    [C, '{"prompt_logprobs":1}', Unfit.No],
    [C, '{"prompt_logprobs":0,"stream":false}', Unfit.No],
    [C, '{"prompt_logprobs":null,"stream":true}', Unfit.No],
    [C, '{"prompt_logprobs":1,"stream":true}', Unfit.PromptLogprobs],
    [C, '{"stream":"true","prompt_logprobs":"1"}', Unfit.PromptLogprobs],
    [C, '{"stream":1,"prompt_logprobs":null,"prompt_logpro\\u0062s":5}', Unfit.PromptLogprobs],
    [G, `{"stream":true,${SAMPLING('"prompt_logprobs":1').slice(1)}`, Unfit.PromptLogprobs],
    [C, '{"echo":true}', Unfit.PromptLogprobs],
    [C, '{"echo":false}', Unfit.No],
    [C, '{"echo":null}', Unfit.No],
    // Pydantic reads these as true.
    [C, '{"echo":1}', Unfit.PromptLogprobs],
    [C, '{"echo":"true"}', Unfit.PromptLogprobs],
    [C, '{"max_tokens":0}', Unfit.NoOutput],
    [Api.Chat, '{"max_completion_tokens":0}', Unfit.NoOutput],
    // A completion has no such member.
    [C, '{"max_completion_tokens":0}', Unfit.No],
    [C, '{"max_tokens":0,"max_completion_tokens":9}', Unfit.NoOutput],
    [G, SAMPLING('"max_tokens":0'), Unfit.NoOutput],
    [C, '{"max_tokens":0,"max_tokens":1}', Unfit.No],
    // Engines read these as zero, too.
    [C, '{"max_tokens":-0}', Unfit.NoOutput],
    [C, '{"max_tokens":0.0}', Unfit.NoOutput],
    [C, '{"max_tokens":"0"}', Unfit.NoOutput],
    [C, '{"max_tokens":false}', Unfit.NoOutput],
    [C, '{"max_tokens":"10"}', Unfit.No],
    [C, '{"max_tokens":true}', Unfit.No],
    [C, '{"max_tokens":null}', Unfit.No],
    [C, '{"routed_experts_prompt_start":0}', Unfit.No],
    [C, '{"routed_experts_prompt_start":null}', Unfit.No],
    [C, '{"routed_experts_prompt_start":1}', Unfit.No],
    [C, '{"routed_experts_prompt_start":"1"}', Unfit.PromptStart],
    [G, SAMPLING('"routed_experts_prompt_start":3'), Unfit.No],
    [G, SAMPLING('"routed_experts_prompt_start":3.0'), Unfit.PromptStart],
    [G, SAMPLING('"routed_experts_prompt_start":-1'), Unfit.PromptStart],
    [G, SAMPLING('"routed_experts_prompt_start":null'), Unfit.No],
    [G, '{"routed_experts_prompt_start":3}', Unfit.No],
    [G, '{"sampling_params":{},"sampling_params":{}}', Unfit.Duplicate],
    [G, '{"sampling_params":{},"sampl\\u0069ng_params":null}', Unfit.Duplicate],
    [C, '[]', Unfit.NotObject],
    [C, 'null', Unfit.NotObject],
    [C, '7', Unfit.NotObject],
    [C, '', Unfit.NotObject],
    [C, '{"a":1}{"b":2}', Unfit.NotObject],
    [C, '{"a":1', Unfit.NotObject],
    [C, '{"a":'.repeat(512) + '1' + '}'.repeat(512), Unfit.No],
    [C, '{"a":'.repeat(513) + '1' + '}'.repeat(513), Unfit.TooDeep],
    [C, '['.repeat(600), Unfit.NotObject],
    [C, '{"a":' + '['.repeat(600), Unfit.TooDeep],
    [C, '\ufeff{}', Unfit.NotUtf8],
  ])('%i %s: %i', (api, text, unfit) => {
    expect(read(api, text)).toBe(unfit);
  });

  test.each<[Api, string, number, number]>([
    [C, '{}', 1, -1],
    [C, '{"n":3,"max_tokens":7}', 3, 7],
    [C, '{"n":null,"max_tokens":null}', 1, -1],
    [Api.Chat, '{"max_tokens":7,"max_completion_tokens":9}', 1, 9],
    [C, '{"max_tokens":7,"max_completion_tokens":9}', 1, 7],
    [C, '{"max_completion_tokens":9}', 1, -1],
    [C, '{"max_tokens":7,"max_tokens":8}', 1, 8],
    [G, SAMPLING('"n":2,"max_tokens":5'), 2, 5],
    [G, '{"n":2,"max_tokens":5}', 1, -1],
    [C, '{"n":3000000000}', 1, -1],
    // Pydantic reads these texts and floats as the integers that they spell. The filter does not,
    // so it knows no upper bound.
    [Api.Chat, '{"max_tokens":7,"max_completion_tokens":"90"}', 1, -1],
    [Api.Chat, '{"max_tokens":"90","max_completion_tokens":7}', 1, -1],
    [Api.Chat, '{"max_tokens":9e1,"max_completion_tokens":7}', 1, -1],
  ])('%i %s: for %i choices of at most %i tokens', (api, text, choices, maxTokens) => {
    expect(read(api, text)).toBe(Unfit.No);
    expect([wasm['requestChoices']!(), wasm['requestMaxTokens']!()]).toEqual([choices, maxTokens]);
  });

  test('capped for prefill also where a number is written as Pydantic alone reads it', () => {
    for (const [text, expected] of [
      ['{"min_tokens":"5","n":"3"}', { min_tokens: 1, n: 1 }],
      ['{"min_tokens":5.0,"n":3e0}', { min_tokens: 1, n: 1 }],
      ['{"min_tokens":0,"n":1}', { min_tokens: 0, n: 1 }],
      ['{"min_tokens":null,"n":null}', { min_tokens: null, n: null }],
    ] as const) {
      expect(read(C, text)).toBe(Unfit.No);
      expect(JSON.parse(prefillLeg(true))).toEqual({ ...expected, stream: false, max_tokens: 1 });
    }
  });
});

// ---- Python

describe("what Python's json.loads reads", () => {
  const golden: { body: string; kind: 'object' | 'other' | 'refused'; params: string | null }[] = JSON.parse(
    readFileSync(new URL('../fixtures/json/loads.json', import.meta.url), 'utf8'),
  );

  test('is read as an object, or refused for its encoding', () => {
    let objects = 0;
    for (const { body, kind } of golden) {
      const bytes = Buffer.from(body, 'hex');
      const unfit = read(C, bytes);
      const note = JSON.stringify(bytes.toString('latin1'));
      if (kind === 'object') {
        const utf8 = unfit !== Unfit.NotUtf8;
        if (utf8) expect([Unfit.No, Unfit.TooDeep], note).toContain(unfit);
        else expect(bytes[0] === 0x7b && bytes[1] !== 0 && bytes[2] !== 0, note).toBe(false);
        objects++;
      } else if (kind === 'other') expect([Unfit.NotObject, Unfit.NotUtf8], note).toContain(unfit);
      else if (unfit === Unfit.No) {
        // Python refuses what the filter accepts only for two reasons: it is not UTF-8, or a number
        // is too long for Python.
        const lossy = !Buffer.from(bytes.toString()).equals(bytes);
        expect(lossy, note).toBe(true);
      }
    }
    expect(objects).toBeGreaterThan(100);
  });

  test("does not hold a client's parameters when it leaves", () => {
    for (const { body, kind, params } of golden) {
      const bytes = Buffer.from(body, 'hex');
      if (kind !== 'object' || read(C, bytes) !== Unfit.No) continue;
      const note = bytes.toString('latin1');
      expect(wasm['requestHasParams']!() !== 0, note).toBe(params !== null);
      const leg = localLeg();
      if (params === null) expect(leg).toBe(bytes.toString());
      else expect(leg, note).not.toMatch(/"(k|\\u006b)v(_|\\u005f)transfer_params"/);
    }
  });
});
