// What each leg must be sent, derived from `JSON.parse` independently of the filter's code: which
// requests P/D may serve, and which requests the engines get.

import { CHAT, COMPLETIONS, GENERATE, NATIVE } from '../scenarios/messages.ts';
import { refusalOf, type Refusal } from './refusals.ts';
import { all, integer, isNull, last as lastOf, parse, read, type Node } from './json.ts';

export type Json = Record<string, unknown>;
export type ConnectorName = 'nixl' | 'shared_storage' | 'mooncake' | 'sglang';

export const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const plain = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
const absent = (value: unknown) => value === undefined || value === null;

/** Whether both legs are sent at once. */
export const isConcurrent = ({ connector, handshake }: Json): boolean =>
  connector === 'sglang' || (connector === 'mooncake' && handshake === 'concurrent');

/** Whether the legs name prefill's bootstrap server. */
export const isBootstrapped = (connector: ConnectorName): boolean =>
  connector === 'mooncake' || connector === 'sglang';

export const REMOTE_DECODE = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};

/** The members of SGLang's requests that choose the other engine. */
export const BOOTSTRAP = ['bootstrap_host', 'bootstrap_port', 'bootstrap_room'] as const;
const SGLANG_OWN = [...BOOTSTRAP, 'bootstrap_pair_key', 'disagg_prefill_dp_rank'];

const PROMPT_START = 'routed_experts_prompt_start';
const START_LEN = 'routed_experts_start_len';

const VLLM_PATHS = [COMPLETIONS, CHAT, GENERATE];
const SGLANG_PATHS = [COMPLETIONS, CHAT, NATIVE];

/**
 * Whether a cap is zero as Pydantic reads an integer, or no number at all: decode is asked about
 * such a request, and prefill is not.
 */
const isZero = (value: unknown) =>
  value === 0 ||
  value === false ||
  (typeof value === 'number' && !Number.isFinite(value)) ||
  (typeof value === 'string' && !/^[^1-9eE]*[1-9]/.test(value));

/** A request as P/D sees it. */
export interface Asked {
  path: string;
  value: Json;
  connector: ConnectorName;
  /** Whether P/D may serve it. */
  fit: boolean;
  /** The number of prompts if they are in a list; 0 if there is one prompt outside a list. */
  batch: number;
  /** The number of choices of all prompts together. */
  n: number;
  /** The cap on generated tokens; -1 if it is not known. */
  maxTokens: number;
  /**
   * The position of the first token whose row the client asks for; -1 if it says so by a value that
   * is no plain number.
   */
  start: number;
  /** The position of the first token whose row prefill is asked for. */
  prefillStart: number;
  /** The number of tokens of a prompt that is a list of numbers; -1 if it is none. */
  tokens: number;
  /** Whether vLLM refuses it, as far as prefill could not tell; of SGLang nothing is known. */
  refusal: Refusal;
}

/** Whether the filter serves requests to this path. */
export const isServed = (path: string, connector: ConnectorName): boolean =>
  (connector === 'sglang' ? SGLANG_PATHS : VLLM_PATHS).includes(path);

const listed = (prompt: unknown): number =>
  Array.isArray(prompt) && (typeof prompt[0] === 'string' || Array.isArray(prompt[0])) ? prompt.length : 0;

/**
 * Whether a request to SGLang asks for several choices, or for a number of them that is not plainly
 * 1: its engines have no answer to it.
 */
export function asksSamples(text: string, root: Node, path: string): boolean {
  const params = all(root, 'sampling_params');
  if (path === NATIVE && params.length > 1) return false;
  const holders = path === NATIVE ? params.flatMap((each) => [each, ...each.items]) : [root];
  return holders
    .flatMap((holder) => all(holder, 'n'))
    .some((node) => !isNull(text, node) && integer(text, node) !== 1);
}

