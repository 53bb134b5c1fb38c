// Reads the plugin's configuration: json-as parses it, and then each member is checked. The text of
// a refusal has the path of the wrong member and what was expected of it.

import { JSON } from 'json-as';
import { Ascii } from '../../bytes/ascii';
import { Block } from '../../bytes/block';
import { Order } from '../../connectors/connector';
import { Api, Dialect } from '../../connectors/schema';
import { connectorNamed, connectorNames } from '../../connectors/table';
import { Paths } from '../../json/paths';
import { Event, Scanner } from '../../json/scanner';
import { Model } from '../../routing/examination';
import { MAX_DIMENSION } from '../../routing/npy';
import { isReserved } from '../names';
import { AuditSettings, ClusterType, Config, OnUnmergeable, apiOfPath } from './config';
import { Endpoint, Entry } from './endpoints';
import { Members, Problem } from './members';

const MAX_TIMEOUT_MS: i64 = 86400000;
const MAX_RETRIES: i64 = 10;
/**
 * How much one exchange may hold at most, and how much all captures of a VM together. Everything in
 * a VM shares 1 GiB.
 */
const MAX_HOLD_BYTES: i64 = 256 << 20;
const MAX_CAPTURE_BYTES: i64 = 640 << 20;
/** With a lower limit, responses would be refused that no other filter finds large. */
const MIN_PIECE_BYTES: i64 = 64 << 10;
/** Parked rows are in host memory, of which the machine may have any amount. */
const MAX_PARKED_BYTES: i64 = 1 << 40;
/**
 * No model has more. Together these limits keep a row below the largest one that the filter reads.
 */
const MAX_MODEL_LAYERS: i64 = 1024;
const MAX_MODEL_TOP_K: i64 = 256;
/** Rows that are audited share the VM with those of exchanges, whose room this leaves. */
const MIN_AUDIT_BYTES: i64 = 1 << 20;
const MAX_AUDIT_BYTES: i64 = 256 << 20;
const MAX_AUDIT_CALLS: i64 = 1024;

/**
 * Reads a configuration (borrowed) into `config`. Returns what is wrong with it, or an empty text.
 */
export function readConfig(text: Block, config: Config): string {
  // json-as traps on a text that is not JSON.
  if (!isObject(text)) return 'configuration: expected a JSON object';
  const root = JSON.parse<JSON.Obj>(String.UTF8.decodeUnsafe(text.ptr, text.len));
  const problem = new Problem();
  const members = new Members(root, '', problem);
  members.only([
    'prefill',
    'connector',
    'handshake',
    'decode_rows',
    'last_prompt_row',
    'local_prefix_cache',
    'check_rows',
    'model',
    'max_model_len',
    'headers',
    'paths',
    'on_prefill_failure',
    'on_unmergeable',
    'hold_bytes',
    'max_hold_bytes',
    'max_capture_bytes',
    'max_parked_bytes',
    'max_piece_bytes',
    'audit',
  ]);
  const prefill = members.members('prefill', 'an object with the member cluster', false);
  if (prefill === null) return problem.text;
  readPrefill(prefill, config);
  const connector = connectorNamed(members.text('connector', 'nixl'));
  if (connector === null) members.wrong('connector', 'one of ' + connectorNames());
  else config.connector = connector;
  readHandshake(members, config);
  readBootstrap(prefill, config);
  readRows(members, config);
  readPaths(members, config);
  readPolicies(members, config);
  readBounds(members, config);
  readAudit(members, config);
  return problem.text;
}

/** Reads in which order the legs are sent. */
function readHandshake(members: Members, config: Config): void {
  const order = config.connector.order;
  const concurrent = members.choice('handshake', ['sequential', 'concurrent']) == 1;
  config.concurrent = order == Order.Either ? concurrent : order == Order.Concurrent;
  if (order == Order.Either || !members.has('handshake')) return;
  const how = config.concurrent ? ' sends both legs at once' : ' sends one leg after the other';
  members.wrong('handshake', 'none: connector ' + config.connector.name + how);
}

/** The setting by which both legs are sent at once, for messages. */
function whyConcurrent(config: Config): string {
  const fixed = config.connector.order == Order.Concurrent;
  return fixed ? 'with connector ' + config.connector.name : 'with handshake concurrent';
}

