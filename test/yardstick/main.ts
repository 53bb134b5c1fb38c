// `npm run verify:simulated`: a long run of `verify` on a sound deployment, and one on a deployment
// with each defect. With `--report` it writes bench/results/verify.md and verify.svg.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { describeMachine } from '../../bench/machine.ts';
import { table } from '../../bench/report.ts';
import { ROOT } from '../../tools/paths.mjs';
import { Problem, runMain } from '../../tools/problem.mjs';
import { main } from '../../yardstick/verify/command.ts';
import type { EngineOptions, Faults } from '../engine/engine.ts';
import { serveEngine } from '../engine/server.ts';
import { createPlant } from '../envoy/plant.ts';
import { engines, mergesNothing, url } from './deployments.ts';

interface Subject {
  name: string;
  engine?: Partial<EngineOptions>;
  /** The filter's configuration; absent: the router that merges nothing. */
  filter?: Record<string, unknown>;
  /** Defects of prefill, which no check on one response can find. */
  prefill?: Faults;
  /** One in so many requests goes to decode alone. */
  alone?: number;
  args?: string[];
  finds: boolean;
}

const SGLANG = { connector: 'sglang', format: 'D' } as const;
const SUBJECTS: Subject[] = [
  { name: 'sound: filter, NixlConnector', filter: {}, finds: false },
  {
    name: 'sound: filter, SGLang',
    filter: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
    engine: SGLANG,
    finds: false,
  },
  { name: 'sound: filter, no oracle', filter: {}, args: ['--no-oracle'], finds: false },
  { name: 'zeros: nothing is merged', engine: { promptRows: 'zeros' }, finds: true },
  { name: 'stale rows: nothing is merged', finds: true },
  { name: 'stale rows: nothing is merged, no oracle', args: ['--no-oracle'], finds: true },
  { name: 'last prompt row', filter: {}, prefill: { foreign: 'last' }, finds: true },
  { name: 'one layer shifted', filter: {}, prefill: { shiftedLayer: 2 }, finds: true },
  { name: 'rows of another request', filter: {}, prefill: { foreign: 'prompt' }, finds: true },
  {
    name: 'rows of another request, 1 in 500',
    filter: {},
    prefill: { foreign: 'prompt', every: 500 },
    finds: true,
  },
  { name: 'tail for full', engine: { faults: { tail: true } }, finds: true },
  { name: 'silent decode-only, 1 in 50', alone: 50, args: ['--prefill'], finds: true },
];

interface Outcome {
  code: number;
  output: string;
  document: {
    said: string[];
    seconds: number;
    total: {
      requests: number;
      rows: Record<'prompt' | 'last' | 'generated', number[]>;
      verdicts: Record<string, number>;
    };
  };
  svg: string;
}

async function run(subject: Subject, requests: number): Promise<Outcome> {
  const { engine = {}, filter, prefill, alone, args = [] } = subject;
  const all = await engines(engine, prefill ? { prefill: { faults: prefill } } : {});
  const sound = await engines({ ...engine, faults: undefined, promptRows: 'zeros' });
  const server = filter
    ? await createPlant({
        prefillPort: all.prefillServer.port,
        decodePort: all.decodeServer.port,
        config: filter,
      })
    : await serveEngine(mergesNothing(all, alone));
  const folder = mkdtempSync(join(tmpdir(), 'verify-'));
  let output = '';
  try {
    const [json, svg] = ['json', 'svg'].map((ending) => join(folder, `out.${ending}`)) as [string, string];
    const oracle = args.includes('--no-oracle') ? [] : ['--oracle', url(sound.oracle)];
    const counted = args.includes('--prefill') ? ['--prefill', url(all.prefillServer)] : [];
    const asked = [
      '--through',
      url(server),
      ...oracle,
      ...counted,
      '--requests',
      String(requests),
      '--no-progress',
    ];
    const code = await main(
      [...asked, '--long-prompt', '600', '--json', json, '--svg', svg],
      (text) => (output += text),
    );
    return {
      code,
      output,
      document: JSON.parse(readFileSync(json, 'utf8')) as Outcome['document'],
      svg: readFileSync(svg, 'utf8'),
    };
  } finally {
    await server.close();
    await all.close();
    await sound.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

await runMain(import.meta.url, async () => {
  const { values } = parseArgs({
    options: { requests: { type: 'string', default: '1000' }, report: { type: 'boolean' } },
  });
  const wrong: string[] = [];
  const lines: string[][] = [];
  for (const subject of SUBJECTS) {
    const { code, output, document, svg } = await run(subject, Number(values.requests));
    console.log(`\n${subject.name}: exits with ${code}\n${output}`);
    if ((code === 1) !== subject.finds) wrong.push(subject.name);
    const { requests, rows, verdicts } = document.total;
    const sum = (kind: number) => Object.values(rows).reduce((all, place) => all + place[kind]!, 0);
    const counts = [requests, sum(0), sum(2), verdicts['wrong']!].map(String);
    lines.push([subject.name, ...counts, String(code), document.seconds.toFixed(0), document.said[0]!]);
    if (values.report && subject.name.startsWith('last'))
      writeFileSync(join(ROOT, 'bench', 'results', 'verify.svg'), svg);
  }
  if (values.report)
    writeFileSync(join(ROOT, 'bench', 'results', 'verify.md'), reportOf(lines, values.requests));
  if (wrong.length > 0) throw new Problem(`Not as it should be: ${wrong.join('; ')}.`);
});

function reportOf(lines: string[][], requests: string): string {
  const head = [
    'deployment',
    'requests',
    'rows equal',
    'rows wrong',
    'answers wrong',
    'exit code',
    's',
    'said',
  ];
  return [
    '# Verify',
    '',
    `    npm run verify:simulated -- --requests ${requests} --report`,
    '',
    `${describeMachine()}. Simulated engines, and the filter in Envoy or a router that merges nothing. The defects`,
    'behind the filter are those of its prefill engine: what that returns, the filter has to believe.',
    '',
    ...table(head, lines),
    '',
    '![The rows of the run "last prompt row"](verify.svg)',
    '',
  ].join('\n');
}
