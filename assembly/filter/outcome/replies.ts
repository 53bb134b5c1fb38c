// The responses that the filter sends itself. Errors have the shape of an engine's.

import { sendLocalResponse } from '../../abi/host';
import { PairReader, PairWriter } from '../../abi/pairs';
import { Ascii } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { APPLICATION_JSON, CONTENT_TYPE, ROUTED_EXPERTS, isOneHop } from '../names';

const DETAILS = new Ascii('routed_experts_filter');
const DETAILS_PREFILL = new Ascii('routed_experts_prefill_reply');
const DETAILS_DECODE = new Ascii('routed_experts_decode_reply');

/** How an engine writes an error. */
export const enum ErrorShape {
  Vllm,
  /** SGLang on the OpenAI endpoints. */
  Sglang,
  /** SGLang on `/generate`. */
  SglangNative,
}

function typeOf(code: i32): string {
  switch (code) {
    case 400:
      return 'BadRequestError';
    case 403:
      return 'ForbiddenError';
    case 415:
      return 'UnsupportedMediaTypeError';
    case 500:
      return 'InternalServerError';
    case 503:
      return 'ServiceUnavailableError';
    case 504:
      return 'GatewayTimeoutError';
    default:
      return 'BadGatewayError';
  }
}

/**
 * Sends an error. `param` is the member of the request that is at fault; empty when it is none. The
 * texts contain nothing that a peer sent, so they need no escapes.
 */
export function replyError(
  code: i32,
  message: string,
  param: string,
  shape: ErrorShape,
  outcome: string,
): void {
  let members = '"message":"' + message + '"';
  if (shape != ErrorShape.SglangNative) {
    members += ',"type":"' + typeOf(code) + '","param":';
    members += param.length > 0 ? '"' + param + '"' : 'null';
    members += ',"code":' + code.toString();
  }
  const flat = shape == ErrorShape.Sglang;
  const body = String.UTF8.encode(
    (flat ? '{"object":"error",' : '{"error":{') + members + (flat ? '}' : '}}'),
  );
  const header = String.UTF8.encode(outcome);
  const writer = new PairWriter();
  writer.addText(CONTENT_TYPE, APPLICATION_JSON);
  writer.add(ROUTED_EXPERTS.ptr, ROUTED_EXPERTS.len, changetype<usize>(header), header.byteLength);
  const pairs = writer.build();
  sendLocalResponse(code, DETAILS, changetype<usize>(body), body.byteLength, pairs);
  pairs.free();
}

/** Passes prefill's answer to the client as it is. `headers` and `body` are borrowed. */
export function replyPrefill(code: i32, headers: Block, body: Block, outcome: string): void {
  reply(DETAILS_PREFILL, code, headers, body.ptr, body.len, outcome);
}

/**
 * Sends decode's response, edited, in place of the one that Envoy holds. Both blocks are borrowed.
 */
export function replyDecode(code: i32, headers: Block, body: Block | null, outcome: string): void {
  reply(DETAILS_DECODE, code, headers, body === null ? 0 : body.ptr, body === null ? 0 : body.len, outcome);
}

function reply(
  details: Ascii,
  code: i32,
  headers: Block,
  body: usize,
  bodyLen: usize,
  outcome: string,
): void {
  const text = String.UTF8.encode(outcome);
  const writer = new PairWriter();
  const reader = new PairReader(headers);
  while (reader.next()) {
    const pseudo = reader.nameLen > 0 && load<u8>(reader.namePtr) == 0x3a;
    if (pseudo || isOneHop(reader.namePtr, reader.nameLen)) continue;
    if (ROUTED_EXPERTS.equals(reader.namePtr, reader.nameLen)) continue;
    writer.add(reader.namePtr, reader.nameLen, reader.valuePtr, reader.valueLen);
  }
  writer.add(ROUTED_EXPERTS.ptr, ROUTED_EXPERTS.len, changetype<usize>(text), text.byteLength);
  const pairs = writer.build();
  sendLocalResponse(code, details, body, bodyLen, pairs);
  pairs.free();
}
