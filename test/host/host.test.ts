/**
 * The emulator follows Envoy's rules. Each rule was also observed on Envoy 1.40 with the same
 * module, `fixtures/probe.as`, whose script says what the filter does:
 * `<callback>:<action>,<action>;...`.
 */

import { beforeAll, describe, expect, it } from 'vitest';
import {
  createEmulator,
  type Emulator,
  type EmulatorOptions,
  EnvoyCrash,
  LoadError,
  PAIRS_MAX_COUNT,
} from './index.ts';
import { marshalPairs, unmarshalPairs } from './headers.ts';
import type { Engine, EngineReply, Header, Result, Scenario } from '../scenario.ts';
import { compile, compileProbe } from './fixtures/compile.ts';

const CALL = 'call prefill 1000 body :path /p :method POST :authority a';

let probe: Uint8Array;
beforeAll(async () => {
  probe = await compileProbe();
}, 120_000);

interface Probe extends Partial<Omit<Scenario, 'name' | 'config'>> {
  options?: EmulatorOptions;
}

const reply =
  (body: string[], more: Partial<EngineReply> = {}): Engine =>
  () => {
    const chunks = body.map((piece) => Buffer.from(piece));
    const length = chunks.reduce((sum, piece) => sum + piece.length, 0);
    return { status: 200, headers: [['content-length', String(length)]], chunks, ...more };
  };

const post = (...pieces: string[]): Scenario['client'] => ({
  method: 'POST',
  path: '/v1',
  headers: [['content-length', String(pieces.join('').length)]],
  chunks: pieces.map((piece) => Buffer.from(piece)),
});

const emulate = (options: EmulatorOptions = {}): Promise<Emulator> =>
  createEmulator({ wasm: probe, ...options });

const said = (emulator: Emulator): string[] =>
  emulator.logs.filter(({ level }) => level === 'info').map(({ message }) => message.trimEnd());

/** Runs one exchange with the probe. `log` is what the probe logged. */
async function run(
  script: string,
  { options, ...scenario }: Probe = {},
): Promise<Result & { log: string[] }> {
  const emulator = await emulate(options);
  const result = await emulator.run({
    name: script,
    config: { script },
    client: post('ab', 'cd'),
    prefill: reply(['pre']),
    decode: reply(['wo', 'rld']),
    ...scenario,
  });
  expect(emulator.openContexts).toBe(0);
  return { ...result, log: said(emulator) };
}

const value = (headers: Header[], name: string): string | undefined =>
  headers.find(([each]) => each === name)?.[1];
const text = ({ body }: { body: Buffer }): string => body.toString();

describe('callbacks', () => {
  it('pass an exchange through untouched, the end of each body as an empty callback', async () => {
    const result = await run('');
    expect(result.log).toEqual([
      'conf',
      'rh eos 0',
      'rb 2 eos 0',
      'rb 2 eos 0',
      'rb 0 eos 1',
      'sh eos 0',
      'sb 2 eos 0',
      'sb 3 eos 0',
      'sb 0 eos 1',
      'log',
      'done',
      'del',
    ]);
    expect(result).toMatchObject({ status: 200, complete: true, counters: {}, logged: null });
    expect(text(result)).toBe('world');
    expect(text(result.decodeRequests[0])).toBe('abcd');
  });

  it('can carry the end with the last bytes', async () => {
    const { log } = await run('', { options: { mergeEndOfStream: true } });
    expect(log).toContain('rb 2 eos 1');
    expect(log).toContain('sb 3 eos 1');
  });

  it('see the end in the head when there is no body', async () => {
    const client = { method: 'GET', path: '/', headers: [], chunks: [] };
    const { log } = await run('', { client, decode: reply([], { status: 304 }) });
    expect(log.slice(1, 3)).toEqual(['rh eos 1', 'sh eos 1']);
  });

  it('never see the end of a body that has trailers', async () => {
    const trailers: Header[] = [['t', '1']];
    const { log, ...result } = await run(
      'rh:hrm 0 content-length,ret 1;rb:ret 1;rt:set 0 0 99 new,hset 1 u 2,ret 0',
      {
        client: { ...post('ab'), trailers },
        decode: reply(['x'], { headers: [], trailers }),
      },
    );
    expect(log.filter((line) => /eos 1/.test(line))).toEqual([]);
    expect(log).toContain('st 1');
    expect(text(result.decodeRequests[0])).toBe('new');
    expect(result.trailers).toEqual(trailers);
  });

  it('do not run for the body when the head is stopped and the flag is off', async () => {
    const { log, ...result } = await run('rh:ret 1', { options: { allowOnHeadersStopIteration: false } });
    expect(log).toEqual(['conf', 'rh eos 0', 'log', 'done', 'del']);
    expect(result).toMatchObject({ status: 0, complete: false, decodeRequests: [] });
  });

  it('treat a status above the known ones as a stop, and 2 for a head as Continue', async () => {
    expect((await run('rh:ret 2')).status).toBe(200);
    expect((await run('rh:ret 9')).status).toBe(0);
    expect((await run('rb:ret 9')).decodeRequests).toEqual([]);
  });
});

