// Whether arrays have as many rows as their tokens ask for: all tokens but the last, which nobody has forwarded. An array
// may begin behind the first token, so what is compared is the position behind its last row.

@final
export class RowCounter {
  /** Arrays so far, the rows in them, and the positions behind their last rows together. */
  arrays: i32 = 0;
  rows: u64 = 0;
  private ends: u64 = 0;
  /** Tokens of their prompts together. */
  private prompts: u64 = 0;

  /** Of the choice that is being read: the position behind its array's last row, and its prompt's tokens; -1: none. */
  private end: i64 = -1;
  private prompt: i64 = -1;
  /** Its `index`, and the elements of its `token_ids`; -1: not told. */
  index: i64 = -1;
  tokens: i64 = -1;

  /** In a stream `token_ids` are those of one event: the sums by choice; below 0 where an event did not tell. */
  private generated: StaticArray<i64> | null = null;

  /** `choices` are those that the request asks for. */
  constructor(
    private choices: i32,
    private events: bool,
  ) {}

  beginChoice(): void {
    this.end = this.prompt = this.index = this.tokens = -1;
  }

  /** An array whose first row is that of token `firstRow`; `promptTokens` < 0: not known. */
  add(firstRow: u64, rows: u64, promptTokens: i64): void {
    this.arrays++;
    this.rows += rows;
    this.ends += firstRow + rows;
    this.prompts += <u64>max<i64>(promptTokens, 0);
    this.end = <i64>(firstRow + rows);
    this.prompt = promptTokens;
  }

  /** The choice has ended: false when its array does not have the rows of its tokens. */
  endChoice(): bool {
    const tokens = this.events ? this.tokensSoFar() : this.tokens;
    if (this.end < 0 || this.prompt < 0 || tokens < 1) return true;
    return this.end == this.prompt + tokens - 1;
  }

  /** Whether the rows are those of `completion` generated tokens of all choices together; -1: not known. */
  matches(completion: i64): bool {
    if (completion < 1) return true;
    return this.ends + <u64>this.arrays == this.prompts + <u64>completion;
  }

  /**
   * The same where decode has served the request alone: `promptTokens` of all prompts once, each with the same number of
   * samples, and rows from token `start` on, or from the first one where the engine does not know that field.
   */
  matchesAlone(promptTokens: i64, completion: i64, prompts: i32, start: i64): bool {
    if (promptTokens < 0 || completion < 1) return true;
    const samples = this.arrays / max(prompts, 1);
    const tokens = samples * promptTokens + completion;
    const rows = <i64>this.rows + this.arrays;
    return rows == tokens || rows + this.arrays * max<i64>(start, 0) == tokens;
  }

  private tokensSoFar(): i64 {
    const at = this.index >= 0 ? this.index : this.choices == 1 ? 0 : -1;
    if (at < 0 || at >= this.choices) return -1;
    let generated = this.generated;
    if (generated === null) {
      generated = new StaticArray<i64>(this.choices);
      this.generated = generated;
    }
    const before = generated[<i32>at];
    const sum = before < 0 || this.tokens < 0 ? -1 : before + this.tokens;
    generated[<i32>at] = sum;
    return sum;
  }
}
