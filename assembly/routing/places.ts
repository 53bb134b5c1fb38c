// Where the legs' replies hold what the filter reads or writes. Both legs' replies have the same shape.

import { Paths } from '../json/paths';

export const enum Place {
  Root,
  /** Of a reply that is a list. */
  Element,
  /** `choices` of an element: no reply that is a list has them. */
  ElementChoices,
  Choices,
  Choice,
  /** `choices[i].routed_experts`, and what is inside it where it is not a string. */
  Array,
  Row,
  Layer,
  Data,
  Shape,
  Dimension,
  Start,
  Dtype,
  /** `routed_experts` of SGLang's own members; of those in a choice. */
  Raw,
  ChoiceRaw,
  PromptExperts,
  ChoicePromptExperts,
  PromptLogprobs,
  ChoicePromptLogprobs,
  TokenIds,
  KvTransferParams,
  Usage,
  PromptTokens,
  CompletionTokens,
  /** SGLang's own, of a reply or an element. */
  Meta,
  MetaPromptTokens,
  MetaCompletionTokens,
  TokensDetails,
  CachedTokens,
}

let paths: Paths | null = null;

export function replyPaths(): Paths {
  const known = paths;
  if (known !== null) return known;
  const made = new Paths()
    .add('', Place.Root)
    .add('choices', Place.Choices)
    .add('choices.*', Place.Choice)
    .add('choices.*.routed_experts', Place.Array)
    .add('choices.*.routed_experts.*', Place.Row)
    .add('choices.*.routed_experts.*.*', Place.Layer)
    .add('choices.*.routed_experts.data', Place.Data)
    .add('choices.*.routed_experts.shape', Place.Shape)
    .add('choices.*.routed_experts.shape.*', Place.Dimension)
    .add('choices.*.routed_experts.start', Place.Start)
    .add('choices.*.routed_experts.dtype', Place.Dtype)
    .add('choices.*.prompt_routed_experts', Place.ChoicePromptExperts)
    .add('choices.*.prompt_logprobs', Place.ChoicePromptLogprobs)
    .add('choices.*.token_ids', Place.TokenIds)
    .add('choices.*.meta_info.routed_experts', Place.ChoiceRaw)
    .add('prompt_routed_experts', Place.PromptExperts)
    .add('prompt_logprobs', Place.PromptLogprobs)
    .add('kv_transfer_params', Place.KvTransferParams)
    .add('usage', Place.Usage)
    .add('usage.prompt_tokens', Place.PromptTokens)
    .add('usage.completion_tokens', Place.CompletionTokens)
    .add('usage.prompt_tokens_details', Place.TokensDetails)
    .add('usage.prompt_tokens_details.cached_tokens', Place.CachedTokens)
    .add('meta_info', Place.Meta)
    .add('meta_info.routed_experts', Place.Raw)
    .add('meta_info.prompt_tokens', Place.MetaPromptTokens)
    .add('meta_info.completion_tokens', Place.MetaCompletionTokens)
    .add('sglext.routed_experts', Place.Raw)
    .add('*', Place.Element)
    .add('*.choices', Place.ElementChoices)
    .add('*.meta_info', Place.Meta)
    .add('*.meta_info.routed_experts', Place.Raw)
    .add('*.meta_info.prompt_tokens', Place.MetaPromptTokens)
    .add('*.meta_info.completion_tokens', Place.MetaCompletionTokens)
    .add('*.sglext.routed_experts', Place.Raw);
  paths = made;
  return made;
}
