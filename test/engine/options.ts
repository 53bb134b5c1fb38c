// What a simulated engine can be told to be.

import type { EngineReply, EngineRequest, Header } from '../scenario.ts';
import type { Fleet, KvParams } from './fleet.ts';
import type { NpyOptions } from './npy.ts';
import type { MoeModel } from './router.ts';

export type Role = 'prefill' | 'decode' | 'oracle';
/** One leg after the other. */
export type SequentialConnector = 'nixl' | 'shared_storage';
/** Both legs at once: an engine waits for the other one's request. */
export type ConcurrentConnector = 'sglang' | 'mooncake';
export type Connector = SequentialConnector | ConcurrentConnector;
export type Version = '0.21' | '0.30' | '0.32';
export type ApiName = 'vllm' | 'sglang';
/**
 * How routing is written. A: vLLM's `.npy` in base64; B: an object with shape and start; C: vLLM 0.21's prompt rows
 * apart from the generated ones; D: SGLang's raw int32.
 */
export type FormatName = 'A' | 'B' | 'C' | 'D';

/** Of format B. */
export interface ObjectOptions {
  /** The object's keys, in order. Without `dtype` it is uint8. */
  keys?: readonly ('data' | 'shape' | 'start' | 'dtype')[];
  /** The first token whose row is sent, or the first generated one. */
  start?: number | 'generated';
}

/** Of format C. */
export interface SplitOptions {
  encoding?: 'nested' | 'base64';
  /** Where `prompt_routed_experts` stands: beside `choices`, or in each of them. */
  place?: 'top' | 'choice';
  /** What decode says of prompt rows it doesn't have: rows nonetheless, null, or nothing. */
  remotePrompt?: 'invalid' | 'null' | 'missing';
}

export interface Address {
  host: string;
  port: number;
}

/** Milliseconds; or a function that is called when the waiting starts, and whose promise ends it. */
export type Patience = number | (() => Promise<unknown>);

/** What one request gets instead of, or on top of, its answer. */
export interface Failure {
  /** Answers with this status and the engine's error body. */
  status?: number;
  /** Body of that answer, when it is not an error in the engine's shape. */
  body?: string | Buffer;
  headers?: Header[];
  /** `reset` and `stall` send nothing; the `_body` ones send `keepBytes` of what the answer would have been. */
  fault?: EngineReply['fault'];
  /** Default: half of the body. */
  keepBytes?: number;
}

/** Of an engine that was started to report them. */
export interface CachedTokens {
  /** What decode says of a prompt whose KV came from prefill. Default: all but the last token, which it forwards. */
  remote?: 'all' | 'all but one' | 'null';
  /** No hit is an object that says 0, as in vLLM and SGLang, or null. */
  zero?: 'object' | 'null';
  /** Said of every prompt, whatever is true. */
  lie?: number;
}

/** What is wrong with the rows of every reply; rows are named by their token. */
export interface Faults {
  /** Rows of zeros. */
  zeros?: 'all' | 'prompt' | readonly number[];
  /** Rows that name an expert twice, in the last layer. */
  repeats?: readonly number[];
  /** So many rows more than the tokens counted have, the last one again; below 0, rows fewer. */
  extraRows?: number;
}

/** vLLM's ExampleConnector, LMCache inside vLLM, and its multiprocess connector. */
export type StoreName = 'example' | 'lmcache' | 'lmcache_mp';

export interface EngineOptions {
  role: Role;
  connector?: Connector;
  /** Default: 0.21 for format C, else 0.30. */
  version?: Version;
  /** Default: SGLang's where the connector or the format is. */
  api?: ApiName;
  /** Default: the API's own. */
  format?: FormatName;
  object?: ObjectOptions;
  split?: SplitOptions;
  /** Every stream carries routing, on the last event of each choice. Default: those that do in the real engine. */
  streamArrays?: boolean;
  model?: Partial<MoeModel>;
  /** Shared by the engines of one deployment. */
  fleet?: Fleet;
  /** False: started without routed-experts capture, the field is null. */
  capture?: boolean;
  /** What slots hold that no token was forwarded into yet: zeros, or rows that look right. Default: zeros. */
  promptRows?: 'zeros' | 'stale';
  faults?: Faults;
  /** Formats A and B choose the dtype by the largest id in each array, as prime-rl and SkyRL do. */
  dtypePerReply?: boolean;
  /** Rows returned as all -1 (all bits set): the engine does not know them. */
  unknownRows?: readonly number[];
  /** An engine that does not look at `routed_experts_prompt_start`, as before 0.30. */
  ignorePromptStart?: boolean;
  /** 0.30 may lose a stream's array: null on the terminal event. */
  loseStreamArray?: boolean;
  npy?: NpyOptions;
  /** The model ends its answer with its `n`-th token, this one being EOS. */
  eosAfter?: number;
  maxModelLen?: number;
  /** Tokens of a KV block. Default: 16; of SGLang 1. */
  blockSize?: number;
  /** KV blocks; once all were used, those that are free longest are used again. */
  kvBlocks?: number;
  /** False: no block is ever found again. */
  prefixCaching?: boolean;
  /** The engine does not know `cache_salt`. */
  ignoreSalt?: boolean;
  /** SGLang's `--disaggregation-decode-enable-radix-cache`. */
  decodeRadixCache?: boolean;
  /** Of the connector shared_storage. Default: example. */
  store?: StoreName;
  /** `usage.prompt_tokens_details.cached_tokens`; without, the details are null. */
  cachedTokens?: CachedTokens;
  /** Further keys of the `kv_transfer_params` that prefill hands out, as a later version may add. */
  extraKvParams?: KvParams;
  /** Where decode finds this prefill engine. Read when needed: a port may be set after the start. */
  bootstrap?: Address;
  /** Data-parallel ranks of a Mooncake prefill engine. */
  ranks?: number;
  /** How long one leg waits for the other. Default: the engine's own, of minutes. */
  patience?: Patience;
  /** An SGLang whose samples of one prompt have a transfer each. Without, they share a room, and wait forever. */
  parallelSampling?: boolean;
  /** Failures by number of POST request, from 1 on; or a function of it. */
  fail?: Record<number, Failure> | ((ordinal: number, request: EngineRequest) => Failure | undefined);
  /** Size of the pieces in which a body is written. Default: whole, or one per event. */
  chunkBytes?: number;
  /** Without `content-length`, as behind a proxy that streams. */
  omitContentLength?: boolean;
  trailers?: Header[];
  /** Milliseconds; fixed unless set. */
  now?: () => number;
}

export function versionOf({ version, format }: EngineOptions): Version {
  return version ?? (format === 'C' ? '0.21' : '0.30');
}

/** What an engine speaks follows from any of what it is told. */
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

/** Of an engine that answers at once. */
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
