// Runs the cases on one router: its engines are replaced behind fixed ports, so that it is started
// once for each connector.

import { createEngine, type EngineOptions } from '../../test/engine/engine.ts';
import { Fleet } from '../../test/engine/fleet.ts';
import { serveEngine } from '../../test/engine/server.ts';
import type { Engine } from '../../test/scenario.ts';
import { Client } from '../client.ts';
import { learnShape } from '../compare.ts';
import { PATHS, bodyOf, type Asked } from '../requests.ts';
import { judge, readAnswer } from '../verify/judge.ts';
import type { Case, ConnectorName } from './cases.ts';

export interface Ports {
  prefillPort: number;
  decodePort: number;
}

/** A router that can be started for a connector. */
export interface Router {
  name: string;
  connectors: readonly ConnectorName[];
  start(connector: ConnectorName, ports: Ports): Promise<{ port: number; close(): Promise<void> }>;
}

export interface Outcome {
  case: Case;
  passed: boolean;
  /** What the router did: `right`, `refused`, or what is wrong. */
  did: string;
  milliseconds: number;
}

const TIMEOUT_MS = 30_000;
const BOOTSTRAP = { host: '127.0.0.1', port: 8998 };

export async function runCases(router: Router, cases: readonly Case[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const connector of router.connectors) {
    const own = cases.filter((of) => of.connector === connector);
    if (own.length > 0) outcomes.push(...(await runConnector(router, connector, own)));
  }
  return outcomes;
}

type Simulated = ReturnType<typeof enginesOf>;

function enginesOf({ engine, prefill, decode }: Case) {
  const shared = {
    fleet: new Fleet(),
    promptRows: 'stale',
    bootstrap: BOOTSTRAP,
    patience: 10_000,
    ...engine,
  } as const;
  return {
    prefill: createEngine({ ...shared, ...prefill, role: 'prefill' } as EngineOptions),
    decode: createEngine({ ...shared, ...decode, role: 'decode' } as EngineOptions),
    oracle: createEngine({ ...engine, role: 'oracle' }),
  };
}

async function runConnector(router: Router, connector: ConnectorName, cases: Case[]): Promise<Outcome[]> {
  let current: Simulated | undefined;
  const behind = (role: 'prefill' | 'decode' | 'oracle'): Engine => {
    return (request) => (current ? current[role](request) : { status: 503, headers: [], chunks: [] });
  };
  const servers = await Promise.all(
    (['prefill', 'decode', 'oracle'] as const).map((role) => serveEngine(behind(role))),
  );
  const [prefill, decode, right] = servers.map(({ port }) => port) as [number, number, number];
  const started = await router.start(connector, { prefillPort: prefill, decodePort: decode });
  const client = (port: number) =>
    new Client(new URL(`http://127.0.0.1:${port}`), { headers: {}, timeoutMs: TIMEOUT_MS, connections: 64 });
  const [through, oracle] = [client(started.port), client(right)];
  try {
    const outcomes: Outcome[] = [];
    for (const of of cases) {
      current = enginesOf(of);
      const begun = performance.now();
      const did = await runCase(of, current, through, oracle);
      const passed = did === 'right' || (did === 'refused' && of.must === 'refuse or right');
      outcomes.push({ case: of, passed, did, milliseconds: performance.now() - begun });
    }
    return outcomes;
  } finally {
    through.close();
    oracle.close();
    await started.close();
    await Promise.all(servers.map((server) => server.close()));
  }
}

async function runCase(of: Case, engines: Simulated, through: Client, oracle: Client): Promise<string> {
  const one = (asked: Asked) => runRequest(of, asked, engines, through, oracle);
  const did: string[] = [];
  if (of.atOnce) did.push(...(await Promise.all(of.asked.map(one))));
  else for (const asked of of.asked) did.push(await one(asked));
  const dead = (['prefill', 'decode'] as const).find((role) => engines[role].dead);
  if (dead) return `the ${dead} engine has died`;
  return (
    did.find((what) => what !== 'right' && what !== 'refused') ??
    did.find((what) => what !== 'right') ??
    'right'
  );
}

/** `right`, `refused`, or what is wrong with the answer. */
async function runRequest(
  of: Case,
  asked: Asked,
  engines: Simulated,
  through: Client,
  oracle: Client,
): Promise<string> {
  const { name, layers, topK, dense } = engines.oracle.model;
  const body = bodyOf(asked, of.connector === 'sglang' ? 'sglang' : 'vllm', name);
  const answer = await through.post(PATHS[asked.endpoint], { ...body, ...of.more });
  const { kv_transfer_params: _, ...more } = of.more ?? {};
  const reference = readAnswer(await oracle.post(PATHS[asked.endpoint], { ...body, ...more }));
  const shape = {
    ...learnShape([], layers * topK, null),
    ...{
      layers,
      topK,
      dense: new Set(Array.from({ length: layers }, (__, i) => i).filter((i) => dense?.(i))),
    },
  };
  const judged = judge(asked, answer, reference, shape);
  switch (judged.verdict) {
    case 'right':
    case 'refused':
      return judged.verdict;
    case 'missing':
      return '200 without an array, and nothing says so';
    case 'wrong':
      return `wrong rows: ${judged.why}`;
    case 'failed':
      return judged.why ?? 'no answer';
    case 'unchecked':
      return 'nothing to compare with';
  }
}
