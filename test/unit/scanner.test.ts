// The scanner compared with JSON.parse, and its events compared with a walk over the parsed tree.

import { describe, expect, test } from 'vitest';
import { Random, withSeeds } from './random.ts';
import { Event, lend, peek, wasm } from './wasm.ts';

const PATHS = ['', 'a', 'a.*', 'a.*.b', 'a.*.b.c', 'd', 'd.e', 'd.e.*', 'routed_experts', 'x.y.z'];

function watch(paths: readonly string[]): void {
  wasm['clearPaths']!();
  paths.forEach((path, id) => {
    const bytes = Buffer.from(path);
    wasm['addPath']!(lend(bytes), bytes.length, id);
  });
}

function accepts(text: string | Buffer): boolean {
  const bytes = Buffer.from(text as string);
  return wasm['accepts']!(lend(bytes), bytes.length) !== 0;
}

function parses(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

interface Seen {
  path: string;
  start: number;
  end: number;
  first: string;
  index: number;
  keyStart: number;
  comma: number;
  count: number;
  integer: bigint;
}

/** All watched values in the order of their start; null when the document is refused. */
function scan(
  bytes: Buffer,
  paths: readonly string[],
  pieces: readonly number[] = [bytes.length],
): Seen[] | null {
  const seen: Seen[] = [];
  const open: Seen[] = [];
  wasm['scannerStart']!();
  let done = 0;
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const len = Math.min(pieces[Math.min(i, pieces.length - 1)]!, bytes.length - at);
    wasm['scannerFeed']!(lend(bytes.subarray(at, at + len)), len);
    at += len;
    for (let event = wasm['scannerNext']!(); event !== Event.More; event = wasm['scannerNext']!()) {
      if (event === Event.Failed) {
        expect(wasm['scannerNext']!()).toBe(Event.Failed);
        return null;
      }
      if (event === Event.Done) {
        done++;
        continue;
      }
      const path = paths[wasm['scannerId']!()]!;
      const offset = wasm['scannerOffset']!();
      if (event === Event.Value) {
        const value: Seen = {
          path,
          start: offset,
          end: -1,
          first: String.fromCharCode(wasm['scannerFirst']!()),
          index: wasm['scannerIndex']!(),
          keyStart: wasm['scannerKeyStart']!(),
          comma: wasm['scannerComma']!(),
          count: -1,
          integer: -1n,
        };
        seen.push(value);
        open.push(value);
      } else {
        const value = open.pop()!;
        expect(value.path).toBe(path);
        value.end = offset;
        if (value.first === '{' || value.first === '[') value.count = wasm['scannerCount']!();
        value.integer = wasm.scannerInteger();
      }
    }
  }
  if (wasm['scannerComplete']!() === 0) return null;
  expect(done).toBe(wasm['scannerDone']!());
  // A number at the root ends only with the document.
  if (open.length === 1 && done === 0) {
    Object.assign(open.pop()!, { end: bytes.length, integer: wasm.scannerInteger() });
  }
  expect(open).toEqual([]);
  return seen;
}

// ---- documents

interface Written {
  text: string;
  seen: Seen[];
}

/** Writes random documents, and records what a scanner must find in them. */
class Writer {
  private text = '';
  private seen: Seen[] = [];

  constructor(
    private random: Random,
    private paths: readonly string[],
  ) {}

  write(): Written {
    this.space();
    this.value('', 0, { index: 0, keyStart: -1, comma: -1 });
    this.space();
    return { text: this.text, seen: this.seen };
  }

  private get offset(): number {
    return Buffer.byteLength(this.text);
  }

  private space(): void {
    if (!this.random.chance(0.3)) return;
    for (let n = this.random.between(1, 3); n > 0; n--)
      this.text += this.random.pick([' ', '\n', '\r', '\t']);
  }

