// Whether arrays have as many rows as their tokens ask for: one for every token but the last, which
// no engine has forwarded. An array may begin behind the first token, so what is compared is the
// position behind its last row.

@final
export class RowCounter {
  /** Arrays so far, the rows in them, and the sum of the positions behind their last rows. */
  arrays: i32 = 0;
  rows: u64 = 0;
  private ends: u64 = 0;
  /** The sum of the tokens of their prompts. */
  private prompts: u64 = 0;

  /** Of the choice: the position behind its array's last row, and its prompt's tokens; -1: none. */
  private end: i64 = -1;
  private prompt: i64 = -1;
  /** The choice's `index`, and the number of its `token_ids`; -1: it does not tell. */
  index: i64 = -1;
  tokens: i64 = -1;

  /**
   * In a stream `token_ids` are those of one event. These are their sums by choice, below 0 where
   * an event did not tell them. Null until the first one.
   */
  private generated: StaticArray<i64> | null = null;

  /** `choices`: how many the request asks for. */
  constructor(
    private choices: i32,
    private events: bool,
  ) {}

  beginChoice(): void {
    this.end = this.prompt = this.index = this.tokens = -1;
  }

  /** Counts an array that begins with the row of token `firstRow`. `promptTokens` -1: not known. */
  add(firstRow: u64, rows: u64, promptTokens: i64): void {
    this.arrays++;
    this.rows += rows;
    this.ends += firstRow + rows;
    this.prompts += <u64>max<i64>(promptTokens, 0);
    this.end = <i64>(firstRow + rows);
    this.prompt = promptTokens;
  }

  /** The choice has ended. Returns false when its array does not have the rows of its tokens. */
  endChoice(): bool {
    const tokens = this.tokensSoFar;
    if (this.events) this.keep(tokens);
    if (this.end < 0 || this.prompt < 0 || tokens < 1) return true;
    return this.end == this.prompt + tokens - 1;
  }

  /** Whether the rows are those of `completion` tokens, of all choices; -1: not known. */
  matches(completion: i64): bool {
    if (completion < 1) return true;
    return this.ends + <u64>this.arrays == this.prompts + <u64>completion;
  }

  /**
   * The same where decode has served the request alone. `promptTokens` counts each of the prompts
   * once, and each has the same number of samples. Rows begin with that of token `start`, or with
   * the first one where the engine does not know that field of the request.
   */
  matchesAlone(promptTokens: i64, completion: i64, prompts: i32, start: i64): bool {
    if (promptTokens < 0 || completion < 1) return true;
    const samples = this.arrays / max(prompts, 1);
    const tokens = samples * promptTokens + completion;
    const rows = <i64>this.rows + this.arrays;
    return rows == tokens || rows + this.arrays * max<i64>(start, 0) == tokens;
  }

  /**
   * Tokens of the choice that is being read, in a stream with those of its earlier events; -1: not
   * known.
   */
  get tokensSoFar(): i64 {
    if (!this.events) return this.tokens;
    const at = this.place;
    if (at < 0) return -1;
    const generated = this.generated;
    const before: i64 = generated === null ? 0 : generated[at];
    return before < 0 || this.tokens < 0 ? -1 : before + this.tokens;
  }

  /** The event has ended for its choice, which has `tokens` tokens so far. */
  private keep(tokens: i64): void {
    const at = this.place;
    if (at < 0) return;
    let generated = this.generated;
    if (generated === null) {
      generated = new StaticArray<i64>(this.choices);
      this.generated = generated;
    }
    generated[at] = tokens;
  }

  /** The place of the choice that is being read among all; -1: not known. */
  private get place(): i32 {
    const at = this.index >= 0 ? this.index : this.choices == 1 ? 0 : -1;
    return at < this.choices ? <i32>at : -1;
  }
}
