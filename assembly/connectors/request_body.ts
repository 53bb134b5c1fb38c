// What a client's request asks for, and where its members lie. Reads a body that is whole in
// memory, and keeps offsets only.

import { Event, Scanner } from '../json/scanner';
import { Name } from '../routing/named_array';
import { Api, Dialect, Field, Schema, ownerOf } from './schema';

/** Why P/D does not serve a request; `No` when it does. */
export const enum Unfit {
  No,
  /** The body is no JSON object by the grammar of Python's `json`. */
  NotObject,
  /**
   * The body is nested deeper than the scanner reads, so it is not known whether it has
   * `kv_transfer_params`.
   */
  TooDeep,
  /**
   * The body is in UTF-16 or UTF-32, or has a byte order mark: Python's `json.loads` would read it,
   * and the scanner does not.
   */
  NotUtf8,
  SeveralPrompts,
  /** The request asks for several choices of a prompt, and the connector can hand over only one. */
  SeveralChoices,
  /**
   * The request asks for logprobs of the prompt where prefill's can't be put in: with `echo`, or in
   * a stream.
   */
  PromptLogprobs,
  /** The request asks for no tokens: `max_tokens` is 0. */
  NoOutput,
  /**
   * The client has chosen the rows that it wants by a value that is no plain integer. An engine
   * takes 5.0 and "5" for 5, so which rows it returns would not be known.
   */
  PromptStart,
  /** The body has `sampling_params` twice. */
  Duplicate,
  /** The body has more of the members that are looked for than any request needs. */
  TooMany,
  /**
   * The request asks for a cut prompt. vLLM cuts it to what `max_tokens` leaves of the model's
   * length (`TokenizeParams`, vllm/renderers/params.py), which is another length on each leg.
   */
  Truncated,
  /** The request asks for a beam search, whose requests vLLM makes without `kv_transfer_params`. */
  Beams,
  /**
   * The request asks SGLang for several choices of a prompt, or for a number of them that is not
   * plainly 1. Its engines have no answer then: the choices share the prompt's room, and each but
   * the first waits for a transfer that never comes (SGLang 0.5.23).
   */
  Samples,
}

/** Most members that are kept: each takes memory, and edits search them. */
const MAX_MEMBERS: i32 = 1000;

/** Most prompts of a batch: each needs a room of SGLang's bootstrap server. */
const MAX_PROMPTS: i32 = 4096;
/**
 * No engine gives so many choices of one prompt. Times `MAX_PROMPTS` it must not overflow an i32.
 */
const MAX_SAMPLES: i64 = 1 << 18;

/** One occurrence of a field. Offsets count from the begin of the body. */
@final
export class Member {
  valueEnd: u64 = 0;
  /** How many members or elements the value has, where it is an object or an array. */
  count: i32 = 0;
  /** The value when it is a plain integer: no sign, fraction or exponent; else -1. */
  integer: i64 = -1;
  /** Offset behind the comma that follows the value; `valueEnd` when none follows. */
  commaEnd: u64 = 0;

  constructor(
    readonly field: Field,
    /** Position in its object, from 0 on. */
    readonly index: i32,
    readonly keyStart: u64,
    /** Offset of the comma before it, when `index` > 0. */
    readonly comma: u64,
    readonly valueStart: u64,
    /** First byte of the value. */
    readonly first: u8,
  ) {}

  get isNull(): bool {
    return this.first == 0x6e;
  }

  get isObject(): bool {
    return this.first == 0x7b;
  }

  /** Whether the value, in the body at `body`, has a letter, which is given in lower case. */
  has(letter: u8, body: usize): bool {
    const end = body + <usize>this.valueEnd;
    for (let at = body + <usize>this.valueStart; at < end; at++) {
      if ((load<u8>(at) | 0x20) == letter) return true;
    }
    return false;
  }
}

/** A request as it was read, without its bytes: those are given again where an edit is written. */
@final
export class RequestBody {
  unfit: Unfit = Unfit.No;
  /** The members that were found, in the order of the body. */
  readonly members: Member[] = [];
  /** How many prompts the request has in a list; -1 where its one prompt is in no list. */
  batch: i32 = -1;
  /** Tokens of its one prompt, where the request has them as numbers; -1: not known. */
  promptTokens: i32 = -1;

  /** Reads the `len` bytes at `ptr` (borrowed for the call). */
  constructor(
    readonly api: Api,
    readonly schema: Schema,
    ptr: usize,
    len: usize,
  ) {
    if (!isUtf8Text(ptr, len)) this.unfit = Unfit.NotUtf8;
    else this.scan(ptr, len);
    if (this.unfit == Unfit.No) this.unfit = this.judge(ptr, len);
  }

