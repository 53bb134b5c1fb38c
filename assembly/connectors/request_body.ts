// What a client's request asks for, and where its members lie. Reads a body that is whole in memory; keeps offsets only.

import { Ascii } from '../bytes/ascii';
import { Paths } from '../json/paths';
import { Event, Scanner } from '../json/scanner';

/** Which API the request is for: it decides where the members are. */
export const enum Api {
  None,
  Completions,
  Chat,
  /** `/inference/v1/generate` of vLLM. */
  Generate,
  /** `/generate` of SGLang. */
  Native,
}

/** Whose engines a connector is for: which APIs they have, and what of them P/D can serve. */
export const enum Dialect {
  Vllm,
  Sglang,
}

/** Members that are read or edited; of `sampling_params` where `/inference/v1/generate` and `/generate` have them. */
export const enum Field {
  Root,
  SamplingParams,
  ExtraArgs,
  Xargs,
  KvTransferParams,
  ExtraKvTransferParams,
  XargsKvTransferParams,
  Stream,
  StreamOptions,
  MaxTokens,
  MaxCompletionTokens,
  MinTokens,
  N,
  Prompt,
  PromptEmbeds,
  PromptLogprobs,
  Echo,
  PromptStart,
  CacheHitThreshold,
  /** The prompt as tokens, where it is another member than the text. */
  PromptIds,
  /** SGLang's: the token whose row comes first. */
  StartLen,
  /** vLLM's: part of the key of every block in the prefix cache. */
  CacheSalt,
  /** The first of the members that are a connector's own. */
  Own,
}

/** Why P/D does not serve a request. */
export const enum Unfit {
  No,
  /** Not a JSON object, by the grammar of Python's `json`. */
  NotObject,
  /** Nested deeper than the scanner goes: what it says of `kv_transfer_params` can't be known. */
  TooDeep,
  /** UTF-16, UTF-32 or a byte order mark: Python's `json.loads` would read it, the scanner does not. */
  NotUtf8,
  SeveralPrompts,
  /** A handshake that serves one sample. */
  SeveralChoices,
  /** The prompt's logprobs where prefill can't give them: with `echo`, or to a stream. */
  PromptLogprobs,
  /** `max_tokens: 0`. */
  NoOutput,
  /** The client chose which rows it wants, of vLLM; of SGLang, in a way that is no plain integer. */
  PromptStart,
  /** `sampling_params` twice. */
  Duplicate,
  /** More members of the names that are looked at than any request has. */
  TooMany,
}

/** Members that are kept: each takes memory, and edits look for them. */
const MAX_MEMBERS: i32 = 1000;

/** Most prompts of a batch: each needs a room. */
const MAX_PROMPTS: i32 = 4096;
/** More of one prompt no engine gives; a product with `MAX_PROMPTS` must not overflow. */
const MAX_SAMPLES: i64 = 1 << 18;

/** The members of requests by name: those that every connector knows, and its own at the top level. */
@final
export class Schema {
  private byApi: Array<Paths | null> = new Array<Paths | null>(Api.Native + 1);
  private keys: Ascii[] = [];

  constructor(
    readonly dialect: Dialect,
    /** Names of the connector's own members, which are `Field.Own` and up. */
    readonly own: string[],
  ) {}

  get fieldCount(): i32 {
    return Field.Own + this.own.length;
  }

  /** Whether the engines have an API. */
  has(api: Api): bool {
    return api != (this.dialect == Dialect.Vllm ? Api.Native : Api.Generate);
  }

  /** What a scanner watches. */
  paths(api: Api): Paths {
    const known = this.byApi[api];
    if (known !== null) return known;
    const paths = fixedPaths(api);
    for (let i = 0; i < this.own.length; i++) paths.add(this.own[i], Field.Own + i);
    this.byApi[api] = paths;
    return paths;
  }

  /** `"key":` of a field, as it is written into a body. */
  key(field: Field): Ascii {
    if (this.keys.length == 0) {
      for (let i = 0; i < NAMES.length; i++) this.keys.push(new Ascii('"' + NAMES[i] + '":'));
      for (let i = 0; i < this.own.length; i++) this.keys.push(new Ascii('"' + this.own[i] + '":'));
    }
    return this.keys[field];
  }
}

