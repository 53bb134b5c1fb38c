// What the connectors that send both legs at once write into a request, and what they read from a
// bootstrap server.

import { describe, expect, test } from 'vitest';
import { Random, withSeeds } from './random.ts';
import { Api, Unfit, checkLeaks, lend, takeOutput, wasm } from './wasm.ts';

checkLeaks();

type Json = Record<string, any>;

const RANDOM = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

interface Given {
  host?: string;
  port?: number;
  rank?: number;
  engine?: string;
  random?: Buffer;
}

const memory = (wasm as unknown as { memory: WebAssembly.Memory }).memory;
/** Copies bytes into the module's memory, where they stay. */
function put(bytes: Buffer): [ptr: number, len: number] {
  const ptr = wasm['alloc']!(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, ptr, bytes.length).set(bytes);
  return [ptr, bytes.length];
}

function use(
  connector: string,
  { host = '10.0.0.1', port = 8998, rank = 0, engine = '', random = RANDOM }: Given = {},
) {
  const name = Buffer.from(connector);
  expect(wasm['useConnector']!(lend(name), name.length)).toBe(1);
  const [randomPtr] = put(random);
  const [hostPtr, hostLen] = put(Buffer.from(host));
  const [enginePtr, engineLen] = put(Buffer.from(engine));
  wasm['useSession']!(randomPtr, hostPtr, hostLen, port, rank, enginePtr, engineLen);
}

function read(api: Api, body: string): Unfit {
  wasm['clearOutput']!();
  return wasm['requestRead']!(api, ...put(Buffer.from(body)));
}

const text = (write: 'writePrefillLeg' | 'writeLocal'): string => {
  expect(wasm[write]!()).toBe(1);
  return takeOutput().toString();
};
const prefillLeg = () => text('writePrefillLeg');
const localLeg = () => text('writeLocal');
function decodeLeg(): string {
  expect(wasm['writeDecodeLeg']!(0, 0, -1)).toBe(1);
  return takeOutput().toString();
}
function prefillHeaders(): string {
  wasm['writePrefillHeaders']!();
  return takeOutput().toString();
}

/** The rooms of a leg. They have more digits than a JavaScript number can hold. */
function rooms(leg: string): bigint[] {
  // The filter leaves a key as the client wrote it; and a key of this name inside another member is
  // not the filter's.
  const plain = leg.replace('\\u0073', 's').replace('"x":{"bootstrap_room":5}', '');
  const value = /"bootstrap_room":(\d+|\[[\d,]*\])/.exec(plain)![1]!;
  return value.replace(/[[\]]/g, '').split(',').map(BigInt);
}

