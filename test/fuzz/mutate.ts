// Damages the structure of a JSON text, the arrays in it, or its bytes. Texts are latin1.

import type { Random } from '../unit/random.ts';
import { parse, type Node } from './json.ts';

/** Values that may replace the value of a member. */
const VALUES = [
  ...['null', 'true', 'false', '0', '-1', '1', '2', '5', '7', '1e3', '1.0', '-0', '3.5', 'NaN', '-Infinity'],
  ...[
    '9007199254740993',
    '18446744073709551616',
    '1E400',
    '""',
    '"x"',
    '"null"',
    '"\\u0000"',
    '"\\/\\"\\\\"',
  ],
  ...[
    '[]',
    '{}',
    '[[]]',
    '[null]',
    '[[[1,2],[3,4]]]',
    '{"data":"AAAA","shape":[1,1,1],"start":0}',
    '"k05VTVBZ"',
  ],
  ...['"k05VTVBZAQB2AHsnZGVzY3InOiAnfHUxJywg"', '{"do_remote_prefill":true}', '[{"routed_experts":"AAAA"}]'],
];

const KEYS = [
  ...['routed_experts', 'routed\\u005fexperts', 'Routed_Experts', 'routed_experts ', 'choices', 'usage'],
  ...['prompt_tokens', 'completion_tokens', 'token_ids', 'kv_transfer_params', 'prompt_routed_experts'],
  ...[
    'meta_info',
    'sglext',
    'n',
    'max_tokens',
    'min_tokens',
    'stream',
    'sampling_params',
    'prompt',
    '',
    'index',
  ],
  ...[
    'extra_args',
    'vllm_xargs',
    'echo',
    'prompt_logprobs',
    'max_completion_tokens',
    'stream_options',
    '__proto__',
  ],
  ...['routed_experts_prompt_start', 'cache_hit_threshold', 'k\\u0076_transfer_params'],
];

function nodesOf(root: Node): Node[] {
  const out: Node[] = [];
  const open = [root];
  for (let node = open.pop(); node; node = open.pop()) {
    out.push(node);
    open.push(...node.items, ...node.members.map(([, child]) => child));
  }
  return out;
}

const splice = (text: string, start: number, end: number, by: string) =>
  text.slice(0, start) + by + text.slice(end);

type Edit = (random: Random, text: string, root: Node) => string | null;

const randomValue = (random: Random, text: string, root: Node): string => {
  // Sometimes the value is one that the document already contains.
  if (random.chance(0.2)) {
    const node = random.pick(nodesOf(root));
    return text.slice(node.start, node.end);
  }
  if (random.chance(0.03)) return '['.repeat(random.between(1, 600)) + ']'.repeat(random.between(1, 600));
  return random.pick(VALUES);
};

const STRUCTURE: Record<string, Edit> = {
  replace(random, text, root) {
    const node = random.pick(nodesOf(root));
    return splice(text, node.start, node.end, randomValue(random, text, root));
  },
  insert(random, text, root) {
    const objects = nodesOf(root).filter(({ kind }) => kind === 'object');
    if (objects.length === 0) return null;
    const { start, end, members } = random.pick(objects);
    const member = `"${random.pick(KEYS)}":${randomValue(random, text, root)}`;
    if (random.chance(0.5))
      return splice(text, start + 1, start + 1, members.length > 0 ? `${member},` : member);
    return splice(text, end - 1, end - 1, members.length > 0 ? `,${member}` : member);
  },
  repeat(random, text, root) {
    const nodes = nodesOf(root).filter(({ members, items }) => members.length + items.length > 0);
    if (nodes.length === 0) return null;
    const { kind, members, items, end, start } = random.pick(nodes);
    const i = random.below(kind === 'object' ? members.length : items.length);
    const child = kind === 'object' ? members[i]![1] : items[i]!;
    const value = random.chance(0.5) ? text.slice(child.start, child.end) : randomValue(random, text, root);
    const again = kind === 'object' ? `${JSON.stringify(members[i]![0])}:${value}` : value;
    return random.chance(0.5)
      ? splice(text, end - 1, end - 1, `,${again}`)
      : splice(text, start + 1, start + 1, `${again},`);
  },
  rename(random, text, root) {
    const objects = nodesOf(root).filter(({ members }) => members.length > 0);
    if (objects.length === 0) return null;
    const [key] = random.pick(random.pick(objects).members);
    const written = JSON.stringify(key);
    return text.replace(`${written}:`, `"${random.pick(KEYS)}":`);
  },
  count(random, text, root) {
    const numbers = nodesOf(root).filter(({ kind }) => kind === 'number');
    if (numbers.length === 0) return null;
    const { start, end } = random.pick(numbers);
    const by = Number(text.slice(start, end)) + random.pick([-1, 1, 1, 7]);
    return splice(text, start, end, String(by));
  },
  wrap(_random, text) {
    return `[${text}]`;
  },
  behind(random, text) {
    return text + random.pick([' ', '\n', 'x', '{}', '\0', text, ',', '}']);
  },
};

