// How decode came by the prompt of an exchange of P/D: the tokens that it did not compute, because
// it pulled them from prefill or found them in its own cache, and those that it did. This shows an
// operator whether P/D saves decode the prompt.

import { countDecodeCache, countDecodeUntold } from './metrics';


@final
export class DecodeCache {
  private constructor(
    /** -1: decode has not told. */
    private readonly cached: i64,
    private readonly computed: i64,
  ) {}

  /** Decode says that `cached` of the `tokens` tokens of the prompt were cached; -1: not known. */
  static of(cached: i64, tokens: i64): DecodeCache {
    return cached < 0 || tokens < cached ? new DecodeCache(-1, -1) : new DecodeCache(cached, tokens - cached);
  }

  /** What the access log says of it. */
  get text(): string {
    if (this.cached < 0) return 'untold';
    return 'cached=' + this.cached.toString() + '; computed=' + this.computed.toString();
  }

  count(): void {
    if (this.cached < 0) countDecodeUntold();
    else countDecodeCache(this.cached, this.computed);
  }
}
