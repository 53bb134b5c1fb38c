// A simulated vLLM engine: its API, its P/D handshakes, and the routing it returns, valid or not, as the real one does.

import { ApiError, ENDPOINTS, parseCall, type Call, type Endpoint, type Prompt } from './request.ts';
import { Detokenizer, EOS, decode } from './tokenizer.ts';
import { Fleet, type Handout, type KvParams } from './fleet.ts';
import { encodeNpy, type NpyOptions } from './npy.ts';
import { toJson } from './json.ts';
import * as router from './router.ts';
import type { MoeModel, Rows } from './router.ts';
import type { Engine, EngineReply, EngineRequest, Header } from '../scenario.ts';

export type Role = 'prefill' | 'decode' | 'oracle';
export type Connector = 'nixl' | 'shared_storage';
export type Version = '0.30' | '0.32';

/** What one request gets instead of, or on top of, its answer. */
export interface Failure {
  /** Answers with this status and vLLM's error body. */
  status?: number;
  /** Body of that answer, when it is not an error in vLLM's shape. */
  body?: string | Buffer;
  headers?: Header[];
  /** `reset` and `stall` send nothing; the `_body` ones send `keepBytes` of what the answer would have been. */
  fault?: EngineReply['fault'];
  /** Default: half of the body. */
  keepBytes?: number;
}

export interface EngineOptions {
  role: Role;
  connector?: Connector;
  version?: Version;
  model?: Partial<MoeModel>;
  /** Shared by the engines of one deployment. */
  fleet?: Fleet;
  /** False: started without routed-experts capture, the field is null. */
  capture?: boolean;
  /** What decode returns for prompt tokens it never forwarded: zeros, or an earlier request's rows. */
  promptRows?: 'zeros' | 'stale';
  /** Rows returned as all -1 (all bits set): the engine does not know them. */
  unknownRows?: readonly number[];
  /** 0.32 that does not look at `routed_experts_prompt_start`. */
  ignorePromptStart?: boolean;
  /** 0.30 may lose a stream's array: null on the terminal event. */
  loseStreamArray?: boolean;
  npy?: NpyOptions;
  /** The model ends its answer with its `n`-th token, this one being EOS. */
  eosAfter?: number;
  maxModelLen?: number;
  blockSize?: number;
  /** Further keys of the `kv_transfer_params` that prefill hands out, as a later version may add. */
  extraKvParams?: KvParams;
  /** Failures by number of POST request, from 1 on; or a function of it. */
  fail?: Record<number, Failure> | ((ordinal: number, request: EngineRequest) => Failure | undefined);
  /** Size of the pieces in which a body is written. Default: whole, or one per event. */
  chunkBytes?: number;
  /** Without `content-length`, as behind a proxy that streams. */
  omitContentLength?: boolean;
  trailers?: Header[];
  /** Milliseconds; fixed unless set. */
  now?: () => number;
}

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

export const DEFAULT_MODEL: MoeModel = {
  name: 'tiny',
  layers: 4,
  topK: 4,
  experts: 16,
  dtype: '|u1',
  vocab: 151_936,
};

const FIXED_NOW = Date.UTC(2026, 10, 23, 9, 42, 38);
/** Tokens of an answer that no cap ends. */
const NATURAL_LENGTH = 24;
const UNKNOWN_EXPERT = -1;

/** An engine; engines that exchange KV share `options.fleet`. */
export function createEngine(options: EngineOptions): SimulatedEngine {
  const core = new Core(options);
  const engine = (request: EngineRequest): EngineReply => core.handle(request);
  return Object.defineProperties(engine, {
    options: { value: options },
    model: { value: core.model },
    fleet: { value: core.fleet },
    requests: { value: core.requests },
    dead: { get: () => core.dead, set: (dead: boolean) => void (core.dead = dead) },
  }) as unknown as SimulatedEngine;
}

/** The engine process is gone: the client whose request killed it still gets an answer. */
class EngineDeath extends Error {}

interface Handshake {
  /** The reply carries `kv_transfer_params`. */
  handsOut: boolean;
  /** The blocks that this request takes from a prefill engine. */
  pulled: Handout | null;
}

