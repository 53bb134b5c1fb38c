// The plugin's configuration: read with json-as, then checked member by member. A wrong one is refused with the path of
// what is wrong and what was expected.

import { JSON } from 'json-as';
import { Ascii, hexValue } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { Connector } from '../../connectors/connector';
import { connectorNamed, connectorNames } from '../../connectors/table';
import { Api, Dialect } from '../../connectors/request_body';
import { Paths } from '../../json/paths';
import { Event, Scanner } from '../../json/scanner';
import { Model, RowCheck } from '../../routing/examination';
import { MAX_DIMENSION } from '../../routing/npy';
import { Endpoint, Endpoints, Entry } from './endpoints';
import { isReserved } from '../names';

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

const MAX_TIMEOUT_MS: i64 = 86400000;
const MAX_RETRIES: i64 = 10;
/** Most that one exchange may hold, and most that all captures of a VM may: a VM has 1 GiB for everything. */
const MAX_HOLD_BYTES: i64 = 256 << 20;
const MAX_CAPTURE_BYTES: i64 = 640 << 20;
/** Host memory: what the machine has. */
const MAX_PARKED_BYTES: i64 = 1 << 40;
/** More than any model has; together they keep a row below the largest that is read. */
const MAX_MODEL_LAYERS: i64 = 1024;
const MAX_MODEL_TOP_K: i64 = 256;


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

  /** What is wrong, as `path: what was expected`; empty when nothing is. */
  problem: string = '';

  /** Reads the configuration; `text` is borrowed. See `problem`. */
  static parse(text: Block): Config {
    const config = new Config();
    // json-as traps on what is not JSON.
    if (!isObject(text)) {
      config.problem = 'configuration: expected a JSON object';
      return config;
    }
    const root = JSON.parse<JSON.Obj>(String.UTF8.decodeUnsafe(text.ptr, text.len));
    config.read(root);
    return config;
  }

  /** The API of a request path (borrowed), query and escapes included; `None` when P/D does not serve it. */
  apiOf(ptr: usize, len: usize): Api {
    const plain = plainPath(ptr, len);
    let api = Api.None;
    for (let i = 0; i < this.paths.length; i++)
      if (this.paths[i].equals(plain.ptr, plain.len)) api = this.apis[i];
    plain.free();
    return api;
  }

  private read(root: JSON.Obj): void {
    this.only(root, '', [
      'prefill',
      'connector',
      'decode_rows',
      'last_prompt_row',
      'local_prefix_cache',
      'check_rows',
      'model',
      'headers',
      'paths',
      'on_prefill_failure',
      'on_unmergeable',
      'hold_bytes',
      'max_hold_bytes',
      'max_capture_bytes',
      'max_parked_bytes',
    ]);
    const prefill = root.get('prefill');
    if (prefill === null || prefill.type != JSON.Types.Object) {
      return this.wrong('prefill', 'an object with the member cluster');
    }
    this.readPrefill(prefill.get<JSON.Obj>());
    const connector = this.text(root, 'connector', 'connector', 'nixl');
    const named = connectorNamed(connector);
    if (named === null) this.wrong('connector', 'one of ' + connectorNames());
    else this.connector = named;
    this.readBootstrap(prefill.get<JSON.Obj>());
    this.tail = this.choice(root, 'decode_rows', 'decode_rows', ['full', 'tail']) == 1;
    if (this.tail && this.connector.concurrent) {
      this.wrong(
        'decode_rows',
        'full: with connector ' + connector + ' decode starts before prefill has answered',
      );
    }
    this.lastRowOfDecode =
      this.choice(root, 'last_prompt_row', 'last_prompt_row', ['prefill', 'decode']) == 1;
    this.freshLocal = this.choice(root, 'local_prefix_cache', 'local_prefix_cache', ['fresh', 'shared']) == 0;
    this.rowCheck = this.choice(root, 'check_rows', 'check_rows', ['sampled', 'all', 'off']);
    this.readModel(root);
    this.readPaths(root);
    this.onPrefillFailure = this.choice(root, 'on_prefill_failure', 'on_prefill_failure', [
      'decode',
      'reject',
    ]);
    this.onUnmergeable = this.choice(root, 'on_unmergeable', 'on_unmergeable', ['reject', 'null', 'forward']);
    this.passHeads = this.choice(root, 'headers', 'headers', ['hold', 'pass']) == 1;
    if (this.passHeads && this.onUnmergeable == OnUnmergeable.Null) {
      this.wrong('on_unmergeable', 'reject or forward: with headers pass the length has been told');
    }
    if (this.passHeads && this.connector.concurrent) {
      this.wrong('headers', 'hold: with connector ' + connector + ' the response waits for prefill');
    }
    this.holdBytes = this.integer(root, 'hold_bytes', 'hold_bytes', 0, MAX_HOLD_BYTES, this.holdBytes);
    const most = max<u64>(this.maxHoldBytes, this.holdBytes);
    this.maxHoldBytes = this.integer(root, 'max_hold_bytes', 'max_hold_bytes', 0, MAX_HOLD_BYTES, most);
    if (this.maxHoldBytes < this.holdBytes) this.wrong('max_hold_bytes', 'at least hold_bytes');
    this.maxCaptureBytes = this.integer(
      root,
      'max_capture_bytes',
      'max_capture_bytes',
      0,
      MAX_CAPTURE_BYTES,
      this.maxCaptureBytes,
    );
    this.maxParkedBytes = this.integer(
      root,
      'max_parked_bytes',
      'max_parked_bytes',
      0,
      MAX_PARKED_BYTES,
      this.maxParkedBytes,
    );
  }

  private readModel(root: JSON.Obj): void {
    const value = root.get('model');
    if (value === null) return;
    if (value.type != JSON.Types.Object) {
      return this.wrong('model', 'an object with the members layers, top_k and experts');
    }
    const model = value.get<JSON.Obj>();
    this.only(model, 'model.', ['layers', 'top_k', 'experts']);
    this.model = new Model(
      this.required(model, 'layers', 'model.layers', MAX_MODEL_LAYERS),
      this.required(model, 'top_k', 'model.top_k', MAX_MODEL_TOP_K),
      this.required(model, 'experts', 'model.experts', MAX_DIMENSION),
    );
  }

  /** An integer from 1 to `most` that has to be there. */
  private required(object: JSON.Obj, key: string, path: string, most: i64): u64 {
    const found = this.integer(object, key, path, 1, most, 0);
    if (object.get(key) === null) this.wrong(path, 'an integer from 1 to ' + most.toString());
    return found;
  }

  private readPrefill(prefill: JSON.Obj): void {
    this.only(prefill, 'prefill.', [
      'cluster',
      'endpoint_header',
      'allowed_endpoints',
      'cluster_type',
      'bootstrap_cluster',
      'bootstrap_host',
      'bootstrap_port',
      'timeout_ms',
      'retries',
    ]);
    const cluster = this.text(prefill, 'cluster', 'prefill.cluster', '');
    if (cluster.length == 0) this.wrong('prefill.cluster', 'the name of a cluster');
    this.cluster = new Ascii(cluster);
    const timeout = this.integer(
      prefill,
      'timeout_ms',
      'prefill.timeout_ms',
      1,
      MAX_TIMEOUT_MS,
      this.timeoutMs,
    );
    this.timeoutMs = <u32>timeout;
    this.retries = <i32>this.integer(prefill, 'retries', 'prefill.retries', 0, MAX_RETRIES, this.retries);
    this.readEndpoints(prefill);
  }

  private readEndpoints(prefill: JSON.Obj): void {
    const allowed = prefill.get('allowed_endpoints');
    const types = ['original_dst', 'dynamic_forward_proxy'];
    this.clusterType = this.choice(prefill, 'cluster_type', 'prefill.cluster_type', types);
    if (prefill.get('endpoint_header') === null) {
      if (allowed !== null) this.wrong('prefill.allowed_endpoints', 'endpoint_header beside it');
      if (prefill.get('cluster_type') !== null)
        this.wrong('prefill.cluster_type', 'endpoint_header beside it');
      return;
    }
    const name = new Ascii(this.text(prefill, 'endpoint_header', 'prefill.endpoint_header', ''));
    if (!isToken(name) || isReserved(name.ptr, name.len)) {
      this.wrong('prefill.endpoint_header', 'the name of a header in lower case, without another meaning');
    }
    this.endpointHeader = name;
    if (allowed === null || allowed.type != JSON.Types.Array || allowed.get<JSON.Arr>().length == 0) {
      return this.wrong('prefill.allowed_endpoints', 'an array of endpoints, not empty');
    }
    const list = allowed.get<JSON.Arr>();
    for (let i = 0; i < list.length; i++) this.readEndpoint(list.at(i), i);
  }

  private readEndpoint(value: JSON.Value, i: i32): void {
    const path = 'prefill.allowed_endpoints[' + i.toString() + ']';
    const names = this.clusterType == ClusterType.DynamicForwardProxy;
    const text = value.type == JSON.Types.String ? value.get<string>() : '';
    const entry = this.endpoints.add(text, names);
    if (entry == Entry.Malformed) {
      this.wrong(
        path,
        'host:port, where host is an address, a CIDR block (IPv6 in brackets) or a name, and port may be a range',
      );
    } else if (entry == Entry.Bits) {
      this.wrong(path, 'no bits behind the prefix of a CIDR block');
    } else if (entry == Entry.Name) {
      this.wrong(path, 'an address; a name needs cluster_type dynamic_forward_proxy');
    }
  }

  /** Where prefill's bootstrap server is, for connectors that have one. */
  private readBootstrap(prefill: JSON.Obj): void {
    const connector = this.connector;
    const byRequest = this.endpointHeader !== null;
    const port = this.integer(
      prefill,
      'bootstrap_port',
      'prefill.bootstrap_port',
      1,
      65535,
      this.bootstrapPort,
    );
    this.bootstrapPort = <i32>port;
    const host = this.text(prefill, 'bootstrap_host', 'prefill.bootstrap_host', '');
    const hasHost = prefill.get('bootstrap_host') !== null;
    if (hasHost) this.bootstrapHost = new Ascii(host);
    if (hasHost && (byRequest || !isHost(this.bootstrapHost!))) {
      this.wrong(
        'prefill.bootstrap_host',
        byRequest ? 'no endpoint_header beside it' : 'an address or a name',
      );
    }
    const cluster = this.text(prefill, 'bootstrap_cluster', 'prefill.bootstrap_cluster', '');
    const hasCluster = prefill.get('bootstrap_cluster') !== null;
    if (hasCluster) this.bootstrapCluster = new Ascii(cluster);
    if (hasCluster && cluster.length == 0) this.wrong('prefill.bootstrap_cluster', 'the name of a cluster');
    const needed = 'a value: connector ' + connector.name + ' needs it unless there is an endpoint_header';
    if (connector.needsBootstrap && !hasHost && !byRequest) this.wrong('prefill.bootstrap_host', needed);
    if (connector.needsRanks && !hasCluster && !byRequest) this.wrong('prefill.bootstrap_cluster', needed);
    const unused = 'none with connector ' + connector.name;
    if (!connector.needsBootstrap && hasHost) this.wrong('prefill.bootstrap_host', unused);
    if (!connector.needsRanks && hasCluster) this.wrong('prefill.bootstrap_cluster', unused);
    const hasPort = prefill.get('bootstrap_port') !== null;
    if (!connector.needsBootstrap && hasPort) this.wrong('prefill.bootstrap_port', unused);
  }

  private readPaths(root: JSON.Obj): void {
    const value = root.get('paths');
    const sglang = this.connector.schema.dialect == Dialect.Sglang;
    if (value === null) {
      if (sglang) this.addPath('/generate');
      this.addPath('/v1/completions');
      this.addPath('/v1/chat/completions');
      if (!sglang) this.addPath('/inference/v1/generate');
      return;
    }
    if (value.type != JSON.Types.Array) return this.wrong('paths', 'an array of paths');
    const list = value.get<JSON.Arr>();
    for (let i = 0; i < list.length; i++) {
      const path = list.at(i);
      const text = path.type == JSON.Types.String ? path.get<string>() : '';
      const api = apiOfPath(text);
      if (!text.startsWith('/') || api == Api.None || !this.connector.schema.has(api)) {
        const ends = sglang ? SGLANG_PATHS : VLLM_PATHS;
        return this.wrong('paths[' + i.toString() + ']', 'a path ending in one of ' + ends);
      }
      this.addPath(text);
    }
  }

  private addPath(path: string): void {
    this.paths.push(new Ascii(path));
    this.apis.push(apiOfPath(path));
  }

  private only(object: JSON.Obj, prefix: string, known: string[]): void {
    const keys = object.keys();
    for (let i = 0; i < keys.length; i++) {
      if (!known.includes(keys[i]))
        this.wrong(prefix + keys[i], 'no such key; known are ' + known.join(', '));
    }
  }

  private text(object: JSON.Obj, key: string, path: string, standard: string): string {
    const value = object.get(key);
    if (value === null) return standard;
    if (value.type == JSON.Types.String) return value.get<string>();
    this.wrong(path, 'a string');
    return standard;
  }

  private choice(object: JSON.Obj, key: string, path: string, names: string[]): i32 {
    const at = names.indexOf(this.text(object, key, path, names[0]));
    if (at < 0) this.wrong(path, 'one of ' + names.join(', '));
    return max(at, 0);
  }

  private integer(object: JSON.Obj, key: string, path: string, least: i64, most: i64, standard: u64): u64 {
    const value = object.get(key);
    if (value === null) return standard;
    const expected = 'an integer from ' + least.toString() + ' to ' + most.toString();
    if (value.type != JSON.Types.F64) {
      this.wrong(path, expected);
      return standard;
    }
    const number = value.get<f64>();
    if (!(number >= <f64>least && number <= <f64>most && Math.floor(number) == number)) {
      this.wrong(path, expected);
      return standard;
    }
    return <u64>number;
  }

  /** Keeps the first problem. */
  private wrong(path: string, expected: string): void {
    if (this.problem.length == 0) this.problem = path + ': expected ' + expected;
  }
}

