// A request that an engine has accepted, whatever its API, and the errors it answers with otherwise.

export type Endpoint = 'completions' | 'chat' | 'generate';

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
  /** The array starts with this token. */
  routedExpertsPromptStart: number;
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
