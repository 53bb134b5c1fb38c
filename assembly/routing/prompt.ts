// What prefill's reply brings for decode's response: the prompt's rows, and values of members that
// take the place of decode's.

import { Name } from './named_array';
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

/** An array of prefill's reply, whose rows go into decode's arrays of the same name. */
@final
export class PromptArray {
  format: Format = Format.None;
  /** Why the format is `None`: nothing came, or what came can't be used. */
  missing: Reason = Reason.Missing;
  /**
   * The rows (owned) and their plans, one for each element of the reply; a single one serves every
   * choice of decode's. Empty for `Format.Prompt`.
   */
  readonly plans: RowPlan[] = [];

  /** Whether prefill has brought it, and it can be used. */
  get came(): bool {
    return this.format != Format.None;
  }

  /** The plan (borrowed) for an element of decode's response; null when there is none for it. */
  planOf(element: i32): RowPlan | null {
    const plans = this.plans;
    if (plans.length == 1) return plans[0];
    return element < plans.length ? plans[element] : null;
  }

  /** How many rows are taken from prefill, of all prompts together. */
  get taken(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.plans.length; i++) sum += this.plans[i].taken;
    return sum;
  }

  /** Bytes of prefill's rows that a response with this many of these arrays takes. */
  bytesFor(arrays: i32): u64 {
    const plans = this.plans;
    if (plans.length == 1) return plans[0].bytes * arrays;
    let sum: u64 = 0;
    for (let i = 0; i < plans.length; i++) sum += plans[i].bytes;
    return arrays > 0 ? sum : 0;
  }

  /** Takes over the rows of another array, and frees copies of them. */
  takeOver(other: PromptArray): void {
    this.format = other.format;
    const plans = other.plans;
    for (let i = 0; i < plans.length; i++) {
      plans[i].rows.freeCopies();
      this.plans.push(plans[i]);
    }
    plans.length = 0;
  }

  /** The rows can't be used, and are freed. */
  refuse(reason: Reason): void {
    this.format = Format.None;
    this.missing = reason;
    for (let i = 0; i < this.plans.length; i++) this.plans[i].free();
    this.plans.length = 0;
  }
}


@final
export class Prompt {
  /** `routed_experts`. */
  readonly routing: PromptArray = new PromptArray();
  /** All arrays by their names, of which the first is `routing`. */
  private readonly arrays: PromptArray[] = [this.routing];
  /** Tokens of all prompts of the request together; -1: not known. */
  tokens: i64 = -1;
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

  constructor() {
    while (this.arrays.length < Name.Count) this.arrays.push(new PromptArray());
  }

  /** The array of a name. */
  array(name: Name): PromptArray {
    return this.arrays[name];
  }

  /** How routing came. */
  get format(): Format {
    return this.routing.format;
  }

  /** The first array that came; routing's, where none has. Its plans tell of the prompts. */
  get leading(): PromptArray {
    return this.arrays[this.leadingName];
  }

  get leadingName(): Name {
    for (let i = 0; i < this.arrays.length; i++) if (this.arrays[i].came) return <Name>i;
    return Name.RoutedExperts;
  }

  /** Bytes of prefill's rows in a response with so many arrays of each name. */
  bytesIn(arrays: StaticArray<i32>): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.arrays.length; i++) sum += this.arrays[i].bytesFor(arrays[i]);
    return sum;
  }

  /** Whether an array came as SGLang writes it. */
  get hasRaw(): bool {
    for (let i = 0; i < this.arrays.length; i++) if (this.arrays[i].format == Format.Raw) return true;
    return false;
  }

  /** The value of a kind (borrowed); null when prefill's reply had none. */
  value(kind: Kind): PrefillValue | null {
    for (let i = 0; i < this.values.length; i++) if (this.values[i].kind == kind) return this.values[i];
    return null;
  }

  /** How many rows are taken from prefill, of all prompts together. */
  get rowCount(): u64 {
    return this.format == Format.Prompt ? this.valueRows : this.leading.taken;
  }

  /** Tokens of the prompt; of several prompts, of all of them together. */
  get promptEnd(): u64 {
    if (this.format == Format.Prompt) return <u64>max<i64>(this.tokens, 0);
    const plans = this.leading.plans;
    let sum: u64 = 0;
    for (let i = 0; i < plans.length; i++) sum += plans[i].promptEnd;
    return sum;
  }

  /** The first row that decode is asked for if it is asked for its own only; -1: not known. */
  get seam(): i64 {
    const plans = this.routing.plans;
    if (plans.length == 1) return <i64>plans[0].seam;
    const seam = this.tokens > 0 && this.lastRowOfDecode ? this.tokens - 1 : this.tokens;
    return seam < 0 ? seam : max<i64>(seam, this.start);
  }

  /** Whether prefill's reply had no array; it may have had other values. */
  get lacksArrays(): bool {
    for (let i = 0; i < this.arrays.length; i++)
      if (this.arrays[i].came || this.arrays[i].missing != Reason.Missing) return false;
    return true;
  }

  /**
   * Whether an array of decode's may have a narrower dtype than prefill's, so that it grows when it
   * is widened.
   */
  get mayWiden(): bool {
    if (this.format != Format.Npy && this.format != Format.Object) return false;
    const plans = this.routing.plans;
    for (let i = 0; i < plans.length; i++) if (plans[i].rows.dtype != Dtype.U1) return true;
    return false;
  }

  /**
   * By how many characters rows and values make a response longer that has `arrays` arrays without
   * the prompt's rows.
   */
  addedTo(arrays: i32): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.arrays.length; i++) sum += (this.arrays[i].bytesFor(arrays) * 4) / 3;
    for (let i = 0; i < this.values.length; i++) {
      const value = this.values[i];
      sum += value.text.length * (value.inChoice ? <u64>arrays : 1);
    }
    return sum;
  }

  /** Bytes that rows and values take of the VM's memory. */
  get heldBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.arrays.length; i++) {
      const plans = this.arrays[i].plans;
      for (let j = 0; j < plans.length; j++) sum += plans[j].rows.heldBytes;
    }
    for (let i = 0; i < this.values.length; i++) sum += this.values[i].text.length;
    return sum;
  }

  /** Bytes that rows take of the parking, outside of the VM's memory. */
  get parkedBytes(): u64 {
    let sum: u64 = 0;
    for (let i = 0; i < this.arrays.length; i++) {
      const plans = this.arrays[i].plans;
      for (let j = 0; j < plans.length; j++) sum += plans[j].rows.parkedBytes;
    }
    return sum;
  }

  /**
   * Hands routing's rows over to a prompt that the caller owns, and keeps the other values. Copies
   * of the rows at other positions are freed, and so are the rows of other arrays.
   */
  giveRows(): Prompt {
    const given = new Prompt();
    given.layers = this.layers;
    given.topK = this.topK;
    given.valueRows = this.valueRows;
    given.routing.takeOver(this.routing);
    this.refuse(Reason.Missing);
    const values = this.values;
    for (let i = values.length - 1; i >= 0; i--) {
      if (values[i].kind == Kind.PromptExperts) given.values.push(values.splice(i, 1)[0]);
    }
    return given;
  }

  /** No rows can be used: they are freed, and only the other values are kept. */
  refuse(reason: Reason): void {
    for (let i = 0; i < this.arrays.length; i++) this.arrays[i].refuse(reason);
  }

  free(): void {
    this.refuse(Reason.Missing);
    for (let i = 0; i < this.values.length; i++) this.values[i].text.free();
    this.values.length = 0;
  }
}