  /**
   * The last occurrence of a field, which is the one that counts, as in Python's `json`; null when
   * there is none. Where the body has an object twice, only members of the last one count: Python
   * drops the other with all that is in it.
   */
  last(field: Field): Member | null {
    const owner = ownerOf(field, this.api);
    for (let i = this.members.length - 1; i >= 0; i--) {
      const member = this.members[i];
      if (member.field == field) return member;
      // The members of an object follow it.
      if (member.field == owner && owner != Field.Root) return null;
    }
    return null;
  }

  /** How many tokens the prompt has, where it is a list of them at the top level; else 0. */
  get promptIds(): i64 {
    const prompt = this.last(Field.Prompt);
    return prompt !== null && prompt.first == 0x5b && this.batch < 0 ? prompt.count : 0;
  }

  /** The value of a field when it is a plain integer; else -1. */
  integer(field: Field): i64 {
    const member = this.last(field);
    return member === null ? -1 : member.integer;
  }

  /** Whether the client brought P/D parameters of its own. */
  get hasClientParams(): bool {
    for (let i = 0; i < this.members.length; i++) {
      const field = this.members[i].field;
      if (field >= Field.Own) return true;
      if (field >= Field.KvTransferParams && field <= Field.XargsKvTransferParams) return true;
    }
    return false;
  }

  /** How many choices the request asks for, of each prompt. */
  get samples(): i32 {
    const n = this.integer(Field.N);
    return n > 0 && n < MAX_SAMPLES ? <i32>n : 1;
  }

  /** How many choices the request asks for, of all prompts together. */
  get choices(): i32 {
    return this.samples * max(this.batch, 1);
  }

  /**
   * The first token whose row the client asks for; 0 unless it has chosen one, and -1 where its
   * choice is no plain integer.
   */
  get rowStart(): i64 {
    const field = this.rowStartField;
    return this.present(field) ? this.integer(field) : 0;
  }

  /** Whether the client asks for an array, or by a value that an engine may take for true. */
  asksFor(name: Name): bool {
    const member = this.last(Field.Asks + name);
    return member !== null && !member.isNull && member.first != 0x66;
  }

  /** The member by which a client of this dialect chooses its rows. */
  private get rowStartField(): Field {
    return this.schema.dialect == Dialect.Sglang ? Field.StartLen : Field.PromptStart;
  }

  /**
   * Most tokens that a choice can have; -1 when the request does not say, or not by a plain
   * integer.
   */
  get maxTokens(): i64 {
    if (this.spelled(Field.MaxTokens) || this.spelled(Field.MaxCompletionTokens)) return -1;
    return max(this.integer(Field.MaxTokens), this.integer(Field.MaxCompletionTokens));
  }

  /**
   * Whether a field has a value other than null that is no plain integer: an engine takes "5" and
   * 5.0 for 5.
   */
  spelled(field: Field): bool {
    return this.present(field) && this.integer(field) < 0;
  }

  /** Finds the members, and what makes the body unreadable. */
  private scan(ptr: usize, len: usize): void {
    const scanner = Scanner.take(this.schema.paths(this.api));
    const open: Member[] = [];
    scanner.feed(ptr, len);
    let event = scanner.next();
    while (event != Event.Failed && event != Event.More) {
      if (event == Event.Value) {
        if (scanner.id == Field.Root && scanner.first != 0x7b) break;
        if (this.members.length == MAX_MEMBERS) {
          this.unfit = Unfit.TooMany;
          break;
        }
        const member = new Member(
          scanner.id,
          scanner.index,
          scanner.keyStart,
          scanner.comma,
          scanner.offset,
          scanner.first,
        );
        this.members.push(member);
        open.push(member);
      } else if (event == Event.ValueEnd) {
        const member = open.pop();
        member.valueEnd = scanner.offset;
        member.count = scanner.count;
        member.integer = scanner.integer;
        member.commaEnd = commaEnd(ptr, len, member.valueEnd);
      }
      event = scanner.next();
    }
    if (scanner.tooDeep) this.unfit = Unfit.TooDeep;
    else if (this.unfit == Unfit.No && (!scanner.done || event != Event.More)) this.unfit = Unfit.NotObject;
    scanner.free();
  }

