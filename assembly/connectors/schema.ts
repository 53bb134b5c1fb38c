// The members of requests that are read or edited, and where each API has them.

import { Ascii } from '../bytes/ascii';
import { Paths } from '../json/paths';
import { NAMED, Name } from '../routing/named_array';

/** The API that a request is for, which decides where its members are. */
export const enum Api {
  None,
  Completions,
  Chat,
  /** `/inference/v1/generate` of vLLM. */
  Generate,
  /** `/generate` of SGLang. */
  Native,
}

/**
 * Whose engines a connector is for. It decides which APIs they have, and which requests P/D can
 * serve.
 */
export const enum Dialect {
  Vllm,
  Sglang,
}

/**
 * Members of a request that are read or edited. `ownerOf` tells the object that has them: the
 * request, or its `sampling_params`.
 */
export const enum Field {
  Root,
  SamplingParams,
  ExtraArgs,
  Xargs,
  KvTransferParams,
  ExtraKvTransferParams,
  XargsKvTransferParams,
  Stream,
  StreamOptions,
  MaxTokens,
  MaxCompletionTokens,
  MinTokens,
  N,
  Prompt,
  PromptEmbeds,
  PromptLogprobs,
  Echo,
  PromptStart,
  CacheHitThreshold,
  /**
   * The prompt as tokens, where that is another member than the text: `token_ids` of vLLM's
   * generate, `input_ids` of SGLang's.
   */
  PromptIds,
  /** SGLang's `routed_experts_start_len`: the token whose row comes first. */
  StartLen,
  /** vLLM's `cache_salt`, which is part of the key of every block in its prefix cache. */
  CacheSalt,
  IncludeUsage,
  ContinuousUsage,
  Temperature,
  BeamSearch,
  TruncatePrompt,
  Model,
  /**
   * SGLang's `extra_key`, which is part of the key of its radix cache. Its OpenAI endpoints make it
   * of `cache_salt`, which `/generate` does not have.
   */
  ExtraKey,
  /** The member by which a client of SGLang's asks for the array of name n is `Asks + n`. */
  Asks,
  /** The first of the members that are a connector's own. */
  Own = Asks + Name.Count,
}

/**
 * The names of members: those that every connector knows, and at the top level those of one
 * connector.
 */
@final
export class Schema {
  private byApi: Array<Paths | null> = new Array<Paths | null>(Api.Native + 1);
  private keys: Ascii[] = [];

  constructor(
    readonly dialect: Dialect,
    /** Names of the connector's own members, which are the fields from `Field.Own` on. */
    readonly own: string[],
  ) {}

  get fieldCount(): i32 {
    return Field.Own + this.own.length;
  }

  /** Whether engines of this dialect have an API. */
  has(api: Api): bool {
    return api != (this.dialect == Dialect.Vllm ? Api.Native : Api.Generate);
  }

  /** What a scanner watches in a request for an API. */
  paths(api: Api): Paths {
    const known = this.byApi[api];
    if (known !== null) return known;
    const paths = fixedPaths(api);
    for (let i = 0; i < this.own.length; i++) paths.add(this.own[i], Field.Own + i);
    this.byApi[api] = paths;
    return paths;
  }

  /** The key of a field with its quotes and colon, as it is written into a body for an API. */
  key(field: Field, api: Api): Ascii {
    if (api == Api.Native && field == Field.MaxTokens) return MAX_NEW_TOKENS;
    if (this.keys.length == 0) {
      for (let i = 0; i < NAMES.length; i++) this.keys.push(new Ascii('"' + NAMES[i] + '":'));
      for (let i = 0; i < this.own.length; i++) this.keys.push(new Ascii('"' + this.own[i] + '":'));
    }
    return this.keys[field];
  }
}

/** The key of `Field.MaxTokens` at SGLang's `/generate`. */
const MAX_NEW_TOKENS = new Ascii('"max_new_tokens":');

/** Keys by field, as vLLM has them. */
const NAMES: string[] = [
  '',
  'sampling_params',
  'extra_args',
  'vllm_xargs',
  'kv_transfer_params',
  'kv_transfer_params',
  'kv_transfer_params',
  'stream',
  'stream_options',
  'max_tokens',
  'max_completion_tokens',
  'min_tokens',
  'n',
  'prompt',
  'prompt_embeds',
  'prompt_logprobs',
  'echo',
  'routed_experts_prompt_start',
  'cache_hit_threshold',
  '',
  'routed_experts_start_len',
  'cache_salt',
  'include_usage',
  'continuous_usage_stats',
  'temperature',
  'use_beam_search',
  'truncate_prompt_tokens',
  'model',
  'extra_key',
];
for (let name = 0; name < Name.Count; name++) NAMES.push(NAMED[name].askedBy);

