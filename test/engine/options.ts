// The options of a simulated engine.

import type { EngineReply, EngineRequest, Header } from '../scenario.ts';
import type { Fleet, KvParams } from './fleet.ts';
import type { NpyOptions } from '../../yardstick/npy.ts';
import type { Faults } from '../../yardstick/faults.ts';
import type { Indexer } from './indexer.ts';
import type { MoeModel } from './router.ts';

export type { Faults } from '../../yardstick/faults.ts';

export type Role = 'prefill' | 'decode' | 'oracle';
/** Connectors that run one leg after the other. */
export type SequentialConnector = 'nixl' | 'shared_storage';
/**
 * Connectors that run both legs at the same time: each engine waits for the other engine's request.
 */
export type ConcurrentConnector = 'sglang' | 'mooncake';
export type Connector = SequentialConnector | ConcurrentConnector;
export type Version = '0.21' | '0.30' | '0.32';
export type ApiName = 'vllm' | 'sglang';
/**
 * The wire format of the routing. A is vLLM's `.npy` in base64; B is an object with shape and
 * start; C is vLLM 0.21's, with the prompt rows apart from the generated rows; D is SGLang's raw
 * int32.
 */
export type FormatName = 'A' | 'B' | 'C' | 'D';

/** Options of format B. */
export interface ObjectOptions {
  /** The object's keys, in order. Without `dtype` the rows are uint8. */
  keys?: readonly ('data' | 'shape' | 'start' | 'dtype')[];
  /**
   * The position of the token whose row is sent first; `generated` is that of the first generated
   * token.
   */
  start?: number | 'generated';
}

/** Options of format C. */
export interface SplitOptions {
  encoding?: 'nested' | 'base64';
  /** Where `prompt_routed_experts` stands: beside `choices`, or in each of them. */
  place?: 'top' | 'choice';
  /**
   * What decode returns for prompt rows that it does not have: rows that are invalid, null, or no
   * member at all.
   */
  remotePrompt?: 'invalid' | 'null' | 'missing';
}

export interface Address {
  host: string;
  port: number;
}

/** Milliseconds; or a function that is called when the wait starts and whose promise ends it. */
export type Patience = number | (() => Promise<unknown>);

/** What one request gets instead of its normal reply, or how that reply is damaged. */
export interface Failure {
  /** The status of the reply, which has the engine's error body. */
  status?: number;
  /** The body of that reply, if it is not an error in the engine's shape. */
  body?: string | Buffer;
  headers?: Header[];
  /**
   * `reset` and `stall` send nothing; `reset_body` and `stall_body` send the first `keepBytes`
   * bytes of the normal reply's body.
   */
  fault?: EngineReply['fault'];
  /** Default: half of the body. */
  keepBytes?: number;
}

/** How an engine reports cached tokens if it was started to report them. */
export interface CachedTokens {
  /**
   * What decode reports for a prompt whose KV came from prefill. Default: all tokens but the last,
   * which decode forwards itself.
   */
  remote?: 'all' | 'all but one' | 'null';
  /**
   * What is reported when nothing was cached: an object with 0, as vLLM and SGLang do, or null.
   * Default: the object.
   */
  zero?: 'object' | 'null';
  /** The number that is reported for every prompt, whatever the true number is. */
  lie?: number;
}

/** vLLM's ExampleConnector, LMCache inside vLLM, and LMCache's multiprocess connector. */
export type StoreName = 'example' | 'lmcache' | 'lmcache_mp';

