// The command line of `verify`.

import { Command, InvalidArgumentError, Option } from 'commander';
import { KINDS, type Kind } from '../cases.ts';
import type { Dialect } from '../requests.ts';

export interface Options {
  through: URL;
  oracle?: URL;
  prefill?: URL;
  model?: string;
  dialect?: Dialect;
  requests: number;
  concurrency: number;
  seed: number;
  kinds: readonly Kind[];
  longPrompt: number;
  maxTokens: number;
  numerics: number;
  experts?: number;
  header: Record<string, string>;
  timeout: number;
  json?: string;
  svg?: string;
  progress: boolean;
}

const url = (text: string): URL => {
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) throw new InvalidArgumentError('It is no http URL.');
  return new URL(text);
};

const whole =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`It is a whole number of at least ${least}.`);
  };

const share = (text: string): number => {
  const value = Number(text);
  if (value >= 0 && value <= 1) return value;
  throw new InvalidArgumentError('It is a number from 0 to 1.');
};

const kinds = (text: string): Kind[] =>
  text.split(',').map((name) => {
    const kind = KINDS.find((known) => known === name.trim());
    if (kind) return kind;
    throw new InvalidArgumentError(`Known are ${KINDS.join(', ')}.`);
  });

const header = (text: string, before: Record<string, string>): Record<string, string> => {
  const [, name, value] = /^([\w-]+): *(.*)$/.exec(text) ?? [];
  if (name === undefined) throw new InvalidArgumentError('It is "name: value".');
  return { ...before, [name.toLowerCase()]: value! };
};

export function parser(): Command {
  return new Command('routed-experts-verify')
    .description('Checks that a live P/D deployment returns the right routing (routed_experts).')
    .requiredOption('--through <url>', 'the deployment: a gateway, a router or an engine', url)
    .option('--oracle <url>', 'an engine of the same model that does prefill and decode itself', url)
    .option('--prefill <url>', 'a prefill engine, whose /metrics tell whether P/D was used', url)
    .option('--model <name>', 'name of the model; default: the first that the deployment serves')
    .addOption(
      new Option('--dialect <name>', 'default: what the deployment serves').choices(['vllm', 'sglang']),
    )
    .option('--requests <n>', 'number of requests that are checked', whole(1), 200)
    .option('--concurrency <n>', 'conversations at the same time', whole(1), 8)
    .option('--seed <n>', 'the prompts follow from it', whole(0), 1)
    .option('--kinds <list>', `kinds of requests, of ${KINDS.join(',')}`, kinds, [...KINDS])
    .option('--long-prompt <n>', 'tokens of a long prompt, about', whole(64), 1500)
    .option('--max-tokens <n>', 'tokens to generate', whole(2), 16)
    .option('--numerics <share>', 'share of rows that may differ as numerics make rows differ', share, 0.01)
    .option('--experts <n>', 'number of experts of a layer; default: not checked', whole(1))
    .option('--header <text>', '"name: value", sent with each request; may be repeated', header, {})
    .option('--timeout <s>', 'seconds without a byte after which a request has failed', whole(1), 600)
    .option('--json <file>', 'writes every result')
    .option('--svg <file>', 'writes a picture: rows x cases')
    .option('--no-progress', 'shows no progress')
    .addHelpText(
      'after',
      '\nExits with 0 if no row is wrong, 1 if rows are wrong or missing, 2 if it could not find out.',
    );
}