  private value(path: string | null, depth: number, place: Pick<Seen, 'index' | 'keyStart' | 'comma'>): void {
    const { random } = this;
    const start = this.offset;
    const watched = path !== null && this.paths.includes(path);
    const entry: Seen = {
      path: path ?? '',
      start,
      end: -1,
      first: '',
      count: -1,
      integer: -1n,
      ...place,
    };
    if (watched) this.seen.push(entry);
    const kind = random.below(depth < 6 ? 10 : 5);
    const from = this.text.length;
    if (kind === 0) this.text += random.pick(['true', 'false', 'null']);
    else if (kind < 3) entry.integer = this.number();
    else if (kind < 5) this.string();
    else entry.count = kind < 7 && depth > 0 ? this.array(path, depth) : this.object(path, depth);
    entry.end = this.offset;
    entry.first = this.text[from]!;
  }

  private number(): bigint {
    const { random } = this;
    const digits = random.pick(['0', '7', '10', '123456789', '99999999999999999', '999999999999999999']);
    const large = random.pick([digits, '1000000000000000000', '18446744073709551616', '9'.repeat(40)]);
    const integer = random.chance(0.2) ? large : digits;
    const rest = random.chance(0.5)
      ? ''
      : random.pick(['.0', '.25', 'e5', 'E+10', 'e-3', '.5E1', '.123456e+0', 'e00']);
    const sign = random.chance(0.2) ? '-' : '';
    this.text += sign + integer + rest;
    return sign === '' && rest === '' && integer.length <= 18 ? BigInt(integer) : -1n;
  }

  private string(): void {
    const { random } = this;
    let out = '"';
    for (let n = random.pick([0, 1, 5, 15, 16, 17, 40, 63, 64, 65, 130]); n > 0; n--) {
      out += random.chance(0.9)
        ? random.pick(['a', 'Z', '7', ' ', '{', ']', ':', ',', '/', 'é', '漢', '😀', '\x7f'])
        : random.pick(['\\"', '\\\\', '\\/', '\\b', '\\f', '\\n', '\\r', '\\t', '\\u0041', '\\uD83D\\ude00']);
    }
    this.text += out + '"';
  }

  private key(name: string): void {
    const { random } = this;
    let out = '';
    for (const c of name) {
      const hex = c.charCodeAt(0).toString(16).padStart(4, '0');
      out += random.chance(0.15) ? '\\u' + (random.chance(0.5) ? hex : hex.toUpperCase()) : c;
    }
    this.text += `"${out}"`;
  }

  private array(path: string | null, depth: number): number {
    const count = this.random.below(4);
    let comma = -1;
    this.text += '[';
    this.space();
    for (let index = 0; index < count; index++) {
      if (index > 0) {
        comma = this.offset;
        this.text += ',';
        this.space();
      }
      this.value(path === null ? null : join(path, '*'), depth + 1, { index, keyStart: -1, comma });
      this.space();
    }
    this.text += ']';
    return count;
  }

  private object(path: string | null, depth: number): number {
    const count = this.random.below(5);
    let comma = -1;
    this.text += '{';
    this.space();
    for (let index = 0; index < count; index++) {
      if (index > 0) {
        comma = this.offset;
        this.text += ',';
        this.space();
      }
      const names = [
        'a',
        'b',
        'c',
        'd',
        'e',
        'x',
        'y',
        'z',
        'routed_experts',
        'routed_expertz',
        '*',
        '',
        'aa',
      ];
      const name = this.random.pick([...names, 'a'.repeat(70), 'é', 'routed_experts_prompt_start']);
      const keyStart = this.offset;
      this.key(name);
      this.space();
      this.text += ':';
      this.space();
      const at = path === null || name === '*' || name === '' ? null : join(path, name);
      this.value(at, depth + 1, { index, keyStart, comma });
      this.space();
    }
    this.text += '}';
    return count;
  }
}

const join = (path: string, key: string) => (path === '' ? key : `${path}.${key}`);

/** Members that describe the place of a value are compared only where they have a meaning. */
function comparable(values: Seen[]): Seen[] {
  return values.map((value) => ({
    ...value,
    index: value.path === '' ? 0 : value.index,
    keyStart: value.path === '' || value.path.endsWith('*') ? -1 : value.keyStart,
    comma: value.path !== '' && value.index > 0 ? value.comma : -1,
  }));
}

