// A P/D handshake: what each leg is sent, and in which order. A connector is a file beside this
// one, and is named in table.ts.

import { Ascii } from '../bytes/ascii';
import { DECIMAL_BYTES, Text, UUID_BYTES } from '../bytes/text';
import { Name } from '../routing/named_array';
import { RequestBody, Unfit } from './request_body';
import { Rewrite } from './rewrite';
import { Api, Dialect, Field, Schema } from './schema';
import { Session } from './session';

const ONE = new Ascii('1');
const FALSE = new Ascii('false');
const ZERO = new Ascii('0');
const QUOTE = new Ascii('"');

/** In which order the legs of a handshake can be sent. */
export const enum Order {
  /** Decode's leg is sent when prefill has answered. */
  Sequential,
  /** Both legs are sent at once: neither engine answers before the other has its request. */
  Concurrent,
  /** Either, as the configuration says. */
  Either,
}

/** One handshake. It has no state: what belongs to an exchange is in its session. */
export abstract class Connector {
  readonly schema: Schema;

  /**
   * `members`: top-level members of a request that only the connector may set; a client's own never
   * reach an engine. As fields they are numbered from `Field.Own` on.
   */
  constructor(
    /** The connector's name in the configuration. */
    readonly name: string,
    dialect: Dialect,
    members: string[],
  ) {
    this.schema = new Schema(dialect, members);
  }

  get order(): Order {
    return Order.Sequential;
  }

  /** Whether decode needs the `kv_transfer_params` of prefill's reply. */
  get needsParams(): bool {
    return false;
  }

  /**
   * Whether the legs name a transfer by an id that can be used once, so that each try of prefill's
   * leg needs another. Prefill offers the transfer only if its reply has ended at its cap of one
   * token.
   */
  get namesTransfer(): bool {
    return false;
  }

  /** Whether the legs name prefill's bootstrap server. */
  get needsBootstrap(): bool {
    return false;
  }

  /**
   * Whether prefill's bootstrap server is asked for its ranks and their engine ids before a leg is
   * sent.
   */
  get needsRanks(): bool {
    return false;
  }

  /**
   * Whether prefill is asked for the longest sequence of its models, where the configuration does
   * not tell it, because a request that decode refuses for its length does harm.
   */
  get needsLimit(): bool {
    return false;
  }

  /**
   * Whether prompt KV can reach decode without a handshake in the request, from a store that both
   * engines share. The keys of such a store may not contain a request's `cache_salt`, and then only
   * decode's own `cached_tokens` tells that nothing came from it.
   */
  get sharesStore(): bool {
    return false;
  }

  /**
   * Whether decode forwards the last token of the prompt once more, to get the first generated
   * token. Its row of that token is right then. Where prefill brings the first generated token,
   * decode begins with that one, and its row of the last prompt token is what the slot held before.
   */
  get decodeForwardsLast(): bool {
    return true;
  }

  /**
   * Whether decode's `cached_tokens` are the tokens of the prompt that it did not compute itself:
   * those that it has pulled, loaded or found in its own cache.
   */
  get countsCached(): bool {
    return true;
  }

  /** Edits for a request that one engine serves alone, beside its salt. */
  alone(rewrite: Rewrite, session: Session): void {}

  /** Why P/D does not serve a request that its dialect lets it serve; `No` when it does. */
  judge(body: RequestBody): Unfit {
    return Unfit.No;
  }

  /** Edits for the prefill leg, beside those of its dialect. */
  abstract prefill(rewrite: Rewrite, session: Session): void;

  /** Edits for the decode leg. */
  abstract decode(rewrite: Rewrite, session: Session): void;
}

/**
 * The prefill leg: it asks for a whole body and, of vLLM, for one token of one choice. The rewrite
 * borrows from the session.
 */
export function prefillLeg(body: RequestBody, connector: Connector, session: Session): Rewrite {
  const rewrite = forWholeReply(body);
  if (body.schema.dialect == Dialect.Vllm) {
    capOutput(rewrite, body);
    askForRows(rewrite, body, session);
  }
  connector.prefill(rewrite, session);
  return rewrite;
}

/**
 * The request for an engine that forwards the whole prompt once more, whose rows are compared with
 * those of prefill. It asks for the same rows as the prefill leg, for one token, and for nothing
 * out of a cache. The rewrite borrows from the session.
 */
export function auditLeg(body: RequestBody, connector: Connector, session: Session): Rewrite {
  const rewrite = forWholeReply(body);
  capOutput(rewrite, body);
  askForRows(rewrite, body, session);
  rewrite.remove(Field.PromptLogprobs);
  // Only routing is compared.
  for (let name: i32 = Name.RoutedExperts + 1; name < Name.Count; name++) rewrite.remove(Field.Asks + name);
  zeroCacheHitThreshold(rewrite);
  saltCaches(rewrite, body, connector, session);
  return rewrite;
}

/** The request for a reply that is one whole body. */
function forWholeReply(body: RequestBody): Rewrite {
  const rewrite = withoutClientParams(body);
  // `/inference/v1/generate` has `stream` for streams only; to the other endpoints the leg says
  // `false`, whatever the client has sent.
  if (body.api == Api.Generate) rewrite.remove(Field.Stream);
  else rewrite.set(Field.Stream, FALSE.ptr, FALSE.len);
  rewrite.remove(Field.StreamOptions);
  return rewrite;
}