/** Base64 strings in the members that hold arrays. */
const ARRAY = /(?<="(?:routed_experts|data)"\s*:\s*)"[A-Za-z0-9+/=]*"/g;
const FILE = 'k05VTVBZ';

/** Damages rows that have no header. */
function damagedRows(random: Random, data: Buffer): Buffer {
  switch (random.below(4)) {
    case 0:
      return data.subarray(0, random.below(data.length + 1));
    case 1:
      return Buffer.concat([data, random.bytes(random.between(1, 40))]);
    case 2:
      return Buffer.concat([data, data]);
    default:
      return unknownRows(random, data, 0);
  }
}

/**
 * Replaces some bytes from `from` on by those of a row that the engine does not know: all bits set.
 */
function unknownRows(random: Random, bytes: Buffer, from: number): Buffer {
  const copy = Buffer.from(bytes);
  const at = from + random.below(copy.length - from + 1);
  copy.fill(0xff, at, Math.min(copy.length, at + random.between(1, copy.length - from + 1)));
  return copy;
}

/** Damages the `.npy` file that an array's text encodes. */
function damagedFile(random: Random, file: Buffer): Buffer {
  const version = file[6]!;
  const start = version === 1 ? 10 : 12;
  const length = file.length < start ? 0 : version === 1 ? file.readUInt16LE(8) : file.readUInt32LE(8);
  const size = Math.min(start + length, file.length);
  const [head, data] = [file.subarray(0, size), file.subarray(size)];
  const text = (edit: (dictionary: string) => string): Buffer => {
    const dictionary = Buffer.from(edit(head.toString('latin1', start)), 'latin1');
    const prefix = Buffer.from(head.subarray(0, Math.min(start, head.length)));
    if (prefix.length === 10) prefix.writeUInt16LE(dictionary.length & 0xffff, 8);
    return Buffer.concat([prefix, dictionary, data]);
  };
  const flipped = (from: number, to: number): Buffer => {
    const copy = Buffer.from(file);
    if (to > from) copy[from + random.below(to - from)]! ^= 1 << random.below(8);
    return copy;
  };
  switch (random.below(12)) {
    case 0:
      return file.subarray(0, random.below(file.length + 1));
    case 1:
      return Buffer.concat([file, random.bytes(random.between(1, 40))]);
    case 2:
      return text((of) =>
        of.replace(
          /\((\d+),/,
          (_, rows: string) => `(${Math.max(0, Number(rows) + random.pick([-1, 1, 10]))},`,
        ),
      );
    case 3:
      return text((of) => of.replace('False', random.pick(['True', 'false', '0', 'Fals'])));
    case 4:
      return text((of) =>
        of.replace(
          /'[|<][iu]\d'/,
          random.pick(["'|u1'", "'<u2'", "'<i2'", "'<i4'", "'>u2'", "'<f4'", '[]', "'"]),
        ),
      );
    case 5:
      return text((of) =>
        of.replace(/, (\d+), (\d+)\)/, (_, layers: string, topK: string) => `, ${topK}, ${layers})`),
      );
    case 6:
      return text((of) =>
        of.replace(
          /\(.*\)/,
          random.pick([
            '()',
            '(1,)',
            '(1, 2)',
            '(4294967296, 4294967296, 4294967296)',
            '(01, 1, 1)',
            '(-1, 1, 1)',
            '(1, 0, 1)',
            '(99999999999999999999, 1, 1)',
            '(1, 1048576, 2)',
          ]),
        ),
      );
    case 7: {
      const copy = Buffer.from(file);
      if (copy.length > 8) copy[6 + random.below(2)] = random.below(5);
      return copy;
    }
    case 8:
      return flipped(0, Math.min(start, file.length));
    case 9:
      return flipped(0, size);
    case 10:
      return unknownRows(random, file, size);
    default:
      return text((of) => of.replace(/ *\n$/, `${' '.repeat(random.below(200))}\n`));
  }
}

