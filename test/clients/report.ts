/** bench/results/clients.md: what each client has decoded, and what it has made of refusals. */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { table } from '../../bench/report.ts';
import { BUILD, ROOT } from '../../tools/paths.mjs';
import type { Kind } from './deployment.ts';
import type { Found, Refusal } from './programs.ts';

const KINDS: Record<Kind, string> = {
  vllm: 'vLLM',
  object: "prime-rl's format",
  sglang: 'SGLang',
};
const CLIENTS = [
  ...['openai', 'litellm', 'httpx', 'h2', 'aiohttp', 'verifiers', 'renderers', 'skyrl', 'areal', 'miles-rl'],
];
const HEAD = ['client', 'engines', 'request', 'decoded', '502', '`null`', 'reset'];
const REPORT = join(ROOT, 'bench', 'results', 'clients.md');
const fileOf = (kind: Kind) => join(BUILD, 'clients', `${kind}.json`);

/** The lines of one client, one for each of its cases. */
export function linesOf(kind: Kind, client: string, { decoded, refused }: Found): string[][] {
  return Object.entries(decoded).map(([name, { through }]) => {
    const { reject, null: nulled, reset } = refused[name]!;
    const arrays = through.map((it) => it && `${it.shape[0]} rows, ${it.dtype}`).join('; ');
    return [client, KINDS[kind], name, arrays, made(reject), made(nulled), made(reset)];
  });
}

/** What a client makes of a refusal, and of how many requests. */
function made({ raised, returned, requests }: Refusal): string {
  const what = raised
    ? `\`${raised.replace('builtins.', '')}\``
    : returned!.every((it) => it === null)
      ? 'no rows'
      : 'ROWS';
  return requests === 1 ? what : `${what}, ${requests} requests`;
}

/** Keeps the lines of a run for `writeReport`. */
export function keep(kind: Kind, lines: string[][]): void {
  mkdirSync(join(BUILD, 'clients'), { recursive: true });
  writeFileSync(fileOf(kind), JSON.stringify(lines));
}

/** The lines that the committed report has of a client. */
export function reported(kind: Kind, client: string): string[][] {
  return readFileSync(REPORT, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .map((line) =>
      line
        .slice(1, -1)
        .split('|')
        .map((cell) => cell.trim()),
    )
    .filter(([name, engines]) => name === client && engines === KINDS[kind]);
}

/** The clients' packages as they are pinned, each with its version. */
function versions(): string[][] {
  const read = (name: string) => readFileSync(join(ROOT, 'test', 'clients', name), 'utf8');
  const pinned = `${read('requirements.txt')}${read('requirements-openai.txt')}`.split('\n');
  const { dependencies } = JSON.parse(read('package.json')) as { dependencies: { openai: string } };
  return [
    ...CLIENTS.flatMap((name) => pinned.filter((line) => line.startsWith(`${name}==`))),
    `Node's openai==${dependencies.openai}`,
  ].map((line) => line.split('=='));
}

/** Writes what the last runs have found. */
export function writeReport(): void {
  const kinds = (Object.keys(KINDS) as Kind[]).filter((kind) => existsSync(fileOf(kind)));
  const lines = kinds.flatMap((kind) => JSON.parse(readFileSync(fileOf(kind), 'utf8')) as string[][]);
  const text = [
    '# Clients',
    '',
    '    npm run test:clients -- --report',
    '',
    'What clients have decoded of what came through the filter, each time the same as of the answer of',
    'the oracle; and what they have made of a 502, of `routed_experts: null` and of a response that is',
    'reset. The waits between their tries were skipped. [docs/clients.md](../../docs/clients.md) says what',
    'each of them is.',
    '',
    ...table(['package', 'version'], versions()),
    '',
    ...table(HEAD, lines),
    '',
  ];
  writeFileSync(REPORT, text.join('\n'));
  console.log(`Written to ${REPORT}`);
}