/** Asks for one token of one choice. */
function capOutput(rewrite: Rewrite, body: RequestBody): void {
  rewrite.set(Field.MaxTokens, ONE.ptr, ONE.len);
  rewrite.setPresent(Field.MaxCompletionTokens, ONE.ptr, ONE.len);
  capToOne(rewrite, body, Field.MinTokens);
  capToOne(rewrite, body, Field.N);
}

/** Asks vLLM's prefill for the rows from `prefillStart` on. */
function askForRows(rewrite: Rewrite, body: RequestBody, session: Session): void {
  const start = prefillStart(body);
  if (start == body.rowStart) return;
  if (start == 0) return rewrite.remove(Field.PromptStart);
  const number = session.keep(new Text(DECIMAL_BYTES).decimal(start).end());
  rewrite.set(Field.PromptStart, number.ptr, number.len);
}

/**
 * The first token whose row prefill is asked for: the client's, or of vLLM an earlier one.
 *
 * From token 1 on, an array that lacks the first row has as many rows as one that lacks the last,
 * as hybrid models' do, so all rows are asked for. And prefill is not asked to begin behind the
 * prompt where its length is known: with hybrid models vLLM 0.30 drops the last token after it has
 * checked this member, and dies of one that is equal to the length (`prompt_start <=
 * request.num_prompt_tokens` in vllm/v1/core/sched/scheduler.py; 0.32 takes the lesser of both).
 */
export function prefillStart(body: RequestBody): i64 {
  const start = max<i64>(body.rowStart, 0);
  if (body.schema.dialect == Dialect.Sglang) return start;
  const asked = start == body.promptTokens ? start - 1 : start;
  return asked <= 1 ? 0 : asked;
}

/** Makes a field 1 where the request has a greater value, or one that is no plain integer. */
function capToOne(rewrite: Rewrite, body: RequestBody, field: Field): void {
  if (body.integer(field) > 1 || body.spelled(field)) rewrite.set(field, ONE.ptr, ONE.len);
}

/**
 * The decode leg. With `promptStart` of 0 or more it asks only for the rows from that token on;
 * with -1 for those that decode gives by itself. The rewrite borrows from the session.
 */
export function decodeLeg(
  body: RequestBody,
  connector: Connector,
  session: Session,
  promptStart: i64,
): Rewrite {
  const rewrite = withoutClientParams(body);
  // Prefill returns the prompt's logprobs; a decode engine of vLLM 0.30 that is asked for them
  // dies.
  const vllm = body.schema.dialect == Dialect.Vllm;
  if (vllm && body.present(Field.PromptLogprobs)) rewrite.remove(Field.PromptLogprobs);
  connector.decode(rewrite, session);
  if (promptStart >= 0) {
    const number = session.keep(new Text(DECIMAL_BYTES).decimal(promptStart).end());
    rewrite.set(Field.PromptStart, number.ptr, number.len);
  }
  return rewrite;
}

/**
 * The request for a decode engine that serves it alone. `fresh`: the engine must forward the whole
 * prompt, so that it has a row of its own for every token. vLLM puts `cache_salt` into the hash of
 * each block of its prefix cache (vllm/v1/core/kv_cache_utils.py), so with a salt that no other
 * request has it finds no block whose KV came from prefill. A client's own salt is replaced: one
 * that two requests share would let the second hit the blocks that the first has pulled. The salt
 * is made of the session's random bytes, and the rewrite borrows from the session.
 */
export function localLeg(body: RequestBody, connector: Connector, session: Session, fresh: bool): Rewrite {
  const rewrite = withoutClientParams(body);
  if (fresh && canSalt(body)) saltCaches(rewrite, body, connector, session);
  return rewrite;
}

/**
 * Gives a request a salt that no other one has. It is part of the keys of vLLM's prefix cache, and
 * of SGLang's radix cache (`_compute_extra_key` in sglang/srt/entrypoints/openai/serving_base.py,
 * `GenerateReqInput` in sglang/srt/managers/io_struct.py).
 */
function saltCaches(rewrite: Rewrite, body: RequestBody, connector: Connector, session: Session): void {
  const salt = new Text(UUID_BYTES + 2 * QUOTE.len).add(QUOTE).uuid(session.randomPtr).add(QUOTE);
  const value = session.keep(salt.end());
  rewrite.set(body.api == Api.Native ? Field.ExtraKey : Field.CacheSalt, value.ptr, value.len);
  connector.alone(rewrite, session);
}

/**
 * Whether a decode engine can be told to forward the whole prompt. A decode engine of SGLang's
 * never forwards one, whatever its request says.
 */
export function canSalt(body: RequestBody): bool {
  return body.schema.dialect == Dialect.Vllm;
}

/** The request without the members that only a connector may set. */
export function withoutClientParams(body: RequestBody): Rewrite {
  const rewrite = new Rewrite(body);
  rewrite.remove(Field.KvTransferParams);
  rewrite.remove(Field.ExtraKvTransferParams);
  rewrite.remove(Field.XargsKvTransferParams);
  for (let i = 0; i < body.schema.own.length; i++) rewrite.remove(Field.Own + i);
  return rewrite;
}

/** Sets a client's `cache_hit_threshold`, the share of the prompt that must be cached, to 0. */
export function zeroCacheHitThreshold(rewrite: Rewrite): void {
  rewrite.setPresent(Field.CacheHitThreshold, ZERO.ptr, ZERO.len);
}
