/**
 * What `npm start` shows: under P/D, decode alone returns wrong prompt rows; through Envoy with the
 * filter, every row equals the oracle's. The engines are simulated unless the command line names
 * real ones.
 */

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { createEngine } from '../test/engine/engine.ts';
import { Fleet } from '../test/engine/fleet.ts';
import { serveEngine } from '../test/engine/server.ts';
import { type Envoy, launchEnvoy } from '../test/envoy/launcher.ts';
import { type Answer, askModel, complete } from './demo/ask.ts';
import { type EngineName, type Options, parseOptions } from './demo/options.ts';
import { ranges } from '../yardstick/rows.ts';
import { differing, type Rows } from './demo/rows.ts';
import { ROOT } from './paths.mjs';
import { Problem } from './problem.mjs';

const PROMPT = 'The quick brown fox jumps over the lazy dog.';
const MAX_TOKENS = 16;

type Engines = { prefill: URL; decode: URL; oracle?: URL };
type Json = Record<string, unknown>;
type Closable = { close(): Promise<void> };

export async function demo(args: string[]): Promise<void> {
  const options = parseOptions(args);
  const started: Closable[] = [];
  try {
    await Promise.race([stopSignal(), show(options, started)]);
  } finally {
    await Promise.all(started.reverse().map((part) => part.close()));
  }
  // After Ctrl-C, a request may still be under way.
  process.exit();
}

async function show(options: Options, started: Closable[]): Promise<void> {
  await requireFree(options.port);
  const engines = (options.engines as Engines | null) ?? (await simulate(options, started));
  const model = options.model ?? (await askModel('decode engine', engines.decode));
  let live = false;
  const envoy = await startEnvoy(options, engines, (text) => void (live && process.stdout.write(text)));
  started.push(envoy);
  describe(options, engines, envoy);

  if (!(await compare(options, engines, model))) process.exitCode = 1;
  if (options.once) return;
  suggest(options, model);
  live = true;
  throw new Problem(`${await envoy.ended}.`);
}

/** Resolves on the first Ctrl-C. On a second one the process exits at once. */
function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let stopping = false;
    const stop = () => {
      if (stopping) process.exit(1);
      stopping = true;
      resolve();
    };
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, stop);
  });
}

/**
 * Envoy would share a port with any process that allows this, and would then get only some of the
 * connections.
 */
async function requireFree(port: number): Promise<void> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const reason = error.code === 'EADDRINUSE' ? 'is taken' : `cannot be listened on (${error.code})`;
      reject(new Problem(`Port ${port} ${reason}; choose another with --port.`));
    });
    server.listen(port, '0.0.0.0', () => server.close(() => resolve()));
  });
}

async function simulate(options: Options, started: Closable[]): Promise<Engines> {
  const fleet = new Fleet();
  const serve = async (role: EngineName) => {
    // Only version 0.32 can return the tail alone, and it refuses to return anything else.
    const version = options.decodeRows === 'tail' ? '0.32' : '0.30';
    const engine = createEngine({ role, connector: options.connector, version, fleet, now: Date.now });
    const server = await serveEngine(engine);
    started.push(server);
    return new URL(`http://127.0.0.1:${server.port}`);
  };
  return { prefill: await serve('prefill'), decode: await serve('decode'), oracle: await serve('oracle') };
}

/**
 * Starts Envoy with `envoy/envoy.yaml`, the file that users read. Only the ports, the engines and
 * what the command line chose are replaced.
 */
function startEnvoy(options: Options, engines: Engines, onOutput: (text: string) => void): Promise<Envoy> {
  let yaml = readFileSync(join(ROOT, 'envoy', 'envoy.yaml'), 'utf8');
  const replace = (from: string, to: string) => {
    if (yaml.split(from).length !== 2) throw new Error(`envoy/envoy.yaml must have "${from}" once`);
    yaml = yaml.replace(from, () => to);
  };
  const endpoint = ({ hostname, port }: URL) =>
    // The address is quoted, because YAML would read an IPv6 address as a mapping. The URL has an
    // IPv6 address in brackets, Envoy does not.
    `address: '${hostname.replace(/^\[|\]$/g, '')}', port_value: ${port || 80} }`;
  replace('port_value: 9901 }', 'port_value: 0 }');
  replace('port_value: 10000 }', `port_value: ${options.port} }`);
  replace('address: 127.0.0.1, port_value: 8100 }', endpoint(engines.prefill));
  replace('address: 127.0.0.1, port_value: 8200 }', endpoint(engines.decode));
  replace('"connector": "nixl"', `"connector": "${options.connector}"`);
  replace('"decode_rows": "full"', `"decode_rows": "${options.decodeRows}"`);
  // Lines of the access log appear as they are written; by default Envoy collects them for 10 s.
  const args = ['--file-flush-interval-msec', '100'];
  return launchEnvoy({ config: () => yaml, args, onOutput }).catch((error: Error) => {
    throw new Problem(error.message);
  });
}

