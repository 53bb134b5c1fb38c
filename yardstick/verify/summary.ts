// What a run has found: as a table for people, as one document for programs, and as an exit code.

import Table from 'cli-table3';
import { KINDS } from '../cases.ts';
import { PATHS } from '../requests.ts';
import { ranges } from '../rows.ts';
import { VERDICTS, count, emptyTally, type Tally, type Verdict } from './judge.ts';
import type { Options } from './options.ts';
import type { Result, Run } from './run.ts';

export interface Line {
  name: string;
  requests: number;
  rows: Tally;
  verdicts: Record<Verdict, number>;
  textDiffers: number;
  disaggregated: { yes: number; no: number; unknown: number };
  outcomes: Record<string, number>;
  /** The first of the reasons of each verdict. */
  reasons: Partial<Record<Verdict, string>>;
  layers: Map<number, number>;
  impossible: number;
}

export const ROW_KINDS = ['equal', 'numerics', 'wrong', 'unknown'] as const;
const PLACES = ['prompt', 'last', 'generated'] as const;

/** The names of the cases, by endpoint and kind. */
export function namesOf(results: readonly Result[]): string[] {
  const rank = ({ endpoint, kind }: Result) =>
    Object.keys(PATHS).indexOf(endpoint) * KINDS.length + KINDS.indexOf(kind);
  return [...new Set([...results].sort((a, b) => rank(a) - rank(b)).map(nameOf))];
}

/** A line per case, without the total. */
export function linesOf(results: readonly Result[]): Line[] {
  return namesOf(results).map((name) =>
    lineOf(
      name,
      results.filter((result) => nameOf(result) === name),
    ),
  );
}

export const nameOf = ({ endpoint, kind }: Result): string => `${PATHS[endpoint]}, ${kind}`;

export function lineOf(name: string, results: readonly Result[]): Line {
  const line: Line = {
    name,
    requests: results.length,
    rows: emptyTally(),
    verdicts: Object.fromEntries(VERDICTS.map((verdict) => [verdict, 0])) as Record<Verdict, number>,
    textDiffers: 0,
    disaggregated: { yes: 0, no: 0, unknown: 0 },
    outcomes: {},
    reasons: {},
    layers: new Map(),
    impossible: 0,
  };
  for (const result of results) {
    for (const choice of result.choices) count(line.rows, choice);
    line.verdicts[result.verdict]++;
    if (result.why !== null) line.reasons[result.verdict] ??= result.why;
    if (result.textDiffers) line.textDiffers++;
    line.disaggregated[result.disaggregated]++;
    const outcome = result.outcome?.replace(/; (rows|choices)=.*$/, '') ?? 'not told';
    line.outcomes[outcome] = (line.outcomes[outcome] ?? 0) + 1;
    for (const [layer, rows] of result.layers) line.layers.set(layer, (line.layers.get(layer) ?? 0) + rows);
    line.impossible += result.impossible;
  }
  return line;
}

const sum = (rows: Tally, kind: (typeof ROW_KINDS)[number]) =>
  PLACES.reduce((all, place) => all + rows[place][ROW_KINDS.indexOf(kind)]!, 0);

export interface Findings {
  exitCode: 0 | 1 | 2;
  /** Sentences, the most important one first. */
  said: string[];
}

export function findingsOf({ results, prefill, deployment }: Run, options: Options): Findings {
  const total = lineOf('total', results);
  const { verdicts, rows, disaggregated } = total;
  const [equal, numerics] = [sum(rows, 'equal'), sum(rows, 'numerics')];
  const said: string[] = [];
  const bad = verdicts.wrong + verdicts.missing;
  const drift = numerics / Math.max(equal + numerics, 1) > options.numerics;
  if (verdicts.wrong > 0)
    said.push(`${verdicts.wrong} of ${total.requests} answers have wrong rows.`, ...patterns(total));
  if (verdicts.missing > 0) said.push(`${verdicts.missing} answers have no array, and nothing says so.`);
  if (drift) {
    said.push(
      `${numerics} rows differ as numerics make rows differ: more than --numerics ${options.numerics} allows.`,
    );
  }
  const silent = prefill ? Math.max(prefill.expected - prefill.served, 0) : 0;
  if (silent > 0) {
    said.push(
      `Prefill was left out of ${silent} answers, and nothing in them says so: decode has served them alone.`,
    );
  }
  if (verdicts.refused + verdicts.failed > 0) {
    said.push(`${verdicts.refused + verdicts.failed} requests got no rows: ${reasonsOf(total)}.`);
  }
  if (bad > 0 || drift || silent > 0) return { exitCode: 1, said };
  if (equal + numerics === 0) return { exitCode: 2, said: ['No row could be compared.', ...said] };
  if (disaggregated.no === results.length) {
    return { exitCode: 2, said: ['P/D was used for no request, so nothing is known about it.', ...said] };
  }
  said.unshift(`No wrong row in ${equal + numerics} rows of ${verdicts.right} answers.`);
  if (!options.oracle) {
    said.push(
      'Without --oracle, rows that are wrong in the same way whenever they are asked for are not found.',
    );
  }
  const untold = disaggregated.unknown > 0 && !prefill;
  if (untold)
    said.push('Whether P/D was used cannot be told for all of them: name a prefill engine with --prefill.');
  if (deployment.shape.dense.size > 0) {
    said.push(`Layers ${ranges([...deployment.shape.dense])} are dense: zero in every row.`);
  }
  return { exitCode: 0, said };
}