describe('body buffers', () => {
  it.each([
    ['0 0 0 P', 0, 'Pabcd'],
    ['0 0 2 P', 0, 'Pcd'],
    ['0 0 4 P', 0, 'P'],
    ['0 0 99 P', 0, 'P'],
    ['0 0 99 %', 0, ''],
    ['0 4 0 P', 0, 'abcdP'],
    ['0 99 3 P', 0, 'abcdP'],
    ['0 1 1 P', 2, 'abcd'],
    ['0 3 0 P', 2, 'abcd'],
  ])('set_buffer_bytes %s gives %i', async (args, code, body) => {
    const { log, decodeRequests } = await run(`rh:hrm 0 content-length,ret 1;rb:ret 1;rbe:set ${args},ret 0`);
    expect(log).toContain(`rb set -> ${code}`);
    expect(text(decodeRequests[0])).toBe(body);
  });

  it('read past the end gives what is there, without a malloc', async () => {
    const { log } = await run(
      'rh:ret 1;rb:ret 1;rbe:get 0 2 9,get 0 9 9,get 0 0 0,get 9 0 1,get 7 0 1,ret 0',
    );
    expect(log.filter((line) => line.startsWith('rb get'))).toEqual([
      'rb get -> 0 cd',
      'rb get -> 0',
      'rb get -> 0',
      'rb get -> 2',
      'rb get -> 1',
    ]);
  });

  it('show everything after status 1, this piece only after 2 and 3', async () => {
    const sizes = async (status: number): Promise<string[]> =>
      (await run(`rh:ret 1;rb:ret ${status};rbe:ret 0`)).log.filter((line) => line.startsWith('rb'));
    expect(await sizes(1)).toEqual(['rb 2 eos 0', 'rb 4 eos 0', 'rb 4 eos 1']);
    expect(await sizes(2)).toEqual(['rb 2 eos 0', 'rb 2 eos 0', 'rb 0 eos 1']);
    expect(await sizes(3)).toEqual(['rb 2 eos 0', 'rb 2 eos 0', 'rb 0 eos 1']);
  });

  it('keep the pieces of status 2 and drop those of 3', async () => {
    const sent = async (status: number): Promise<string> =>
      text((await run(`rh:hrm 0 content-length,ret 1;rb:ret ${status};rbe:ret 0`)).decodeRequests[0]);
    expect(await sent(2)).toBe('abcd');
    expect(await sent(3)).toBe('');
  });

  it('keep a piece of status 3 that follows status 1: it was added to the buffer before', async () => {
    const { decodeRequests } = await run('rh:hrm 0 content-length,ret 1;rb1:ret 1;rb2:ret 3;rb:ret 0');
    expect(text(decodeRequests[0])).toBe('abcd');
  });

  it('give back at the end what was copied out before', async () => {
    const { decodeRequests, ...result } = await run(
      'rh:hrm 0 content-length,ret 1;rb:ret 3;rbe:set 0 0 99 all,ret 0;sh:hrm 2 content-length,ret 1;sb:ret 3;sbe:set 1 0 99 mine,ret 0',
    );
    expect(text(decodeRequests[0])).toBe('all');
    expect(text(result)).toBe('mine');
  });

  it('can be replaced piece by piece, and grow at the end', async () => {
    const result = await run('sh:hrm 2 content-length,ret 0;sb:set 1 0 99 R,ret 0;sbe:set 1 0 0 E,ret 0');
    expect(text(result)).toBe('RRE');
  });

  it('cannot be set where there is no body', async () => {
    const { log } = await run('rh:set 0 0 0 x,ret 0', {
      client: { method: 'GET', path: '/', headers: [], chunks: [] },
    });
    expect(log).toContain('rh set -> 2');
  });

  it.each([
    ['rh:ret 1;rb:ret 3;rbe:CALL,ret 3;cb:eff,set 0 0 99 x', 'request'],
    ['rh:ret 1;rb:ret 3;rbe:CALL,ret 2;cb:eff,get 0 0 9', 'request'],
    ['sh:ret 1;sb:ret 3;sbe:CALL,ret 2;cb:eff,set 1 0 99 x', 'response'],
  ])('must not be touched from a callout after a status other than 1: %s', async (script, what) => {
    await expect(run(script.replace('CALL', CALL))).rejects.toThrow(`SIGSEGV in Envoy: ${what} body touched`);
  });

  it('may be touched from a callout after status 1', async () => {
    const { log, decodeRequests } = await run(
      `rh:hrm 0 content-length,ret 1;rb:ret 1;rbe:${CALL},ret 1;cb:eff,get 0 0 9,set 0 0 99 new,cont 0`,
    );
    expect(log).toContain('cb get -> 0 abcd');
    expect(text(decodeRequests[0])).toBe('new');
  });

  /**
   * Prefill answers when Envoy has read `pieces` of decode's three pieces, or the end. Decode then
   * waits until the answer has arrived.
   */
  async function late(script: string, pieces: number, options: EmulatorOptions = {}): Promise<Result> {
    const gate = () => {
      let open: () => void = () => undefined;
      return { passed: new Promise<void>((resolve) => (open = resolve)), open };
    };
    const [read, answered] = [gate(), gate()];
    return run(`rh:${CALL},ret 0;sh:ret 1;${script}`, {
      options,
      prefill: async () => {
        await read.passed;
        return { status: 200, headers: [], chunks: [], read: answered.open };
      },
      decode: () => ({
        status: 200,
        headers: [],
        chunks: ['one', 'two', 'three'].map((piece) => Buffer.from(piece)),
        before: (i) => (i === pieces ? answered.passed : undefined),
        read: (count) => void (count === pieces && read.open()),
      }),
    });
  }

  it.each([
    ['ret 0', 'BBBtwothree'],
    ['set 1 0 99 XY,ret 0', 'BBBXYthree'],
    ['set 1 99 0 XY,ret 0', 'BBBtwoXYthree'],
    ['set 1 0 99 %,ret 1', 'BBBthree'],
  ])('of a response that a callout has let go can be edited in the next callback: %s', async (next, out) => {
    const script = `sb1:set 1 0 99 %,ret 1;sb2:${next};cb:eff,set 1 0 99 BBB,cont 1`;
    expect(text(await late(script, 1))).toBe(out);
  });

  it.each([
    ['1 must not grow over the limit', 'sb:set 1 0 99 %,ret 1;sbe:set 1 0 99 B*300,ret 0', 500],
    [
      '1 may, with a 2 between',
      'sb:set 1 0 99 %,ret 2;sb1:set 1 0 99 %,ret 1;sbe:set 1 0 999 B*300,ret 0',
      200,
    ],
    [
      '1 at its end may be answered for, at any size',
      'sb:set 1 0 99 %,ret 3;sbe:set 1 0 99 %,ret 1;cb:eff,reply 200 Z*300',
      200,
    ],
    ['3 at its end, too', 'sb:ret 3;cb:eff,reply 200 Z*300', 200],
  ])('after status %s', async (_what, script, status) => {
    const result = await late(script, 4, { bufferLimit: 64 });
    expect(result.status).toBe(status);
    if (status === 200) expect(result.body).toHaveLength(300);
  });
});