describe('events', () => {
  test('tell start, end, place and size of every watched value, however the document is cut', () => {
    watch(PATHS);
    withSeeds(1500, (random) => {
      const { text, seen } = new Writer(random, PATHS).write();
      const bytes = Buffer.from(text);
      JSON.parse(text);
      const whole = scan(bytes, PATHS);
      expect(whole, text).not.toBeNull();
      expect(comparable(whole!), text).toEqual(comparable(seen));
      for (const value of whole!) JSON.parse(bytes.toString('utf8', value.start, value.end));
      for (const pieces of [[1], random.cuts(bytes.length, 7), random.cuts(bytes.length, 70)]) {
        expect(comparable(scan(bytes, PATHS, pieces)!), text).toEqual(comparable(whole!));
      }
    });
  });

  test('are the same when the document is split in two at any byte', () => {
    watch(PATHS);
    withSeeds(60, (random) => {
      const bytes = Buffer.from(new Writer(random, PATHS).write().text);
      const whole = comparable(scan(bytes, PATHS)!);
      for (let cut = 1; cut < bytes.length; cut++) {
        expect(comparable(scan(bytes, PATHS, [cut, bytes.length])!), `cut at ${cut}`).toEqual(whole);
      }
    });
  });

  test('tell both of two equal keys', () => {
    watch(PATHS);
    const seen = scan(Buffer.from('{"a":1,"\\u0061":2,"a":[]}'), PATHS)!;
    expect(seen.map(({ path, integer }) => [path, integer])).toEqual([
      ['', -1n],
      ['a', 1n],
      ['a', 2n],
      ['a', -1n],
    ]);
  });

  test('do not take a longer, shorter or similar key for a watched one', () => {
    watch(['routed_experts']);
    const keys = [
      'routed_expert',
      'routed_expertsx',
      'Routed_experts',
      'routed_experts\\u0000',
      'routed_expertſ',
    ];
    for (const key of [...keys, '\\ud800routed_experts', 'routed_experts ', '', '\\u0172outed_experts'])
      expect(scan(Buffer.from(`{"${key}":1}`), ['routed_experts']), key).toEqual([]);
  });

  test('see a key in which any character is an escape', () => {
    const key = 'routed_experts';
    watch([key]);
    for (let i = 0; i < key.length; i++) {
      const hex = key.charCodeAt(i).toString(16).padStart(4, '0');
      const text = `{"${key.slice(0, i)}\\u${hex}${key.slice(i + 1)}":5}`;
      for (let cut = 1; cut < text.length; cut++) {
        expect(scan(Buffer.from(text), [key], [cut, text.length])?.[0]?.integer).toBe(5n);
      }
    }
  });

  test('watch down to the eighth level', () => {
    const path = 'a.b.c.d.e.f.g.h';
    watch([path]);
    const open = path.split('.').map((key) => `{"${key}":`);
    expect(scan(Buffer.from(`${open.join('')}1${'}'.repeat(8)}`), [path])).toHaveLength(1);
    expect(scan(Buffer.from(`{"z":${open.join('')}1${'}'.repeat(9)}`), [path])).toHaveLength(0);
    expect(scan(Buffer.from(`${open.slice(0, 7).join('')}[${open[7]}1}]${'}'.repeat(7)}`), [path])).toEqual(
      [],
    );
  });

  test('give integers below 10^18 and nothing for other numbers', () => {
    watch(['']);
    const integer = (text: string) => scan(Buffer.from(`${text} `), [''])?.[0]?.integer;
    for (const text of ['0', '1', '42', '999999999999999999', '100000000000000000'])
      expect(integer(text)).toBe(BigInt(text));
    for (const text of [
      '-0',
      '-5',
      '1.0',
      '1e2',
      '0.5',
      '0e1',
      '1000000000000000000',
      '9'.repeat(19),
      '9'.repeat(99),
    ])
      expect(integer(text)).toBe(-1n);
    for (const text of ['true', 'null', '"12"', '[12]', '{"a":12}']) expect(integer(text)).toBe(-1n);
  });

  test('start again after a reset', () => {
    watch(['a']);
    const bytes = Buffer.from('{"a":1}');
    for (const before of ['{"a":[', '{"a":1}', '{]', '"\\u00', '']) {
      wasm['scannerStart']!();
      wasm['scannerFeed']!(lend(Buffer.from(before)), before.length);
      for (let i = 0; i < 9; i++) wasm['scannerNext']!();
      wasm['scannerReset']!();
      wasm['scannerFeed']!(lend(bytes), bytes.length);
      const events = Array.from({ length: 4 }, () => wasm['scannerNext']!());
      expect(events).toEqual([Event.Value, Event.ValueEnd, Event.Done, Event.More]);
    }
  });
});