const reasonsOf = ({ reasons }: Line): string =>
  [reasons.failed, reasons.refused].filter((reason) => reason !== undefined).join('; ');

/** What the places and layers of wrong rows say about their cause. */
function patterns({ rows, layers, reasons, impossible }: Line): string[] {
  const said: string[] = [];
  const wrongAt = (place: (typeof PLACES)[number]) => rows[place][2];
  const wrong = sum(rows, 'wrong');
  if (wrong === 0) return [`The first: ${reasons.wrong}.`];
  if (wrongAt('generated') === 0 && wrongAt('prompt') > 0) {
    said.push(
      'All of them stand before the seam of prefill and decode: the rows of the prompt are not those of prefill.',
    );
  }
  if (wrongAt('prompt') === 0 && wrongAt('generated') === 0)
    said.push('All of them are rows of the last prompt token.');
  if (impossible > 0)
    said.push(`${impossible} of ${wrong} are rows that no router gives (${reasons.wrong}).`);
  const [layer] = layers.keys();
  if (layers.size === 1) said.push(`They differ in layer ${layer} alone.`);
  return said.length > 0 ? said : [`The first: ${reasons.wrong}.`];
}

/** The summary for people. */
export function summaryOf(run: Run, options: Options): string {
  const { deployment, results, seconds, prefill } = run;
  const { model, dialect, shape, endpoints } = deployment;
  const head = [
    'case',
    'requests',
    'equal',
    'numerics',
    'wrong: prompt',
    'last',
    'generated',
    'text differs',
    'P/D',
  ];
  const chars = { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' };
  const table = new Table({ head: [...head, 'no rows'], chars, style: { head: [], border: [] } });
  const lines = linesOf(results);
  for (const line of [...lines, lineOf('total', results)]) table.push(cellsOf(line));
  const { outcomes } = lineOf('', results);
  const listed = Object.entries(outcomes).map(([name, n]) => `${name} ${n}`);
  const oracle = options.oracle ? options.oracle.href : 'none: the same request once more, with a cache_salt';
  return [
    `${options.through.href}: ${model}, ${dialect}, ${endpoints.map((name) => PATHS[name]).join(' ')}`,
    `rows of ${shape.layers} layers x ${shape.topK} experts; compared with ${oracle}; ${seconds.toFixed(1)} s`,
    table.toString(),
    `x-routed-experts: ${listed.join(', ')}`,
    ...(prefill ? [`prefill has served ${prefill.served} of ${prefill.expected} requests`] : []),
    ...findingsOf(run, options).said,
  ].join('\n');
}

function cellsOf({ name, requests, rows, verdicts, textDiffers, disaggregated }: Line): (string | number)[] {
  const { yes, no, unknown } = disaggregated;
  const parts = [yes && `${yes} used`, no && `${no} not`, unknown && `${unknown} ?`].filter(Boolean);
  const without = verdicts.missing + verdicts.failed + verdicts.refused;
  const wrong = PLACES.map((place) => rows[place][2]);
  const counts = [requests, sum(rows, 'equal'), sum(rows, 'numerics'), ...wrong, textDiffers];
  return [name, ...counts, parts.join(', '), without];
}

/** The document that `--json` writes. */
export function documentOf(run: Run, options: Options): object {
  const plain = ({ layers, ...line }: Line) => ({ ...line, layers: Object.fromEntries(layers) });
  const { shape, ...deployment } = run.deployment;
  return {
    ...findingsOf(run, options),
    deployment: { ...deployment, shape: { ...shape, dense: [...shape.dense] } },
    prefill: run.prefill,
    seconds: run.seconds,
    rowKinds: ROW_KINDS,
    total: plain(lineOf('total', run.results)),
    cases: linesOf(run.results).map(plain),
    results: run.results.map(({ layers, choices, ...result }) => ({
      ...result,
      layers: Object.fromEntries(layers),
      // A digit a row, by its place in `rowKinds`.
      choices: choices.map(({ rows, ...choice }) => ({ ...choice, rows: rows.join('') })),
    })),
  };
}
