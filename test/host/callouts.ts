/**
 * proxy_http_call: the checks that Envoy makes when the guest calls it, and how an answer or a
 * failure looks to the guest.
 */

import type { EngineReply, EngineRequest, Header, Protocol } from '../scenario.ts';
import { WasmResult } from './abi.ts';
import type { RootContext } from './context.ts';
import { HeaderMap } from './headers.ts';
import { received, resetReason, ROUTER_OWN, upstreamError } from './upstream.ts';
import type { Account, Vm } from './vm.ts';

/**
 * `kBufferLimitForResponse` in async_client_impl.h. The runtime key
 * http.async_response_buffer_limit overrides it.
 */
export const ASYNC_RESPONSE_LIMIT = 32 * 1024 * 1024;

const IP_PORT = /^(\d+(\.\d+){3}|\[[\da-f:]+\]):\d+$/i;

export interface ClusterSpec {
  /** The cluster has no host, or no healthy one, so a call fails at once. */
  noHosts?: boolean;
  /**
   * The cluster is ORIGINAL_DST with use_http_header: it has no host for a request without an
   * `ip:port` in `x-envoy-original-dst-host`.
   */
  originalDst?: boolean;
  /**
   * The cluster is a dynamic forward proxy: its host is `:authority`. Here a name resolves when it
   * is `localhost` or an IPv4 address.
   */
  forwardProxy?: boolean;
}

/**
 * The failures after which Envoy's router tries a call again, and how often (retry_state_impl.cc).
 */
export interface RetryPolicy {
  on: string[];
  left: number;
  /** The router has tried the call more than once. */
  used: boolean;
}

/** What the guest is told: an answer, or `reset`, which has neither headers nor a body. */
export type CalloutOutcome = { headers: HeaderMap; trailers: HeaderMap | null; body: Buffer } | 'reset';

/** What an engine replied, or `refused` when nothing listens at its address. */
export type CalloutReply = EngineReply | 'refused';

export interface PendingCallout {
  readonly token: number;
  readonly cluster: string;
  readonly headers: HeaderMap;
  readonly body: Buffer;
  /** In milliseconds; 0 stands for no timeout. */
  readonly timeoutMs: number;
  readonly retry: RetryPolicy;
  /** The name of the call's host did not resolve: the guest gets a 503, whatever `reply` is. */
  readonly hostless: boolean;
  readonly account: Account | null;
  readonly root: RootContext;
}

export class Callouts {
  readonly clusters = new Map<string, ClusterSpec>();
  readonly responseLimit: number;
  readonly #pending: PendingCallout[] = [];
  /**
   * The DNS caches of dynamic forward proxies: whether the name has an address, by `cluster
   * host:port`.
   */
  readonly #lookedUp = new Map<string, boolean>();

  constructor(clusters: Record<string, ClusterSpec>, responseLimit: number) {
    for (const [name, spec] of Object.entries(clusters)) this.clusters.set(name, spec);
    this.responseLimit = responseLimit;
  }

  get pending(): readonly PendingCallout[] {
    return this.#pending;
  }

