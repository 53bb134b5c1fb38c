/** Sends requests to engines, and takes from their answers what the demo needs. */

import { request } from 'node:http';
import { Problem } from '../problem.mjs';
import { decodeRows, type Rows } from './rows.ts';

export interface Answer {
  rows: Rows;
  kvTransferParams: unknown;
  /** The value of the header `x-routed-experts`. */
  outcome: string | null;
  milliseconds: number;
}

type Json = Record<string, unknown>;

const MODELS_TIMEOUT_MS = 10_000;
/** A large engine may take this long for a prompt that the user chose. */
const GENERATION_TIMEOUT_MS = 600_000;
const EXCERPT = 300;

/** The name of the first model that the engine serves. */
export async function askModel(who: string, base: URL): Promise<string> {
  const { json } = await ask(who, base, '/v1/models', null, {}, MODELS_TIMEOUT_MS);
  const [model] = (json.data ?? []) as { id?: unknown }[];
  if (typeof model?.id === 'string') return model.id;
  throw new Problem(`The ${who} at ${base.origin} names no model; give one with --model.`);
}

/** Asks for one completion with its routing. */
export async function complete(who: string, base: URL, body: Json, requestId: string): Promise<Answer> {
  const started = performance.now();
  const headers = { 'content-type': 'application/json', 'x-request-id': requestId };
  const reply = await ask(who, base, '/v1/completions', JSON.stringify(body), headers, GENERATION_TIMEOUT_MS);
  const milliseconds = performance.now() - started;
  const [choice] = (reply.json.choices ?? []) as Json[];
  const { routed_experts: array } = choice ?? {};
  if (typeof array !== 'string') {
    const hint = 'an engine returns them when it is started with --enable-return-routed-experts';
    throw new Problem(`The answer of the ${who} at ${base.origin} carries no routed_experts; ${hint}.`);
  }
  return {
    rows: readRows(who, base, array),
    kvTransferParams: reply.json.kv_transfer_params,
    outcome: reply.outcome,
    milliseconds,
  };
}

function readRows(who: string, base: URL, array: string): Rows {
  try {
    return decodeRows(array);
  } catch (error) {
    const reason = (error as Error).message;
    throw new Problem(`The routed_experts of the ${who} at ${base.origin} cannot be read: ${reason}.`);
  }
}

async function ask(
  who: string,
  base: URL,
  path: string,
  body: string | null,
  headers: Record<string, string>,
  timeoutMs: number,
) {
  const reply = await send(new URL(path, base), body, headers, timeoutMs).catch(
    (error: NodeJS.ErrnoException) => {
      throw new Problem(`The ${who} at ${base.origin} does not answer (${error.code ?? error.message}).`);
    },
  );
  if (reply.status !== 200) {
    const excerpt = reply.text.slice(0, EXCERPT).trim();
    throw new Problem(`The ${who} at ${base.origin} answered ${path} with ${reply.status}: ${excerpt}`);
  }
  try {
    return { json: JSON.parse(reply.text) as Json, outcome: reply.outcome };
  } catch {
    throw new Problem(`The ${who} at ${base.origin} answered ${path} with something that is not JSON.`);
  }
}

/** Every request has a connection of its own, so that none is left open when the demo ends. */
function send(url: URL, body: string | null, headers: Record<string, string>, timeoutMs: number) {
  return new Promise<{ status: number; text: string; outcome: string | null }>((resolve, reject) => {
    const outgoing = request(url, {
      method: body === null ? 'GET' : 'POST',
      headers: body === null ? headers : { ...headers, 'content-length': Buffer.byteLength(body) },
      agent: false,
      signal: AbortSignal.timeout(timeoutMs),
    });
    outgoing.on('error', reject);
    outgoing.on('response', async (response) => {
      try {
        let text = '';
        for await (const data of response.setEncoding('utf8')) text += data;
        const outcome = response.headers['x-routed-experts'];
        resolve({
          status: response.statusCode ?? 0,
          text,
          outcome: typeof outcome === 'string' ? outcome : null,
        });
      } catch (error) {
        reject(error as Error);
      }
    });
    outgoing.end(body ?? undefined);
  });
}
