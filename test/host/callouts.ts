/** proxy_http_call: checks at the call, and what an answer or a failure looks like to the guest. */

import type { EngineReply, EngineRequest, Header } from '../scenario.ts';
import { WasmResult } from './abi.ts';
import type { RootContext } from './context.ts';
import { HeaderMap } from './headers.ts';
import type { Exchange, Vm } from './vm.ts';

/** async_client_impl.h kBufferLimitForResponse; runtime key http.async_response_buffer_limit. */
export const ASYNC_RESPONSE_LIMIT = 32 * 1024 * 1024;

export interface ClusterSpec {
  /** No healthy host, or no host at all: the call fails at once. */
  noHosts?: boolean;
  /** ORIGINAL_DST with use_http_header: without `x-envoy-original-dst-host` there is no host. */
  originalDst?: boolean;
}

/** What the guest is told: an answer, or `reset` (no headers, no body). */
export type CalloutOutcome = { headers: HeaderMap; trailers: HeaderMap | null; body: Buffer } | 'reset';

/** An engine's reply, or how the call failed. */
export type CalloutReply = EngineReply | 'refused';

export interface PendingCallout {
  readonly token: number;
  readonly cluster: string;
  /** As the other side receives it; `host` stands for `:authority`. */
  readonly request: EngineRequest;
  /** 0: none. */
  readonly timeoutMs: number;
  readonly exchange: Exchange | null;
  readonly root: RootContext;
}

export class Callouts {
  readonly clusters = new Map<string, ClusterSpec>();
  readonly responseLimit: number;
  readonly #pending: PendingCallout[] = [];

  constructor(clusters: Record<string, ClusterSpec>, responseLimit: number) {
    for (const [name, spec] of Object.entries(clusters)) this.clusters.set(name, spec);
    this.responseLimit = responseLimit;
  }

  get pending(): readonly PendingCallout[] {
    return this.#pending;
  }

  /** context.cc httpCall. */
  start(
    vm: Vm,
    root: RootContext,
    call: { cluster: string; headers: Header[]; body: Buffer; timeoutMs: number },
  ): { result: number; token: number } {
    const refuse = (result: number): { result: number; token: number } => ({ result, token: 0 });
    if (call.timeoutMs < 0) return refuse(WasmResult.BadArgument);
    const cluster = this.clusters.get(call.cluster);
    if (!cluster) return refuse(WasmResult.BadArgument);
    const headers = HeaderMap.from(call.headers);
    const [method, path, authority] = [':method', ':path', ':authority'].map((name) => headers.get(name));
    if (method === undefined || path === undefined || authority === undefined) {
      return refuse(WasmResult.BadArgument);
    }
    const token = vm.nextCalloutToken();
    if (cluster.noHosts || (cluster.originalDst && !headers.has('x-envoy-original-dst-host'))) {
      return refuse(WasmResult.InternalFailure);
    }
    if (call.body.length > 0) headers.set('content-length', String(call.body.length));
    // The async client's router: x-envoy-internal, and the timeout for the other side.
    headers.set('x-envoy-internal', 'true');
    if (call.timeoutMs > 0) headers.set('x-envoy-expected-rq-timeout-ms', String(call.timeoutMs));
    this.#pending.push({
      token,
      cluster: call.cluster,
      request: { method, path, headers: [['host', authority], ...headers.fields()], body: call.body },
      timeoutMs: call.timeoutMs,
      exchange: vm.process.exchange,
      root,
    });
    return { result: WasmResult.Ok, token };
  }

  /** Takes the call out of the pending ones and tells the guest; a stream that is gone does not matter. */
  complete(call: PendingCallout, reply: CalloutReply): void {
    const at = this.#pending.indexOf(call);
    if (at < 0) throw new Error(`callout ${call.token} is not pending`);
    this.#pending.splice(at, 1);
    call.root.onCallout(call.token, this.#outcome(reply));
  }

  /** True when no answer will ever come. */
  hangs(call: PendingCallout, reply: CalloutReply): boolean {
    return reply !== 'refused' && call.timeoutMs === 0 && /^stall/.test(reply.fault ?? '');
  }

  #outcome(reply: CalloutReply): CalloutOutcome {
    if (reply === 'refused') return synthetic(503, UPSTREAM_REFUSED);
    switch (reply.fault) {
      case 'reset':
        return synthetic(503, UPSTREAM_RESET);
      case 'stall':
        return synthetic(504, 'upstream request timeout');
      case 'reset_body':
      case 'stall_body':
        return 'reset';
    }
    const body = Buffer.concat(reply.chunks);
    if (body.length > this.responseLimit) return 'reset';
    const headers = HeaderMap.from([[':status', String(reply.status)], ...reply.headers]);
    if (!headers.has('content-length')) headers.set('transfer-encoding', 'chunked');
    headers.set('x-envoy-upstream-service-time', '1');
    return { headers, trailers: reply.trailers ? HeaderMap.from(reply.trailers) : null, body };
  }
}

/** router.cc: what the client, or the guest, reads when there is no answer to pass on. */
export const UPSTREAM_REFUSED =
  'upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, ' +
  'transport failure reason: delayed connect error: Connection refused';
export const UPSTREAM_RESET =
  'upstream connect error or disconnect/reset before headers. reset reason: connection termination';

function synthetic(status: number, text: string): CalloutOutcome {
  const body = Buffer.from(text);
  const headers = HeaderMap.from([
    [':status', String(status)],
    ['content-length', String(body.length)],
    ['content-type', 'text/plain'],
  ]);
  return { headers, trailers: null, body };
}
