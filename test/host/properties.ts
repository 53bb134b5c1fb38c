/**
 * The attributes of a stream, by a path with NUL between its parts (`getProperty` and `findValue`
 * in context.cc).
 */

import type { HeaderMap } from './headers.ts';
import type { RootContext } from './context.ts';

/** The part of Envoy's StreamInfo that a guest can read. */
export interface StreamInfo {
  readonly id: number;
  readonly protocol: string;
  readonly startTime: bigint;
  readonly filterState: Map<string, Buffer>;
  readonly cluster: string;
  requestId: string;
  /** Null until a response has begun. */
  responseCode: number | null;
  responseCodeDetails: string | null;
  bytesReceived: number;
  bytesSent: number;
  upstreamAddress: string | null;
}

interface StreamView {
  info: StreamInfo;
  request: HeaderMap | null;
  response: HeaderMap | null;
}

/** A number is 8 bytes, little-endian (`serializeValue`). */
function int(value: number | bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigInt64LE(BigInt(value));
  return out;
}

function string(value: string | null | undefined): Buffer | null {
  return value === null || value === undefined ? null : Buffer.from(value, 'latin1');
}

export function lookUp(path: string, root: RootContext, stream: StreamView | null): Buffer | null {
  const [first, second, ...rest] = path.split('\0');
  switch (first) {
    case 'plugin_name':
    case 'plugin_root_id':
      return string(root.vm.process.pluginName);
    case 'plugin_vm_id':
      return string(root.vm.process.vmId);
  }
  if (stream === null) return null;
  const { info, request, response } = stream;
  switch (first) {
    case 'request':
      return requestAttribute(second, rest, info, request);
    case 'response':
      return responseAttribute(second, rest, info, response);
    case 'source':
      return second === 'address' ? string('127.0.0.1:40000') : second === 'port' ? int(40000) : null;
    case 'destination':
      return second === 'address' ? string('127.0.0.1:10000') : second === 'port' ? int(10000) : null;
    case 'connection':
      return second === 'id' ? int(info.id) : null;
    case 'upstream':
      return second === 'address' ? string(info.upstreamAddress) : null;
    case 'xds':
      if (second === 'cluster_name') return string(info.cluster);
      if (second === 'route_name' || second === 'virtual_host_name') return string('');
      return null;
    default:
      // The properties that a guest sets are filter state under names that begin with `wasm.`.
      return info.filterState.get(`wasm.${path}`) ?? null;
  }
}

function requestAttribute(
  name: string | undefined,
  rest: string[],
  info: StreamInfo,
  headers: HeaderMap | null,
): Buffer | null {
  const header = (key: string): Buffer | null => string(headers?.get(key));
  switch (name) {
    case 'headers':
      return rest.length === 1 ? header(rest[0]) : null;
    case 'path':
      return header(':path');
    case 'url_path':
      return string(headers?.get(':path')?.split('?')[0]);
    case 'query':
      return string(headers?.get(':path')?.split('?')[1] ?? (headers ? '' : null));
    case 'host':
      return header(':authority');
    case 'scheme':
      return header(':scheme');
    case 'method':
      return header(':method');
    case 'referer':
      return header('referer');
    case 'useragent':
      return header('user-agent');
    case 'id':
      return header('x-request-id');
    case 'protocol':
      return string(info.protocol);
    case 'time':
      return int(info.startTime);
    case 'size': {
      const length = Number(headers?.get('content-length'));
      return int(Number.isSafeInteger(length) ? length : info.bytesReceived);
    }
    case 'total_size':
      return int(info.bytesReceived + (headers?.byteSize ?? 0));
    default:
      return null;
  }
}

function responseAttribute(
  name: string | undefined,
  rest: string[],
  info: StreamInfo,
  headers: HeaderMap | null,
): Buffer | null {
  switch (name) {
    case 'headers':
      return rest.length === 1 ? string(headers?.get(rest[0])) : null;
    case 'code':
      return info.responseCode === null ? null : int(info.responseCode);
    case 'code_details':
      return string(info.responseCodeDetails);
    case 'flags':
      return int(0);
    case 'size':
      return int(info.bytesSent);
    case 'total_size':
      return int(info.bytesSent + (headers?.byteSize ?? 0));
    default:
      return null;
  }
}