/** The name of a field that is no connector's own. */
export function nameOf(field: Field): string {
  return NAMES[field];
}

/** The members that every connector knows, where an API has them. */
function fixedPaths(api: Api): Paths {
  const paths = new Paths()
    .add('', Field.Root)
    .add('kv_transfer_params', Field.KvTransferParams)
    .add('vllm_xargs', Field.Xargs)
    .add('vllm_xargs.kv_transfer_params', Field.XargsKvTransferParams)
    .add('stream', Field.Stream)
    .add('stream_options', Field.StreamOptions)
    .add('stream_options.include_usage', Field.IncludeUsage)
    .add('stream_options.continuous_usage_stats', Field.ContinuousUsage)
    .add('model', Field.Model)
    .add('cache_hit_threshold', Field.CacheHitThreshold)
    .add('routed_experts_start_len', Field.StartLen)
    .add('cache_salt', Field.CacheSalt);
  for (let name = 0; name < Name.Count; name++) paths.add(NAMED[name].askedBy, Field.Asks + name);
  if (api == Api.Native) return nativePaths(paths);
  if (api == Api.Generate) {
    return paths
      .add('token_ids', Field.PromptIds)
      .add('sampling_params', Field.SamplingParams)
      .add('sampling_params.extra_args', Field.ExtraArgs)
      .add('sampling_params.extra_args.kv_transfer_params', Field.ExtraKvTransferParams)
      .add('sampling_params.max_tokens', Field.MaxTokens)
      .add('sampling_params.min_tokens', Field.MinTokens)
      .add('sampling_params.n', Field.N)
      .add('sampling_params.temperature', Field.Temperature)
      .add('sampling_params.prompt_logprobs', Field.PromptLogprobs)
      .add('sampling_params.routed_experts_prompt_start', Field.PromptStart);
  }
  // Only chat has this member. vLLM and SGLang ignore it in a completion, where it says nothing of
  // the length (CompletionRequest in vllm/entrypoints/openai/completion/protocol.py and in
  // sglang/srt/entrypoints/openai/protocol.py).
  if (api == Api.Chat) paths.add('max_completion_tokens', Field.MaxCompletionTokens);
  return paths
    .add('max_tokens', Field.MaxTokens)
    .add('min_tokens', Field.MinTokens)
    .add('n', Field.N)
    .add('temperature', Field.Temperature)
    .add('use_beam_search', Field.BeamSearch)
    .add('truncate_prompt_tokens', Field.TruncatePrompt)
    .add('prompt', Field.Prompt)
    .add('prompt_embeds', Field.PromptEmbeds)
    .add('prompt_logprobs', Field.PromptLogprobs)
    .add('echo', Field.Echo)
    .add('routed_experts_prompt_start', Field.PromptStart);
}

/** The members of SGLang's `/generate`. */
function nativePaths(paths: Paths): Paths {
  return paths
    .add('text', Field.Prompt)
    .add('extra_key', Field.ExtraKey)
    .add('input_ids', Field.PromptIds)
    .add('sampling_params', Field.SamplingParams)
    .add('sampling_params.max_new_tokens', Field.MaxTokens)
    .add('sampling_params.min_new_tokens', Field.MinTokens)
    .add('sampling_params.n', Field.N)
    .add('sampling_params.*.n', Field.N);
}

/** The object that a field is a member of: `Root` for the request itself. */
export function ownerOf(field: Field, api: Api): Field {
  switch (field) {
    case Field.ExtraKvTransferParams:
      return Field.ExtraArgs;
    case Field.XargsKvTransferParams:
      return Field.Xargs;
    case Field.IncludeUsage:
    case Field.ContinuousUsage:
      return Field.StreamOptions;
    case Field.ExtraArgs:
      return Field.SamplingParams;
    case Field.MaxTokens:
    case Field.MinTokens:
    case Field.N:
    case Field.Temperature:
    case Field.PromptLogprobs:
    case Field.PromptStart:
      return api == Api.Generate || api == Api.Native ? Field.SamplingParams : Field.Root;
    default:
      return Field.Root;
  }
}
