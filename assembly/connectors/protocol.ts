// What vLLM's API server refuses of the members that the prefill leg caps or drops. Prefill does
// not see these, so it would take a request that decode refuses. Then its KV waits for nobody,
// and with MooncakeConnector decode's engine dies (vLLM 0.30: the cleanup of a refused transfer
// trips `assert req_id in self.requests` in vllm/v1/core/sched/scheduler.py). So they are checked
// before a leg leaves. The rules are those of vLLM 0.30, and test/fixtures/vllm_requests has its
// verdicts:
//
//   types     the request classes in vllm/entrypoints/*/protocol.py
//   ranges    SamplingParams, `_verify_args` and `_verify_greedy_sampling`
//   lengths   TokenizeParams in vllm/renderers/params.py, and `get_max_tokens`

import { RequestBody } from './request_body';
import { MOST, Reading, laxValue, readBoolean, readInteger } from './lax';
import { Api, Dialect, Field, nameOf } from './schema';

const enum Type {
  Integer,
  /** An integer, or null for the default. */
  MaybeInteger,
  /** A boolean or null. */
  MaybeBoolean,
  /** An object or null. */
  MaybeObject,
  Object,
}

/** The type of a member. */
class Rule {
  constructor(
    readonly field: Field,
    readonly type: Type,
  ) {}
}

const STREAM: Rule[] = [
  new Rule(Field.Stream, Type.MaybeBoolean),
  new Rule(Field.StreamOptions, Type.MaybeObject),
  new Rule(Field.IncludeUsage, Type.MaybeBoolean),
  new Rule(Field.ContinuousUsage, Type.MaybeBoolean),
];

const COMPLETIONS: Rule[] = [
  new Rule(Field.MaxTokens, Type.MaybeInteger),
  new Rule(Field.MinTokens, Type.Integer),
  new Rule(Field.N, Type.Integer),
];

const CHAT: Rule[] = [
  new Rule(Field.MaxTokens, Type.MaybeInteger),
  new Rule(Field.MaxCompletionTokens, Type.MaybeInteger),
  new Rule(Field.MinTokens, Type.Integer),
  new Rule(Field.N, Type.MaybeInteger),
];

/** The members of `sampling_params`, and itself: the prefill leg writes one where there is none. */
const GENERATE: Rule[] = [
  new Rule(Field.SamplingParams, Type.Object),
  new Rule(Field.MaxTokens, Type.MaybeInteger),
  new Rule(Field.MinTokens, Type.Integer),
  new Rule(Field.N, Type.Integer),
];

/** The cap of a request that has none, for `/v1/completions` and `/inference/v1/generate`. */
const DEFAULT_CAP: i64 = 16;
const NO_CAP: i64 = i64.MIN_VALUE;

function rulesOf(api: Api): Rule[] {
  return api == Api.Chat ? CHAT : api == Api.Generate ? GENERATE : COMPLETIONS;
}

/** What the check of a request has found. */
@final
export class Checked {
  /** Why the engine refuses the request, in its words; empty when it does not. */
  refusal: string = '';
  /** The member that is at fault, for the error. */
  param: string = '';
  /** Whether a member is spelled in a way that is not read here. The engine has to read it. */
  unsure: bool = false;
  /** The most tokens that the request asks for. */
  private cap: i64 = NO_CAP;
  private capParam: string = 'max_tokens';
  private least: i64 = 0;
  /** Whether the engine compares the cap with the length of the model at all. */
  private limited: bool = false;

  /** Checks a request, whose bytes are at `ptr` (borrowed). Of SGLang's no member is known. */
  static of(body: RequestBody, ptr: usize): Checked {
    const checked = new Checked();
    if (body.schema.dialect != Dialect.Vllm) return checked;
    checked.checkTypes(body, ptr, rulesOf(body.api));
    checked.checkTypes(body, ptr, STREAM);
    if (!checked.isRefused && !checked.unsure) {
      checked.checkStream(body, ptr);
      checked.checkRanges(body, ptr);
    }
    return checked;
  }

  get isRefused(): bool {
    return this.refusal.length > 0;
  }

  /** Whether the length of the model can be a reason to refuse the request. */
  get needsLimit(): bool {
    return this.limited && (this.cap != NO_CAP || this.least > 0);
  }

  /**
   * Compares the caps with the length of the model, `limit`, and with the prompt's tokens; 0 where
   * they are not known yet. Returns whether the request is refused.
   */
  exceeds(limit: i64, prompt: i64): bool {
    if (!this.limited) return false;
    const cap = this.cap;
    const length = limit.toString();
    if (cap > limit) {
      const asked = this.capParam + '=' + cap.toString();
      return this.refuse(
        this.capParam,
        asked + ' cannot be greater than max_model_len=' + length + '. Please request fewer output tokens.',
      );
    }
    if (cap != NO_CAP && prompt + cap > limit) {
      const about = "This model's maximum context length is " + length + ' tokens. However, you requested ';
      const asked = cap.toString() + ' output tokens and your prompt contains ' + prompt.toString();
      return this.refuse('input_tokens', about + asked + ' input tokens.');
    }
    // Without a cap the rest of the length is one.
    if (cap == NO_CAP && this.least > limit - prompt) return this.refuseLeast(limit - prompt);
    return false;
  }