describe('sglang', () => {
  test('both legs get the request as it came, and the room', () => {
    use('sglang', { port: 1234 });
    expect(read(Api.Chat, '{"messages": [],\t"stream":true, "stream_options":{}, "max_tokens":9}')).toBe(
      Unfit.No,
    );
    const room = rooms(decodeLeg());
    expect(room).toHaveLength(1);
    const own = `"bootstrap_host":"10.0.0.1","bootstrap_port":1234,"bootstrap_room":${room[0]}`;
    expect(decodeLeg()).toBe(`{${own},"messages": [],\t"stream":true, "stream_options":{}, "max_tokens":9}`);
    expect(prefillLeg()).toBe(`{${own},"messages": [],\t"stream":false, "max_tokens":9}`);
  });

  test('no output is capped, of any API', () => {
    use('sglang');
    for (const [api, body] of [
      [Api.Native, '{"text":"a","sampling_params":{"max_new_tokens":7,"min_new_tokens":3,"n":1}}'],
      [Api.Completions, '{"prompt":"a","max_tokens":7,"min_tokens":3,"n":1,"max_completion_tokens":5}'],
    ] as const) {
      expect(read(api, body)).toBe(Unfit.No);
      expect(JSON.parse(prefillLeg())).toMatchObject(JSON.parse(body));
      expect(JSON.parse(decodeLeg())).toMatchObject(JSON.parse(body));
    }
  });

  test.each<[Api, string]>([
    [Api.Native, '{"text":"a","sampling_params":{"n":2}}'],
    [Api.Native, '{"text":["a","b"],"sampling_params":[{"n":2},{"n":1}]}'],
    [Api.Native, '{"text":"a","sampling_params":{"n":1.0}}'],
    [Api.Completions, '{"prompt":"a","n":0}'],
    [Api.Chat, '{"messages":[],"n":"1"}'],
  ])('several choices are served by nobody: %s %s', (api, body) => {
    use('sglang');
    expect(read(api, body)).toBe(Unfit.Samples);
    expect(read(api, body.replace(/"n":[^,}]+/g, '"n":null'))).toBe(Unfit.No);
  });

  test.each<[Api, string, number]>([
    [Api.Native, '{"text":"a"}', -1],
    [Api.Native, '{"text":["a"]}', 1],
    [Api.Native, '{"text":["a","b","c"]}', 3],
    [Api.Native, '{"input_ids":[1,2,3]}', -1],
    [Api.Native, '{"input_ids": [ [1,2],\n[3]]}', 2],
    [Api.Native, '{"text":null,"input_ids":[[1],[2],[3],[4]]}', 4],
    [Api.Native, '{"input_ids":[[1],[2]],"input_ids":[1,2]}', -1],
    [Api.Completions, '{"prompt":"a"}', -1],
    [Api.Completions, '{"prompt":["a"]}', 1],
    [Api.Completions, '{"prompt":["a","b"]}', 2],
    [Api.Completions, '{"prompt":[1,2]}', -1],
    [Api.Completions, '{"prompt":[[1,2],[3]]}', 2],
    [Api.Chat, '{"messages":[{"role":"user"},{"role":"user"}]}', -1],
  ])('a list of prompts has lists: %i %s', (api, body, prompts) => {
    use('sglang');
    expect(read(api, body)).toBe(Unfit.No);
    const [prefill, decode] = [prefillLeg(), decodeLeg()];
    expect(rooms(prefill)).toEqual(rooms(decode));
    const { bootstrap_host: host, bootstrap_port: port } = JSON.parse(decode) as Json;
    if (prompts < 0) {
      expect([host, port]).toEqual(['10.0.0.1', 8998]);
      expect(decode).toMatch(/"bootstrap_room":\d/);
      return;
    }
    expect(host).toEqual(Array(prompts).fill('10.0.0.1'));
    expect(port).toEqual(Array(prompts).fill(8998));
    expect(rooms(decode)).toHaveLength(prompts);
    expect(decode).toMatch(/"bootstrap_room":\[/);
  });

  test('rooms are below 2^62, differ, and come from the random bytes alone', () => {
    withSeeds(300, (random) => {
      const bytes = random.bytes(16);
      use('sglang', { random: bytes });
      const prompts = random.between(1, 40);
      expect(read(Api.Native, JSON.stringify({ text: Array(prompts).fill('a') }))).toBe(Unfit.No);
      const all = rooms(decodeLeg());
      expect(new Set(all).size).toBe(prompts);
      for (const room of all) expect(room < 1n << 62n).toBe(true);
      const step = bytes.readBigUInt64LE(8) | 1n;
      const mask = (1n << 62n) - 1n;
      all.forEach((room, i) => expect(room).toBe((bytes.readBigUInt64LE(0) + BigInt(i) * step) & mask));
    });
  });

  test('the host is written as URLs have it', () => {
    use('sglang', { host: '[2001:db8::1]', port: 65535 });
    read(Api.Native, '{"text":"a"}');
    expect(JSON.parse(decodeLeg())).toMatchObject({ bootstrap_host: '[2001:db8::1]', bootstrap_port: 65535 });
  });

  test('a client’s own are replaced or removed, wherever they stand', () => {
    use('sglang');
    const evil = [
      '"bootstrap_host":"evil"',
      '"boot\\u0073trap_room":666',
      '"bootstrap_port":[1,2]',
      '"bootstrap_room":{"a":[1]}',
      '"bootstrap_pair_key":"evil"',
      '"disagg_prefill_dp_rank":666',
      '"kv_transfer_params":{"evil":1}',
      '"bootstrap_host":null',
    ];
    withSeeds(300, (random) => {
      const members = random.shuffled([
        ...evil,
        '"text":"a"',
        '"x":{"bootstrap_room":5}',
        '"y":[{"bootstrap_host":6}]',
      ]);
      const body = `{${members.slice(0, random.between(1, members.length)).join(',')}}`;
      expect(read(Api.Native, body), body).toBe(Unfit.No);
      const kept = Object.fromEntries(
        Object.entries(JSON.parse(body) as Json).filter(([key]) => ['text', 'x', 'y'].includes(key)),
      );
      expect(JSON.parse(localLeg())).toEqual(kept);
      for (const leg of [prefillLeg(), decodeLeg()]) {
        expect(leg).not.toMatch(/evil|666/);
        const {
          bootstrap_host,
          bootstrap_port,
          bootstrap_room: _,
          stream: __,
          ...rest
        } = JSON.parse(leg) as Json;
        expect({ bootstrap_host, bootstrap_port, ...rest }).toEqual({
          bootstrap_host: '10.0.0.1',
          bootstrap_port: 8998,
          ...kept,
        });
        for (const key of ['bootstrap_host', 'bootstrap_port']) {
          expect(leg.match(new RegExp(`"${key}":("10.0.0.1"|8998)`, 'g')), leg).toHaveLength(1);
        }
      }
      expect(rooms(prefillLeg())).toEqual(rooms(decodeLeg()));
    });
  });

  test.each<[Api, string, number]>([
    [Api.Native, '{"text":"a"}', 1],
    [Api.Native, '{"text":["a","b"],"sampling_params":{"n":3}}', 6],
    [Api.Native, '{"text":["a","b"],"sampling_params":[{"n":3},{"n":3}]}', 6],
    [Api.Completions, '{"prompt":["a","b"],"n":2}', 4],
    [Api.Completions, '{"prompt":["a","b"],"n":99999999}', 2],
    [Api.Chat, '{"n":2}', 2],
  ])('choices are those of all prompts: %i %s', (api, body, choices) => {
    use('sglang');
    read(api, body);
    expect(wasm['requestChoices']!()).toBe(choices);
  });

  test('what vLLM’s engines can not do is SGLang’s own affair', () => {
    use('sglang');
    for (const body of [
      '{"prompt":"a","echo":true}',
      '{"prompt":"a","max_tokens":0}',
      '{"prompt_logprobs":1}',
    ]) {
      expect(read(Api.Completions, body), body).toBe(Unfit.No);
      expect(JSON.parse(decodeLeg())).toMatchObject(JSON.parse(body));
    }
  });

  test('4096 prompts are served, more are not', () => {
    use('sglang');
    const of = (prompts: number) => JSON.stringify({ input_ids: Array(prompts).fill([1]) });
    expect(read(Api.Native, of(4096))).toBe(Unfit.No);
    expect(rooms(decodeLeg())).toHaveLength(4096);
    expect(read(Api.Native, of(4097))).toBe(Unfit.SeveralPrompts);
  });
});