describe('buffer limits', () => {
  const options = { bufferLimit: 10 };
  const client = post('123456', '123456', '123456');
  const long = reply(['123456', '123456']);

  it('answer 413 to a request that is held with status 1, through the filter, and show it no more pieces', async () => {
    const { log, ...result } = await run('rh:ret 1;rb:ret 1;sh:hset 2 x-seen 1', { options, client });
    expect(result).toMatchObject({ status: 413, complete: true, decodeRequests: [] });
    expect(value(result.headers, 'x-seen')).toBe('1');
    expect(log.filter((line) => line.startsWith('rb'))).toEqual(['rb 6 eos 0', 'rb 12 eos 0']);
  });

  it('answer 413 when the head is stopped with 3, but pause the client with 4', async () => {
    const script = (status: number): string => `rh:${CALL},ret ${status};cb:eff,cont 0`;
    expect((await run(script(3), { options, client })).status).toBe(413);
    const { status, decodeRequests } = await run(script(4), { options, client });
    expect(status).toBe(200);
    expect(text(decodeRequests[0])).toBe('123456'.repeat(3));
  });

  it('deadlock a request that waits for its end with status 2', async () => {
    expect(await run('rh:ret 1;rb:ret 2;rbe:ret 0', { options, client })).toMatchObject({
      status: 0,
      complete: false,
    });
  });

  it('answer 500, past the filter, while the response head is held; reset it afterwards', async () => {
    const { log, ...held } = await run('sh:ret 1;sb:ret 1', { options, decode: long });
    expect(held).toMatchObject({ status: 500, complete: true });
    expect(log.filter((line) => line.startsWith('sh'))).toHaveLength(1);
    const streamed = await run('sh:hrm 2 content-length,ret 0;sb:ret 1', { options, decode: long });
    expect(streamed).toMatchObject({ status: 200, complete: false });
  });

  it('do not touch what is replaced piece by piece', async () => {
    const result = await run('sh:hrm 2 content-length,ret 1;sb:ret 3;sbe:set 1 0 99 x*50,ret 0', { options });
    expect(text(result)).toBe('x'.repeat(50));
  });

  it('re-enter the filter inside set_buffer_bytes', async () => {
    const { log, status } = await run(
      `rh:hrm 0 content-length,ret 1;rb:ret 1;rbe:${CALL},ret 1;cb:eff,set 0 0 99 x*50,size 0`,
      { options, client: post('abcd') },
    );
    expect(status).toBe(413);
    expect(log.slice(log.indexOf('cb eff -> 0'))).toEqual([
      'cb eff -> 0',
      'sh eos 0',
      'sb 17 eos 1',
      'log',
      'done',
      'del',
      'cb set -> 0',
      'cb size -> 0 50',
    ]);
  });

  it('are raised by the route for both directions, and are 16 MiB for HTTP/2', async () => {
    const raised = { ...options, requestBodyBufferLimit: 100 };
    const hold = 'rh:ret 1;rb:ret 1;rbe:ret 0;sh:ret 1;sb:ret 1;sbe:ret 0';
    expect((await run(hold, { options: raised, client, decode: long })).status).toBe(200);
    expect((await run(hold, { options, client, decode: long, downstream: 'http2' })).status).toBe(200);
  });
});

