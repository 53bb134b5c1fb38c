// Judges whether an exchange ended in a way that it may end.

import { meaningOf } from '../../yardstick/meaning.ts';
import type { Header } from '../scenario.ts';
import type { Engines } from './deployments.ts';
import type { Exchange, Reply } from './exchange.ts';

export interface Judged {
  /** How the exchange ended, in a few words that are counted in the report. */
  came: string;
  /** Whether the answer equals the oracle's. */
  compared?: boolean;
  /** What is wrong with the answer. */
  wrong?: string;
}

/** The content of an answer, as text that can be compared. */
const textOf = (body: Buffer): string =>
  meaningOf(body.toString())
    .map((of) => JSON.stringify(sorted(of)))
    .join('\n');

/** The same value with the members of its objects in the order of their names. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort()
      .map(([key, of]) => [key, sorted(of)]),
  );
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
  // The filter may pass on what a damaged decode sent, but it must not say that it has merged it.
  const own = exchange.damaged?.equals(reply.body) ?? false;
  if (own && !outcome.startsWith('merged')) return { came: `${came}, as a damaged decode sent it` };
  const headers: Header[] = [['content-type', 'application/json']];
  const request = { method: 'POST', path, body, headers };
  const right = textOf(Buffer.concat((await oracle(request)).chunks));
  const text = textOf(reply.body);
  if (text === right) return { came, compared: true };
  // A stream that had begun may end with an error.
  if (faulty && /"error"|"abort"/.test(text)) return { came: `${came}, an error` };
  let at = 0;
  while (text[at] === right[at]) at++;
  return {
    came,
    wrong: `at ${at}: ${text.slice(at - 60, at + 60)} instead of ${right.slice(at - 60, at + 60)}`,
  };
}