/** Reads which rows come from which leg, and how rows are checked. */
function readRows(members: Members, config: Config): void {
  config.tail = members.choice('decode_rows', ['full', 'tail']) == 1;
  const connector = config.connector;
  if (config.tail && config.concurrent) {
    const why = ' decode starts before prefill has answered';
    members.wrong('decode_rows', 'full: ' + whyConcurrent(config) + why);
  }
  config.lastRowOfDecode = members.choice('last_prompt_row', ['prefill', 'decode']) == 1;
  if (config.lastRowOfDecode && !connector.decodeForwardsLast) {
    const why = ' decode does not forward the last token of the prompt';
    members.wrong('last_prompt_row', 'prefill: with connector ' + connector.name + why);
  }
  config.freshLocal = members.choice('local_prefix_cache', ['fresh', 'shared']) == 0;
  config.rowCheck = members.choice('check_rows', ['sampled', 'all', 'off']);
  config.maxModelLen = members.integer('max_model_len', 1, MAX_DIMENSION, 0);
  if (members.has('max_model_len') && connector.schema.dialect != Dialect.Vllm) {
    members.wrong('max_model_len', 'none with connector ' + connector.name);
  }
  const model = members.members('model', 'an object with the members layers, top_k and experts', true);
  if (model === null) return;
  model.only(['layers', 'top_k', 'experts']);
  config.model = new Model(
    model.required('layers', MAX_MODEL_LAYERS),
    model.required('top_k', MAX_MODEL_TOP_K),
    model.required('experts', MAX_DIMENSION),
  );
}

/** Reads what happens when prefill fails or rows cannot be merged, and whether heads are held. */
function readPolicies(members: Members, config: Config): void {
  config.onPrefillFailure = members.choice('on_prefill_failure', ['decode', 'reject']);
  config.onUnmergeable = members.choice('on_unmergeable', ['reject', 'null', 'forward']);
  config.passHeads = members.choice('headers', ['hold', 'pass']) == 1;
  if (config.passHeads && config.onUnmergeable == OnUnmergeable.Null) {
    members.wrong('on_unmergeable', 'reject or forward: with headers pass the length has been told');
  }
  if (config.passHeads && config.concurrent) {
    members.wrong('headers', 'hold: ' + whyConcurrent(config) + ' the response waits for prefill');
  }
}

/** Reads how many bytes may be held and kept. */
function readBounds(members: Members, config: Config): void {
  config.holdBytes = members.integer('hold_bytes', 0, MAX_HOLD_BYTES, config.holdBytes);
  const most = max<u64>(config.maxHoldBytes, config.holdBytes);
  config.maxHoldBytes = members.integer('max_hold_bytes', 0, MAX_HOLD_BYTES, most);
  if (config.maxHoldBytes < config.holdBytes) members.wrong('max_hold_bytes', 'at least hold_bytes');
  const captured = config.maxCaptureBytes;
  config.maxCaptureBytes = members.integer('max_capture_bytes', 0, MAX_CAPTURE_BYTES, captured);
  config.maxParkedBytes = members.integer('max_parked_bytes', 0, MAX_PARKED_BYTES, config.maxParkedBytes);
  config.maxPieceBytes = members.integer('max_piece_bytes', MIN_PIECE_BYTES, MAX_HOLD_BYTES, 0);
}

/** Reads which responses are audited, and by whom. */
function readAudit(members: Members, config: Config): void {
  const audit = members.members('audit', 'an object with the member cluster', true);
  if (audit === null) return;
  audit.only(['cluster', 'fraction', 'timeout_ms', 'max_calls', 'max_bytes']);
  const settings = new AuditSettings();
  const cluster = audit.text('cluster', '');
  if (cluster.length == 0) audit.wrong('cluster', 'the name of a cluster');
  settings.cluster = new Ascii(cluster);
  settings.fraction = audit.share('fraction', settings.fraction);
  settings.timeoutMs = <u32>audit.integer('timeout_ms', 1, MAX_TIMEOUT_MS, settings.timeoutMs);
  settings.maxCalls = <i32>audit.integer('max_calls', 1, MAX_AUDIT_CALLS, settings.maxCalls);
  settings.maxBytes = audit.integer('max_bytes', MIN_AUDIT_BYTES, MAX_AUDIT_BYTES, settings.maxBytes);
  config.audit = settings;
}

function readPrefill(prefill: Members, config: Config): void {
  prefill.only([
    'cluster',
    'endpoint_header',
    'allowed_endpoints',
    'cluster_type',
    'bootstrap_cluster',
    'bootstrap_host',
    'bootstrap_port',
    'bootstrap_ttl_ms',
    'timeout_ms',
    'retries',
  ]);
  const cluster = prefill.text('cluster', '');
  if (cluster.length == 0) prefill.wrong('cluster', 'the name of a cluster');
  config.cluster = new Ascii(cluster);
  config.timeoutMs = <u32>prefill.integer('timeout_ms', 1, MAX_TIMEOUT_MS, config.timeoutMs);
  config.retries = <i32>prefill.integer('retries', 0, MAX_RETRIES, config.retries);
  readEndpoints(prefill, config);
}