describe('header maps', () => {
  it('know one value of a header, append to some when it is added again, and lower its name', async () => {
    const { log, decodeRequests } = await run(
      'rh:hadd 0 X-A 1,hadd 0 x-a 2,hget 0 x-A,hadd 0 accept a,hadd 0 accept b,hset 0 x-b 1,hset 0 x-b 2,hrm 0 no,hget 0 no,hget 9 x,hget 2 x',
    );
    expect(log.filter((line) => line.startsWith('rh hget'))).toEqual([
      'rh hget -> 0 1',
      'rh hget -> 1',
      'rh hget -> 2',
      'rh hget -> 2',
    ]);
    const { headers } = decodeRequests[0];
    expect(headers.filter(([name]) => /^(x-a|x-b|accept)$/.test(name))).toEqual([
      ['x-a', '1'],
      ['x-a', '2'],
      ['accept', 'a,b'],
      ['x-b', '2'],
    ]);
  });

  it('cannot be had once they were continued, or before they came', async () => {
    const { log } = await run('rb:hset 0 a b,pairs 0,ret 0;sh:hget 0 :path;sb:hset 2 a b', {
      client: post('a'),
    });
    expect(log).toContain('rb hset -> 2');
    expect(log).toContain('rb pairs -> 0 none');
    expect(log).toContain('sh hget -> 2');
    expect(log).toContain('sb hset -> 2');
  });

  it('stay writable until continue_stream, which is carried out after the callback', async () => {
    const { log, decodeRequests } = await run(
      `rh:${CALL},ret 4;cb:eff,hset 0 x-a 1,cont 0,hset 0 x-b 1,hset 2 c d`,
    );
    expect(log.filter((line) => /cb hset/.test(line))).toEqual([
      'cb hset -> 0',
      'cb hset -> 2',
      'cb hset -> 2',
    ]);
    expect(value(decodeRequests[0].headers, 'x-a')).toBe('1');
  });

  it('of a response can still be edited after continue_stream asked for it to go', async () => {
    const result = await run('sh:ret 1;sb:ret 1;sbe:cont 1,hset 2 x-late 1,ret 1');
    expect(value(result.headers, 'x-late')).toBe('1');
  });

  it('come back in the access-log phase', async () => {
    const { log } = await run('log:hget 0 :path,hget 2 :status,hget 3 x,hset 2 a b');
    expect(log).toContain('log hget -> 0 /v1');
    expect(log).toContain('log hget -> 0 200');
    expect(log).toContain('log hget -> 1');
    expect(log).toContain('log hset -> 2');
  });

  it('are emptied by pairs that are over a limit', async () => {
    const { log, status } = await run('rh:setpairs 0 a b c,pairs 0');
    expect(log).toContain('rh setpairs -> 0');
    expect(log).toContain('rh pairs -> 0 none');
    expect(status).toBe(404);
    const many = (count: number): Header[] => Array.from({ length: count }, (_, i) => [`n${i}`, '']);
    expect(unmarshalPairs(marshalPairs(many(PAIRS_MAX_COUNT)))).toHaveLength(PAIRS_MAX_COUNT);
    expect(unmarshalPairs(marshalPairs(many(PAIRS_MAX_COUNT + 1)))).toEqual([]);
    expect(unmarshalPairs(marshalPairs([['a', 'b'.repeat(2 ** 20 - 20)]]))).toHaveLength(1);
    expect(unmarshalPairs(marshalPairs([['a', 'b'.repeat(2 ** 20)]]))).toEqual([]);
    expect(unmarshalPairs(marshalPairs([['a', 'b']]).subarray(0, -1))).toEqual([]);
  });

  it('lose hop-by-hop headers and what a client must not tell Envoy', async () => {
    const headers: Header[] = [
      ['content-length', '1'],
      ['connection', 'x'],
      ['te', 'gzip'],
      ['x-envoy-internal', 'true'],
      ['x-envoy-max-retries', '9'],
      ['x-request-id', 'mine'],
    ];
    const { decodeRequests } = await run('', { client: { ...post('a'), headers } });
    expect(decodeRequests[0].headers).toEqual([
      ['host', 'localhost'],
      ['content-length', '1'],
      ['x-request-id', 'mine'],
      ['x-forwarded-proto', 'http'],
    ]);
  });

  it('need a path, a method and a status', async () => {
    expect(await run('rh:hrm 0 :path')).toMatchObject({ status: 404 });
    expect(await run('rh:hrm 0 :method')).toMatchObject({ status: 503 });
    expect(await run('sh:hrm 2 :status')).toMatchObject({ status: 502 });
  });
});

describe('content-length', () => {
  it('is never mended: towards an engine', async () => {
    const edit = (set: string): Promise<Result> => run(`rh:ret 1;rb:ret 1;rbe:set 0 0 ${set},ret 0`);
    expect(await edit('0 longer')).toMatchObject({ status: 400 });
    expect(await edit('99 x')).toMatchObject({ status: 0, complete: false });
    const http2 = await run('rh:ret 1;rb:ret 1;rbe:set 0 0 99 x,ret 0', { upstream: 'http2' });
    expect(http2.status).toBe(502);
  });

  it('is never mended: towards the client', async () => {
    const edit = (set: string): Promise<Result> => run(`sh:ret 1;sb:ret 1;sbe:set 1 0 ${set},ret 0`);
    const longer = await edit('0 more');
    expect(longer.complete).toBe(false);
    expect(text(longer)).toBe('morew');
    expect(await edit('99 x')).toMatchObject({ status: 200, complete: false });
  });

  it('may be taken away: the body is chunked then', async () => {
    const result = await run('rh:hrm 0 content-length;sh:hrm 2 content-length');
    expect(value(result.decodeRequests[0].headers, 'transfer-encoding')).toBe('chunked');
    expect(value(result.headers, 'transfer-encoding')).toBe('chunked');
    expect(result.complete).toBe(true);
  });
});

describe('continuing', () => {
  it('happens by returning Continue from any body callback', async () => {
    // The probe can still write the headers of the request in this callback, but they have been
    // sent.
    const { log, decodeRequests } = await run(`rh:${CALL},ret 1;cb:eff,hset 0 late 1`);
    expect(log).toContain('cb hset -> 0');
    expect(decodeRequests.map(({ headers }) => value(headers, 'late'))).toEqual([undefined]);
  });

  it('must be asked for when the head carried the end', async () => {
    const decode = reply([], { status: 204 });
    expect(await run('sh:ret 1', { decode })).toMatchObject({ status: 0, complete: false });
    expect(await run(`sh:${CALL},ret 1;cb:eff,cont 1`, { decode })).toMatchObject({
      status: 204,
      complete: true,
    });
  });

  it('holds a body with status 2 across a callout that edits the head', async () => {
    const result = await run(
      `sh:hrm 2 content-length,ret 1;sb:ret 3;sbe:set 1 0 99 full,${CALL},ret 2;cb:eff,hset 2 x-a 1,cont 1`,
    );
    expect(text(result)).toBe('full');
    expect(value(result.headers, 'x-a')).toBe('1');
  });

  it('shows a stopped body after the head was continued', async () => {
    const { log } = await run(`rh:${CALL},ret 4;cb:eff,cont 0`);
    expect(log.slice(log.indexOf('cb cont -> 0'))[1]).toBe('rb 4 eos 1');
  });

  it.each([
    ['rh:cont 1,ret 0', 'before there was one'],
    ['sh:cont 1,ret 0', 'in the callback that let it pass'],
    [`rh:${CALL},ret 4;cb:eff,reply 418 x,cont 1`, 'corrupt bytes to the client'],
    ['log:reply 418 x', 'answered after its end'],
    ['done:close 0', 'closed after its end'],
    ['sh:ret 1;sb:reply 502 x,close 1,ret 3', 'closed after its end'],
  ])('must not hit a response that is not held: %s', async (script, why) => {
    const failure = run(script);
    await expect(failure).rejects.toThrow(EnvoyCrash);
    await expect(failure).rejects.toThrow(why);
  });
});

