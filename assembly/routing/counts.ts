// Counts of tokens that a reply, or an element of a list, tells: OpenAI's in `usage`, SGLang's in
// `meta_info`. A count is -1 where it is not told, or not as a plain integer. Where a reply has two
// `usage` or two `meta_info`, the last one counts.

import { Place } from './places';


@final
export class Counts {
  private usagePrompt: i64 = -1;
  private usageCompletion: i64 = -1;
  private metaPrompt: i64 = -1;
  private metaCompletion: i64 = -1;

  /** Nothing is told of the reply or element that begins. */
  reset(): void {
    this.beginUsage();
    this.beginMeta();
  }

  /** A `usage` begins. */
  beginUsage(): void {
    this.usagePrompt = this.usageCompletion = -1;
  }

  /** A `meta_info` begins. */
  beginMeta(): void {
    this.metaPrompt = this.metaCompletion = -1;
  }

  /** The count at a place is `value`; -1: it is no plain integer. */
  tell(place: Place, value: i64): void {
    if (place == Place.PromptTokens) this.usagePrompt = value;
    else if (place == Place.CompletionTokens) this.usageCompletion = value;
    else if (place == Place.MetaPromptTokens) this.metaPrompt = value;
    else if (place == Place.MetaCompletionTokens) this.metaCompletion = value;
  }

  /** Tokens of the prompt; -1: not known. */
  get prompt(): i64 {
    return max(this.usagePrompt, this.metaPrompt);
  }

  /** Tokens that were generated; of several choices their sum. -1: not known. */
  get completion(): i64 {
    return max(this.usageCompletion, this.metaCompletion);
  }

  /** Whether `usage` and `meta_info` tell different numbers: nobody knows which are right. */
  get differ(): bool {
    return (
      contradict(this.usagePrompt, this.metaPrompt) || contradict(this.usageCompletion, this.metaCompletion)
    );
  }
}

/** Whether both numbers are told, and differ. */
function contradict(a: i64, b: i64): bool {
  return a >= 0 && b >= 0 && a != b;
}
