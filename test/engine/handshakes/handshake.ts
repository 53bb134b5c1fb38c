// The interface of an engine's KV connector: how two engines agree that one takes over the other's
// KV.

import { ApiError, type Call } from '../call.ts';
import type { Choice, External } from '../compute.ts';
import type { KvParams } from '../fleet.ts';
import type { EngineRequest } from '../../scenario.ts';

/** What the two engines have agreed on for one call. */
export interface Agreement {
  /** Where the KV of the `p`-th prompt comes from; null if this engine computes it. */
  external(p: number): External | null;
  /** Another engine continues the answer, so this engine stops after the first token. */
  prefillOnly?: boolean;
  /** Called when the call has been computed. Returns the `kv_transfer_params` of the reply. */
  end?(choices: readonly Choice[], id: string): KvParams | null;
}

export interface Handshake {
  /**
   * Called before a call is computed. Throws an `ApiError`, or returns a promise that is rejected
   * with one, if the handshake fails.
   */
  begin(call: Call, request: EngineRequest): Agreement | Promise<Agreement>;
  /**
   * The body of the reply to a GET that belongs to the handshake; null if the handshake has no such
   * path.
   */
  get?(path: string): object | null;
  /**
   * Called when the engine has refused a request that came with these parameters. `die` ends the
   * engine's process.
   */
  refused?(params: KvParams, die: () => void): void;
  /** Called when a new process replaces the engine. */
  restart?(): void;
}

/** The engine works alone: no KV comes from another engine, and none goes to one. */
export const ALONE: Agreement = { external: () => null };

export function kvError(message: string): ApiError {
  return new ApiError(400, `kv_transfer_params: ${message}`, 'BadRequestError', 'kv_transfer_params');
}
