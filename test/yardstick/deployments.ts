// Deployments of simulated engines, and a router that merges nothing.

import { createEngine, type EngineOptions } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { header } from '../engine/http.ts';
import { serveEngine, type EngineServer } from '../engine/server.ts';
import type { Engine, EngineRequest } from '../scenario.ts';

export interface Own {
  prefill?: Partial<EngineOptions>;
  decode?: Partial<EngineOptions>;
}

export interface Engines {
  prefill: Engine;
  decode: Engine;
  oracle: EngineServer;
  prefillServer: EngineServer;
  decodeServer: EngineServer;
  close(): Promise<void>;
}

export const url = ({ port }: { port: number }): string => `http://127.0.0.1:${port}`;

/**
 * Engines whose caches are small, so that blocks are reused. Decode's slots hold rows that look
 * plausible and are those of no request.
 */
export async function engines(options: Partial<EngineOptions> = {}, own: Own = {}): Promise<Engines> {
  const shared = { fleet: new Fleet(), kvBlocks: 200, promptRows: 'stale' as const, ...options };
  const bootstrap = { host: '127.0.0.1', port: 8998 };
  const of = (role: 'prefill' | 'decode'): Engine =>
    createEngine({ bootstrap, ...shared, ...own[role], role } as EngineOptions);
  const [prefill, decode] = [of('prefill'), of('decode')];
  const servers = await Promise.all(
    [prefill, decode, createEngine({ ...options, role: 'oracle' })].map((engine) => serveEngine(engine)),
  );
  const [prefillServer, decodeServer, oracle] = servers as [EngineServer, EngineServer, EngineServer];
  const close = async () => void (await Promise.all(servers.map((server) => server.close())));
  return { prefill, decode, oracle, prefillServer, decodeServer, close };
}

const TO_DECODE = {
  ...{ do_remote_decode: true, do_remote_prefill: false, remote_engine_id: null },
  ...{ remote_block_ids: null, remote_host: null, remote_port: null },
};

type Json = Record<string, any>;

/**
 * A router for NixlConnector as one writes it in an afternoon: it runs both legs and returns
 * decode's answer as it is. With `alone`, it sends a part of the requests to decode alone, and does
 * not say so.
 */
export function mergesNothing({ prefill, decode }: Pick<Engines, 'prefill' | 'decode'>, alone = 0): Engine {
  let asked = 0;
  let serial = 0;
  return async (request) => {
    if (request.method !== 'POST') return decode(request);
    const body = JSON.parse(request.body.toString()) as Json;
    if (alone > 0 && ++asked % alone === 0) return decode(request);
    const generate = request.path === '/inference/v1/generate';
    const cap = { max_tokens: 1, min_tokens: 1, n: 1 };
    const first = generate
      ? { ...body, sampling_params: { ...body['sampling_params'], ...cap } }
      : { ...body, ...cap };
    const id = `r-${++serial}`;
    const reply = await prefill(
      changed(
        request,
        { ...first, stream: false, stream_options: undefined, kv_transfer_params: TO_DECODE },
        id,
      ),
    );
    if (reply.status !== 200) return reply;
    const { kv_transfer_params } = JSON.parse(Buffer.concat(reply.chunks).toString()) as Json;
    return decode(changed(request, { ...body, kv_transfer_params }, id));
  };
}

/** The same for SGLang, whose legs run at once and name a room in which they meet. */
export function mergesNothingAtOnce({ prefill, decode }: Pick<Engines, 'prefill' | 'decode'>): Engine {
  let rooms = 0;
  return async (request) => {
    if (request.method !== 'POST') return decode(request);
    const body = JSON.parse(request.body.toString()) as Json;
    const room = { bootstrap_host: '127.0.0.1', bootstrap_port: 8998, bootstrap_room: ++rooms };
    const leg = changed(request, { ...body, ...room }, `r-${rooms}`);
    const [, reply] = await Promise.all([prefill(leg), decode(leg)]);
    return reply;
  };
}

function changed(request: EngineRequest, body: Json, id: string): EngineRequest {
  const type = header(request, 'content-type')!;
  return {
    ...request,
    headers: [
      ['content-type', type],
      ['x-request-id', id],
    ],
    body: Buffer.from(JSON.stringify(body)),
  };
}
