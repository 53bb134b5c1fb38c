// Whether what came of an exchange is what may come of it.

import type { Header } from '../scenario.ts';
import type { Engines } from './deployments.ts';
import type { Exchange, Reply } from './exchange.ts';

export interface Judged {
  /** In a few words, to be counted. */
  came: string;
  /** It is what the engine that does both answers. */
  compared?: boolean;
  /** What is wrong with it. */
  wrong?: string;
}

/** What two right answers to one request may differ in: names, times, and what engines say of their caches. */
const OWN = new Set([
  ...['id', 'request_id', 'created', 'kv_transfer_params', 'system_fingerprint', 'prompt_tokens_details'],
  ...['e2e_latency', 'cached_tokens', 'cached_tokens_details'],
]);

function essence(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(essence);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).filter(([key]) => !OWN.has(key));
  return Object.fromEntries(members.sort().map(([key, of]) => [key, essence(of)]));
}

/** A document, or the documents of an event stream, as text that can be compared. */
function textOf(body: Buffer): string {
  const text = body.toString();
  if (!text.startsWith('data: ')) return JSON.stringify(essence(JSON.parse(text)));
  const events = text.split('\n\n').filter((event) => event !== '');
  return events
    .map((event) => event.slice('data: '.length))
    .map((data) => (data === '[DONE]' ? data : JSON.stringify(essence(JSON.parse(data)))))
    .join('\n');
}

export async function judge(exchange: Exchange, reply: Reply, { oracle }: Engines): Promise<Judged> {
  const { deployment, faulty, leaving, path, body } = exchange;
  const { status, complete } = reply;
  const said = [...reply.headers, ...reply.trailers].find(([name]) => name === 'x-routed-experts')?.[1];
  const outcome = said?.split(';')[0] ?? 'not told';
  const came = `${status === 0 ? 'nothing' : status}, ${outcome}${complete ? '' : ', cut'}`;
  const excused = faulty || leaving !== undefined;
  if (!complete) return excused ? { came } : { came, wrong: 'cut without a reason' };
  if (status !== 200) {
    const refused = deployment.lacksRoom && status === 502;
    return excused || refused ? { came } : { came, wrong: reply.body.toString().slice(0, 300) };
  }
  // The filter says of none of these that it has merged it.
  const own = exchange.damaged?.equals(reply.body) ?? false;
  if (own && !outcome.startsWith('merged')) return { came: `${came}, as a damaged decode sent it` };
  const headers: Header[] = [['content-type', 'application/json']];
  const request = { method: 'POST', path, body, headers };
  const right = textOf(Buffer.concat((await oracle(request)).chunks));
  const text = textOf(reply.body);
  if (text === right) return { came, compared: true };
  // An error in a stream that has begun.
  if (faulty && /"error"|"abort"/.test(text)) return { came: `${came}, an error` };
  let at = 0;
  while (text[at] === right[at]) at++;
  return {
    came,
    wrong: `at ${at}: ${text.slice(at - 60, at + 60)} instead of ${right.slice(at - 60, at + 60)}`,
  };
}
