// The command line of `npm run bench`.

import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { Protocol } from '../test/scenario.ts';
import type { Dtype } from '../test/engine/router.ts';
import type { Connector, Format } from './bodies.ts';
import { Problem } from '../tools/problem.mjs';

export interface Model {
  layers: number;
  topK: number;
  dtype: Dtype;
}

export interface Other {
  name: string;
  command: string;
}

/** The filter a second time, with another configuration or another module. */
export interface Beside {
  name: string;
  config: Record<string, unknown>;
  /** Path of the module; absent: the module of this checkout. */
  module?: string;
}

export interface Options {
  sizes: number[];
  /** Numbers of prompt tokens of conversations, of which a turn asks for the last rows. */
  turns: number[];
  connector: Connector;
  models: Model[];
  formats: Format[];
  protocols: Protocol[];
  upstream: Protocol;
  concurrency: number[];
  prompt: 'ids' | 'text';
  repeats: number;
  seconds: number;
  others: Other[];
  besides: Beside[];
  perf: boolean;
  out: string;
}

export const USAGE = `npm run bench -- [options]
  --quick               a run of about a minute: HTTP/1, concurrency 1, one model, 3 repeats of 1 s
  --sizes LIST          tokens, prompt and generated          256,2048,16384,131072
  --turns LIST          prompt tokens of conversations, of which a turn asks for the last rows:
                        the same prompt, asked for all rows and for the last 256             4096,16384
  --connector NAME      nixl or mooncake                                                     nixl
  --models LIST         layers x experts : dtype              48x8:u1,48x8:u2,61x8:u1
                        (the first with everything; the others over HTTP/1, concurrency 1)
  --formats LIST        full: decode returns all rows (A); tail: the generated ones (A')
  --protocols LIST      http1,http2: between client and Envoy
  --upstream PROTOCOL   http1 or http2: between Envoy and the engines                  http1
  --concurrency LIST    requests in flight                    1,16
  --prompt KIND         ids or text: the prompt as token ids, as trainers send it, or as a text        ids
  --repeats N           interleaved windows of each subject   5
  --seconds N           length of a window                    3
  --other NAME=COMMAND  another router, measured beside; in its command {prefill} and {decode} are the engines' host:port,
                        {port} is where it has to listen. May be given more than once. HTTP/1, decode returns all rows
  --beside NAME=WHAT    the filter once more, compared with itself: WHAT is JSON that the configuration gets beside, as in
                        --beside 'off={"check_rows":"off"}', or the path of another module. May be given more than once
  --perf                also profile each Envoy for a window with perf, and print where its time goes
  --out NAME            bench/results/NAME.md and NAME.svg    bench, or quick`;

const DTYPES: Record<string, Dtype> = { u1: '|u1', u2: '<u2', i2: '<i2', i4: '<i4' };

export function parseOptions(args: string[]): Options | 'help' {
  const { values } = parseArgs({
    args,
    options: {
      help: { type: 'boolean' },
      quick: { type: 'boolean' },
      perf: { type: 'boolean' },
      sizes: { type: 'string' },
      turns: { type: 'string' },
      connector: { type: 'string' },
      models: { type: 'string' },
      formats: { type: 'string' },
      protocols: { type: 'string' },
      upstream: { type: 'string' },
      concurrency: { type: 'string' },
      prompt: { type: 'string' },
      repeats: { type: 'string' },
      seconds: { type: 'string' },
      other: { type: 'string', multiple: true },
      beside: { type: 'string', multiple: true },
      out: { type: 'string' },
    },
  });
  if (values.help) return 'help';
  const quick = values.quick ?? false;
  return {
    sizes: list(values.sizes, '256,2048,16384,131072', (text) => whole('--sizes', text, 16, 1 << 20)),
    turns: list(values.turns, quick ? '' : '4096,16384', (text) => whole('--turns', text, 1024, 1 << 20)),
    connector: choice('--connector', values.connector ?? 'nixl', ['nixl', 'mooncake']),
    models: list(values.models, quick ? '48x8:u1' : '48x8:u1,48x8:u2,61x8:u1', model),
    formats: list(values.formats, 'full,tail', (text) => choice('--formats', text, ['full', 'tail'])),
    protocols: list(values.protocols, quick ? 'http1' : 'http1,http2', (text) =>
      choice('--protocols', text, ['http1', 'http2']),
    ),
    upstream: choice('--upstream', values.upstream ?? 'http1', ['http1', 'http2']),
    concurrency: list(values.concurrency, quick ? '1' : '1,16', (text) =>
      whole('--concurrency', text, 1, 1024),
    ),
    prompt: choice('--prompt', values.prompt ?? 'ids', ['ids', 'text']),
    repeats: whole('--repeats', values.repeats ?? (quick ? '3' : '5'), 1, 100),
    seconds: fraction('--seconds', values.seconds ?? (quick ? '1' : '3'), 0.1, 600),
    others: (values.other ?? []).map((text) => other(text)),
    besides: (values.beside ?? []).map(beside),
    perf: values.perf ?? false,
    out: fileName(values.out ?? (quick ? 'quick' : 'bench')),
  };
}

const list = <T>(text: string | undefined, standard: string, parse: (text: string) => T): T[] =>
  (text ?? standard)
    .split(',')
    .filter((part) => part.trim() !== '')
    .map((part) => parse(part.trim()));

function choice<T extends string>(option: string, text: string, known: T[]): T {
  const found = known.find((value) => value === text);
  if (!found) throw new Problem(`${option} ${text}: known are ${known.join(', ')}.`);
  return found;
}

function fraction(option: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (!(value >= least && value <= most))
    throw new Problem(`${option} ${text}: a number from ${least} to ${most}.`);
  return value;
}

function whole(option: string, text: string, least: number, most: number): number {
  const value = fraction(option, text, least, most);
  if (!Number.isInteger(value)) throw new Problem(`${option} ${text}: a whole number.`);
  return value;
}

function model(text: string): Model {
  const match = /^(\d+)x(\d+):(\w+)$/.exec(text);
  const dtype = DTYPES[match?.[3] ?? ''];
  if (!match || !dtype) throw new Problem(`--models ${text}: LAYERSxEXPERTS:u1, u2, i2 or i4.`);
  return { layers: Number(match[1]), topK: Number(match[2]), dtype };
}

function other(text: string, option = '--other'): Other {
  const at = text.indexOf('=');
  if (at < 1) throw new Problem(`${option} ${text}: NAME=…`);
  return { name: text.slice(0, at), command: text.slice(at + 1) };
}

function beside(text: string): Beside {
  const { name, command: what } = other(text, '--beside');
  if (!what.startsWith('{')) return { name, config: {}, module: resolve(what) };
  try {
    return { name, config: JSON.parse(what) as Record<string, unknown> };
  } catch {
    throw new Problem(`--beside ${text}: what begins with { is JSON.`);
  }
}

function fileName(text: string): string {
  if (!/^[\w.-]+$/.test(text)) throw new Problem(`--out ${text}: a file name without its ending.`);
  return text;
}