function readEndpoints(prefill: Members, config: Config): void {
  config.clusterType = prefill.choice('cluster_type', ['original_dst', 'dynamic_forward_proxy']);
  if (!prefill.has('endpoint_header')) {
    const beside = 'endpoint_header beside it';
    if (prefill.has('allowed_endpoints')) prefill.wrong('allowed_endpoints', beside);
    if (prefill.has('cluster_type')) prefill.wrong('cluster_type', beside);
    return;
  }
  const name = new Ascii(prefill.text('endpoint_header', ''));
  if (!isToken(name) || isReserved(name.ptr, name.len)) {
    prefill.wrong('endpoint_header', 'the name of a header in lower case, without another meaning');
  }
  config.endpointHeader = name;
  const allowed = prefill.get('allowed_endpoints');
  if (allowed === null || allowed.type != JSON.Types.Array || allowed.get<JSON.Arr>().length == 0) {
    return prefill.wrong('allowed_endpoints', 'an array of endpoints, not empty');
  }
  const list = allowed.get<JSON.Arr>();
  for (let i = 0; i < list.length; i++) {
    const expected = readEndpoint(list.at(i), config);
    if (expected.length > 0) prefill.wrong('allowed_endpoints[' + i.toString() + ']', expected);
  }
}

/** Adds an endpoint to the allow-list. Returns an empty text, or what was expected in its place. */
function readEndpoint(value: JSON.Value, config: Config): string {
  const names = config.clusterType == ClusterType.DynamicForwardProxy;
  const text = value.type == JSON.Types.String ? value.get<string>() : '';
  switch (config.endpoints.add(text, names)) {
    case Entry.Malformed:
      return 'host:port, where host is an address, a CIDR block (IPv6 in brackets) or a name, and port may be a range';
    case Entry.Bits:
      return 'no bits behind the prefix of a CIDR block';
    case Entry.Name:
      return 'an address; a name needs cluster_type dynamic_forward_proxy';
    default:
      return '';
  }
}

/** Reads where prefill's bootstrap server is, for connectors that have one. */
function readBootstrap(prefill: Members, config: Config): void {
  const connector = config.connector;
  const byRequest = config.endpointHeader !== null;
  config.bootstrapPort = <i32>prefill.integer('bootstrap_port', 1, 65535, config.bootstrapPort);
  const host = new Ascii(prefill.text('bootstrap_host', ''));
  const hasHost = prefill.has('bootstrap_host');
  if (hasHost) config.bootstrapHost = host;
  if (hasHost && byRequest) prefill.wrong('bootstrap_host', 'no endpoint_header beside it');
  else if (hasHost && !isHost(host)) prefill.wrong('bootstrap_host', 'an address or a name');
  const cluster = new Ascii(prefill.text('bootstrap_cluster', ''));
  const hasCluster = prefill.has('bootstrap_cluster');
  if (hasCluster) config.bootstrapCluster = cluster;
  if (hasCluster && cluster.len == 0) prefill.wrong('bootstrap_cluster', 'the name of a cluster');
  const needed = 'a value: connector ' + connector.name + ' needs it unless there is an endpoint_header';
  if (connector.needsBootstrap && !hasHost && !byRequest) prefill.wrong('bootstrap_host', needed);
  if (connector.needsRanks && !hasCluster && !byRequest) prefill.wrong('bootstrap_cluster', needed);
  config.bootstrapTtlMs = <u32>prefill.integer('bootstrap_ttl_ms', 0, MAX_TIMEOUT_MS, config.bootstrapTtlMs);
  const unused = 'none with connector ' + connector.name;
  if (!connector.needsRanks && prefill.has('bootstrap_ttl_ms')) prefill.wrong('bootstrap_ttl_ms', unused);
  if (!connector.needsBootstrap && hasHost) prefill.wrong('bootstrap_host', unused);
  if (!connector.needsRanks && hasCluster) prefill.wrong('bootstrap_cluster', unused);
  const hasPort = prefill.has('bootstrap_port');
  if (!connector.needsBootstrap && hasPort) prefill.wrong('bootstrap_port', unused);
}

const VLLM_PATHS = '/completions, /chat/completions, /inference/v1/generate';
const SGLANG_PATHS = '/completions, /chat/completions, /generate';

function readPaths(members: Members, config: Config): void {
  const value = members.get('paths');
  const schema = config.connector.schema;
  const sglang = schema.dialect == Dialect.Sglang;
  if (value === null) {
    if (sglang) config.addPath('/generate');
    config.addPath('/v1/completions');
    config.addPath('/v1/chat/completions');
    if (!sglang) config.addPath('/inference/v1/generate');
    return;
  }
  if (value.type != JSON.Types.Array) return members.wrong('paths', 'an array of paths');
  const list = value.get<JSON.Arr>();
  for (let i = 0; i < list.length; i++) {
    const path = list.at(i);
    const text = path.type == JSON.Types.String ? path.get<string>() : '';
    const api = apiOfPath(text);
    if (!text.startsWith('/') || api == Api.None || !schema.has(api)) {
      const ends = sglang ? SGLANG_PATHS : VLLM_PATHS;
      return members.wrong('paths[' + i.toString() + ']', 'a path ending in one of ' + ends);
    }
    config.addPath(text);
  }
}

/** Whether a text is an address (IPv6 in brackets) or a name. */
function isHost(text: Ascii): bool {
  return new Endpoint().readHost(text.ptr, text.len);
}

/** Whether a text is the name of a header in lower case (RFC 9110, section 5.1). */
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
