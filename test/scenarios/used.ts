// Deployments that have served other requests before. Every slot of their engines has held a token,
// and the prompts of the request were already under P/D, in part and as a whole. So decode's cache
// has blocks whose rows are those of other requests.

import { createEngine, type Awaitable, type EngineOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { blockSizeOf } from '../engine/options.ts';
import type { Engine, EngineReply, Header } from '../scenario.ts';
import { CHAT, GENERATE, NATIVE } from './messages.ts';

type Json = Record<string, any>;
type Prompt = string | number[];

export interface Deployment {
  prefill: SimulatedEngine<Awaitable>;
  decode: SimulatedEngine<Awaitable>;
  /** The same engines for a scenario; they answer after the earlier requests are over. */
  engines: { prefill: Engine; decode: Engine };
}

export interface Own {
  prefill?: Partial<EngineOptions>;
  decode?: Partial<EngineOptions>;
}

/**
 * Creates engines that have served other prompts, then parts of the prompts of `request`, and then
 * these prompts themselves.
 */
export function usedDeployment(
  path: string,
  request: string,
  options: Partial<EngineOptions> = {},
  own: Own = {},
): Deployment {
  const prompts = promptsOf(path, JSON.parse(request) as Json);
  const longest = Math.max(...prompts.map(({ length }) => length + TEMPLATE));
  const blockSize = blockSizeOf(options as EngineOptions);
  // There are only enough blocks for the prompts and half of each once more, so every block that
  // the request gets was used before.
  const kvBlocks = prompts.length * (Math.ceil((1.5 * longest) / blockSize) + SPARE);
  const shared = { fleet: new Fleet(), kvBlocks, ...options };
  const prefill = createEngine({ ...shared, ...own.prefill, role: 'prefill' });
  const decode = createEngine({ ...shared, ...own.decode, role: 'decode' });

  // Another request, which fills every slot with a token. It generates two tokens, of which the
  // last one is not forwarded.
  const slots = kvBlocks * blockSize;
  const other = (from: number) =>
    Array.from({ length: slots - 1 }, (_, i) => 3 + ((from + i * 17 + (i >> 6)) % 499));
  const before = [...prompts.map(halfOf), ...prompts];
  const { connector } = options;
  if (connector !== 'sglang') {
    // The two engines get different requests, because decode would find prefill's in a store.
    [prefill, decode].forEach((engine, i) =>
      member(post(engine as unknown as Sync, GENERATE, bodyOf(GENERATE, other(i))), /("choices")/),
    );
  }
  if (connector !== 'sglang' && connector !== 'mooncake') {
    const engines = { prefill, decode } as unknown as Record<'prefill' | 'decode', Sync>;
    before.forEach((prompt, i) => inTurn(engines, path, prompt, options, i));
    return { prefill, decode, engines: { prefill, decode } };
  }
  const over = (async () => {
    if (connector === 'sglang') {
      // SGLang's decode never forwards a prompt, so its slots are filled with generated tokens.
      await atOnce(prefill, decode, NATIVE, [3], options, before.length, slots - 1);
    }
    const run = connector === 'sglang' ? atOnce : oneTransfer;
    for (const [i, prompt] of before.entries()) await run(prefill, decode, path, prompt, options, i);
  })();
  const after =
    (engine: Engine): Engine =>
    async (received) => {
      await over;
      return engine(received);
    };
  return { prefill, decode, engines: { prefill: after(prefill), decode: after(decode) } };
}

type Sync = (request: Parameters<Engine>[0]) => EngineReply;

/** The largest number of tokens that a chat's template adds. */
const TEMPLATE = 40;
/** Blocks beyond those of the prompts, for generated tokens. */
const SPARE = 3;

function promptsOf(path: string, body: Json): Prompt[] {
  if (path === CHAT) return [body['messages'].map(({ content }: Json) => content).join('\n')];
  const prompt = body['prompt'] ?? body['token_ids'] ?? body['text'] ?? body['input_ids'];
  if (typeof prompt === 'string' || typeof prompt[0] === 'number') return [prompt];
  return prompt;
}

/** Another prompt that begins like this one. */
function halfOf(prompt: Prompt): Prompt {
  const half = prompt.length >> 1;
  if (typeof prompt === 'string') return `${prompt.slice(0, half)} and ${prompt.slice(half + 5)}`;
  return [...prompt.slice(0, half), ...prompt.slice(half).map((id) => 3 + ((id * 5 + 1) % 499))];
}

/**
 * A request for two tokens, so that all tokens of the prompt and one generated token are forwarded.
 */
function bodyOf(path: string, prompt: Prompt, tokens = 2): Json {
  const ids = typeof prompt !== 'string';
  if (path === NATIVE)
    return { [ids ? 'input_ids' : 'text']: prompt, sampling_params: { max_new_tokens: tokens } };
  if (path === GENERATE) return { token_ids: prompt, sampling_params: { max_tokens: 2 } };
  if (path === CHAT) return { messages: [{ role: 'user', content: prompt }], max_tokens: 2 };
  return { prompt, max_tokens: 2 };
}

function withSampling(path: string, body: Json, params: Json): Json {
  return path === GENERATE
    ? { ...body, sampling_params: { ...body['sampling_params'], ...params } }
    : { ...body, ...params };
}

function post<Reply extends Awaitable>(
  engine: (request: Parameters<Engine>[0]) => Reply,
  path: string,
  body: Json | string,
  headers: Header[] = [],
): Reply {
  const bytes = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return engine({
    method: 'POST',
    path,
    headers: [['content-type', 'application/json'], ...headers],
    body: bytes,
  });
}

/** A member of a reply, found without parsing: the member is small and stands behind much text. */
function member(reply: EngineReply, pattern: RegExp): string {
  const text = Buffer.concat(reply.chunks).toString('latin1');
  const found = pattern.exec(text)?.[1];
  if (reply.status !== 200 || found === undefined) throw new Error(`no ${pattern} in ${text.slice(0, 300)}`);
  return found;
}

const TO_DECODE = {
  ...{ do_remote_decode: true, do_remote_prefill: false, remote_engine_id: null },
  ...{ remote_block_ids: null, remote_host: null, remote_port: null },
};

/** Runs P/D as a router does: prefill, then decode with what prefill returned. */
function inTurn(
  engines: Record<'prefill' | 'decode', Sync>,
  path: string,
  prompt: Prompt,
  { connector, version }: Partial<EngineOptions>,
  ordinal: number,
): void {
  const nixl = (connector ?? 'nixl') === 'nixl';
  const body = bodyOf(path, prompt);
  const leg = withSampling(path, body, { max_tokens: 1, min_tokens: 1 });
  const id: Header[] = [['x-request-id', `before-${ordinal}`]];
  const first = post(engines.prefill, path, nixl ? { ...leg, kv_transfer_params: TO_DECODE } : leg, id);
  const params = nixl ? { kv_transfer_params: JSON.parse(member(first, PARAMS)) as Json } : {};
  const tail = tailOf(first, version);
  const second = post(engines.decode, path, { ...withSampling(path, body, tail), ...params }, id);
  member(second, /("choices")/);
}

const PARAMS = /"kv_transfer_params":(\{[^}]*\})/;

