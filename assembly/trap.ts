// The filter with a way to trap its VM, a request with the header `x-trap`. It is a module of its
// own for tests of what Envoy does with a VM that has failed; the product is built from index.ts,
// which has no such thing.

import { header } from './abi/host';
import { HeaderMapKind } from './abi/types';
import { Ascii } from './bytes/ascii';
import { proxy_on_request_headers as requestHeaders } from './index';

export {
  malloc,
  proxy_abi_version_0_2_1,
  proxy_on_configure,
  proxy_on_context_create,
  proxy_on_delete,
  proxy_on_done,
  proxy_on_http_call_response,
  proxy_on_log,
  proxy_on_request_body,
  proxy_on_request_trailers,
  proxy_on_response_body,
  proxy_on_response_headers,
  proxy_on_response_trailers,
  proxy_on_tick,
  proxy_on_vm_start,
} from './index';

const TRAP = new Ascii('x-trap');

export function proxy_on_request_headers(id: u32, headers: u32, endOfStream: u32): i32 {
  if (header(HeaderMapKind.RequestHeaders, TRAP) !== null) unreachable();
  return requestHeaders(id, headers, endOfStream);
}
