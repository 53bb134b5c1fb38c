/** Node's `openai`, which is asked in this process. */

import { createHash } from 'node:crypto';
import { NODE_OPENAI } from '../../tools/clients.mjs';
import { decodeNpy } from '../../yardstick/npy.ts';
import { DTYPE_NAMES, idsOf, type Dtype } from '../../yardstick/rows.ts';
import type { Deployment, Server } from './deployment.ts';
import type { Digest, Found, Refusal } from './programs.ts';

const PROMPT = 'Node asks for the experts of its tokens. '.repeat(8);
const COMPLETION = { model: 'tiny', prompt: PROMPT, max_tokens: 12, temperature: 0 };
const CHAT = {
  ...{ model: 'tiny', max_completion_tokens: 12, temperature: 0 },
  messages: [{ role: 'user', content: PROMPT }],
};

type Ask = (server: Server) => Promise<(string | null)[]>;

/** The arrays of a stream's choices, which are on the last event of each. */
async function last(events: AsyncIterable<any>): Promise<(string | null)[]> {
  const values: (string | null)[] = [];
  for await (const { choices } of events)
    for (const { index, routed_experts, finish_reason } of choices)
      if (routed_experts || finish_reason) values[index] = routed_experts ?? null;
  return values;
}

const whole = ({ choices }: any) => choices.map((choice: any) => choice.routed_experts);

async function cases(): Promise<Record<string, Ask>> {
  const { default: OpenAI } = await import(NODE_OPENAI);
  const to = ({ url }: Server) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });
  return {
    completions: async (server) => whole(await to(server).completions.create(COMPLETION)),
    'completions, n = 2': async (server) =>
      whole(await to(server).completions.create({ ...COMPLETION, temperature: 1, n: 2 })),
    'chat, stream': async (server) =>
      last(await to(server).chat.completions.create({ ...CHAT, stream: true })),
  };
}

function digest(value: string | null): Digest {
  if (value === null) return null;
  const { data, shape, descr } = decodeNpy(Buffer.from(value, 'base64'));
  const same = Int32Array.from(idsOf(data, descr as Dtype));
  const sha256 = createHash('sha256').update(new Uint8Array(same.buffer)).digest('hex');
  return { shape, dtype: DTYPE_NAMES[descr as Dtype], sha256 };
}

async function refused(ask: Ask, server: Server): Promise<Refusal> {
  const requests = async () => Number(await (await fetch(server.count!)).text());
  const before = await requests();
  const found = await ask(server).then(
    (values): Partial<Refusal> => ({ returned: values.map(digest) }),
    (error: Error): Partial<Refusal> => ({ raised: error.constructor.name, text: error.message }),
  );
  return { ...found, requests: (await requests()) - before };
}

/** Lets Node's `openai` ask. The golden is what the oracle says to `fetch`. */
export async function runNode({ compare, refuse }: Deployment): Promise<Found> {
  const found: Found = { decoded: {}, refused: {} };
  for (const [name, ask] of Object.entries(await cases())) {
    const digests = async (server: Server) => (await ask(server)).map(digest);
    const decoded = {
      through: await digests(compare.through),
      oracle: await digests(compare.oracle),
      unmerged: await digests(compare.unmerged),
    };
    found.decoded[name] = { ...decoded, golden: (await golden(name, compare.oracle)).map(digest) };
    found.refused[name] = {
      reject: await refused(ask, refuse.reject),
      null: await refused(ask, refuse.null),
      reset: await refused(ask, refuse.reset),
    };
  }
  return found;
}

async function golden(name: string, { url }: Server): Promise<string[]> {
  const chat = name.startsWith('chat');
  const body = chat ? CHAT : { ...COMPLETION, ...(name.includes('n = 2') ? { temperature: 1, n: 2 } : {}) };
  const response = await fetch(`${url}/v1/${chat ? 'chat/' : ''}completions`, {
    ...{ method: 'POST', headers: { 'content-type': 'application/json' } },
    body: JSON.stringify(body),
  });
  return whole(await response.json());
}
