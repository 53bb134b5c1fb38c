// The requests that show whether a deployment returns right rows: what differs between them is what
// decides which engine forwards which token, and which slots of its KV cache rows are read from.

import type { Reply } from './reply.ts';
import type { Asked, Dialect, EndpointName, Prompt } from './requests.ts';

/** What a case is about; docs/verify.md says what each is for. */
export const KINDS = [
  ...['short', 'long', 'one token', 'prefix', 'repeated', 'later'],
  ...['turns', 'n', 'stream'],
] as const;
export type Kind = (typeof KINDS)[number];

/** One or more requests that are sent one after the other. */
export interface Conversation {
  kind: Kind;
  endpoint: EndpointName;
  /** The number of requests. */
  length: number;
  /** The `i`-th request, or null if it cannot be made of the replies so far. */
  ask(i: number, replies: readonly Reply[]): Asked | null;
  /**
   * The requests behind the first wait until all other conversations are over: caches may have
   * dropped by then what the first one left in them.
   */
  later?: boolean;
}

export interface Sizes {
  /** About the number of tokens of a long prompt. */
  long: number;
  maxTokens: number;
}

const WORDS = (
  'a an and as at back be before between both by cache came each engine every expert far few first for from ' +
  'gate give half hand has have if in into is it its keep key last layer left less like list long made many may ' +
  'more most much must near next no not now of off on one only or order other our out over part right road same ' +
  'see set she so some such sum take than that the them then there they this time to token two under up use very ' +
  'was way we well were what when where which who why will with work write year you'
).split(' ');

/** Random numbers that depend on the seed alone. */
export class Numbers {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) | 0;
  }

  /** A whole number below `bound`. */
  below(bound: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let x = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) % bound;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

/** Ids that are ordinary tokens in the vocabularies of today's models. */
const FIRST_ID = 300;
const IDS = 5_000;

class Prompts {
  constructor(readonly numbers: Numbers) {}

  /** A prompt of about `tokens` tokens in the form that the endpoint takes. */
  of(endpoint: EndpointName, tokens: number): Prompt {
    if (endpoint === 'chat') return [{ role: 'user', content: this.text(tokens) }];
    const asIds = endpoint === 'generate' || this.numbers.below(2) === 0;
    return asIds ? this.ids(tokens) : this.text(tokens);
  }

  ids(tokens: number): number[] {
    return Array.from({ length: tokens }, () => FIRST_ID + this.numbers.below(IDS));
  }

  /** Words have different numbers of tokens in different tokenizers, often one. */
  text(tokens: number): string {
    const words = Array.from({ length: Math.max(tokens, 1) }, () => this.numbers.pick(WORDS));
    return `${words.join(' ')} ${this.numbers.below(1e6)}`;
  }

  /** The prompt with more behind it. */
  longer(prompt: Prompt, tokens: number): Prompt {
    if (typeof prompt === 'string') return `${prompt} ${this.text(tokens)}`;
    if (typeof prompt[0] === 'number') return [...(prompt as number[]), ...this.ids(tokens)];
    const [message] = prompt as { role: string; content: string }[];
    return [{ ...message!, content: `${message!.content} ${this.text(tokens)}` }];
  }
}

type Make = (endpoint: EndpointName, prompts: Prompts, sizes: Sizes) => Conversation;

const same = (
  kind: Kind,
  endpoint: EndpointName,
  asked: Omit<Asked, 'endpoint'>[],
  later = false,
): Conversation => ({
  kind,
  endpoint,
  length: asked.length,
  ask: (i) => ({ endpoint, ...asked[i]! }),
  later,
});

