// What the plugin's configuration says. `read.ts` reads and checks it.

import { Ascii, hexValue } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { Connector } from '../../connectors/connector';
import { Api, Dialect } from '../../connectors/schema';
import { connectorNamed } from '../../connectors/table';
import { Model, RowCheck } from '../../routing/examination';
import { Endpoints } from './endpoints';

export const enum OnPrefillFailure {
  Decode,
  Reject,
}

export const enum OnUnmergeable {
  Reject,
  Null,
  Forward,
}

/**
 * The type of the cluster that takes the endpoint which a request names. It decides which header of
 * a call to the cluster has that endpoint.
 */
export const enum ClusterType {
  /** The endpoint is in `x-envoy-original-dst-host`. */
  OriginalDst,
  /** The endpoint is in `:authority`. */
  DynamicForwardProxy,
}

/** How responses that have been merged are audited. */
@final
export class AuditSettings {
  /** The cluster whose engine is asked again. */
  cluster: Ascii = new Ascii('');
  /** The share of the exchanges that are audited, from 0 to 1. */
  fraction: f64 = 0.001;
  timeoutMs: u32 = 60000;
  /** How many calls are in flight at a time at most. */
  maxCalls: i32 = 1;
  /** How many bytes the audits of a VM may hold together. */
  maxBytes: u64 = 64 << 20;
}


@final
export class Config {
  cluster: Ascii = new Ascii('');
  /** The header in which a request names its prefill endpoint; null when the cluster chooses. */
  endpointHeader: Ascii | null = null;
  /** The endpoints that a request may name. */
  endpoints: Endpoints = new Endpoints();
  clusterType: ClusterType = ClusterType.OriginalDst;
  timeoutMs: u32 = 600000;
  retries: i32 = 1;
  connector: Connector = connectorNamed('nixl')!;
  /** Whether both legs are sent at once. Otherwise decode's is sent when prefill has answered. */
  concurrent: bool = false;
  /**
   * The cluster in which prefill's bootstrap server is asked for ranks; null when it is `cluster`.
   */
  bootstrapCluster: Ascii | null = null;
  /**
   * The host of prefill's bootstrap server, as a URL has it; null when it is the host that the
   * request names.
   */
  bootstrapHost: Ascii | null = null;
  bootstrapPort: i32 = 8998;
  /** For how long what a bootstrap server has said is used for legs, milliseconds. */
  bootstrapTtlMs: u32 = 60000;
  tail: bool = false;
  /** Whether the row of the last prompt token, which both legs forward, is taken from decode. */
  lastRowOfDecode: bool = false;
  /** Whether a request that decode serves alone gets a `cache_salt` of its own. */
  freshLocal: bool = true;
  /** The most tokens of a sequence, prompt and output together; 0 when it is not configured. */
  maxModelLen: i64 = 0;
  /** Which rows are examined for experts that no router gives. */
  rowCheck: RowCheck = RowCheck.Sampled;
  /** The shape that arrays must have; null when they must have that of prefill's array. */
  model: Model | null = null;
  /**
   * Whether heads pass without being held, for plugins without `allow_on_headers_stop_iteration`.
   */
  passHeads: bool = false;
  /** The paths that P/D serves, and for each of them the API that it speaks. */
  paths: Ascii[] = [];
  apis: Api[] = [];
  onPrefillFailure: OnPrefillFailure = OnPrefillFailure.Decode;
  onUnmergeable: OnUnmergeable = OnUnmergeable.Reject;
  holdBytes: u64 = 1 << 20;
  maxHoldBytes: u64 = 16 << 20;
  maxCaptureBytes: u64 = 512 << 20;
  maxParkedBytes: u64 = 2 << 30;
  /**
   * How many bytes the filter may let go at once, beyond the piece of decode's that has come; 0:
   * any number. It is set where another filter sees the response after this one.
   */
  maxPieceBytes: u64 = 0;
  /** Null when no response is audited. */
  audit: AuditSettings | null = null;

  /**
   * The API of a request's path (borrowed), which may have a query and escapes. `None` when P/D
   * does not serve the path.
   */
  apiOf(ptr: usize, len: usize): Api {
    const plain = plainPath(ptr, len);
    let api = Api.None;
    for (let i = 0; i < this.paths.length; i++)
      if (this.paths[i].equals(plain.ptr, plain.len)) api = this.apis[i];
    plain.free();
    return api;
  }

  /**
   * Whether a reply may be a list of elements, as SGLang answers several prompts. A list is also
   * taken where the connector needs no parameters of prefill's, in case SGLang's engines stand
   * behind a store that they share.
   */
  get takesLists(): bool {
    return this.connector.schema.dialect == Dialect.Sglang || !this.connector.needsParams;
  }

  /** Adds a path that P/D serves. Its end says which API it speaks. */
  addPath(path: string): void {
    this.paths.push(new Ascii(path));
    this.apis.push(apiOfPath(path));
  }
}

/**
 * The API that a path speaks. Only the end of the path counts, since gateways put prefixes before
 * it.
 */
export function apiOfPath(path: string): Api {
  if (path.endsWith('/chat/completions')) return Api.Chat;
  if (path.endsWith('/completions')) return Api.Completions;
  if (path.endsWith('/inference/v1/generate')) return Api.Generate;
  return path.endsWith('/generate') ? Api.Native : Api.None;
}

/**
 * Copies a path without its query and with its escapes decoded. Engines route by this form (`path`
 * in ASGI). The caller owns the copy.
 */
function plainPath(ptr: usize, len: usize): Block {
  const plain = Block.alloc(len);
  let at = plain.ptr;
  for (const end = ptr + len; ptr < end; ptr++) {
    let c = load<u8>(ptr);
    if (c == 0x3f || c == 0x23) break;
    if (c == 0x25 && ptr + 2 < end) {
      const high = hexValue(load<u8>(ptr, 1));
      const low = hexValue(load<u8>(ptr, 2));
      if (high >= 0 && low >= 0) {
        c = <u8>((high << 4) | low);
        ptr += 2;
      }
    }
    store<u8>(at++, c);
  }
  plain.truncate(at - plain.ptr);
  return plain;
}
