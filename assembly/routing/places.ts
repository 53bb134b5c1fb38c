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
  Expert,
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
  ChoiceIndex,
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
  MetaCachedTokens,
  /** `choices[i].finish_reason` */
  FinishReason,
}

let paths: Paths | null = null;
let alone: Paths | null = null;

/** Places in both legs' replies. */
export function replyPaths(): Paths {
  let known = paths;
  if (known === null) paths = known = basePaths();
  return known;
}

/** Places in a reply of decode's that prefill has no part in: prompt rows of its own, and what it says of its cache. */
export function alonePaths(): Paths {
  const known = alone;
  if (known !== null) return known;
  const made = basePaths()
    .add('meta_info.cached_tokens', Place.MetaCachedTokens)
    .add('*.meta_info.cached_tokens', Place.MetaCachedTokens);
  addRows(made, 'prompt_routed_experts');
  addRows(made, 'choices.*.prompt_routed_experts');
  alone = made;
  return made;
}

/** Members and elements of a value with rows. */
function addRows(to: Paths, path: string): void {
  to.add(path + '.*', Place.Row)
    .add(path + '.*.*', Place.Layer)
    .add(path + '.*.*.*', Place.Expert)
    .add(path + '.data', Place.Data)
    .add(path + '.shape', Place.Shape)
    .add(path + '.shape.*', Place.Dimension)
    .add(path + '.start', Place.Start)
    .add(path + '.dtype', Place.Dtype);
}

function basePaths(): Paths {
  const made = new Paths()
    .add('', Place.Root)
    .add('choices', Place.Choices)
    .add('choices.*', Place.Choice)
    .add('choices.*.routed_experts', Place.Array)
    .add('choices.*.prompt_routed_experts', Place.ChoicePromptExperts)
    .add('choices.*.prompt_logprobs', Place.ChoicePromptLogprobs)
    .add('choices.*.index', Place.ChoiceIndex)
    .add('choices.*.token_ids', Place.TokenIds)
    .add('choices.*.finish_reason', Place.FinishReason)
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
  addRows(made, 'choices.*.routed_experts');
  return made;
}
