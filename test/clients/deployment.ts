/**
 * What the clients ask: Envoy with the filter, an oracle, a router that merges nothing, and Envoys
 * whose filter has to refuse, with the ways in which it does so.
 */

import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { EngineOptions } from '../engine/engine.ts';
import { serveEngine } from '../engine/server.ts';
import { createPlant, type Plant } from '../envoy/plant.ts';
import { waitFor } from '../envoy/wait.ts';
import type { Engine, EngineReply } from '../scenario.ts';
import { engines, mergesNothing, mergesNothingAtOnce, url, type Engines } from '../yardstick/deployments.ts';

/** The API and the format of the engines: `object` is vLLM's API with prime-rl's format. */
export type Kind = 'vllm' | 'object' | 'sglang';

const SHAPE = { layers: 12, topK: 8 };

const ENGINES: Record<Kind, Partial<EngineOptions>> = {
  // vLLM's streams of the OpenAI endpoints have no arrays; servers around it, such as Dynamo, do.
  vllm: { model: { ...SHAPE, experts: 128 }, streamArrays: true },
  object: { format: 'B', dtypePerReply: true, model: { ...SHAPE, experts: 300, dtype: '<u2' } },
  sglang: { connector: 'sglang', format: 'D', model: { ...SHAPE, experts: 128 } },
};

const FILTER: Record<Kind, Record<string, unknown>> = {
  vllm: {},
  object: {},
  sglang: { connector: 'sglang', prefill: { bootstrap_host: '127.0.0.1' } },
};

/** A server, as the programs of the clients read it. */
export interface Server {
  url: string;
  http2: boolean;
  layers: number;
  top_k: number;
  /** Where a number is to be had: that of the requests that decode has seen. */
  count: string | null;
}

export type Compared = 'through' | 'oracle' | 'unmerged';
export type Refusing = 'reject' | 'null' | 'reset';

export interface Deployment {
  compare: Record<Compared, Server>;
  refuse: Record<Refusing, Server>;
  /** The outcomes of what came through the first Envoy, one a request. */
  outcomes(): Promise<(string | null)[]>;
  /** The outcomes of what came through the Envoys that refuse. */
  refusals(): Promise<(string | null)[]>;
  close(): Promise<void>;
}

const server = (of: string, count: string | null = null, http2 = false): Server => ({
  ...{ url: of, http2, layers: SHAPE.layers, top_k: SHAPE.topK, count },
});

export async function deploy(kind: Kind): Promise<Deployment> {
  const open: { close(): Promise<void> }[] = [];
  const kept = <T extends { close(): Promise<void> }>(each: T): T => {
    open.push(each);
    return each;
  };
  const close = async () => {
    for (const each of open.reverse()) await each.close();
  };
  try {
    const sound = kept(await engines(ENGINES[kind]));
    const through = kept(await plantOf(sound, kind));
    const merging = kind === 'sglang' ? mergesNothingAtOnce : mergesNothing;
    const unmerged = kept(await serveEngine(merging(kept(await engines(ENGINES[kind])))));

    // Prefill runs a model with other layers, so nothing can be merged.
    const refused = kept(
      await engines(ENGINES[kind], {
        prefill: { model: { ...ENGINES[kind].model, layers: SHAPE.layers - 1 } },
      }),
    );
    const held = kept(await plantOf(refused, kind, { on_unmergeable: 'reject' }, { on_unmergeable: 'null' }));
    const refusedCount = kept(await counter(refused));

    // What decode sends is found broken when a part of it has left.
    const breaking = kept(await engines(ENGINES[kind]));
    let cut: Plant | undefined;
    const broken = kept(await serveEngine(broke(breaking.decode, () => cut!)));
    cut = kept(await plantOf({ ...breaking, decodeServer: broken }, kind, { hold_bytes: 0 }));
    const cutCount = kept(await counter(breaking));

    return {
      compare: {
        through: server(url(through), null, true),
        oracle: server(url(sound.oracle)),
        unmerged: server(url(unmerged)),
      },
      refuse: {
        reject: server(url({ port: held.ports[0]! }), url(refusedCount), true),
        null: server(url({ port: held.ports[1]! }), url(refusedCount), true),
        reset: server(url(cut), url(cutCount), true),
      },
      outcomes: () => outcomesOf([through]),
      refusals: () => outcomesOf([held, cut!]),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function outcomesOf(plants: Plant[]): Promise<(string | null)[]> {
  const logs = await Promise.all(plants.map((plant) => plant.log()));
  return logs.flat().map((line) => line.routed_experts);
}

function plantOf(
  { prefillServer, decodeServer }: Pick<Engines, 'prefillServer' | 'decodeServer'>,
  kind: Kind,
  ...configs: Record<string, unknown>[]
): Promise<Plant> {
  const [config, ...more] = (configs.length > 0 ? configs : [{}]).map((own) => ({ ...FILTER[kind], ...own }));
  return createPlant({ prefillPort: prefillServer.port, decodePort: decodeServer.port, config, more });
}

/** Says how many requests decode has seen. */
async function counter({ decode }: Engines): Promise<{ port: number; close(): Promise<void> }> {
  const asked = createServer((_, response) => {
    const { requests } = decode as unknown as { requests: { method: string }[] };
    response.end(String(requests.filter(({ method }) => method === 'POST').length));
  });
  await new Promise<void>((resolve) => asked.listen(0, '127.0.0.1', resolve));
  return {
    port: (asked.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        asked.close(() => resolve());
        asked.closeAllConnections();
      }),
  };
}

/**
 * An engine whose answers end broken. The end is sent when the client has a part of what came
 * before.
 */
function broke(engine: Engine, plant: () => Plant): Engine {
  return async (request) => {
    const reply = await engine(request);
    if (reply.status !== 200 || request.method !== 'POST') return reply;
    const stat = async (name: string) => (await plant().stats(name))[name] ?? 0;
    const sent = () => stat('http.ingress.downstream_cx_tx_bytes_total');
    // With both legs at once nothing leaves before prefill has answered, too.
    const answered = async () => (await stat('cluster.prefill_http1.upstream_rq_active')) === 0 || undefined;
    await waitFor('Prefill has answered', answered);
    const before = await sent();
    const [first, second] = parts(Buffer.concat(reply.chunks).toString('latin1'));
    const left = () => waitFor('A part has left', async () => (await sent()) > before + 60 || undefined);
    return {
      ...reply,
      headers: reply.headers.filter(([name]) => name !== 'content-length'),
      chunks: [Buffer.from(first, 'latin1'), Buffer.from(second, 'latin1')],
      before: (i) => (i === 1 ? left() : undefined),
    } satisfies EngineReply;
  };
}

/** A body in two parts, of which the second is broken. */
function parts(body: string): [string, string] {
  if (!body.startsWith('data:')) return [body.slice(0, -2), '!!'];
  // The array of the last event that has one does not begin as an array does.
  const at = body.lastIndexOf('"routed_experts":') + '"routed_experts":'.length;
  const event = body.lastIndexOf('data:', at);
  return [body.slice(0, event), `${body.slice(event, at)}[${body.slice(at)}`];
}
