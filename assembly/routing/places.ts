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

/**
 * Places in decode's response to a request that prefill had no part in. They are also those of prompt
 * rows that decode gives itself, and of what it says of its cache.
 */
export function alonePaths(): Paths {
  const known = alone;
  if (known !== null) return known;
  const made = basePaths();
  watch(made, META, CACHED_TOKENS, Place.MetaCachedTokens);
  watch(made, ELEMENT + META, CACHED_TOKENS, Place.MetaCachedTokens);
  addRows(made, 'prompt_routed_experts.');
  addRows(made, 'choices.*.prompt_routed_experts.');
  alone = made;
  return made;
}

/** Adds the members of an object that holds rows; `path` ends before their names. */
export function addObject(to: Paths, path: string): void {
  watch(to, path, 'data', Place.Data);
  watch(to, path, 'shape', Place.Shape);
  watch(to, path, 'shape.*', Place.Dimension);
  watch(to, path, 'dtype', Place.Dtype);
}

const ELEMENT = '*.';
const META = 'meta_info.';
const CACHED_TOKENS = 'cached_tokens';

function watch(paths: Paths, path: string, key: string, place: Place): void {
  paths.add(path + key, place);
}

/** Adds what is inside a value with rows, whatever its format; `path` ends before it. */
function addRows(to: Paths, path: string): void {
  watch(to, path, '*', Place.Row);
  watch(to, path, '*.*', Place.Layer);
  watch(to, path, '*.*.*', Place.Expert);
  watch(to, path, 'start', Place.Start);
  addObject(to, path);
}

/** Adds SGLang's own members, of a reply or of an element of a list. */
function addSglang(to: Paths, path: string): void {
  watch(to, path, 'meta_info', Place.Meta);
  watch(to, path, 'meta_info.routed_experts', Place.Raw);
  watch(to, path, 'meta_info.prompt_tokens', Place.MetaPromptTokens);
  watch(to, path, 'meta_info.completion_tokens', Place.MetaCompletionTokens);
  watch(to, path, 'sglext.routed_experts', Place.Raw);
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
    .add('*', Place.Element)
    .add('*.choices', Place.ElementChoices);
  addSglang(made, '');
  addSglang(made, ELEMENT);
  addRows(made, 'choices.*.routed_experts.');
  return made;
}