describe('local replies', () => {
  it('from the request side pass the filter on their way out', async () => {
    const { log, ...result } = await run('rh:reply 418 teapot X-A b,ret 0;sh:hset 2 x-seen 1');
    expect(log.slice(3)).toEqual(['sh eos 0', 'sh hset -> 0', 'sb 6 eos 1', 'log', 'done', 'del']);
    expect(result).toMatchObject({ status: 418, complete: true, decodeRequests: [] });
    expect(text(result)).toBe('teapot');
    expect(Object.fromEntries(result.headers)).toMatchObject({
      'content-type': 'text/plain',
      'content-length': '6',
      'x-a': 'b',
      'x-seen': '1',
    });
  });

  it('override the status that the callback returns', async () => {
    expect((await run('rh:ret 1;rb:reply 418 x,ret 0')).decodeRequests).toEqual([]);
  });

  it('from the response side go past the filter while the head is held, and reset the stream after', async () => {
    const { log, ...held } = await run('sh:ret 1;sb:reply 502 bad,ret 0');
    expect(held).toMatchObject({ status: 502, complete: true });
    expect(log.filter((line) => line.startsWith('sh'))).toHaveLength(1);
    const sent = await run('sh:hrm 2 content-length;sb2:reply 502 bad,ret 0');
    expect(sent).toMatchObject({ status: 200, complete: false });
    expect(text(sent)).toBe('wo');
  });

  it('from a callout reach a held request', async () => {
    expect(await run(`rh:${CALL},ret 4;cb:eff,reply 502 bad`)).toMatchObject({ status: 502, complete: true });
  });

  it('have their reason in the access log, blanks replaced', async () => {
    const emulator = await emulate();
    const stream = emulator.openStream({ script: 'rh:reply 418 x' });
    stream.requestHeaders({ method: 'GET', path: '/' }, true);
    expect(emulator.accessLog).toMatchObject([{ status: 418, details: 'probe_reply' }]);
  });

  it('close_stream cuts the client off', async () => {
    expect(await run('rh:close 0,ret 1')).toMatchObject({ status: 0, complete: false });
    const cut = await run('sh:hrm 2 content-length;sb2:close 1,ret 0');
    expect(cut).toMatchObject({ status: 200, complete: false });
  });
});