/** How a prompt's KV came to be here. */
interface PromptState {
  prompt: Prompt;
  /** Null: forwarded here. Otherwise only the last prompt token was, on top of these tokens' KV. */
  remote: readonly number[] | null;
  /** The router's state behind the last prompt token. */
  end: number;
}

interface Choice {
  index: number;
  of: PromptState;
  tokens: number[];
  states: Int32Array;
  finish: 'length' | 'stop';
  routedExperts: string | null;
}

class Core {
  readonly model: MoeModel;
  readonly fleet: Fleet;
  readonly requests: EngineRequest[] = [];
  dead = false;
  readonly #options: EngineOptions;
  readonly #router: router.Router;
  readonly #engineId: string;
  readonly #fingerprint: string;
  #posts = 0;
  #blocks = 0;

  constructor(options: EngineOptions) {
    this.#options = options;
    this.model = { ...DEFAULT_MODEL, ...options.model };
    this.fleet = options.fleet ?? new Fleet();
    this.#router = new router.Router(this.model);
    this.#engineId = this.fleet.uuid();
    this.#fingerprint = `vllm-${this.#version}.0-${this.fleet.hex(8)}`;
  }

  get #version(): Version {
    return this.#options.version ?? '0.30';
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
          ? this.#error(new ApiError(status!, 'simulated failure', 'InternalServerError'))
          : this.#reply(status ?? 200, 'application/json', [Buffer.from(body)]);
    if (headers) reply = { ...reply, headers };
    if (!fault) return reply;
    const whole = Buffer.concat(reply.chunks);
    const kept = whole.subarray(0, keepBytes ?? whole.length >> 1);
    return { ...reply, chunks: this.#pieces([kept]), fault };
  }