// ---- grammar

const NUMBERS = [
  '0',
  '-0',
  '1',
  '-1',
  '10',
  '0.0',
  '0.10',
  '-1.5',
  '1e1',
  '1E1',
  '1e+1',
  '1e-1',
  '0e0',
  '-0.0e-0',
];
const NOT_NUMBERS = [
  '01',
  '-',
  '+1',
  '.5',
  '1.',
  '1.e1',
  '1e',
  '1e+',
  '0x1',
  '-a',
  '1a',
  '00',
  '-01',
  '1..2',
  '1ee1',
  '1e1.5',
  '--1',
  '1_000',
  '１',
];
const OTHERS = [
  '',
  ' ',
  'tru',
  'truee',
  'True',
  'nul',
  'nulll',
  'fals',
  '{',
  '}',
  '[',
  ']',
  '{]',
  '[}',
  '[1,]',
  '[,1]',
  '[1 2]',
  '{"a"}',
  '{"a":}',
  '{"a":1,}',
  '{,"a":1}',
  '{a:1}',
  "{'a':1}",
  '{"a":1 "b":2}',
  '{"a" 1}',
  '{"a":1:2}',
  '[1]]',
  '{}{}',
  '1 2',
  '"a',
  'a"',
  '"\\"',
  '"\\x"',
  '"\\u12"',
  '"\\u12g4"',
  '"\\U0041"',
  '"\\u 041"',
  '/**/1',
  '[1//\n]',
  '\ufeff{}',
  '\u00a0{}',
  '\v1',
  '\f1',
  '{"a":1}\0',
  'undefined',
  '[1,2',
  '"\\u"',
  '{"a":1',
  '{"a":1,',
  '{"a',
  '{"a\\',
  '[[]',
  '{"":{}',
];
const GOOD = [
  '{}',
  '[]',
  ' [ ] ',
  '{"a":{}}',
  '[[],[]]',
  '""',
  '"\\u0000"',
  '"\\ud800"',
  'true',
  'null',
  ' false ',
  '\t\r\n1\n',
  '{"a":1,"a":2}',
  '["\u2028\u2029"]',
  '"\x7f"',
  '[0,-0,1e5]',
  '{"":""}',
];