  /** Notes why the request is refused, unless that is known; returns true. */
  private refuse(param: string, message: string): bool {
    if (this.refusal.length == 0) {
      this.refusal = message;
      this.param = param;
    }
    return true;
  }

  private refuseLeast(cap: i64): bool {
    const than = 'min_tokens must be less than or equal to max_tokens=';
    return this.refuse('min_tokens', than + cap.toString() + ', got ' + this.least.toString() + '.');
  }

  private checkTypes(body: RequestBody, ptr: usize, rules: Rule[]): void {
    for (let i = 0; i < rules.length; i++) {
      const rule = rules[i];
      const what = this.typeFault(body, ptr, rule);
      if (what.length > 0) this.refuse(nameOf(rule.field), 'Input should be ' + what);
    }
  }

  /** What a member should be; empty when it is that. */
  private typeFault(body: RequestBody, ptr: usize, rule: Rule): string {
    const member = body.last(rule.field);
    if (rule.type == Type.Object) {
      return member !== null && member.isObject ? '' : 'a valid dictionary';
    }
    if (member === null) return '';
    if (rule.type == Type.MaybeObject) return member.isNull || member.isObject ? '' : 'a valid dictionary';
    const boolean = rule.type == Type.MaybeBoolean;
    const reading = boolean ? readBoolean(member, ptr) : readInteger(member, ptr);
    if (reading == Reading.Unsure) this.unsure = true;
    const wrong = reading == Reading.Wrong || (reading == Reading.Null && rule.type == Type.Integer);
    return !wrong ? '' : boolean ? 'a valid boolean' : 'a valid integer';
  }

  /** Greedy sampling gives one choice only. */
  private checkTemperature(body: RequestBody, ptr: usize, n: i64): void {
    const heat = body.last(Field.Temperature);
    if (heat === null || heat.isNull) return;
    // A number may be so small that it is zero as a double; NaN and Infinity are no zeros.
    const odd = heat.has(0x65, ptr) || heat.has(0x6e, ptr) || heat.has(0x69, ptr);
    if (heat.first != 0x74 && heat.first != 0x66 && odd) this.unsure = true;
    else if (body.isZero(Field.Temperature, ptr)) {
      this.refuse('n', 'n must be 1 when using greedy sampling, got ' + n.toString() + '.');
    }
  }

  /** Options of a stream need a stream, except at `/inference/v1/generate`. */
  private checkStream(body: RequestBody, ptr: usize): void {
    const options = body.last(Field.StreamOptions);
    if (body.api == Api.Generate || options === null || !options.isObject || options.count == 0) return;
    // Python asks for the truth of the value as it came, for which any text will do.
    const stream = body.last(Field.Stream);
    if (stream !== null && !stream.isNull) {
      readBoolean(stream, ptr);
      if (stream.first == 0x22 || laxValue != 0) return;
    }
    this.refuse('stream_options', 'Stream options can only be defined when `stream=True`.');
  }

  private checkRanges(body: RequestBody, ptr: usize): void {
    const n = valueOf(body, ptr, Field.N, 1);
    if (n < 1) this.refuse('n', 'n must be at least 1, got ' + n.toString() + '.');
    if (n > 1) this.checkTemperature(body, ptr, n);
    this.limited = body.api != Api.Generate;
    this.cap = this.capOf(body, ptr);
    const cap = this.cap;
    if (cap != NO_CAP && cap < 1) {
      this.refuse('max_tokens', 'max_tokens must be at least 1, got ' + cap.toString() + '.');
    }
    const least = (this.least = valueOf(body, ptr, Field.MinTokens, 0));
    if (least < 0) {
      this.refuse(
        'min_tokens',
        'min_tokens must be greater than or equal to 0, got ' + least.toString() + '.',
      );
    }
    if (cap != NO_CAP && least > cap) this.refuseLeast(cap);
    // vLLM refuses a generate request whose numbers do not fit into 64 bits (`serve_tokens`).
    if (cap == MOST) this.unsure = true;
  }

  private capOf(body: RequestBody, ptr: usize): i64 {
    if (body.present(Field.MaxCompletionTokens)) {
      this.capParam = 'max_completion_tokens';
      return valueOf(body, ptr, Field.MaxCompletionTokens, NO_CAP);
    }
    if (body.api == Api.Chat) return valueOf(body, ptr, Field.MaxTokens, NO_CAP);
    // A `max_tokens` that is null is the default in a completion, and no cap in a generate request.
    const none = body.api == Api.Generate && body.last(Field.MaxTokens) !== null;
    return valueOf(body, ptr, Field.MaxTokens, none ? NO_CAP : DEFAULT_CAP);
  }
}

/** The value of an integer, or `absent` when it is not there, or null. */
function valueOf(body: RequestBody, ptr: usize, field: Field, absent: i64): i64 {
  const member = body.last(field);
  if (member === null || readInteger(member, ptr) != Reading.Fine) return absent;
  return laxValue;
}
