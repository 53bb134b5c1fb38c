// The interface of an engine's HTTP API: which requests it accepts, and how it writes its replies.

import type { ApiError, Call, Endpoint } from './call.ts';
import type { Choice } from './compute.ts';
import type { KvParams } from './fleet.ts';

/** What a reply is written from. */
export interface Answer {
  call: Call;
  choices: Choice[];
  id: string;
  /** Unix time in seconds. */
  created: number;
  kv: KvParams | null;
}

export interface Api {
  readonly owner: string;
  readonly endpoints: Readonly<Record<string, Endpoint>>;
  /** Reads and validates a request's body; throws an `ApiError` if the engine refuses it. */
  parse(endpoint: Endpoint, contentType: string, body: Buffer): Call;
  /** The id of the reply. `requestId` is the value of the client's `x-request-id` header. */
  newId(call: Call, requestId: string | undefined): string;
  whole(answer: Answer): object;
  /** The server-sent events of a streamed reply; each ends with its empty line. */
  events(answer: Answer): string[];
  /** The events that end a stream that has begun when the engine fails with `error`. */
  failure(error: ApiError, call: Call): string[];
  /** The body of the reply to a request that the engine refuses. */
  refusal(error: ApiError, endpoint: Endpoint): object;
}
