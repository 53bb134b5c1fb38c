// `verify` finds each defect that engines and routers have, and nothing on a sound deployment.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import type { EngineOptions, Faults } from '../engine/engine.ts';
import { serveEngine } from '../engine/server.ts';
import { createPlant } from '../envoy/plant.ts';
import { main } from '../../yardstick/verify/command.ts';
import { engines, mergesNothing, url, type Engines, type Own } from './deployments.ts';

const closing: (() => Promise<void>)[] = [];
afterEach(async () => {
  await Promise.all(closing.splice(0).map((close) => close()));
});

interface Document {
  exitCode: number;
  said: string[];
  total: {
    rows: Record<'prompt' | 'last' | 'generated', number[]>;
    verdicts: Record<string, number>;
    textDiffers: number;
    disaggregated: Record<string, number>;
    layers: Record<string, number>;
    impossible: number;
  };
  cases: { name: string }[];
}

async function verified(args: string[]): Promise<{ code: number; output: string; document?: Document }> {
  let output = '';
  const json = join(mkdtempSync(join(tmpdir(), 'verify-')), 'out.json');
  closing.push(async () => rmSync(join(json, '..'), { recursive: true }));
  const code = await main([...args, '--no-progress', '--json', json], (text) => (output += `${text}\n`));
  try {
    return { code, output, document: JSON.parse(readFileSync(json, 'utf8')) as Document };
  } catch {
    return { code, output };
  }
}

const SMALL = ['--requests', '40', '--long-prompt', '200', '--concurrency', '4'];

async function deployed(options: Partial<EngineOptions> = {}, own: Own = {}): Promise<Engines> {
  const all = await engines(options, own);
  closing.push(all.close);
  return all;
}

async function routed(all: Engines, alone = 0): Promise<string> {
  const server = await serveEngine(mergesNothing(all, alone));
  closing.push(server.close);
  return url(server);
}

/** An engine that does both, with defects, as the whole deployment. */
async function damaged(faults: Faults, options: Partial<EngineOptions> = {}): Promise<string[]> {
  const all = await deployed(options);
  const sound = await engines({ ...options, faults });
  closing.push(sound.close);
  return ['--through', url(sound.oracle), '--oracle', url(all.oracle)];
}

describe('finds', () => {
  const wrong = (document: Document) => Object.values(document.total.rows).map((kinds) => kinds[2]!);

  test.each<[string, Faults, RegExp]>([
    ['zeros', { zeros: 'prompt' }, /no router gives/],
    ['rows of another request', { foreign: 'prompt' }, /before the seam/],
    ['the last prompt row', { foreign: 'last' }, /last prompt token/],
    ['one layer shifted', { shiftedLayer: 1 }, /in layer 1 alone/],
    ['the tail for the whole array', { tail: true }, /rows instead of/],
    ['one row too few', { extraRows: -1 }, /rows instead of/],
    ['a defect in one of 20 answers', { foreign: 'prompt', every: 20 }, /have wrong rows/],
  ])('%s', async (_, faults, said) => {
    const { code, output } = await verified([...(await damaged(faults)), ...SMALL]);
    expect(output).toMatch(said);
    expect(code).toBe(1);
  });

  test('stale rows through a router that merges nothing, all before the seam', async () => {
    const all = await deployed();
    const { code, document } = await verified([
      '--through',
      await routed(all),
      '--oracle',
      url(all.oracle),
      ...SMALL,
    ]);
    const [prompt, last, generated] = wrong(document!);
    expect(prompt).toBeGreaterThan(1000);
    // Decode forwards the last prompt token, so this row is right even where nothing is merged.
    expect([last, generated]).toEqual([0, 0]);
    expect(code).toBe(1);
  });

  test('zeros and stale rows without an oracle', async () => {
    for (const promptRows of ['zeros', 'stale'] as const) {
      const all = await deployed({ promptRows });
      const { code, document } = await verified(['--through', await routed(all), ...SMALL]);
      expect(code).toBe(1);
      expect(wrong(document!)[0]).toBeGreaterThan(1000);
    }
  });

  test('that requests went to decode alone and nothing says so', async () => {
    const all = await deployed();
    const args = [
      '--through',
      await routed(all, 1),
      '--oracle',
      url(all.oracle),
      '--prefill',
      url(all.prefillServer),
    ];
    const { code, output } = await verified([...args, ...SMALL]);
    expect(output).toMatch(/Prefill was left out of 4\d answers/);
    expect(code).toBe(1);
  });

  test('that prefill was not left out', async () => {
    const all = await deployed();
    const args = ['--through', await routed(all), '--prefill', url(all.prefillServer), '--kinds', 'short'];
    const { output } = await verified([...args, '--requests', '5']);
    expect(output).toMatch(/prefill has served 10 of 10 requests/);
  });
});

