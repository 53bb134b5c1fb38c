// Finds out what a deployment serves: model, endpoints, dialect, and the shape of its rows.

import type { Captured } from '../arrays.ts';
import { Numbers } from '../cases.ts';
import type { Client } from '../client.ts';
import { learnShape, type Shape } from '../compare.ts';
import { NoReply, readReply, type Reply } from '../reply.ts';
import { PATHS, bodyOf, type Dialect, type EndpointName } from '../requests.ts';
import type { Options } from './options.ts';

/** The run cannot say anything. The message is a sentence for the user. */
export class CannotRun extends Error {}

export interface Deployment {
  model: string;
  dialect: Dialect;
  endpoints: EndpointName[];
  shape: Shape;
  /** The largest number of tokens of prompt and answer; null if the deployment does not tell. */
  context: number | null;
}

interface Card {
  id: string;
  owner: string;
  context: number | null;
}

/** `reference` is the oracle, or the deployment itself where there is none. */
export async function detect(through: Client, reference: Client, options: Options): Promise<Deployment> {
  const card = (await cardOf(through)) ?? (await cardOf(reference));
  const model = options.model ?? card?.id;
  if (model === undefined) {
    throw new CannotRun(`${through.base.href} names no model; name one with --model.`);
  }
  let dialect = options.dialect ?? (card?.owner === 'sglang' ? 'sglang' : 'vllm');
  const found: EndpointName[] = [];
  const refusals: string[] = [];
  for (const endpoint of ['native', 'generate', 'completions', 'chat'] as const) {
    if (endpoint === 'generate' && dialect === 'sglang') continue;
    const why =
      (await refusal(through, endpoint, dialect, model)) ??
      (reference === through ? null : await refusal(reference, endpoint, dialect, model));
    if (why !== null) refusals.push(`${PATHS[endpoint]}: ${why}`);
    else found.push(endpoint);
    if (why === null && endpoint === 'native') dialect = 'sglang';
  }
  if (found.length === 0) {
    throw new CannotRun(`${through.base.href} serves no endpoint that is known: ${refusals.join('; ')}.`);
  }
  const shape = await shapeOf(reference, found[0]!, dialect, model, options);
  return { model, dialect, endpoints: found, shape, context: card?.context ?? null };
}

async function cardOf(client: Client): Promise<Card | null> {
  const { status, body } = await client.get('/v1/models');
  if (status === 0) throw new CannotRun(`${client.base.href} does not answer (${body.toString()}).`);
  if (status !== 200) return null;
  try {
    const { data } = JSON.parse(body.toString()) as { data: Record<string, unknown>[] };
    const { id, owned_by, max_model_len: context } = data[0]!;
    if (typeof id !== 'string') return null;
    return { id, owner: String(owned_by), context: typeof context === 'number' ? context : null };
  } catch {
    return null;
  }
}

const PROBE_TOKENS = 8;

const probe = (endpoint: EndpointName, tokens: number, seed: number) => {
  const numbers = new Numbers(seed);
  const ids = Array.from({ length: tokens }, () => 300 + numbers.below(5000));
  const prompt = endpoint === 'chat' ? [{ role: 'user', content: ids.join(' ') }] : ids;
  return { endpoint, prompt, maxTokens: PROBE_TOKENS };
};

/** Why an endpoint is not served; null if it is. */
async function refusal(
  client: Client,
  endpoint: EndpointName,
  dialect: Dialect,
  model: string,
): Promise<string | null> {
  const body = bodyOf(probe(endpoint, 3, 0), endpoint === 'native' ? 'sglang' : dialect, model);
  const answer = await client.post(PATHS[endpoint], body);
  const { status } = answer;
  if (status === 0) throw new CannotRun(`${client.base.href} does not answer (${answer.body.toString()}).`);
  if (status === 401 || status === 403) {
    throw new CannotRun(`${client.base.href} answers ${status}; give it what it asks for with --header.`);
  }
  // The endpoint is there. Whether its answers are right is what the run finds out.
  if (status > 501 || status === 500) return null;
  if (status !== 200) return `status ${status}, ${answer.body.toString().slice(0, 200)}`;
  try {
    readReply(answer.body, answer.contentType);
    return null;
  } catch (error) {
    if (error instanceof NoReply) return error.message;
    throw error;
  }
}

const LENGTHS = [40, 61, 90, 128];

async function shapeOf(
  client: Client,
  endpoint: EndpointName,
  dialect: Dialect,
  model: string,
  options: Options,
): Promise<Shape> {
  const replies: { reply: Reply; array: Captured }[] = [];
  let last = 'no reply has an array';
  for (const [i, tokens] of LENGTHS.entries()) {
    const answer = await client.post(PATHS[endpoint], bodyOf(probe(endpoint, tokens, i + 1), dialect, model));
    if (answer.status !== 200) {
      last = `status ${answer.status}, ${answer.body.toString().slice(0, 200)}`;
      continue;
    }
    const reply = readReply(answer.body, answer.contentType);
    const [choice] = reply.choices;
    if (choice?.array) replies.push({ reply, array: choice.array });
    else if (choice?.unreadable) last = choice.unreadable;
  }
  if (replies.length === 0) {
    const hint = dialect === 'sglang' ? '' : ' vLLM captures with --enable-return-routed-experts.';
    throw new CannotRun(`${client.base.href} returns no routed_experts (${last}).${hint}`);
  }
  const rowLength = rowLengthOf(replies);
  // Without an oracle only the rows behind the prompt are known to be the engine's own.
  const sound = replies.map(({ array }) => {
    const own = options.oracle ? 0 : Math.max(array.ids.length - (PROBE_TOKENS - 1) * rowLength, 0);
    return { ...array, ids: array.ids.subarray(own) };
  });
  return learnShape(sound, rowLength, options.experts ?? null);
}

/** Raw int32 tells its row's length by how much longer the array of a longer prompt is. */
function rowLengthOf(replies: { reply: Reply; array: Captured }[]): number {
  const told = replies.find(({ array }) => array.shape && array.shape[0] > 0)?.array.shape;
  if (told) return told[1] * told[2];
  const sizes = replies.map(({ reply, array }) => ({
    tokens: (reply.promptTokens ?? 0) + (reply.completionTokens ?? 0),
    ids: array.ids.length,
  }));
  const [first, last] = [sizes[0]!, sizes.at(-1)!];
  const length = (last.ids - first.ids) / (last.tokens - first.tokens);
  if (Number.isInteger(length) && length > 0) return length;
  throw new CannotRun('The length of a row cannot be told: arrays of longer prompts are not longer.');
}
