// A P/D handshake: what each leg is sent, and in which order. A connector is a file beside this one, named in table.ts.

import { Ascii } from '../bytes/ascii';
import { DECIMAL_BYTES, Text, UUID_BYTES } from '../bytes/text';
import { Api, Dialect, Field, RequestBody, Schema, Unfit } from './request_body';
import { Rewrite } from './rewrite';
import { Session } from './session';

const ONE = new Ascii('1');
const FALSE = new Ascii('false');
const ZERO = new Ascii('0');
const QUOTE = new Ascii('"');

/** One handshake; has no state. */
export abstract class Connector {
  readonly schema: Schema;

  /**
   * `members`: top-level members of a request that only the connector may set. A client's own never reach an engine. Their
   * fields are numbered from `Field.Own` on.
   */
  constructor(
    /** As the configuration names it. */
    readonly name: string,
    dialect: Dialect,
    members: string[],
  ) {
    this.schema = new Schema(dialect, members);
  }

  /** Both legs run at once: neither is answered before the other has come. */
  get concurrent(): bool {
    return false;
  }

  /** Whether decode needs the `kv_transfer_params` of prefill's reply. */
  get needsParams(): bool {
    return false;
  }

  /** Whether the legs name prefill's bootstrap server. */
  get needsBootstrap(): bool {
    return false;
  }

  /** Whether the bootstrap server is asked for ranks and engine ids first. */
  get needsRanks(): bool {
    return false;
  }

  /**
   * Whether prompt KV can reach decode without a handshake in the request: from a store that both engines share. A fresh
   * `cache_salt` is no part of the store's key then, and only decode's own `cached_tokens` tells that nothing came.
   */
  get sharesStore(): bool {
    return false;
  }

  /** Edits for a request that decode serves alone, beyond its salt. */
  alone(rewrite: Rewrite, session: Session): void {}

  /** Why P/D does not serve a request, beyond what its dialect says. */
  judge(body: RequestBody): Unfit {
    return Unfit.No;
  }

  /** Edits for the prefill leg, beyond those that its dialect has. */
  abstract prefill(rewrite: Rewrite, session: Session): void;

  /** Edits for the decode leg. */
  abstract decode(rewrite: Rewrite, session: Session): void;
}

/** The prefill leg: in one piece, and with vLLM one token of one choice. Borrows from the session. */
export function prefillLeg(body: RequestBody, connector: Connector, session: Session): Rewrite {
  const rewrite = withoutClientParams(body);
  // `/inference/v1/generate` has it for the stream only; the others want it said.
  if (body.api == Api.Generate) rewrite.remove(Field.Stream);
  else rewrite.set(Field.Stream, FALSE.ptr, FALSE.len);
  rewrite.remove(Field.StreamOptions);
  if (body.schema.dialect == Dialect.Vllm) {
    rewrite.set(Field.MaxTokens, ONE.ptr, ONE.len);
    rewrite.setPresent(Field.MaxCompletionTokens, ONE.ptr, ONE.len);
    capToOne(rewrite, body, Field.MinTokens);
    capToOne(rewrite, body, Field.N);
  }
  connector.prefill(rewrite, session);
  return rewrite;
}

function capToOne(rewrite: Rewrite, body: RequestBody, field: Field): void {
  if (body.integer(field) > 1 || body.spelled(field)) rewrite.set(field, ONE.ptr, ONE.len);
}

/** The decode leg. `promptStart` >= 0 asks for the rows from there on only. Borrows from the session. */
export function decodeLeg(
  body: RequestBody,
  connector: Connector,
  session: Session,
  promptStart: i64,
): Rewrite {
  const rewrite = withoutClientParams(body);
  // Prefill gives them; a decode engine of vLLM 0.30 that is asked for them dies.
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
 * The request for a decode engine that serves it alone. `fresh`: vLLM puts `cache_salt` into the hash of each block of its
 * prefix cache (vllm/v1/core/kv_cache_utils.py), so with a salt that no other request has it finds no block whose KV came
 * from prefill, forwards the whole prompt, and has a row of its own for every token. A client's own salt is replaced: one
 * that two requests share would let the second hit what the first has pulled. Borrows from the session, whose random
 * bytes the salt is made of.
 */
export function localLeg(body: RequestBody, connector: Connector, session: Session, fresh: bool): Rewrite {
  const rewrite = withoutClientParams(body);
  if (fresh && canSalt(body)) {
    const salt = new Text(UUID_BYTES + 2 * QUOTE.len).add(QUOTE).uuid(session.randomPtr).add(QUOTE);
    const value = session.keep(salt.end());
    rewrite.set(Field.CacheSalt, value.ptr, value.len);
    connector.alone(rewrite, session);
  }
  return rewrite;
}

/** Whether an engine can be told to forward the whole prompt: SGLang's API has no member that is known to do so. */
export function canSalt(body: RequestBody): bool {
  return body.schema.dialect == Dialect.Vllm;
}

/** The request without what only a connector may set. */
export function withoutClientParams(body: RequestBody): Rewrite {
  const rewrite = new Rewrite(body);
  rewrite.remove(Field.KvTransferParams);
  rewrite.remove(Field.ExtraKvTransferParams);
  rewrite.remove(Field.XargsKvTransferParams);
  for (let i = 0; i < body.schema.own.length; i++) rewrite.remove(Field.Own + i);
  return rewrite;
}

/** Where the client asks for a share of cached blocks, none is asked of either leg. */
export function zeroCacheHitThreshold(rewrite: Rewrite): void {
  rewrite.setPresent(Field.CacheHitThreshold, ZERO.ptr, ZERO.len);
}
