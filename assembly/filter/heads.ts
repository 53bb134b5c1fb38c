// What an exchange needs to know of a head. One pass over all headers finds it, since each call to
// the host costs more than that pass.

import { headerPairs, replaceHeader } from '../abi/host';
import { PairReader } from '../abi/pairs';
import { HeaderMapKind } from '../abi/types';
import { equalsIgnoreCase, readDecimal, startsWithIgnoreCase, writeDecimal } from '../bytes/ascii';
import { Block } from '../bytes/block';
import { DECIMAL_BYTES } from '../bytes/text';
import { Api, Dialect } from '../connectors/schema';
import { RANK } from '../connectors/session';
import { Config } from './config/config';
import {
  ACCEPT_ENCODING,
  APPLICATION_JSON,
  CONTENT_ENCODING,
  CONTENT_LENGTH,
  CONTENT_TYPE,
  EVENT_STREAM,
  IDENTITY,
  METHOD,
  PATH,
  POST,
  PUT,
  REQUEST_ID,
  STATUS,
} from './names';


@final
export class RequestHead {
  /** The API that P/D serves for this method and path; `None` when it does not. */
  api: Api = Api.None;
  /** Whether the method is POST, or PUT for an API whose engine treats PUT as POST. */
  posts: bool = false;
  hasRequestId: bool = false;
  hasContentLength: bool = false;
  hasAcceptEncoding: bool = false;
  /** Whether the client names a rank of vLLM's engines. */
  hasRank: bool = false;
  /** Whether the body has a content coding, such as compression. The filter reads no such body. */
  encoded: bool = false;
  /**
   * The first endpoint that the endpoint header names, without white space around it; 0 when the
   * header names none.
   */
  endpointPtr: usize = 0;
  endpointLen: usize = 0;

  /** Takes over the headers, which the prefill leg is sent with. */
  private constructor(readonly pairs: Block) {}

  /** Reads the request head of the effective stream; null when it has none. */
  static read(config: Config): RequestHead | null {
    const pairs = headerPairs(HeaderMapKind.RequestHeaders);
    if (pairs === null) return null;
    const head = new RequestHead(pairs);
    const reader = new PairReader(pairs);
    const endpointHeader = config.endpointHeader;
    let post = false;
    let put = false;
    let named = false;
    while (reader.next()) {
      if (endpointHeader !== null && reader.is(endpointHeader)) {
        if (!named) head.takeEndpoint(reader.valuePtr, reader.valueLen);
        named = true;
      } else if (reader.is(METHOD)) {
        post = POST.equals(reader.valuePtr, reader.valueLen);
        put = PUT.equals(reader.valuePtr, reader.valueLen);
      } else if (reader.is(PATH)) head.api = config.apiOf(reader.valuePtr, reader.valueLen);
      else if (reader.is(REQUEST_ID)) head.hasRequestId = true;
      else if (reader.is(CONTENT_LENGTH)) head.hasContentLength = true;
      else if (reader.is(ACCEPT_ENCODING)) head.hasAcceptEncoding = true;
      else if (reader.is(RANK)) head.hasRank = config.connector.schema.dialect == Dialect.Vllm;
      else if (reader.is(CONTENT_ENCODING) && isEncoded(reader.valuePtr, reader.valueLen))
        head.encoded = true;
    }
    // SGLang's `/generate` takes PUT for POST.
    head.posts = post || (put && head.api == Api.Native);
    if (!head.posts) head.api = Api.None;
    return head;
  }

  /** Keeps the first item of the endpoint header's list. */
  private takeEndpoint(ptr: usize, len: usize): void {
    let end = ptr;
    while (end < ptr + len && load<u8>(end) != 0x2c) end++;
    while (ptr < end && isSpace(load<u8>(ptr))) ptr++;
    while (ptr < end && isSpace(load<u8>(end - 1))) end--;
    this.endpointLen = end - ptr;
    this.endpointPtr = this.endpointLen > 0 ? ptr : 0;
  }

  free(): void {
    this.pairs.free();
  }
}


@final
export class ResponseHead {
  /** `:status`; 0 when there is none. */
  status: i32 = 0;
  /** Whether the body is an event stream, by its content type. */
  events: bool = false;
  /** Whether the body is JSON, by its content type. */
  json: bool = false;
  /** Whether the body has a content coding, such as compression. */
  encoded: bool = false;
  /** The value of `content-length`; -1 when there is none. */
  contentLength: i64 = -1;

  /** Whether the status says success (RFC 9110, section 15.3). */
  get good(): bool {
    return this.status >= 200 && this.status <= 299;
  }

  /** Whether the status says that the request is at fault (RFC 9110, section 15.5). */
  get isClientError(): bool {
    return this.status >= 400 && this.status <= 499;
  }

  /** Reads the head of decode's response, or of the answer to a call. */
  static read(map: HeaderMapKind): ResponseHead {
    const head = new ResponseHead();
    const pairs = headerPairs(map);
    if (pairs === null) return head;
    const reader = new PairReader(pairs);
    while (reader.next()) {
      const ptr = reader.valuePtr;
      const len = reader.valueLen;
      if (reader.is(STATUS)) head.status = <i32>max<i64>(readDecimal(ptr, len), 0);
      else if (reader.is(CONTENT_TYPE)) {
        head.events = startsWithIgnoreCase(ptr, len, EVENT_STREAM);
        head.json = startsWithIgnoreCase(ptr, len, APPLICATION_JSON);
      } else if (reader.is(CONTENT_LENGTH)) head.contentLength = readDecimal(ptr, len);
      else if (reader.is(CONTENT_ENCODING) && isEncoded(ptr, len)) head.encoded = true;
    }
    pairs.free();
    return head;
  }
}

/** Sets `content-length` in a head that has not left yet. */
export function setContentLength(map: HeaderMapKind, length: u64): void {
  const text = Block.alloc(DECIMAL_BYTES);
  replaceHeader(map, CONTENT_LENGTH, text.ptr, writeDecimal(length, text.ptr));
  text.free();
}

/**
 * Whether a `content-encoding` lists a coding other than `identity` (RFC 9110, section 8.4.1).
 * Empty items of the list are ignored (section 5.6.1).
 */
function isEncoded(ptr: usize, len: usize): bool {
  const end = ptr + len;
  for (let at = ptr; at < end; at++) {
    let from = at;
    while (at < end && load<u8>(at) != 0x2c) at++;
    let to = at;
    while (from < to && isSpace(load<u8>(from))) from++;
    while (from < to && isSpace(load<u8>(to - 1))) to--;
    if (from < to && !equalsIgnoreCase(from, to - from, IDENTITY)) return true;
  }
  return false;
}

/** Whether a byte is optional white space of a header's value (RFC 9110, section 5.6.3). */
function isSpace(c: u8): bool {
  return c == 0x20 || c == 0x09;
}
