// A request that an engine has accepted, independent of the API it came through, and the errors
// with which an engine answers a request that it refuses or fails.

/** `generate` is vLLM's `/inference/v1/generate`; `native` is SGLang's `/generate`. */
export type Endpoint = 'completions' | 'chat' | 'generate' | 'native';

export interface Prompt {
  tokens: readonly number[];
  /** The text that the client sent; null if the client sent token ids. */
  text: string | null;
}

export interface Call {
  endpoint: Endpoint;
  prompts: Prompt[];
  n: number;
  /** Null means that the model generates until it stops by itself. */
  maxTokens: number | null;
  minTokens: number;
  ignoreEos: boolean;
  stream: boolean;
  includeUsage: boolean;
  returnTokenIds: boolean;
  /**
   * The number of alternatives beside the chosen token; null means that no logprobs are returned.
   */
  logprobs: number | null;
  promptLogprobs: number | null;
  echo: boolean;
  kvTransferParams: Record<string, unknown> | null;
  /**
   * The salts that become part of the prefix cache's keys: none, one for all prompts, or one per
   * prompt.
   */
  cacheSalts: readonly string[];
  /** Whether the request asks for routing. vLLM returns routing without being asked. */
  returnRoutedExperts: boolean;
  /** The position of the token whose row is the first of the array. */
  routedExpertsPromptStart: number;
  /** The fields that only SGLang accepts; null on vLLM. */
  sglang: SglangExtras | null;
}

export interface SglangExtras {
  /** The name that the client sent: SGLang accepts any name and repeats it in the reply. */
  model: string;
  requestId: string | null;
  bootstrap: Bootstrap | null;
  /** Whether the client sent a list of prompts, even a list of one. */
  batch: boolean;
  /** Whether the request asks for `indexer_topk`. */
  returnIndexerTopk: boolean;
  /** Whether each choice of a chat reply carries `meta_info`. */
  returnMetaInfo: boolean;
  /** Whether `meta_info` has the log probability of each generated token. */
  returnLogprob: boolean;
  /**
   * The engine computes the prompt for another engine, so it stops after the first token, whatever
   * cap the client asked for.
   */
  prefillOnly: boolean;
}

/** Where the two engines of a request meet. Each list has one element per prompt. */
export interface Bootstrap {
  hosts: string[];
  ports: number[];
  rooms: bigint[];
}

/** The salt of the `p`-th prompt; an empty string means no salt. */
export function saltOf({ cacheSalts }: Call, p: number): string {
  return (cacheSalts.length === 1 ? cacheSalts[0] : cacheSalts[p]) ?? '';
}

export interface Limits {
  model: string;
  vocab: number;
  maxModelLen: number;
  /** Whether the engine knows `routed_experts_prompt_start`. */
  promptStart: boolean;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly type = 'BadRequestError',
    readonly param: string | null = null,
    /**
     * What has refused the request: its class, or the code that serves what the class has let pass.
     * Only the latter gives up the KV that prefill keeps for the request.
     */
    readonly by: 'class' | 'serving' = 'class',
  ) {
    super(message);
  }
}

/** The engine process has died. The client whose request killed it still gets an answer. */
export class EngineDeath extends Error {}

/**
 * The engine accepted the request and failed later; if the reply is a stream, its head has been
 * sent by then.
 */
export class EngineError extends ApiError {
  constructor(message: string) {
    super(500, message, 'InternalServerError');
  }
}
