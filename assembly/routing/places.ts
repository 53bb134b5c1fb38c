// Where the legs' replies hold what the filter reads or writes. Both legs' replies have the same
// shape.

import { Paths } from '../json/paths';

/** A watched place. Members of an object stand in the order of their names below. */
export const enum Place {
  Root,
  /** A row, a layer and an expert, of rows that are nested lists. */
  Row,
  Layer,
  Expert,
  /** Members of rows that are an object. */
  Data,
  Shape,
  /** A number of `shape`. */
  Dimension,
  Start,
  Dtype,
  Choices,
  PromptExperts,
  PromptLogprobs,
  KvTransferParams,
  Usage,
  Choice,
  /** `choices[i].routed_experts` */
  Array,
  ChoicePromptExperts,
  ChoicePromptLogprobs,
  ChoiceIndex,
  TokenIds,
  FinishReason,
  /** `choices[i].meta_info.routed_experts` */
  ChoiceRaw,
  PromptTokens,
  CompletionTokens,
  TokensDetails,
  CachedTokens,
  /** SGLang's `meta_info`, of a reply or of an element of a list. */
  Meta,
  /** `routed_experts` in it, or in `sglext` beside it. */
  Raw,
  MetaPromptTokens,
  MetaCompletionTokens,
  /** The type of its `finish_reason`, which is an object. */
  MetaFinish,
  /** The member of it before which SGLang writes arrays. */
  MetaRank,
  /** SGLang's `sglext`, of a reply. */
  Sglext,
  /** `choices[i].meta_info`, and the same member of it. */
  ChoiceMeta,
  ChoiceMetaRank,
  /** In an event of SGLang's: which prompt of a batch it is of. */
  Index,
  MetaCachedTokens,
  /** `kv_transfer_params.remote_prefill_cached_tokens` */
  RemoteCached,
  /** An element of a reply that is a list. */
  Element,
  /** `choices` of an element: no reply that is a list has them. */
  ElementChoices,
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
 * Places in decode's response to a request that prefill had no part in. They are also those of
 * prompt rows that decode gives itself, and of what it says of its cache.
 */
export function alonePaths(): Paths {
  const known = alone;
  if (known !== null) return known;
  const made = basePaths();
  watch(made, 'meta_info.', 'cached_tokens', Place.MetaCachedTokens);
  watch(made, '*.meta_info.', 'cached_tokens', Place.MetaCachedTokens);
  watchRows(made, 'prompt_routed_experts.');
  watchRows(made, 'choices.*.prompt_routed_experts.');
  alone = made;
  return made;
}

/**
 * Watches members of the object at `path`, which ends with a dot or is empty. `names`, with spaces
 * between them, are in the order of the places from `first` on.
 */
export function watch(to: Paths, path: string, names: string, first: Place): void {
  const all = names.split(' ');
  for (let i = 0; i < all.length; i++) to.add(path + all[i], <i32>first + i);
}

/** Members of an object that holds rows. */
export const ROWS_OBJECT = 'data shape shape.* start dtype';

/** Watches what is inside a value with rows, whatever its format. */
function watchRows(to: Paths, path: string): void {
  watch(to, path, '* *.* *.*.*', Place.Row);
  watch(to, path, ROWS_OBJECT, Place.Data);
}

/** Watches SGLang's own members, of a reply or of an element of a list. */
function watchSglang(to: Paths, path: string): void {
  const names = 'meta_info meta_info.routed_experts meta_info.prompt_tokens meta_info.completion_tokens';
  watch(to, path, names + ' meta_info.finish_reason.type meta_info.dp_rank', Place.Meta);
  watch(to, path, 'sglext.routed_experts', Place.Raw);
}

function basePaths(): Paths {
  const made = new Paths();
  made.add('', Place.Root);
  watch(
    made,
    '',
    'choices prompt_routed_experts prompt_logprobs kv_transfer_params usage choices.*',
    Place.Choices,
  );
  watch(
    made,
    'choices.*.',
    'routed_experts prompt_routed_experts prompt_logprobs index token_ids finish_reason meta_info.routed_experts',
    Place.Array,
  );
  watch(
    made,
    'usage.',
    'prompt_tokens completion_tokens prompt_tokens_details prompt_tokens_details.cached_tokens',
    Place.PromptTokens,
  );
  watch(made, 'kv_transfer_params.', 'remote_prefill_cached_tokens', Place.RemoteCached);
  watch(made, '', '* *.choices', Place.Element);
  watchSglang(made, '');
  watch(made, '', 'sglext', Place.Sglext);
  watch(made, 'choices.*.', 'meta_info meta_info.dp_rank', Place.ChoiceMeta);
  watch(made, '', 'index', Place.Index);
  watchSglang(made, '*.');
  watchRows(made, 'choices.*.routed_experts.');
  return made;
}