const VLLM_PATHS = '/completions, /chat/completions, /inference/v1/generate';
const SGLANG_PATHS = '/completions, /chat/completions, /generate';

/** The API that a path speaks, by its end: gateways put prefixes before it. */
function apiOfPath(path: string): Api {
  if (path.endsWith('/chat/completions')) return Api.Chat;
  if (path.endsWith('/completions')) return Api.Completions;
  if (path.endsWith('/inference/v1/generate')) return Api.Generate;
  return path.endsWith('/generate') ? Api.Native : Api.None;
}

/** Whether a text is an address (IPv6 in brackets) or a name. */
function isHost(text: Ascii): bool {
  return new Endpoint().readHost(text.ptr, text.len);
}

/** Whether a text is a header's name in lower case (RFC 9110, section 5.1). */
function isToken(text: Ascii): bool {
  for (let i: usize = 0; i < text.len; i++) {
    const c = load<u8>(text.ptr + i);
    const plain = c - 0x61 < 26 || c - 0x30 < 10 || c == 0x2d || c == 0x5f;
    if (!plain) return false;
  }
  return text.len > 0;
}

function isObject(text: Block): bool {
  const scanner = new Scanner(new Paths().add('', 0));
  scanner.feed(text.ptr, text.len);
  const object = scanner.next() == Event.Value && scanner.first == 0x7b;
  let event = scanner.next();
  while (event != Event.More && event != Event.Failed) event = scanner.next();
  scanner.free();
  return object && event == Event.More && scanner.done;
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
