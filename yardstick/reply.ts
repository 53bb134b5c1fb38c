// Reads the replies of every endpoint, whole or as a stream of events, with their routing.

import { createParser } from 'eventsource-parser';
import { joined, readArray, type Captured } from './arrays.ts';

type Json = Record<string, unknown>;

export interface Choice {
  index: number;
  /** The ids of the generated tokens, if the reply has them. */
  tokens: number[] | null;
  text: string;
  /** Null if the reply has no array for this choice. */
  array: Captured | null;
  /** What is wrong with the array, if it cannot be read. */
  unreadable: string | null;
}

export interface Reply {
  choices: Choice[];
  promptTokens: number | null;
  /** The number of tokens of all choices. */
  completionTokens: number | null;
  /** What the engine reports as found in a cache. */
  cachedTokens: number | null;
  promptIds: number[] | null;
}

/** Thrown for a body that is no reply of an engine. */
export class NoReply extends Error {}

/** Reads the body of a reply with status 200. */
export function readReply(body: Buffer, contentType: string): Reply {
  const text = body.toString();
  const streamed = contentType.startsWith('text/event-stream');
  const documents = streamed ? eventsOf(text) : [parsed(text)];
  const reader = new Reader(streamed);
  for (const document of documents) reader.read(document);
  return reader.end();
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new NoReply(`the body is not JSON: ${text.slice(0, 100)}`);
  }
}

function eventsOf(text: string): unknown[] {
  const events: unknown[] = [];
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data !== '[DONE]') events.push(parsed(data));
    },
  });
  parser.feed(text);
  return events;
}

interface Open {
  tokens: number[] | null;
  text: string;
  prompt: unknown;
  own: unknown;
}

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const numberOf = (value: unknown): number | null => (typeof value === 'number' ? value : null);
const idsOf = (value: unknown): number[] | null =>
  Array.isArray(value) && value.every((id) => typeof id === 'number') ? (value as number[]) : null;

class Reader {
  readonly #choices = new Map<number, Open>();
  #promptTokens: number | null = null;
  #completionTokens: number | null = null;
  #cachedTokens: number | null = null;
  #promptIds: number[] | null = null;
  /** The prompt rows, or all rows, that stand beside the choices. */
  #besidePrompt: unknown;
  #beside: unknown;

  constructor(private readonly streamed: boolean) {}

  read(document: unknown): void {
    if (Array.isArray(document)) return document.forEach((item, i) => this.#native(item as Json, i));
    if (!isObject(document)) throw new NoReply('the body is no object');
    if ('error' in document || document['object'] === 'error') {
      throw new NoReply(`an error: ${JSON.stringify(document).slice(0, 300)}`);
    }
    if ('meta_info' in document && 'output_ids' in document) {
      return this.#native(document, numberOf(document['index']) ?? 0);
    }
    const { choices, usage, sglext } = document;
    if (!Array.isArray(choices)) throw new NoReply('the body has no choices');
    this.#usage(usage);
    this.#promptIds ??= idsOf(document['prompt_token_ids']);
    this.#besidePrompt ??= document['prompt_routed_experts'];
    if (isObject(sglext)) this.#beside ??= sglext['routed_experts'];
    for (const choice of choices as Json[]) this.#openAi(choice);
  }

  end(): Reply {
    const choices = [...this.#choices]
      .sort(([a], [b]) => a - b)
      .map(([index, open]) => this.#closed(index, open));
    const counted = choices.reduce<number | null>(
      (sum, { tokens }) => (sum === null || tokens === null ? null : sum + tokens.length),
      0,
    );
    return {
      choices,
      promptTokens: this.#promptTokens ?? this.#promptIds?.length ?? null,
      completionTokens: this.#completionTokens ?? counted,
      cachedTokens: this.#cachedTokens,
      promptIds: this.#promptIds,
    };
  }

  #open(index: number): Open {
    let open = this.#choices.get(index);
    if (!open)
      this.#choices.set(index, (open = { tokens: null, text: '', prompt: undefined, own: undefined }));
    return open;
  }

  #openAi(choice: Json): void {
    const open = this.#open(numberOf(choice['index']) ?? 0);
    const { message, delta, text, meta_info: meta } = choice;
    const said = isObject(message) ? message['content'] : isObject(delta) ? delta['content'] : text;
    if (typeof said === 'string') open.text += said;
    const tokens = idsOf(choice['token_ids']);
    if (tokens) open.tokens = [...(open.tokens ?? []), ...tokens];
    this.#promptIds ??= idsOf(choice['prompt_token_ids']);
    open.prompt ??= choice['prompt_routed_experts'];
    open.own ??= choice['routed_experts'];
    if (isObject(meta)) open.own ??= meta['routed_experts'];
  }

  /** One element of SGLang's `/generate`. */
  #native(item: Json, index: number): void {
    const open = this.#open(index);
    const { text, meta_info: meta } = item;
    if (!isObject(meta)) throw new NoReply('an element without meta_info');
    const reason = meta['finish_reason'];
    if (isObject(reason) && reason['type'] === 'abort')
      throw new NoReply(`an abort: ${JSON.stringify(reason)}`);
    const tokens = idsOf(item['output_ids']) ?? [];
    const before = open.tokens ?? [];
    // An event of a stream has all tokens so far, or with an option of SGLang's the new ones only.
    const all = before.every((id, i) => tokens[i] === id) && tokens.length >= before.length;
    open.tokens = all ? tokens : [...before, ...tokens];
    if (typeof text === 'string') open.text = all ? text : open.text + text;
    open.own ??= meta['routed_experts'];
    open.prompt ??= meta['prompt_routed_experts'];
    this.#promptTokens ??= numberOf(meta['prompt_tokens']);
    this.#cachedTokens ??= numberOf(meta['cached_tokens']);
  }

  #usage(usage: unknown): void {
    if (!isObject(usage)) return;
    this.#promptTokens ??= numberOf(usage['prompt_tokens']);
    this.#completionTokens = numberOf(usage['completion_tokens']) ?? this.#completionTokens;
    const details = usage['prompt_tokens_details'];
    if (isObject(details)) this.#cachedTokens ??= numberOf(details['cached_tokens']);
  }

  #closed(index: number, { tokens, text, prompt, own }: Open): Choice {
    const choice: Choice = { index, tokens, text, array: null, unreadable: null };
    const values = [prompt ?? this.#besidePrompt, own ?? (index === 0 ? this.#beside : undefined)];
    const [first, second] = values.map((value) => value ?? null);
    try {
      if (second !== null && first !== null) choice.array = joined(readArray(first), readArray(second));
      else if (second !== null) choice.array = readArray(second);
    } catch (error) {
      choice.unreadable = (error as Error).message;
    }
    // A stream that ends with an empty event stream has neither text nor tokens.
    if (this.streamed && choice.tokens === null && text === '') choice.text = '';
    return choice;
  }
}