describe('grammar', () => {
  test('accepts and refuses what JSON.parse does', () => {
    for (const text of [...NUMBERS, ...NOT_NUMBERS, ...OTHERS, ...GOOD]) {
      for (const wrapped of [text, ` ${text}\n`, `[${text}]`, `{"k":${text}}`, `[0,${text},1]`]) {
        expect(accepts(wrapped), JSON.stringify(wrapped)).toBe(parses(wrapped));
      }
    }
  });

  test('accepts NaN, Infinity and -Infinity, as Python does, and nothing like them', () => {
    for (const text of ['NaN', 'Infinity', '-Infinity']) {
      for (const wrapped of [text, `[${text}]`, `{"a":${text}}`])
        expect(accepts(wrapped), wrapped).toBe(true);
      for (let cut = 0; cut < text.length; cut++)
        expect(accepts(text.slice(0, cut)), text.slice(0, cut)).toBe(false);
    }
    for (const text of [
      '-NaN',
      'nan',
      'NAN',
      'inf',
      'Inf',
      '+Infinity',
      'Infinityx',
      'NaN1',
      '-Inf',
      '--Infinity',
    ])
      expect(accepts(text), text).toBe(false);
  });

  test('refuses every control character in strings and keys, at each position', () => {
    for (let c = 0; c < 0x20; c++) {
      for (const at of [0, 1, 15, 16, 17, 63, 64, 65, 100]) {
        const text = 'x'.repeat(at) + String.fromCharCode(c) + 'y'.repeat(80);
        expect(accepts(`"${text}"`), `${c} at ${at}`).toBe(false);
        expect(accepts(`{"${text}":1}`), `${c} at ${at}`).toBe(false);
      }
    }
  });

  test('takes only the escapes of the grammar', () => {
    for (let c = 0x20; c < 0x7f; c++) {
      const text = `"\\${String.fromCharCode(c)}0041"`;
      expect(accepts(text), text).toBe(parses(text));
      const hex = `"\\u0${String.fromCharCode(c)}41"`;
      expect(accepts(hex), hex).toBe(parses(hex));
    }
  });

  test('goes 512 levels deep and no deeper', () => {
    const nest = (n: number, open: string, close: string) => open.repeat(n) + '1' + close.repeat(n);
    expect(accepts(nest(512, '[', ']'))).toBe(true);
    expect(accepts(nest(512, '{"a":', '}'))).toBe(true);
    expect(accepts(nest(256, '[{"a":', '}]'))).toBe(true);
    expect(accepts(nest(511, '{"a":', '}'))).toBe(true);
    expect(accepts(nest(513, '[', ']'))).toBe(false);
    expect(accepts(nest(513, '{"a":', '}'))).toBe(false);
    // A sibling does not add to the depth.
    expect(accepts(`[${nest(511, '[', ']')},${nest(511, '{"":', '}')}]`)).toBe(true);
    watch([]);
    scan(Buffer.from(nest(513, '[', ']')), []);
    expect(wasm['scannerTooDeep']!()).toBe(1);
    scan(Buffer.from('[}'), []);
    expect(wasm['scannerTooDeep']!()).toBe(0);
  });

  test('knows an object from an array at every depth', () => {
    for (let depth = 1; depth <= 512; depth += 1) {
      const open = '['.repeat(depth - 1);
      const close = ']'.repeat(depth - 1);
      expect(accepts(`${open}{"a":1}${close}`)).toBe(true);
      expect(accepts(`${open}{"a":1]${close}`)).toBe(false);
      expect(accepts(`${open}[1}${close}`)).toBe(false);
    }
  });

  test('agrees with JSON.parse on every truncation of a document', () => {
    watch(PATHS);
    withSeeds(60, (random) => {
      const { text } = new Writer(random, PATHS).write();
      for (let end = 0; end <= text.length; end++) {
        const part = text.slice(0, end);
        // A cut through a surrogate pair becomes U+FFFD for both parsers.
        expect(accepts(part), part).toBe(parses(part));
      }
    });
  });

  test('agrees with JSON.parse on mutated documents', () => {
    watch(PATHS);
    let accepted = 0;
    let all = 0;
    withSeeds(1500, (random) => {
      const { text } = new Writer(random, PATHS).write();
      for (let i = 0; i < 15; i++) {
        const mutant = mutate(text, random);
        // The scanner also accepts NaN, Infinity and -Infinity, which JSON.parse refuses.
        if (/NaN|Infinity/.test(mutant)) continue;
        const expected = parses(mutant);
        expect(accepts(mutant), JSON.stringify(mutant)).toBe(expected);
        all++;
        if (expected) accepted++;
      }
    });
    // The test says something only if both verdicts are common.
    if (all > 1000) {
      expect(accepted / all).toBeGreaterThan(0.1);
      expect(accepted / all).toBeLessThan(0.9);
    }
  });
});

