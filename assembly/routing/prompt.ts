// What prefill's reply brings for decode's response: the prompt's rows, and values of members that
// take the place of decode's.

import { Dtype } from './npy';
import { Reason } from './reason';
import { RowPlan } from './row_plan';
import { RowChars } from './rows';

/** How a reply carries routing. There is a file for each format in formats/. */
export const enum Format {
  None,
  /** `choices[i].routed_experts`: base64 of a .npy file. */
  Npy,
  /** `choices[i].routed_experts`: an object with `data`, `shape`, `start`, `dtype`. */
  Object,
  /** `prompt_routed_experts`: the prompt's rows are the value of a member of their own. */
  Prompt,
  /** `meta_info.routed_experts`, `sglext.routed_experts`: base64 of int32 without a header. */
  Raw,
}

/** Members whose value is taken from prefill's reply. */
export const enum Kind {
  PromptExperts,
  PromptLogprobs,
  /** `usage.prompt_tokens_details.cached_tokens` */
  CachedTokens,
  /** `usage.prompt_tokens_details`, for a response of decode's in which it is `null`. */
  TokensDetails,
  /** Not a kind: how many there are. */
  Count,
}

/** A value of prefill's reply, as the text of its JSON. */
@final
export class PrefillValue {
  /** Takes over `text`. */
  constructor(
    readonly kind: Kind,
    /** Whether it was a member of a choice, and not of the reply. */
    readonly inChoice: bool,
    readonly text: RowChars,
  ) {}
}


@final
export class Prompt {
  format: Format = Format.None;
  /** Why the format is `None`: nothing came, or what came can't be used. */
  missing: Reason = Reason.Missing;
  /** Tokens of all prompts of the request together; -1: not known. */
  tokens: i64 = -1;
  /**
   * The rows (owned) and their plans, one for each element of the reply; a single one serves every
   * choice of decode's. Empty for `Format.Prompt`.
   */
  plans: RowPlan[] = [];
  /** The first token whose row the client asks for. */
  start: u64 = 0;
  /** Whether the row of the last prompt token is decode's. */
  lastRowOfDecode: bool = false;
  /**
   * Decode forwards the last prompt token itself, so prefill's rows may lack that of this token:
   * with hybrid models (Mamba, GDN) vLLM's prefill drops the last token, which its `prompt_tokens`
   * still counts (vLLM's mooncake_connector.py and nixl/base_scheduler.py).
   */
  decodeForwardsLast: bool = false;
  /**
   * Whether decode is told how many tokens prefill found in its cache, which it then reports as its
   * own `cached_tokens` (vLLM 0.32, vllm/v1/engine/output_processor.py).
   */
  tellsCached: bool = false;
  /** The values (owned), at most one of each kind. */
  values: PrefillValue[] = [];
  /** The shape of the rows of `Format.Prompt`, whose text is a value of `Kind.PromptExperts`. */
  layers: u64 = 0;
  topK: u64 = 0;
  /** How many rows that value has. */
  valueRows: u64 = 0;

  /** The plan (borrowed) for an element of decode's response; null when there is none for it. */
  planOf(element: i32): RowPlan | null {
    const plans = this.plans;
    if (plans.length == 1) return plans[0];
    return element < plans.length ? plans[element] : null;
  }

  /** The value of a kind (borrowed); null when prefill's reply had none. */
  value(kind: Kind): PrefillValue | null {
    for (let i = 0; i < this.values.length; i++) if (this.values[i].kind == kind) return this.values[i];
    return null;
  }

  /** How many rows are taken from prefill, of all prompts together. */
  get rowCount(): u64 {
    if (this.format == Format.Prompt) return this.valueRows;
    let sum: u64 = 0;
    for (let i = 0; i < this.plans.length; i++) sum += this.plans[i].taken;
    return sum;
  }

  /** Tokens of the prompt; of several prompts, of all of them together. */
  get promptEnd(): u64 {
    if (this.format == Format.Prompt) return <u64>max<i64>(this.tokens, 0);
    let sum: u64 = 0;
    for (let i = 0; i < this.plans.length; i++) sum += this.plans[i].promptEnd;
    return sum;
  }

  /** The first row that decode is asked for if it is asked for its own only; -1: not known. */
  get seam(): i64 {
    if (this.plans.length == 1) return <i64>this.plans[0].seam;
    const seam = this.tokens > 0 && this.lastRowOfDecode ? this.tokens - 1 : this.tokens;
    return seam < 0 ? seam : max<i64>(seam, this.start);
  }

  /** Whether prefill's reply had no routing; it may have had other values. */
  get lacksRouting(): bool {
    return this.format == Format.None && this.missing == Reason.Missing;
  }

  /**
   * Whether an array of decode's may have a narrower dtype than prefill's, so that it grows when it
   * is widened.
   */
  get mayWiden(): bool {
    if (this.format != Format.Npy && this.format != Format.Object) return false;
    const plans = this.plans;
    for (let i = 0; i < plans.length; i++) if (plans[i].rows.dtype != Dtype.U1) return true;
    return false;
  }

  /** Bytes of prefill's rows that a response with this many arrays takes. */
  bytesFor(arrays: i32): u64 {
    const plans = this.plans;
    if (plans.length == 1) return plans[0].bytes * arrays;
    let sum: u64 = 0;
    for (let i = 0; i < plans.length; i++) sum += plans[i].bytes;
    return sum;
  }

  /**
   * By how many characters rows and values make a response longer that has `arrays` arrays without
   * the prompt's rows.
   */
  addedTo(arrays: i32): u64 {
    let sum: u64 = (this.bytesFor(arrays) * 4) / 3;
    for (let i = 0; i < this.values.length; i++) {
      const value = this.values[i];
      sum += value.text.length * (value.inChoice ? <u64>arrays : 1);
    }
    return sum;
  }

  /** Bytes that rows and values take of the VM's memory. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.plans.length; i++) sum += this.plans[i].rows.heldBytes;
    for (let i = 0; i < this.values.length; i++) sum += this.values[i].text.length;
    return sum;
  }

  /** Bytes that rows take of the parking, outside of the VM's memory. */
  get parkedBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.plans.length; i++) sum += this.plans[i].rows.parkedBytes;
    return sum;
  }

  /**
   * Hands the rows over to a prompt that the caller owns, and keeps the other values. Copies of the
   * rows at other positions are freed.
   */
  giveRows(): Prompt {
    const given = new Prompt();
    given.format = this.format;
    given.layers = this.layers;
    given.topK = this.topK;
    given.valueRows = this.valueRows;
    given.plans = this.plans;
    for (let i = 0; i < given.plans.length; i++) given.plans[i].rows.freeCopies();
    this.plans = [];
    this.refuse(Reason.Missing);
    const values = this.values;
    for (let i = values.length - 1; i >= 0; i--) {
      if (values[i].kind == Kind.PromptExperts) given.values.push(values.splice(i, 1)[0]);
    }
    return given;
  }

  /** The rows can't be used: they are freed, and only the other values are kept. */
  refuse(reason: Reason): void {
    this.format = Format.None;
    this.missing = reason;
    for (let i = 0; i < this.plans.length; i++) this.plans[i].free();
    this.plans.length = 0;
  }

  free(): void {
    this.refuse(Reason.Missing);
    for (let i = 0; i < this.values.length; i++) this.values[i].text.free();
    this.values.length = 0;
  }
}