export interface EngineOptions {
  role: Role;
  connector?: Connector;
  /** Default: 0.21 for format C, otherwise 0.30. */
  version?: Version;
  /** Default: SGLang's if the connector or the format is SGLang's, otherwise vLLM's. */
  api?: ApiName;
  /** Default: the format of the API. */
  format?: FormatName;
  object?: ObjectOptions;
  split?: SplitOptions;
  /**
   * Every stream carries routing, on the last event of each choice. Default: only the streams that
   * carry it in the real engine.
   */
  streamArrays?: boolean;
  model?: Partial<MoeModel>;
  /** Shared by the engines of one deployment. */
  fleet?: Fleet;
  /**
   * The model has Mamba or GDN layers. For such models vLLM's prefill drops the last token of a
   * prompt that it computes for another engine, and so has one row less. The `prompt_tokens` of its
   * reply counts the token all the same (mooncake_connector.py, nixl/base_scheduler.py).
   */
  hybrid?: boolean;
  /** The model has sparse attention, and SGLang's engine was started to return its positions. */
  indexer?: Indexer;
  /** False: the engine was started without routed-experts capture, and the field is null. */
  capture?: boolean;
  /**
   * What a slot holds before a token is forwarded into it: zeros, or plausible but wrong rows.
   * Default: zeros.
   */
  promptRows?: 'zeros' | 'stale';
  faults?: Faults;
  /** Formats A and B choose the dtype by the largest id in each array, as prime-rl and SkyRL do. */
  dtypePerReply?: boolean;
  /** Rows that are returned as all -1 (all bits set), as an engine does that does not know them. */
  unknownRows?: readonly number[];
  /** The engine ignores `routed_experts_prompt_start`, as vLLM before 0.30 does. */
  ignorePromptStart?: boolean;
  /**
   * The array of a stream is lost: it is null on the terminal event, which can happen in vLLM 0.30.
   */
  loseStreamArray?: boolean;
  npy?: NpyOptions;
  /** The model ends its answer with its `n`-th token, which is EOS. */
  eosAfter?: number;
  maxModelLen?: number;
  /** Tokens per KV block. Default: 16; for SGLang 1. */
  blockSize?: number;
  /**
   * Number of KV blocks. When all have been used, the block that has been free for the longest time
   * is reused.
   */
  kvBlocks?: number;
  /** False: the prefix cache never finds a block. */
  prefixCaching?: boolean;
  /** The engine ignores `cache_salt`. */
  ignoreSalt?: boolean;
  /** SGLang's `--disaggregation-decode-enable-radix-cache`. */
  decodeRadixCache?: boolean;
  /** The store behind the connector `shared_storage`. Default: `example`. */
  store?: StoreName;
  /**
   * How the engine reports `usage.prompt_tokens_details.cached_tokens`; without this option the
   * details are null.
   */
  cachedTokens?: CachedTokens;
  /**
   * Further keys of the `kv_transfer_params` that prefill hands out, as a later version may add
   * them.
   */
  extraKvParams?: KvParams;
  /**
   * The address where decode finds this prefill engine. It is read at each use, so a port may be
   * set after the start.
   */
  bootstrap?: Address;
  /** Number of data-parallel ranks of a Mooncake prefill engine. */
  ranks?: number;
  /**
   * Decode does not die of a request that it refuses and whose transfer prefill has taken, as a
   * Mooncake decode engine of vLLM 0.30 does.
   */
  survivesRefusals?: boolean;
  /**
   * How long one leg waits for the other. Default: the real engine's time, which is several
   * minutes.
   */
  patience?: Patience;
  /**
   * How long a Mooncake prefill keeps the KV of a prompt that no decode engine pulls
   * (`VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`). Default: `patience`.
   */
  keepsKv?: Patience;
  /**
   * vLLM's `kv_load_failure_policy`: what a Mooncake decode does with a request whose KV it cannot
   * load. `fail`, the default, ends it with 500; `recompute` forwards the prompt itself. `wait` is
   * what versions do that do not tell their scheduler of an engine that is not known (vLLM issue
   * 55870): under the id of one that is gone, the request waits until patience ends.
   */
  kvLoadFailure?: 'fail' | 'recompute' | 'wait';
  /**
   * An SGLang engine that gives each sample of one prompt a transfer of its own. Without this
   * option the samples share a room and wait until patience ends.
   */
  parallelSampling?: boolean;
  /**
   * Failures by the ordinal of the POST request, from 1 on; or a function of the ordinal and the
   * request.
   */
  fail?: Record<number, Failure> | ((ordinal: number, request: EngineRequest) => Failure | undefined);
  /**
   * Size of the pieces in which a body is written. Default: the body is one piece, and each event
   * of a stream is one.
   */
  chunkBytes?: number;
  /** The reply has no `content-length`, as behind a proxy that streams. */
  omitContentLength?: boolean;
  trailers?: Header[];
  /** Returns the current time in milliseconds. Default: a fixed time. */
  now?: () => number;
}

export function versionOf({ version, format }: EngineOptions): Version {
  return version ?? (format === 'C' ? '0.21' : '0.30');
}

/** The API and the wire format follow from whichever of these three options are set. */
export function dialectOf({ api, connector, format }: EngineOptions): {
  apiName: ApiName;
  format: FormatName;
} {
  const apiName = api ?? (connector === 'sglang' || format === 'D' ? 'sglang' : 'vllm');
  return { apiName, format: format ?? (apiName === 'sglang' ? 'D' : 'A') };
}

export function blockSizeOf(options: EngineOptions): number {
  return options.blockSize ?? (dialectOf(options).apiName === 'sglang' ? 1 : 16);
}

/** Options of an engine that replies without waiting for another engine. */
export type SequentialOptions = EngineOptions & { connector?: SequentialConnector };

export const DEFAULT_BOOTSTRAP: Address = { host: '127.0.0.1', port: 8998 };

export const DEFAULT_MODEL: MoeModel = {
  name: 'tiny',
  layers: 4,
  topK: 4,
  experts: 16,
  dtype: '|u1',
  vocab: 151_936,
};
