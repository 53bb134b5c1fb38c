// The command `verify`: docs/verify.md describes it.

import { writeFileSync } from 'node:fs';
import { CommanderError } from 'commander';
import { SingleBar } from 'cli-progress';
import { CannotRun } from './deployment.ts';
import { parser, type Options } from './options.ts';
import { pictureOf } from './picture.ts';
import { verify, type Progress } from './run.ts';
import { documentOf, findingsOf, summaryOf } from './summary.ts';

/** Runs the command. Returns the exit code: 0, 1 for wrong rows, 2 if it could not find out. */
export async function main(
  args: readonly string[],
  print: (text: string) => void = console.log,
): Promise<number> {
  try {
    const options = parser()
      .exitOverride()
      .configureOutput({ writeOut: (text) => print(text.trimEnd()) })
      .parse(args, { from: 'user' })
      .opts<Options>();
    const run = await verify(options, options.progress ? bar() : SILENT);
    print(summaryOf(run, options));
    if (options.json) writeFileSync(options.json, `${JSON.stringify(documentOf(run, options), null, 1)}\n`);
    if (options.svg) writeFileSync(options.svg, pictureOf(run.results));
    return findingsOf(run, options).exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (!(error instanceof CannotRun)) throw error;
    print(error.message);
    return 2;
  }
}

const SILENT: Progress = { start: () => undefined, step: () => undefined, stop: () => undefined };

/** A bar on a terminal; on anything else a line now and then. */
function bar(): Progress {
  const format = '{bar} {value}/{total} requests, {wrong} with wrong rows, {duration_formatted}';
  const single = new SingleBar({ format, noTTYOutput: true, notTTYSchedule: 5000, stream: process.stderr });
  return {
    start: (total) => single.start(total, 0, { wrong: 0 }),
    step: (wrong) => single.increment({ wrong }),
    stop: () => single.stop(),
  };
}