const UUID = '00112233-4455-4677-8899-aabbccddeeff';

describe('mooncake', () => {
  test('the legs name one transfer, and decode the engine that has it', () => {
    use('mooncake', { host: '[::1]', port: 99, rank: 3, engine: 'b2c1-9' });
    expect(read(Api.Completions, '{"prompt":"a","max_tokens":5,"kv_transfer_params":{"evil":1}}')).toBe(
      Unfit.No,
    );
    const prefill = `{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-${UUID}"}`;
    const decode =
      `{"do_remote_prefill":true,"do_remote_decode":false,"transfer_id":"xfer-${UUID}",` +
      `"remote_bootstrap_addr":"http://[::1]:99","remote_engine_id":"b2c1-9"}`;
    expect(prefillLeg()).toBe(
      `{"stream":false,"min_tokens":1,"prompt":"a","max_tokens":1,"kv_transfer_params":${prefill}}`,
    );
    expect(decodeLeg()).toBe(`{"prompt":"a","max_tokens":5,"kv_transfer_params":${decode}}`);
    expect(prefillHeaders()).toBe('x-data-parallel-rank:3\n');
    expect(localLeg()).toBe('{"prompt":"a","max_tokens":5}');
  });

  test('prefill may not end before its cap, in any API', () => {
    use('mooncake');
    read(Api.Generate, '{"token_ids":[1],"sampling_params":{"max_tokens":9,"min_tokens":4,"n":1}}');
    expect(JSON.parse(prefillLeg())).toMatchObject({
      sampling_params: { max_tokens: 1, min_tokens: 1, n: 1 },
    });
    read(Api.Chat, '{"messages":[],"min_tokens":0}');
    expect(JSON.parse(prefillLeg())).toMatchObject({ max_tokens: 1, min_tokens: 1 });
    expect(JSON.parse(decodeLeg())).toMatchObject({ min_tokens: 0 });
  });

  test.each<[Api, string, Unfit]>([
    [Api.Completions, '{"prompt":"a","n":1}', Unfit.No],
    [Api.Completions, '{"prompt":"a","n":null}', Unfit.No],
    [Api.Completions, '{"prompt":"a","n":2}', Unfit.SeveralChoices],
    [Api.Completions, '{"prompt":"a","n":"2"}', Unfit.SeveralChoices],
    [Api.Completions, '{"prompt":"a","n":2.0}', Unfit.SeveralChoices],
    [Api.Generate, '{"token_ids":[1],"sampling_params":{"n":2}}', Unfit.SeveralChoices],
    [Api.Completions, '{"prompt":["a","b"]}', Unfit.SeveralPrompts],
    [Api.Completions, '{"prompt":["a"]}', Unfit.No],
  ])('one transfer serves one sample: %i %s', (api, body, unfit) => {
    use('mooncake');
    expect(read(api, body)).toBe(unfit);
  });
});

