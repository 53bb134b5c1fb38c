// The arrays of a reply with a row for each token. Each is the value of a member of its own name,
// and all are merged by the same plan; another one is a line in each of the two lists below.
//
// `routed_experts` comes in every format of formats/. The others are SGLang's: they come in its
// format only (formats/raw_string.ts), beside `routed_experts`.

/** An array, by the name of its member. */
export const enum Name {
  RoutedExperts,
  /**
   * The positions that the indexer of sparse attention (DSA) has chosen for a token, in each layer
   * that has one: int32, of which -1 and 0 may repeat (SGLang 0.5.23,
   * sglang/srt/state_capturer/indexer_topk.py).
   */
  IndexerTopk,
  /** Not a name: how many there are. */
  Count,
}


@final
export class NamedArray {
  constructor(
    readonly key: string,
    /** The member by which a client of SGLang's asks for it. */
    readonly askedBy: string,
    /** Whether its rows name experts, and so are examined. Of other rows nothing is known. */
    readonly experts: bool,
    /** Whether a client can ask for the rows from a token on; else the array has all rows. */
    readonly hasStart: bool,
  ) {}
}

/** In the order of their names, which is that in which SGLang writes them. */
export const NAMED: NamedArray[] = [
  new NamedArray('routed_experts', 'return_routed_experts', true, true),
  new NamedArray('indexer_topk', 'return_indexer_topk', false, false),
];
