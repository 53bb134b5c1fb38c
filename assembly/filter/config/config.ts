// What the plugin's configuration says. `read.ts` reads and checks it.

import { Ascii, hexValue } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { Connector } from '../../connectors/connector';
import { Api } from '../../connectors/request_body';
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

/** What kind of cluster takes the endpoint that a request names, and so how the call tells it. */
export const enum ClusterType {
  /** `x-envoy-original-dst-host`. */
  OriginalDst,
  /** `:authority`. */
  DynamicForwardProxy,
}


@final
export class Config {
  cluster: Ascii = new Ascii('');
  /** Header in which a request names its prefill endpoint; null: the cluster chooses. */
  endpointHeader: Ascii | null = null;
  /** Endpoints that a request may name. */
  endpoints: Endpoints = new Endpoints();
  clusterType: ClusterType = ClusterType.OriginalDst;
  timeoutMs: u32 = 600000;
  retries: i32 = 1;
  connector: Connector = connectorNamed('nixl')!;
  /** Where prefill's bootstrap server is asked for ranks; null: in `cluster`. */
  bootstrapCluster: Ascii | null = null;
  /** Host of prefill's bootstrap server, as URLs have it; null: the host that the request names. */
  bootstrapHost: Ascii | null = null;
  bootstrapPort: i32 = 8998;
  tail: bool = false;
  /** Whose row the last token of the prompt gets, which both legs forward: decode's; else prefill's. */
  lastRowOfDecode: bool = false;
  /** A request that decode serves alone gets a `cache_salt` of its own. */
  freshLocal: bool = true;
  /** How many rows are looked at for experts that a router cannot have given. */
  rowCheck: RowCheck = RowCheck.Sampled;
  /** What arrays must have; null: what prefill's has. */
  model: Model | null = null;
  /** Heads are never held: for plugins without `allow_on_headers_stop_iteration`. */
  passHeads: bool = false;
  /** Paths that P/D serves, and the API that each speaks. */
  paths: Ascii[] = [];
  apis: Api[] = [];
  onPrefillFailure: OnPrefillFailure = OnPrefillFailure.Decode;
  onUnmergeable: OnUnmergeable = OnUnmergeable.Reject;
  holdBytes: u64 = 1 << 20;
  maxHoldBytes: u64 = 16 << 20;
  maxCaptureBytes: u64 = 512 << 20;
  maxParkedBytes: u64 = 2 << 30;

  /** The API of a request path (borrowed), query and escapes included; `None` when P/D does not serve it. */
  apiOf(ptr: usize, len: usize): Api {
    const plain = plainPath(ptr, len);
    let api = Api.None;
    for (let i = 0; i < this.paths.length; i++)
      if (this.paths[i].equals(plain.ptr, plain.len)) api = this.apis[i];
    plain.free();
    return api;
  }

  /** A path that P/D serves from now on; what API it speaks follows from its end. */
  addPath(path: string): void {
    this.paths.push(new Ascii(path));
    this.apis.push(apiOfPath(path));
  }
}

/** The API that a path speaks, by its end: gateways put prefixes before it. */
export function apiOfPath(path: string): Api {
  if (path.endsWith('/chat/completions')) return Api.Chat;
  if (path.endsWith('/completions')) return Api.Completions;
  if (path.endsWith('/inference/v1/generate')) return Api.Generate;
  return path.endsWith('/generate') ? Api.Native : Api.None;
}

/** A path without its query, escapes decoded: engines route by that (ASGI's `path`). */
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
