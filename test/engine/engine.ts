// A simulated engine: it answers requests through the API of the real engine, takes part in the P/D
// handshake, and returns routing as the real engine does, including invalid prompt rows.

import type { Api } from './api.ts';
import { ApiError, EngineDeath, EngineError, type Call } from './call.ts';
import { ModelRunner } from './compute.ts';
import { Fleet } from './fleet.ts';
import { object, parseJson, refused } from './fields.ts';
import { createFormat } from './formats/index.ts';
import { createHandshake } from './handshakes/index.ts';
import type { Agreement, Handshake } from './handshakes/handshake.ts';
import { header, pathOf, split } from './http.ts';
import { toJson } from './json.ts';
import {
  DEFAULT_MODEL,
  blockSizeOf,
  dialectOf,
  type EngineOptions,
  type Failure,
  type SequentialOptions,
} from './options.ts';
import type { MoeModel } from './router.ts';
import { Sglang } from './sglang/api.ts';
import { Vllm } from './vllm/api.ts';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export * from './options.ts';

export type Awaitable = EngineReply | Promise<EngineReply>;

export interface SimulatedEngine<Reply extends Awaitable = EngineReply> extends Engine {
  (request: EngineRequest): Reply;
  readonly options: Readonly<EngineOptions>;
  readonly model: Readonly<MoeModel>;
  readonly fleet: Fleet;
  /** All requests so far, in order. */
  readonly requests: EngineRequest[];
  /** Whether the engine process has died; every further request is then reset. */
  dead: boolean;
  /** Replaces the engine's process by a new one, which has another id and none of the KV. */
  restart(): void;
}

const FIXED_NOW = Date.UTC(2026, 10, 23, 9, 42, 38);

const APIS = { vllm: Vllm, sglang: Sglang };

/**
 * Creates an engine. Engines that exchange KV share `options.fleet`. An engine that waits for
 * another engine returns a promise.
 */
export function createEngine(options: EngineOptions & { role: 'oracle' }): SimulatedEngine;
export function createEngine(options: SequentialOptions): SimulatedEngine;
export function createEngine(options: EngineOptions): SimulatedEngine<Awaitable>;
export function createEngine(options: EngineOptions): SimulatedEngine<Awaitable> {
  const core = new Core(options);
  const engine = (request: EngineRequest): Awaitable => core.handle(request);
  return Object.defineProperties(engine, {
    options: { value: options },
    model: { value: core.runner.model },
    fleet: { value: core.fleet },
    requests: { value: core.requests },
    dead: { get: () => core.dead, set: (dead: boolean) => void (core.dead = dead) },
    restart: { value: () => core.restart() },
  }) as unknown as SimulatedEngine<Awaitable>;
}

class Core {
  readonly fleet: Fleet;
  readonly runner: ModelRunner;
  readonly requests: EngineRequest[] = [];
  dead = false;
  readonly #options: EngineOptions;
  readonly #api: Api;
  readonly #handshake: Handshake;
  #posts = 0;
  /** The number of requests that were computed. */
  #served = 0;

