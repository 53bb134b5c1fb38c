// Writes requests to the endpoints of vLLM and SGLang.

export type Dialect = 'vllm' | 'sglang';
/** `generate` is vLLM's `/inference/v1/generate`; `native` is SGLang's `/generate`. */
export type EndpointName = 'completions' | 'chat' | 'generate' | 'native';

export const PATHS: Record<EndpointName, string> = {
  completions: '/v1/completions',
  chat: '/v1/chat/completions',
  generate: '/inference/v1/generate',
  native: '/generate',
};

/** A prompt as text or as token ids; a chat has messages. */
export type Prompt = string | number[] | { role: string; content: string }[];

export interface Asked {
  endpoint: EndpointName;
  prompt: Prompt;
  maxTokens: number;
  n?: number;
  stream?: boolean;
  /** The position of the token whose row is to be the first. */
  start?: number;
  salt?: string;
  seed?: number;
}

type Json = Record<string, unknown>;

export function bodyOf(asked: Asked, dialect: Dialect, model: string): Json {
  const { endpoint, prompt, maxTokens, n = 1, stream = false, start, salt, seed } = asked;
  const sampling = { temperature: n > 1 ? 0.8 : 0, ...(n > 1 ? { n, seed } : {}) };
  const common = { ...(stream ? { stream } : {}), ...(salt === undefined ? {} : { cache_salt: salt }) };
  if (endpoint === 'native') {
    return {
      ...(typeof prompt === 'string' ? { text: prompt } : { input_ids: prompt }),
      sampling_params: {
        max_new_tokens: maxTokens,
        temperature: sampling.temperature,
        ...(n > 1 ? { n } : {}),
      },
      return_routed_experts: true,
      ...(start === undefined ? {} : { routed_experts_start_len: start }),
      ...common,
    };
  }
  if (endpoint === 'generate') {
    const from = start === undefined ? {} : { routed_experts_prompt_start: start };
    const sampling_params = { max_tokens: maxTokens, ...sampling, ...from };
    const usage = stream ? { stream_options: { include_usage: true } } : {};
    return { model, token_ids: prompt, sampling_params, ...common, ...usage };
  }
  const from =
    dialect === 'sglang'
      ? { return_routed_experts: true, ...(start === undefined ? {} : { routed_experts_start_len: start }) }
      : start === undefined
        ? {}
        : { routed_experts_prompt_start: start };
  return {
    model,
    ...(endpoint === 'chat' ? { messages: prompt } : { prompt }),
    max_tokens: maxTokens,
    ...sampling,
    return_token_ids: true,
    ...(stream ? { stream_options: { include_usage: true } } : {}),
    ...from,
    ...common,
  };
}
