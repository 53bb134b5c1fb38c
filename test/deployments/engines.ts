/**
 * The simulated engines of one deployment, behind real ports, and the rows that the oracle, one
 * engine that does both, would return.
 */

import { createEngine, type SequentialOptions, type SimulatedEngine } from '../engine/engine.ts';
import { Fleet } from '../engine/fleet.ts';
import { serveEngine } from '../engine/server.ts';
import type { EngineReply, EngineRequest } from '../scenario.ts';

export interface Engines {
  readonly prefillPort: number;
  readonly decodePort: number;
  readonly prefill: SimulatedEngine;
  readonly decode: SimulatedEngine;
  /** Prefill answers once this promise has resolved. */
  gate: Promise<unknown>;
  /** The arrays that the oracle returns for a request. */
  right(body: Request): string[];
  close(): Promise<void>;
}

export type Request = Record<string, unknown>;

export interface Answer {
  status: number;
  outcome: string | null;
  arrays: string[];
  text: string;
}

const MODEL = { layers: 48, topK: 8, experts: 128 };

export async function startEngines(options: Partial<SequentialOptions> = {}): Promise<Engines> {
  const fleet = new Fleet();
  const shared = { fleet, model: MODEL, ...options };
  const prefill = createEngine({ ...shared, role: 'prefill' });
  const decode = createEngine({ ...shared, role: 'decode' });
  const behindGate = async (request: EngineRequest): Promise<EngineReply> => {
    await engines.gate;
    return prefill(request);
  };
  const servers = [await serveEngine(behindGate), await serveEngine(decode)];
  const engines: Engines = {
    prefillPort: servers[0]!.port,
    decodePort: servers[1]!.port,
    prefill,
    decode,
    gate: Promise.resolve(),
    right(body) {
      const oracle = createEngine({ ...shared, fleet: new Fleet(), role: 'oracle' });
      const headers: [string, string][] = [['content-type', 'application/json']];
      const { chunks } = oracle({
        method: 'POST',
        path: PATH,
        headers,
        body: Buffer.from(JSON.stringify(body)),
      });
      return arraysOf(Buffer.concat(chunks).toString('latin1'));
    },
    async close() {
      await Promise.all(servers.map((server) => server.close()));
    },
  };
  return engines;
}

const PATH = '/v1/completions';

export async function ask(
  port: number,
  body: Request,
  ip = '127.0.0.1',
  headers: Record<string, string> = {},
): Promise<Answer> {
  const response = await fetch(`http://${ip}:${port}${PATH}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  return {
    status: response.status,
    outcome: response.headers.get('x-routed-experts'),
    arrays: arraysOf(text),
    text,
  };
}

const arraysOf = (body: string) =>
  [...body.matchAll(/"routed_experts":"([^"]*)"/g)].map(([, array]) => array!);
