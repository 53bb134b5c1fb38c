// The messages of one exchange, and how their JSON is written: with members in any order and any
// white space.

import type { Header } from '../scenario.ts';
import type { Random } from '../unit/random.ts';

/** What the legs of an exchange send, before any damage. */
export interface Messages {
  path: string;
  request: string;
  prefill: { headers: Header[]; body: string };
  decode: { headers: Header[]; body: string };
  config: Record<string, unknown>;
  /** False means that it is not known how the exchange ends. */
  merges: boolean;
  /** How the exchange ends. Default: merged. */
  ends?: 'merged' | 'local' | 'absent' | 'rejected';
  /** The model, if it is known. */
  model?: { layers: number; top_k: number; experts: number };
  /** The prefill leg fails. */
  fails?: boolean;
  note: string;
}

/** Text that is written into a document as it is. */
export class Raw {
  constructor(readonly text: string) {}
}

type Space = () => string;

const latin1 = (text: string) => Buffer.from(text, 'utf8').toString('latin1');

function render(value: unknown, space: Space): string {
  if (value instanceof Raw) return value.text;
  const around = (text: string) => space() + text + space();
  if (Array.isArray(value))
    return `[${value.map((item) => around(render(item, space))).join(',')}${space()}]`;
  if (typeof value !== 'object' || value === null) return latin1(JSON.stringify(value));
  const members = Object.entries(value).map(
    ([key, item]) => around(latin1(JSON.stringify(key))) + ':' + around(render(item, space)),
  );
  return `{${members.join(',')}${space()}}`;
}

const TEXTS = [
  ...[
    'hello',
    '',
    'she said "routed_experts":"k05VTVBZ" \\',
    '{"choices":[{"routed_experts":"AAAA"}]}',
    'é\u{1f600}漢',
  ],
  ...['\u0000\u001f\u007f', 'a\nb\tc\r', '\\', '"', 'data: {"x":1}\n\n', 'x'.repeat(300), ']}', '\ud800'],
];

/** The style in which all messages of one exchange are written. */
export class Style {
  readonly #space: Space;
  readonly #ordered: boolean;
  readonly #lineEnd: string;

  constructor(private readonly random: Random) {
    this.#space = random.chance(0.7) ? () => '' : () => random.pick(['', '', ' ', '\n', '\t ', '\r\n']);
    this.#ordered = random.chance(0.5);
    this.#lineEnd = random.pick(['\n', '\r\n', '\r']);
  }

  words(): string {
    return this.random.pick(TEXTS);
  }

  order(value: object): object {
    return this.#ordered ? value : Object.fromEntries(this.random.shuffled(Object.entries(value)));
  }

  write(value: unknown): string {
    return render(value, this.#space);
  }

  /** Writes documents as events, each on one line. */
  events(documents: unknown[]): string {
    const texts = documents.map((each) => render(each, () => ''));
    const end = this.#lineEnd;
    return [...texts, '[DONE]'].map((event) => `data: ${event}${end}${end}`).join('');
  }
}

export const JSON_TYPE: Header[] = [['content-type', 'application/json']];
export const EVENTS_TYPE: Header[] = [['content-type', 'text/event-stream; charset=utf-8']];

/** The reply of a Mooncake bootstrap server: its data-parallel ranks. */
export function ranksOf(random: Random): string {
  const ranks = Array.from({ length: random.between(1, 3) }, (_, rank) => [
    String(rank),
    { engine_id: `engine-${random.below(1000)}`, worker_addr: { 0: { 0: 'tcp://127.0.0.1:1' } } },
  ]);
  return JSON.stringify(Object.fromEntries(ranks));
}