  /** Why P/D does not serve what the members ask for. */
  private judge(ptr: usize, len: usize): Unfit {
    if (this.occurrences(Field.SamplingParams) > 1) return Unfit.Duplicate;
    this.batch = max(this.batchOf(Field.Prompt, ptr, len), this.batchOf(Field.PromptIds, ptr, len));
    this.promptTokens = max(this.tokensOf(Field.Prompt, ptr, len), this.tokensOf(Field.PromptIds, ptr, len));
    if (this.schema.dialect == Dialect.Sglang && this.asksSamples) return Unfit.Samples;
    if (this.spelled(this.rowStartField)) return Unfit.PromptStart;
    if (this.schema.dialect == Dialect.Sglang) {
      return this.batch > MAX_PROMPTS ? Unfit.SeveralPrompts : Unfit.No;
    }
    if (this.batch > 1 || this.present(Field.PromptEmbeds)) return Unfit.SeveralPrompts;
    if (this.present(Field.TruncatePrompt)) return Unfit.Truncated;
    const beams = this.last(Field.BeamSearch);
    if (beams !== null && !beams.isNull && beams.first != 0x66) return Unfit.Beams;
    // With `echo`, vLLM computes logprobs of the prompt, too. It takes 1 and "true" for true.
    const echo = this.last(Field.Echo);
    const echoes = echo !== null && !echo.isNull && echo.first != 0x66;
    if (echoes || (this.present(Field.PromptLogprobs) && this.streams)) return Unfit.PromptLogprobs;
    if (this.isZero(Field.MaxTokens, ptr) || this.isZero(Field.MaxCompletionTokens, ptr)) {
      return Unfit.NoOutput;
    }
    return Unfit.No;
  }

  /** Whether some `n` is neither null nor 1; each prompt of a batch may have its own. */
  private get asksSamples(): bool {
    for (let i = 0; i < this.members.length; i++) {
      const member = this.members[i];
      if (member.field == Field.N && !member.isNull && member.integer != 1) return true;
    }
    return false;
  }

  /** How many prompts a field has, when it is a list of texts or of lists of tokens; else -1. */
  private batchOf(field: Field, ptr: usize, len: usize): i32 {
    const first = this.firstListed(field, ptr, len);
    return first == 0x22 || first == 0x5b ? this.last(field)!.count : -1;
  }

  /** How many tokens a field has, when it is a list of numbers; else -1. */
  private tokensOf(field: Field, ptr: usize, len: usize): i32 {
    const first = this.firstListed(field, ptr, len);
    return first - 0x30 < 10 ? this.last(field)!.count : -1;
  }

  /** The first byte of a field's first element, when it is a list that is not empty; else 0. */
  private firstListed(field: Field, ptr: usize, len: usize): u8 {
    const list = this.last(field);
    if (list === null || list.first != 0x5b || list.count == 0) return 0;
    return load<u8>(ptr + spaceEnd(ptr, len, <usize>list.valueStart + 1));
  }

  /** How often the body has a field, in the objects that count and in those that do not. */
  occurrences(field: Field): i32 {
    let count = 0;
    for (let i = 0; i < this.members.length; i++) if (this.members[i].field == field) count++;
    return count;
  }

  /** Whether a field is 0 to an engine, which also takes -0, 0.0, "0" and false for 0. */
  isZero(field: Field, ptr: usize): bool {
    const member = this.last(field);
    if (member === null || member.isNull) return false;
    if (member.integer >= 0) return member.integer == 0;
    if (member.first == 0x5b || member.first == 0x7b || member.first == 0x74) return false;
    for (let at = ptr + <usize>member.valueStart; at < ptr + <usize>member.valueEnd; at++) {
      const c = load<u8>(at);
      if (c - 0x31 < 9) return false;
      // An exponent does not make another value of zero.
      if ((c | 0x20) == 0x65) break;
    }
    return true;
  }

  /** Whether the client asks for a stream, or by a value that an engine may take for true. */
  private get streams(): bool {
    const stream = this.last(Field.Stream);
    return stream !== null && !stream.isNull && stream.first != 0x66;
  }

  /** Whether a field has a value that is not null. */
  present(field: Field): bool {
    const member = this.last(field);
    return member !== null && !member.isNull;
  }
}

/** Offset of the first byte from `at` on that is not white space; `len` when there is none. */
function spaceEnd(ptr: usize, len: usize, at: usize): usize {
  while (at < len) {
    const c = load<u8>(ptr + at);
    if (c != 0x20 && c != 0x0a && c != 0x0d && c != 0x09) break;
    at++;
  }
  return at;
}

/** Offset behind the comma that follows a value; the value's end when none follows. */
function commaEnd(ptr: usize, len: usize, valueEnd: u64): u64 {
  const at = spaceEnd(ptr, len, <usize>valueEnd);
  return at < len && load<u8>(ptr + at) == 0x2c ? at + 1 : valueEnd;
}

/**
 * Whether Python's `json.loads` takes the bytes for UTF-8 without a byte order mark. It guesses
 * other encodings from such a mark and from NULs (`json.detect_encoding`).
 */
function isUtf8Text(ptr: usize, len: usize): bool {
  if (len >= 2) {
    const mark = load<u16>(ptr);
    if (mark == 0xfeff || mark == 0xfffe || mark == 0xbbef) return false;
    if (load<u8>(ptr) == 0 || load<u8>(ptr, 1) == 0) return false;
  }
  return len < 4 || (load<u8>(ptr, 2) != 0 && load<u8>(ptr, 3) != 0);
}
