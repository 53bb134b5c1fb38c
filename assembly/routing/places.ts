// Where the legs' replies hold what the filter reads or writes. Both legs' replies have the same
// shape.

import { Paths } from '../json/paths';
import { NAMED, Name } from './named_array';

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
  PromptTokens,
  CompletionTokens,
  TokensDetails,
  CachedTokens,
  /** SGLang's `meta_info`, of a reply or of an element of a list. */
  Meta,
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
  /**
   * The array of name n is at `Raw + n`, where it stands in `meta_info`, or in `sglext` beside it;
   * and at `ChoiceRaw + n` in `choices[i].meta_info`.
   */
  Raw,
  ChoiceRaw = Raw + Name.Count,
  /** Not a place: how many there are. */
  Count = ChoiceRaw + Name.Count,
}

/** Whether an array of SGLang's is at a place: of a reply, an element of a list, or a choice. */
export function isRaw(place: Place): bool {
  return place >= Place.Raw && place < Place.Count;
}

/** Whether such an array is that of a reply or an element, and not that of a choice. */
export function isElementRaw(place: Place): bool {
  return place >= Place.Raw && place < Place.ChoiceRaw;
}

/** The name of the array at a place. */
export function nameAt(place: Place): Name {
  if (!isRaw(place)) return Name.RoutedExperts;
  return <Name>(place - (place < Place.ChoiceRaw ? Place.Raw : Place.ChoiceRaw));
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
  const names = 'meta_info meta_info.prompt_tokens meta_info.completion_tokens';
  watch(to, path, names + ' meta_info.finish_reason.type meta_info.dp_rank', Place.Meta);
  watchRaw(to, path + 'meta_info.', Place.Raw);
  watchRaw(to, path + 'sglext.', Place.Raw);
}

/** Watches SGLang's arrays in the object at `path`; the first one is at the place `first`. */
function watchRaw(to: Paths, path: string, first: Place): void {
  for (let name = 0; name < Name.Count; name++) to.add(path + NAMED[name].key, <i32>first + name);
}

/**
 * Watches arrays other than routing where that stands, too. No engine writes them there; if one
 * does, they are either merged or refused.
 */
function watchOthers(to: Paths, path: string, first: Place): void {
  for (let name: i32 = Name.RoutedExperts + 1; name < Name.Count; name++)
    to.add(path + NAMED[name].key, <i32>first + name);
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
    'routed_experts prompt_routed_experts prompt_logprobs index token_ids finish_reason',
    Place.Array,
  );
  watchRaw(made, 'choices.*.meta_info.', Place.ChoiceRaw);
  watchOthers(made, 'choices.*.', Place.ChoiceRaw);
  watchOthers(made, '', Place.Raw);
  watchOthers(made, '*.', Place.Raw);
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