/** Reads a request; null if it is not one that P/D looks at. */
export function readRequest(path: string, body: Buffer, connector: ConnectorName): Asked | null {
  const sglang = connector === 'sglang';
  const text = body.toString('latin1');
  const value = isServed(path, connector) ? read(text) : undefined;
  if (!isObject(value)) return null;
  const within = path === GENERATE || path === NATIVE;
  const params = value['sampling_params'];
  // SGLang accepts one `sampling_params` per prompt.
  const last: unknown = Array.isArray(params) ? params.at(-1) : params;
  const sampling = within ? (isObject(last) ? last : {}) : value;
  const prompts =
    path === NATIVE
      ? [value['text'], value['input_ids']]
      : [value['prompt'], ...(path === GENERATE ? [value['token_ids']] : [])];
  const batch = Math.max(...prompts.map(listed));
  const samples = plain(sampling['n']) && (sampling['n'] as number) > 0 ? (sampling['n'] as number) : 1;
  const root = parse(text)!;
  const owner = path === GENERATE ? lastOf(root, 'sampling_params') : root;
  const chosen = lastOf(owner, sglang ? START_LEN : PROMPT_START);
  // An engine reads 5.0 as 5, but the filter does not count it as a plain number.
  const start = isNull(text, chosen) ? 0 : integer(text, chosen);
  const asked = {
    path,
    value,
    connector,
    batch,
    n: samples * Math.max(batch, 1),
    start,
    prefillStart: sglang ? start : prefillStartOf(start, tokensIn(value, path)),
    tokens: tokensIn(value, path),
    refusal: sglang ? SERVED : refusalOf(path, text, root),
  };
  if (sglang) {
    const fit = start >= 0;
    const caps = [value['max_tokens'], ...(path === CHAT ? [value['max_completion_tokens']] : [])];
    const known = path === NATIVE ? [] : caps.filter((cap) => !absent(cap));
    const maxTokens = known.length > 0 && known.every(plain) ? Math.max(...(known as number[])) : -1;
    return { ...asked, fit: fit && !asksSamples(text, root, path), maxTokens };
  }
  const echo = within ? undefined : value['echo'];
  // `/v1/completions` has no `max_completion_tokens`.
  const caps = [sampling['max_tokens'], ...(path === CHAT ? [value['max_completion_tokens']] : [])];
  const fit = !(
    batch > 1 ||
    all(root, 'sampling_params').length > 1 ||
    (!within && !absent(value['prompt_embeds'])) ||
    (!within && !absent(value['truncate_prompt_tokens'])) ||
    (!within && !absent(value['use_beam_search']) && value['use_beam_search'] !== false) ||
    // Prefill's prompt logprobs replace decode's in a whole reply, but not in a stream.
    (!absent(sampling['prompt_logprobs']) && ![undefined, null, false].includes(value['stream'] as never)) ||
    !(absent(echo) || echo === false) ||
    caps.some(isZero) ||
    start < 0 ||
    // A Mooncake transfer can be taken only once, so there may be only one choice.
    (connector === 'mooncake' && !absent(sampling['n']) && sampling['n'] !== 1)
  );
  const known = caps.filter((cap) => !absent(cap));
  const maxTokens = known.length > 0 && known.every(plain) ? Math.max(...(known as number[])) : -1;
  return { ...asked, fit, maxTokens };
}

const SERVED: Refusal = { verdict: 'served', cap: null, least: 0 };

/** Whether a prompt of so many tokens and what is to be generated exceed the model's length. */
export function exceeds({ path, refusal }: Asked, { max_model_len: limit }: Json, prompt: number): boolean {
  if (path === GENERATE || limit === undefined) return false;
  const { cap, least } = refusal;
  return cap === null ? least > (limit as number) - prompt : prompt + cap > (limit as number);
}

function tokensIn(value: Json, path: string): number {
  const lists = [value['prompt'], ...(path === GENERATE ? [value['token_ids']] : [])];
  const digits = (first: unknown) => typeof first === 'number' && (first > 0 || Object.is(first, 0));
  return Math.max(...lists.map((list) => (Array.isArray(list) && digits(list[0]) ? list.length : -1)));
}

/**
 * Prefill is not asked to leave out only the first row, nor to begin behind a prompt whose length
 * is known.
 */
function prefillStartOf(start: number, tokens: number): number {
  const asked = start === tokens ? start - 1 : start;
  return asked <= 1 ? 0 : asked;
}

function withoutParams({ path, value, connector }: Asked): Json {
  const { kv_transfer_params: _, ...out } = value;
  if (connector === 'sglang') for (const key of SGLANG_OWN) delete out[key];
  if (isObject(out['vllm_xargs'])) {
    const { kv_transfer_params: _, ...xargs } = out['vllm_xargs'];
    out['vllm_xargs'] = xargs;
  }
  const sampling = out['sampling_params'];
  if (path === GENERATE && isObject(sampling) && isObject(sampling['extra_args'])) {
    const { kv_transfer_params: _, ...extra } = sampling['extra_args'];
    out['sampling_params'] = { ...sampling, extra_args: extra };
  }
  return out;
}