describe('inside values that nobody watches', () => {
  /** A compact document, as engines write it. The scanner passes it one member at a time. */
  const compact = (random: Random, depth: number): string => {
    const kind = depth === 0 ? random.below(4) : random.below(6);
    if (kind === 0)
      return JSON.stringify('x'.repeat(random.below(40)) + random.pick(['', '"', '\u00e9', '\n']));
    if (kind === 1) return random.pick(['true', 'false', 'null']);
    if (kind < 4) {
      const digits = (n: number) => Array.from({ length: n }, () => random.below(10)).join('');
      const whole = random.pick(['0', `${random.between(1, 9)}${digits(random.below(18))}`]);
      const fraction = random.chance(0.6) ? `.${digits(random.between(1, 34))}` : '';
      const exponent = random.chance(0.2)
        ? random.pick(['e', 'E']) + random.pick(['', '+', '-']) + digits(random.between(1, 18))
        : '';
      return random.pick(['', '-']) + whole + fraction + exponent;
    }
    const items = Array.from({ length: random.below(5) }, () => compact(random, depth - 1));
    if (kind === 4) return `[${items.join(random.pick([',', ', ']))}]`;
    return `{${items.map((item) => `"${'k'.repeat(random.below(20))}":${item}`).join(',')}}`;
  };

  const document = (random: Random) => {
    const logprobs = Array.from({ length: random.between(1, 6) }, () => compact(random, 4)).join(',');
    return `{"logprobs":{"content":[${logprobs}]},"choices":[{"index":0}],"z":"${'z'.repeat(200)}"}`;
  };

  test('agrees with JSON.parse, also on mutants', () => {
    watch(PATHS);
    withSeeds(2000, (random) => {
      const text = document(random);
      expect(accepts(text), text).toBe(true);
      for (let i = 0; i < 10; i++) {
        const mutant = mutate(text, random);
        if (/NaN|Infinity/.test(mutant)) continue;
        expect(accepts(mutant), JSON.stringify(mutant)).toBe(parses(mutant));
      }
    });
  });

  test('refuses what is nested too deep, wherever it is', () => {
    watch(PATHS);
    for (const [depth, taken] of [
      [509, true],
      [600, false],
    ] as const) {
      const text = `{"a":{"b":1,"c":${'['.repeat(depth)}${']'.repeat(depth)}},"z":"${'z'.repeat(2000)}"}`;
      expect(accepts(text)).toBe(taken);
    }
  });
});

function mutate(text: string, random: Random): string {
  let out = text;
  for (let n = random.between(1, 2); n > 0; n--) {
    const at = random.below(out.length + 1);
    const noise = random.pick([
      '"',
      '\\',
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      '0',
      '1',
      '-',
      '.',
      'e',
      'u',
      ' ',
      '\n',
      '\t',
      '\x01',
      'a',
      'null',
      '""',
    ]);
    const kind = random.below(4);
    if (kind === 0) out = out.slice(0, at) + noise + out.slice(at);
    else if (kind === 1) out = out.slice(0, at) + out.slice(at + random.between(1, 4));
    else if (kind === 2) out = out.slice(0, at) + noise + out.slice(at + 1);
    else {
      const from = random.below(out.length + 1);
      out = out.slice(0, at) + out.slice(from, from + random.below(12)) + out.slice(at);
    }
  }
  return out;
}

describe('plainEnd', () => {
  const find = (bytes: Buffer, from: number, to: number) => {
    const ptr = lend(bytes);
    return (wasm['plainEnd']!(ptr + from, ptr + to) >>> 0) - ptr;
  };

  test('finds a quote, a backslash or a control character at each position and alignment', () => {
    for (const stop of [0x22, 0x5c, 0x00, 0x0a, 0x1f]) {
      for (let from = 0; from < 17; from++) {
        for (let at = from; at < from + 150; at += from % 4 === 0 ? 1 : 7) {
          const bytes = Buffer.alloc(200, 'x');
          bytes[at] = stop;
          bytes[at + 3] = 0x22;
          expect(find(bytes, from, 190)).toBe(at);
        }
      }
    }
  });

  test('stops for no other byte', () => {
    const all = Buffer.from(Array.from({ length: 256 }, (_, c) => c));
    for (let c = 0; c < 256; c++) {
      const stops = c < 0x20 || c === 0x22 || c === 0x5c;
      for (const [at, len] of [
        [0, 1],
        [5, 16],
        [20, 64],
        [70, 130],
      ] as const) {
        const bytes = Buffer.alloc(len + 3, 'y');
        const place = Math.min(at, len - 1);
        bytes[place] = all[c]!;
        expect(find(bytes, 0, len)).toBe(stops ? place : len);
      }
    }
  });

  test('does not look behind its end', () => {
    for (let len = 0; len <= 200; len++) {
      const bytes = Buffer.alloc(len + 64, '"');
      bytes.fill('a', 0, len);
      expect(find(bytes, 0, len)).toBe(len);
    }
  });
});

test('memory of the module is readable after it grew', () => {
  const bytes = Buffer.alloc(3 << 20, 'z');
  expect(peek(lend(bytes), bytes.length).equals(bytes)).toBe(true);
});
