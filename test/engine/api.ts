// What an engine's HTTP API has to define: what it accepts, and how it answers.

import type { ApiError, Call, Endpoint } from './call.ts';
import type { Choice } from './compute.ts';
import type { KvParams } from './fleet.ts';

/** Everything that a reply is made of. */
export interface Answer {
  call: Call;
  choices: Choice[];
  id: string;
  /** Seconds. */
  created: number;
  kv: KvParams | null;
}

export interface Api {
  readonly owner: string;
  readonly endpoints: Readonly<Record<string, Endpoint>>;
  /** Throws an `ApiError`. */
  parse(endpoint: Endpoint, contentType: string, body: Buffer): Call;
  /** The reply's id; `requestId` is the client's, from the header. */
  newId(call: Call, requestId: string | undefined): string;
  whole(answer: Answer): object;
  /** Server-sent events, each with its end. */
  events(answer: Answer): string[];
  /** Events of a stream that has begun and has to end with this. */
  failure(error: ApiError, call: Call): string[];
  /** Body of the reply to a request that is refused. */
  refusal(error: ApiError, endpoint: Endpoint): object;
}