/** The request for an engine that serves it alone. */
export const localLeg = (asked: Asked): Json => withoutParams(asked);

/** The request of the prefill leg. `own` are the members that only the connector sets. */
export function prefillLeg(asked: Asked, own: Json): Json {
  const { path, connector } = asked;
  const out = withoutParams(asked);
  const generate = path === GENERATE;
  delete out['stream_options'];
  if (generate) delete out['stream'];
  else out['stream'] = false;
  if (connector === 'sglang') return { ...out, ...own };
  const holder = generate ? (isObject(out['sampling_params']) ? { ...out['sampling_params'] } : {}) : out;
  holder['max_tokens'] = 1;
  if (path === CHAT && 'max_completion_tokens' in holder) holder['max_completion_tokens'] = 1;
  for (const key of ['min_tokens', 'n']) {
    const had = holder[key];
    // `JSON.parse` does not tell `1.0` from `1`.
    if (!absent(had) && !(plain(had) && (had as number) <= 1)) holder[key] = 1;
  }
  const { start, prefillStart } = asked;
  if (prefillStart !== start && prefillStart === 0) delete holder[PROMPT_START];
  else if (prefillStart !== start) holder[PROMPT_START] = prefillStart;
  // Mooncake's prefill must end at its cap of one token, so it must not stop earlier.
  if (connector === 'mooncake') holder['min_tokens'] = 1;
  if (generate) out['sampling_params'] = holder;
  return { ...out, ...threshold(asked), ...own };
}

/** The request of an audit, without its salt. */
export function auditLeg(asked: Asked): Json {
  const { path, connector, value } = asked;
  const own = 'cache_hit_threshold' in value ? { cache_hit_threshold: 0 } : {};
  if (connector !== 'sglang') {
    const leg = prefillLeg({ ...asked, connector: 'nixl' }, own);
    const holder = path === GENERATE ? (leg['sampling_params'] as Json) : leg;
    delete holder['prompt_logprobs'];
    return leg;
  }
  const leg = prefillLeg(asked, own);
  if (path === NATIVE) {
    const params = isObject(leg['sampling_params']) ? leg['sampling_params'] : {};
    const least = params['min_new_tokens'];
    const capped = absent(least) || (plain(least) && (least as number) <= 1) ? {} : { min_new_tokens: 1 };
    return { ...leg, sampling_params: { ...params, ...capped, max_new_tokens: 1 } };
  }
  const least = leg['min_tokens'];
  if (!absent(least) && !(plain(least) && (least as number) <= 1)) leg['min_tokens'] = 1;
  if (path === CHAT && 'max_completion_tokens' in leg) leg['max_completion_tokens'] = 1;
  delete leg['prompt_logprobs'];
  return { ...leg, max_tokens: 1 };
}

/**
 * The request of the decode leg. `own` are the members that only the connector sets; `promptStart`
 * null asks for all rows.
 */
export function decodeLeg(asked: Asked, own: Json, promptStart: number | null): Json {
  const { path, connector } = asked;
  const out = withoutParams(asked);
  if (connector === 'sglang') return { ...out, ...own };
  const generate = path === GENERATE;
  const holder = generate ? out['sampling_params'] : out;
  if (isObject(holder) && !absent(holder['prompt_logprobs'])) {
    const { prompt_logprobs: _, ...rest } = holder;
    if (generate) out['sampling_params'] = rest;
    else delete out['prompt_logprobs'];
  }
  if (promptStart !== null) {
    const sampling = isObject(out['sampling_params']) ? out['sampling_params'] : {};
    if (generate) out['sampling_params'] = { ...sampling, routed_experts_prompt_start: promptStart };
    else out['routed_experts_prompt_start'] = promptStart;
  }
  return { ...out, ...threshold(asked), ...own };
}

/**
 * If the client asks that a share of the blocks be cached, engines that share a store get 0
 * instead.
 */
const threshold = ({ connector, value }: Asked): Json =>
  connector === 'shared_storage' && 'cache_hit_threshold' in value ? { cache_hit_threshold: 0 } : {};
