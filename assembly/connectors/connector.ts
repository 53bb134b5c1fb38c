// A P/D handshake in which prefill runs first: what each leg is sent.

import { Ascii, writeDecimal } from '../bytes/ascii';
import { Api, Field, RequestBody } from './request_body';
import { Rewrite } from './rewrite';

const ONE = new Ascii('1');
const FALSE = new Ascii('false');
const ZERO = new Ascii('0');

/** One handshake; has no state. */
export abstract class Connector {
  /** Whether decode needs the `kv_transfer_params` of prefill's reply. */
  abstract get needsParams(): bool;

  /** Edits for the prefill leg, beyond capping its output. */
  abstract prefill(rewrite: Rewrite): void;

  /** Edits for the decode leg; [params, params + paramsLen) are prefill's `kv_transfer_params`, borrowed. */
  abstract decode(rewrite: Rewrite, params: usize, paramsLen: usize): void;
}

/** The prefill leg: one token of one choice, in one piece. */
export function prefillLeg(body: RequestBody, connector: Connector): Rewrite {
  const rewrite = withoutClientParams(body);
  // `/inference/v1/generate` has it for the stream only; the others want it said.
  if (body.api == Api.Generate) rewrite.remove(Field.Stream);
  else rewrite.set(Field.Stream, FALSE.ptr, FALSE.len);
  rewrite.remove(Field.StreamOptions);
  rewrite.set(Field.MaxTokens, ONE.ptr, ONE.len);
  rewrite.setPresent(Field.MaxCompletionTokens, ONE.ptr, ONE.len);
  capToOne(rewrite, body, Field.MinTokens);
  capToOne(rewrite, body, Field.N);
  connector.prefill(rewrite);
  return rewrite;
}

function capToOne(rewrite: Rewrite, body: RequestBody, field: Field): void {
  if (body.integer(field) > 1 || body.spelled(field)) rewrite.set(field, ONE.ptr, ONE.len);
}

/** Room for the number that `decodeLeg` writes. */
export const NUMBER_BYTES: usize = 20;

/**
 * The decode leg. `promptStart` >= 0 asks for the rows from there on only; `number` is room for `NUMBER_BYTES`, borrowed
 * like the parameters until the body is written.
 */
export function decodeLeg(
  body: RequestBody,
  connector: Connector,
  params: usize,
  paramsLen: usize,
  promptStart: i64,
  number: usize,
): Rewrite {
  const rewrite = withoutClientParams(body);
  // Prefill gives them; a decode engine of vLLM 0.30 that is asked for them dies.
  if (body.present(Field.PromptLogprobs)) rewrite.remove(Field.PromptLogprobs);
  connector.decode(rewrite, params, paramsLen);
  if (promptStart >= 0) rewrite.set(Field.PromptStart, number, writeDecimal(promptStart, number));
  return rewrite;
}

/** The request for an engine that serves it alone. */
export function withoutClientParams(body: RequestBody): Rewrite {
  const rewrite = new Rewrite(body);
  rewrite.remove(Field.KvTransferParams);
  rewrite.remove(Field.ExtraKvTransferParams);
  rewrite.remove(Field.XargsKvTransferParams);
  return rewrite;
}

/** Where the client asks for a share of cached blocks, none is asked of either leg. */
export function zeroCacheHitThreshold(rewrite: Rewrite): void {
  rewrite.setPresent(Field.CacheHitThreshold, ZERO.ptr, ZERO.len);
}
