// `npm run bench:micro`: the inner loops of the filter, compiled from its own sources and run by
// Node's V8, in GB/s. Beside each loop stand memory.copy of the same bytes, and JSON.parse or
// Buffer doing the same job.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { instantiateSync } from '@assemblyscript/loader';
import { decodeNpy, encodeNpy } from '../yardstick/npy.ts';
import { ROOT, TEST_WASM } from '../tools/paths.mjs';
import { Problem, runMain } from '../tools/problem.mjs';
import { render, type Bodies } from './bodies.ts';
import { describeMachine, load } from './machine.ts';
import { table } from './report.ts';
import { digits, spread, type Spread } from './stats.ts';

// Envoy compiles Wasm with V8's optimizing compiler only.
setFlagsFromString('--no-liftoff');

interface Case {
  name: string;
  /** Number of bytes that a run processes. */
  bytes: number;
  run(): void;
}

/** A loop of the filter, and other ways to do the same. */
interface Group {
  name: string;
  /** The speed that the project aims at, in GB/s. */
  goal?: number;
  wasm: Case;
  copy: Case;
  node?: Case;
}

type Exports = Record<string, (...args: number[]) => number>;

const { exports } = instantiateSync<Exports>(readFileSync(TEST_WASM));
const wasm = exports as unknown as Exports;
const memory = exports.memory!;
const copy = copier(memory);

const IN_CACHE = 64 << 10;
const IN_MEMORY = 8 << 20;
const TOKENS = 16_384;
/**
 * Envoy hands over what it has read from the socket, which is at most its buffer limit of 1 MiB.
 */
const PIECE = 256 << 10;
/**
 * The first window in which `assembly/filter/rows/capture.ts` reads prefill's reply, and the pieces
 * in which it copies and keeps the rows.
 */
const FIRST_WINDOW = 16 << 10;
const ROWS_PIECE = 512 << 10;

/**
 * Wasm's `memory.copy` as a function: (import "env" "memory") (export "copy" (func dst src len)).
 */