/** Keys by field, as vLLM has them. */
const NAMES: string[] = [
  '',
  'sampling_params',
  'extra_args',
  'vllm_xargs',
  'kv_transfer_params',
  'kv_transfer_params',
  'kv_transfer_params',
  'stream',
  'stream_options',
  'max_tokens',
  'max_completion_tokens',
  'min_tokens',
  'n',
  'prompt',
  'prompt_embeds',
  'prompt_logprobs',
  'echo',
  'routed_experts_prompt_start',
  'cache_hit_threshold',
  '',
  'routed_experts_start_len',
  'cache_salt',
];

function fixedPaths(api: Api): Paths {
  const paths = new Paths()
    .add('', Field.Root)
    .add('kv_transfer_params', Field.KvTransferParams)
    .add('vllm_xargs', Field.Xargs)
    .add('vllm_xargs.kv_transfer_params', Field.XargsKvTransferParams)
    .add('stream', Field.Stream)
    .add('stream_options', Field.StreamOptions)
    .add('cache_hit_threshold', Field.CacheHitThreshold)
    .add('routed_experts_start_len', Field.StartLen)
    .add('cache_salt', Field.CacheSalt);
  if (api == Api.Native) {
    return paths
      .add('text', Field.Prompt)
      .add('input_ids', Field.PromptIds)
      .add('sampling_params', Field.SamplingParams)
      .add('sampling_params.max_new_tokens', Field.MaxTokens)
      .add('sampling_params.min_new_tokens', Field.MinTokens)
      .add('sampling_params.n', Field.N)
      .add('sampling_params.*.n', Field.N);
  }
  if (api == Api.Generate) {
    return paths
      .add('sampling_params', Field.SamplingParams)
      .add('sampling_params.extra_args', Field.ExtraArgs)
      .add('sampling_params.extra_args.kv_transfer_params', Field.ExtraKvTransferParams)
      .add('sampling_params.max_tokens', Field.MaxTokens)
      .add('sampling_params.min_tokens', Field.MinTokens)
      .add('sampling_params.n', Field.N)
      .add('sampling_params.prompt_logprobs', Field.PromptLogprobs)
      .add('sampling_params.routed_experts_prompt_start', Field.PromptStart);
  }
  // A member of chat alone: vLLM and SGLang ignore it in a completion, and it says nothing of its length there
  // (CompletionRequest of vllm/entrypoints/openai/completion/protocol.py and of sglang/srt/entrypoints/openai/protocol.py).
  if (api == Api.Chat) paths.add('max_completion_tokens', Field.MaxCompletionTokens);
  return paths
    .add('max_tokens', Field.MaxTokens)
    .add('min_tokens', Field.MinTokens)
    .add('n', Field.N)
    .add('prompt', Field.Prompt)
    .add('prompt_embeds', Field.PromptEmbeds)
    .add('prompt_logprobs', Field.PromptLogprobs)
    .add('echo', Field.Echo)
    .add('routed_experts_prompt_start', Field.PromptStart);
}

/** The object that holds a field. */
export function ownerOf(field: Field, api: Api): Field {
  switch (field) {
    case Field.ExtraKvTransferParams:
      return Field.ExtraArgs;
    case Field.XargsKvTransferParams:
      return Field.Xargs;
    case Field.ExtraArgs:
      return Field.SamplingParams;
    case Field.MaxTokens:
    case Field.MinTokens:
    case Field.N:
    case Field.PromptLogprobs:
    case Field.PromptStart:
      return api == Api.Generate || api == Api.Native ? Field.SamplingParams : Field.Root;
    default:
      return Field.Root;
  }
}

/** One occurrence of a field, by offsets in the body. */
@final
export class Member {
  valueEnd: u64 = 0;
  /** Members of an object or elements of an array. */
  count: i32 = 0;
  /** The value when it is a plain integer; else -1. */
  integer: i64 = -1;
  /** Behind the comma that follows, if one does; else `valueEnd`. */
  commaEnd: u64 = 0;

