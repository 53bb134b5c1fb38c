// Decides how an array of decode's is read: in which format, and which of prefill's rows are merged
// with it. Where decode has served the request alone, there are none.

import { formatAt } from './formats/format';
import { Name } from './named_array';
import { Place, isElementRaw, nameAt } from './places';
import { Format, Prompt, PromptArray } from './prompt';
import { Reason } from './reason';
import { ReplyReader } from './reply_reader';
import { RowPlan } from './row_plan';

/**
 * The most values of routing in a response: vLLM allows no more choices (VLLM_MAX_N_SEQUENCES). The
 * edits of arrays that are held take memory which is not counted.
 */
const MAX_VALUES: i32 = 16384;


@final
export class ArrayMatch {
  /** The name of the array. After `judge`. */
  name: Name = Name.RoutedExperts;
  /** The format; of `Format.Prompt` the array is nested lists. After `judge`. */
  format: Format = Format.None;
  /** Prefill's rows for the array (borrowed); null where none are merged with it. After `judge`. */
  plan: RowPlan | null = null;
  /** Whether the end of the event tells which rows these are. After `judge`. */
  later: bool = false;
  /** Values of routing that have been judged. */
  values: i32 = 0;
  /** Those of `choices[i].routed_experts`. */
  private arrays: i32 = 0;

  constructor(
    /** What prefill brought (borrowed). */
    private prompt: Prompt,
    /** Prompts in the request, and choices that were asked for of each. */
    private prompts: i32,
    private choices: i32,
    /** Whether decode has served the request alone. */
    private alone: bool,
    /** Whether the response is a stream of events. */
    private events: bool,
  ) {}

  /** Counts the value that begins. Returns why there are too many; call it before `judge`. */
  exceeds(reader: ReplyReader): Reason {
    const surplus = reader.place == Place.Array && ++this.arrays > this.choices;
    if (surplus && !this.alone) return Reason.Choices;
    return ++this.values > MAX_VALUES ? Reason.Memory : Reason.None;
  }

  /** Why the value that begins with `first` at the reader's place can't be read, or merged. */
  judge(reader: ReplyReader, first: u8): Reason {
    const prompt = this.prompt;
    const format = formatAt(reader.place, first);
    this.name = nameAt(reader.place);
    this.format = format;
    this.plan = null;
    this.later = false;
    const array = prompt.array(this.name);
    if (!this.alone && !array.came) return array.missing;
    if (format == Format.None) return Reason.Format;
    if (this.alone) return Reason.None;
    if (array.format == Format.Prompt && (format == Format.Prompt || format == Format.Object)) {
      // Generated rows, beside prefill's value. That ends with the row of the last prompt token,
      // and a row of decode's can't be put into it.
      return prompt.lastRowOfDecode ? Reason.Rows : Reason.None;
    }
    if (format != array.format) return Reason.Mixed;
    this.plan = this.planHere(reader, array);
    return this.plan === null && !this.later ? Reason.Choices : Reason.None;
  }

  /** Prefill's rows for the element that is being read; null: nobody can tell which they are. */
  private planHere(reader: ReplyReader, array: PromptArray): RowPlan | null {
    const several = array.plans.length > 1;
    const prompts = this.prompts > 1;
    // An event of SGLang's has the `index` of its prompt behind the array.
    this.later = this.events && several && isElementRaw(reader.place);
    if (this.later) return null;
    // Outside of a list an array does not tell which of several prompts it is of. In a list each
    // element is of one prompt, so prefill must have brought rows for each.
    if (reader.list ? prompts && !several : prompts || several) return null;
    return array.planOf(max(reader.element, 0));
  }
}
