// SGLang's endpoints, a request for each of them, and the place of the rows in their replies.

import type { Json } from './exchanges.ts';

export const NATIVE = '/generate';
export const COMPLETIONS = '/v1/completions';
export const CHAT = '/v1/chat/completions';

export const BODIES: Record<string, Json> = {
  [NATIVE]: { text: 'The quick brown fox', sampling_params: { max_new_tokens: 7 } },
  [COMPLETIONS]: { prompt: 'The quick brown fox', max_tokens: 7 },
  [CHAT]: { messages: [{ role: 'user', content: 'The quick "fox"' }], max_tokens: 7 },
};

export const bytes = (base64: string): Buffer => Buffer.from(base64, 'base64');
export const int32 = (raw: Buffer): number[] =>
  Array.from({ length: raw.length / 4 }, (_, i) => raw.readInt32LE(i * 4));

/** The arrays of a reply, at whichever place it has them. */
export function arraysOf(reply: Json): Buffer[] {
  const list = Array.isArray(reply) ? reply : [reply];
  return list.map((item) => bytes(item['meta_info']?.routed_experts ?? item['sglext'].routed_experts));
}

/** Number of bytes of one row of the default model. */
export const ROW = 4 * 4 * 4;