/** What decode of vLLM 0.32 must be asked after this reply of prefill's. */
function tailOf(prefilled: EngineReply, version: EngineOptions['version']): Json {
  const tokens = Number(member(prefilled, /"prompt_tokens":(\d+)/));
  return version === '0.32' ? { routed_experts_prompt_start: tokens } : {};
}

/** Runs P/D over a Mooncake transfer. */
async function oneTransfer(
  prefill: SimulatedEngine<Awaitable>,
  decode: SimulatedEngine<Awaitable>,
  path: string,
  prompt: Prompt,
  { bootstrap, version }: Partial<EngineOptions>,
  ordinal: number,
): Promise<void> {
  const ranks = await prefill({ method: 'GET', path: '/query', headers: [], body: Buffer.alloc(0) });
  const engineId = member(ranks, /"0":\{"engine_id":"([^"]*)"/);
  const transfer_id = `before-${ordinal}`;
  const sent = { do_remote_decode: true, do_remote_prefill: false, transfer_id };
  const taken = {
    ...{ do_remote_decode: false, do_remote_prefill: true, transfer_id },
    remote_bootstrap_addr: `http://${bootstrap!.host}:${bootstrap!.port}`,
    remote_engine_id: engineId,
  };
  const body = bodyOf(path, prompt);
  const leg = withSampling(path, body, { max_tokens: 1, min_tokens: 1 });
  const rank: Header[] = [['x-data-parallel-rank', '0']];
  const first = await post(prefill, path, { ...leg, kv_transfer_params: sent }, rank);
  const asked = withSampling(path, body, tailOf(first, version));
  member(await post(decode, path, { ...asked, kv_transfer_params: taken }), /("choices")/);
}

/** Runs both legs on SGLang's engines, which wait for each other. */
async function atOnce(
  prefill: SimulatedEngine<Awaitable>,
  decode: SimulatedEngine<Awaitable>,
  path: string,
  prompt: Prompt,
  { bootstrap }: Partial<EngineOptions>,
  ordinal: number,
  tokens?: number,
): Promise<void> {
  const body = bodyOf(path, prompt, tokens);
  const { host, port } = bootstrap!;
  const room = { bootstrap_host: host, bootstrap_port: port, bootstrap_room: ordinal + 1 };
  const legs = await Promise.all([
    post(prefill, path, { ...body, ...room }),
    post(decode, path, { ...body, ...room }),
  ]);
  for (const reply of legs) member(reply, /("prompt_tokens")/);
}

/** The reply of the oracle, which has served no other request. */
export function oracleOf(path: string, request: string, options: Partial<EngineOptions>): string {
  const oracle = createEngine({ ...options, role: 'oracle' }) as unknown as Sync;
  const { status, chunks } = post(oracle, path, request);
  const text = Buffer.concat(chunks).toString();
  if (status !== 200) throw new Error(text);
  return text;
}
