// What an engine's KV connector has to define: how two engines agree that one has the other's KV.

import { ApiError, type Call } from '../call.ts';
import type { Choice, External } from '../compute.ts';
import type { KvParams } from '../fleet.ts';
import type { EngineRequest } from '../../scenario.ts';

/** What the engines agreed on for one call. */
export interface Agreement {
  /** Where the KV of the `p`-th prompt comes from; null where it is computed here. */
  external(p: number): External | null;
  /** Another engine goes on with the answer: this one ends it with the first token. */
  prefillOnly?: boolean;
  /** Told what was computed; gives the reply's `kv_transfer_params`. */
  end?(choices: readonly Choice[], id: string): KvParams | null;
}

export interface Handshake {
  /** Before a call is computed. Throws, or is rejected with, an `ApiError`. */
  begin(call: Call, request: EngineRequest): Agreement | Promise<Agreement>;
  /** Body of the answer to a GET that belongs to the handshake; null: it has no such path. */
  get?(path: string): object | null;
  /** The process is a new one. */
  restart?(): void;
}

/** Nothing comes from another engine, nothing goes to one. */
export const ALONE: Agreement = { external: () => null };

export function kvError(message: string): ApiError {
  return new ApiError(400, `kv_transfer_params: ${message}`, 'BadRequestError', 'kv_transfer_params');
}
