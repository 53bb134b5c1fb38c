// Converts text to token ids and back. Encoding gives one token per UTF-8 byte; generated ids also
// stand for longer pieces of text.

export const BOS = 1;
export const EOS = 2;
const FIRST_BYTE = 3;
const FIRST_PIECE = FIRST_BYTE + 256;

/** Texts that a model may well produce and that would trip a careless scanner of JSON. */
const PIECES = [
  ' the',
  ' routed_experts',
  '"',
  '\\',
  '"routed_experts":"k05VTVBZ',
  '\n',
  ' 狐',
  '🦊',
  '}]}',
  '\u0000',
  '\t',
  ' kv_transfer_params":{',
  '\u007f',
  'data: [DONE]\n\n',
  ' é',
  ' layer',
];

/** The token ids of `text`. */
export function encode(text: string): number[] {
  return Array.from(Buffer.from(text, 'utf8'), (byte) => byte + FIRST_BYTE);
}

/** The token ids of a conversation, up to where the assistant's answer begins. */
export function encodeChat(messages: readonly { role: string; content: string }[]): number[] {
  const turns = messages.flatMap(({ role, content }) => [
    BOS,
    ...encode(`${role}\n${content}`),
    EOS,
    ...encode('\n'),
  ]);
  return [...turns, BOS, ...encode('assistant\n')];
}

/**
 * Turns ids into text one by one. A character that is split over several tokens appears with its
 * last one.
 */
export class Detokenizer {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  push(id: number): string {
    if (id >= FIRST_BYTE && id < FIRST_PIECE) {
      return this.#decoder.decode(Uint8Array.of(id - FIRST_BYTE), { stream: true });
    }
    return this.end() + piece(id);
  }

  end(): string {
    return this.#decoder.decode();
  }
}

/** The text of the token ids `ids`. */
export function decode(ids: ArrayLike<number>): string {
  const detokenizer = new Detokenizer();
  const parts: string[] = [];
  for (let i = 0; i < ids.length; i++) parts.push(detokenizer.push(ids[i]!));
  return parts.join('') + detokenizer.end();
}

function piece(id: number): string {
  if (id < FIRST_BYTE) return '';
  return PIECES[(id - FIRST_PIECE) % (PIECES.length * 4)] ?? ` w${id}`;
}
