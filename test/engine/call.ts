// A request that an engine has accepted, whatever its API, and the errors it answers with otherwise.

/** `generate` is vLLM's `/inference/v1/generate`, `native` SGLang's `/generate`. */
export type Endpoint = 'completions' | 'chat' | 'generate' | 'native';

export interface Prompt {
  tokens: readonly number[];
  /** As the client wrote it; null where it sent token ids. */
  text: string | null;
}

export interface Call {
  endpoint: Endpoint;
  prompts: Prompt[];
  n: number;
  /** Null: until the model stops by itself. */
  maxTokens: number | null;
  minTokens: number;
  ignoreEos: boolean;
  stream: boolean;
  includeUsage: boolean;
  returnTokenIds: boolean;
  /** How many alternatives beside the chosen token; null: no logprobs. */
  logprobs: number | null;
  promptLogprobs: number | null;
  echo: boolean;
  kvTransferParams: Record<string, unknown> | null;
  /** What is part of the prefix cache's keys: nothing, one for all prompts, or one each. */
  cacheSalts: readonly string[];
  /** Asked for routing; vLLM returns it unasked. */
  returnRoutedExperts: boolean;
  /** The array starts with this token. */
  routedExpertsPromptStart: number;
  /** What only SGLang takes; null on vLLM. */
  sglang: SglangExtras | null;
}

export interface SglangExtras {
  /** As the client wrote it: SGLang repeats any. */
  model: string;
  requestId: string | null;
  bootstrap: Bootstrap | null;
  /** A list of prompts, even of one. */
  batch: boolean;
  /** Chat: `meta_info` in each choice. */
  returnMetaInfo: boolean;
  /** Computed for another engine: it ends with the first token, whatever was asked. */
  prefillOnly: boolean;
}

/** Where the two engines meet, one of each per prompt. */
export interface Bootstrap {
  hosts: string[];
  ports: number[];
  rooms: bigint[];
}

/** The salt of the `p`-th prompt; '' is none. */
export function saltOf({ cacheSalts }: Call, p: number): string {
  return (cacheSalts.length === 1 ? cacheSalts[0] : cacheSalts[p]) ?? '';
}

export interface Limits {
  model: string;
  vocab: number;
  maxModelLen: number;
  /** The engine knows `routed_experts_prompt_start`. */
  promptStart: boolean;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly type = 'BadRequestError',
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

/** The engine process is gone: the client whose request killed it still gets an answer. */
export class EngineDeath extends Error {}

/** The engine took the request and failed later: a stream has its head by then. */
export class EngineError extends ApiError {
  constructor(message: string) {
    super(500, message, 'InternalServerError');
  }
}
