// What the engines of one deployment share: the blocks that prefill engines have handed out, the KV
// store, and the places where the two legs of a request meet.

import { toJson } from './json.ts';
import { Meeting } from './meeting.ts';
import type { Address } from './options.ts';
import { derive } from './router.ts';

export type KvParams = Record<string, unknown>;

/** The KV of one prompt, which a prefill engine keeps until a decode engine pulls it. */
export interface Handout {
  params: KvParams;
  tokens: readonly number[];
  consumed: boolean;
}

/** A prefill engine as a decode engine sees it. */
export interface PrefillEngine {
  readonly address: Address;
  /** The engine's ids, one per data-parallel rank. */
  readonly engineIds: readonly string[];
}

export class Fleet {
  readonly handouts = new Map<string, Handout>();
  readonly prefills = new Set<PrefillEngine>();
  /** The keys of the entries in the KV store. */
  readonly stored = new Set<string>();
  /** The Mooncake transfers whose KV a prefill engine keeps for a decode engine. */
  readonly kept = new Set<string>();
  readonly #meetings = new Map<string, Meeting>();
  #serial = 0;

  /** Lower-case hex digits that are unique within the fleet. */
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

  /** Drops the handouts of an engine that no longer exists. */
  forget(engineId: string): void {
    for (const [id, { params }] of this.handouts) {
      if (params['remote_engine_id'] === engineId) this.handouts.delete(id);
    }
  }

  /** The handout that `params` name, or the reason why the decode engine cannot have it. */
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

  /** The meeting of the two legs that share this key. */
  meeting(key: string): Meeting {
    let meeting = this.#meetings.get(key);
    if (!meeting) this.#meetings.set(key, (meeting = new Meeting()));
    return meeting;
  }

  prefillAt(host: string, port: number): PrefillEngine | undefined {
    return [...this.prefills].find(({ address }) => address.host === host && address.port === port);
  }
}

export function sameTokens(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((token, i) => token === b[i]);
}
