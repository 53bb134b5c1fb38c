// Puts values of prefill's reply into decode's response: in the place of decode's own value, or
// before the closing brace of an object that has no such member.

import { Ascii } from '../bytes/ascii';
import { Site } from './formats/format';
import { Place } from './places';
import { Format, Kind, PrefillValue, Prompt } from './prompt';
import { Reason } from './reason';
import { ReplyReader } from './reply_reader';
import { ValueSwap } from './value_swap';

/**
 * A value that is as long as the prompt is put in at most twice for each choice that was asked for,
 * and this many times more. Otherwise a response with many choices would make the body grow without
 * a limit.
 */
const SPARE_COPIES: i32 = 64;

const PROMPT_EXPERTS = new Ascii('"prompt_routed_experts":');
const PROMPT_LOGPROBS = new Ascii('"prompt_logprobs":');
const COMMA = new Ascii(',');


@final
export class PrefillValues {
  /** Whether prefill's `prompt_routed_experts` has been put in. */
  placed: bool = false;
  /** How many long values have been put in. */
  private copies: i32 = 0;

  /** `prompt` is borrowed. */
  constructor(private prompt: Prompt) {}

  /**
   * A value of one of the kinds begins at the scanner's cursor: if prefill had one at the same
   * place, it replaces decode's. Returns why decode's can't stay where it is the prompt's routing,
   * and prefill's can't replace it.
   */
  put(site: Site, reply: ReplyReader, swap: ValueSwap): Reason {
    const isNull = site.scanner.first == 0x6e;
    const prompt = this.prompt;
    const kind = reply.kind;
    if (kind == Kind.PromptExperts) {
      if (prompt.format != Format.Prompt) {
        if (isNull) return Reason.None;
        return prompt.routing.came ? Reason.Mixed : prompt.routing.missing;
      }
      if (reply.again) return Reason.Duplicate;
      this.placed = true;
    }
    // Details that are an object stay: only `cached_tokens` in them is replaced.
    if (kind == Kind.TokensDetails && !isNull) return Reason.None;
    const value = prompt.value(kind);
    if (value === null) return Reason.None;
    if (value.inChoice == reply.inChoice) {
      if (this.mayCopy(site, kind)) swap.begin(site, value);
      return Reason.None;
    }
    return kind == Kind.PromptExperts ? Reason.Mixed : Reason.None;
  }

  /**
   * The closing brace of an object of decode's has just been read: the object gets the long values
   * that prefill had at this place and decode has not.
   */
  insertMissing(site: Site, reply: ReplyReader, inChoice: bool): void {
    // Every event of a stream would get them again.
    if (site.events) return;
    const values = this.prompt.values;
    let members = site.scanner.count;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (!isLong(value.kind) || value.inChoice != inChoice || reply.has(placeOf(value.kind, inChoice)))
        continue;
      if (!this.mayCopy(site, value.kind)) return;
      this.insert(site, value, members++ > 0);
    }
  }

  /** `behind`: another member stands before it in the object. */
  private insert(site: Site, value: PrefillValue, behind: bool): void {
    const experts = value.kind == Kind.PromptExperts;
    if (experts) this.placed = true;
    const key = experts ? PROMPT_EXPERTS : PROMPT_LOGPROBS;
    const comma: usize = behind ? COMMA.len : 0;
    // The position of the brace.
    const at = site.position - 1;
    if (comma > 0) site.rope.replace(at, 0, COMMA.ptr, comma);
    site.rope.replace(at, 0, key.ptr, key.len);
    site.rope.replaceFrom(at, 0, value.text, 0, value.text.length);
    site.growth += <i64>(comma + key.len) + <i64>value.text.length;
  }

  /** Counts one more value of this kind. False: there are too many, the response is refused. */
  private mayCopy(site: Site, kind: Kind): bool {
    if (!isLong(kind)) return true;
    if (<i64>++this.copies <= 2 * <i64>site.choicesAsked + SPARE_COPIES) return true;
    site.refuse(Reason.Choices);
    return false;
  }
}

/** Whether values of this kind are as long as the prompt, and put in where decode has none. */
function isLong(kind: Kind): bool {
  return kind == Kind.PromptExperts || kind == Kind.PromptLogprobs;
}

/** The place of a long value, in a choice or in the reply. */
function placeOf(kind: Kind, inChoice: bool): Place {
  if (kind == Kind.PromptExperts) return inChoice ? Place.ChoicePromptExperts : Place.PromptExperts;
  return inChoice ? Place.ChoicePromptLogprobs : Place.PromptLogprobs;
}