  constructor(
    readonly field: Field,
    /** Position in its object. */
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
}


@final
export class RequestBody {
  unfit: Unfit = Unfit.No;
  /** In the order of the body. */
  readonly members: Member[] = [];
  /** Prompts, where the request has a list of them; -1 where it has one that is in no list. */
  batch: i32 = -1;

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
   * The last occurrence of a field, which is the one that counts (as in Python's `json`). Of an object that the body has twice
   * only the last one's members count: the others are no part of what Python reads.
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

  /** Choices asked for, of each prompt. */
  get samples(): i32 {
    const n = this.integer(Field.N);
    return n > 0 && n < MAX_SAMPLES ? <i32>n : 1;
  }

  /** Choices asked for, of all prompts. */
  get choices(): i32 {
    return this.samples * max(this.batch, 1);
  }

  /** Most tokens a choice can have; -1 when the request does not say. */
  get maxTokens(): i64 {
    if (this.spelled(Field.MaxTokens) || this.spelled(Field.MaxCompletionTokens)) return -1;
    return max(this.integer(Field.MaxTokens), this.integer(Field.MaxCompletionTokens));
  }

  /** Whether a field has a value that is not a plain integer: the engine takes "5" and 5.0 for 5. */
  spelled(field: Field): bool {
    return this.present(field) && this.integer(field) < 0;
  }

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

  private judge(ptr: usize, len: usize): Unfit {
    if (this.occurrences(Field.SamplingParams) > 1) return Unfit.Duplicate;
    this.batch = max(this.batchOf(Field.Prompt, ptr, len), this.batchOf(Field.PromptIds, ptr, len));
    if (this.schema.dialect == Dialect.Sglang) {
      // An engine takes 5.0 for 5: which rows come is not known then.
      if (this.spelled(Field.StartLen)) return Unfit.PromptStart;
      return this.batch > MAX_PROMPTS ? Unfit.SeveralPrompts : Unfit.No;
    }
    if (this.batch > 1 || this.present(Field.PromptEmbeds)) return Unfit.SeveralPrompts;
    // With `echo`, vLLM computes the prompt's logprobs too; it takes 1 and "true" for true.
    const echo = this.last(Field.Echo);
    const echoes = echo !== null && !echo.isNull && echo.first != 0x66;
    if (echoes || (this.present(Field.PromptLogprobs) && this.streams)) return Unfit.PromptLogprobs;
    if (this.isZero(Field.MaxTokens, ptr) || this.isZero(Field.MaxCompletionTokens, ptr)) {
      return Unfit.NoOutput;
    }
    if (this.present(Field.PromptStart) && this.integer(Field.PromptStart) != 0) return Unfit.PromptStart;
    return Unfit.No;
  }

  /** Prompts of a field, when it is a list of texts or of lists of tokens; else -1. */
  private batchOf(field: Field, ptr: usize, len: usize): i32 {
    const prompt = this.last(field);
    if (prompt === null || prompt.first != 0x5b) return -1;
    const first = load<u8>(ptr + spaceEnd(ptr, len, <usize>prompt.valueStart + 1));
    return first == 0x22 || first == 0x5b ? prompt.count : -1;
  }

  /** How often the body has a field, in the objects that count and in those that do not. */
  occurrences(field: Field): i32 {
    let count = 0;
    for (let i = 0; i < this.members.length; i++) if (this.members[i].field == field) count++;
    return count;
  }

  /** Whether a field is 0 to an engine, which takes -0, 0.0, "0" and false for it too. */
  private isZero(field: Field, ptr: usize): bool {
    const member = this.last(field);
    if (member === null || member.isNull) return false;
    if (member.integer >= 0) return member.integer == 0;
    if (member.first == 0x5b || member.first == 0x7b || member.first == 0x74) return false;
    for (let at = ptr + <usize>member.valueStart; at < ptr + <usize>member.valueEnd; at++) {
      if (load<u8>(at) - 0x31 < 9) return false;
    }
    return true;
  }

  /** Whether the client asks for a stream, or for something that an engine may take for one. */
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

/** Offset of the first byte from `at` on that is not white space. */
function spaceEnd(ptr: usize, len: usize, at: usize): usize {
  while (at < len) {
    const c = load<u8>(ptr + at);
    if (c != 0x20 && c != 0x0a && c != 0x0d && c != 0x09) break;
    at++;
  }
  return at;
}

function commaEnd(ptr: usize, len: usize, valueEnd: u64): u64 {
  const at = spaceEnd(ptr, len, <usize>valueEnd);
  return at < len && load<u8>(ptr + at) == 0x2c ? at + 1 : valueEnd;
}

/** Python's `json.loads(bytes)` guesses other encodings from a byte order mark and from NULs (`json.detect_encoding`). */
function isUtf8Text(ptr: usize, len: usize): bool {
  if (len >= 2) {
    const mark = load<u16>(ptr);
    if (mark == 0xfeff || mark == 0xfffe || mark == 0xbbef) return false;
    if (load<u8>(ptr) == 0 || load<u8>(ptr, 1) == 0) return false;
  }
  return len < 4 || (load<u8>(ptr, 2) != 0 && load<u8>(ptr, 3) != 0);
}