  constructor(options: EngineOptions) {
    this.#options = options;
    this.fleet = options.fleet ?? new Fleet();
    const { apiName, format } = dialectOf(options);
    const model = { ...DEFAULT_MODEL, ...options.model };
    // SGLang's rows are int32, however few the experts are.
    if (format === 'D') model.dtype = '<i4';
    if (apiName === 'sglang') model.zeroIds = 'own';
    const decodesAlone = apiName === 'sglang' && options.role === 'decode';
    this.runner = new ModelRunner(model, options.maxModelLen ?? 131_072, blockSizeOf(options), {
      ...options,
      // SGLang's decode mode turns its radix tree off
      // (sglang/srt/arg_groups/pd_disaggregation_hook.py).
      ...(decodesAlone ? { prefixCaching: options.decodeRadixCache ?? false } : {}),
    });
    this.#handshake = createHandshake(options, this.fleet);
    const { maxModelLen } = this.runner;
    this.#api = new APIS[apiName](
      options,
      model,
      maxModelLen,
      this.fleet,
      createFormat(format, model, options),
    );
  }

  restart(): void {
    this.dead = false;
    this.runner.restart();
    this.#handshake.restart?.();
  }

  handle(request: EngineRequest): Awaitable {
    this.requests.push(request);
    if (this.dead) return { status: 500, headers: [], chunks: [], fault: 'reset' };
    if (request.method !== 'POST') return this.#get(request);
    const { fail } = this.#options;
    const ordinal = ++this.#posts;
    const failure = typeof fail === 'function' ? fail(ordinal, request) : fail?.[ordinal];
    return failure ? this.#failed(failure, request) : this.#post(request);
  }

  #failed(failure: Failure, request: EngineRequest): Awaitable {
    const { status, body, headers, fault, keepBytes } = failure;
    if (fault === 'reset' || fault === 'stall') return { status: 500, headers: [], chunks: [], fault };
    const damaged = (reply: EngineReply): EngineReply => {
      const head = headers ? { ...reply, headers } : reply;
      if (!fault) return head;
      const whole = Buffer.concat(reply.chunks);
      const kept = whole.subarray(0, keepBytes ?? whole.length >> 1);
      return { ...head, chunks: this.#pieces([kept]), fault };
    };
    if (body !== undefined) {
      return damaged(this.#reply(status ?? 200, 'application/json', [Buffer.from(body)]));
    }
    if (status !== undefined) {
      return damaged(this.#refuse(new ApiError(status, 'simulated failure', 'InternalServerError'), request));
    }
    const reply = this.#post(request);
    return reply instanceof Promise ? reply.then(damaged) : damaged(reply);
  }

  #get(request: EngineRequest): EngineReply {
    const path = pathOf(request);
    const known = path in this.#api.endpoints;
    if (request.method !== 'GET' || known) return this.#detail(known ? 405 : 404);
    const own = this.#handshake.get?.(path);
    if (own) return this.#json(200, own);
    if (path === '/health') return this.#reply(200, null, []);
    if (path === '/metrics') return this.#reply(200, 'text/plain', [Buffer.from(this.#metrics())]);
    if (path !== '/v1/models') return this.#detail(404);
    const created = Math.floor(this.#now() / 1000);
    const { name } = this.runner.model;
    const card = { id: name, object: 'model', created, owned_by: this.#api.owner, root: name, parent: null };
    return this.#json(200, { object: 'list', data: [{ ...card, max_model_len: this.runner.maxModelLen }] });
  }

  /** The counter of requests, as vLLM and SGLang name it. */
  #metrics(): string {
    const { owner } = this.#api;
    const name = owner === 'sglang' ? 'sglang:num_requests_total' : 'vllm:request_success_total';
    return `# TYPE ${name} counter\n${name}{model_name="${this.runner.model.name}"} ${this.#served}.0\n`;
  }

  #post(request: EngineRequest): Awaitable {
    const endpoint = this.#api.endpoints[pathOf(request)];
    if (!endpoint) return this.#detail(404);
    let call: Call | null = null;
    try {
      const accepted = (call = this.#api.parse(
        endpoint,
        header(request, 'content-type') ?? '',
        request.body,
      ));
      this.#checkRank(request);
      const agreed = this.#handshake.begin(accepted, request);
      if (!(agreed instanceof Promise)) return this.#serve(accepted, agreed, request);
      return agreed
        .then((it) => this.#serve(accepted, it, request))
        .catch((error: unknown) => this.#ended(error, accepted, request));
    } catch (error) {
      return this.#ended(error, call, request);
    }
  }

  /** vLLM refuses a rank that the engine does not have; a header that is no number is ignored. */
  #checkRank(request: EngineRequest): void {
    const text = header(request, 'x-data-parallel-rank')?.trim() ?? '';
    const ranks = this.#options.ranks ?? 1;
    if (this.#api.owner !== 'vllm' || !/^[+-]?\d+$/.test(text) || (+text >= 0 && +text < ranks)) return;
    throw refused(`data_parallel_rank ${+text} is out of range [0, ${ranks}).`);
  }

  /**
   * The reply to a request that ended with `error`; `call` is null if the request was not accepted.
   */
  #ended(error: unknown, call: Call | null, request: EngineRequest): EngineReply {
    if (error instanceof EngineError && call?.stream) return this.#events(this.#api.failure(error, call));
    if (error instanceof ApiError) {
      this.#cleanUp(error, request);
      return this.#refuse(error, request);
    }
    if (!(error instanceof EngineDeath)) throw error;
    this.dead = true;
    return this.#refuse(new ApiError(500, '', 'InternalServerError'), request);
  }

  /**
   * What vLLM does about the KV that prefill keeps for a request which is refused. Its classes
   * refuse a request before anything knows of the KV, and `/inference/v1/generate` does nothing.
   */
  #cleanUp(error: ApiError, request: EngineRequest): void {
    const endpoint = this.#api.endpoints[pathOf(request)];
    if (error.by !== 'serving' || (endpoint !== 'completions' && endpoint !== 'chat')) return;
    const { kv_transfer_params: params } = object(parseJson(request.body), 'body');
    if (params) this.#handshake.refused?.(object(params, 'params'), () => (this.dead = true));
  }

  #serve(asked: Call, agreed: Agreement, request: EngineRequest): EngineReply {
    const call = agreed.prefillOnly ? firstToken(asked) : asked;
    const choices = this.runner.run(call, (p) => agreed.external(p));
    this.#served++;
    const id = this.#api.newId(call, header(request, 'x-request-id'));
    const created = Math.floor(this.#now() / 1000);
    const kv = agreed.end?.(choices, id) ?? null;
    const answer = { call, choices, id, created, kv };
    return call.stream ? this.#events(this.#api.events(answer)) : this.#json(200, this.#api.whole(answer));
  }

  #events(events: string[]): EngineReply {
    const type = 'text/event-stream; charset=utf-8';
    return this.#reply(
      200,
      type,
      events.map((event) => Buffer.from(event)),
    );
  }

  #json(status: number, value: object): EngineReply {
    return this.#reply(status, 'application/json', [Buffer.from(toJson(value))]);
  }

  #refuse(error: ApiError, request: EngineRequest): EngineReply {
    const endpoint = this.#api.endpoints[pathOf(request)] ?? 'completions';
    return this.#json(error.status, this.#api.refusal(error, endpoint));
  }

  #detail(status: 404 | 405): EngineReply {
    return this.#json(status, { detail: status === 404 ? 'Not Found' : 'Method Not Allowed' });
  }

  #reply(status: number, type: string | null, body: Buffer[]): EngineReply {
    const headers: Header[] = [
      ['date', new Date(this.#now()).toUTCString()],
      ['server', 'uvicorn'],
    ];
    const streamed = type?.startsWith('text/event-stream') || this.#options.omitContentLength;
    if (!streamed)
      headers.push(['content-length', String(body.reduce((sum, { length }) => sum + length, 0))]);
    if (type) headers.push(['content-type', type]);
    headers.push(['vary', 'Origin']);
    const { trailers } = this.#options;
    return { status, headers, chunks: this.#pieces(body), ...(trailers ? { trailers } : {}) };
  }

  #pieces(body: Buffer[]): Buffer[] {
    const { chunkBytes } = this.#options;
    const filled = body.filter(({ length }) => length > 0);
    return chunkBytes === undefined ? filled : split(Buffer.concat(filled), chunkBytes);
  }

  #now(): number {
    return this.#options.now?.() ?? FIXED_NOW;
  }
}

/** The call as a prefill engine runs it: it generates only the first token. */
function firstToken(call: Call): Call {
  const sglang = call.sglang && { ...call.sglang, prefillOnly: true };
  return { ...call, maxTokens: 1, minTokens: 0, ignoreEos: true, sglang };
}