const MAKE: Record<Kind, Make> = {
  short: (endpoint, prompts, { maxTokens }) =>
    same('short', endpoint, [{ prompt: prompts.of(endpoint, 1 + prompts.numbers.below(12)), maxTokens }]),
  long: (endpoint, prompts, { long, maxTokens }) =>
    same('long', endpoint, [
      { prompt: prompts.of(endpoint, (long >> 1) + prompts.numbers.below(long >> 1)), maxTokens },
    ]),
  'one token': (endpoint, prompts) =>
    same('one token', endpoint, [
      { prompt: prompts.of(endpoint, 20 + prompts.numbers.below(100)), maxTokens: 1 },
    ]),
  prefix(endpoint, prompts, { long, maxTokens }) {
    const shared = prompts.of(endpoint, long >> 2);
    const asked = [7, 30, 90].map((tokens) => ({ prompt: prompts.longer(shared, tokens), maxTokens }));
    return same('prefix', endpoint, asked);
  },
  repeated(endpoint, prompts, { long, maxTokens }) {
    const prompt = prompts.of(endpoint, 30 + prompts.numbers.below(long >> 2));
    return same('repeated', endpoint, [
      { prompt, maxTokens },
      { prompt, maxTokens },
    ]);
  },
  later(endpoint, prompts, { long, maxTokens }) {
    const prompt = prompts.of(endpoint, 30 + prompts.numbers.below(long >> 1));
    return same(
      'later',
      endpoint,
      [
        { prompt, maxTokens },
        { prompt, maxTokens },
      ],
      true,
    );
  },
  turns: (endpoint, prompts, sizes) => turns(endpoint, prompts, sizes),
  n: (endpoint, prompts, { maxTokens }) =>
    same('n', endpoint, [
      {
        prompt: prompts.of(endpoint, 20 + prompts.numbers.below(200)),
        maxTokens,
        n: 2 + prompts.numbers.below(2),
        seed: prompts.numbers.below(1e6),
      },
    ]),
  stream: (endpoint, prompts, { maxTokens }) =>
    same('stream', endpoint, [
      { prompt: prompts.of(endpoint, 20 + prompts.numbers.below(300)), maxTokens, stream: true },
    ]),
};

/**
 * A conversation as clients of trainers hold it: each turn sends all tokens so far, and asks for
 * the rows from the last known token on.
 */
function turns(endpoint: EndpointName, prompts: Prompts, { long, maxTokens }: Sizes): Conversation {
  const first = endpoint === 'chat' ? prompts.of('chat', long >> 3) : prompts.ids(long >> 3);
  const said = [20, 40].map((tokens) => (endpoint === 'chat' ? prompts.text(tokens) : prompts.ids(tokens)));
  let prompt = first;
  return {
    kind: 'turns',
    endpoint,
    length: 1 + said.length,
    ask(i, replies) {
      if (i === 0) return { endpoint, prompt: (prompt = first), maxTokens };
      const { promptTokens, choices } = replies[i - 1]!;
      const [answer] = choices;
      const tokens = answer?.tokens;
      if (!tokens || promptTokens === null) return null;
      if (typeof prompt[0] === 'number')
        prompt = [...(prompt as number[]), ...tokens, ...(said[i - 1] as number[])];
      else {
        const reply = { role: 'assistant', content: answer.text };
        prompt = [...(prompt as object[]), reply, { role: 'user', content: said[i - 1] }] as Prompt;
      }
      return { endpoint, prompt, maxTokens, start: promptTokens + tokens.length - 1 };
    },
  };
}

/** Whether the engines serve this kind of request on this endpoint, with an array in the reply. */
export function served(kind: Kind, endpoint: EndpointName, dialect: Dialect): boolean {
  // SGLang's engines hang on several samples of one prompt under P/D (SGLang 0.5.23).
  if (kind === 'n') return dialect === 'vllm';
  // vLLM's streams carry routing on `/inference/v1/generate` alone.
  if (kind === 'stream') return dialect === 'sglang' || endpoint === 'generate';
  return true;
}

/** Conversations of at least `requests` requests: every kind on every endpoint in turn. */
export function conversations(
  requests: number,
  endpoints: readonly EndpointName[],
  dialect: Dialect,
  sizes: Sizes & { seed: number; kinds: readonly Kind[] },
): Conversation[] {
  const numbers = new Numbers(sizes.seed);
  const prompts = new Prompts(numbers);
  const all = sizes.kinds.flatMap((kind) =>
    endpoints.filter((endpoint) => served(kind, endpoint, dialect)).map((endpoint) => ({ kind, endpoint })),
  );
  const made: Conversation[] = [];
  for (let i = 0, count = 0; count < requests && all.length > 0; i++) {
    const { kind, endpoint } = all[i % all.length]!;
    const conversation = MAKE[kind](endpoint, prompts, sizes);
    made.push(conversation);
    count += conversation.length;
  }
  return made;
}