describe('callouts', () => {
  const HOLD = (call = CALL): string => `rh:ret 1;rb:ret 1;rbe:${call},ret 1;`;

  it('reach the engine with the headers that Envoy adds, and run on the root context', async () => {
    const { log, prefillRequests } = await run(
      `${HOLD()}cb:hget 6 :status,get 4 0 9,prop request!path,eff,cont 0`,
    );
    expect(prefillRequests).toEqual([
      {
        method: 'POST',
        path: '/p',
        headers: [
          ['host', 'a'],
          ['content-length', '4'],
          ['x-envoy-internal', 'true'],
          ['x-envoy-expected-rq-timeout-ms', '1000'],
        ],
        body: Buffer.from('body'),
      },
    ]);
    expect(log).toContain('cb 3 3 0');
    expect(log).toContain('cb hget -> 0 200');
    expect(log).toContain('cb get -> 0 pre');
    expect(log).toContain('cb prop -> 1');
  });

  it.each([
    ['call nowhere 10 b :path /p :method POST :authority a', 2],
    ['call prefill -1 b :path /p :method POST :authority a', 2],
    ['call prefill 10 b :method POST :authority a', 2],
    ['call prefill 10 b :path /p :authority a', 2],
    ['call prefill 10 b :path /p :method POST', 2],
    ['call empty 10 b :path /p :method POST :authority a', 10],
    ['call original_dst 10 b :path /p :method POST :authority a', 10],
    ['call original_dst 10 b :path /p :method POST :authority a x-envoy-original-dst-host no', 10],
  ])('%s fails at once with %i, without a callback', async (call, code) => {
    const { log, prefillRequests } = await run(`rh:${call}`, {
      options: { clusters: { empty: { noHosts: true } } },
    });
    expect(log).toContain(`rh call -> ${code}`);
    expect(log.some((line) => line.startsWith('cb'))).toBe(false);
    expect(prefillRequests).toEqual([]);
  });

  it('choose their endpoint by header in an ORIGINAL_DST cluster', async () => {
    const call = (port: number): string =>
      `call original_dst 10 b :path /p :method POST :authority a x-envoy-original-dst-host 127.0.0.1:${port}`;
    expect((await run(`${HOLD(call(20001))}cb:eff,cont 0`)).prefillRequests).toHaveLength(1);
    expect((await run(`${HOLD(call(1))}cb:hget 6 :status,eff,cont 0`)).log).toContain('cb hget -> 0 503');
  });

  it.each<[string, Engine | 'down', string, string]>([
    ['a refused connection', 'down', 'cb 3 98 0', '0 503'],
    ['a reset before the head', reply([], { fault: 'reset' }), 'cb 3 95 0', '0 503'],
    ['a timeout before the head', reply([], { fault: 'stall' }), 'cb 3 24 0', '0 504'],
    ['a reset in the body', reply(['x'], { fault: 'reset_body' }), 'cb 0 0 0', '2'],
    ['a timeout in the body', reply(['x'], { fault: 'stall_body' }), 'cb 0 0 0', '2'],
    ['a body past the limit', reply(['x'.repeat(2000)]), 'cb 0 0 0', '2'],
  ])('tell of %s', async (_what, prefill, callback, status) => {
    const { log } = await run(`${HOLD()}cb:hget 6 :status,status,get 4 0 9,eff,cont 0`, {
      prefill,
      options: { asyncResponseLimit: 1000 },
    });
    expect(log).toContain(callback);
    expect(log).toContain(`cb hget -> ${status}`);
    if (callback === 'cb 0 0 0') {
      expect(log).toContain('cb status -> 0 11 reset');
      expect(log).toContain('cb get -> 1');
    }
  });

  it.each<[string, Engine | 'down', string, number, string]>([
    ['503', reply(['x'], { status: 503 }), 'gateway-error', 3, 'cb 3 1 0'],
    ['504', reply(['x'], { status: 504 }), 'gateway-error', 3, 'cb 3 1 0'],
    ['500', reply(['x'], { status: 500 }), 'gateway-error', 1, 'cb 3 1 0'],
    ['500', reply(['x'], { status: 500 }), '5xx', 3, 'cb 3 1 0'],
    ['404', reply(['x'], { status: 404 }), '5xx', 1, 'cb 3 1 0'],
    ['503', reply(['x'], { status: 503 }), 'reset', 1, 'cb 3 1 0'],
    ['a reset', reply([], { fault: 'reset' }), 'reset', 3, 'cb 3 118 0'],
    ['a reset', reply([], { fault: 'reset' }), 'gateway-error', 3, 'cb 3 118 0'],
    ['a reset', reply([], { fault: 'reset' }), 'connect-failure', 1, 'cb 3 95 0'],
    ['a reset', reply([], { fault: 'reset' }), 'refused-stream', 1, 'cb 3 95 0'],
    ['a reset in the body', reply(['x'], { fault: 'reset_body' }), 'reset', 1, 'cb 0 0 0'],
    ['a timeout', reply([], { fault: 'stall' }), 'gateway-error', 1, 'cb 3 24 0'],
    ['a refused connection', 'down', 'connect-failure', 0, 'cb 3 121 0'],
    ['a refused connection', 'down', 'reset', 0, 'cb 3 121 0'],
    ['a refused connection', 'down', 'refused-stream', 0, 'cb 3 98 0'],
  ])('are tried again by the router: %s, %s', async (_what, prefill, on, tries, callback) => {
    const call = `${CALL} x-envoy-retry-on ${on} x-envoy-max-retries 2`;
    const { log, prefillRequests } = await run(`${HOLD(call)}cb:eff,cont 0`, { prefill });
    expect(log).toContain(callback);
    expect(prefillRequests.map(({ body }) => body.toString())).toEqual(Array(tries).fill('body'));
    const names = prefillRequests.flatMap(({ headers }) => headers.map(([name]) => name));
    expect(names).not.toContain('x-envoy-max-retries');
  });

  it('are tried once more unless the number of tries is said', async () => {
    const busy = reply(['x'], { status: 503 });
    const tries = async (more: string) =>
      (await run(`${HOLD(`${CALL} ${more}`)}cb:eff,cont 0`, { prefill: busy })).prefillRequests.length;
    expect(await tries('x-envoy-retry-on gateway-error')).toBe(2);
    expect(await tries('x-envoy-retry-on gateway-error x-envoy-max-retries 0')).toBe(1);
    expect(await tries('x-envoy-max-retries 3')).toBe(1);
  });

  it('to a dynamic forward proxy fail with a body, and wait without one, until the host is looked up', async () => {
    const call = (body: string, host: string): string =>
      `call dynamic_forward_proxy_http1 10 ${body} :path /p :method POST :authority ${host}`;
    const to = (body: string, host: string): string =>
      `${HOLD(call(body, host))}cb1:hget 6 :status,get 4 0 40,${call('b', host)},eff,cont 0`;
    const found = await run(to('%', 'localhost:20001'));
    expect(found.log).toContain('cb hget -> 0 200');
    expect(found.log).toContain('cb call -> 0');
    expect((await run(to('b', 'localhost:20001'))).log).toContain('rb call -> 10');
    const missing = await run(to('%', 'nowhere.invalid:1'));
    expect(missing.log).toContain('cb get -> 0 no healthy upstream');
    expect(missing.log).toContain('cb call -> 10');
  });

  it('without a timeout wait for ever', async () => {
    const call = CALL.replace('1000', '0');
    const result = await run(HOLD(call), { prefill: reply([], { fault: 'stall' }) });
    expect(result).toMatchObject({ status: 0, complete: false });
  });

  it('run beside the decode leg when the request was not held', async () => {
    let arrived: () => void = () => undefined;
    const both = new Promise<void>((resolve) => (arrived = resolve));
    const result = await run(`rh:${CALL}`, {
      prefill: (request) => {
        arrived();
        return reply([])(request);
      },
      decode: async (request) => {
        await both;
        return reply(['world'])(request);
      },
    });
    expect(text(result)).toBe('world');
  });

  it('still call back when the stream is gone, which set_effective_context tells', async () => {
    const emulator = await emulate();
    const script = `rh:${CALL},ret 4;cb:eff,cont 0,hset 0 a b,set 0 0 0 x,reply 418 x,close 0`;
    const stream = emulator.openStream({ script });
    stream.requestHeaders({ method: 'GET', path: '/' }, true);
    expect(emulator.pendingCallouts).toHaveLength(1);
    stream.clientDisconnect();
    expect(emulator.openContexts).toBe(0);
    emulator.completeCallout(emulator.pendingCallouts[0].token, { status: 200, headers: [], chunks: [] });
    expect(said(emulator).slice(-8)).toEqual([
      'del',
      'cb 3 0 0',
      'cb eff -> 2',
      'cb cont -> 0',
      'cb hset -> 2',
      'cb set -> 2',
      'cb reply -> 0',
      'cb close -> 0',
    ]);
    expect(emulator.accessLog).toMatchObject([{ details: 'downstream_remote_disconnect' }]);
  });
});

