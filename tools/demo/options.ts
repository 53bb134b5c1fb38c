/** The command line of `npm start`. */

import { parseArgs } from 'node:util';
import { Problem } from '../problem.mjs';

export type Connector = 'nixl' | 'shared_storage';
export type DecodeRows = 'full' | 'tail';
export type EngineName = 'prefill' | 'decode' | 'oracle';

export interface Options {
  /** The engines to use instead of simulated ones. The oracle is then optional. */
  engines: Partial<Record<EngineName, URL>> | null;
  port: number;
  connector: Connector;
  decodeRows: DecodeRows;
  /** Name of the model; when absent, the demo asks the decode engine. */
  model?: string;
  /** Whether the demo ends after the comparison. */
  once: boolean;
}

const CONNECTORS: readonly Connector[] = ['nixl', 'shared_storage'];
const DECODE_ROWS: readonly DecodeRows[] = ['full', 'tail'];
const MAX_PORT = 65535;

export function parseOptions(args: string[]): Options {
  const values = parse(args);
  const { prefill, decode, oracle, model, once } = values;
  if (!prefill !== !decode) throw new Problem('--prefill and --decode go together: give both, or neither.');
  if (oracle && !prefill) throw new Problem('--oracle needs --prefill and --decode.');
  return {
    engines:
      prefill && decode
        ? {
            prefill: url('prefill', prefill),
            decode: url('decode', decode),
            ...(oracle && { oracle: url('oracle', oracle) }),
          }
        : null,
    port: port(values.port),
    connector: oneOf('connector', values.connector, CONNECTORS),
    decodeRows: oneOf('decode-rows', values['decode-rows'], DECODE_ROWS),
    model,
    once,
  };
}

function parse(args: string[]) {
  try {
    return parseArgs({
      args,
      options: {
        prefill: { type: 'string' },
        decode: { type: 'string' },
        oracle: { type: 'string' },
        port: { type: 'string', default: '10000' },
        connector: { type: 'string', default: 'nixl' },
        'decode-rows': { type: 'string', default: 'full' },
        model: { type: 'string' },
        once: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    // Only the first sentence is shown, because the rest explains the syntax of options.
    throw new Problem(`${(error as Error).message.split('. ')[0]}.`);
  }
}

function url(name: string, value: string): URL {
  const parsed = URL.canParse(value) ? new URL(value) : null;
  if (parsed?.protocol === 'http:' && parsed.hostname && parsed.pathname === '/' && !parsed.search)
    return parsed;
  throw new Problem(`--${name} ${value}: expected http://host:port.`);
}

function port(value: string): number {
  const number = Number(value);
  if (/^\d+$/.test(value) && number >= 1 && number <= MAX_PORT) return number;
  throw new Problem(`--port ${value}: expected a number from 1 to ${MAX_PORT}.`);
}

function oneOf<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((item) => item === value);
  if (found) return found;
  throw new Problem(`--${name} ${value}: expected ${allowed.join(' or ')}.`);
}