  #get(request: EngineRequest): EngineReply {
    const path = pathOf(request);
    if (request.method !== 'GET' || path in ENDPOINTS) return this.#detail(path in ENDPOINTS ? 405 : 404);
    if (path === '/health') return this.#reply(200, null, []);
    if (path !== '/v1/models') return this.#detail(404);
    const created = Math.floor(this.#now() / 1000);
    const { name } = this.model;
    const card = { id: name, object: 'model', created, owned_by: 'vllm', root: name, parent: null };
    const data = [{ ...card, max_model_len: this.#maxModelLen }];
    return this.#json(200, { object: 'list', data });
  }

  #post(request: EngineRequest): EngineReply {
    const endpoint = ENDPOINTS[pathOf(request)];
    if (!endpoint) return this.#detail(404);
    try {
      const call = parseCall(endpoint, header(request, 'content-type') ?? '', request.body, {
        model: this.model.name,
        vocab: this.model.vocab,
        maxModelLen: this.#maxModelLen,
        promptStart: this.#version !== '0.30' && !this.#options.ignorePromptStart,
      });
      return this.#serve(call, request);
    } catch (error) {
      if (error instanceof ApiError) return this.#error(error);
      if (!(error instanceof EngineDeath)) throw error;
      this.dead = true;
      return this.#error(new ApiError(500, '', 'InternalServerError'));
    }
  }

  #serve(call: Call, request: EngineRequest): EngineReply {
    const handshake = this.#handshake(call);
    const prompts = call.prompts.map((prompt) => this.#prompt(call, prompt, handshake));
    if (handshake.pulled) handshake.pulled.consumed = true;
    const choices = prompts.flatMap((of, p) =>
      Array.from({ length: call.n }, (_, c) => this.#generate(call, of, p * call.n + c, c)),
    );
    const id = ID_PREFIX[call.endpoint] + (header(request, 'x-request-id') ?? this.fleet.hex(16));
    const created = Math.floor(this.#now() / 1000);
    if (call.stream) {
      const events = this.#events(call, choices, id, created);
      return this.#reply(
        200,
        'text/event-stream; charset=utf-8',
        events.map((event) => Buffer.from(event)),
      );
    }
    const kv = handshake.handsOut ? this.#handOut(call, prompts, choices, id) : null;
    return this.#json(200, this.#answer(call, choices, id, created, kv));
  }

  // --- handshake ---

  #handshake(call: Call): Handshake {
    const params = call.kvTransferParams;
    // Without a KV connector, or with one that shares a store, the field is not looked at.
    if (!params || this.#options.role === 'oracle' || this.#connector !== 'nixl')
      return { handsOut: false, pulled: null };
    for (const key of ['do_remote_decode', 'do_remote_prefill']) {
      if (typeof (params[key] ?? false) !== 'boolean') throw kvError(`${key} must be a boolean`);
    }
    const [toDecode, fromPrefill] = [
      params['do_remote_decode'] === true,
      params['do_remote_prefill'] === true,
    ];
    if (toDecode && fromPrefill) throw kvError('do_remote_decode and do_remote_prefill exclude each other');
    if (toDecode) {
      if (this.#options.role !== 'prefill') throw kvError('do_remote_decode sent to a decode engine');
      for (const [key, value] of Object.entries(params)) {
        if (!HANDSHAKE_KEYS.has(key)) throw kvError(`unknown key ${key}`);
        if (value !== null && typeof value !== 'boolean')
          throw kvError(`${key} must be null on the prefill leg`);
      }
      return { handsOut: true, pulled: null };
    }
    return { handsOut: false, pulled: fromPrefill ? this.#claim(params, call) : null };
  }

  #claim(params: KvParams, call: Call): Handout {
    if (this.#options.role !== 'decode') throw kvError('do_remote_prefill sent to a prefill engine');
    const claimed = this.fleet.claim(params, call.prompts[0]!.tokens);
    if (typeof claimed === 'string') throw kvError(claimed);
    return claimed;
  }

  #handOut(call: Call, prompts: PromptState[], choices: Choice[], id: string): KvParams | null {
    const all = prompts.map(({ prompt }, p) => {
      // vLLM keeps the blocks only of a request that its cap ended.
      if (choices[p * call.n]!.finish !== 'length') return null;
      const suffix = call.endpoint === 'completions' ? `-${p}` : '';
      const blocks = Math.ceil(prompt.tokens.length / (this.#options.blockSize ?? 128));
      const params: KvParams = {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_block_ids: [Array.from({ length: blocks }, () => (this.#blocks++ % 4096) + 1)],
        remote_engine_id: this.#engineId,
        remote_request_id: `${id}${suffix}-${this.fleet.hex(8)}`,
        remote_host: 'localhost',
        remote_port: 21080,
        tp_size: 1,
        dcp_size: 1,
        pp_size: 1,
        remote_num_tokens: prompt.tokens.length,
        remote_blocks_expiry_time: null,
        transfer_mode: 'pull',
        ...this.#options.extraKvParams,
      };
      this.fleet.handOut(String(params['remote_request_id']), params, prompt.tokens);
      return params;
    });
    // One field for a whole batch: the first prompt's.
    return all[0] ?? null;
  }

  // --- computation ---

  #prompt(call: Call, prompt: Prompt, { pulled }: Handshake): PromptState {
    const { role } = this.#options;
    const { tokens } = prompt;
    let remote = pulled ? pulled.tokens : null;
    if (this.#connector === 'shared_storage') {
      if (role === 'prefill') this.fleet.store(tokens);
      if (role === 'decode' && this.fleet.isStored(tokens)) remote = tokens;
    }
    if (remote) {
      if (call.promptLogprobs !== null) throw new EngineDeath('prompt_logprobs of tokens never forwarded');
      const capturing = this.#options.capture !== false && this.#version !== '0.30';
      if (capturing && call.routedExpertsPromptStart !== tokens.length) {
        throw new EngineDeath('routing of tokens never forwarded');
      }
    }
    const known = Math.min(tokens.length - 1, remote?.length ?? Infinity);
    const base = router.prefixStates((remote ?? tokens).slice(0, known)).at(-1) ?? router.EMPTY_PREFIX;
    return { prompt, remote, end: router.step(base, tokens.at(-1)!) };
  }

  #generate(call: Call, of: PromptState, index: number, choice: number): Choice {
    const { eosAfter = Infinity } = this.#options;
    const cap = call.maxTokens === null ? Infinity : Math.max(call.maxTokens, 1);
    const room = this.#maxModelLen - of.prompt.tokens.length;
    const natural = call.maxTokens === null ? Math.min(eosAfter, NATURAL_LENGTH) : eosAfter;
    const eosAt = call.ignoreEos ? Infinity : Math.max(natural, call.minTokens + 1);
    const length = Math.min(cap, room, eosAt);
    const tokens: number[] = [];
    const states = new Int32Array(length);
    let state = of.end;
    for (let t = 0; t < length; t++) {
      tokens.push(t + 1 === eosAt ? EOS : router.nextToken(state, choice));
      states[t] = state = router.step(state, tokens[t]!);
    }
    const routedExperts = this.#options.capture === false ? null : this.#routedExperts(call, of, states);
    return { index, of, tokens, states, finish: length === eosAt ? 'stop' : 'length', routedExperts };
  }

  /** Rows of all tokens but the last, which nobody has forwarded. */
  #routedExperts(call: Call, of: PromptState, states: Int32Array): string {
    const { tokens } = of.prompt;
    const rows = this.#router.allocate(tokens.length + states.length - 1);
    this.#fillPrompt(rows, of);
    for (let t = 0; t < states.length - 1; t++) this.#router.fill(rows, tokens.length + t, states[t]!);
    const { rowLength } = this.#router;
    for (const row of this.#options.unknownRows ?? []) {
      rows.data.fill(UNKNOWN_EXPERT, row * rowLength, (row + 1) * rowLength);
    }
    const wanted = this.#router.slice(rows, call.routedExpertsPromptStart);
    const shape = [wanted.count, this.model.layers, this.model.topK];
    return encodeNpy(wanted.data, this.model.dtype, shape, this.#options.npy).toString('base64');
  }

  #fillPrompt(rows: Rows, { prompt: { tokens }, remote, end }: PromptState): void {
    if (!remote || this.#options.promptRows === 'stale') {
      const origin = remote ? router.FOREIGN_PREFIX : router.EMPTY_PREFIX;
      const states = router.prefixStates(tokens, origin);
      for (let i = 0; i < states.length; i++) this.#router.fill(rows, i, states[i]!);
    }
    this.#router.fill(rows, tokens.length - 1, end);
  }

  // --- replies ---

  #answer(call: Call, choices: Choice[], id: string, created: number, kv: KvParams | null): object {
    const usage = usageOf(call, choices);
    const model = this.model.name;
    const transfer = { kv_transfer_params: kv, ec_transfer_params: null };
    const promptLogprobs = promptLogprobsOf(call, choices[0]!.of.prompt);
    if (call.endpoint === 'generate') {
      const list = choices.map((choice) => ({
        index: choice.index,
        logprobs: chatLogprobs(call, choice, 0, choice.tokens.length),
        finish_reason: choice.finish,
        token_ids: choice.tokens,
        routed_experts: choice.routedExperts,
        sampling_mask: null,
      }));
      const first = { request_id: id, model, created };
      const prompt = { prompt_logprobs: promptLogprobs, prompt_token_ids: null, mm_placeholders: null };
      // 0.32 writes the large field last.
      return this.#version === '0.30'
        ? { ...first, choices: list, usage, ...prompt, ...transfer }
        : { ...first, usage, ...prompt, ...transfer, choices: list };
    }
    const tail = { service_tier: null, system_fingerprint: this.#fingerprint, usage };
    if (call.endpoint === 'chat') {
      const list = choices.map((choice) => ({
        index: choice.index,
        message: {
          role: 'assistant',
          content: decode(choice.tokens),
          refusal: null,
          annotations: null,
          audio: null,
          function_call: null,
          reasoning: null,
        },
        logprobs: chatLogprobs(call, choice, 0, choice.tokens.length),
        finish_reason: choice.finish,
        stop_reason: null,
        token_ids: call.returnTokenIds ? choice.tokens : null,
        routed_experts: choice.routedExperts,
      }));
      return {
        ...{ id, object: 'chat.completion', created, model, choices: list, ...tail },
        prompt_logprobs: promptLogprobs,
        prompt_token_ids: call.returnTokenIds ? choices[0]!.of.prompt.tokens : null,
        prompt_text: null,
        ...transfer,
        metrics: null,
      };
    }
    const list = choices.map((choice) => ({
      index: choice.index,
      text: echoed(call, choice) + (call.maxTokens === 0 ? '' : decode(choice.tokens)),
      logprobs: completionLogprobs(call, choice),
      finish_reason: choice.finish,
      stop_reason: null,
      token_ids: call.returnTokenIds ? choice.tokens : null,
      prompt_logprobs: promptLogprobsOf(call, choice.of.prompt),
      prompt_token_ids: call.returnTokenIds ? choice.of.prompt.tokens : null,
      routed_experts: choice.routedExperts,
    }));
    return {
      id,
      object: 'text_completion',
      created,
      model,
      choices: list,
      ...tail,
      ...transfer,
      metrics: null,
    };
  }

  /** Server-sent events: one token each, choices in turn. */
  #events(call: Call, choices: Choice[], id: string, created: number): string[] {
    const events: string[] = [];
    const model = this.model.name;
    const fingerprint = { system_fingerprint: this.#fingerprint };
    const send = (event: object) => void events.push(`data: ${toJson(event)}\n\n`);
    const head =
      call.endpoint === 'generate'
        ? { request_id: id }
        : {
            id,
            object: call.endpoint === 'chat' ? 'chat.completion.chunk' : 'text_completion',
            created,
            model,
          };
    if (call.endpoint === 'chat') {
      const promptIds = call.returnTokenIds ? choices[0]!.of.prompt.tokens : null;
      for (const { index } of choices) {
        const delta = { role: 'assistant', content: '' };
        const first = { index, delta, logprobs: null, finish_reason: null };
        send({ ...head, choices: [first], prompt_token_ids: promptIds });
      }
    }
    const texts = choices.map(() => new Detokenizer());
    const steps = Math.max(...choices.map(({ tokens }) => tokens.length));
    for (let t = 0; t < steps; t++) {
      for (const choice of choices) {
        const token = choice.tokens[t];
        if (token === undefined) continue;
        const { index } = choice;
        const last = t === choice.tokens.length - 1;
        const finish = last ? choice.finish : null;
        const text = texts[index]!.push(token) + (last ? texts[index]!.end() : '');
        if (call.endpoint === 'generate') {
          const logprobs = chatLogprobs(call, choice, t, t + 1);
          const rows = last && !this.#options.loseStreamArray ? choice.routedExperts : null;
          const item = { index, logprobs, finish_reason: finish, token_ids: [token], routed_experts: rows };
          send({ ...head, choices: [{ ...item, sampling_mask: null }], usage: null });
          continue;
        }
        const stamp = last && !call.includeUsage ? fingerprint : {};
        const ids = call.returnTokenIds ? [token] : null;
        if (call.endpoint === 'chat') {
          const logprobs = chatLogprobs(call, choice, t, t + 1);
          const stop = last ? { stop_reason: null } : {};
          const item = {
            index,
            delta: { content: text },
            logprobs,
            finish_reason: finish,
            ...stop,
            token_ids: ids,
          };
          send({ ...head, choices: [item], ...stamp });
        } else {
          const shown = (t === 0 ? echoed(call, choice) : '') + (call.maxTokens === 0 ? '' : text);
          const promptIds = t === 0 && call.returnTokenIds ? choice.of.prompt.tokens : null;
          const item = { index, text: shown, logprobs: null, finish_reason: finish, stop_reason: null };
          send({ ...head, choices: [{ ...item, prompt_token_ids: promptIds, token_ids: ids }], ...stamp });
        }
      }
    }
    if (call.includeUsage) {
      const { prompt_tokens, total_tokens, completion_tokens } = usageOf(call, choices);
      const usage = { prompt_tokens, total_tokens, completion_tokens };
      send({ ...head, choices: [], usage, ...(call.endpoint === 'generate' ? {} : fingerprint) });
    }
    events.push('data: [DONE]\n\n');
    return events;
  }

  #json(status: number, value: object): EngineReply {
    return this.#reply(status, 'application/json', [Buffer.from(toJson(value))]);
  }

  #error({ status, message, type, param }: ApiError): EngineReply {
    return this.#json(status, { error: { message, type, param, code: status } });
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

  get #connector(): Connector {
    return this.#options.connector ?? 'nixl';
  }

  get #maxModelLen(): number {
    return this.#options.maxModelLen ?? 131_072;
  }
}

const ID_PREFIX: Record<Endpoint, string> = {
  completions: 'cmpl-',
  chat: 'chatcmpl-',
  generate: 'generate-tokens-',
};

const HANDSHAKE_KEYS = new Set([
  ...['do_remote_decode', 'do_remote_prefill', 'remote_engine_id'],
  ...['remote_block_ids', 'remote_host', 'remote_port'],
]);

/** `body` in pieces of `bytes`. */
export function split(body: Buffer, bytes: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let at = 0; at < body.length; at += bytes) pieces.push(body.subarray(at, at + bytes));
  return pieces;
}

function kvError(message: string): ApiError {
  return new ApiError(400, `kv_transfer_params: ${message}`, 'BadRequestError', 'kv_transfer_params');
}

function pathOf(request: EngineRequest): string {
  return request.path.split('?', 1)[0]!;
}

function header(request: EngineRequest, name: string): string | undefined {
  return request.headers.find(([key]) => key === name)?.[1];
}

function echoed(call: Call, { of: { prompt } }: Choice): string {
  if (!call.echo || call.returnTokenIds) return '';
  return prompt.text ?? decode(prompt.tokens);
}

function usageOf(call: Call, choices: Choice[]) {
  const prompt = call.prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const completion = choices.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return {
    prompt_tokens: prompt,
    total_tokens: prompt + completion,
    completion_tokens: completion,
    prompt_tokens_details: null,
    completion_tokens_details: null,
  };
}

interface Candidate {
  id: number;
  logprob: number;
  rank: number;
}

/** The chosen token first, then `top` alternatives. */
function candidates(state: number, id: number, top: number): Candidate[] {
  const logprobs = Array.from({ length: top + 1 }, (_, k) => -(1 + (router.derive(state, k) % 8000)) / 1024);
  logprobs.sort((a, b) => b - a);
  const others = Array.from({ length: top }, (_, k) => ({
    id: FIRST_ALTERNATIVE + ((router.derive(state, 100) + k) % 500),
    logprob: logprobs[k]!,
    rank: k + 1,
  }));
  return [{ id, logprob: logprobs[top]!, rank: top + 1 }, ...others.filter((other) => other.id !== id)];
}

const FIRST_ALTERNATIVE = 10;

function promptLogprobsOf(call: Call, { tokens }: Prompt): unknown[] | null {
  if (call.promptLogprobs === null) return null;
  const top = Math.max(call.promptLogprobs, 0);
  const states = router.prefixStates(tokens);
  return tokens.map((token, i) => {
    if (i === 0) return null;
    return new Map(
      candidates(states[i - 1]!, token, top).map(({ id, logprob, rank }) => [
        id,
        { logprob, rank, decoded_token: decode([id]) },
      ]),
    );
  });
}

function chatLogprobs(call: Call, choice: Choice, from: number, to: number): object | null {
  if (call.logprobs === null) return null;
  const content = choice.tokens.slice(from, to).map((token, i) => {
    const [own, ...others] = candidates(choice.states[from + i]!, token, Math.max(call.logprobs!, 0)).map(
      shown,
    );
    return { ...own!, top_logprobs: call.logprobs! > 0 ? [own!, ...others].slice(0, call.logprobs!) : [] };
  });
  return { content };
}

function shown({ id, logprob }: Candidate): object {
  const token = decode([id]);
  return { token, logprob, bytes: [...Buffer.from(token)] };
}

function completionLogprobs(call: Call, choice: Choice): object | null {
  if (call.logprobs === null) return null;
  const top = Math.max(call.logprobs, 0);
  const { tokens: promptTokens } = choice.of.prompt;
  const prompt = call.echo ? promptTokens : [];
  const generated = call.maxTokens === 0 ? [] : choice.tokens;
  const states = [...(call.echo ? router.prefixStates(promptTokens) : []), ...choice.states];
  const ids = [...prompt, ...generated];
  const tokens = ids.map((id) => decode([id]));
  const chosen = ids.map((id, i) => (call.echo && i === 0 ? null : candidates(states[i]!, id, top)));
  let offset = 0;
  return {
    text_offset: tokens.map((token) => (offset += token.length) - token.length),
    token_logprobs: chosen.map((list) => list?.[0]!.logprob ?? null),
    tokens,
    top_logprobs: chosen.map(
      (list) => list && new Map(list.map(({ id, logprob }) => [decode([id]), logprob])),
    ),
  };
}