describe('the decode engine', () => {
  const faults: [string, Partial<Scenario>, number, string][] = [
    ['is down', { decode: 'down' }, 503, 'remote connection failure'],
    ['resets', { decode: reply([], { fault: 'reset' }) }, 503, 'connection termination'],
    [
      'resets an HTTP/2 stream',
      { decode: reply([], { fault: 'reset' }), upstream: 'http2' },
      503,
      'remote reset',
    ],
    ['stalls', { decode: reply([], { fault: 'stall' }) }, 504, 'stream timeout'],
  ];
  it.each(faults)('%s: a local reply that passes the filter', async (_what, scenario, status, why) => {
    const { log, ...result } = await run('sh:hset 2 x-seen 1', scenario);
    expect(result).toMatchObject({ status, complete: true });
    expect(text(result)).toContain(why);
    expect(value(result.headers, 'x-seen')).toBe('1');
    expect(log).toContain('sh eos 0');
  });

  it('breaks off its body: a local reply past the filter while the head is held, else a reset', async () => {
    const decode = reply(['wo'], { fault: 'reset_body', headers: [] });
    expect(await run('sh:ret 1;sb:ret 1', { decode })).toMatchObject({ status: 502, complete: true });
    expect(await run('', { decode })).toMatchObject({ status: 200, complete: false });
    const stalled = reply(['wo'], { fault: 'stall_body', headers: [] });
    expect(await run('sh:ret 1;sb:ret 1', { decode: stalled })).toMatchObject({ status: 504 });
    expect(await run('', { decode: stalled })).toMatchObject({ status: 200, complete: false });
  });
});

describe('metrics, properties and shared data', () => {
  it('number metrics by type, anew for each define', async () => {
    const { log, counters } = await run(
      'rh:define 0 c,define 0 c,define 1 g,define 2 h,define 3 x,inc 4 3,inc 8 1,inc 4 0,inc 5 -2,rec 6 7,inc 6 1,inc 44 1,metric 4,metric 6,metric 44',
    );
    expect(log.filter((line) => line.startsWith('rh ')).slice(1)).toEqual([
      'rh define -> 0 4',
      'rh define -> 0 8',
      'rh define -> 0 5',
      'rh define -> 0 6',
      'rh define -> 2',
      'rh inc -> 0',
      'rh inc -> 0',
      'rh inc -> 2',
      'rh inc -> 0',
      'rh rec -> 0',
      'rh inc -> 2',
      'rh inc -> 1',
      'rh metric -> 0 4',
      'rh metric -> 2',
      'rh metric -> 1',
    ]);
    expect(counters).toEqual({ c: 4 });
  });

  it('find attributes by path, and the guest its own properties', async () => {
    const { log } = await run(
      'rh:prop request!path,prop request!headers!content-length,prop nope,prop response!code,setprop mine yes,prop mine;sh:prop request!path,prop response!code_details',
    );
    expect(log.filter((line) => / prop/.test(line))).toEqual([
      'rh prop -> 0 /v1',
      'rh prop -> 0 4',
      'rh prop -> 1',
      'rh prop -> 1',
      'rh prop -> 0 yes',
      'sh prop -> 1',
      'sh prop -> 0 via_upstream',
    ]);
  });

  it('write what on_log sets into the access log, not what on_done sets', async () => {
    expect((await run('log:setprop routed_experts a')).logged).toBe('a');
    expect((await run('rh:setprop routed_experts a;log:setprop routed_experts b')).logged).toBe('b');
    expect((await run('done:setprop routed_experts a')).logged).toBeNull();
  });

  it('compare and swap shared data', async () => {
    const { log } = await run('rh:shget k,shset k v 0,shget k,shset k w 99,shset k w 1,shget k,shset n x 7');
    expect(log.filter((line) => / sh[gs]et/.test(line))).toEqual([
      'rh shget -> 1',
      'rh shset -> 0',
      'rh shget -> 0 v cas 1',
      'rh shset -> 8',
      'rh shset -> 0',
      'rh shget -> 0 w cas 2',
      'rh shset -> 0',
    ]);
  });
});

