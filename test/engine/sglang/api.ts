// SGLang's HTTP API: reads requests and writes replies, streams and errors as SGLang does.

import type { Answer, Api } from '../api.ts';
import type { ApiError, Call, Endpoint } from '../call.ts';
import type { Fleet } from '../fleet.ts';
import type { Format } from '../formats/format.ts';
import type { CachedTokens, EngineOptions } from '../options.ts';
import type { MoeModel } from '../router.ts';
import { wholeReply } from './reply.ts';
import { ENDPOINTS, parseCall } from './request.ts';
import { eventsOf, failureEvents } from './stream.ts';

/** What every reply needs to know, whatever the request. */
export interface Context {
  format: Format;
  cachedTokens: CachedTokens | undefined;
  streamArrays: boolean;
  /** A new id for a further element of a reply that is a list. */
  newId(): string;
}

export class Sglang implements Api {
  readonly owner = 'sglang';
  readonly endpoints = ENDPOINTS;
  readonly #context: Context;

  constructor(
    options: EngineOptions,
    private readonly model: MoeModel,
    private readonly maxModelLen: number,
    private readonly fleet: Fleet,
    format: Format,
  ) {
    this.#context = {
      format,
      cachedTokens: options.cachedTokens,
      streamArrays: options.streamArrays ?? false,
      newId: () => fleet.hex(32),
    };
  }

  parse(endpoint: Endpoint, contentType: string, body: Buffer): Call {
    const { name, vocab } = this.model;
    return parseCall(endpoint, contentType, body, {
      model: name,
      vocab,
      maxModelLen: this.maxModelLen,
      promptStart: true,
    });
  }

  /** SGLang ignores the client's `x-request-id` header; only the member `rid` names a request. */
  newId(call: Call): string {
    return call.sglang!.requestId ?? this.fleet.hex(32);
  }

  whole(answer: Answer): object {
    return wholeReply(answer, this.#context);
  }

  events(answer: Answer): string[] {
    return eventsOf(answer, this.#context);
  }

  failure(error: ApiError, call: Call): string[] {
    return failureEvents(error, call, this.newId(call));
  }

  refusal({ status, message, type, param }: ApiError, endpoint: Endpoint): object {
    if (endpoint === 'native' && status === 400) return { error: { message } };
    // SGLang's scheduler errors carry the status as their type.
    const kind = status >= 500 ? String(status) : type;
    return { object: 'error', message, type: kind, param, code: status };
  }
}
