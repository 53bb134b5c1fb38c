// What the engines of one deployment share: the blocks that prefill engines have handed out, and the KV store.

import { createHash } from 'node:crypto';
import { derive } from './router.ts';
import { toJson } from './json.ts';

export type KvParams = Record<string, unknown>;

/** KV of one prompt, kept by a prefill engine until a decode engine pulls it. */
export interface Handout {
  params: KvParams;
  tokens: readonly number[];
  consumed: boolean;
}

export class Fleet {
  readonly handouts = new Map<string, Handout>();
  readonly #stored = new Set<string>();
  #serial = 0;

  /** Lower-case hex digits, never the same twice in one fleet. */
  hex(digits: number): string {
    const serial = ++this.#serial;
    let text = '';
    for (let salt = 0; text.length < digits; salt++) {
      text += derive(Math.imul(serial, 0x01000193), salt).toString(16).padStart(8, '0');
    }
    return text.slice(0, digits);
  }

  uuid(): string {
    const h = this.hex(32);
    return `${h.slice(0, 8)}-${h.slice(8, 12)}-4${h.slice(13, 16)}-a${h.slice(17, 20)}-${h.slice(20)}`;
  }

  handOut(requestId: string, params: KvParams, tokens: readonly number[]): void {
    this.handouts.set(requestId, { params, tokens, consumed: false });
  }

  /** The handout that `params` name, or why decode cannot have it. */
  claim(params: KvParams, tokens: readonly number[]): Handout | string {
    const id = params['remote_request_id'];
    const handout = typeof id === 'string' ? this.handouts.get(id) : undefined;
    if (!handout) return `remote_request_id ${JSON.stringify(id)} was not handed out`;
    for (const [key, value] of Object.entries(handout.params)) {
      if (toJson(params[key]) !== toJson(value)) return `${key} is not what prefill handed out`;
    }
    for (const key of Object.keys(params))
      if (!(key in handout.params)) return `${key} is not what prefill handed out`;
    if (handout.consumed) return `remote_request_id ${JSON.stringify(id)} was consumed`;
    if (!sameTokens(handout.tokens, tokens)) return 'remote blocks hold another prompt';
    return handout;
  }

  store(tokens: readonly number[]): void {
    this.#stored.add(digest(tokens));
  }

  isStored(tokens: readonly number[]): boolean {
    return this.#stored.has(digest(tokens));
  }
}

function sameTokens(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((token, i) => token === b[i]);
}

function digest(tokens: readonly number[]): string {
  return createHash('sha256').update(Int32Array.from(tokens)).digest('base64');
}