  /** Follows `httpCall` in context.cc. `token` is 0 when the call is refused. */
  start(
    vm: Vm,
    root: RootContext,
    call: { cluster: string; headers: Header[]; body: Buffer; timeoutMs: number },
  ): { result: number; token: number } {
    const refuse = (result: number): { result: number; token: number } => ({ result, token: 0 });
    if (call.timeoutMs < 0) return refuse(WasmResult.BadArgument);
    const cluster = this.clusters.get(call.cluster);
    if (!cluster) return refuse(WasmResult.BadArgument);
    const headers = HeaderMap.from('request', call.headers);
    if (![':method', ':path', ':authority'].every((name) => headers.has(name))) {
      return refuse(WasmResult.BadArgument);
    }
    const token = vm.nextCalloutToken();
    if (
      cluster.noHosts ||
      (cluster.originalDst && !IP_PORT.test(headers.get('x-envoy-original-dst-host') ?? ''))
    ) {
      return refuse(WasmResult.InternalFailure);
    }
    const found = cluster.forwardProxy
      ? this.#lookUp(call.cluster, headers.get(':authority') ?? '', call.body.length > 0)
      : true;
    if (found === null) return refuse(WasmResult.InternalFailure);
    if (call.body.length > 0) headers.put('content-length', String(call.body.length));
    // Follows `AsyncStreamImpl` in async_client_impl.cc. The router (router.cc) sends the timeout
    // to the engine in a header.
    headers.put('x-envoy-internal', 'true');
    const timeoutMs = Number(headers.get('x-envoy-upstream-rq-timeout-ms') ?? call.timeoutMs);
    const retry = retryPolicy(headers);
    for (const name of ROUTER_OWN) headers.remove(name);
    if (timeoutMs > 0) headers.put('x-envoy-expected-rq-timeout-ms', String(timeoutMs));
    this.#pending.push({
      token,
      cluster: call.cluster,
      headers,
      body: call.body,
      timeoutMs,
      retry,
      hostless: !found,
      account: vm.process.account,
      root,
    });
    return { result: WasmResult.Ok, token };
  }

  /**
   * Whether the name has an address; null when the call fails at once. Envoy selects the host
   * asynchronously: a call without a body waits for the address, and one with a body is refused
   * (async_client_impl.cc). The cache also keeps names that do not resolve.
   */
  #lookUp(cluster: string, authority: string, hasBody: boolean): boolean | null {
    const key = `${cluster} ${authority}`;
    const known = this.#lookedUp.get(key);
    if (known !== undefined) return known || null;
    const found = /^(localhost|\d+(\.\d+){3})(:\d+)?$/.test(authority);
    queueMicrotask(() => this.#lookedUp.set(key, found));
    return hasBody ? null : found;
  }

  /** Ends a pending call and tells the guest, also when the stream that made the call has ended. */
  complete(call: PendingCallout, reply: CalloutReply, protocol: Protocol = 'http1'): void {
    const at = this.#pending.indexOf(call);
    if (at < 0) throw new Error(`callout ${call.token} is not pending`);
    this.#pending.splice(at, 1);
    // The guest is told of a timeout when the call's timeout has elapsed.
    if (reply !== 'refused' && reply.fault?.startsWith('stall')) {
      call.root.vm.process.now += BigInt(call.timeoutMs) * 1_000_000n;
    }
    const outcome = call.hostless
      ? synthetic({ status: 503, text: 'no healthy upstream' })
      : this.#outcome(reply, protocol, call.retry.used);
    call.root.onCallout(call.token, outcome);
  }

  #outcome(reply: CalloutReply, protocol: Protocol, retried: boolean): CalloutOutcome {
    if (reply === 'refused') return synthetic(upstreamError('remote connection failure', retried));
    switch (reply.fault) {
      case 'reset':
        return synthetic(upstreamError(resetReason(protocol), retried));
      case 'stall':
        return synthetic({ status: 504, text: 'upstream request timeout' });
      case 'reset_body':
      case 'stall_body':
        return 'reset';
    }
    const body = Buffer.concat(reply.chunks);
    if (body.length > this.responseLimit) return 'reset';
    const headers = HeaderMap.from('response', [[':status', String(reply.status)], ...reply.headers]);
    if (protocol === 'http1' && !headers.has('content-length')) headers.put('transfer-encoding', 'chunked');
    headers.put('x-envoy-upstream-service-time', '1');
    return { headers, trailers: reply.trailers ? HeaderMap.from('trailers', reply.trailers) : null, body };
  }
}

/**
 * Whether Envoy's router sends the call again, with its whole body, instead of handing this reply
 * to the guest.
 */
export function triesAgain({ retry, hostless }: PendingCallout, reply: CalloutReply): boolean {
  if (hostless || retry.left === 0 || !retry.on.some((condition) => holds(condition, reply))) return false;
  retry.left--;
  return (retry.used = true);
}

/**
 * Follows `wouldRetryFromHeaders` and `wouldRetryFromReset` in retry_state_impl.cc: the router does
 * not retry once it has received a head, nor after the timeout.
 */
function holds(condition: string, reply: CalloutReply): boolean {
  const reset = reply === 'refused' || reply.fault === 'reset';
  const status = reply === 'refused' || reply.fault?.startsWith('stall') ? 0 : reply.status;
  switch (condition) {
    case '5xx':
      return reset || (status >= 500 && status < 600);
    case 'gateway-error':
      return reset || (status >= 502 && status <= 504);
    case 'reset':
      return reset;
    case 'connect-failure':
      return reply === 'refused';
    default:
      // The engines of these tests never send REFUSED_STREAM, so `refused-stream` never holds.
      return false;
  }
}

function retryPolicy(headers: HeaderMap): RetryPolicy {
  const on = (headers.get('x-envoy-retry-on') ?? '').split(',').filter((condition) => condition !== '');
  const left = Number(headers.get('x-envoy-max-retries') ?? 1);
  return { on, left: on.length > 0 ? left : 0, used: false };
}

/** The call as the engine receives it. */
export function calloutRequest(call: PendingCallout, protocol: Protocol = 'http1'): EngineRequest {
  return received(call.headers, call.body, call.body.length === 0, protocol);
}

function synthetic({ status, text }: { status: number; text: string }): CalloutOutcome {
  const body = Buffer.from(text);
  const headers = HeaderMap.from('response', [
    [':status', String(status)],
    ['content-length', String(body.length)],
    ['content-type', 'text/plain'],
  ]);
  return { headers, trailers: null, body };
}