describe('the VM', () => {
  const request = { name: '', client: post('a'), prefill: reply([]), decode: reply(['ok']) };
  const with_ = (script: string): Scenario => ({ ...request, config: { script } });

  it('serves several configurations, each with its own root context', async () => {
    const emulator = await emulate();
    await emulator.run(with_('rh:reply 418 x'));
    await emulator.run(with_('rh:reply 419 x'));
    await emulator.run(with_('rh:reply 418 x'));
    expect(emulator.accessLog.map(({ status }) => status)).toEqual([418, 419, 418]);
    expect(emulator.vms[0].roots.size).toBe(2);
    expect(emulator.vms).toHaveLength(1);
  });

  it.each(['rh:trap', 'sh:trap', 'rh:malloc 1,hget 0 :path'])(
    'fails for good on a trap: %s',
    async (script) => {
      const emulator = await emulate();
      expect(await emulator.run(with_(script))).toMatchObject({ status: 503, complete: true });
      expect(emulator.failed).not.toBeNull();
      emulator.advance(60_000);
      expect(await emulator.run(with_(''))).toMatchObject({ status: 503 });
      expect(emulator.accessLog.at(-1)?.details).toBe('wasm_fail_stream');
    },
  );

  it('resets a stream that is under way, and forgets one that waits for a callout', async () => {
    expect(await run('sh:hrm 2 content-length;sb2:trap').catch(String)).toMatchObject({ complete: false });
    const emulator = await emulate();
    expect(await emulator.run(with_(`rh:${CALL},ret 4;cb:trap`))).toMatchObject({
      status: 0,
      complete: false,
    });
  });

  it('is loaded again under FAIL_RELOAD, a second after it was loaded last', async () => {
    const emulator = await emulate({ failurePolicy: 'FAIL_RELOAD' });
    await emulator.run(with_('rh:trap'));
    expect((await emulator.run(with_(''))).status).toBe(503);
    emulator.advance(1000);
    expect((await emulator.run(with_(''))).status).toBe(200);
    expect(emulator.failed).toBeNull();
  });

  it('has at most 1 GiB', async () => {
    const { log } = await run('rh:grow 16384,grow 1');
    expect(log).toContain('rh grow -> 0 -1');
    expect(log).toContain('rh grow -> 0 1');
  });

  it('keeps workers apart, but not their counters', async () => {
    const emulator = await emulate({ workers: 2 });
    await emulator.run(with_('rh:define 0 c,inc 4 1'));
    await emulator.run(with_('rh:define 0 c,inc 4 1'));
    expect(emulator.vms.map(({ metrics }) => metrics.defined)).toEqual([1, 1]);
    expect(emulator.counter('c')).toBe(2);
  });
});

describe('loading', () => {
  const ABI = 'export function proxy_abi_version_0_2_1(): void {}\n';
  const MALLOC = 'export function malloc(size: usize): usize { return heap.alloc(size); }\n';
  const HALT = 'function halt(a: usize, b: usize, c: u32, d: u32): void { unreachable(); }\n';
  const imported = (name: string, type: string): string =>
    `@external('env', '${name}') declare function imported${type};\nexport function f(): void { imported(1); }\n`;
  const load = async (source: string, flags: string[] = []): Promise<Emulator> =>
    createEmulator({ wasm: await compile(source, flags) });

  it.each([
    ['no ABI version', MALLOC + HALT, 'Missing or unknown Proxy-Wasm ABI version'],
    ['no malloc', ABI + HALT, 'missing malloc'],
    ['env.abort', `${ABI}${MALLOC}export function f(): void { assert(heap.alloc(1) == 0); }`, 'env.abort'],
    [
      'an import of ABI 0.1',
      ABI + MALLOC + HALT + imported('proxy_continue_request', '(a: u32): u32'),
      'missing import',
    ],
    [
      'a wrong import',
      ABI + MALLOC + HALT + imported('proxy_continue_stream', '(a: u64): u32'),
      'type mismatch',
    ],
    [
      'a wrong export',
      `${ABI}${MALLOC}${HALT}export function proxy_on_request_headers(a: u32, b: u32): u32 { return 0; }`,
      'Failed to get function: proxy_on_request_headers',
    ],
  ])('refuses a module with %s', async (_what, source, why) => {
    const failure = load(source);
    await expect(failure).rejects.toThrow(LoadError);
    await expect(failure).rejects.toThrow(why);
  });

  it('refuses a module whose memory begins above 1 GiB', async () => {
    const source = ABI + MALLOC + HALT;
    await expect(load(source, ['--initialMemory', '16384'])).resolves.toBeDefined();
    await expect(load(source, ['--initialMemory', '16385'])).rejects.toThrow(LoadError);
  });

  it('lets _initialize log, but not call the host otherwise; a start section must not call it at all', async () => {
    const say = `${ABI}${MALLOC}${HALT}@external('env', 'proxy_log') declare function log(l: u32, p: usize, n: usize): u32;\nlog(2, 0, 0);\n`;
    const ask = say.replace("'proxy_log'", "'proxy_get_header_map_pairs'");
    const reactor = ['--exportStart', '_initialize'];
    await expect(load(say, reactor)).resolves.toBeDefined();
    await expect(load(ask, reactor)).rejects.toThrow('restricted_callback');
    await expect(load(say)).rejects.toThrow('SIGSEGV in Envoy');
  });

  it('refuses a configuration that the filter refuses', async () => {
    const emulator = await emulate();
    await expect(
      emulator.run({
        ...{ name: '', client: post('a'), prefill: 'down', decode: 'down' },
        config: { script: 'conf:ret 0' },
      }),
    ).rejects.toThrow('Failed to configure thread-local Wasm plugin');
    expect(emulator.openContexts).toBe(0);
  });

  it('fills in the cluster of the prefill leg', async () => {
    const source = `${ABI}${MALLOC}${HALT}
      @external('env', 'proxy_get_buffer_bytes') declare function get(t: u32, s: u32, n: u32, p: usize, l: usize): u32;
      @external('env', 'proxy_log') declare function log(l: u32, p: usize, n: usize): u32;
      export function proxy_on_configure(id: u32, size: u32): u32 {
        get(7, 0, size, 8, 12);
        log(2, load<u32>(8), load<u32>(12));
        return 1;
      }`;
    const emulator = await load(source);
    emulator.openStream({});
    emulator.openStream({ prefill: { endpoint_header: 'x' } });
    emulator.openStream({ prefill: { cluster: 'mine' } });
    emulator.openStream({ prefill: 3 });
    expect(said(emulator)).toEqual([
      '{"prefill":{"cluster":"prefill"}}',
      '{"prefill":{"cluster":"original_dst_http1","endpoint_header":"x"}}',
      '{"prefill":{"cluster":"mine"}}',
      '{"prefill":3}',
    ]);
  });
});