describe('the answer of a bootstrap server', () => {
  function ranks(answer: string): string[] | null {
    const bytes = Buffer.from(answer);
    wasm['clearOutput']!();
    if (!wasm['ranksRead']!(lend(bytes), bytes.length)) return null;
    return Array.from({ length: 4 }, () => {
      const rank = wasm['rankNext']!();
      return `${rank} ${takeOutput().toString()}`;
    });
  }

  test.each<[string, string[]]>([
    ['{"0":{"engine_id":"a"}}', ['0 a', '0 a', '0 a', '0 a']],
    [' {"0" : {"engine_id" : "a"}, "1":{"engine_id":"b"} }\n', ['0 a', '1 b', '0 a', '1 b']],
    ['{"1":{"engine_id":"b"},"0":{"engine_id":"a"}}', ['1 b', '0 a', '1 b', '0 a']],
    ['{"0":{"engine_id":"a"},"0":{"engine_id":"b"}}', ['0 b', '0 b', '0 b', '0 b']],
    ['{"0":{"worker_addr":{"0":{"0":"tcp://x"}},"engine_id":"a-1_Z~."},"x":[1]}', Array(4).fill('0 a-1_Z~.')],
    ['{"127":{"engine_id":"a"},"128":{"engine_id":"b"}}', Array(4).fill('127 a')],
  ])('%s', (answer, expected) => expect(ranks(answer)).toEqual(expected));

  test.each([
    '',
    '{}',
    '[]',
    'null',
    '"0"',
    '{"0":"a"}',
    '{"0":{}}',
    '{"0":{"engine_id":null}}',
    '{"0":{"engine_id":1}}',
    '{"0":{"engine_id":""}}',
    '{"0":{"engine_id":["a"]}}',
    '{"0":{"engine_id":"a\\u0022"}}',
    '{"0":{"engine_id":"a\\\\"}}',
    '{"0":{"engine_id":"\u00e9"}}',
    '{"0":{"engine_id":"a\u007f"}}',
    '{"0":{"engine_id":"a"},"1":{"engine_id":2}}',
    '{"0":{"engine_id":"a"}',
    '{"0":{"engine_id":"a"}}x',
    '{"00":{"engine_id":"a"}}',
    '{"-1":{"engine_id":"a"}}',
    '[{"0":{"engine_id":"a"}}]',
    `{"0":{"engine_id":"${'a'.repeat(257)}"}}`,
    `${'['.repeat(600)}${']'.repeat(600)}`,
    '<html>',
  ])('is none: %s', (answer) => expect(ranks(answer)).toBeNull());

  test('an id has up to 256 bytes', () => {
    expect(ranks(`{"0":{"engine_id":"${'a'.repeat(256)}"}}`)![0]).toBe(`0 ${'a'.repeat(256)}`);
  });

  test('whatever comes, nothing traps, and an id goes into a request as it is', () => {
    const answer = '{"0":{"engine_id":"abc","w":{"0":1}},"1":{"engine_id":"d\\n"}}';
    withSeeds(2000, (random: Random) => {
      const bytes = Buffer.from(answer);
      for (let i = random.below(4); i > 0; i--) bytes[random.below(bytes.length)] = random.below(256);
      const found = ranks(bytes.toString('latin1'));
      for (const rank of found ?? []) expect(rank).toMatch(/^\d+ [ !#-[\]-~]+$/);
    });
  });
});