describe('finds nothing through Envoy with the filter', () => {
  test.each<[string, Partial<EngineOptions>, Record<string, unknown>, string[]]>([
    ['NixlConnector', {}, {}, ['--requests', '120']],
    [
      'dense layers, wide ids',
      { model: { layers: 6, topK: 4, experts: 300, dtype: '<u2', dense: (of) => of < 2 } },
      {},
      [],
    ],
    ['objects', { format: 'B' }, {}, []],
    ['the prompt apart from the rest', { format: 'C' }, {}, []],
    [
      'tails of vLLM 0.32',
      { version: '0.32', connector: 'shared_storage', store: 'lmcache_mp' },
      { connector: 'shared_storage', decode_rows: 'tail' },
      [],
    ],
    [
      'SGLang',
      { connector: 'sglang', format: 'D' },
      { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
      [],
    ],
  ])('%s', async (_, options, config, args) => {
    const all = await deployed(options);
    const { prefillServer, decodeServer, oracle } = all;
    const ports = { prefillPort: prefillServer.port, decodePort: decodeServer.port };
    const plant = await createPlant({ ...ports, config });
    closing.push(plant.close);
    const asked = ['--through', url(plant), '--oracle', url(oracle), ...SMALL, ...args];
    const { code, output, document } = await verified(asked);
    expect(output).toMatch(/No wrong row in \d{4,} rows/);
    expect(document!.total.disaggregated['yes']).toBeGreaterThan(20);
    expect(document!.total.textDiffers).toBe(0);
    expect(code).toBe(0);
  });
});

describe('says that it could not find out', () => {
  test('where nothing listens', async () => {
    expect(await verified(['--through', 'http://127.0.0.1:1'])).toMatchObject({
      code: 2,
      output: 'http://127.0.0.1:1/ does not answer (ECONNREFUSED).\n',
    });
  });

  test('where routing is not captured', async () => {
    const all = await engines({ capture: false });
    closing.push(all.close);
    const { code, output } = await verified(['--through', url(all.oracle)]);
    expect(code).toBe(2);
    expect(output).toMatch(/returns no routed_experts .* --enable-return-routed-experts/);
  });

  test.each([[[]], [['--through', 'gateway:10000']], [['--through', 'http://x', '--kinds', 'all']]])(
    'for the arguments %j',
    async (args) => {
      expect((await verified(args)).code).toBe(2);
    },
  );
});

test('text that differs is told apart from wrong rows', async () => {
  const all = await deployed();
  // The other engine generates other tokens for the same prompt, as numerics may have it.
  const other = await engines({ eosAfter: 5 });
  closing.push(other.close);
  const { code, document } = await verified([
    '--through',
    url(other.oracle),
    '--oracle',
    url(all.oracle),
    ...SMALL,
  ]);
  expect(document!.total.textDiffers).toBeGreaterThan(30);
  expect(document!.total.rows.generated[2]).toBe(0);
  expect(code).toBe(0);
});

test('the picture shows which rows are wrong', async () => {
  const svg = join(mkdtempSync(join(tmpdir(), 'verify-')), 'out.svg');
  closing.push(async () => rmSync(join(svg, '..'), { recursive: true }));
  await verified([...(await damaged({ foreign: 'last' })), ...SMALL, '--svg', svg]);
  const text = readFileSync(svg, 'utf8');
  const squares = [...text.matchAll(/fill="(#\w+)"><title>/g)].map(([, colour]) => colour);
  const lines = squares.length / 85;
  expect(lines).toBeGreaterThan(15);
  // Only the last row of the prompt, which is the 61st of the columns, is wrong in any line.
  const red = squares.flatMap((colour, i) => (colour === '#b3261e' || colour === '#e57368' ? [i % 85] : []));
  expect(new Set(red)).toEqual(new Set([60]));
});
