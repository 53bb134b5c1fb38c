// vLLM's HTTP API: reads requests and writes replies, streams and errors as vLLM does.

import type { Answer, Api } from '../api.ts';
import type { ApiError, Call, Endpoint } from '../call.ts';
import type { Fleet } from '../fleet.ts';
import type { Format } from '../formats/format.ts';
import { versionOf, type CachedTokens, type EngineOptions, type Version } from '../options.ts';
import type { MoeModel } from '../router.ts';
import { wholeReply } from './reply.ts';
import { ENDPOINTS, parseCall } from './request.ts';
import { eventsOf, failureEvents } from './stream.ts';

/** What every reply needs to know, whatever the request. */
export interface Context {
  model: string;
  version: Version;
  fingerprint: string;
  format: Format;
  cachedTokens: CachedTokens | undefined;
  streamArrays: boolean;
  loseStreamArray: boolean;
}

const ID_PREFIX: Partial<Record<Endpoint, string>> = {
  completions: 'cmpl-',
  chat: 'chatcmpl-',
  generate: 'generate-tokens-',
};

export class Vllm implements Api {
  readonly owner = 'vllm';
  readonly endpoints = ENDPOINTS;
  readonly #context: Context;

  constructor(
    private readonly options: EngineOptions,
    private readonly model: MoeModel,
    private readonly maxModelLen: number,
    private readonly fleet: Fleet,
    format: Format,
  ) {
    const version = versionOf(options);
    this.#context = {
      model: model.name,
      version,
      fingerprint: `vllm-${version}.0-${fleet.hex(8)}`,
      format,
      cachedTokens: options.cachedTokens,
      streamArrays: options.streamArrays ?? false,
      loseStreamArray: options.loseStreamArray ?? false,
    };
  }

  parse(endpoint: Endpoint, contentType: string, body: Buffer): Call {
    return parseCall(endpoint, contentType, body, {
      model: this.model.name,
      vocab: this.model.vocab,
      maxModelLen: this.maxModelLen,
      promptStart: this.#context.version !== '0.21' && !this.options.ignorePromptStart,
    });
  }

  newId({ endpoint }: Call, requestId: string | undefined): string {
    return ID_PREFIX[endpoint]! + (requestId ?? this.fleet.hex(16));
  }

  whole(answer: Answer): object {
    return wholeReply(answer, this.#context);
  }

  events(answer: Answer): string[] {
    return eventsOf(answer, this.#context);
  }

  failure(error: ApiError): string[] {
    return failureEvents(this.refusal(error));
  }

  refusal({ status, message, type, param }: ApiError): object {
    return { error: { message, type, param, code: status } };
  }
}
