/** What the router sends to an engine, and what it says when there is no answer (router.cc, http1/codec_impl.cc). */

import type { EngineRequest, Header, Protocol } from '../scenario.ts';
import type { HeaderMap } from './headers.ts';

/** Headers of a request that are for Envoy's router and go no further (retry_state_impl.cc, router.cc). */
export const ROUTER_OWN = [
  'x-envoy-hedge-on-per-try-timeout',
  'x-envoy-max-retries',
  'x-envoy-retriable-header-names',
  'x-envoy-retriable-status-codes',
  'x-envoy-retry-grpc-on',
  'x-envoy-retry-on',
  'x-envoy-upstream-alt-stat-name',
  'x-envoy-upstream-rq-per-try-timeout-ms',
  'x-envoy-upstream-rq-timeout-alt-response',
  'x-envoy-upstream-rq-timeout-ms',
];

export type ResetReason =
  'remote connection failure' | 'connection termination' | 'remote reset' | 'protocol error';

/** What Envoy notices when an engine breaks off before its head. */
export const resetReason = (protocol: Protocol): ResetReason =>
  protocol === 'http1' ? 'connection termination' : 'remote reset';

/** ... and after it: an HTTP/1 message that ends too early is a protocol error. */
export const resetBodyReason = (protocol: Protocol): ResetReason =>
  protocol === 'http1' ? 'protocol error' : 'remote reset';

/** `retried`: this was not the first try. */
export function upstreamError(reason: ResetReason, retried = false): { status: number; text: string } {
  const which = retried ? 'retried and the latest reset reason' : 'reset reason';
  return {
    status: reason === 'protocol error' ? 502 : 503,
    text: `upstream connect error or disconnect/reset before headers. ${which}: ${reason}`,
  };
}

/** A request as the engine reads it. `headOnly`: the head carried the end. */
export function received(map: HeaderMap, body: Buffer, headOnly: boolean, protocol: Protocol): EngineRequest {
  const method = map.get(':method') ?? '';
  const headers: Header[] = map.fields();
  if (protocol === 'http1') {
    headers.unshift(['host', map.get(':authority') ?? '']);
    // encodeHeadersBase: without a length the body is chunked, and no body is announced where one is usual.
    if (!map.has('content-length')) {
      if (!headOnly) headers.push(['transfer-encoding', 'chunked']);
      else if (!/^(GET|HEAD|DELETE|TRACE|CONNECT)$/.test(method)) headers.push(['content-length', '0']);
    }
  }
  return { method, path: map.get(':path') ?? '', headers, body };
}
