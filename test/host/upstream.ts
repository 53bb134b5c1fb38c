/**
 * What Envoy's router sends to an engine, and what it reports when no answer comes (router.cc,
 * http1/codec_impl.cc).
 */

import type { EngineRequest, Header, Protocol } from '../scenario.ts';
import type { HeaderMap } from './headers.ts';

/**
 * Headers of a request that address Envoy's router, which removes them (retry_state_impl.cc,
 * router.cc).
 */
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

/** The reset that Envoy sees when an engine breaks off before it has sent its head. */
export const resetReason = (protocol: Protocol): ResetReason =>
  protocol === 'http1' ? 'connection termination' : 'remote reset';

/**
 * The reset that Envoy sees when an engine breaks off after its head: an HTTP/1 message that ends
 * too early is a protocol error.
 */
export const resetBodyReason = (protocol: Protocol): ResetReason =>
  protocol === 'http1' ? 'protocol error' : 'remote reset';

/**
 * The response that the router makes of a reset. `retried` says that there was more than one try.
 */
export function upstreamError(reason: ResetReason, retried = false): { status: number; text: string } {
  const which = retried ? 'retried and the latest reset reason' : 'reset reason';
  return {
    status: reason === 'protocol error' ? 502 : 503,
    text: `upstream connect error or disconnect/reset before headers. ${which}: ${reason}`,
  };
}

/**
 * A request as the engine reads it. `headOnly` says that the head carried the end of the stream.
 */
export function received(map: HeaderMap, body: Buffer, headOnly: boolean, protocol: Protocol): EngineRequest {
  const method = map.get(':method') ?? '';
  const headers: Header[] = map.fields();
  if (protocol === 'http1') {
    headers.unshift(['host', map.get(':authority') ?? '']);
    // As in `encodeHeadersBase`: without a length the body is chunked. When there is no body, the
    // length 0 is announced for methods that usually have one.
    if (!map.has('content-length')) {
      if (!headOnly) headers.push(['transfer-encoding', 'chunked']);
      else if (!/^(GET|HEAD|DELETE|TRACE|CONNECT)$/.test(method)) headers.push(['content-length', '0']);
    }
  }
  return { method, path: map.get(':path') ?? '', headers, body };
}
