// Counts of tokens that a reply, or an element of it, tells: OpenAI's in `usage`, SGLang's in `meta_info`.

/** One holder's counts; -1: not told, or not as a plain integer. */
@final
class Told {
  prompt: i64 = -1;
  completion: i64 = -1;

  reset(): void {
    this.prompt = this.completion = -1;
  }
}

/** Whether two holders tell different numbers. */
function contradict(a: i64, b: i64): bool {
  return a >= 0 && b >= 0 && a != b;
}


@final
export class Counts {
  /** Of the last `usage`, and of the last `meta_info`: a second one counts instead of the first. */
  readonly usage: Told = new Told();
  readonly meta: Told = new Told();

  reset(): void {
    this.usage.reset();
    this.meta.reset();
  }

  /** Tokens of the prompt; -1: not known. */
  get prompt(): i64 {
    return max(this.usage.prompt, this.meta.prompt);
  }

  /** Tokens that were generated; of several choices their sum. -1: not known. */
  get completion(): i64 {
    return max(this.usage.completion, this.meta.completion);
  }

  /** Whether `usage` and `meta_info` tell different numbers, so that nobody knows which are right. */
  get differ(): bool {
    const usage = this.usage;
    const meta = this.meta;
    return contradict(usage.prompt, meta.prompt) || contradict(usage.completion, meta.completion);
  }
}
