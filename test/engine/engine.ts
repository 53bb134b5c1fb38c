// A simulated engine: its API, its P/D handshake, and the routing it returns, valid or not, as the real one does.

import type { Api } from './api.ts';
import { ApiError, type Call } from './call.ts';
import { ModelRunner } from './compute.ts';
import { Fleet } from './fleet.ts';
import { npyFormat } from './formats/npy.ts';
import { createHandshake } from './handshakes/index.ts';
import type { Agreement, Handshake } from './handshakes/handshake.ts';
import { header, pathOf, split } from './http.ts';
import { toJson } from './json.ts';
import { DEFAULT_MODEL, type EngineOptions, type Failure } from './options.ts';
import type { MoeModel } from './router.ts';
import { Vllm } from './vllm/api.ts';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export * from './options.ts';

export interface SimulatedEngine extends Engine {
  (request: EngineRequest): EngineReply;
  readonly options: Readonly<EngineOptions>;
  readonly model: Readonly<MoeModel>;
  readonly fleet: Fleet;
  /** Every request so far, in order. */
  readonly requests: EngineRequest[];
  /** The engine process has died; every further request is reset. */
  dead: boolean;
}

const FIXED_NOW = Date.UTC(2026, 10, 23, 9, 42, 38);

/** An engine; engines that exchange KV share `options.fleet`. */
export function createEngine(options: EngineOptions): SimulatedEngine {
  const core = new Core(options);
  const engine = (request: EngineRequest): EngineReply => core.handle(request);
  return Object.defineProperties(engine, {
    options: { value: options },
    model: { value: core.runner.model },
    fleet: { value: core.fleet },
    requests: { value: core.requests },
    dead: { get: () => core.dead, set: (dead: boolean) => void (core.dead = dead) },
  }) as unknown as SimulatedEngine;
}

/** The engine process is gone: the client whose request killed it still gets an answer. */
class EngineDeath extends Error {}

class Core {
  readonly fleet: Fleet;
  readonly runner: ModelRunner;
  readonly requests: EngineRequest[] = [];
  dead = false;
  readonly #options: EngineOptions;
  readonly #api: Api;
  readonly #handshake: Handshake;
  #posts = 0;

  constructor(options: EngineOptions) {
    this.#options = options;
    this.fleet = options.fleet ?? new Fleet();
    const model = { ...DEFAULT_MODEL, ...options.model };
    this.runner = new ModelRunner(model, options.maxModelLen ?? 131_072, options);
    this.#handshake = createHandshake(options, this.fleet);
    const format = npyFormat(model, options.npy);
    this.#api = new Vllm(options, model, this.runner.maxModelLen, this.fleet, format);
  }

  handle(request: EngineRequest): EngineReply {
    this.requests.push(request);
    if (this.dead) return { status: 500, headers: [], chunks: [], fault: 'reset' };
    if (request.method !== 'POST') return this.#get(request);
    const { fail } = this.#options;
    const ordinal = ++this.#posts;
    const failure = typeof fail === 'function' ? fail(ordinal, request) : fail?.[ordinal];
    return failure ? this.#failed(failure, request) : this.#post(request);
  }

  #failed(failure: Failure, request: EngineRequest): EngineReply {
    const { status, body, headers, fault, keepBytes } = failure;
    if (fault === 'reset' || fault === 'stall') return { status: 500, headers: [], chunks: [], fault };
    let reply =
      status === undefined && body === undefined
        ? this.#post(request)
        : body === undefined
          ? this.#refuse(new ApiError(status!, 'simulated failure', 'InternalServerError'), request)
          : this.#reply(status ?? 200, 'application/json', [Buffer.from(body)]);
    if (headers) reply = { ...reply, headers };
    if (!fault) return reply;
    const whole = Buffer.concat(reply.chunks);
    const kept = whole.subarray(0, keepBytes ?? whole.length >> 1);
    return { ...reply, chunks: this.#pieces([kept]), fault };
  }

  #get(request: EngineRequest): EngineReply {
    const path = pathOf(request);
    const known = path in this.#api.endpoints;
    if (request.method !== 'GET' || known) return this.#detail(known ? 405 : 404);
    if (path === '/health') return this.#reply(200, null, []);
    if (path !== '/v1/models') return this.#detail(404);
    const created = Math.floor(this.#now() / 1000);
    const { name } = this.runner.model;
    const card = { id: name, object: 'model', created, owned_by: this.#api.owner, root: name, parent: null };
    return this.#json(200, { object: 'list', data: [{ ...card, max_model_len: this.runner.maxModelLen }] });
  }

  #post(request: EngineRequest): EngineReply {
    const endpoint = this.#api.endpoints[pathOf(request)];
    if (!endpoint) return this.#detail(404);
    try {
      const call = this.#api.parse(endpoint, header(request, 'content-type') ?? '', request.body);
      return this.#serve(call, this.#handshake.begin(call, request), request);
    } catch (error) {
      if (error instanceof ApiError) return this.#refuse(error, request);
      if (!(error instanceof EngineDeath)) throw error;
      this.dead = true;
      return this.#refuse(new ApiError(500, '', 'InternalServerError'), request);
    }
  }

  #serve(call: Call, agreed: Agreement, request: EngineRequest): EngineReply {
    const prompts = call.prompts.map((prompt, p) => {
      const remote = agreed.remote(p);
      if (remote) this.#survive(call, prompt.tokens.length);
      return this.runner.prefill(prompt, remote);
    });
    const choices = prompts.flatMap((of, p) =>
      Array.from({ length: call.n }, (_, c) => this.runner.generate(call, of, p * call.n + c, c)),
    );
    const id = this.#api.newId(call.endpoint, header(request, 'x-request-id'));
    const created = Math.floor(this.#now() / 1000);
    const kv = agreed.end?.(choices, id) ?? null;
    const answer = { call, choices, id, created, kv };
    if (!call.stream) return this.#json(200, this.#api.whole(answer));
    const events = this.#api.events(answer).map((event) => Buffer.from(event));
    return this.#reply(200, 'text/event-stream; charset=utf-8', events);
  }

  /** vLLM's engine process ends when it is asked for what only a forward pass over the prompt can tell. */
  #survive(call: Call, promptTokens: number): void {
    if (call.promptLogprobs !== null) throw new EngineDeath('prompt_logprobs of tokens never forwarded');
    const capturing = this.#options.capture !== false && this.#options.version === '0.32';
    if (capturing && call.routedExpertsPromptStart !== promptTokens) {
      throw new EngineDeath('routing of tokens never forwarded');
    }
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