function damagedText(random: Random, text: string): string {
  const at = random.below(text.length + 1);
  switch (random.below(7)) {
    case 0:
      return splice(
        text,
        at,
        at + 1,
        random.pick(['-', '_', '=', ' ', '*', '\\/', '\\u0041', '\n', '\x80', 'A', '/']),
      );
    case 1:
      return text.slice(0, at);
    case 2:
      return text + 'A'.repeat(random.between(1, 5));
    case 3:
      return text.replace(/=+$/, '');
    case 4:
      return `${text}=`;
    case 5:
      return splice(text, at, at + random.between(1, 8), '');
    // Damages the bits of the base64 that encode no byte.
    default:
      return text.replace(/.(?==*$)/, () => random.pick([...'ABCDEFGHQgwx/'])).replace(/$/, '');
  }
}

export function mutateArrays(random: Random, text: string): string | null {
  const arrays = [...text.matchAll(ARRAY)];
  if (arrays.length === 0) return null;
  const { 0: array, index } = random.pick(arrays);
  const inner = array.slice(1, -1);
  const by = random.chance(0.6)
    ? (inner.startsWith(FILE) ? damagedFile : damagedRows)(random, Buffer.from(inner, 'base64')).toString(
        'base64',
      )
    : damagedText(random, inner);
  return splice(text, index, index + array.length, `"${by}"`);
}

function mutateBytes(random: Random, text: string): string {
  const at = random.below(text.length + 1);
  const n = random.between(1, 20);
  const strange = () =>
    random.pick([
      ...'{}[]",:\\ \n0123456789eE+-.tfnNI',
      '\0',
      '\x1f',
      '\x7f',
      '\x80',
      '\xff',
      '\xef\xbb\xbf',
    ]);
  switch (random.below(6)) {
    case 0:
      return splice(text, at, at + 1, strange());
    case 1:
      return splice(text, at, at, strange());
    case 2:
      return splice(text, at, at + n, '');
    case 3:
      return text.slice(0, at);
    case 4:
      return splice(text, at, at, text.slice(at, at + n));
    default:
      return random.pick(['\xef\xbb\xbf', '\xff\xfe', ' ', '\n\n', '']) + text;
  }
}

/** Returns the damaged JSON text, and a note of what was done. */
export function mutate(random: Random, text: string): [text: string, note: string] {
  const kind = random.next();
  if (kind < 0.4) {
    const damaged = mutateArrays(random, text);
    if (damaged !== null) return [damaged, 'array'];
  }
  if (kind < 0.75) {
    const root = parse(text);
    if (root) {
      const name = random.pick(Object.keys(STRUCTURE));
      const damaged = STRUCTURE[name]!(random, text, root);
      if (damaged !== null) return [damaged, name];
    }
  }
  return [mutateBytes(random, text), 'bytes'];
}

/** The same for a stream: damages one of its documents, its lines, or its bytes. */
export function mutateStream(random: Random, text: string): [text: string, note: string] {
  const kind = random.next();
  const lines = text.split('\n');
  const documents = lines.flatMap((line, i) => (line.startsWith('data: {') ? [i] : []));
  if (kind < 0.7 && documents.length > 0) {
    const arrays = documents.filter((i) => /"(data|routed_experts)"\s*:\s*["[{]/.test(lines[i]!));
    const i = random.pick(arrays.length > 0 && random.chance(0.6) ? arrays : documents);
    const [damaged, note] = mutate(random, lines[i]!.slice(6));
    lines[i] = `data: ${damaged}`;
    return [lines.join('\n'), `event: ${note}`];
  }
  if (kind < 0.85) {
    const i = random.below(lines.length);
    const other = random.pick([
      '',
      'data: [DONE]',
      ': ping',
      'event: x',
      'data:',
      'data: {}',
      'dat',
      lines[random.below(lines.length)]!,
    ]);
    lines.splice(i, random.below(2), other);
    return [lines.join('\n'), 'line'];
  }
  return [mutateBytes(random, text), 'bytes'];
}
