// Writes the results of the runs of the mix as Markdown.

import { describeMachine, load } from '../../bench/machine.ts';
import { table } from '../../bench/report.ts';
import { digits, quantile } from '../../bench/stats.ts';
import { requireEnvoy } from '../../tools/envoy.mjs';
import { OUTCOMES } from '../scenarios/run.ts';
import { run as runProgram } from '../../tools/run.mjs';
import { DEPLOYMENTS } from './deployments.ts';
import type { Ended, Mix, Options } from './mix.ts';

export interface Run {
  mix: Mix;
  seconds: number;
  /**
   * The longest time for which the event loop of this process, which runs the clients and the
   * engines, was blocked.
   */
  busyMs: number;
}

const leaves = ({ exchange }: Ended) => exchange.leaving !== undefined;
const faulty = ({ exchange }: Ended) => exchange.faulty;
const compared = (each: Ended) => each.compared === true;

function figures({ mix, seconds, busyMs }: Run): string[] {
  const { ended, wrong, stalled, faults, options } = mix;
  const times = ended.map(({ exchange }) => exchange.ended! - exchange.started).sort((a, b) => a - b);
  const counts = [
    ended,
    ended.filter(leaves),
    ended.filter(faulty),
    ended.filter(compared),
    wrong,
    stalled,
    faults,
  ];
  return [
    String(options.seed),
    ...counts.map((of) => String(of.length)),
    digits(seconds),
    ...[quantile(times, 0.5), quantile(times, 0.99), times.at(-1)!, busyMs].map(digits),
  ];
}

const HEAD = [
  ...[
    'seed',
    'requests',
    'clients left',
    'engines aborted',
    'equal to the oracle',
    'wrong',
    'stalled',
    'left behind',
  ],
  ...['s', 'p50 ms', 'p99 ms', 'longest ms', 'engines busy ms'],
];

export const summary = (run: Run) => table(HEAD, [figures(run)]).join('\n');

const NEVER = 'never there';

/** One row per listener, summed over all runs. */
function outcomes(runs: Run[]): string[] {
  const ended = runs.flatMap(({ mix }) => mix.ended);
  const names = [...OUTCOMES, NEVER];
  const rows = DEPLOYMENTS.map((deployment) => {
    const own = ended.filter(({ exchange }) => exchange.deployment === deployment);
    const counts = names.map((name) => own.filter(({ outcome = NEVER }) => outcome === name).length);
    return [deployment.name, ...[own.length, ...counts, own.filter(compared).length].map(String)];
  });
  return table(['listener', 'requests', ...names, 'equal to the oracle'], rows);
}

/** Writes the report. `before` is the machine's load average before the runs. */
export async function report(runs: Run[], options: Omit<Options, 'seed'>, before: string): Promise<string> {
  const { requests, clients, workers, rates, stall } = options;
  const { output } = await runProgram(await requireEnvoy(), ['--version']);
  const version = /\/(\d[\w.-]*)\//.exec(output)?.[1] ?? 'unknown';
  const sum = (of: (mix: Mix) => readonly unknown[]) =>
    runs.reduce((all, { mix }) => all + of(mix).length, 0);
  return [
    '# Mix',
    '',
    `    npm run test:mix -- --requests ${requests} --runs ${runs.length} --seed ${runs[0]!.mix.options.seed} --report`,
    '',
    `${describeMachine()}; Envoy ${version}; load average ${before} before, ${load()} after. ${clients} clients at once, ${workers} workers, ` +
      `${DEPLOYMENTS.length} listeners in one VM a worker; engines and clients in one process. ${rates.aborts * 100} % of the legs abort (a reset, a body that breaks ` +
      `off, 500, 503, half a document), ${rates.leavers * 100} % of the clients leave (at once, in the middle of their request or of their answer, when an engine is asked, after a time; ` +
      `by a close, a reset, or by ending their side). Clients keep connections, or have one each, HTTP/1 or HTTP/2. What has no end within ${stall} s has stalled.`,
    '',
    `**${runs.length} run${runs.length === 1 ? '' : 's'}, ${sum(({ ended }) => ended)} requests, ${sum(({ ended }) => ended.filter(compared))} answers equal to those of the engine that does both, ` +
      `${sum(({ wrong }) => wrong)} wrong, ${sum(({ stalled }) => stalled)} stalled, ${sum(({ faults }) => faults)} left behind** ` +
      '(requests active in Envoy, on both sides; `held_bytes`; requests without exactly one outcome; traps).',
    '',
    ...table(HEAD, runs.map(figures)),
    '',
    'Outcomes by the access log; of a client that was never there Envoy did not see the head of its request. What is neither merged nor equal to the oracle ' +
      'met an engine that aborts or a client that leaves, or found no room for its rows (`no parking`).',
    '',
    ...outcomes(runs),
    '',
  ].join('\n');
}
