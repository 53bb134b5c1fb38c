// What an exchange knows when decode's response comes: what prefill brought, what the client asked
// for, and what the rows of both legs say.

import { RequestBody } from '../../connectors/request_body';
import { Alone, DecodeResponse, Expected } from '../../routing/decode_response';
import { Examination, Leg } from '../../routing/examination';
import { Format } from '../../routing/prompt';
import { Reason, reasonText } from '../../routing/reason';
import { Config } from '../config/config';
import { Captured } from './capture';
import { Kept } from './room';


@final
export class Brought {
  /** Prefill's reply (owned); empty before it has come, and where there is no prefill leg. */
  readonly captured: Captured = new Captured();
  /** What a reader of decode's response needs to know. It borrows from here. */
  readonly expected: Expected = new Expected();
  /** What the rows of both legs say (owned). */
  readonly examination: Examination;
  private readonly kept: Kept = new Kept();

  constructor(private readonly config: Config) {
    this.examination = new Examination(config.rowCheck, config.model);
    this.expected.examination = this.examination;
    this.captured.prompt.lastRowOfDecode = config.lastRowOfDecode;
  }

  /** Prefill's reply has been read: its bytes count from now on among those that the VM may keep. */
  count(): void {
    this.kept.count(this.captured.prompt);
  }

  /** Decode's leg of `request` is sent: what its response will be read with. */
  expectDecode(request: RequestBody): void {
    const expected = this.expected;
    expected.prompt = this.captured.prompt;
    expected.tail = this.config.tail;
    expected.maxTokens = request.maxTokens;
    this.expectChoices(request);
  }

  /** Decode serves `request` alone: prefill's rows, if any have come, are of no use. */
  expectAlone(request: RequestBody, alone: Alone): void {
    this.expected.alone = alone;
    this.expectChoices(request);
    this.forgetRows();
  }

  private expectChoices(request: RequestBody): void {
    this.expected.prompts = max(request.batch, 1);
    this.expected.choices = request.choices;
  }

  /** Whether edits to come may change the length of decode's body; arrays that become null aside. */
  get mayGrow(): bool {
    const prompt = this.expected.prompt;
    // An object says itself whether it has generated rows only, whatever decode was asked for.
    const tails = this.expected.tail || prompt.format == Format.Object;
    // Of several arrays each may be widened, whatever the first one was.
    const grows = tails || prompt.mayWiden;
    return prompt.values.length > 0 || (grows && this.expected.choices != 1);
  }

  /** The same while nothing is known of decode's arrays, not even of a single one. */
  get mayGrowFromTheStart(): bool {
    return this.mayGrow || this.expected.tail || this.expected.prompt.mayWiden;
  }

  /**
   * Whether decode served the request alone and its response is no JSON, but for what `response` has
   * read of it, in which no array has begun: then no client finds an array in it either.
   */
  isForeign(response: DecodeResponse, reason: Reason): bool {
    return reason == Reason.Json && this.expected.alone !== null && !response.begun;
  }

  /** What is wrong, in words; of rows that no router gives also where they are. */
  describe(reason: Reason): string {
    const text = reasonText(reason);
    return reason == Reason.Experts ? text + ' (' + this.examination.describe() + ')' : text;
  }

  /** Gives back what prefill brought. */
  forgetRows(): void {
    this.captured.free();
    this.kept.forget();
    this.examination.forget(Leg.Prefill);
  }

  /** Gives back everything. */
  free(): void {
    this.forgetRows();
    this.examination.free();
  }
}