/**
 * Prints the comparison. Returns false when the filter did not merge, or when its rows differ from
 * the reference's.
 */
async function compare(options: Options, engines: Engines, model: string): Promise<boolean> {
  const body = { model, prompt: PROMPT, max_tokens: MAX_TOKENS, temperature: 0 };
  const oracle = engines.oracle && (await complete('oracle', engines.oracle, body, randomUUID()));
  const { prefill, decode } = await handshake(options, engines, body);
  const merged = await complete('filter', new URL(`http://127.0.0.1:${options.port}`), body, randomUUID());

  const prompt = prefill.rows.count;
  // Without an oracle only the prompt rows have a reference, which is prefill.
  const reference = (oracle ?? prefill).rows;
  const name = oracle ? 'oracle' : 'prefill engine';
  const wrong = differing(merged.rows, reference, reference.count);
  const which = oracle ? 'all rows' : 'all prompt rows';
  const verdict = wrong.length
    ? `rows ${ranges(wrong)} differ from the ${name}`
    : `${which} equal the ${name}'s`;

  console.log(`\nA prompt of ${prompt} tokens, ${MAX_TOKENS} tokens to generate:`);
  if (oracle) print('oracle', oracle, 'one engine does both, every row is right');
  print('decode alone', decode, blame(decode.rows, reference, prompt, name));
  print('through Envoy', merged, verdict);
  console.log(`${' '.repeat(17)}x-routed-experts: ${merged.outcome ?? '(none)'}`);
  return wrong.length === 0 && merged.outcome?.startsWith('merged') === true;
}

/** Runs both legs as a router does that does not merge. */
async function handshake(options: Options, { prefill, decode }: Engines, body: Json) {
  const nixl = options.connector === 'nixl';
  const requestId = randomUUID();
  const ask = {
    do_remote_decode: true,
    do_remote_prefill: false,
    remote_engine_id: null,
    remote_block_ids: null,
    remote_host: null,
    remote_port: null,
  };
  const prefillBody = { ...body, max_tokens: 1, stream: false, ...(nixl && { kv_transfer_params: ask }) };
  const prefilled = await complete('prefill engine', prefill, prefillBody, requestId);
  const decodeBody = {
    ...body,
    ...(nixl && { kv_transfer_params: prefilled.kvTransferParams }),
    ...(options.decodeRows === 'tail' && { routed_experts_prompt_start: prefilled.rows.count }),
  };
  return { prefill: prefilled, decode: await complete('decode engine', decode, decodeBody, requestId) };
}

function blame(rows: Rows, reference: Rows, prompt: number, name: string): string {
  if (rows.count < prompt) return `none of the ${prompt} prompt rows is there`;
  const wrong = differing(rows, reference, prompt);
  return wrong.length
    ? `rows ${ranges(wrong)} of ${prompt} prompt rows differ from the ${name}`
    : `all ${prompt} prompt rows equal the ${name}`;
}

function print(who: string, { rows, milliseconds }: Answer, what: string) {
  const time = `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
  console.log(`  ${who.padEnd(13)}  ${String(rows.count).padStart(3)} rows in ${time.padStart(6)}: ${what}`);
}

function describe({ port, engines: own }: Options, engines: Engines, envoy: Envoy) {
  for (const [name, url] of Object.entries(engines)) {
    console.log(`${name.padEnd(8)} ${(url as URL).origin}${own ? '' : ' (simulated)'}`);
  }
  console.log(`Envoy    http://127.0.0.1:${port}, admin ${envoy.adminUrl}`);
}

function suggest({ port }: Options, model: string) {
  const body = JSON.stringify({ model, prompt: 'Hello', max_tokens: 4, temperature: 0 });
  console.log(`
Try it:
  curl -i http://127.0.0.1:${port}/v1/completions -H 'content-type: application/json' -d '${body}'
Ctrl-C stops everything.
`);
}
