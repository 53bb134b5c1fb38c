// The entry of the product: what the wasm module exports to the host (proxy-wasm ABI 0.2.1), and
// nothing else.

import './abi/abort';
import {
  callResponse,
  configure,
  contextCreate,
  contextDelete,
  contextDone,
  contextLog,
  onCreateRoot,
  requestBody,
  requestHeaders,
  requestTrailers,
  responseBody,
  responseHeaders,
  responseTrailers,
  tick,
} from './abi/dispatch';
import { createRoot } from './filter/root';

export { malloc } from './abi/host';

onCreateRoot(createRoot);

/** The host finds out the version of the ABI by the name of this export. */
export function proxy_abi_version_0_2_1(): void {}

export function proxy_on_vm_start(root: u32, size: u32): u32 {
  return 1;
}

export function proxy_on_configure(root: u32, size: u32): u32 {
  return configure(root, size) ? 1 : 0;
}

export function proxy_on_context_create(id: u32, parent: u32): void {
  contextCreate(id, parent);
}

export function proxy_on_tick(root: u32): void {
  tick(root);
}

export function proxy_on_log(id: u32): void {
  contextLog(id);
}

export function proxy_on_done(id: u32): u32 {
  contextDone(id);
  return 1;
}

export function proxy_on_delete(id: u32): void {
  contextDelete(id);
}

export function proxy_on_request_headers(id: u32, headers: u32, endOfStream: u32): i32 {
  return requestHeaders(id, endOfStream != 0);
}

export function proxy_on_request_body(id: u32, size: u32, endOfStream: u32): i32 {
  return requestBody(id, size, endOfStream != 0);
}

export function proxy_on_request_trailers(id: u32, trailers: u32): i32 {
  return requestTrailers(id);
}

export function proxy_on_response_headers(id: u32, headers: u32, endOfStream: u32): i32 {
  return responseHeaders(id, endOfStream != 0);
}

export function proxy_on_response_body(id: u32, size: u32, endOfStream: u32): i32 {
  return responseBody(id, size, endOfStream != 0);
}

export function proxy_on_response_trailers(id: u32, trailers: u32): i32 {
  return responseTrailers(id);
}

export function proxy_on_http_call_response(
  root: u32,
  token: u32,
  headers: u32,
  bodySize: u32,
  trailers: u32,
): void {
  callResponse(token, headers, bodySize);
}