function copier(shared: WebAssembly.Memory): (dst: number, src: number, len: number) => void {
  const code = [
    [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
    [0x01, 0x07, 0x01, 0x60, 0x03, 0x7f, 0x7f, 0x7f, 0x00],
    [0x02, 0x0f, 0x01, 0x03, ...Buffer.from('env'), 0x06, ...Buffer.from('memory'), 0x02, 0x00, 0x00],
    [0x03, 0x02, 0x01, 0x00],
    [0x07, 0x08, 0x01, 0x04, ...Buffer.from('copy'), 0x00, 0x00],
    [0x0a, 0x0e, 0x01, 0x0c, 0x00, 0x20, 0x00, 0x20, 0x01, 0x20, 0x02, 0xfc, 0x0a, 0x00, 0x00, 0x0b],
  ].flat();
  const module = new WebAssembly.Module(Uint8Array.from(code));
  return new WebAssembly.Instance(module, { env: { memory: shared } }).exports['copy'] as typeof copy;
}

/** Copies `bytes` into the module's memory and returns their address. */
function place(bytes: Buffer): number {
  const ptr = wasm['alloc']!(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, ptr, bytes.length).set(bytes);
  return ptr;
}

function must(condition: unknown, what: string): void {
  if (!condition) throw new Problem(`${what}: the module did not do its work.`);
}

// ---- what is measured

function kernels(size: number, where: string): Group[] {
  const chars = Buffer.from(Buffer.alloc(size).map((_, i) => (i * 167 + (i >> 7)) & 0xff)).toString('base64');
  const text = Buffer.from(chars.slice(0, size), 'latin1');
  const document = Buffer.from(`{"text":"${chars.slice(0, size - 11)}"}`);
  const numbers = logprobs(size);
  const ids = tokenIds(size);
  const at = place(text);
  const documentAt = place(document);
  const numbersAt = place(numbers);
  const idsAt = place(ids);
  const to = wasm['alloc']!(size) >>> 0;
  const half = text.toString('latin1');
  const copied: Case = { name: 'memory.copy', bytes: size, run: () => copy(to, at, size) };
  return [
    {
      name: `end of a string (plainEnd), ${where}`,
      goal: 4,
      wasm: {
        name: 'plainEnd',
        bytes: size,
        run: () => must(wasm['plainEnd']!(at, at + size) >>> 0 === at + size, 'plainEnd'),
      },
      copy: copied,
      node: { name: 'JSON.parse', bytes: document.length, run: () => JSON.parse(document.toString('utf8')) },
    },
    {
      name: `scanner, one long string, ${where}`,
      goal: 4,
      wasm: {
        name: 'scanner',
        bytes: document.length,
        run: () => must(wasm['accepts']!(documentAt, document.length), 'accepts'),
      },
      copy: copied,
      node: { name: 'JSON.parse', bytes: document.length, run: () => JSON.parse(document.toString('utf8')) },
    },
    {
      name: `scanner, logprobs, ${where}`,
      wasm: {
        name: 'scanner',
        bytes: numbers.length,
        run: () => must(wasm['accepts']!(numbersAt, numbers.length), 'accepts'),
      },
      copy: copied,
      node: { name: 'JSON.parse', bytes: numbers.length, run: () => JSON.parse(numbers.toString('utf8')) },
    },
    {
      name: `scanner, token ids, ${where}`,
      wasm: {
        name: 'scanner',
        bytes: ids.length,
        run: () => must(wasm['accepts']!(idsAt, ids.length), 'accepts'),
      },
      copy: copied,
      node: { name: 'JSON.parse', bytes: ids.length, run: () => JSON.parse(ids.toString('utf8')) },
    },
    {
      name: `alphabet check (inAlphabet), ${where}`,
      goal: 3,
      wasm: {
        name: 'inAlphabet',
        bytes: size,
        run: () => must(wasm['inAlphabet']!(at, at + size), 'inAlphabet'),
      },
      copy: copied,
      node: { name: 'Buffer.from', bytes: size, run: () => Buffer.from(half, 'base64') },
    },
    {
      name: `payload moved by 2 bits (shiftLeft), ${where}`,
      wasm: { name: 'shiftLeft', bytes: size, run: () => void wasm['shiftLeft']!(to, at, size - 1, 2) },
      copy: copied,
      node: {
        name: 'Buffer.from, toString',
        bytes: size,
        run: () => Buffer.from(half, 'base64').toString('base64'),
      },
    },
  ];
}

/** Small values, like those in `logprobs`. */
function logprobs(size: number): Buffer {
  const parts: string[] = [];
  for (let length = 30, i = 0; length < size - 80; i++) {
    const part = `{"token":" tok${i % 999}","logprob":-${(i % 97) / 13},"bytes":[${i % 256},32]}`;
    length += part.length + 1;
    parts.push(part);
  }
  return Buffer.from(`{"content":[${parts.join(',')}]}`);
}

/** A prompt of token ids, as trainers send it. */
function tokenIds(size: number): Buffer {
  const ids = Array.from({ length: Math.floor(size / 7) }, (_, i) => 100_000 + ((i * 7919) % 50_000));
  return Buffer.from(JSON.stringify({ prompt: ids }));
}

/**
 * Reads prefill's reply and keeps its rows, then reads decode's response, splices the rows in and
 * releases it, in pieces.
 */
function merges(): Group[] {
  const bodies = render({ tokens: TOKENS, layers: 48, topK: 8, dtype: '|u1' });
  const prefillAt = place(bodies.prefillReply);
  const reply = bodies.prefillReply.length;
  const scratch = wasm['alloc']!(Math.max(reply, bodies.decodeReply.full.length) + 64) >>> 0;
  const copied = (bytes: number): Case => ({
    name: 'memory.copy',
    bytes,
    run: () => copy(scratch, prefillAt, Math.min(bytes, reply)),
  });
  const response = (format: 'full' | 'tail'): Group => {
    const body = bodies.decodeReply[format];
    const merged = bodies.merged[format].length;
    const at = place(body);
    return {
      name: `merge ${format === 'full' ? 'A' : "A'"}: both legs, ${TOKENS} tokens`,
      wasm: {
        name: 'reply and response',
        bytes: merged,
        run: () => {
          capture(prefillAt, reply);
          must(splice(at, body.length, format === 'tail', PIECE) === merged, 'splice');
        },
      },
      copy: { ...copied(reply), bytes: reply },
      node: {
        name: 'JSON.parse, Buffer, JSON.stringify',
        bytes: merged,
        run: () => must(mergeWithNode(bodies, format).length === merged, 'JSON'),
      },
    };
  };
  capture(prefillAt, reply);
  check(bodies);
  return [
    {
      name: `prefill's reply read, rows kept, ${TOKENS} tokens`,
      wasm: { name: 'reply', bytes: reply, run: () => capture(prefillAt, reply) },
      copy: copied(reply),
      node: {
        name: 'JSON.parse, Buffer.from',
        bytes: reply,
        run: () => {
          const { choices } = JSON.parse(bodies.prefillReply.toString('utf8'));
          Buffer.from(choices[0].routed_experts, 'base64');
        },
      },
    },
    response('full'),
    response('tail'),
  ];
}

/**
 * Reads a reply that lies in the host's memory as `assembly/filter/rows/capture.ts` does: a first
 * window, then the rows in pieces, then the rest.
 */
function capture(ptr: number, len: number): void {
  wasm['responseFree']!();
  wasm['freeRows']!();
  wasm['replyStart']!(len, 0);
  let window = FIRST_WINDOW;
  while (wasm['replyOffset']!() < len) {
    const at = wasm['replyOffset']!();
    must(wasm['replyPush']!(ptr + at, Math.min(window, len - at)), 'replyPush');
    if (wasm['replyWantsRows']!()) {
      const rows = ptr + wasm['replyRowsAt']!();
      must(wasm['replyTakePieces']!(rows, wasm['replyRowsLen']!(), ROWS_PIECE), 'replyTakePieces');
    }
    window = PIECE;
  }
  must(wasm['replyFinish']!(), 'replyFinish');
  must(wasm['replyGive']!(ptr) === 0, 'replyGive');
  wasm['replyFree']!();
}

/**
 * Reads a response as `assembly/filter/phases/hold.ts` and `stream.ts` do. Returns the number of
 * bytes that were released.
 */
function splice(ptr: number, len: number, tail: boolean, piece: number): number {
  wasm['clearOutput']!();
  // One choice, unknown max_tokens, reason None, treatment Merge, form Unknown, and no events.
  wasm['responseStart']!(+tail, 1, -1, 0, 0, 0, 0);
  let committed = false;
  for (let at = 0; at < len; at += piece) {
    const n = Math.min(piece, len - at);
    const unread = committed ? wasm['responseUnread']!(n) : 0;
    if (unread > 0) must(wasm['responsePass']!(unread), 'responsePass');
    if (unread < n) wasm['responsePush']!(ptr + at + unread, n - unread);
    committed ||= wasm['responsePlanned']!() !== 0 && wasm['responseDecided']!() !== 0;
    if (committed) wasm['responseRelease']!();
  }
  if (wasm['responseAgainForm']!() !== 0) wasm['responseAgain']!(wasm['responseAgainForm']!(), 0);
  must(wasm['responseReason']!() === 0, 'response');
  wasm['responseRelease']!();
  return wasm['outputLen']!();
}

function check(bodies: Bodies): void {
  for (const format of ['full', 'tail'] as const) {
    const at = place(bodies.decodeReply[format]);
    const length = splice(at, bodies.decodeReply[format].length, format === 'tail', PIECE);
    const out = Buffer.from(memory.buffer, wasm['outputPtr']!() >>> 0, length);
    must(out.equals(bodies.merged[format]), `merge ${format}`);
    must(mergeWithNode(bodies, format).equals(bodies.merged[format]), 'JSON');
    wasm['free']!(at);
  }
}

function mergeWithNode({ prefillReply, decodeReply }: Bodies, format: 'full' | 'tail'): Buffer {
  const body = JSON.parse(decodeReply[format].toString('utf8'));
  const rows = JSON.parse(prefillReply.toString('utf8')).choices[0].routed_experts;
  const prefill = decodeNpy(Buffer.from(rows, 'base64'));
  const decode = decodeNpy(Buffer.from(body.choices[0].routed_experts, 'base64'));
  const rest = format === 'full' ? decode.data.subarray(prefill.data.length) : decode.data;
  const [count, layers, topK] = decode.shape as [number, number, number];
  const all = format === 'full' ? count : count + prefill.shape[0]!;
  const merged = encodeNpy(Buffer.concat([prefill.data, rest]), '|u1', [all, layers, topK]);
  body.choices[0].routed_experts = merged.toString('base64');
  return Buffer.from(JSON.stringify(body));
}

// ---- measuring

/** Measures one window, in GB/s. */
function measure({ bytes, run }: Case, seconds: number): number {
  const started = performance.now();
  const end = started + seconds * 1000;
  let runs = 0;
  let now = started;
  // Large enough a batch that the clock is read only about once in 0.1 ms.
  const batch = Math.max(1, Math.round((1 << 20) / bytes));
  while (now < end) {
    for (let i = 0; i < batch; i++) run();
    runs += batch;
    now = performance.now();
  }
  return (bytes * runs) / ((now - started) * 1e6);
}

/** Nanoseconds for each byte of a response that arrives in pieces of one byte. */
function singles(tokens: number): { bytes: number; nanoseconds: Spread } {
  const bodies = render({ tokens, layers: 48, topK: 8, dtype: '|u1' });
  const body = bodies.decodeReply.full;
  const prefillAt = place(bodies.prefillReply);
  const at = place(body);
  const values: number[] = [];
  for (let i = 0; i < 6; i++) {
    capture(prefillAt, bodies.prefillReply.length);
    const started = performance.now();
    must(splice(at, body.length, false, 1) === body.length, 'splice');
    if (i > 0) values.push(((performance.now() - started) * 1e6) / body.length);
  }
  wasm['free']!(prefillAt);
  wasm['free']!(at);
  return { bytes: body.length, nanoseconds: spread(values) };
}

const of = ({ median, least, most }: Spread) => `${digits(median)} (${digits(least)}..${digits(most)})`;

await runMain(import.meta.url, () => {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, repeats: { type: 'string' } } });
  const seconds = Number(values.seconds ?? 0.2);
  const repeats = Number(values.repeats ?? 5);
  if (!(seconds > 0 && seconds <= 60 && repeats >= 1 && repeats <= 100)) {
    throw new Problem('--seconds is a number up to 60, --repeats one from 1 to 100.');
  }
  const started = load();
  const groups = [
    ...kernels(IN_CACHE, '64 KiB'),
    ...kernels(IN_MEMORY, `${IN_MEMORY >> 20} MiB`),
    ...merges(),
  ];
  const results = new Map<Case, number[]>();
  for (let repeat = 0; repeat < repeats; repeat++) {
    for (const { wasm, copy, node } of groups) {
      for (const one of [wasm, copy, ...(node ? [node] : [])]) {
        if (repeat === 0) measure(one, seconds / 2);
        results.set(one, [...(results.get(one) ?? []), measure(one, seconds)]);
      }
    }
  }
  const rows = groups.map(({ name, goal, wasm, copy, node }) => {
    const speed = spread(results.get(wasm)!);
    return [
      name,
      of(speed),
      goal === undefined ? '' : `${goal}: ${speed.median >= goal ? 'met' : 'missed'}`,
      of(spread(results.get(copy)!)),
      node ? of(spread(results.get(node)!)) : '',
      node?.name ?? '',
    ];
  });
  const single = [64, 256, 1024].map(singles);
  const text = [
    '# Micro-benchmarks',
    '',
    `    ${['npm run bench:micro', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' ')}`,
    '',
    `${describeMachine()}; load average ${started} before, ${load()} after. Functions of build/test.wasm (the filter's sources), ` +
      `optimizing compiler only; GB/s, median (least..most) of ${repeats} windows of ${seconds} s, interleaved.`,
    '',
    "A merge counts the response's bytes, and does what the filter does to both legs, with one copy of each byte in and one out; " +
      "memory.copy beside it copies prefill's reply once.",
    '',
    ...table(['what', 'wasm GB/s', 'goal', 'memory.copy GB/s', 'Node GB/s', 'in Node by'], rows),
    '',
    'A response that comes in pieces of one byte, which must not cost more a byte when it is longer:',
    '',
    ...table(
      ['bytes', 'ns a byte'],
      single.map(({ bytes, nanoseconds }) => [String(bytes), of(nanoseconds)]),
    ),
    '',
  ].join('\n');
  console.log(text);
  mkdirSync(join(ROOT, 'bench', 'results'), { recursive: true });
  writeFileSync(join(ROOT, 'bench', 'results', 'micro.md'), text);
});
